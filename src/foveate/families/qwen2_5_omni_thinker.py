"""The thinker of Qwen2.5-Omni: Qwen2.5-VL that also hears.  Xu et al. 2025, arXiv 2503.20215."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foveate.families.qwen2_5_vl import Qwen25VL
from foveate.families.qwen_omni import OmniThinker
from foveate.families.registry import register_family

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Qwen25OmniThinker(OmniThinker, Qwen25VL):
    """The thinker of Qwen2.5-Omni: images of any size, four patches per token; most encoder layers have windows."""

    name = "qwen2_5_omni_thinker"
    title = "Qwen2.5-Omni"
    inside = ("qwen2_5_omni",)
    core_class = "Qwen2_5OmniThinkerModel"
    checkpoints = ("Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-3B")

    def encoder_projections(self, layer: int) -> Mapping[str, nn.Module]:
        """Return the projections of a vision block to "queries" and "keys"."""
        attention: Any = self.encoder_attentions[layer]
        return {"queries": attention.q, "keys": attention.k}

    def patch_queries_keys(self, attention: Any, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Part what the two projections gave into heads."""
        query, key = (call[name].unflatten(-1, (attention.num_heads, -1)) for name in ("queries", "keys"))
        return query, key
