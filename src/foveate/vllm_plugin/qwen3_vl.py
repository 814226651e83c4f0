"""Qwen3-VL in vLLM; see `qwen_vl`. Text before each frame of a clip tells its time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.engine import CompressedImage
from foveate.vllm_plugin.qwen_vl import QwenSpecInfo, QwenSpecModel, QwenSpecProcessor


class Qwen3VLSpecInfo(QwenSpecInfo, Qwen3VLProcessingInfo):
    """Qwen3-VL's facts with a spec."""


class Qwen3VLSpecProcessor(QwenSpecProcessor, Qwen3VLMultiModalProcessor):
    """Qwen3-VL's processor with a spec."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLSpecProcessor, info=Qwen3VLSpecInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class ServedQwen3VL(QwenSpecModel, Qwen3VLForConditionalGeneration):
    """Qwen3-VL that compresses each image and clip by the spec of its request."""

    _tokenizer: Any

    def run_begins(self, offset: int, runs: int, modality: str, input_tokens: list[int]) -> list[int]:
        """Return the column at which each frame of a clip begins: after the mark that follows its time."""
        if modality == "image":
            return [offset]
        begins: list[int] = []
        for _ in range(runs):
            offset = input_tokens.index(self.config.vision_start_token_id, offset) + 1
            begins.append(offset)
        return begins

    def with_text(self, clip: CompressedImage, embeddings: Tensor, number: int, inputs: Mapping[str, Any]) -> Tensor:
        """Put the time of each frame, and the marks around it, among what is left of them."""
        counts = clip.layout.run_of[clip.slot].bincount(minlength=len(clip.layout.runs)).tolist()
        ids = Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=counts,
            timestamps=inputs["timestamps"][number],
            tokenizer=self._tokenizer,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            video_token_id=self.config.video_token_id,
        ).full
        written = torch.tensor(ids, device=embeddings.device)
        text = self.language_model.embed_input_ids(written).to(embeddings.dtype)
        # DeepStack adds nothing to text.
        joined = torch.nn.functional.pad(text, (0, embeddings.shape[1] - text.shape[1]))
        joined[written == self.config.video_token_id] = embeddings
        return joined
