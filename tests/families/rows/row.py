"""What a family brings to the contract suite: a tiny random model of the real architecture, and inputs for it."""

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.errors import FoveateError
from foveate.layout import Layout, Segment
from foveate.spec import parse
from foveate.tokens import EncoderAttention, EncoderKeys

INSTALLED = tuple(int(part) for part in transformers.__version__.split(".")[:2])
"""The version of transformers, major and minor."""

TEXT_IDS = range(20, 120)

PAD = 0

ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
"""Sizes of a tiny encoder."""
DECODER: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""Sizes of a tiny decoder."""


def reads_encoder(spec: str) -> bool:
    """Whether a text is a spec with a method that reads attention or keys of the encoder."""
    try:
        steps = parse(spec).steps
    except FoveateError:
        return False
    return any(isinstance(signal, EncoderAttention | EncoderKeys) for step in steps for signal in step.method.needs)


@dataclass(frozen=True)
class Clips:
    """What a clip is to a family.

    Attributes:
        token: the id of its placeholder.
        layouts: for each letter the layout of its visual tokens.
        pixels: turns letters into the model's inputs.
        written: turns a letter and its layout into token ids, other text that the processor writes with it included.
        type: the value of `mm_token_type_ids` at placeholders.
    """

    token: int
    layouts: Mapping[str, Layout]
    pixels: Callable[[str], dict[str, Tensor]]
    written: Callable[[Layout], list[int]]
    type: int = 2


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
        types: the name of the token types from which the model makes blocks that look in both directions, and their
            value at placeholders, elsewhere 0; None for a model that makes none.
        attention: from every eager attention map `(batch, heads, rows, columns)` of one encoder layer, and the call's
            inputs, the attention that each visual token gets: `(N,)` per image; None for a model without an encoder.
        keys: from an attention module of the encoder, its input, and the call's inputs, the keys of each visual token:
            `(N, heads, width)` per image; None for a model without an encoder.
        resized: per way of shrinking images: `(model, letter, rows, columns)` -> the features `(n, D)` of the picture
            shrunk to a grid of so many rows and columns.
        smaller: for a family that resizes exactly: `(letter, rows, columns)` -> pixel inputs of the smaller picture.
        blocks_after_cache: whether an image in a later turn looks in both directions, as one in the first turn does.
        images_see_later_ones: whether all images of a call look at each other, so that turns aren't the whole.
        later_type: the token type of text after the prompt.
        typed: tokens beside the placeholder that have its type: breaks and marks of images.
        rounding: by how much logits may differ where nothing is left out.
        break_token: the id of structural tokens that are text.
        written: turns a layout into token ids, for a family whose processor writes other text with a picture, too.
        needs: packages beside transformers without which its model can't be built.
        broken: a version of transformers whose model can't be given shorter images, (5, 20) for instance.
        full_attention: whether dropping a token is masking it. Where it isn't, because a window counts columns or a
            layer mixes what it reads into a memory, what is right is the model fed the kept embeddings and positions by
            hand; and padding after what a cache holds changes what follows, in the dense model, too.
        plain: whether every layer of the decoder sees all earlier columns and none behind, so that steps can act there.
        takes_back: whether a cache can give up its last tokens, as drafts need it; `generate` refuses drafts if not.
        logits_to_keep: whether the model takes `logits_to_keep`; one that doesn't makes the logits of all tokens.
        unanswerable: tokens beside the placeholder that no answer may hold: the dense model couldn't read them again.
        offloads: whether the dense model runs while its weights are offloaded.
        mixes_images: whether `generate` of the dense model mixes up the images of a prompt when it repeats them for
            beams or answers, so that these are refused.
        one_frame: whether the dense model's encoder takes images of one frame alone.
        compiles: whether torch.compile takes the dense model without a warning.
        uncounted: the share of a tiny encoder's and projector's work that the cost model leaves out: in a real one it
            is nothing.
        chunks: whether `generate` of the dense model takes `prefill_chunk_size`.
        made_up_devices: whether the dense model runs on devices that the tests make up; they can't stand for real ones
            where sizes of a tensor are given as tensors.
        words: special tokens of the tokenizer and their ids, the placeholder among them.
        processor: from a tokenizer, the model's configuration and "torchvision" or "pil", which computes with images:
            the family's real processor with its chat template.
        joins: whether the processor makes one tensor of images of different sizes; if not, the family joins them.
        clips: what clips are to it; None for a family that takes none.
        shown: letters that stand for others, for tests of images that are to run on clips.
    """

    name: str
    make: Callable[[], nn.Module]
    image_token: int
    pictures: Mapping[str, Layout]
    pixels: Callable[[str], dict[str, torch.Tensor]]
    token_types: bool
    attention: Callable[[list[Tensor], dict[str, Tensor]], list[Tensor]] | None
    keys: Callable[[Any, Tensor, dict[str, Tensor]], list[Tensor]] | None
    resized: Mapping[str, Callable[[Any, str, int, int], Tensor]]
    types: tuple[str, int] | None = None
    blocks_after_cache: bool = True
    images_see_later_ones: bool = False
    smaller: Callable[[str, int, int], dict[str, Tensor]] | None = None
    later_type: int = 0
    typed: tuple[int, ...] = ()
    rounding: float = 1e-6
    break_token: int = 0
    written: Callable[[Layout], list[int]] | None = None
    needs: tuple[str, ...] = ()
    broken: tuple[int, int] | None = None
    full_attention: bool = True
    plain: bool = True
    takes_back: bool = True
    logits_to_keep: bool = True
    unanswerable: tuple[int, ...] = ()
    offloads: bool = True
    chunks: bool = True
    made_up_devices: bool = True
    compiles: bool = True
    uncounted: float = 0.0
    mixes_images: bool = False
    one_frame: bool = False
    words: Mapping[str, int] = field(default_factory=dict)
    processor: Callable[[Any, Any, str], Any] | None = None
    joins: bool = True
    clips: Clips | None = None
    shown: Mapping[str, str] = field(default_factory=dict)

    def with_clips(self, letters: str = "") -> Self:
        """The same family, where A and B are clips and C is a picture, for tests of the contract."""
        assert self.clips is not None
        return replace(self, shown=dict(zip("AB", letters or self.clips.layouts)))

    def model(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        """The same model every time, in evaluation mode."""
        torch.manual_seed(0)
        model: Any = self.make()
        model.set_attn_implementation(attention)
        for module in model.modules():
            if hasattr(module, "fused_attn"):  # transformers doesn't tell timm
                module.fused_attn = attention != "eager"
        # Random decoders of few layers hardly look at anything: larger weights make their attention matter.
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2 and "embed" not in name:
                    weight.mul_(3.0)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        # A random model may answer with placeholders, which even the dense model then can't read again.
        suppressed = {self.image_token, *self.unanswerable} | ({self.clips.token} if self.clips else set())
        model.generation_config.suppress_tokens = sorted(suppressed)
        # Complex buffers stay, as they do when a model is loaded.
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
        return model.eval()

    def takes(self, spec: str) -> bool:
        """Whether the steps of a spec can act: inside the decoder only in a plain one, by signals where they are."""
        if self.keys is None and reads_encoder(spec):
            return False
        return self.plain or re.search(r"@[1-9]", spec) is None

    def select(self, keep: str) -> str:
        """A spec that selects by what is in the image: by attention of the encoder where there is one."""
        return f"{'divprune' if self.keys is None else 'cls'}:{keep}"

    def saves(self, spec: str) -> bool:
        """Whether a spec leaves fewer tokens: resizing alone does not where images are only enlarged again."""
        return not (spec.startswith("resize") and "+" not in spec and set(self.resized) == {"enlarge"})

    def count(self, letter: str) -> int:
        """Visual tokens of a picture, structural ones among them."""
        return self.layout(letter).total

    def layout(self, letter: str) -> Layout:
        """The layout of a picture or a clip."""
        letter = self.shown.get(letter, letter)
        return self.clips.layouts[letter] if self.is_clip(letter) else self.pictures[letter]  # pyright: ignore

    def is_clip(self, letter: str) -> bool:
        """Whether a letter stands for a clip."""
        return self.clips is not None and self.shown.get(letter, letter) in self.clips.layouts

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt: "t4 A t3" is four text tokens, picture A, three text tokens."""
        ids: list[int] = []
        for number, piece in enumerate(prompt.split()):
            if piece[0] == "t":
                generator = torch.Generator().manual_seed(zlib.crc32(f"{number} {piece}".encode()))
                length = int(piece[1:].split("'")[0])
                ids += torch.randint(TEXT_IDS.start, TEXT_IDS.stop, (length,), generator=generator).tolist()
            elif self.clips is not None and self.is_clip(piece):
                ids += self.clips.written(self.layout(piece))
            else:
                ids += self.image_ids(self.pictures[piece])
        return ids

    def image_ids(self, layout: Layout) -> list[int]:
        """Token ids of a picture as the processor writes them."""
        return self.bare(layout) if self.written is None else self.written(layout)

    def text(self, prompt: str) -> int:
        """Text tokens of a prompt, those that the processor writes with its pictures among them."""
        return len(self.ids(prompt)) - sum(self.count(piece) for piece in prompt.split() if piece[0] != "t")

    def bare(self, layout: Layout) -> list[int]:
        """Token ids of a picture alone: placeholders, and structural tokens that are text."""
        ids = [self.image_token] * layout.total
        for token in layout.structural:
            if token.is_text:
                ids[token.place] = self.break_token
        return ids

    def is_image(self, ids: Tensor) -> Tensor:
        """Mark the columns of images, text that is a structural token among them."""
        images = (ids == self.image_token) | ((ids == self.break_token) & (self.break_token > 0))
        return images if self.clips is None else images | (ids == self.clips.token)

    def image_columns(self, prompt: str) -> list[Tensor]:
        """The columns of each picture of a prompt, structural tokens among them."""
        columns = self.is_image(torch.tensor(self.ids(prompt))).nonzero()[:, 0]
        return list(columns.split([self.count(piece) for piece in prompt.split() if piece[0] != "t"]))

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
        inputs |= self.types_of(inputs["input_ids"])
        letters = "".join(piece for prompt in prompts for piece in prompt.split() if piece[0] != "t")
        shown = "".join(self.shown.get(letter, letter) for letter in letters if self.is_clip(letter))
        letters = "".join(letter for letter in letters if not self.is_clip(letter))
        inputs |= self.pixels(letters) if letters else {}
        return inputs | (self.clips.pixels(shown) if self.clips is not None and shown else {})

    def types_of(self, ids: Tensor) -> dict[str, Tensor]:
        """Token types of a prompt's ids, as a processor would return them; {} for none."""
        at_images = torch.isin(ids, torch.tensor([self.image_token, *self.typed])).int()
        if self.clips is not None:
            at_images += (ids == self.clips.token).int() * self.clips.type
        found = {"mm_token_type_ids": at_images} if self.token_types else {}
        return found if self.types is None else found | {self.types[0]: at_images * self.types[1]}

    def with_text(self, inputs: dict[str, Tensor], more: Tensor) -> dict[str, Tensor]:
        """Inputs with text `(B, n)` after them."""
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1)}
        longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
        for name in {"token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids"} & inputs.keys():
            types = inputs[name].new_full(more.shape, self.later_type)
            longer[name] = torch.cat([inputs[name], types], dim=1)
        return longer


def grid(height: int, width: int) -> Layout:
    """The layout of a picture that is one grid of visual tokens."""
    return Layout((Segment(1, height, width),))


def picture(letter: str, channels: int, height: int, width: int) -> torch.Tensor:
    """The same smooth random picture every time, `(channels, height, width)`."""
    generator = torch.Generator().manual_seed(ord(letter))
    coarse = torch.randn(1, channels, height // 7, width // 7, generator=generator)
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0] * 2


def enlarged(small: Tensor, height: int, width: int) -> Tensor:
    return interpolate(small, size=(height, width), mode="bicubic", align_corners=False, antialias=False)
