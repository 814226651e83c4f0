"""Read the sizes of a model from its configuration."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from foveate.costmodel.decoder_shape import DecoderShape, read_decoder
from foveate.costmodel.model_config import comes_along, load_config, own_config
from foveate.costmodel.vision_work import vision_parameters
from foveate.errors import FoveateError, FoveateWarning, UnsupportedFamily
from foveate.families import Family, Generic, families, family_class, model_types
from foveate.families.config_fields import kind_of
from foveate.families.vision_shape import VisionShape


@dataclass(frozen=True)
class Model:
    """The sizes of one model.

    Attributes:
        family: made from the configuration alone; its schedule says which tokens are where.
        vision: encoder and projector; None if the family doesn't know them, so that they aren't counted.
        decoder: language model and head.
    """

    family: Family
    vision: VisionShape | None
    decoder: DecoderShape

    @property
    def kind(self) -> str:
        """The `model_type` of the configuration."""
        return kind_of(self.family.config)

    @property
    def parameters(self) -> int:
        """Weights of all parts."""
        return vision_parameters(self.vision) + self.decoder.parameters


def read_model(config: Any, revision: str | None = None) -> Model:
    """Read the sizes of a model from its configuration, in any form that `cost` takes; `revision` is of one on the hub.

    Of a vision side that no family describes, only the number of visual tokens is read, with a `FoveateWarning`.

    >>> read_model("llava-1.5-7b").decoder.hidden
    4096

    Raises:
        FoveateError: there is no such configuration, a field is missing or makes no sense, or it has parts that the
            cost model does not count.
    """
    config = own_config(config) if revision is None and comes_along(config) else load_config(config, revision)
    family = _family(config)
    vision = family.vision_shape()
    if vision is None:
        name, tokens = family.tokens_per_image
        warnings.warn(
            f"{_why_unknown(config)}. Encoder and projector are left out of every figure, their weights too, and every "
            f"picture counts as {tokens} visual tokens ({name}); the decoder is counted in full",
            FoveateWarning,
            stacklevel=2,
        )
    text = config.text_config
    tied = any(bool(getattr(part, "tie_word_embeddings", False)) for part in (config, text))
    return Model(family, vision, read_decoder(text, tied))


def _family(config: Any) -> Family:
    """Return the family of a configuration; the generic one if no other supports it.

    Raises:
        FoveateError: no other does, and the configuration doesn't tell how many visual tokens an image has.
    """
    try:
        return family_class(config).of_config(config)
    except UnsupportedFamily:
        pass
    try:
        return Generic.of_config(config)
    except FoveateError as error:
        raise FoveateError(f"{_why_unknown(config)}, and {error}") from None


def _why_unknown(config: Any) -> str:
    """Say why the vision side of a configuration is not counted."""
    kind = kind_of(config)
    if kind in model_types():
        try:
            family_class(config).of_config(config)
        except UnsupportedFamily as error:
            return str(error)
    return f"the cost model does not know the vision side of {kind!r}; it knows {', '.join(counted())}"


def counted() -> tuple[str, ...]:
    """Return the name of every family whose vision side is counted.

    >>> "llava" in counted()
    True
    """
    return tuple(family.name for family in families() if family.vision_shape is not Family.vision_shape)
