"""LLaVA-NeXT with a CLIP encoder in vLLM: an image is seen whole and in tiles, and a newline ends each row of tiles.

Which newlines stay must follow from the layout, so specs that keep a grid can be served, and others only where they
keep a token of every row for certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.layout import Layout
from foveate.serving import ServedModel
from foveate.vllm_plugin.llava import CLIP_NAMES, ClipSpecInfo, ClipSpecModel
from foveate.vllm_plugin.processing import SpecProcessor

SIZES = "image_sizes"
"""The output of a processor with the height and width of each image, in pixels."""


class LlavaNextSpecInfo(ClipSpecInfo, LlavaNextProcessingInfo):
    """LLaVA-NeXT's layouts follow from the sizes of images."""

    def layouts_of(self, modality: str, item: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of one image from its size."""
        height, width = item[SIZES].data.flatten().tolist()
        return (self.served.image_layout(height, width),)


class LlavaNextSpecProcessor(SpecProcessor, LlavaNextMultiModalProcessor):
    """LLaVA-NeXT's processor with a spec."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextSpecProcessor, info=LlavaNextSpecInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class ServedLlavaNext(ClipSpecModel, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT that compresses each image by the spec of its request."""

    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | CLIP_NAMES

    def named_as_in_transformers(self) -> Any:
        """Return the modules that foveate's family reads, and the newline."""
        core = super().named_as_in_transformers()
        core.image_newline = self.image_newline
        return core

    def images(self, served: ServedModel, inputs: dict[str, Any]) -> tuple[tuple[Layout, ...], Tensor]:
        """Return the layout of each image, and the crops of all; those that only fill a batch up are left out."""
        parsed = self._parse_and_validate_image_input(**inputs)
        layouts = tuple(served.image_layout(*map(int, size)) for size in parsed[SIZES])
        crops = (served.family.encoder_grids(layout) for layout in layouts)
        return layouts, torch.cat([image[: len(own)] for image, own in zip(parsed["pixel_values"], crops)])
