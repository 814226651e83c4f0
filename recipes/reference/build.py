"""Build the reference VLM's parts: the tokenizer, the processor, the untrained model, deeper models, the directory."""

from __future__ import annotations

import copy
import string
from pathlib import Path
from typing import Any, Final

import torch
from recipes.reference.targets import PHOTOS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from foveate.scenes import COLOURS, PLACES, SHAPES, SIZES, WORDS
from foveate.scenes.questions import plural

SPECIAL: Final[tuple[str, ...]] = ("<pad>", "<unk>", "<bos>", "<eos>", "<image>", "USER:", "ASSISTANT:")

TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] != 'user' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""The chat template: ``USER: <image>\\n{question} ASSISTANT: {answer}<eos>``."""

_GRAMMAR: Final = (
    "is there a an the what which where how many are of on in to than next it does do not no contain image picture "
    "present colour color size shape shapes word words number numbers digit digits bar bars photo photos value text "
    "left right above below larger smaller taller shorter leftmost rightmost topmost lowest tallest shortest largest "
    "smallest biggest tiny little big nearest yes no describe list say see show and or you me first last name grey "
    "rectangle rectangles ? . , ! : ; ' - "
)


def vocabulary() -> list[str]:
    """List the tokens: special ones, whole words, then characters so that any question can be written.

    >>> words = vocabulary()
    >>> words.index("<image>"), len(words) == len(set(words))
    (4, True)
    """
    words = [*SPECIAL, *string.digits, *_GRAMMAR.split(), *COLOURS, *SHAPES, *map(plural, SHAPES), *SIZES, *PLACES]
    words += [*WORDS, *PHOTOS]
    characters = [c for c in string.printable.strip() if c == c.lower()]
    return list(dict.fromkeys([*words, *characters, *("##" + c for c in characters)]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: lower case, known words whole, numbers digit by digit, everything else by characters.

    >>> build_tokenizer().tokenize("What colour is the zebra? 47")
    ['what', 'colour', 'is', 'the', 'z', '##e', '##b', '##r', '##a', '?', '4', '##7']
    """
    tokens = {word: i for i, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordPiece(tokens, unk_token="<unk>", max_input_chars_per_word=40))  # type: ignore[call-arg]
    core.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"""[^\w#-]"""), "isolated")]
    )
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=2048,
    )
    tokenizer.add_tokens(["USER:", "ASSISTANT:"])
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerFast | None = None) -> LlavaProcessor:
    """Build the processor: any image becomes 192 x 192, ``<image>`` becomes 576 placeholders."""
    side = {"height": 192, "width": 192}
    images = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images,
        tokenizer or build_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build_config(
    *, width: int = 192, encoder_layers: int = 6, decoder_layers: int = 12, heads: int = 3, image: int = 192
) -> LlavaConfig:
    """Describe the model; the defaults are the shipped one's."""
    text = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=decoder_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=encoder_layers,
        num_attention_heads=heads,
        image_size=image,
        patch_size=8,
        projection_dim=width,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        image_seq_length=(image // 8) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


@torch.no_grad()
def initialise_decoder(model: LlavaForConditionalGeneration) -> None:
    """Start the decoder with tokens and layers of a scale that learns fast at this width."""
    language = model.model.language_model
    width = language.embed_tokens.embedding_dim
    nn.init.normal_(language.embed_tokens.weight, std=0.1)
    for layer in language.layers:
        _initialise_layer(layer, width, len(language.layers))


def _initialise_layer(layer: LlamaDecoderLayer, width: int, depth: int) -> None:
    for name, p in layer.named_parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=p.shape[1] ** -0.5 * 0.8)
            if "o_proj" in name or "down_proj" in name:
                p.mul_(depth**-0.5)


@torch.no_grad()
def deepen(model: LlavaForConditionalGeneration, layers: int) -> LlavaForConditionalGeneration:
    """Give the decoder more layers without changing what it computes.

    The new layers are spread evenly between the old ones; what they write starts at zero.
    """
    config: Any = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers = layers
    if getattr(config.text_config, "layer_types", None) is not None:
        config.text_config.layer_types = None
    out = LlavaForConditionalGeneration(config)
    old = model.model.language_model.layers
    if layers < len(old):
        raise ValueError(f"the decoder has {len(old)} layers already, more than {layers}")
    out.model.vision_tower.load_state_dict(model.model.vision_tower.state_dict())
    out.model.multi_modal_projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    language = out.model.language_model
    language.embed_tokens.load_state_dict(model.model.language_model.embed_tokens.state_dict())
    language.norm.load_state_dict(model.model.language_model.norm.state_dict())
    spots = {(i + 1) * layers // len(old) - 1: i for i in range(len(old))}
    for j, layer in enumerate(language.layers):
        if j in spots:
            layer.load_state_dict(old[spots[j]].state_dict())
        else:
            _initialise_layer(layer, config.text_config.hidden_size, layers)
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    out.tie_weights()
    return out


def save_directory(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the model in 16 bits with its processor: a directory that ``from_pretrained`` loads by itself."""
    half: Any = copy.deepcopy(model)
    half.to(torch.bfloat16)
    half.generation_config.bos_token_id, half.generation_config.eos_token_id = 2, 3
    half.generation_config.pad_token_id = 0
    half.save_pretrained(folder, safe_serialization=True)
    build_processor().save_pretrained(folder)
