"""Mistral Small 3.1 and later: Pixtral's encoder, a 2 x 2 merger, a break after each row.  Mistral AI 2025."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import read_number
from foveate.families.decoder import rotate
from foveate.families.family import Capture, Family, attention_received
from foveate.families.pixels import resized_pixels
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Segment, Signal, Structural

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Mistral3(Family):
    """Mistral 3 with a Pixtral encoder: images of any size, several patches per visual token, no [CLS].

    The tokenizer's [IMG_BREAK] stands between rows of visual tokens, as a text token: it is kept between rows of which
    something is kept. [IMG_END] after the last row always stays. Position ids are one-dimensional.

    `EncoderAttention` is the attention that the patches of a token receive, as a share of all attention between the
    image's patches. "exact" resizes an image by averaging its pixels down to a smaller grid, as if the processor had
    been given a smaller image; "enlarge" enlarges it to its size again, which saves no token.
    """

    name = "mistral3"
    title = "Mistral 3"
    checkpoints = (
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        "mistralai/Ministral-3-3B-Instruct-2512",
        "mistralai/Ministral-3-8B-Instruct-2512",
        "mistralai/Ministral-3-14B-Instruct-2512",
    )
    core_class = "Mistral3Model"
    encoders = ("pixtral",)
    outside_encoder = "the merger after its encoder reads patches in blocks, which merging patches would break up"
    resize_modes = ("exact", "enlarge")
    resizes_inputs = True
    pixel_inputs = ("pixel_values", "image_sizes")

    def check_config(self) -> None:
        """Check that the encoder is Pixtral's, and that one of its layers is read."""
        self.check_encoder()
        layer, depth = self.config.vision_feature_layer, read_number(self.config.vision_config, "num_hidden_layers")
        if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
            raise UnsupportedFamily(
                f"{self.title} that reads layers {layer} of its encoder (vision_feature_layer) is not supported; one "
                f"of its {depth} layers is"
            )

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return read_number(self.config, "spatial_merge_size")

    @property
    def token_side(self) -> int:
        """Pixels along one side of a visual token."""
        return read_number(self.config.vision_config, "patch_size") * self.merge

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the grid of an image of `height` x `width` pixels, shrunk to fit and then rounded up to tokens."""
        ratio = max(height, width) / read_number(self.config.vision_config, "image_size")
        if ratio > 1:
            size = f"{width} x {height}"
            height, width = floor(height / ratio), floor(width / ratio)
            if not height or not width:
                raise FoveateError(
                    f"an image of {size} pixels is too long for {self.title}: nothing of its shorter side is left when "
                    "it is shrunk to fit; crop it, or make its shorter side longer"
                )
        return _laid_out((height - 1) // self.token_side + 1, (width - 1) // self.token_side + 1)

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the grid of patches: `merge` x `merge` of them make one visual token."""
        (grid,) = layout.segments
        return (Segment(1, grid.h * self.merge, grid.w * self.merge),)

    needs_two: ClassVar[bool] = True
    """Whether an image alone must have two tokens or more: the model drops an axis of length 1."""

    @property
    def projector_widths(self) -> tuple[int, ...] | None:
        """Widths between the projector's layers: the merger's, then the decoder's."""
        text = self.config.text_config
        return read_number(self.config.vision_config, "hidden_size"), read_number(text, "hidden_size")

    def vision_shape(self) -> VisionShape:
        """Read Pixtral's sizes: MLPs with a gate, rotary embeddings."""
        return VisionShape.read(
            self.config,
            read_number(self.config.vision_config, "patch_size"),
            gated_mlp=True,
            merge=self.merge,
            projector_widths=self.projector_widths,
            rotary=True,
            joint=True,
        )

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """The Pixtral encoder."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The attention of each Pixtral layer."""
        return [layer.attention for layer in self.core.vision_tower.transformer.layers]  # pyright: ignore

    @property
    def feature_module(self) -> nn.Module:
        """The first layer of the projector's MLP, which reads merged patches."""
        return self.core.multi_modal_projector.linear_1  # pyright: ignore

    @property
    def projected_module(self) -> nn.Module:
        """The projector with its merger: it returns all images, one after another."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The projector with its merger."""
        return (self.core.multi_modal_projector,)  # pyright: ignore[reportReturnType]

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels, and the layer of the tower that is read."""
        return (*self.pixel_inputs, "vision_feature_layer")

    # Layouts

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return one grid for each `(height, width)` of `image_sizes`, which the processor has rounded to tokens."""
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise FoveateError(f"{self.title} needs image_sizes beside pixel_values; the processor returns both")
        side = self.token_side
        return tuple(_laid_out(height // side, width // side) for height, width in torch.as_tensor(sizes).tolist())

    # Encoding

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the images from their sizes."""
        layouts = self.layouts(kwargs)
        return Capture(layouts=layouts, seen=layouts)

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Average the pixels of each image down to its target grid; "enlarge" enlarges them to their size again.

        Raises:
            FoveateError: an image alone is to become one token, which the model itself can't read.
        """
        if self.needs_two and mode != "enlarge" and list(sizes) == [(1, 1)]:
            raise FoveateError(
                f"{self.title} can't read one image of one token alone, also without foveate; keep at least 2 tokens"
            )
        pixels: Tensor = inputs["pixel_values"]
        side = self.token_side
        images: list[Tensor] = []
        for image, layout, (rows, columns) in zip(pixels, layouts, sizes, strict=True):
            (grid,) = layout.segments
            # Images of different size are padded to one size.
            whole = image[None, :, : grid.h * side, : grid.w * side]
            small = resized_pixels(whole, (rows * side, columns * side), mode == "enlarge")
            images.append(small[0].to(pixels.dtype))
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        padded = [
            torch.nn.functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images
        ]
        shapes = torch.tensor([image.shape[1:] for image in images])
        return {**inputs, "pixel_values": torch.stack(padded), "image_sizes": shapes}

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return the layout of a grid of `size` rows and columns."""
        return _laid_out(*size)

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return merged patches, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return capture.by_image(capture.features)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return capture.by_image(capture.projected)

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's MLP."""
        projector: Any = self.core.multi_modal_projector
        return projector.linear_2(projector.act(projector.linear_1(features)))

    # Signals

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention received `(N,)`, which sums to 1 per image, or keys `(N, D_key)`, means of patches.

        Attention is computed from the captured queries and keys of the layer; patches attend to those of their image.
        """
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        call = capture.attention[layer]
        patches = [layout.content * self.merge**2 for layout in capture.seen]
        key = call["keys"][0].unflatten(-1, (-1, attention.head_dim))
        if isinstance(signal, EncoderKeys):
            # Before rotary embedding: methods compare the content of keys, not their positions.
            key = key.mean(dim=1) if signal.heads == "mean" else key.flatten(1)
            images = zip(key.split(patches), capture.seen, strict=True)
            return tuple(self._by_token(image, layout).mean(dim=1) for image, layout in images)
        query = call["queries"][0].unflatten(-1, (-1, attention.head_dim))
        cos, sin = (table[:, None] for table in call["position_embeddings"])
        queries, keys = rotate(query, cos, sin).split(patches), rotate(key, cos, sin).split(patches)
        shares: list[Tensor] = []
        for query, key, layout in zip(queries, keys, capture.seen, strict=True):
            heads = query.transpose(0, 1)[None], key.transpose(0, 1)[None]
            (received,) = attention_received(*heads, attention.scaling, heads=signal.heads)
            shares.append(self._by_token(received, layout).sum(dim=1) / received.shape[0])
        return tuple(shares)

    def _by_token(self, patches: Tensor, layout: Layout) -> Tensor:
        """Group what patches have `(P, ...)`, in raster order, by visual token: `(N, merge ** 2, ...)`."""
        (grid,), side = layout.segments, self.merge
        blocks = patches.unflatten(0, (grid.h, side, grid.w, side)).transpose(1, 2)
        return blocks.flatten(2, 3).flatten(0, 1)


def _laid_out(rows: int, columns: int) -> Layout:
    """Return a grid with a break after each row but the last one."""
    breaks = (
        Structural((row + 1) * columns + row, row * columns, (row + 1) * columns, is_text=True, between=True)
        for row in range(rows - 1)
    )
    return Layout((Segment(1, rows, columns),), tuple(breaks))
