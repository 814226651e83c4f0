"""What the scripts that make pages share: putting them on the disk."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from foveate.bench.results import write_whole

DOCS = Path(__file__).parent


def write(made: Mapping[str, str], docs: Path = DOCS) -> None:
    """Write pages, and take away what else is in the folders below `docs` that they are in.

    Args:
        made: the text of each page, by its path inside `docs`, such as "methods/pool.md".
        docs: the folder of all pages.
    """
    for path, text in made.items():
        write_whole(docs / path, text)
    for folder in {Path(path).parent for path in made} - {Path()}:
        for page in (docs / folder).glob("*.md"):
            if page.relative_to(docs).as_posix() not in made:
                page.unlink()
    print(f"wrote {next(iter(made)) if len(made) == 1 else f'{len(made)} pages'}", file=sys.stderr)
