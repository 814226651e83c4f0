"""Model directories like any other: weights, tokenizer and processor of a row of the contract suite."""

from pathlib import Path
from typing import Any

from rows import Row
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil


def save(row: Row, path: Path) -> Path:
    """Write a tiny LLaVA or LLaVA-NeXT with random weights, whose words are few."""
    model = row.model()
    words = ["<pad>", "<s>", "</s>", "<unk>", "\n", "<image>", "USER:", "ASSISTANT:", "what", "colour", "is", "it", "?"]
    vocabulary = {word: number for number, word in enumerate(words)}
    vocabulary |= {f"word{number}": number for number in range(len(words), 128)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    tiled = row.name == "llava_next"
    side = model.config.vision_config.image_size
    sizes: Any = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if tiled:
        images: Any = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=model.config.image_grid_pinpoints)
    else:
        images = CLIPImageProcessorPil(**sizes)
    processor = (LlavaNextProcessor if tiled else LlavaProcessor)(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}USER: {% for c in m.content %}{% if c.type == 'image' %}<image> "
        "{% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}ASSISTANT:",
    )
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path
