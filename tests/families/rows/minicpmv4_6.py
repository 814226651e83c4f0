"""MiniCPM-V 4.6, tiny: a picture as a whole and then its slices, with marks around each."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.layout import Layout, Segment
from rows.qwen import LINEAR_ATTENTION, QWEN3_5_TEXT
from rows.row import ENCODER, Row, enlarged, picture

IMAGE, BEGIN, END, SLICE, SLICE_END, LINE, NAME, NAME_END, VIDEO = 5, 6, 7, 8, 9, 10, 11, 12, 13
PATCH = 4
CUTS = {"A": (2, 2), "B": (1, 2), "C": (0, 0)}
WHOLES = {"A": (4, 4), "B": (2, 4), "C": (5, 2)}
"""Rows and columns of the tokens of each whole picture."""
SLICES = {"A": (4, 4), "B": (4, 2)}
"""Those of each of its slices."""
MERGED_AFTER = 1


def make_minicpmv4_6() -> nn.Module:
    from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration
    from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig

    vision: Any = MiniCPMV4_6VisionConfig(**ENCODER, image_size=24, patch_size=PATCH)
    model: Any = MiniCPMV4_6ForConditionalGeneration(
        MiniCPMV4_6Config(
            vision_config=vision.to_dict(),
            text_config={**QWEN3_5_TEXT, "model_type": "qwen3_5_text"},
            image_size=64,
            insert_layer_id=MERGED_AFTER,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )
    )
    # These begin so large that merged patches are all alike.
    for weight in model.model.vision_tower.vit_merger.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.1)
    return model


def shapes(letter: str) -> list[tuple[int, int]]:
    """Rows and columns of the tokens of the whole picture and of its slices."""
    rows, columns = CUTS[letter]
    return [WHOLES[letter], *[SLICES.get(letter, (0, 0))] * (rows * columns)]


def laid_out(letter: str) -> Layout:
    cut = CUTS[letter]
    parts: list[Any] = [(), *((row, column, *cut) for row in range(cut[0]) for column in range(cut[1]))]
    segments = tuple(Segment(1, *shape, part=part) for shape, part in zip(shapes(letter), parts, strict=True))
    return Layout(segments, runs=tuple(each.count for each in segments) if len(segments) > 1 else ())


PICTURES = {letter: laid_out(letter) for letter in CUTS}


def marked(layout: Layout) -> list[int]:
    """Token ids of a picture as the processor writes them."""
    ids: list[int] = [NAME, 20, NAME_END]
    for tile in layout.segments:
        if not tile.part:
            ids += [BEGIN, *[IMAGE] * tile.count, END]
            continue
        row, column, _, _ = tile.part
        ids += [LINE] * (column == 0 and row > 0) + [SLICE, *[IMAGE] * tile.count, SLICE_END]
    return ids


def tiles_of(letter: str) -> list[Tensor]:
    """The whole picture and its slices, each `(3, height, width)`."""
    rows, columns = CUTS[letter]
    side = 4 * PATCH
    height, width = (length * side for length in SLICES.get(letter, WHOLES[letter]))
    image = picture(letter, 3, max(rows, 1) * height, max(columns, 1) * width)
    slices = [
        image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(rows)
        for column in range(columns)
    ]
    whole = tuple(length * side for length in WHOLES[letter])
    return [interpolate(image[None], size=whole, mode="area")[0], *slices]


def packed(tiles: list[Tensor]) -> dict[str, Tensor]:
    """Patches of all tiles side by side, row by row."""
    patches, sizes = [], []
    for tile in tiles:
        _, height, width = tile.shape
        sizes.append([height // PATCH, width // PATCH])
        for top in range(0, height, PATCH):
            for left in range(0, width, PATCH):
                patches.append(tile[:, top : top + PATCH, left : left + PATCH])
    return {"pixel_values": torch.cat(patches, dim=2)[None], "target_sizes": torch.tensor(sizes, dtype=torch.int32)}


def packed_tiles(letters: str) -> dict[str, Tensor]:
    return packed([tile for letter in letters for tile in tiles_of(letter)])


def of_tokens(values: Tensor, size: list[int], side: int) -> Tensor:
    """What the rows `(P, ...)` of a tile have in a layer, by visual token: `(n, side * side, ...)`."""
    rows, columns = size
    tokens = []
    for row in range(0, rows, side):
        for column in range(0, columns, side):
            tokens.append(
                values[[(row + down) * columns + column + right for down in range(side) for right in range(side)]]
            )
    return torch.stack(tokens)


def by_picture(tiles: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Join the values of the tokens of each tile: a picture begins at its mark."""
    found: list[list[Tensor]] = []
    rest = list(tiles)
    for token in inputs["input_ids"].flatten().tolist():
        if token == BEGIN:
            found.append([])
        if token in (BEGIN, SLICE):
            found[-1].append(rest.pop(0))
    assert not rest
    return [torch.cat(each) for each in found]


def in_layer(size: list[int], rows: int, patches: int) -> tuple[list[int], int]:
    """Rows and columns of a tile in a layer that has so many rows for so many patches, and how many make one side of a
    token."""
    return ([length // 2 for length in size], 2) if rows < patches else (size, 4)


def attention_in_tiles(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of each tile's map, summed; then the rows of a token, as a share of the tile's attention."""
    found = []
    for weights, size in zip(maps, inputs["target_sizes"].tolist(), strict=True):
        received = weights[0].mean(0).sum(0)
        here, side = in_layer(size, len(received), size[0] * size[1])
        found.append(of_tokens(received, here, side).sum(1) / len(received))
    return by_picture(found, inputs)


def keys_in_tiles(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = attention.k_proj(hidden)[0].unflatten(-1, (4, 8))
    sizes = inputs["target_sizes"].tolist()
    patches = sum(rows * columns for rows, columns in sizes)
    found, begin = [], 0
    for size in sizes:
        here, side = in_layer(size, len(keys), patches)
        end = begin + here[0] * here[1]
        found.append(of_tokens(keys[begin:end], here, side).mean(1))
        begin = end
    return by_picture(found, inputs)


def smaller_tiles(letter: str, rows: int, columns: int) -> list[Tensor]:
    """Each tile at so many rows and columns of tokens; for a picture all of whose tiles have one shape."""
    side = 4 * PATCH
    return [interpolate(tile[None], size=(rows * side, columns * side), mode="area")[0] for tile in tiles_of(letter)]


def smaller(letter: str, rows: int, columns: int) -> dict[str, Tensor]:
    return packed(smaller_tiles(letter, rows, columns))


def features(model: Any, tiles: list[Tensor]) -> Tensor:
    return torch.cat(model.model.get_image_features(**packed(tiles), return_dict=True).pooler_output)


def exact(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    return features(model, smaller_tiles(letter, rows, columns))


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    small = zip(smaller_tiles(letter, rows, columns), tiles_of(letter))
    return features(model, [enlarged(each[None], *whole.shape[1:])[0] for each, whole in small])


WORDS = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<|image_pad|>": IMAGE, "<image>": BEGIN, "</image>": END,
    "<slice>": SLICE, "</slice>": SLICE_END, "\n": LINE, "<image_id>": NAME, "</image_id>": NAME_END,
    "<|video_pad|>": VIDEO,
}  # fmt: skip

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<|image_pad|>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import MiniCPMV4_6ImageProcessor, MiniCPMV4_6Processor, MiniCPMV4_6VideoProcessor
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    words = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    # Kept in the tokenizer's own files.
    tokenizer._set_model_specific_special_tokens(words)
    make: Any = MiniCPMV4_6ImageProcessor if backend == "torchvision" else MiniCPMV4_6ImageProcessorPil
    options: Any = {"scale_resolution": config.image_size, "patch_size": PATCH}
    clips: Any = MiniCPMV4_6VideoProcessor
    return MiniCPMV4_6Processor(make(**options), clips(**options), tokenizer, chat_template=CHAT)


ROW = Row(
    "minicpmv4_6",
    make_minicpmv4_6,
    image_token=IMAGE,
    pictures=PICTURES,
    pixels=packed_tiles,
    token_types=False,
    attention=attention_in_tiles,
    keys=keys_in_tiles,
    resized={"exact": exact, "enlarge": enlarged_again},
    smaller=smaller,
    written=marked,
    words=WORDS,
    processor=processor,
    logits_to_keep=False,
    offloads=False,  # the encoder puts places on the device where its weights lie
    **LINEAR_ATTENTION,
)
