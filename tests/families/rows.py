"""The families of the contract suite: a tiny random model of the real architecture each, and inputs for it.

A family joins with one row at the end of this file.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TEXT_IDS = range(20, 120)
PAD = 0


@dataclass(frozen=True)
class Row:
    """One family: how to make a tiny model, and what a picture is to it.

    `pictures` gives for each letter the grid of visual tokens; `pixels` turns letters into the model's pixel inputs.
    """

    name: str
    make: Callable[[], nn.Module]
    image_token: int
    pictures: Mapping[str, tuple[int, int]]
    pixels: Callable[[str], dict[str, torch.Tensor]]
    token_types: bool

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
        """Visual tokens of a picture."""
        height, width = self.pictures[letter]
        return height * width

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


def make_qwen2_5_vl() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={
                "depth": 3,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 4,
                "out_hidden_size": 64,
                "window_size": 56,
                "fullatt_block_indexes": [2],
                "patch_size": 14,
            },
            text_config={
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
            },
            image_token_id=5,
            video_token_id=6,
            vision_start_token_id=7,
            vision_end_token_id=8,
        )
    )


QWEN_PICTURES = {"A": (4, 6), "B": (5, 3), "C": (3, 3)}


def qwen_pixels(letters: str) -> dict[str, torch.Tensor]:
    """Patches in the order that the processor puts them in, written out with loops."""
    patches, grids = [], []
    for letter in letters:
        rows, columns = (2 * side for side in QWEN_PICTURES[letter])
        image = picture(letter, 3, rows * 14, columns * 14)
        grids.append([1, rows, columns])
        for row in range(0, rows, 2):
            for column in range(0, columns, 2):
                for down in (0, 1):
                    for right in (0, 1):
                        top, left = (row + down) * 14, (column + right) * 14
                        patch = image[:, top : top + 14, left : left + 14]
                        patches.append(patch[:, None].expand(-1, 2, -1, -1).flatten())
    return {"pixel_values": torch.stack(patches), "image_grid_thw": torch.tensor(grids)}


ROWS = (
    Row("llava", make_llava, 5, {"A": (6, 6), "B": (6, 6), "C": (6, 6)}, llava_pixels, token_types=False),
    Row("qwen2_5_vl", make_qwen2_5_vl, 5, QWEN_PICTURES, qwen_pixels, token_types=True),
)
