"""Qwen3.5: Qwen3-VL's encoder without DeepStack, and a decoder that is mostly linear attention."""

from __future__ import annotations

from foveate.families.qwen3 import Qwen3Encoder
from foveate.families.registry import register_family


@register_family
class Qwen35(Qwen3Encoder):
    """Qwen3.5: images of any size, four patches per visual token; three of four decoder layers are linear attention.

    These layers read a prompt into a memory of one size, which can't lose a token again. So steps act before the
    decoder, and only the layers of full attention hold keys and values of visual tokens.
    """

    name = "qwen3_5"
    title = "Qwen3.5"
    checkpoints = (
        "Qwen/Qwen3.5-27B",
        "Qwen/Qwen3.5-9B",
        "Qwen/Qwen3.5-4B",
    )
    core_class = "Qwen3_5Model"
    since = (5, 20)  # before, beams mixed up patches
    places = ("pixels", "features", "input")
    clip_places = places
