"""docs/support.md: which method works on which family.

The engine schedules every method with its default options on a model of every family, which has its default
configuration and no weights. Nothing is written by hand: a refusal is the engine's own error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from foveate import FoveateError, FoveateWarning
from foveate.families import Family, Generic, families, family_of
from foveate.listing import Listing, listing
from foveate.methods import method_class
from foveate.schedule import schedule

HEAD = """\
# Which method works on which family

FOLLOWS. On models [without a family](families/generic.md), which the last two columns
show, methods that need to know the encoder are refused: "plain" is a model whose decoder layers see all earlier
columns, and the last one has sliding windows. The number after a no is its reason, listed below the table.

`python docs/make.py support` asks the engine for each entry, and `tests/families` runs every pair on a tiny random
model of the real architecture.
"""

UNDESCRIBED = {"janus": "other, plain", "gemma3": "other"}


def pages() -> dict[str, str]:
    """Return the page."""
    return {"support.md": page()}


def page() -> str:
    """Return the text of docs/support.md."""
    described = [_family(family.kind(), family.encoders, family.example) for family in families()]
    columns = [*described, *(_family(kind) for kind in UNDESCRIBED)]
    titles = [*(family.title for family in described), *UNDESCRIBED.values()]
    reasons: dict[str, int] = {}
    rows: list[str] = []
    for method in listing():
        if not method_class(method.name).__module__.startswith("foveate.methods."):
            continue
        cells = [_cell(method, family, reasons) for family in columns]
        name = f"[`{method.name}`](methods/{method.name}.md)"
        rows.append(f"| {name} | {' | '.join(cells)} |")
    head = f"| method | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}"
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    refused = any("no (" in cell for row in rows for cell in row.split("|")[2 : 2 + len(described)])
    follows = "Some methods are refused on some families" if refused else "Every method works on every model family"
    return "\n".join([HEAD.replace("FOLLOWS", follows), head, *rows, "", notes, ""])


def spec_of(method: Listing, layers: int) -> str:
    """Return a method's default spec; if it acts inside the decoder, at its authors' layers as far as they exist."""
    if method.place != "decoder":
        return method.spec
    places = [layer for layer in method.layers if layer < layers] or [1]
    return f"{method.spec}@{','.join(map(str, places))}"


def _cell(method: Listing, family: Family, reasons: dict[str, int]) -> str:
    try:
        schedule(spec_of(method, len(family.decoder_layers)), family)
    except FoveateError as error:
        return f"no ({reasons.setdefault(_reason(str(error), family), len(reasons) + 1)})"
    return "yes"


def _reason(error: str, family: Family) -> str:
    """Return the error without the names of method and model, so that equal reasons get one number."""
    if isinstance(family, Generic):
        error = error.replace(family.title, "this model")
    error = re.sub(r"^\S+ (acts|asks|would)", r"It \1", error)
    return re.sub(r"^It acts at @\d+", "It acts inside the decoder", error)


def _family(kind: str, encoders: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Family:
    """Return the family of a model of a type, without weights.

    Args:
        kind: the type.
        encoders: the model has the first of these, if there are any.
        values: other values of its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    parts = {**(values or {}), **({"vision_config": {"model_type": encoders[0]}} if encoders else {})}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FoveateWarning)
        model: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **parts))
        return family_of(model)
