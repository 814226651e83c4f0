"""LLaVA-NeXT, tiny: a picture is seen whole and in tiles."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.layout import Layout, Segment, Structural
from rows.clip import LLAVA_WORDS, clip_keys, llava_options
from rows.row import DECODER, ENCODER, Row, enlarged, picture


def make_llava_next() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(
                **ENCODER,
                image_size=56,
                patch_size=14,
            ),
            text_config=LlamaConfig(
                **DECODER,
            ),
            image_token_index=5,
            image_grid_pinpoints=[[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
        )
    )


def tiled(crop: tuple[int, int], rows: tuple[int, ...], columns: tuple[int, ...]) -> Layout:
    """A base, and a grid of tiles of which so much is left without padding, a newline behind each of its rows."""
    base, grid = Segment(1, *crop), Segment(1, sum(rows), sum(columns), rows, columns)
    newlines = []
    for row in range(grid.h):
        begin = base.count + row * grid.w
        newlines.append(Structural(begin + row + grid.w, begin, begin + grid.w))
    return Layout((base, grid), tuple(newlines))


LLAVA_NEXT_PICTURES = {
    "A": tiled((4, 4), (3, 3), (4, 4)),
    "B": tiled((4, 4), (2,), (4, 4)),
    "C": tiled((4, 4), (4, 4, 4), (2,)),
}

LLAVA_NEXT_SIZES = {"A": (60, 90), "B": (30, 110), "C": (165, 30)}
"""Pixels of each picture: height and width."""


def llava_next_crops(letter: str) -> Tensor:
    """The whole picture and its tiles, the picture padded to fill them: `(crops, 3, 56, 56)`."""
    height, width = LLAVA_NEXT_SIZES[letter]
    image = picture(letter, 3, height, width)[None]
    grid = LLAVA_NEXT_PICTURES[letter].segments[1]
    area = len(grid.rows) * 56, len(grid.columns) * 56
    scale = min(area[0] / height, area[1] / width)
    fitted = interpolate(image, size=(round(height * scale), round(width * scale)), mode="bilinear")
    top, left = ((whole - part) // 2 for whole, part in zip(area, fitted.shape[2:]))
    filled = torch.zeros(1, 3, *area)
    filled[..., top : top + fitted.shape[2], left : left + fitted.shape[3]] = fitted
    crops = [interpolate(image, size=(56, 56), mode="bilinear")]
    for row in range(0, area[0], 56):
        for column in range(0, area[1], 56):
            crops.append(filled[..., row : row + 56, column : column + 56])
    return torch.cat(crops)


def llava_next_pixels(letters: str) -> dict[str, Tensor]:
    """Crops of all pictures, filled up with blank ones, and the pictures' own sizes."""
    crops = [llava_next_crops(letter) for letter in letters]
    most = max(map(len, crops))
    blank = [torch.cat([each, torch.zeros(most - len(each), 3, 56, 56)]) for each in crops]
    sizes = torch.tensor([LLAVA_NEXT_SIZES[letter] for letter in letters])
    return {"pixel_values": torch.stack(blank), "image_sizes": sizes}


def of_tokens(crops: Tensor, layout: Layout) -> Tensor:
    """Values of each patch `(crops, patches, ...)` -> of each content token: the base, then the tiles row by row."""
    base, grid = layout.segments
    values = list(crops[0])
    top = (len(grid.rows) * base.h - grid.h) // 2
    left = (len(grid.columns) * base.w - grid.w) // 2
    for row in range(top, top + grid.h):
        for column in range(left, left + grid.w):
            crop = 1 + row // base.h * len(grid.columns) + column // base.w
            values.append(crops[crop, row % base.h * base.w + column % base.w])
    return torch.stack(values)


def of_pictures(crops: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    letters = {size: letter for letter, size in LLAVA_NEXT_SIZES.items()}
    layouts = [LLAVA_NEXT_PICTURES[letters[height, width]] for height, width in inputs["image_sizes"].tolist()]
    counts = [1 + len(layout.segments[1].rows) * len(layout.segments[1].columns) for layout in layouts]
    return [of_tokens(part, layout) for part, layout in zip(crops.split(counts), layouts)]


def crop_attention(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The row of [CLS] in each crop, without [CLS] itself."""
    return of_pictures(maps[0].mean(1)[:, 0, 1:], inputs)


def crop_keys(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return of_pictures(torch.stack(clip_keys(attention, hidden, inputs)), inputs)


def with_newlines(model: Any, crops: Tensor, layout: Layout) -> Tensor:
    base, grid = layout.segments
    content = list(of_tokens(crops, layout))
    rows = content[: base.count]
    for row in range(grid.h):
        begin = base.count + row * grid.w
        rows += [*content[begin : begin + grid.w], model.model.image_newline]
    return torch.stack(rows)


def smaller_tiles(letter: str, rows: int, columns: int) -> Layout:
    """The layout with crops of `rows` x `columns` tokens, of whose tiles as much is padding as at full size."""
    full = LLAVA_NEXT_PICTURES[letter].segments[1]
    visible = max(1, full.h * rows // 4), max(1, full.w * columns // 4)
    # How much each tile shows doesn't matter here, only how many there are.
    heights = (visible[0], *(0,) * (len(full.rows) - 1))
    widths = (visible[1], *(0,) * (len(full.columns) - 1))
    return tiled((rows, columns), heights, widths)


def crops_interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """CLIP given smaller crops; as much of the tiles is padding as at full size."""
    small = interpolate(llava_next_crops(letter), size=(rows * 14, columns * 14), mode="area")
    hidden = model.model.vision_tower(small, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    projected = model.model.multi_modal_projector(hidden[-2][:, 1:])
    return with_newlines(model, projected, smaller_tiles(letter, rows, columns))


def crops_enlarged(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    small = interpolate(llava_next_crops(letter), size=(rows * 14, columns * 14), mode="area")
    sizes = torch.tensor([LLAVA_NEXT_SIZES[letter]])
    return model.model.get_image_features(enlarged(small, 56, 56)[None], sizes, return_dict=True).pooler_output[0]


def llava_next_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    side = config.vision_config.image_size
    sizes: Any = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    make: Any = LlavaNextImageProcessor if backend == "torchvision" else LlavaNextImageProcessorPil
    images = make(**sizes, image_grid_pinpoints=config.image_grid_pinpoints)
    return LlavaNextProcessor(images, tokenizer, **llava_options(config))


ROW = Row(
    "llava_next",
    make_llava_next,
    image_token=5,
    pictures=LLAVA_NEXT_PICTURES,
    pixels=llava_next_pixels,
    token_types=False,
    attention=crop_attention,
    keys=crop_keys,
    resized={"interpolate": crops_interpolated, "enlarge": crops_enlarged},
    words=LLAVA_WORDS,
    processor=llava_next_processor,
)
