"""Model directories like any other: weights, tokenizer and processor of a row of the contract suite."""

from pathlib import Path
from typing import Any

from rows import Row
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ("user", "assistant", ":", "what", "colour", "is", "it", "?")
"""Words of questions and templates; the vocabulary is filled up with word32, word33 and so on."""


def make_processor(row: Row, config: Any, backend: str = "pil") -> Any:
    """Build the real processor of a row's family, with a tokenizer of few words.

    Args:
        row: of the contract suite.
        config: of its model.
        backend: what computes with images, "torchvision" or "pil".
    """
    assert row.processor is not None, f"{row.name} names no processor"
    taken = set(row.words.values())
    free = (number for number in range(config.get_text_config().vocab_size) if number not in taken)
    vocabulary = dict(row.words) | dict(zip(WORDS, free)) | {f"word{number}": number for number in free}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[word for word in row.words if word not in ("<unk>", "<pad>")],
        padding_side="left",
    )
    return row.processor(tokenizer, config, backend)


def save(row: Row, path: Path) -> Path:
    """Write the tiny model of a row with random weights, and its processor with a tokenizer of few words."""
    model = row.model()
    model.save_pretrained(path)
    make_processor(row, model.config).save_pretrained(path)
    return path
