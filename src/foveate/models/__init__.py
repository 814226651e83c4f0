"""Model families: what the engine must know of an architecture, one file each.

>>> supported()
('llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_moe')
"""

from __future__ import annotations

from foveate.models.family import Capture, Family
from foveate.models.generic import Generic
from foveate.models.llava import Llava
from foveate.models.llava_next import LlavaNext
from foveate.models.qwen2_5_vl import Qwen25VL
from foveate.models.qwen2_vl import Qwen2VL
from foveate.models.qwen3_vl import Qwen3VL
from foveate.models.qwen3_vl_moe import Qwen3VLMoe
from foveate.models.registry import families_at, family_class, family_of, register_family, supported

__all__ = [
    "Capture",
    "Family",
    "Generic",
    "Llava",
    "LlavaNext",
    "Qwen2VL",
    "Qwen25VL",
    "Qwen3VL",
    "Qwen3VLMoe",
    "families_at",
    "family_of",
    "family_class",
    "register_family",
    "supported",
]

for _family in (Llava, LlavaNext, Qwen2VL, Qwen25VL, Qwen3VL, Qwen3VLMoe):
    register_family(_family)
