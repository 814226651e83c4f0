"""Cohere2 Vision, tiny: a picture in tiles and then the whole of it, a line break after each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from foveate.layout import Layout
from rows.row import DECODER, ENCODER, Row, enlarged
from rows.tiles import CUTS, EDGE, SIDE, of_pictures, of_tokens, smaller, tiled, tiles_of

IMAGE, BEGIN, END, BREAK = 5, 6, 7, 8
LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]


def maker(name: str, window: int, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        vision = transformers.SiglipVisionConfig(**ENCODER, image_size=EDGE, patch_size=14, vision_use_head=False)
        ends: Any = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        text = transformers.Cohere2Config(**DECODER, **ends, sliding_window=window, layer_types=LAYERS)
        config = getattr(transformers, f"{name}Config")(vision_config=vision, text_config=text, **options)
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return make


PICTURES = {letter: tiled(cut, runs=True) for letter, cut in CUTS.items()}


def with_breaks(layout: Layout) -> list[int]:
    return [BEGIN, *[token for tile in layout.segments for token in [IMAGE] * tile.count + [BREAK]], END]


def tiles(letters: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.cat([tiles_of(letter) for letter in letters])}


def counts(inputs: dict[str, Tensor], begin: int, end: int) -> list[int]:
    """Tiles of each picture, from the placeholders between its marks."""
    found, count = [], 0
    for token in inputs["input_ids"].flatten().tolist():
        if token == begin:
            count = 0
        elif token == end:
            found.append(count // SIDE**2)
        count += token == IMAGE
    return found


def attention_in_tiles(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of each tile's map, summed; then four patches to a token, as a share of the tile's attention."""
    received = maps[0].mean(1).sum(1)
    return of_pictures(of_tokens(received).sum(2) / received.shape[1], counts(inputs, BEGIN, END))


def keys_in_tiles(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = of_tokens(attention.k_proj(hidden).unflatten(-1, (4, 8))).mean(2)
    return of_pictures(keys, counts(inputs, BEGIN, END))


def interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    pixels = smaller(letter, min(rows, columns))
    found = model.model.get_image_features(pixels, interpolate_pos_encoding=True, return_dict=True)
    return found.pooler_output.flatten(0, 1)


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    pixels = enlarged(smaller(letter, min(rows, columns)), EDGE, EDGE)
    return model.model.get_image_features(pixels, return_dict=True).pooler_output.flatten(0, 1)


RESIZED = {"interpolate": interpolated, "enlarge": enlarged_again}

WORDS = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": IMAGE, "<boi>": BEGIN, "<eoi>": END, "<break>": BREAK,
}  # fmt: skip

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import Cohere2VisionImageProcessor, Cohere2VisionProcessor

    # Kept in the tokenizer's own files.
    special = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>", "img_line_break_token": "<break>"}
    tokenizer._set_model_specific_special_tokens(special)
    # It calls the tokens along one side of a tile the size of a patch.
    make: Any = Cohere2VisionImageProcessor
    images = make(size={"height": EDGE, "width": EDGE}, patch_size=SIDE)
    return Cohere2VisionProcessor(images, tokenizer, chat_template=CHAT)


ROW = Row(
    "cohere2_vision",
    maker("Cohere2Vision", 512, image_token_id=IMAGE, alignment_intermediate_size=64, tie_word_embeddings=False),
    image_token=IMAGE,
    pictures=PICTURES,
    pixels=tiles,
    token_types=False,
    attention=attention_in_tiles,
    keys=keys_in_tiles,
    resized=RESIZED,
    written=with_breaks,
    words=WORDS,
    processor=processor,
)
