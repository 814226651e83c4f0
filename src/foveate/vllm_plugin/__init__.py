"""A plugin for vLLM: it serves vision-language models with fewer visual tokens, per server and per request.

vLLM finds `register` under its entry point group `vllm.general_plugins`, and calls it in every process. The modules
beside this one import vLLM, and nothing else in foveate imports them.
"""

from __future__ import annotations

from typing import Final

MODELS: Final = {
    "LlavaForConditionalGeneration": "foveate.vllm_plugin.llava:ServedLlava",
    "LlavaNextForConditionalGeneration": "foveate.vllm_plugin.llava_next:ServedLlavaNext",
    "InternVLForConditionalGeneration": "foveate.vllm_plugin.internvl:ServedInternVL",
    "Qwen2VLForConditionalGeneration": "foveate.vllm_plugin.qwen2_vl:ServedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "foveate.vllm_plugin.qwen2_5_vl:ServedQwen25VL",
    "Qwen3VLForConditionalGeneration": "foveate.vllm_plugin.qwen3_vl:ServedQwen3VL",
}
"""The classes of models, by the names that vLLM has for the architectures in config.json."""


def register() -> None:
    """Tell vLLM the classes of models. They are imported when one of these models is loaded, and not before."""
    from vllm import ModelRegistry

    for architecture, place in MODELS.items():
        ModelRegistry.register_model(architecture, place)
