"""Molmo2: a view of the whole image, then overlapping crops of it, pooled by attention.  Ai2 2026, arXiv 2601.10611."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import read_field, read_number
from foveate.families.family import Capture, Family, attention_received
from foveate.families.pixels import resized_pixels
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Segment, Signal, Structural

if TYPE_CHECKING:
    from torch import Tensor, nn

_MOST_CROPS = 8
"""Crops of an image, without the view of the whole, as the processors of all released models have it."""
_MARGINS = 8
"""Patches by which crops overlap, along each side."""
_POOL = 2
"""Patches along one side of a visual token."""

_Breaks = tuple[bool, ...]
"""Whether a break follows each row of the whole image, and each row of the crops."""


@register_family
class Molmo2(Family):
    """Molmo2: the whole image at low resolution, then the grid that overlapping crops make at high resolution.

    A token is what attention finds in 2 x 2 patches. The tokenizer's <im_col> follows each row, as a text token: it is
    kept with its row. Marks before and after each grid always stay. All image tokens of a prompt, breaks and marks
    among them, see each other in both directions. Position ids are one-dimensional.

    `EncoderAttention` is the attention that the patches of a token receive, as a share of all attention in their crop;
    patches of a crop that another crop shows better are in no token. "enlarge" shrinks each crop and enlarges it again,
    which saves no token: the encoder takes crops of one size alone.
    """

    name = "molmo2"
    title = "Molmo2"
    checkpoints: ClassVar[tuple[str, ...]] = ("allenai/Molmo2-4B", "allenai/Molmo2-8B", "allenai/Molmo2-O-7B")
    core_class = "Molmo2Model"
    since = (5, 20)
    encoders = ("molmo2_vision",)
    outside_encoder = "tokens are pooled from patches by their numbers, which merging patches would change"
    resize_modes = ("enlarge",)
    resizes_inputs = True
    counts_padding = True
    block_types = ("mm_token_type_ids",)
    pixel_inputs = ("pixel_values", "image_token_pooling", "image_grids", "image_num_crops")
    encoder_arguments: ClassVar[tuple[str, ...]] = ("image_token_pooling", "image_grids")

    def check_config(self) -> None:
        """Check that the encoder is the model's own, takes squares, and has the layers that are read.

        Raises:
            UnsupportedFamily: it is not, or has not.
        """
        self.check_encoder()
        size = list(read_field(self.config.vision_config, "image_size"))
        if len(size) != 2 or size[0] != size[1] or self.side <= _MARGINS:
            raise UnsupportedFamily(
                f"{self.title} with crops of {size} pixels (image_size) is not supported; squares of more than "
                f"{_MARGINS} patches along each side are"
            )
        depth, layers = read_number(self.config.vision_config, "num_hidden_layers"), self.levels
        if not layers or any(not -depth <= layer < depth for layer in layers):
            raise UnsupportedFamily(
                f"{self.title} that reads layers {list(layers)} of its encoder (vision_feature_layer) is not "
                f"supported; layers from {-depth} to {depth - 1} are, which it has"
            )

    # What the configuration alone tells

    @property
    def levels(self) -> Sequence[int]:
        """The encoder layers that are read, side by side."""
        return tuple(read_field(self.config.adapter_config, "vision_feature_layer"))

    @property
    def patch(self) -> int:
        """Pixels along one side of a patch."""
        return read_number(self.config.vision_config, "patch_size")

    @property
    def side(self) -> int:
        """Patches along one side of a crop."""
        return read_field(self.config.vision_config, "image_size")[0] // self.patch

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the two grids of an image of `height` x `width` pixels: up to 8 crops in the arrangement that fits."""
        window = self.side - _MARGINS
        margins = _MARGINS * self.patch
        crops = _tiling(height - margins, width - margins, window * self.patch)
        rows, columns = (-(-(each * window + _MARGINS) // _POOL) for each in crops)
        low = -(-self.side // _POOL)
        return _laid_out(low, low, rows, columns)

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the patches of the view of the whole, and of each crop."""
        crops = 1
        for high in layout.segments[1:]:
            rows, columns = ((_POOL * each - _MARGINS) // (self.side - _MARGINS) for each in (high.h, high.w))
            crops += rows * columns
        return (Segment(1, self.side, self.side),) * crops

    def vision_shape(self) -> VisionShape:
        """Read the sizes of the encoder, of the attention that pools patches, and of the projector with its gate."""
        return VisionShape.read(
            self.config,
            self.patch,
            merge=_POOL,
            levels=len(self.levels),
            attends=True,
            projector_widths=(read_number(self.config.adapter_config, "intermediate_size"),),
            gated_projector=True,
        )

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """The encoder, which sees each crop alone."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The self-attention of each encoder layer."""
        return [layer.self_attn for layer in self.tower.layers]  # pyright: ignore

    @property
    def feature_module(self) -> nn.Module:
        """The projector's MLP, which reads pooled patches."""
        return self.core.multi_modal_projector.image_projector  # pyright: ignore

    @property
    def projected_module(self) -> nn.Module:
        """The adapter: it pools patches and projects the tokens of all images."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The adapter."""
        return (self.projected_module,)

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Crops, the patches of each token, and the grids."""
        return ("pixel_values", *self.encoder_arguments)

    # The decoder

    def rotary(self, hidden: Tensor, position_ids: Tensor, layer: int) -> Any:
        """Return the rotary embedding of a layer: scaled in some layers, where others are not."""
        decoder: Any = self.decoder
        scaled = decoder.rope_types[layer] == "scaled"
        return (decoder.rotary_emb if scaled else decoder.rotary_emb_unscaled)(hidden, position_ids)

    def _attended(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what the attention of a layer reads: its input, where norms come after."""
        return hidden if self.decoder_config.norm_after else super()._attended(layer, hidden)

    def _projected(self, layer: int, which: str, hidden: Tensor) -> Tensor:
        """Return queries or keys; some models normalise all heads of a column together."""
        if self.decoder_config.qk_norm_type != "olmo":
            return super()._projected(layer, which, hidden)
        attention: Any = self.decoder_layers[layer].self_attn
        values = getattr(attention, f"{which}_proj")(self._attended(layer, hidden))
        return getattr(attention, f"{which}_norm")(values).unflatten(-1, (-1, attention.head_dim))

    # Layouts and types

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the two grids of each image from `image_grids`; `input_ids` tell whether breaks follow their rows.

        Raises:
            FoveateError: an input is missing, or doesn't fit the others.
        """
        given = [inputs.get(name) for name in self.encoder_inputs]
        tensors = [each for each in given if isinstance(each, torch.Tensor)]
        if len(tensors) < len(given):
            raise FoveateError(f"{self.title} needs {', '.join(self.encoder_inputs)}; pass what its processor returned")
        pixels, pooling, grids = tensors
        return self._laid_out(pixels, pooling, grids, inputs.get("input_ids"))

    def _laid_out(self, pixels: Tensor, pooling: Tensor, grids: Tensor, ids: Tensor | None) -> tuple[Layout, ...]:
        if pixels.ndim not in (3, 4) or pixels.shape[-2] != self.side**2 or grids.shape[1:] != (4,):
            raise FoveateError(
                f"{self.title} takes pixel_values (crops, {self.side**2} patches, values) and image_grids (images, 4), "
                f"and {tuple(pixels.shape)} and {tuple(grids.shape)} came; pass what its processor returned"
            )
        found = [tuple(each) for each in grids.tolist()]
        tokens = sum(low * across + rows * columns for low, across, rows, columns in found)
        # The frames of a clip come without crops.
        if any(min(each[:2]) < 1 for each in found) or pooling.shape[:1] != (tokens,):
            raise FoveateError(
                f"image_grids tells of {tokens} tokens, and image_token_pooling has the patches of {len(pooling)}; "
                "pass what the processor returned"
            )
        layouts = tuple(_laid_out(*each) for each in found)
        if ids is None:
            return layouts
        return tuple(
            layout if all(breaks) else _laid_out(*_sides(layout), breaks)
            for layout, breaks in zip(layouts, self._breaks(ids, layouts), strict=True)
        )

    def _breaks(self, input_ids: Tensor, layouts: Sequence[Layout]) -> list[_Breaks]:
        """Return for each image of a prompt whether breaks follow its rows, from what follows the first ones."""
        is_image = input_ids == self.image_token
        after = torch.nn.functional.pad(input_ids, (0, 1), value=-1)[:, 1:]
        followers: list[int] = after[is_image].tolist()
        nothing = {self.image_token, int(self.config.image_end_token_id)}
        found: list[_Breaks] = []
        begin = 0
        for layout in layouts:
            breaks: list[bool] = []
            for grid in layout.segments:
                end = begin + grid.w - 1
                # A prompt that holds less than these images is refused later on.
                breaks.append(end >= len(followers) or followers[end] not in nothing)
                begin += grid.count
            found.append(tuple(breaks))
        return found

    def token_types(self, input_ids: Tensor) -> Tensor:
        """Return 1 at placeholders, and at the marks and breaks of images."""
        names = ("image_start_token_id", "low_res_image_start_token_id", "image_end_token_id")
        marks = input_ids.new_tensor([getattr(self.config, name) for name in names])
        is_image = input_ids == self.image_token
        after = torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
        return (is_image | after | torch.isin(input_ids, marks)).int()

    def attention_blocks(self, types: Tensor) -> Tensor:
        """Return one block for all columns of images: `(B, S)` int64, -1 for text."""
        return torch.where(types == 1, 0, -1)

    # Encoding

    def joined(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the pixel inputs of several prompts; patches are counted through all of them."""
        found = {name: torch.cat([each[name] for each in images]) for name in images[0]}
        if {"image_token_pooling", "pixel_values"} <= found.keys():
            before = 0
            pooling: list[Tensor] = []
            for each in images:
                given = each["image_token_pooling"]
                pooling.append(torch.where(given >= 0, given + before, given))
                before += each["pixel_values"].shape[:-1].numel()
            found["image_token_pooling"] = torch.cat(pooling)
        return found

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        """Run the encoder and the adapter, once the form of the inputs is checked."""
        self.layouts(inputs)
        return super().encode(inputs)

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Note the patches of each token."""
        kwargs = {"pixel_values": args[0], **kwargs} if args else kwargs
        layouts = self.layouts(kwargs)
        return Capture(layouts, layouts, extra={"pooling": kwargs["image_token_pooling"]})

    def in_prompt(
        self, capture: Capture, order: Sequence[int], input_ids: Tensor | None
    ) -> tuple[Capture, Sequence[int]]:
        """Take breaks away that the prompt doesn't have."""
        if input_ids is None or not order:
            return capture, order
        breaks = dict(zip(order, self._breaks(input_ids, [capture.layouts[number] for number in order]), strict=True))
        lacking = {number: each for number, each in breaks.items() if not all(each)}
        if not lacking:
            return capture, order
        layouts = tuple(
            _laid_out(*_sides(layout), lacking[number]) if number in lacking else layout
            for number, layout in enumerate(capture.layouts)
        )
        # One object for equal prompts: plans are cached by it.
        captures: dict[Any, Capture] = capture.extra.setdefault("in_prompt", {})
        if layouts not in captures:
            others = {name: value for name, value in capture.extra.items() if value is not captures}
            captures[layouts] = replace(capture, layouts=layouts, seen=layouts, extra=others)
        return captures[layouts], order

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Shrink each crop as far as the whole image, and enlarge it to its size again.

        An image that keeps its size stays as it is: crops have no whole number of tokens, so it would be scaled a bit.
        """
        pixels: Tensor = inputs["pixel_values"]
        crops = pixels.flatten(0, -3).unflatten(1, (self.side, self.side)).unflatten(3, (self.patch, self.patch, -1))
        pictures = crops.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        counts = [len(self.encoder_grids(layout)) for layout in layouts]
        small = [
            image
            if (rows, columns) == (layout.segments[0].h, layout.segments[0].w)
            else resized_pixels(image, (rows * _POOL * self.patch, columns * _POOL * self.patch), enlarge=True)
            for image, layout, (rows, columns) in zip(pictures.split(counts), layouts, sizes, strict=True)
        ]
        cut = torch.cat(small).unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return {**inputs, "pixel_values": patches.reshape(pixels.shape).to(pixels.dtype)}

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return the layout as it is: no image leaves fewer tokens."""
        return layout

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return pooled patches, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return capture.by_image(capture.features)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return capture.by_image(capture.projected)

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's MLP."""
        return self.feature_module(features)

    # Signals

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention received `(N,)`, as a share in each crop, or keys `(N, D_key)`, means of patches."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        query, key = (
            capture.attention[layer][name].unflatten(-1, (-1, attention.head_dim)) for name in ("queries", "keys")
        )
        if isinstance(signal, EncoderKeys):
            patches = (key.mean(dim=2) if signal.heads == "mean" else key.flatten(2)).flatten(0, 1)
        else:
            rows = query.transpose(1, 2), key.transpose(1, 2)
            received = attention_received(*rows, attention.scaling, heads=signal.heads)
            patches = (received / received.shape[1]).flatten()[:, None]
        pooling: Tensor = capture.extra["pooling"].to(patches.device)
        there = (pooling >= 0).to(patches.dtype)[..., None]
        tokens = (patches[pooling.clamp(min=0)] * there).sum(dim=1)
        tokens = tokens / there.sum(dim=1) if isinstance(signal, EncoderKeys) else tokens[:, 0]
        return capture.by_image(tokens)


def _laid_out(low: int, across: int, rows: int, columns: int, breaks: _Breaks = (True, True)) -> Layout:
    """Return a grid of the whole image and one of its crops, with a break after each row of those that have breaks."""
    structural: list[Structural] = []
    runs: list[int] = []
    content = 0
    grids = [each for each in ((low, across), (rows, columns)) if all(each)]
    for (height, width), broken in zip(grids, breaks, strict=False):
        for _ in range(height):
            content += width
            if broken:
                structural.append(Structural(content + len(structural), content - width, content, is_text=True))
        runs.append(content + len(structural) - sum(runs))
    return Layout(tuple(Segment(1, *each) for each in grids), tuple(structural), tuple(runs))


def _sides(layout: Layout) -> tuple[int, int, int, int]:
    """Return rows and columns of both grids; 0 for one that isn't there."""
    low, *others = layout.segments
    high = others[0] if others else None
    return low.h, low.w, high.h if high else 0, high.w if high else 0


def _tiling(height: int, width: int, window: int) -> tuple[int, int]:
    """Return the rows and columns of windows that an image is scaled to: the least enlarged, or else the least shrunk.

    >>> _tiling(368, 528, 266), _tiling(100, 100, 266), _tiling(2000, 3100, 266)
    ((2, 2), (1, 1), (2, 4))
    """
    sides = range(1, _MOST_CROPS + 1)
    tilings = sorted(
        (each for each in product(sides, sides) if each[0] * each[1] <= _MOST_CROPS),
        key=lambda each: (each[0] * each[1], each[0]),
    )
    # In float32, and negative for images smaller than the margins, as the processor computes it.
    size = torch.tensor([height, width], dtype=torch.float32)
    scales = (torch.tensor(tilings, dtype=torch.int32) * window).to(torch.float32) / size
    least = scales.amin(dim=-1)
    if bool((least < 1).all()):
        return tilings[int(least.argmax())]
    return tilings[int(torch.where(least < 1, inf, least).argmin())]
