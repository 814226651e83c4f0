"""Qwen2.5-VL in vLLM; see `qwen_vl`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.layout import Layout
from foveate.vllm_plugin.qwen_vl import SECONDS, QwenSpecInfo, QwenSpecModel, QwenSpecProcessor


class Qwen25VLSpecInfo(QwenSpecInfo, Qwen2_5_VLProcessingInfo):
    """Qwen2.5-VL's facts with a spec."""


class Qwen25VLSpecProcessor(QwenSpecProcessor, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's processor with a spec."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLSpecProcessor, info=Qwen25VLSpecInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class ServedQwen25VL(QwenSpecModel, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that compresses each image and clip by the spec of its request."""

    def timed(self, layout: Layout, item: Mapping[str, Any]) -> Layout:
        """Return the layout of a clip with times from its seconds; transformers, with fewer digits, may round up."""
        seconds = item.get(SECONDS)
        if not layout.is_clip or seconds is None:
            return layout
        step = float(seconds.data) * self.config.vision_config.tokens_per_second
        return dataclasses.replace(layout, times=tuple(int(frame * step) for frame in range(layout.segments[0].t)))
