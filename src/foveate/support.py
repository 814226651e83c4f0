"""Tell what foveate does with a model: which family takes it, where steps can act in it, and which methods work."""

from __future__ import annotations

import re
import warnings
from typing import Any

from foveate.errors import FoveateError, FoveateWarning
from foveate.families import Family, families, family_of
from foveate.listing import Listing, Support, described_family, listing
from foveate.loading import model_of_type
from foveate.schedule import schedule

__all__ = ["example_model", "released_as", "spec_for", "support", "why_refused"]


def released_as(checkpoint: str) -> type[Family] | None:
    """Return the family that names a released model, however its name is capitalised; None if none does.

    >>> released_as("qwen/qwen3-vl-8b-instruct").title
    'Qwen3-VL'
    """
    wanted = checkpoint.casefold()
    fitting = (each for each in families() if wanted in {name.casefold() for name in each.checkpoints})
    return next(fitting, None)


def support(model: Any) -> Support:
    """Describe one model.

    Args:
        model: a model, or a `foveate.loading.skeleton` of it.

    Raises:
        UnsupportedFamily: nothing can be done with it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FoveateWarning)
        family = family_of(model)
    return described_family(
        family,
        str(getattr(family.config, "model_type", "")),
        len(family.decoder_layers),
        {each.name: reason for each in listing() if (reason := why_refused(each, family))},
        family.note,
    )


def why_refused(method: Listing, family: Family) -> str:
    """Return why a method with its default options doesn't work on a family; "" if it does."""
    try:
        schedule(spec_for(method, len(family.decoder_layers)), family)
    except FoveateError as error:
        reason = str(error).replace(family.title, "this model")
        # Equal reasons of several methods have equal texts.
        reason = re.sub(r"^\S+ (acts|asks|would|works)", r"It \1", reason)
        return re.sub(r"^It acts at @\d+", "It acts inside the decoder", reason)
    return ""


def spec_for(method: Listing, layers: int) -> str:
    """Return a method's default spec; if it acts inside the decoder, at its authors' layers as far as they exist."""
    if method.place != "decoder":
        return method.spec
    places = [layer for layer in method.layers if layer < layers] or [1]
    return f"{method.spec}@{','.join(map(str, places))}"


def example_model(family: type[Family]) -> Any:
    """Build a model of a family on the meta device, with the default configuration of its type and no weights.

    >>> from foveate.families import family_of
    >>> family_of(example_model(released_as("llava-hf/llava-1.5-7b-hf"))).title
    'LLaVA'
    """
    encoder = {"vision_config": {"model_type": family.encoders[0]}} if family.encoders else {}
    return model_of_type(family.kind(), {**family.example, **encoder})
