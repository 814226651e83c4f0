"""What vLLM can do with each type of model, from its configuration; nothing here imports vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from foveate.errors import FoveateError
from foveate.families import vlm_config
from foveate.families.config_fields import PlainConfig, kind_of
from foveate.serving import ServedModel

SERVER: Final = "vLLM"


def served_llava(config: Any) -> ServedModel:
    """Return what vLLM can do with a LLaVA or a LLaVA-NeXT: it loads the encoder up to the layer that is read.

    Raises:
        FoveateError: the encoder isn't CLIP's.
    """
    encoder = getattr(config.vision_config, "model_type", None)
    if encoder != "clip_vision_model":
        raise FoveateError(
            f"LLaVA with a {encoder} encoder is served whole by {SERVER}; with clip_vision_model a spec can act"
        )
    return ServedModel(config, server=SERVER, encoder_layers=_layers_read(config))


def _layers_read(config: Any) -> int:
    """Return how many layers of the encoder there are up to the last one whose output becomes features."""
    depth = config.vision_config.num_hidden_layers
    read = getattr(config, "vision_feature_layer", -2)
    return max(layer + depth + 1 if layer < 0 else layer for layer in (read if isinstance(read, list) else [read]))


def served_qwen(config: Any) -> ServedModel:
    """Return what vLLM can do with a Qwen-VL."""
    return ServedModel(config, server=SERVER, places=("input",), moves_positions=True, signals=False)


def served_internvl(config: Any) -> ServedModel:
    """Return what vLLM can do with an InternVL.

    Raises:
        FoveateError: features come from another layer of the encoder than the last, which vLLM reads.
    """
    depth = config.vision_config.num_hidden_layers
    read = getattr(config, "vision_feature_layer", -1)
    if read not in (-1, depth):
        raise FoveateError(
            f"{SERVER} reads the last layer of InternVL's encoder, and this configuration names {read} "
            "(vision_feature_layer); with -1 a spec can act"
        )
    return ServedModel(config, server=SERVER)


SERVED: Final[Mapping[str, Callable[[Any], ServedModel]]] = {
    "llava": served_llava,
    "llava_next": served_llava,
    "internvl": served_internvl,
    "qwen2_vl": served_qwen,
    "qwen2_5_vl": served_qwen,
    "qwen3_vl": served_qwen,
}
"""By the `model_type` of a configuration; the classes of vLLM are in `foveate.vllm_plugin.MODELS`."""


def served_model(config: Any) -> ServedModel:
    """Return what vLLM can do with a model.

    >>> clip = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
    >>> served_model({"model_type": "llava", "vision_config": clip}).spec("cls:64").text
    'cls:64'
    >>> served_model({"model_type": "gemma3", "vision_config": {}})
    Traceback (most recent call last):
    foveate.errors.FoveateError: gemma3 is served whole by vLLM; a spec can act in llava, llava_next, internvl, ...

    Args:
        config: of the model: an object of transformers, or a mapping as config.json holds it.

    Raises:
        FoveateError: it is served whole.
    """
    config = vlm_config(config)
    if isinstance(config, Mapping):
        config = PlainConfig.of(config)
    served = SERVED.get(kind_of(config))
    if served is None:
        raise FoveateError(f"{kind_of(config)} is served whole by {SERVER}; a spec can act in {', '.join(SERVED)}")
    return served(config)
