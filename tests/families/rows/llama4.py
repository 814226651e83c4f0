"""Llama 4, tiny: a picture in tiles and then the whole of it; chunked attention in two of three decoder layers."""

from typing import Any

import torch
from torch import Tensor, nn

from foveate.layout import Layout
from rows.row import DECODER, ENCODER, Row, enlarged
from rows.tiles import CUTS, EDGE, SIDE, of_pictures, of_tokens, smaller, tiled, tiles_of

IMAGE, BEGIN, END, WHOLE, RIGHT, DOWN = 5, 6, 7, 8, 10, 11


def make_llama4(chunk: int = 512, scale_from: int = 512) -> nn.Module:
    from transformers import Llama4Config, Llama4ForConditionalGeneration, Llama4TextConfig, Llama4VisionConfig

    widths = dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 48)
    vision: Any = {**ENCODER, "intermediate_size": 128, "image_size": EDGE, "patch_size": 14, **widths}
    text: Any = {**DECODER, "intermediate_size_mlp": 80, "head_dim": 16, "num_local_experts": 4, "pad_token_id": 0}
    text |= {"no_rope_layers": [1, 1, 0], "moe_layers": [0, 2], "attention_chunk_size": chunk}
    text |= {"floor_scale": scale_from, "attn_scale": 2.0}
    rope: Any = {"rope_type": "default", "rope_theta": 10000.0}
    config = Llama4Config(
        vision_config=Llama4VisionConfig(**vision, rope_parameters=rope),
        text_config=Llama4TextConfig(**text),
        image_token_index=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
    )
    return Llama4ForConditionalGeneration(config)


def with_separators(layout: Layout) -> list[int]:
    ids = [BEGIN]
    for tile in layout.segments:
        if not tile.part:
            ids.append(WHOLE)
        ids += [IMAGE] * tile.count
        if tile.part:
            _, column, _, columns = tile.part
            ids.append(DOWN if column == columns - 1 else RIGHT)
    return [*ids, END]


def tiles(letters: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.cat([tiles_of(letter) for letter in letters])}


def counts(inputs: dict[str, Tensor]) -> list[int]:
    """Tiles of each picture, from the placeholders between its marks."""
    found, count = [], 0
    for token in inputs["input_ids"].flatten().tolist():
        if token == BEGIN:
            count = 0
        elif token == END:
            found.append(count // SIDE**2)
        count += token == IMAGE
    return found


def attention_in_tiles(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The row of [CLS], the last one of each tile, without [CLS] itself; four patches to a token."""
    return of_pictures(of_tokens(maps[0].mean(1)[:, -1, :-1]).sum(2), counts(inputs))


def keys_in_tiles(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = attention.k_proj(hidden)[:, :-1]
    return of_pictures(of_tokens(keys.unflatten(-1, (4, 8))).mean(2), counts(inputs))


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    pixels = enlarged(smaller(letter, min(rows, columns)), EDGE, EDGE)
    adapted = model.get_image_features(pixels, return_dict=True).last_hidden_state
    return model.multi_modal_projector(adapted).flatten(0, 1)


WORDS = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<|patch|>": IMAGE, "<|image_start|>": BEGIN, "<|image_end|>": END,
    "<|image|>": WHOLE, "<|tile_x_separator|>": RIGHT, "<|tile_y_separator|>": DOWN,
}  # fmt: skip

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<|image|>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import Llama4ImageProcessor, Llama4Processor

    images: Any = Llama4ImageProcessor(size={"height": EDGE, "width": EDGE})  # pyright: ignore[reportCallIssue]
    return Llama4Processor(images, tokenizer, chat_template=CHAT)


ROW = Row(
    "llama4",
    make_llama4,
    image_token=IMAGE,
    pictures={letter: tiled(cut, runs=True) for letter, cut in CUTS.items()},
    pixels=tiles,
    token_types=False,
    attention=attention_in_tiles,
    keys=keys_in_tiles,
    resized={"enlarge": enlarged_again},
    written=with_separators,
    broken=(5, 24),
    uncounted=0.015,
    words=WORDS,
    processor=processor,
)
