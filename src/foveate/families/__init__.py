"""Model families: what the engine must know of an architecture, one file each.

>>> supported()
('llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_moe')
"""

from __future__ import annotations

from foveate.families.family import Capture, Family
from foveate.families.generic import Generic
from foveate.families.llava import Llava
from foveate.families.llava_next import LlavaNext
from foveate.families.qwen2_5_vl import Qwen25VL
from foveate.families.qwen2_vl import Qwen2VL
from foveate.families.qwen3_vl import Qwen3VL
from foveate.families.qwen3_vl_moe import Qwen3VLMoe
from foveate.families.registry import families_at, family_class, family_of, register_family, supported

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
