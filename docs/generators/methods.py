"""docs/methods.md and docs/methods/, from the methods' docstrings and options."""

from __future__ import annotations

import re
from typing import Any

from foveate.listing import Listing, listing
from foveate.methods import method_class

HEAD = """\
# Methods

Every method has its own page. `foveate methods` prints a shorter table; `foveate methods --json` prints everything.

**Keep** says how much remains: an integer is tokens per image, a number with a dot is a share of the tokens that arrive
(`1` is one token, `1.0` is all of them). Adaptive methods also take `auto`, and decide from the content. **Positions**
says whether kept tokens keep their position ids (`keep`) or get consecutive new ones (`pack`). Options are written
`name=value`: `cluster:64:start=plusplus:seed=3`.

Methods are written from formulas; no code was copied. Where the authors' code can run on arrays, tests compare with its
outputs on fixed inputs ([golden cases](../tests/golden/README.md)). Each page says where a method differs from that
code or from the paper, and why. "Our reading" means that we have seen neither.

`python docs/make.py methods` makes these pages from docstrings and options.

| method | what it does | acts at | reads | count | from |
|---|---|---|---|---|---|
"""


def pages() -> dict[str, str]:
    """Return every page by its path inside docs/."""
    ours = [each for each in listing() if method_class(each.name).__module__.startswith("foveate.methods.")]
    return {
        "methods.md": HEAD + "".join(_row(each) for each in ours),
        **{f"methods/{each.name}.md": _page(each) for each in ours},
    }


def _row(method: Listing) -> str:
    reads = ", ".join(dict.fromkeys(each.partition("(")[0] for each in method.reads)) or "features only"
    told = "given" if method_class(method.name).takes_keep else "none remain"
    count = "given, or `auto`" if method.adaptive else told
    place = "decoder layers" if method.place == "decoder" else f"`@{method.place}`"
    name = f"[`{method.name}`](methods/{method.name}.md)"
    return f"| {name} | {method.what} | {place} | {reads} | {count} | {_source(method)} |\n"


def _page(method: Listing) -> str:
    parts = [f"# {method.name}", method.headline, _leads(method.card)]
    if method.example:
        parts.append(f"```pycon\n{method.example}\n```")
    parts.append("| | |\n|---|---|\n" + "".join(f"| {name} | {fact} |\n" for name, fact in _facts(method).items()))
    rows = "".join(f"| `{name}` | `{_text(of['default'])}` | {_values(name, of)} |\n" for name, of in _own(method))
    parts.append(f"| option | default | values |\n|---|---|---|\n{rows}")
    parts.append("Made from the docstring in " + _link(method) + " by `python docs/make.py methods`.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _own(method: Listing) -> list[tuple[str, dict[str, Any]]]:
    """Return the options that apply to a method."""
    takes = method_class(method.name).takes_keep
    return [(name, of) for name, of in method.options.items() if name != "keep" or takes]


def _facts(method: Listing) -> dict[str, str]:
    facts = {"written": f"`{method.spec}`"}
    if method.aliases:
        facts["also called"] = ", ".join(f"`{alias}`" for alias in method.aliases)
    facts["from"] = _source(method)
    facts["acts at"] = f"`@{method.place}`"
    if method.place == "decoder":
        layers = ", ".join(map(str, method.layers))
        facts["written"] = f"`{method.spec}@{layers.replace(' ', '')}`"
        facts["acts at"] = f"the input of the decoder layers in the spec; the authors use {layers} of 32"
    if method.temporal:
        facts["acts on"] = "clips of two frames or more"
    facts["reads"] = ", ".join(f"`{each}`" for each in method.reads) or "features or positions only"
    facts["the question"] = (
        "is read: the result serves this question only"
        if method.query_aware
        else "is not read: the result serves every question"
    )
    facts["count"] = "given, or decided from the content with `auto`" if method.adaptive else "known from the layout"
    facts["positions"] = {"keep": "kept", "pack": "renumbered without gaps"}[method.positions]
    facts["own weights"] = "yes" if method.trained else "none"
    return facts


def _leads(card: str) -> str:
    """Set the lead of a paragraph in bold, such as "Budget:"."""
    return re.sub(r"(?m)(?<=\n\n)([A-Z][A-Za-z' ]{2,40}:)(?= )", r"**\1**", card)


def _values(name: str, option: dict[str, Any]) -> str:
    if name == "keep":
        return "tokens per image, or a share with a dot" + (", or `auto`" if option["default"] == "auto" else "")
    if name == "adapter":
        return "`none`, or the directory of a trained adapter; `shipped` is the embedded model's"
    if "choices" in option:
        return ", ".join(f"`{_text(value)}`" for value in option["choices"])
    kinds = {bool: "`true`, `false`", int: "a whole number", float: "a number", str: "text"}
    return kinds.get(type(option["default"]), "`none`, or a number")


def _text(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _source(method: Listing) -> str:
    """Return a link to the paper, or "a baseline"."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", method.paper) or "a baseline"


def _link(method: Listing) -> str:
    path = "src/" + method_class(method.name).__module__.replace(".", "/") + ".py"
    return f"[{path}](../../{path})"
