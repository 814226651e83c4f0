"""Read numbers from a model's configuration, with errors that name the missing field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

from foveate.errors import FoveateError

_SIZES: Final = (
    "num_hidden_layers", "depth", "hidden_size", "embed_dim", "intermediate_size", "num_attention_heads", "num_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "patch_size", "image_size", "num_channels", "in_channels",
    "spatial_merge_size", "temporal_patch_size",
)  # fmt: skip
_MOST_LAYERS: Final = 1000
"""A model of more layers would take minutes to build, only to be refused."""
_LARGEST_IMAGE: Final = 32_768
"""In pixels, of an edge; a larger image takes over 12 GB."""
_LARGEST_SIZE: Final = 100_000_000
_LARGEST: Final = {
    "num_hidden_layers": _MOST_LAYERS,
    "depth": _MOST_LAYERS,
    "image_size": _LARGEST_IMAGE,
    "patch_size": _LARGEST_IMAGE,
}


class PlainConfig(SimpleNamespace):
    """A configuration with the fields that config.json writes, and no others: no default of transformers is filled in.

    >>> config = PlainConfig.of({"model_type": "llava", "vision_config": {"image_size": 336}})
    >>> config.vision_config.image_size
    336
    """

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> PlainConfig:
        """Make it from what config.json holds; its parts, such as vision_config, become configurations, too."""
        parts = {name for name, value in data.items() if name.endswith("_config") and isinstance(value, Mapping)}
        return cls(**{name: cls.of(value) if name in parts else value for name, value in data.items()})

    def get_text_config(self) -> Any:
        """Return the part about the decoder, as configurations of transformers do."""
        return getattr(self, "text_config", self)


def read_field(config: Any, *names: str) -> Any:
    """Return the first of these fields that a configuration has and that is not None.

    Raises:
        FoveateError: the configuration has none of them.
    """
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    raise FoveateError(f"the configuration of {kind_of(config)} has no {' or '.join(names)}, which foveate needs")


def read_number(config: Any, *names: str) -> int:
    """Return the first of these fields as a whole number of 1 or more.

    >>> from types import SimpleNamespace
    >>> read_number(SimpleNamespace(hidden_size=64), "n_embd", "hidden_size")
    64

    Raises:
        FoveateError: the configuration has none of them, or the value is no such number.
    """
    value = read_field(config, *names)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        name = next(name for name in names if getattr(config, name, None) is not None)
        raise FoveateError(f"{name} of {kind_of(config)} is {value!r}; it must be a whole number of 1 or more")
    return value


def check_parts(data: Mapping[str, Any]) -> None:
    """Check that a config.json describes an encoder and a decoder.

    transformers gives a part that is missing its default sizes.

    Args:
        data: what config.json holds. Older ones have the decoder's fields at the top.

    Raises:
        FoveateError: a part is missing; the text names it.
    """
    missing = [part for part in ("vision_config", "text_config") if not data.get(part)]
    if "hidden_size" in data and "text_config" in missing:
        missing.remove("text_config")
    if missing:
        raise FoveateError(
            f"the configuration of {data.get('model_type')} has no {' and no '.join(missing)}, and a vision-language "
            "model has both; take the config.json that came with the model"
        )


def check_sizes(config: Any) -> None:
    """Check the numbers of a model's configuration from which its modules are built.

    >>> from types import SimpleNamespace
    >>> check_sizes(SimpleNamespace(model_type="llama", num_hidden_layers=0))
    Traceback (most recent call last):
    foveate.errors.FoveateError: num_hidden_layers of llama is 0; it must be a whole number from 1 to 1000

    Args:
        config: an object of transformers.

    Raises:
        FoveateError: a size is no whole number of 1 or more, a number is NaN or infinite, or a layer is read that the
            encoder doesn't have.
    """
    vision = getattr(config, "vision_config", None)
    text = getattr(config, "text_config", None)
    for part in (config, text, vision):
        for name in _SIZES if part is not None else ():
            most = _LARGEST.get(name, _LARGEST_SIZE)
            for value in _listed(_value(part, name)):
                if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                    raise FoveateError(
                        f"{name} of {kind_of(part)} is {value!r}; it must be a whole number from 1 to {most}"
                    )
        for name, value in _numbers(part):
            if (
                not math.isfinite(value)
                or (value < 0 and name.endswith("_eps"))
                or (value <= 0 and name == "rope_theta")
            ):
                raise FoveateError(f"{name} of {kind_of(part)} is {value!r}, and no model computes with that")
    _check_read_layers(config, vision)
    _check_resolutions(config)


def _check_resolutions(config: Any) -> None:
    """Check the sizes into which images are tiled.

    Raises:
        FoveateError: they are no pairs of sizes in pixels.
    """
    found = getattr(config, "image_grid_pinpoints", None)
    if found is None:
        return
    pairs = found if isinstance(found, list | tuple) else []
    good = [
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair)
        for pair in pairs
    ]
    if not good or not all(good):
        raise FoveateError(
            f"image_grid_pinpoints of {kind_of(config)} is {found!r}; it must be a list of sizes, [height, width] in "
            "pixels"
        )


def _value(config: Any, name: str) -> Any:
    """Return a field of a configuration; a list with one value per layer where layers differ in it."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # what transformers raises for a field that each layer has of its own
        layers = config.per_layer_config
        return [getattr(layers[number], name) for number in range(len(config.layer_types))]


def _check_read_layers(config: Any, vision: Any) -> None:
    """Check which layers of the encoder a model reads: 1 is its first, -1 its last.

    Raises:
        FoveateError: the encoder has no such layer.
    """
    depth = getattr(vision, "num_hidden_layers", None)
    if not isinstance(depth, int):
        return
    for name in ("vision_feature_layer", "vision_feature_layers"):
        value = getattr(config, name, None)
        layers = _listed(value)
        if value is not None and (
            not layers or any(not isinstance(layer, int) or not 1 <= abs(layer) <= depth for layer in layers)
        ):
            raise FoveateError(
                f"{name} of {kind_of(config)} is {value!r}, and its encoder has {depth} layers; write a number from "
                f"1 to {depth} or from -1 to {-depth}, or a list of them"
            )


def _listed(value: Any) -> Sequence[Any]:
    """Return the values of a field that may be a number or a list of them."""
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _numbers(part: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a configuration, and of the mappings in it, by their names."""
    values = part if isinstance(part, Mapping) else getattr(part, "__dict__", {})
    for name, value in values.items():
        if isinstance(value, float) or (
            isinstance(value, int) and not isinstance(value, bool) and name == "rope_theta"
        ):
            yield str(name), value
        elif isinstance(value, Mapping):
            yield from _numbers(value)


def kind_of(config: Any) -> str:
    """Return the `model_type` of a configuration, or else the name of its class."""
    return str(getattr(config, "model_type", None) or type(config).__name__)
