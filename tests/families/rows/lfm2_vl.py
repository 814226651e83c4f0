"""LFM2-VL, tiny: tiles of a picture with their names before them, then the whole of it at its own shape."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from foveate.layout import Layout, Segment
from rows.row import DECODER, ENCODER, Row, enlarged, picture
from rows.tiles import tiled

IMAGE, BEGIN, END, WHOLE = 5, 6, 7, 8
NAMES = {(row, column): 9 + row * 10 + column for row in range(10) for column in range(10) if row < 1 or column < 3}
PATCH, SIDE = 8, 4
CUTS = {"A": (2, 2), "B": (1, 2), "C": (0, 0)}
WHOLES = {"A": (4, 4), "B": (2, 8), "C": (8, 2)}
"""Rows and columns of the tokens of each whole picture."""


def make_lfm2_vl() -> nn.Module:
    from transformers import Lfm2Config, Lfm2VlConfig, Lfm2VlForConditionalGeneration, Siglip2VisionConfig

    ends: Any = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return Lfm2VlForConditionalGeneration(
        Lfm2VlConfig(
            vision_config=Siglip2VisionConfig(
                **ENCODER,
                num_patches=SIDE**2,
                patch_size=PATCH,
                vision_use_head=False,
            ),
            text_config=Lfm2Config(**DECODER, **ends, layer_types=["conv", "full_attention", "conv"]),
            image_token_id=IMAGE,
            projector_hidden_size=48,
            tie_word_embeddings=False,
        )
    )


def shapes(letter: str) -> list[tuple[int, int]]:
    """Rows and columns of the tokens of each tile."""
    rows, columns = CUTS[letter]
    return [(SIDE, SIDE)] * (rows * columns) + [WHOLES[letter]]


def laid_out(letter: str) -> Layout:
    *tiles, _ = tiled(CUTS[letter], SIDE).segments
    segments = (*tiles, Segment(1, *WHOLES[letter]))
    return Layout(segments, runs=tuple(each.count for each in segments) if tiles else ())


PICTURES = {letter: laid_out(letter) for letter in CUTS}


def named(layout: Layout) -> list[int]:
    ids: list[int] = [BEGIN]
    for tile in layout.segments:
        if tile.part:
            row, column, *_ = tile.part
            ids.append(NAMES[row, column])
        elif len(layout.segments) > 1:
            ids.append(WHOLE)
        ids += [IMAGE] * tile.count
    return [*ids, END]


def tiles_of(letter: str) -> list[Tensor]:
    """The tiles of a picture and the whole of it, each `(3, height, width)`."""
    rows, columns = CUTS[letter]
    edge = 2 * SIDE * PATCH
    image = picture(letter, 3, max(rows, 1) * edge, max(columns, 1) * edge)
    tiles = [
        image[:, row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
        for row in range(rows)
        for column in range(columns)
    ]
    height, width = WHOLES[letter]
    return [*tiles, interpolate(image[None], size=(height * 2 * PATCH, width * 2 * PATCH), mode="area")[0]]


def patches(tile: Tensor) -> Tensor:
    """Each patch of a tile, row by row; of a patch each pixel, row by row, with its channels together."""
    _, height, width = tile.shape
    found = []
    for top in range(0, height, PATCH):
        for left in range(0, width, PATCH):
            found.append(tile[:, top : top + PATCH, left : left + PATCH].permute(1, 2, 0).flatten())
    return torch.stack(found)


def packed(tiles: list[Tensor]) -> dict[str, Tensor]:
    rows = [patches(tile) for tile in tiles]
    most = max(4 * SIDE * SIDE, *map(len, rows))
    return {
        "pixel_values": torch.stack([pad(row, (0, 0, 0, most - len(row))) for row in rows]),
        "spatial_shapes": torch.tensor([[tile.shape[1] // PATCH, tile.shape[2] // PATCH] for tile in tiles]),
        "pixel_attention_mask": torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows]),
    }


def packed_tiles(letters: str) -> dict[str, Tensor]:
    return packed([tile for letter in letters for tile in tiles_of(letter)])


def of_tokens(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """What patches `(P, ...)` of a tile have, by visual token: `(n, 4, ...)`."""
    rows, columns = shape
    tokens = []
    for row in range(0, 2 * rows, 2):
        for column in range(0, 2 * columns, 2):
            places = [(row + down) * 2 * columns + column + right for down in (0, 1) for right in (0, 1)]
            tokens.append(values[places])
    return torch.stack(tokens)


def by_picture(tiles: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Join the values of the tokens of each tile, from the placeholders between the marks of a picture."""
    found: list[Tensor] = []
    rest = torch.cat(tiles)
    count = 0
    for token in inputs["input_ids"].flatten().tolist():
        count += token == IMAGE
        if token == END:
            found.append(rest[:count])
            rest, count = rest[count:], 0
    return found


def attention_in_tiles(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of each tile's map, summed over the rows of its patches; then four patches to a token, as a share."""
    found = []
    for weights, shape in zip(maps[0].mean(1), inputs["spatial_shapes"].tolist()):
        count = shape[0] * shape[1]
        received = weights[:count, :count].sum(0)
        found.append(of_tokens(received, (shape[0] // 2, shape[1] // 2)).sum(1) / count)
    return by_picture(found, inputs)


def keys_in_tiles(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = attention.k_proj(hidden).unflatten(-1, (4, 8))
    found = [
        of_tokens(key, (shape[0] // 2, shape[1] // 2)).mean(1)
        for key, shape in zip(keys, inputs["spatial_shapes"].tolist())
    ]
    return by_picture(found, inputs)


def smaller_tiles(letter: str, rows: int, columns: int) -> list[Tensor]:
    """Tiles of so many rows and columns of tokens; the whole shrinks as they do."""
    sizes = [(rows, columns)]
    if len(shapes(letter)) > 1:
        side = min(rows, columns)
        sizes = [(side, side)] * len(shapes(letter))
        height, width = WHOLES[letter]
        sizes[-1] = max(1, height * side // SIDE), max(1, width * side // SIDE)
    return [
        interpolate(tile[None], size=(height * 2 * PATCH, width * 2 * PATCH), mode="area")[0]
        for tile, (height, width) in zip(tiles_of(letter), sizes)
    ]


def smaller(letter: str, rows: int, columns: int) -> dict[str, Tensor]:
    return packed(smaller_tiles(letter, rows, columns))


def exact(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    inputs = smaller(letter, rows, columns)
    return torch.cat(model.model.get_image_features(**inputs, return_dict=True).pooler_output)


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    small = zip(smaller_tiles(letter, rows, columns), tiles_of(letter))
    tiles = [enlarged(each[None], *whole.shape[1:])[0] for each, whole in small]
    return torch.cat(model.model.get_image_features(**packed(tiles), return_dict=True).pooler_output)


WORDS = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": IMAGE, "<|image_start|>": BEGIN, "<|image_end|>": END,
    "<|img_thumbnail|>": WHOLE,
    **{f"<|img_row_{row + 1}_col_{column + 1}|>": name for (row, column), name in NAMES.items()},
}  # fmt: skip

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import Lfm2VlImageProcessor, Lfm2VlProcessor

    positions = config.vision_config.num_patches
    images: Any = Lfm2VlImageProcessor(
        encoder_patch_size=PATCH,
        tile_size=2 * SIDE * PATCH,
        max_image_tokens=positions,
        min_image_tokens=positions // 4,
    )
    return Lfm2VlProcessor(images, tokenizer, chat_template=CHAT)


ROW = Row(
    "lfm2_vl",
    make_lfm2_vl,
    image_token=IMAGE,
    pictures=PICTURES,
    pixels=packed_tiles,
    token_types=False,
    attention=attention_in_tiles,
    keys=keys_in_tiles,
    resized={"exact": exact, "enlarge": enlarged_again},
    smaller=smaller,
    written=named,
    rounding=2e-6,
    full_attention=False,
    plain=False,
    uncounted=0.01,  # position embeddings are interpolated by a matrix product from 5.24 on
    offloads=False,  # SigLIP 2 reads a weight that accelerate has not loaded
    words=WORDS,
    processor=processor,
)
