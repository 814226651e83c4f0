"""The features of images that VoCo tokens read: all visual tokens, or what a spec at `@features` leaves of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foveate.engine import Encoded, encode
from foveate.engine.images import plan_images
from foveate.errors import FoveateError, UnsupportedFamily, quoted
from foveate.families import Family
from foveate.layout import Layout, one_row
from foveate.schedule import schedule
from foveate.spec import as_spec

DENSE = "dense"
"""The spec that keeps all visual tokens."""


def encode_features(model: nn.Module, inputs: Mapping[str, Any], spec: str) -> Encoded:
    """Run the vision encoder and the projector, for `reduced_features` under the same spec."""
    return encode(model, inputs, () if spec == DENSE else (spec,))


def reduced_features(family: Family, encoded: Encoded, spec: str) -> tuple[Sequence[Tensor], Sequence[Layout]]:
    """Return what a spec leaves of images, per image `(N, D)` at the decoder's input, and the layouts of that.

    Raises:
        UnsupportedFamily: an image isn't one grid that enters the decoder at its input alone.
    """
    tiled = any(len(layout.segments) > 1 or layout.structural for layout in encoded.layouts)
    if tiled or any(encoded.companions):
        how = "in tiles" if tiled else "with features that enter between its layers"
        raise UnsupportedFamily(f"VoCo reads images of one grid; {family.title} shows them {how}")
    if spec == DENSE:
        return encoded.projected, encoded.layouts
    plans = plan_images(family, schedule(spec, family), encoded)
    return [plan.features for plan in plans], [one_row(plan.after) for plan in plans]


def check_steps(spec: str) -> None:
    """Check that VoCo tokens can read what a spec leaves of an image of any model.

    Raises:
        FoveateError: it can't be read, or a step acts elsewhere than at `@features` or leaves gaps between positions.
    """
    if spec == DENSE:
        return
    if any(step.places != ("features",) or step.method.positions != "pack" for step in as_spec(spec).steps):
        raise FoveateError(f"{quoted(spec)}: VoCo reads what steps at @features leave, with positions=pack")


def check_features_spec(family: Family, spec: str) -> None:
    """Check that VoCo tokens can read what a spec leaves of an image of a model, as an image of one row.

    Raises:
        FoveateError: a step acts elsewhere than at `@features`, leaves gaps between positions, or can't act on this
            model.
        UnsupportedFamily: positions have rows and columns.
    """
    check_steps(spec)
    if spec == DENSE:
        return
    schedule(spec, family)
    if family.position_axes > 1:
        raise UnsupportedFamily(
            f"{family.title} places visual tokens in rows and columns, so VoCo reads all of them; leave features out"
        )
