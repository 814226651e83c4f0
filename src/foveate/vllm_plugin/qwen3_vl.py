"""Qwen3-VL in vLLM; see `qwen_vl`."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.vllm_plugin.qwen_vl import QwenSpecInfo, QwenSpecModel, QwenSpecProcessor


class Qwen3VLSpecInfo(QwenSpecInfo, Qwen3VLProcessingInfo):
    """Qwen3-VL's facts with a spec."""


class Qwen3VLSpecProcessor(QwenSpecProcessor, Qwen3VLMultiModalProcessor):
    """Qwen3-VL's processor with a spec."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLSpecProcessor, info=Qwen3VLSpecInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class ServedQwen3VL(QwenSpecModel, Qwen3VLForConditionalGeneration):
    """Qwen3-VL that compresses each image by the spec of its request."""
