"""The parts of README.md that follow from the code or from results: families, methods, accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.bench.configurations import BASELINES
from foveate.families import families
from foveate.listing import Listing, listing
from foveate.methods import method_class
from generators.accuracy import readme_table
from generators.folders import DOCS
from generators.markdown import table, with_part

GROUPS = (
    "before the encoder",
    "after the encoder, by its attention",
    "after the encoder, by features",
    "after the encoder, by pixels",
    "after the encoder, by position",
    "inside the decoder",
    "on clips alone, after the encoder",
)


def pages() -> dict[str, str]:
    """Return README.md, whose path is seen from docs/."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    text = with_part(text, "families", _families())
    text = with_part(text, "accuracy", "\n" + readme_table())
    return {"../README.md": with_part(text, "methods", "\n" + _methods())}


def _families() -> str:
    """List all families, and those on which methods inside the decoder are refused."""
    kinds = [each for each in families() if each.__module__.startswith("foveate.families.")]
    marks = {False: " °", True: ""}
    titles = [f"[{each.title}](docs/families/{each.name}.md){marks['decoder' in each.places]}" for each in kinds]
    return f"{', '.join(titles)} (°: no step can act inside their decoders)."


def _methods() -> str:
    ours = [each for each in listing() if method_class(each.name).__module__.startswith("foveate.methods.")]
    rows = [(group, _names([each for each in ours if _group(each) == group])) for group in GROUPS]
    return table(("where they act", "methods"), rows, "ll")


def _group(method: Listing) -> str:
    if method.temporal:
        return GROUPS[6]
    if method.place == "pixels":
        return GROUPS[0]
    if method.place == "decoder":
        return GROUPS[5]
    if any(each.startswith("Encoder") for each in method.reads):
        return GROUPS[1]
    if any(each.startswith("Pixels") for each in method.reads):
        return GROUPS[3]
    return GROUPS[4] if method_class(method.name).fixed else GROUPS[2]


def _names(methods: Sequence[Listing]) -> str:
    marks = {True: " °", False: ""}
    return ", ".join(f"[`{each.name}`](docs/methods/{each.name}.md){marks[each.name in BASELINES]}" for each in methods)
