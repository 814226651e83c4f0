"""What the Qwen-VL families share: several patches per visual token, M-RoPE, no [CLS]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from foveate.errors import FoveateError
from foveate.families.config_fields import read_number
from foveate.families.family import Capture, attention_received
from foveate.families.mrope import MRope
from foveate.families.pixels import resized_pixels
from foveate.families.vision_shape import VisionShape
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Segment, Signal
from foveate.transformers_api import rotate_patches

if TYPE_CHECKING:
    from torch import Tensor, nn


class QwenVL(MRope):
    """Images come as packed patches with `image_grid_thw`, and position ids have three axes: frame, row, column.

    There is no [CLS]: `EncoderAttention` is the attention that the patches of a token receive, as a share of all
    attention between the image's patches. "exact" resizes an image by averaging its pixels down to a smaller grid, as
    if the processor had been given a smaller image; "enlarge" enlarges it to its size again, which saves no token.
    """

    outside_encoder = "the merger after its encoder reads patches in blocks, which merging patches would break up"
    resize_modes = ("exact", "enlarge")
    gives_pixels = True
    pixel_inputs = ("pixel_values", "image_grid_thw")
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    pixel_limits: ClassVar[tuple[int, int]] = (3136, 12_845_056)
    """Pixels of a resized image, at least and at most, as preprocessor_config.json of the released checkpoints."""
    clip_pixel_limits: ClassVar[tuple[int, int]] = (100_352, 602_112)
    """Pixels of a resized frame, at least and at most, as the processor of clips has them by default."""

    @property
    def tower(self) -> nn.Module:
        """The vision transformer with its merger."""
        return self.core.visual  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The attention of each vision block."""
        return [block.attn for block in self.core.visual.blocks]  # pyright: ignore

    def encoder_projections(self, layer: int) -> Mapping[str, nn.Module]:
        """Return the projection of a vision block to queries, keys and values side by side: "qkv"."""
        attention: Any = self.encoder_attentions[layer]
        return {"qkv": attention.qkv}

    @property
    def feature_module(self) -> nn.Module:
        """The merger's MLP, which reads four normalised patches side by side."""
        return self.core.visual.merger.mlp  # pyright: ignore

    def project(self, features: Tensor) -> Tensor:
        """Apply the merger's MLP."""
        return self.core.visual.merger.mlp(features)  # pyright: ignore

    @property
    def projected_module(self) -> nn.Module:
        """The tower: it returns merged features in token order."""
        return self.tower

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The merger, and the mergers of DeepStack where a model has them."""
        visual: Any = self.core.visual
        return (visual.merger, *getattr(visual, "deepstack_merger_list", ()))

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the grid of an image of `height` x `width` pixels: sides rounded to whole tokens, within the limits.

        Raises:
            FoveateError: one side is more than 200 times as long as the other.
        """
        return Layout((Segment(1, *self.grid_within(height, width, self.pixel_limits)),))

    def clip_layout(self, frames: int, height: int, width: int) -> Layout:
        """Return the grid of a clip: `temporal_patch_size` frames make one, and each is resized as an image is."""
        if not self.clip_places:
            return super().clip_layout(frames, height, width)
        rows, columns = self.frame_grid(frames, height, width)
        return self.clip_of(ceil(frames / self.frames_per_patch), rows, columns)

    def frame_grid(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of visual tokens of each frame of a clip."""
        return self.grid_within(height, width, self.clip_pixel_limits)

    @property
    def frames_per_patch(self) -> int:
        """Frames that one patch of a clip holds."""
        return read_number(self.config.vision_config, "temporal_patch_size")

    def clip_of(self, frames: int, rows: int, columns: int) -> Layout:
        """Return the layout of a clip, in visual tokens: one run, whose frames have their numbers as times."""
        return Layout((Segment(frames, rows, columns),), times=tuple(range(frames)))

    def clip_grids(self, grids: Tensor) -> tuple[Layout, ...]:
        """Return the layout of each clip from its `(t, h, w)` in patches."""
        return tuple(self.clip_of(t, h // self.merge, w // self.merge) for t, h, w in grids.tolist())

    def clip_layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of each row `(t, h, w)` of `video_grid_thw`, which counts patches."""
        return self.timed(self.clip_grids(self._clip_grids(inputs)), inputs)

    def encode_clips(self, inputs: Mapping[str, Any]) -> Any:
        """Run the model's encoder and projector on the clips of `inputs`, and return the model's own container."""
        self._clip_grids(inputs)
        return super().encode_clips(inputs)

    def _clip_grids(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return `video_grid_thw`, `(clips, 3)` int64."""
        return self._grids(inputs, "video_grid_thw", "pixel_values_videos")

    @property
    def clip_encoder_inputs(self) -> tuple[str, ...]:
        """Pixels and grids."""
        return ("pixel_values_videos", "video_grid_thw")

    def grid_within(self, height: int, width: int, limits: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of visual tokens of a picture whose pixels are brought within limits.

        Raises:
            FoveateError: one side is more than 200 times as long as the other.
        """
        self.check_sides(height, width)
        factor = read_number(self.config.vision_config, "patch_size") * self.merge
        least, most = limits
        nearest = [round(side / factor) for side in (height, width)]
        rows, columns = (max(1, count) for count in nearest)
        if rows * columns * factor**2 > most:
            scale = sqrt(height * width / most)
            rows, columns = (max(1, floor(side / scale / factor)) for side in (height, width))
        elif nearest[0] * nearest[1] * factor**2 < least:
            scale = sqrt(least / (height * width))
            rows, columns = (ceil(side * scale / factor) for side in (height, width))
        return rows, columns

    def check_sides(self, height: int, width: int) -> None:
        """Check that no side of a picture is too long for the other.

        Raises:
            FoveateError: one is more than 200 times as long.
        """
        if max(height, width) > 200 * min(height, width):
            raise FoveateError(
                f"an image of {width} x {height} pixels is too long for {self.title}: its sides may be 200 to 1 at most"
            )

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the grid of patches: `merge` x `merge` of them make one visual token."""
        return tuple(Segment(grid.t, grid.h * self.merge, grid.w * self.merge) for grid in layout.segments)

    def _shape(self, width: int, mlp_width: int, **more: Any) -> VisionShape:
        """Return the encoder's sizes, with what all Qwen-VL have in common."""
        vision = self.config.vision_config
        patch, merge = read_number(vision, "patch_size"), read_number(vision, "spatial_merge_size")
        channels = read_number(vision, "in_channels", "in_chans")
        return VisionShape(
            depth=read_number(vision, "depth"),
            width=width,
            heads=read_number(vision, "num_heads"),
            mlp_width=mlp_width,
            patch_values=channels * read_number(vision, "temporal_patch_size") * patch**2,
            decoder_width=read_number(self.config.text_config, "hidden_size"),
            merge=merge,
            projector_widths=(width * merge**2,),
            rotary=True,
            **more,
        )

    def tower_pixels(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the patches, which the tower calls hidden states."""
        return args[0] if args else kwargs["hidden_states"]

    def pixels(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the four patches of each token side by side; they are neighbours, and tokens are in raster order."""
        assert capture.pixels is not None
        return capture.by_image(capture.pixels.view(-1, self.merge**2 * capture.pixels.shape[-1]))

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the images from `grid_thw`."""
        grids = args[1] if len(args) > 1 else kwargs["grid_thw"]
        layouts = self.grid_layouts(grids)
        return Capture(layouts=layouts, seen=layouts, extra={"grids": grids})

    def clip_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the clips from `grid_thw`."""
        grids = args[1] if len(args) > 1 else kwargs["grid_thw"]
        layouts = self.clip_grids(grids)
        return Capture(layouts=layouts, seen=layouts, extra={"grids": grids})

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return the layout with frames of `size` tokens."""
        if not layout.is_clip:
            return super().shrunk(layout, size)
        return replace(self.clip_of(layout.segments[0].t, *size), times=layout.times)

    def shrink(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        capture: Capture,
        sizes: Sequence[tuple[int, int]],
        mode: str,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Join the patches of each image, average its pixels down, and split it into patches again."""
        pixels = args[0] if args else kwargs["hidden_states"]
        grids: list[list[int]] = capture.extra["grids"].tolist()
        images, small_grids = [], []
        for patches, (t, h, w), (rows, columns) in zip(
            pixels.split([t * h * w for t, h, w in grids]), grids, sizes, strict=True
        ):
            image = self.unpatchify(patches, (t, h, w))
            side = int(self.config.vision_config.patch_size) * self.merge
            small = resized_pixels(image, (rows * side, columns * side), mode == "enlarge")
            if mode != "enlarge":
                h, w = rows * self.merge, columns * self.merge
            images.append(self.patchify(small, t).to(pixels.dtype))
            small_grids.append([t, h, w])
        new_grids = torch.tensor(small_grids, dtype=capture.extra["grids"].dtype, device=capture.extra["grids"].device)
        capture.extra["grids"] = new_grids
        capture.seen = tuple(
            self.shrunk(layout, (h // self.merge, w // self.merge))
            for layout, (_, h, w) in zip(capture.layouts, small_grids, strict=True)
        )
        return (torch.cat(images),), {**kwargs, "grid_thw": new_grids}

    def patchify(self, image: Tensor, frames: int) -> Tensor:
        """Split `(t * 2, C, H, W)` pixels into `(t * h * w, C * 2 * p * p)` patches, in the tower's order.

        The four patches of a visual token are neighbours; visual tokens are in raster order.
        """
        patch, merge = int(self.config.vision_config.patch_size), self.merge
        depth = self.frames_per_patch
        _, channels, height, width = image.shape
        blocks = image.view(
            frames, depth, channels, height // (patch * merge), merge, patch, width // (patch * merge), merge, patch
        )
        return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * depth * patch * patch)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Join patches of one image to `(t * 2, C, H, W)` pixels, the inverse of `patchify`."""
        patch, merge = int(self.config.vision_config.patch_size), self.merge
        depth = self.frames_per_patch
        t, h, w = grid
        blocks = patches.view(t, h // merge, w // merge, merge, merge, -1, depth, patch, patch)
        return blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * depth, -1, h * patch, w * patch)

    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Repeat merged rows until each image has its full count."""
        output.pooler_output = self.grown(output.pooler_output, capture, index)
        return output

    @staticmethod
    def grown(rows: Tensor, capture: Capture, index: Sequence[Tensor]) -> Tensor:
        """Repeat the rows of each image as `index` says: `(tokens, D)` of all images."""
        images = rows.split([layout.total for layout in capture.seen])
        return torch.cat([image[i.to(image.device)] for image, i in zip(images, index, strict=True)])

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return four normalised patches side by side, per image `(N, 4 * D_encoder)`."""
        assert capture.features is not None
        return self.in_token_order(capture.features, capture)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return merged features, per image `(N, D)`."""
        assert capture.projected is not None
        return capture.projected.split([layout.total for layout in capture.seen])

    def in_token_order(self, rows: Tensor, capture: Capture) -> tuple[Tensor, ...]:
        """Split rows of all images in the encoder's order `(tokens, ...)` by image, in token order.

        Most of these encoders keep patches in token order.
        """
        return rows.split([layout.total for layout in capture.seen])

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention received `(N,)`, which sums to 1 per image, or keys `(N, D_key)`, means of four patches.

        Attention is computed from the captured queries and keys of the layer, within its windows.
        """
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        call = capture.attention[layer]
        query, key = self.patch_queries_keys(attention, call)
        if isinstance(signal, EncoderKeys):
            # Before rotary embedding: methods compare the content of keys, not their positions.
            key = key.mean(dim=1) if signal.heads == "mean" else key.flatten(1)
            return self.in_token_order(key.view(-1, self.merge**2, key.shape[-1]).mean(dim=1), capture)
        query, key = rotate_patches(query, key, *call["position_embeddings"])
        received = self.received_in_windows(query, key, call["cu_seqlens"], attention.scaling, signal.heads)
        per_token = received.view(-1, self.merge**2).sum(dim=1)
        images = self.in_token_order(per_token, capture)
        return tuple(image / (image.shape[0] * self.merge**2) for image in images)

    def patch_queries_keys(self, attention: Any, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the queries and keys of the patches before rotary embedding, each `(patches, H, d)`.

        Args:
            attention: of the layer.
            call: what was captured of it: the outputs of `encoder_projections`, among other values.
        """
        query, key, _ = call["qkv"].unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        return query, key

    @staticmethod
    def received_in_windows(
        query: Tensor, key: Tensor, boundaries: Tensor, scale: float, heads: Literal["mean", "full"] = "mean"
    ) -> Tensor:
        """Compute the attention that each patch receives within its window: `(patches, H, d)` twice -> `(patches,)`.

        Windows of one length are one batch.
        """
        ends = boundaries.tolist()
        starts: dict[int, list[int]] = {}
        for start, end in pairwise(ends):
            starts.setdefault(end - start, []).append(start)
        received = query.new_zeros(query.shape[0], dtype=torch.float32)
        for length, begins in starts.items():
            rows = torch.tensor(begins, device=query.device)[:, None] + torch.arange(length, device=query.device)
            windows = attention_received(query[rows].transpose(1, 2), key[rows].transpose(1, 2), scale, heads=heads)
            received[rows.flatten()] = windows.flatten()
        return received
