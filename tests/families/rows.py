"""The families of the contract suite: a tiny random model of the real architecture each, and inputs for it.

A family joins with one row at the end of this file.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.tokens import Layout, Segment, Structural

TEXT_IDS = range(20, 120)
PAD = 0


@dataclass(frozen=True)
class Row:
    """One family: how to make a tiny model, what a picture is to it, and what its signals must be.

    Attributes:
        name: the family's.
        make: makes a tiny random model of the real architecture.
        image_token: the id of its placeholder.
        pictures: for each letter the layout of its visual tokens.
        pixels: turns letters into the model's pixel inputs.
        token_types: whether the processor returns `mm_token_type_ids`.
        attention: from every eager attention map `(batch, heads, rows, columns)` of one encoder layer, and the call's
            inputs, the attention that each visual token gets: `(N,)` per image.
        keys: from an attention module of the encoder, its input, and the call's inputs, the keys of each visual token:
            `(N, heads, width)` per image.
        resized: per way of shrinking images: `(model, letter, rows, columns)` -> the features `(n, D)` of the picture
            shrunk to a grid of so many rows and columns.
        smaller: for a family that resizes exactly: `(letter, rows, columns)` -> pixel inputs of the smaller picture.
    """

    name: str
    make: Callable[[], nn.Module]
    image_token: int
    pictures: Mapping[str, Layout]
    pixels: Callable[[str], dict[str, torch.Tensor]]
    token_types: bool
    attention: Callable[[list[Tensor], dict[str, Tensor]], list[Tensor]]
    keys: Callable[[Any, Tensor, dict[str, Tensor]], list[Tensor]]
    resized: Mapping[str, Callable[[Any, str, int, int], Tensor]]
    smaller: Callable[[str, int, int], dict[str, Tensor]] | None = None

    def model(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        """The same model every time, in evaluation mode."""
        torch.manual_seed(0)
        model: Any = self.make()
        model.set_attn_implementation(attention)
        # Random decoders of few layers hardly look at anything: larger weights make their attention matter.
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2 and "embed" not in name:
                    weight.mul_(3.0)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        return model.to(dtype).eval()

    def count(self, letter: str) -> int:
        """Visual tokens of a picture, structural ones among them."""
        return self.pictures[letter].total

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt: "t4 A t3" is four text tokens, picture A, three text tokens."""
        ids: list[int] = []
        for number, piece in enumerate(prompt.split()):
            if piece[0] == "t":
                generator = torch.Generator().manual_seed(zlib.crc32(f"{number} {piece}".encode()))
                length = int(piece[1:].split("'")[0])
                ids += torch.randint(TEXT_IDS.start, TEXT_IDS.stop, (length,), generator=generator).tolist()
            else:
                ids += [self.image_token] * self.count(piece)
        return ids

    def inputs(self, *prompts: str, side: str = "left") -> dict[str, torch.Tensor]:
        """A padded batch, as a processor would return it."""
        rows = [self.ids(prompt) for prompt in prompts]
        longest = max(len(row) for row in rows)
        pads = [[PAD] * (longest - len(row)) for row in rows]
        ones = [[1] * len(row) for row in rows]
        zeros = [[0] * len(pad) for pad in pads]

        def pad(values: list[list[int]], fills: list[list[int]]) -> torch.Tensor:
            joined = zip(fills, values) if side == "left" else zip(values, fills)
            return torch.tensor([first + second for first, second in joined])

        inputs = {"input_ids": pad(rows, pads), "attention_mask": pad(ones, zeros)}
        if self.token_types:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.image_token).int()
        letters = "".join(piece for prompt in prompts for piece in prompt.split() if piece[0] != "t")
        return inputs | (self.pixels(letters) if letters else {})


def grid(height: int, width: int) -> Layout:
    """The layout of a picture that is one grid of visual tokens."""
    return Layout((Segment(1, height, width),))


def picture(letter: str, channels: int, height: int, width: int) -> torch.Tensor:
    """The same smooth random picture every time, `(channels, height, width)`."""
    generator = torch.Generator().manual_seed(ord(letter))
    coarse = torch.randn(1, channels, height // 7, width // 7, generator=generator)
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0] * 2


def make_llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=84,
                patch_size=14,
            ),
            text_config=LlamaConfig(
                vocab_size=128,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
            ),
            image_token_id=5,
        )
    )


def llava_pixels(letters: str) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack([picture(letter, 3, 84, 84) for letter in letters])}


def cls_attention(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The row of [CLS], without [CLS] itself."""
    return list(maps[0].mean(1)[:, 0, 1:])


def clip_keys(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(attention.k_proj(hidden)[:, 1:].unflatten(-1, (4, 8)))


def clip_interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """CLIP given a smaller picture, its position embeddings interpolated."""
    small = interpolate(picture(letter, 3, 84, 84)[None], size=(rows * 14, columns * 14), mode="area")
    return model.model.get_image_features(small, interpolate_pos_encoding=True, return_dict=True).pooler_output[0]


def clip_enlarged(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    small = interpolate(picture(letter, 3, 84, 84)[None], size=(rows * 14, columns * 14), mode="area")
    return model.model.get_image_features(enlarged(small, 84, 84), return_dict=True).pooler_output[0]


def enlarged(small: Tensor, height: int, width: int) -> Tensor:
    return interpolate(small, size=(height, width), mode="bicubic", align_corners=False, antialias=False)


def make_llava_next() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=56,
                patch_size=14,
            ),
            text_config=LlamaConfig(
                vocab_size=128,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
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


def crops_interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """CLIP given smaller crops; as much of the tiles is padding as at full size."""
    small = interpolate(llava_next_crops(letter), size=(rows * 14, columns * 14), mode="area")
    hidden = model.model.vision_tower(small, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    full = LLAVA_NEXT_PICTURES[letter].segments[1]
    visible = max(1, full.h * rows // 4), max(1, full.w * columns // 4)
    # How much each tile shows doesn't matter here, only how many there are.
    heights = (visible[0], *(0,) * (len(full.rows) - 1))
    widths = (visible[1], *(0,) * (len(full.columns) - 1))
    projected = model.model.multi_modal_projector(hidden[-2][:, 1:])
    return with_newlines(model, projected, tiled((rows, columns), heights, widths))


def crops_enlarged(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    small = interpolate(llava_next_crops(letter), size=(rows * 14, columns * 14), mode="area")
    sizes = torch.tensor([LLAVA_NEXT_SIZES[letter]])
    return model.model.get_image_features(enlarged(small, 56, 56)[None], sizes, return_dict=True).pooler_output[0]


QWEN_TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
QWEN_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}


def make_qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "patch_size": 14}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=QWEN_TEXT, **QWEN_TOKENS))


def make_qwen2_5_vl() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [2],
        "patch_size": 14,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, text_config=QWEN_TEXT, **QWEN_TOKENS)
    )


QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
    "patch_size": 14,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}
QWEN3_TEXT = QWEN_TEXT | {
    "head_dim": 16,
    "rope_parameters": QWEN_TEXT["rope_parameters"] | {"mrope_interleaved": True},
}


def make_qwen3_vl() -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(vision_config=QWEN3_VISION, text_config=QWEN3_TEXT, **QWEN_TOKENS)
    )


def make_qwen3_vl_moe() -> nn.Module:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = QWEN3_TEXT | {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(vision_config=QWEN3_VISION, text_config=text, **QWEN_TOKENS)
    )


QWEN_PICTURES = {"A": grid(4, 6), "B": grid(5, 3), "C": grid(3, 3)}


def qwen_picture(letter: str) -> Tensor:
    (segment,) = QWEN_PICTURES[letter].segments
    return picture(letter, 3, segment.h * 28, segment.w * 28)


def qwen_pixels(letters: str) -> dict[str, torch.Tensor]:
    return qwen_patches([qwen_picture(letter) for letter in letters])


def qwen_patches(images: list[Tensor]) -> dict[str, Tensor]:
    """Patches in the order that the processor puts them in, written out with loops."""
    patches, grids = [], []
    for image in images:
        rows, columns = (side // 14 for side in image.shape[1:])
        grids.append([1, rows, columns])
        for row in range(0, rows, 2):
            for column in range(0, columns, 2):
                for down in (0, 1):
                    for right in (0, 1):
                        top, left = (row + down) * 14, (column + right) * 14
                        patch = image[:, top : top + 14, left : left + 14]
                        patches.append(patch[:, None].expand(-1, 2, -1, -1).flatten())
    return {"pixel_values": torch.stack(patches), "image_grid_thw": torch.tensor(grids)}


def token_order(grids: Tensor) -> Tensor:
    """Where each visual token stands in window order; windows are 2 x 2 tokens here. Written with loops."""
    places: dict[tuple[int, int, int], int] = {}
    for image, (_, rows, columns) in enumerate(grids.tolist()):
        rows, columns = rows // 2, columns // 2
        for top in range(0, rows, 2):
            for left in range(0, columns, 2):
                for row in range(top, min(top + 2, rows)):
                    for column in range(left, min(left + 2, columns)):
                        places[image, row, column] = len(places)
    return torch.tensor([places[key] for key in sorted(places)])


def attention_of_patches(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of every map, summed; then four patches to a token, as a share of all that the image gives."""
    tokens = torch.cat([each.mean(1).sum(1).flatten() for each in maps]).view(-1, 4).sum(1)
    return [image / (4 * len(image)) for image in tokens.split(counts_of(inputs))]


def attention_of_windows(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The same, where the encoder works on patches in window order."""
    tokens = torch.cat([each.mean(1).sum(1).flatten() for each in maps]).view(-1, 4).sum(1)
    ordered = tokens[token_order(inputs["image_grid_thw"])]
    return [image / (4 * len(image)) for image in ordered.split(counts_of(inputs))]


def keys_of_patches(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Before rotary embedding, averaged over the four patches of a token."""
    keys = attention.qkv(hidden).view(len(hidden) // 4, 4, 3, 4, 8)[:, :, 1].mean(1)
    return list(keys.split(counts_of(inputs)))


def keys_of_windows(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = torch.cat(keys_of_patches(attention, hidden, inputs))
    return list(keys[token_order(inputs["image_grid_thw"])].split(counts_of(inputs)))


def counts_of(inputs: dict[str, Tensor]) -> list[int]:
    return [int(patches) // 4 for patches in inputs["image_grid_thw"].prod(1)]


def qwen_smaller(letter: str, rows: int, columns: int) -> dict[str, Tensor]:
    small = interpolate(qwen_picture(letter)[None], size=(rows * 28, columns * 28), mode="area")[0]
    return qwen_patches([small])


def qwen_exact(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """The model given a smaller picture."""
    return model.model.get_image_features(**qwen_smaller(letter, rows, columns), return_dict=True).pooler_output[0]


def qwen_enlarged(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    image = qwen_picture(letter)
    small = interpolate(image[None], size=(rows * 28, columns * 28), mode="area")
    pixels = qwen_patches([enlarged(small, *image.shape[1:])[0]])
    return model.model.get_image_features(**pixels, return_dict=True).pooler_output[0]


CLIP_RESIZED = {"interpolate": clip_interpolated, "enlarge": clip_enlarged}
QWEN_RESIZED = {"exact": qwen_exact, "enlarge": qwen_enlarged}


def qwen_row(name: str, make: Callable[[], nn.Module], windows: bool) -> Row:
    return Row(
        name,
        make,
        image_token=5,
        pictures=QWEN_PICTURES,
        pixels=qwen_pixels,
        token_types=True,
        attention=attention_of_windows if windows else attention_of_patches,
        keys=keys_of_windows if windows else keys_of_patches,
        resized=QWEN_RESIZED,
        smaller=qwen_smaller,
    )


ROWS = (
    Row(
        "llava",
        make_llava,
        image_token=5,
        pictures={letter: grid(6, 6) for letter in "ABC"},
        pixels=llava_pixels,
        token_types=False,
        attention=cls_attention,
        keys=clip_keys,
        resized=CLIP_RESIZED,
    ),
    Row(
        "llava_next",
        make_llava_next,
        image_token=5,
        pictures=LLAVA_NEXT_PICTURES,
        pixels=llava_next_pixels,
        token_types=False,
        attention=crop_attention,
        keys=crop_keys,
        resized={"interpolate": crops_interpolated, "enlarge": crops_enlarged},
    ),
    qwen_row("qwen2_5_vl", make_qwen2_5_vl, windows=True),
    qwen_row("qwen2_vl", make_qwen2_vl, windows=False),
    qwen_row("qwen3_vl", make_qwen3_vl, windows=False),
    qwen_row("qwen3_vl_moe", make_qwen3_vl_moe, windows=False),
)
