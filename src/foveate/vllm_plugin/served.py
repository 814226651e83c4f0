"""What vLLM can do with each type of model, from its configuration; nothing here imports vLLM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Protocol

from foveate.errors import FoveateError
from foveate.families import vlm_config
from foveate.families.config_fields import PlainConfig, kind_of
from foveate.serving import ServedModel
from foveate.serving.choice import PER_QUESTION_VARIABLE

SERVER: Final = "vLLM"
_PER_QUESTION: Final = f"start it with {PER_QUESTION_VARIABLE}=1, which encodes an image anew for every question"


def per_question(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether methods may read the question, and images are encoded anew for each.

    Args:
        environment: of the process; None for its own.

    Raises:
        FoveateError: FOVEATE_PER_QUESTION is something else than 0 or 1.
    """
    given = (os.environ if environment is None else environment).get(PER_QUESTION_VARIABLE, "")
    if given not in ("", "0", "1"):
        raise FoveateError(f"{PER_QUESTION_VARIABLE} is {given!r}; write 1 to let methods read the question, or 0")
    return given == "1"


def served_llava(config: Any, per_question: bool = False) -> ServedModel:
    """Return what vLLM can do with a LLaVA or a LLaVA-NeXT: it loads the encoder up to the layer that is read.

    Raises:
        FoveateError: the encoder isn't CLIP's.
    """
    encoder = getattr(config.vision_config, "model_type", None)
    if encoder != "clip_vision_model":
        raise FoveateError(
            f"LLaVA with a {encoder} encoder is served whole by {SERVER}; with clip_vision_model a spec can act"
        )
    return ServedModel(
        config,
        server=SERVER,
        encoder_layers=_layers_read(config),
        per_question=per_question,
        question_option=_PER_QUESTION,
    )


def _layers_read(config: Any) -> int:
    """Return how many layers of the encoder there are up to the last one whose output becomes features."""
    depth = config.vision_config.num_hidden_layers
    read = getattr(config, "vision_feature_layer", -2)
    return max(layer + depth + 1 if layer < 0 else layer for layer in (read if isinstance(read, list) else [read]))


def served_qwen(config: Any, per_question: bool = False) -> ServedModel:
    """Return what vLLM can do with a Qwen-VL."""
    return ServedModel(
        config,
        server=SERVER,
        places=("input",),
        moves_positions=True,
        signals=False,
        per_question=per_question,
        question_option=_PER_QUESTION,
    )


def served_internvl(config: Any, per_question: bool = False) -> ServedModel:
    """Return what vLLM can do with an InternVL.

    Methods can't read the text of its prompts, to which the processor adds marks around tiles.

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


class _Served(Protocol):
    """Returns what vLLM can do with a model of one type."""

    def __call__(self, config: Any, per_question: bool = False) -> ServedModel: ...


SERVED: Final[Mapping[str, _Served]] = {
    "llava": served_llava,
    "llava_next": served_llava,
    "internvl": served_internvl,
    "qwen2_vl": served_qwen,
    "qwen2_5_vl": served_qwen,
    "qwen3_vl": served_qwen,
}
"""By the `model_type` of a configuration; the classes of vLLM are in `foveate.vllm_plugin.MODELS`."""


def served_model(config: Any, per_question: bool = False) -> ServedModel:
    """Return what vLLM can do with a model.

    >>> clip = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
    >>> served_model({"model_type": "llava", "vision_config": clip}).spec("cls:64").text
    'cls:64'
    >>> served_model({"model_type": "gemma3", "vision_config": {}})
    Traceback (most recent call last):
    foveate.errors.FoveateError: gemma3 is served whole by vLLM; a spec can act in llava, llava_next, internvl, ...

    Args:
        config: of the model: an object of transformers, or a mapping as config.json holds it.
        per_question: whether methods may read the question, and images are encoded anew for each.

    Raises:
        FoveateError: it is served whole.
    """
    config = vlm_config(config)
    if isinstance(config, Mapping):
        config = PlainConfig.of(config)
    served = SERVED.get(kind_of(config))
    if served is None:
        raise FoveateError(f"{kind_of(config)} is served whole by {SERVER}; a spec can act in {', '.join(SERVED)}")
    return served(config, per_question)
