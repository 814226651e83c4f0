"""Tell what foveate does with a model: which family takes it, where steps can act in it, and which methods work."""

from __future__ import annotations

import re
import warnings
from typing import Any

from foveate.errors import FoveateError, FoveateWarning
from foveate.families import Family, families, family_of
from foveate.listing import Listing, Support, described_family, listing
from foveate.schedule import schedule

__all__ = ["described", "example_family", "released_as", "spec_for", "support", "why_refused"]


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
        return described(family_of(model))


def described(family: Family) -> Support:
    """Describe one model by its family, which may have been made from a configuration."""
    return described_family(
        family,
        str(getattr(family.config, "model_type", "")),
        family.decoder_depth,
        {each.name: reason for each in listing() if (reason := why_refused(each, family))},
        family.note,
    )


def why_refused(method: Listing, family: Family) -> str:
    """Return why a method with its default options doesn't work on a family; "" if it does."""
    try:
        schedule(spec_for(method, family.decoder_depth), family)
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


def example_family(family: type[Family]) -> Family:
    """Make a family from the default configuration of its type, without a model: what builds one may be missing.

    >>> example_family(released_as("llava-hf/llava-1.5-7b-hf")).decoder_depth
    32
    """
    from transformers import AutoConfig

    encoder = {"model_type": family.encoders[0]} if family.encoders else {}
    vision = {**family.example.get("vision_config", {}), **encoder}
    fields = {**family.example, **({"vision_config": vision} if vision else {})}
    return family.of_config(AutoConfig.for_model(family.kind(), **fields))
