"""Gemma 4: images of any shape, whose patches are averaged in squares.  Google DeepMind 2026.

The model of `transformers`: `Gemma4ForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, sqrt
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError, UnsupportedFamily, shown
from foveate.families.config_fields import read_number
from foveate.families.decoder import rotate
from foveate.families.family import Capture, Family, attention_received
from foveate.families.pixels import patches_of, picture_of, resized_pixels
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape
from foveate.families.wrappers import generator_of
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Segment, Signal
from foveate.transformers_api import is_older, passes_types_from_start

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Gemma4(Family):
    """Gemma 4: the mean of each square of patches is a visual token; the grid follows the shape of the image.

    `image_position_ids` gives the column and row of each patch, and tells real ones from padding. Position ids of the
    decoder are one-dimensional. Audio passes untouched. Each frame of a clip is encoded as an image of its own, and
    stands in the prompt after its time, which is text and stays.

    Where `use_bidirectional_attention` is "vision" (26B-A4B and 31B), the tokens of an image, or of one frame of a
    clip, see each other in both directions in layers with a window, and nowhere else.

    The last layers of E2B and E4B make no keys and values: they read those of an earlier layer. A step inside the
    decoder must act no later than the layers that are read, or tokens that it drops would still be seen; it is refused
    elsewhere. Where decoder layers get an input of their own for each token (per-layer embeddings), a merged token
    gets that of the place where it stands.

    From 5.23 on, transformers runs the layers that make no keys and values on the prompt's last token alone when
    `generate` reads the prompt, with steps before the decoder, too. With a step inside the decoder they run on every
    token that is left, so a prompt is read faster only if few are. Costs are counted so.

    There is no [CLS]: `EncoderAttention` is the attention that the patches of a token receive, as a share of all
    attention between the image's patches. "exact" resizes an image by averaging its pixels down to a smaller grid, as
    if the processor had been given a smaller image; "enlarge" enlarges it to its size again, which saves no token.
    """

    name = "gemma4"
    title = "Gemma 4"
    core_class = "Gemma4Model"
    counts_padding = True
    encoders = ("gemma4_vision",)
    places = ("pixels", "features", "input", "decoder")
    outside_encoder = "patches are averaged in squares after its encoder, which merging patches would break up"
    resize_modes = ("exact", "enlarge")
    resizes_inputs = True
    pixel_inputs = ("pixel_values", "image_position_ids")
    video_inputs = ("pixel_values_videos", "video_position_ids", "num_frames_per_video")
    clip_places = ("features", "input", "decoder")
    block_layers = ("sliding_attention",)
    column_inputs = ("per_layer_input",)
    checkpoints: ClassVar[tuple[str, ...]] = (
        "google/gemma-4-E2B-it",
        "google/gemma-4-E4B-it",
        "google/gemma-4-26B-A4B-it",
        "google/gemma-4-31B-it",
        "google/gemma-4-E2B",
        "google/gemma-4-E4B",
        "google/gemma-4-26B-A4B",
        "google/gemma-4-31B",
    )
    most_tokens: ClassVar[int] = 280
    """Visual tokens of an image, at most, as the processors of the released models have it (`max_soft_tokens`)."""
    most_frame_tokens: ClassVar[int] = 70
    """The same of a frame of a clip."""

    clips_since: ClassVar[tuple[int, int]] = (5, 20)
    """The first version of transformers whose model can read a clip."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        generator = generator_of(model, self.core)
        self.blocks_after_cache = all(  # pyright: ignore[reportAttributeAccessIssue]
            passes_types_from_start(generator, name) for name in self.block_types
        )
        if is_older(self.clips_since):
            self.clip_places = ()  # pyright: ignore[reportAttributeAccessIssue]
            self.without_clips = (  # pyright: ignore[reportAttributeAccessIssue]
                "the installed transformers doesn't pass them on to this model; install "
                f"{'.'.join(map(str, self.clips_since))} or later"
            )

    def check_config(self) -> None:
        """Check the encoder, and that text is read forwards; note whether the tokens of an image see each other."""
        self.check_encoder()
        directions = getattr(self.config.text_config, "use_bidirectional_attention", None)
        if directions not in (None, "vision"):
            raise UnsupportedFamily(
                f"{self.title} with use_bidirectional_attention={directions!r}, whose text looks ahead, is not "
                "supported; None and 'vision' are"
            )
        if directions == "vision":
            self.block_types = ("mm_token_type_ids",)  # pyright: ignore[reportAttributeAccessIssue]

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return read_number(self.config.vision_config, "pooling_kernel_size")

    @property
    def patch(self) -> int:
        """Pixels along one side of a patch."""
        return read_number(self.config.vision_config, "patch_size")

    @property
    def token_side(self) -> int:
        """Pixels along one side of a visual token."""
        return self.patch * self.merge

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the grid of an image of `height` x `width` pixels: scaled to as many tokens as fit, in its shape."""
        return Layout((Segment(1, *self._grid_of(height, width, self.most_tokens)),))

    def clip_layout(self, frames: int, height: int, width: int) -> Layout:
        """Return the layout of a clip: each frame is a run after its time, and scaled as an image, to fewer tokens."""
        return _clip_of(frames, *self._grid_of(height, width, self.most_frame_tokens))

    def _grid_of(self, height: int, width: int, most: int) -> tuple[int, int]:
        """Return rows and columns of tokens of a picture that gets at most `most` of them."""
        side = self.token_side
        scale = sqrt(most * side**2 / (height * width))
        rows, columns = (floor(scale * length / side) for length in (height, width))
        if not rows:
            rows, columns = 1, min(width // height, most)
        elif not columns:
            rows, columns = min(height // width, most), 1
        return rows, columns

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the grid of patches, without those that fill it up: `merge` x `merge` of them make one token."""
        return tuple(Segment(grid.t, grid.h * self.merge, grid.w * self.merge) for grid in layout.segments)

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes; the projector is one matrix, which reads the mean of a token's patches."""
        vision = self.config.vision_config
        width, heads = read_number(vision, "hidden_size"), read_number(vision, "num_attention_heads")
        head, groups = read_number(vision, "head_dim"), read_number(vision, "num_key_value_heads")
        if heads * head != width or groups != heads:
            raise FoveateError(
                f"the encoder of this {self.title} has {heads} query heads and {groups} key heads, {head} wide, in "
                f"layers {width} wide; only as many heads of both as make this width can be counted"
            )
        return VisionShape(
            depth=read_number(vision, "num_hidden_layers"),
            width=width,
            heads=heads,
            mlp_width=read_number(vision, "intermediate_size"),
            patch_values=3 * self.patch**2,
            decoder_width=read_number(self.config.text_config, "hidden_size"),
            gated_mlp=True,
            merge=self.merge,
            averaged=True,
            averaged_by_product=True,
            projector_widths=(),
            rotary=True,
        )

    def key_layers(self) -> tuple[int, ...]:
        """Return the layer whose keys and values each layer reads: its own, or for the last ones the last before them.

        Of the layers before them, it is the last one of the same kind.
        """
        kinds = self.layer_kinds()
        first = len(kinds) - int(getattr(self.decoder_config, "num_kv_shared_layers", 0) or 0)
        last = {kind: layer for layer, kind in enumerate(kinds[:first])}
        return tuple(layer if layer < first else last.get(kind, layer) for layer, kind in enumerate(kinds))

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """The encoder, which averages its patches at the end."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The self-attention of each encoder layer."""
        return [layer.self_attn for layer in self.tower.encoder.layers]  # pyright: ignore

    def encoder_projections(self, layer: int) -> Mapping[str, nn.Module]:
        """Return the norms of a layer's "queries" and "keys"."""
        attention: Any = self.encoder_attentions[layer]
        return {"queries": attention.q_norm, "keys": attention.k_norm}

    @property
    def feature_module(self) -> nn.Module:
        """The projector's norm, which reads the means of patches."""
        return self.core.embed_vision.embedding_pre_projection_norm  # pyright: ignore

    @property
    def projected_module(self) -> nn.Module:
        """The projector: a norm and a matrix."""
        return self.core.embed_vision  # pyright: ignore[reportReturnType]

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The projector with its norm."""
        return (self.projected_module,)

    # Layouts

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return one grid per image, from the columns and rows of its patches.

        Raises:
            FoveateError: an input is missing, or isn't what the processor returns.
        """
        return self._grids(*(inputs.get(name) for name in self.pixel_inputs))

    def clip_layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of each clip, from the columns and rows of the patches of its frames.

        Raises:
            FoveateError: an input is missing, or isn't what the processor returns.
        """
        pixels, positions, counts = (inputs.get(name) for name in self.video_inputs)
        frames = self._grids(pixels, positions, names=self.video_inputs[:2])
        if not isinstance(counts, torch.Tensor) or counts.ndim != 1 or int(counts.sum()) != len(frames):
            found = counts.tolist() if isinstance(counts, torch.Tensor) else shown(counts)
            raise FoveateError(
                f"num_frames_per_video of {self.title} must say how many of the {len(frames)} frames of "
                f"pixel_values_videos each clip has, as a tensor (clips,), and is {found}; pass what its processor "
                "returned"
            )
        start, found = 0, list[Layout]()
        for count in counts.tolist():
            grids = {layout.segments[0] for layout in frames[start : start + count]}
            if len(grids) != 1:
                raise FoveateError(
                    f"clip {len(found)} (counted from 0) of {self.title} has {count} frames of {len(grids)} shapes; a "
                    "clip has one frame or more, all of one shape. Pass what its processor returned"
                )
            found.append(_clip_of(count, grids.pop().h, frames[start].segments[0].w))
            start += count
        return tuple(found)

    def encode_clips(self, inputs: Mapping[str, Any]) -> Any:
        """Run the model's encoder and projector on the clips of `inputs`, and return the model's own container."""
        self.clip_layouts(inputs)
        return super().encode_clips(inputs)

    def _grids(
        self, pixels: object, positions: object, *, names: Sequence[str] = ("pixel_values", "image_position_ids")
    ) -> tuple[Layout, ...]:
        """Return one grid per image of pixels `(images, P, values)`, from positions `(images, P, 2)` of patches."""
        if not isinstance(pixels, torch.Tensor) or not isinstance(positions, torch.Tensor):
            missing = [
                f"{name} is {'missing' if value is None else shown(value)}"
                for name, value in zip(names, (pixels, positions), strict=True)
                if not isinstance(value, torch.Tensor)
            ]
            raise FoveateError(
                f"{self.title} needs {names[0]} and {names[1]} as tensors, and {' and '.join(missing)}; pass what its "
                "processor returned"
            )
        if pixels.ndim != 3 or positions.shape != (*pixels.shape[:2], 2):
            raise FoveateError(
                f"{self.title} takes {names[0]} (images, patches, values) and {names[1]} (images, patches, 2), and "
                f"{tuple(pixels.shape)} and {tuple(positions.shape)} came; pass what its processor returned"
            )
        own = positions.cpu()
        counts = (own != -1).all(dim=-1).sum(dim=-1).tolist()
        return tuple(self._grid(image[:count]) for image, count in zip(own, counts, strict=True))

    def _grid(self, positions: Tensor) -> Layout:
        """Return the grid of one image, from the column and row of each patch `(P, 2)`."""
        columns, rows = (positions.amax(dim=0) + 1).tolist() if len(positions) else (0, 0)
        rest = torch.arange(rows * columns)
        expected = torch.stack([rest % max(1, columns), rest // max(1, columns)], dim=1)
        if rows % self.merge or columns % self.merge or not torch.equal(positions.long(), expected):
            raise FoveateError(
                f"the patches of an image of {self.title} must come row by row, padding after them, in a grid whose "
                f"sides are multiples of {self.merge}; {len(positions)} patches came in {rows} rows and {columns} "
                "columns. Pass the image_position_ids that its processor returned"
            )
        return Layout((Segment(1, rows // self.merge, columns // self.merge),))

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the images from the positions of their patches."""
        given = {**dict(zip(("pixel_values", "pixel_position_ids"), args)), **kwargs}
        layouts = self._grids(given.get("pixel_values"), given.get("pixel_position_ids"))
        return Capture(layouts=layouts, seen=layouts)

    def clip_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the clips from the positions of their frames' patches."""
        layouts = self.clip_layouts(kwargs)
        return Capture(layouts=layouts, seen=layouts)

    def attention_blocks(self, types: Tensor) -> Tensor:
        """Return the block of columns that look in both directions, -1 for none: each image, each frame of a clip."""
        return super().attention_blocks(((types == 1) | (types == 2)).int())

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Average the pixels of each image down to its target grid; "enlarge" enlarges them to their size again."""
        pixels, side = inputs["pixel_values"], self.token_side
        small: list[Tensor] = []
        grids: list[tuple[int, int]] = []
        for image, layout, (rows, columns) in zip(pixels, layouts, sizes, strict=True):
            (grid,) = self.encoder_grids(layout)
            picture = picture_of(image[: grid.count], (grid.h, grid.w), self.patch)
            small.append(
                patches_of(resized_pixels(picture, (rows * side, columns * side), mode == "enlarge"), self.patch)
            )
            grids.append((grid.h, grid.w) if mode == "enlarge" else (rows * self.merge, columns * self.merge))
        most = pixels.shape[1] if mode == "enlarge" else max(map(len, small))
        filled = [torch.nn.functional.pad(image, (0, 0, 0, most - len(image))) for image in small]
        positions = inputs["image_position_ids"].new_full((len(small), most, 2), -1)
        for own, (rows, columns) in zip(positions, grids, strict=True):
            place = torch.arange(rows * columns, device=own.device)
            own[: len(place), 0], own[: len(place), 1] = place % columns, place // columns
        return {**inputs, "pixel_values": torch.stack(filled).to(pixels.dtype), "image_position_ids": positions}

    def joined(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the pixel inputs of several prompts to those of one call; what fills an image up has position -1."""
        name = self.pixel_inputs[1]
        most = max(each[name].shape[1] for each in images)
        filled = [
            {**each, name: torch.nn.functional.pad(each[name], (0, 0, 0, most - each[name].shape[1]), value=-1)}
            for each in images
        ]
        return super().joined(filled)

    # Features and signals

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the means of patches, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return capture.by_image(capture.features)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return capture.by_image(capture.projected)

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's norm and its matrix."""
        return self.projected_module(features)

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention received `(N,)`, 1 per image or clip in sum, or keys `(N, D_key)`, means of patches."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        call = capture.attention[layer]
        found: list[Tensor] = []
        row = 0  # of the encoder: an image, or a frame of a clip
        for layout in capture.seen:
            (grid,) = self.encoder_grids(layout)
            frames: list[Tensor] = []
            for image in range(row, row + grid.t):
                # What fills up an image is masked.
                own = slice(grid.h * grid.w)
                keys = call["keys"][image, own]
                if isinstance(signal, EncoderKeys):
                    # Before rotary embedding: methods compare the content of keys, not their positions.
                    heads = keys.mean(dim=1) if signal.heads == "mean" else keys.flatten(1)
                    frames.append(self._by_token(heads, grid).mean(dim=1))
                    continue
                tables = [table[image, own, None] for table in call["position_embeddings"]]
                queries, keys = (_rotated(each, *tables) for each in (call["queries"][image, own], keys))
                keys = keys.repeat_interleave(attention.num_key_value_groups, dim=1)
                heads = queries.transpose(0, 1)[None], keys.transpose(0, 1)[None]
                (received,) = attention_received(*heads, attention.scaling, heads=signal.heads)
                frames.append(self._by_token(received, grid).sum(dim=1) / grid.count)
            found.append(torch.cat(frames))
            row += grid.t
        return tuple(found)

    def _by_token(self, patches: Tensor, grid: Segment) -> Tensor:
        """Group what patches have `(P, ...)`, in raster order, by token: `(N, merge ** 2, ...)`."""
        rows, columns = grid.h // self.merge, grid.w // self.merge
        blocks = patches.unflatten(0, (rows, self.merge, columns, self.merge)).transpose(1, 2)
        return blocks.flatten(2, 3).flatten(0, 1)


def _clip_of(frames: int, rows: int, columns: int) -> Layout:
    """Return the layout of a clip: each frame is a run."""
    runs = (rows * columns,) * frames if frames > 1 else ()
    return Layout((Segment(frames, rows, columns),), runs=runs, times=tuple(range(frames)))


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads `(P, H, d)` by their column in one half, and by their row in the other: tables `(P, 1, d)`."""
    halves = zip(heads.chunk(2, dim=-1), cos.chunk(2, dim=-1), sin.chunk(2, dim=-1), strict=True)
    return torch.cat([rotate(*half) for half in halves], dim=-1)
