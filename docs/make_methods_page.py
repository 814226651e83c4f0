#!/usr/bin/env python3
"""Write docs/methods.md from the methods themselves: `python docs/make_methods_page.py`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from pathlib import Path

from foveate.methods import Method
from foveate.spec import method_class, method_names

PAGE = Path(__file__).with_name("methods.md")

HEAD = """\
# Methods

One section per method that comes with foveate. This page is made from the methods' own docstrings and fields by
`python docs/make_methods_page.py`; a test fails when the two differ. `foveate methods` prints the same facts.

**keep** is how much remains: a whole number is tokens per image, a number with a dot is the fraction of what arrives
(`1` is one token, `1.0` is all of them). **positions** says whether kept tokens keep their position ids (`keep`) or get
new ones without gaps (`pack`). Options are written `name=value`: `cluster:64:start=plusplus:seed=3`.

Each method is written from formulas, no code was copied, and a section says where it departs from its paper. `cls` and
`pool` are compared with what their authors' own code makes of fixed inputs: [golden cases](../tests/golden/README.md).
The section on `cluster` is our reading: neither the paper's text nor its code was seen.
"""


def page() -> str:
    """The whole page."""
    ours = [name for name in method_names() if method_class(name).__module__.startswith("foveate.methods.")]
    rows = "\n".join(_row(name, method_class(name)) for name in ours)
    table = f"| method | acts at | positions | signals | from |\n|---|---|---|---|---|\n{rows}\n"
    return "\n".join([HEAD, table, *(_section(name, method_class(name)) for name in ours)])


def _row(name: str, method: type[Method]) -> str:
    default = method()
    signals = ", ".join(f"`{type(each).__name__}`" for each in default.needs) or "none"
    return f"| [`{name}`](#{name}) | `@{method.place}` | `{default.positions}` | {signals} | {_source(method)} |"


def _section(name: str, method: type[Method]) -> str:
    headline = (inspect.getmodule(method).__doc__ or "").strip().splitlines()[0]
    text, example = _split(inspect.getdoc(method) or "")
    facts = [
        "reads the question" if method.query_aware else "does not read the question",
        "the count depends on the content" if method.adaptive else "the count is known from the layout",
        "has weights of its own" if method.trained else "needs no training",
    ]
    lines = [f"## {name}", "", headline, "", text, ""]
    if example:
        lines += ["```pycon", example, "```", ""]
    lines += [f"Acts at `@{method.place}`; {'; '.join(facts)}. Source: {_source(method)}.", ""]
    hints = typing.get_type_hints(method)
    lines += ["| option | default | values |", "|---|---|---|"]
    for field in dataclasses.fields(method):
        lines.append(f"| `{field.name}` | `{field.default}` | {_values(field.name, hints[field.name])} |")
    return "\n".join([*lines, ""])


def _split(doc: str) -> tuple[str, str]:
    """Prose and example of a docstring."""
    prose, mark, example = doc.partition(">>> ")
    return prose.strip(), (mark + example).strip()


def _values(name: str, kind: typing.Any) -> str:
    if name == "keep":
        return "tokens per image, or a fraction with a dot"
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    return {int: "a whole number", float: "a number", bool: "`true`, `false`"}.get(kind, f"`{kind}`")


def _source(method: type[Method]) -> str:
    """A link to the paper, or that there is none."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", method.paper) or "a baseline"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}", file=sys.stderr)
