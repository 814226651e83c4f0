"""GLM-OCR: the design of GLM-4.1V, small and for documents, with norms of queries and keys in its encoder.

The model of Zhipu AI that reads documents; transformers' `GlmOcrForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.families.config_fields import read_number
from foveate.families.glm4v import GlmV
from foveate.families.registry import register_family

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class GlmOcr(GlmV):
    """GLM-OCR: the positions and the merger of GLM-4.1V; the encoder has no position embeddings but rotary ones.

    Queries and keys of its encoder pass a norm before rotary embedding, and signals see them behind the norm.
    """

    name = "glm_ocr"
    title = "GLM-OCR"
    core_class = "GlmOcrModel"
    encoders = ("glm_ocr_vision",)
    decoders = ("glm_ocr_text",)
    checkpoints: ClassVar[tuple[str, ...]] = ("zai-org/GLM-OCR",)

    @property
    def mlp_widths(self) -> tuple[int, int]:
        """Widths inside the MLPs of an encoder layer and of the merger."""
        vision = self.config.vision_config
        merger = read_number(vision, "out_hidden_size") * read_number(vision, "in_channels")
        return read_number(vision, "intermediate_size"), merger

    def encoder_projections(self, layer: int) -> Mapping[str, nn.Module]:
        """Return the norms of a vision block's "queries" and "keys"."""
        attention: Any = self.encoder_attentions[layer]
        return {"queries": attention.q_norm, "keys": attention.k_norm}

    def patch_queries_keys(self, attention: Any, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the queries and keys behind their norms, before rotary embedding, each `(patches, H, d)`."""
        return call["queries"], call["keys"]
