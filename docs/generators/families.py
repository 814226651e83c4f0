"""docs/families.md and docs/families/, from the families' docstrings and members."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from foveate.families import Family, Generic, families
from generators.markdown import table

HEAD = """\
# Families

A family holds what foveate knows about one model architecture. [Support](support.md) shows which method works on which.

**Places** are where the steps of a spec can act: `@pixels` is before the encoder, `@encoder` between its layers,
`@features` between encoder and projector, `@input` between projector and decoder, and a number is the input of that
decoder layer. Clips are taken by some families, in Python; the others refuse them by name: pass frames as images.

`python docs/make.py families` makes this page and those of the families from their docstrings.

| family | models of type | transformers | places | ways to shrink an image | axes of position ids |
|---|---|---|---|---|---|
"""

RELEASED = """
## Find your model

A model works like others of its type: what counts is `model_type` in its config.json. So other sizes, fine-tunes and
quantised versions are not listed. `foveate families MODEL` tells which methods work on a model, listed or not:

```bash
foveate families Qwen/Qwen3-VL-8B-Instruct
```

"""

OTHERS = """
A new family takes one file, here or in your own package: [add a family](add-a-family.md).
"""


def pages() -> dict[str, str]:
    """Return every page by its path inside docs/."""
    ours = families()
    ours = [family for family in ours if family.__module__.startswith("foveate.families.")]
    return {
        "families.md": HEAD + "".join(_row(family) for family in (*ours, Generic)) + _released(ours) + OTHERS,
        **{f"families/{family.name}.md": _page(family) for family in (*ours, Generic)},
    }


def _row(family: type[Family]) -> str:
    kind = f"`{family.kind()}`" if family is not Generic else "any other"
    title = family.title if family is not Generic else "no family"
    ways = ", ".join(f"`{mode}`" for mode in family.resize_modes) or "none"
    since = ".".join(map(str, family.since))
    cells = (f"[{title}](families/{family.name}.md)", kind, since, _places(family), ways, str(family.position_axes))
    return f"| {' | '.join(cells)} |\n"


def _released(ours: Sequence[type[Family]]) -> str:
    """Return the table of released models by their names on the hub."""
    named = sorted((name.casefold(), name, family) for family in ours for name in family.checkpoints)
    return RELEASED + table(
        ("model", "family"), [(f"`{name}`", f"[{each.title}](families/{each.name}.md)") for _, name, each in named]
    )


def _places(family: type[Family]) -> str:
    places = [f"`@{place}`" if place != "decoder" else "decoder layers" for place in family.places]
    if family is Generic:
        places.append("the layers of most decoders")
    return ", ".join(places)


def _page(family: type[Family]) -> str:
    title = family.title if family is not Generic else "Models without a family"
    parts = [f"# {title}", _doc(inspect.getmodule(family)).partition("\n")[0], _doc(family)]
    # What families share they say in a class of their own, which takes no models.
    parts += [_doc(base) for base in family.__mro__[1:] if issubclass(base, Family) and not _takes_models(base)]
    parts.append("| | |\n|---|---|\n" + "".join(f"| {name} | {fact} |\n" for name, fact in _facts(family).items()))
    path = "src/" + family.__module__.replace(".", "/") + ".py"
    parts.append(f"Made from the docstrings in [{path}](../../{path}) by `python docs/make.py families`.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _takes_models(family: type[Family]) -> bool:
    return family is Family or "name" in vars(family)


def _facts(family: type[Family]) -> dict[str, str]:
    facts = {
        "models of type": f"`{family.kind()}`" if family is not Generic else "any that follow transformers' own",
        "released models": ", ".join(f"`{name}`" for name in family.checkpoints) or "none is known by name",
        "transformers": f"{family.since[0]}.{family.since[1]} or later",
        "places": _places(family),
        "encoder": _line(family, "tower"),
        "layout of an image": _line(family, "layouts"),
        "position ids inside an image": _line(family, "image_positions"),
        "how far an image shifts text positions": _line(family, "image_spans"),
    }
    if "features" in family.places:
        facts["`@features`"] = _line(family, "feature_module")
        facts["what turns them into features at `@input`"] = _line(family, "project")
    if "encoder" in family.places:
        facts["`@encoder`"] = f"before each layer except the first, up to this one: {_line(family, 'encoder_reads')}"
    else:
        facts["`@encoder`"] = f"not supported: {family.outside_encoder}"
    if family.resize_modes:
        ways = ", ".join(f"`{mode}`" for mode in family.resize_modes)
        resize = "resized_inputs" if family.resizes_inputs else "shrink"
        facts["shrinking an image"] = f"{ways}. {_line(family, resize)}"
    facts["encoder signals"] = _line(family, "gives")
    if "pixels" in family.places:
        facts["what they are"] = _line(family, "encoder_signal")
    for name, method in (
        ("structural tokens", "structural"),
        ("companion features", "companions"),
        ("images in the prompt", "in_prompt"),
        ("added inside the decoder", "take_additions"),
    ):
        if getattr(family, method) is not getattr(Family, method):
            facts[name] = _line(family, method)
    return facts


def _line(family: type[Family], member: str) -> str:
    """Return the first paragraph of a member's docstring as a cell of a table."""
    return " ".join(_doc(inspect.getattr_static(family, member)).split("\n\n")[0].split()).replace("|", "\\|")


def _doc(thing: object) -> str:
    doc = inspect.getdoc(thing)
    assert doc, f"{thing} has no docstring"
    return re.sub(r"\n\s*Raises:.*", "", doc, flags=re.DOTALL)
