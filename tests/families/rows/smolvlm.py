"""SmolVLM, tiny: Idefics3 with another processor."""

from typing import Any

from rows.idefics3 import CHAT, SIDE, image_options, row


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    # It writes the number of a clip's frames in words, and won't start without that package.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    images: Any = (SmolVLMImageProcessor if backend == "torchvision" else SmolVLMImageProcessorPil)(
        **image_options(config)
    )
    videos = SmolVLMVideoProcessor(**image_options(config))
    return SmolVLMProcessor(images, tokenizer, videos, image_seq_len=SIDE * SIDE, chat_template=CHAT)


ROW = row("SmolVLM", "smolvlm", processor, **{"<video>": 27})
