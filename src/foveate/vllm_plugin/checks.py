"""What of vLLM the plugin can't work with, refused when a model is loaded."""

from __future__ import annotations

from vllm.config import VllmConfig

from foveate.serving.choice import PER_QUESTION_VARIABLE
from foveate.vllm_plugin.served import per_question


def check_engine(config: VllmConfig, reads_encoder: bool) -> None:
    """Check the options of an engine.

    Args:
        config: of the engine.
        reads_encoder: whether the plugin records what happens inside the encoder of this model.

    Raises:
        ValueError: with one of them, counts of tokens or what is recorded would be wrong.
    """
    multimodal = config.model_config.multimodal_config
    if multimodal is not None and multimodal.mm_encoder_tp_mode == "data" and reads_encoder:
        raise ValueError(
            "foveate: with --mm-encoder-tp-mode data a rank encodes some of the images alone, and the other ranks lack "
            "their attention; leave it out"
        )
    if multimodal is not None and multimodal.is_multimodal_pruning_enabled():
        raise ValueError(
            "foveate: --video-pruning-rate drops tokens of clips, and so does a spec; leave it out, and write the spec "
            "evs:0.5:positions=pack for the same rule"
        )
    if multimodal is not None and multimodal.mm_encoder_only and per_question():
        raise ValueError(
            f"foveate: {PER_QUESTION_VARIABLE}=1 needs the decoder's embeddings of text, and --mm-encoder-only leaves "
            "them out"
        )
    if config.lora_config is not None and config.lora_config.enable_tower_connector_lora:
        raise ValueError("foveate: LoRA of the encoder counts the tokens of whole images; leave it to the decoder")
