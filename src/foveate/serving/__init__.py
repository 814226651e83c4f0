"""What an inference server needs to apply specs: counts before a pixel is seen, and features after its encoder.

Nothing here knows a server. `foveate.vllm_plugin` is written with it, and so can a plugin for another engine be.

>>> from foveate.serving import ServedModel
>>> clip = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
>>> served = ServedModel({"model_type": "llava", "vision_config": clip, "text_config": {"model_type": "llama"}})
>>> served.spec("cluster:64+pool:0.25:positions=pack").count(served.image_layout(480, 640))
16
"""

from __future__ import annotations

from foveate.serving.choice import CONFIG_KEY, SpecChoice, saved_spec
from foveate.serving.model import DENSE, ServedModel, ServedPositions, ServedSpec, compress_each

__all__ = [
    "CONFIG_KEY",
    "DENSE",
    "ServedModel",
    "ServedPositions",
    "ServedSpec",
    "SpecChoice",
    "compress_each",
    "saved_spec",
]
