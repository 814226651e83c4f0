"""Molmo2, tiny: a view of the whole picture and overlapping crops; a break after each row of their two grids."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.layout import Layout, Segment, Structural
from rows.row import DECODER, ENCODER, Row, enlarged, picture

IMAGE, BREAK, BEGIN, END, WHOLE, WORD, CLIP = 5, 6, 7, 8, 9, 10, 11
PATCH, SIDE, MARGIN = 4, 11, 4
"""Pixels along one side of a patch; patches along one side of a crop; patches that are cut off inside."""
WINDOW = SIDE - 2 * MARGIN
CUTS = {"A": (2, 2), "B": (1, 2), "C": (2, 1)}
"""Rows and columns of crops; one crop alone would show what the view of the whole shows."""


def make_molmo2() -> nn.Module:
    from transformers import Molmo2Config, Molmo2ForConditionalGeneration

    size = SIDE * PATCH
    vision = {**ENCODER, "head_dim": 8, "num_key_value_heads": 4, "image_size": [size, size], "patch_size": PATCH}
    adapter = {
        "vision_feature_layer": [2, 1],
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "intermediate_size": 64,
        "text_hidden_size": 64,
    }
    text = {**DECODER, "head_dim": 16, "additional_vocab_size": 8, "rope_scaling_layers": [0, 2]}
    text["rope_parameters"] = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model: Any = Molmo2ForConditionalGeneration(
        Molmo2Config(
            vision_config=vision,
            adapter_config=adapter,
            text_config=text,
            image_patch_id=IMAGE,
            image_start_token_id=BEGIN,
            image_end_token_id=END,
            low_res_image_start_token_id=WHOLE,
            frame_start_token_id=12,
            frame_end_token_id=13,
        )
    )
    for weight in model.model.multi_modal_projector.image_projector.parameters():
        weight.data.mul_(8)  # features are added to embeddings, which would drown them
    return model


def sides(letter: str) -> list[int]:
    """Rows and columns of both grids, rounded up from patches."""
    rows, columns = CUTS[letter]
    patches = SIDE, SIDE, rows * WINDOW + 2 * MARGIN, columns * WINDOW + 2 * MARGIN
    return [(each + 1) // 2 for each in patches]


def laid_out(low: int, across: int, rows: int, columns: int) -> Layout:
    breaks, place, content = [], 0, 0
    for height, width in ((low, across), (rows, columns)):
        for _ in range(height):
            place += width
            breaks.append(Structural(place, content, content + width, is_text=True))
            place += 1
            content += width
    return Layout(
        (Segment(1, low, across), Segment(1, rows, columns)),
        tuple(breaks),
        (low * (across + 1), rows * (columns + 1)),
    )


PICTURES = {letter: laid_out(*sides(letter)) for letter in CUTS}


def marked(layout: Layout) -> list[int]:
    ids: list[int] = []
    for grid, begin in zip(layout.segments, (WHOLE, BEGIN), strict=True):
        ids += [begin, *([IMAGE] * grid.w + [BREAK]) * grid.h, END]
    return ids


def crops_of(letter: str) -> list[Tensor]:
    """The view of the whole and the crops, each `(3, 44, 44)`."""
    rows, columns = CUTS[letter]
    edge, step = SIDE * PATCH, WINDOW * PATCH
    image = picture(letter, 3, (rows - 1) * step + edge, (columns - 1) * step + edge)
    crops = [
        image[:, row * step : row * step + edge, column * step : column * step + edge]
        for row in range(rows)
        for column in range(columns)
    ]
    return [interpolate(image[None], size=(edge, edge), mode="area")[0], *crops]


def patches_of(crop: Tensor) -> Tensor:
    """Each patch of a crop, row by row; of a patch each pixel, row by row, with its channels together."""
    found = []
    for top in range(0, SIDE * PATCH, PATCH):
        for left in range(0, SIDE * PATCH, PATCH):
            found.append(crop[:, top : top + PATCH, left : left + PATCH].permute(1, 2, 0).flatten())
    return torch.stack(found)


def blocks(grid: list[list[int]]) -> list[list[int]]:
    """The patches of each token, -1 outside of the grid, which an odd side has at its end."""
    found = []
    for row in range(0, len(grid), 2):
        for column in range(0, len(grid[0]), 2):
            block = []
            for down in (0, 1):
                for right in (0, 1):
                    inside = row + down < len(grid) and column + right < len(grid[0])
                    block.append(grid[row + down][column + right] if inside else -1)
            found.append(block)
    return found


def pooling(letter: str, first: int) -> list[list[int]]:
    """The patches of each token, counted from `first`: of the whole, then of the crops without their inner margins."""
    rows, columns = CUTS[letter]
    count = SIDE * SIDE
    whole = [[first + row * SIDE + column for column in range(SIDE)] for row in range(SIDE)]

    def own(crop: int, crops: int) -> range:
        return range(0 if crop == 0 else MARGIN, SIDE if crop == crops - 1 else SIDE - MARGIN)

    grid = []
    for crop_row in range(rows):
        for row in own(crop_row, rows):
            line = []
            for crop_column in range(columns):
                begin = first + count * (1 + crop_row * columns + crop_column)
                line += [begin + row * SIDE + column for column in own(crop_column, columns)]
            grid.append(line)
    return blocks(whole) + blocks(grid)


def packed(letters: str, crops: list[list[Tensor]] | None = None) -> dict[str, Tensor]:
    crops = crops or [crops_of(letter) for letter in letters]
    tokens: list[list[int]] = []
    before = 0
    for letter, each in zip(letters, crops, strict=True):
        tokens += pooling(letter, before * SIDE * SIDE)
        before += len(each)
    return {
        "pixel_values": torch.stack([patches_of(crop) for each in crops for crop in each]),
        "image_token_pooling": torch.tensor(tokens),
        "image_grids": torch.tensor([sides(letter) for letter in letters]),
    }


def by_picture(tokens: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    counts = [low * across + rows * columns for low, across, rows, columns in inputs["image_grids"].tolist()]
    return list(torch.stack(tokens).split(counts))


def attention_in_crops(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of each crop's map, summed, as a share; then those of the patches of each token."""
    shares = (maps[0].mean(1).sum(1) / SIDE**2).flatten()
    tokens = [sum(shares[patch] for patch in token if patch >= 0) for token in inputs["image_token_pooling"].tolist()]
    return by_picture(tokens, inputs)  # pyright: ignore[reportArgumentType]


def keys_in_crops(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = attention.k_proj(hidden).flatten(0, 1).unflatten(-1, (4, 8))
    tokens = [
        keys[[patch for patch in token if patch >= 0]].mean(0) for token in inputs["image_token_pooling"].tolist()
    ]
    return by_picture(tokens, inputs)


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    size = rows * 2 * PATCH, columns * 2 * PATCH
    small = [interpolate(crop[None], size=size, mode="area") for crop in crops_of(letter)]
    inputs = packed(letter, [[enlarged(each, SIDE * PATCH, SIDE * PATCH)[0] for each in small]])
    return model.model.get_image_features(**inputs, return_dict=True).pooler_output[0]


WORDS = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<im_patch>": IMAGE, "<im_col>": BREAK, "<im_start>": BEGIN,
    "<im_end>": END, "<low_res_im_start>": WHOLE, "<|image|>": WORD, "<|video|>": CLIP, "<frame_start>": 12,
    "<frame_end>": 13, "<im_low>": 14,
}  # fmt: skip

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<|image|>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import Molmo2ImageProcessor, Molmo2Processor, Molmo2VideoProcessor

    tokenizer._set_model_specific_special_tokens({"image_token": "<|image|>", "video_token": "<|video|>"})
    tokenizer.bos_token = "<s>"
    size = {"height": SIDE * PATCH, "width": SIDE * PATCH}
    images: Any = Molmo2ImageProcessor(size=size, patch_size=PATCH)
    clips: Any = Molmo2VideoProcessor(size=size, patch_size=PATCH)
    return Molmo2Processor(images, clips, tokenizer, chat_template=CHAT)


ROW = Row(
    "molmo2",
    make_molmo2,
    image_token=IMAGE,
    pictures=PICTURES,
    pixels=packed,
    token_types=False,
    types=("mm_token_type_ids", 1),
    typed=(BREAK, BEGIN, END, WHOLE),
    images_see_later_ones=True,
    attention=attention_in_crops,
    keys=keys_in_crops,
    resized={"enlarge": enlarged_again},
    written=marked,
    break_token=BREAK,
    rounding=2e-6,
    compiles=False,
    words=WORDS,
    processor=processor,
)
