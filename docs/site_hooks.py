"""Hooks of the documentation site: pages that lie outside docs/, links that leave it, and the page of commands."""

from __future__ import annotations

import importlib
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
if str(DOCS) not in sys.path:
    sys.path.insert(0, str(DOCS))

from mkdocs.structure.files import File, Files  # noqa: E402

from generators.commands import reference  # noqa: E402

OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site that are files of the repository's root."""
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
OBJECT = re.compile(r"^::: (foveate\.[\w.]+)$", re.MULTILINE)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages that are made from files outside docs/ and from the program itself."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=_moved((ROOT / source).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "commands.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn links to files that the site doesn't have into plain text."""
    folder = posixpath.dirname(page.file.src_uri)

    def kept(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        there = files.get_file_from_path(target) is not None or match.string[match.start() - 1] == "!"
        return match[0] if there else _named(match[1], target)

    return LINK.sub(kept, OBJECT.sub(_real_name, markdown))


def _real_name(match: re.Match[str]) -> str:
    """Return where a public name is defined: a static reader takes `foveate.engine.apply` for the module."""
    module, _, name = match[1].rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return f"::: {found.__module__}.{found.__qualname__}"


def _moved(text: str) -> str:
    """Return a page of the root with links as they are inside docs/."""
    by_source = {source: page for page, source in OUTSIDE.items()}

    def link(match: re.Match[str]) -> str:
        target = by_source.get(match[2]) or re.sub(r"^docs/", "", match[2]) if match[2] else ""
        if target == match[2]:
            target = f"../{target}"
        return f"[{match[1]}]({target}{match[3] or ''})"

    return LINK.sub(link, text)


def _named(text: str, target: str) -> str:
    """Return a link's text; where the text is not the path, the path follows it."""
    path = posixpath.normpath(posixpath.join("docs", target))
    if text.strip("`") in path:
        return f"`{path}`"
    return f"{text} (`{path}`)"
