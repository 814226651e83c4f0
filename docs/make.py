#!/usr/bin/env python3
"""Make the generated pages of the documentation.

    python docs/make.py                     write every generated page
    python docs/make.py methods support     write the pages of these generators only
    python docs/make.py --check             write nothing; exit with 1 if a page is out of date
    python docs/make.py --pictures          draw the pictures too
    python docs/make.py --list              print the generators and their pages
    python docs/make.py accuracy --pictures --take results/methods before
                                            copy what accuracy.md needs of a results folder of `foveate bench` to
                                            docs/measured/accuracy-before.json, then make that page
    python docs/make.py claims --take results/claims bench
                                            copy what claims.md needs of a results folder to docs/measured/claims.json,
                                            then make that page
    python docs/make.py versions --take REPORT 5.23.0
                                            enter pytest's JUnit report of a run with transformers 5.23.0 in
                                            docs/measured/versions.json, then make that page

    python docs/make.py --measure           measure again what was measured on an embedded model that has changed since
                                            (docs/generators/measurements.toml), then write every page; this takes days
                                            on a CPU, and goes on where it was interrupted
    python docs/make.py saliency --measure --list
                                            print the commands for one page

Each module in docs/generators/ that has a function pages() is a generator.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).resolve().parent
if str(DOCS) not in sys.path:
    sys.path.insert(0, str(DOCS))

import generators  # noqa: E402
from foveate.files import write_text  # noqa: E402
from generators import measurements  # noqa: E402


def found() -> dict[str, ModuleType]:
    """Return every generator by its name."""
    names = sorted(each.name for each in pkgutil.iter_modules(generators.__path__))
    modules = {name: importlib.import_module(f"generators.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "pages")}


def write(made: Mapping[str, str], docs: Path = DOCS) -> None:
    """Write pages, and remove other pages from the folders below `docs` that they are in.

    Args:
        made: the text of each page by its path inside `docs`, such as "methods/pool.md".
        docs: the folder of all pages.
    """
    for path, text in made.items():
        write_text(docs / path, text)
    for path in surplus(made, docs):
        (docs / path).unlink()
    print(f"wrote {next(iter(made)) if len(made) == 1 else f'{len(made)} pages'}", file=sys.stderr)


def surplus(made: Mapping[str, str], docs: Path = DOCS) -> list[str]:
    """Return the pages in the generators' own folders that no generator makes any more."""
    folders = {Path(path).parent for path in made} - {Path(), Path("..")}
    there = (page.relative_to(docs).as_posix() for folder in folders for page in (docs / folder).glob("*.md"))
    return sorted(set(there) - made.keys())


def outdated(made: Mapping[str, str], docs: Path = DOCS) -> list[str]:
    """Return the pages that are missing, differ from what was made, or should no longer exist."""
    paths = ((path, docs / path) for path in made)
    differing = [path for path, file in paths if not file.exists() or file.read_text(encoding="utf-8") != made[path]]
    return differing + surplus(made, docs)


def main() -> int:
    """Make what the command line asks for; return the exit code."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("generators", nargs="*", metavar="GENERATOR")
    reader.add_argument("--check", action="store_true", help="compare, write nothing")
    reader.add_argument("--pictures", action="store_true", help="draw the pictures too")
    reader.add_argument("--list", action="store_true", help="print the generators and their pages")
    reader.add_argument("--measure", action="store_true", help="first measure again what changed models make stale")
    reader.add_argument("--take", nargs=2, metavar=("RESULTS", "NAME"), help="results that the page will show")
    arguments = reader.parse_args()
    every = found()
    if unknown := [name for name in arguments.generators if name not in every]:
        reader.error(f"unknown generator {unknown[0]!r}; there are {', '.join(every)}")
    if arguments.check and (arguments.measure or arguments.take):
        reader.error("--check writes nothing; leave --measure and --take out")
    if arguments.take:
        takers = [name for name in arguments.generators if hasattr(every[name], "take")]
        if len(takers) != 1:
            reader.error("--take needs one generator that takes results: accuracy, claims or versions")
        every[takers[0]].take(Path(arguments.take[0]), arguments.take[1])
    if arguments.measure and (code := measurements.measure(arguments.generators, dry=arguments.list)):
        return code
    if arguments.measure and arguments.list:
        return 0
    stale: list[str] = []
    for name in arguments.generators or every:
        made = every[name].pages()
        if arguments.list:
            print(f"{name}: {', '.join(made)}")
        elif arguments.check:
            stale += [f"{path}: run: python docs/make.py {name}" for path in outdated(made)]
            stale += [
                f"measured/{file}: run: python docs/make.py {name} --measure" for file in measurements.stale([name])
            ]
        else:
            if (arguments.pictures or arguments.measure) and hasattr(every[name], "draw"):
                every[name].draw()
            write(made)
    print("\n".join(stale), end="\n" if stale else "")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
