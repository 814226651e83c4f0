"""Qwen2.5-VL in vLLM; see `qwen_vl`."""

from __future__ import annotations

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.vllm_plugin.qwen_vl import QwenSpecInfo, QwenSpecModel, QwenSpecProcessor


class Qwen25VLSpecInfo(QwenSpecInfo, Qwen2_5_VLProcessingInfo):
    """Qwen2.5-VL's facts with a spec."""


class Qwen25VLSpecProcessor(QwenSpecProcessor, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's processor with a spec."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLSpecProcessor, info=Qwen25VLSpecInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class ServedQwen25VL(QwenSpecModel, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that compresses each image by the spec of its request."""
