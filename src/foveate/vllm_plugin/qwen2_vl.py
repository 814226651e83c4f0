"""Qwen2-VL in vLLM; see `qwen_vl`."""

from __future__ import annotations

from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.vllm_plugin.qwen_vl import QwenSpecInfo, QwenSpecModel, QwenSpecProcessor


class Qwen2VLSpecInfo(QwenSpecInfo, Qwen2VLProcessingInfo):
    """Qwen2-VL's facts with a spec."""


class Qwen2VLSpecProcessor(QwenSpecProcessor, Qwen2VLMultiModalProcessor):
    """Qwen2-VL's processor with a spec."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLSpecProcessor, info=Qwen2VLSpecInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class ServedQwen2VL(QwenSpecModel, Qwen2VLForConditionalGeneration):
    """Qwen2-VL that compresses each image and clip by the spec of its request."""
