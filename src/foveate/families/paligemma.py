"""PaliGemma 1 and 2: a SigLIP encoder, one matrix, a Gemma decoder.  Beyer et al. 2024, arXiv 2407.07726."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from foveate.families.registry import register_family
from foveate.families.siglip import SiglipOutput
from foveate.families.vision_shape import VisionShape

if TYPE_CHECKING:
    from torch import Tensor


@register_family
class PaliGemma(SiglipOutput):
    """PaliGemma with a SigLIP tower: every patch is a visual token, and the images come before the text.

    Images and question see each other in both directions; only the answer is causal. Position ids are one-dimensional.
    Signals are those of every SigLIP encoder, ways to resize those of LLaVA.
    """

    name = "paligemma"
    title = "PaliGemma"
    core_class = "PaliGemmaModel"
    first_position = 1
    places = ("pixels", "encoder", "features", "input", "decoder")
    block_types = ("token_type_ids",)
    blocks_after_cache = False
    blocks_end_at_windows = False
    has_one_decoder = True
    images_see_question = True
    answer_type = 1
    checkpoints: ClassVar[tuple[str, ...]] = (
        "google/paligemma-3b-mix-224",
        "google/paligemma-3b-mix-448",
        "google/paligemma-3b-pt-224",
        "google/paligemma-3b-pt-448",
        "google/paligemma-3b-pt-896",
        "google/paligemma2-3b-mix-224",
        "google/paligemma2-3b-mix-448",
        "google/paligemma2-3b-pt-224",
        "google/paligemma2-3b-pt-448",
        "google/paligemma2-3b-pt-896",
        "google/paligemma2-10b-mix-448",
        "google/paligemma2-10b-pt-224",
        "google/paligemma2-28b-pt-224",
    )

    def token_types(self, input_ids: Tensor) -> Tensor:
        """Return 0 for the whole prompt."""
        return torch.zeros_like(input_ids, dtype=torch.int32)

    def attention_blocks(self, types: Tensor) -> Tensor:
        """Return one block: images and question, which have type 0."""
        return torch.where(types == 0, 0, -1)

    def vision_shape(self) -> VisionShape:
        """Read SigLIP's sizes; the projector is one matrix."""
        return replace(super().vision_shape(), projector_widths=())
