"""Gemma 3: a SigLIP encoder whose patches are averaged to 16 x 16 tokens.  Gemma Team 2025, arXiv 2503.19786."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import UnsupportedFamily
from foveate.families.config_fields import read_number
from foveate.families.family import Capture
from foveate.families.placement import weights_at_hand
from foveate.families.registry import register_family
from foveate.families.siglip import SiglipOutput
from foveate.families.vision_shape import VisionShape
from foveate.families.wrappers import generator_of
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Segment, Signal
from foveate.transformers_api import passes_types_from_start

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Gemma3(SiglipOutput):
    """Gemma 3 with a SigLIP tower: the mean of each square of patches is a visual token.

    Every image has the same grid. Crops of pan and scan are images of their own, with text between them. The tokens of
    an image see each other in both directions. Position ids are one-dimensional.

    `EncoderAttention` is the attention that the patches of a token receive, as a share of all attention between the
    image's patches. "interpolate" gives the encoder a smaller image and interpolates its position embeddings, so that
    fewer tokens come out; "enlarge" shrinks the image and enlarges it again, which saves no token.
    """

    name = "gemma3"
    title = "Gemma 3"
    core_class = "Gemma3Model"
    places = ("pixels", "features", "input", "decoder")
    outside_encoder = "patches are averaged in squares after its encoder, which merging patches would break up"
    block_types = ("token_type_ids",)
    example: ClassVar[Mapping[str, Any]] = {"mm_tokens_per_image": 49}
    checkpoints: ClassVar[tuple[str, ...]] = (
        "google/gemma-3-4b-it",
        "google/gemma-3-12b-it",
        "google/gemma-3-27b-it",
        "google/gemma-3-4b-pt",
        "google/gemma-3-12b-pt",
        "google/gemma-3-27b-pt",
    )

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        generator = generator_of(model, self.core)
        self.blocks_after_cache = passes_types_from_start(generator, *self.block_types)  # pyright: ignore

    def check_config(self) -> None:
        """Check that the encoder is SigLIP's and that its patches make the square of tokens that an image has."""
        super().check_config()
        vision, tokens = self.config.vision_config, read_number(self.config, "mm_tokens_per_image")
        patches = read_number(vision, "image_size") // read_number(vision, "patch_size")
        if isqrt(tokens) ** 2 != tokens or patches % isqrt(tokens):
            raise UnsupportedFamily(
                f"{self.title} with {tokens} tokens per image (mm_tokens_per_image) and {patches} x {patches} patches "
                "is not supported; a square of tokens with equally many patches each is"
            )

    # What the configuration alone tells

    @property
    def side(self) -> int:
        """Visual tokens along one side of an image."""
        return isqrt(read_number(self.config, "mm_tokens_per_image"))

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        vision = self.config.vision_config
        return read_number(vision, "image_size") // read_number(vision, "patch_size") // self.side

    @property
    def token_side(self) -> int:
        """Pixels along one side of a visual token."""
        return super().token_side * self.merge

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the grid of patches: `merge` x `merge` of them make one visual token."""
        (grid,) = layout.segments
        return (Segment(1, grid.h * self.merge, grid.w * self.merge),)

    def vision_shape(self) -> VisionShape:
        """Read SigLIP's sizes; the projector is one matrix, which reads the mean of a token's patches."""
        return replace(
            super().vision_shape(), merge=self.merge, averaged=True, projector_widths=(), whole_projector=True
        )

    # Places in the model

    @property
    def feature_module(self) -> nn.Module:
        """The projector's norm, which reads the means of patches."""
        return self.core.multi_modal_projector.mm_soft_emb_norm  # pyright: ignore

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The projector with its norm."""
        return (self.core.multi_modal_projector,)  # pyright: ignore[reportReturnType]

    def recorded(self, output: Tensor) -> Tensor:
        """Return queries and keys with columns before heads: the norms get heads first."""
        return output.transpose(1, 2)

    # Encoding

    def tower_output(self, output: Any, capture: Capture) -> Any:
        """Put the patches of a smaller image into the upper left corner: the projector takes the full number alone."""
        (seen,) = capture.seen[0].segments
        if (seen.h, seen.w) == (self.side, self.side):
            return output
        patches: Tensor = output.last_hidden_state
        rows, columns, full = seen.h * self.merge, seen.w * self.merge, self.side * self.merge
        padding = (0, 0, 0, full - columns, 0, full - rows)
        whole = torch.nn.functional.pad(patches.unflatten(1, (rows, columns)), padding)
        output.last_hidden_state = whole.flatten(1, 2)
        return output

    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Repeat rows: `(images, N, D)`, of which a corner is filled -> `(images, N, D)`."""
        (seen,) = capture.seen[0].segments
        corner = _corner(seen.h, seen.w, self.side)
        return super().grow(output, capture, [corner[rows] for rows in index])

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the means of patches, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return self._filled(capture.features, capture)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return self._filled(capture.projected, capture)

    def _filled(self, values: Tensor, capture: Capture) -> tuple[Tensor, ...]:
        (seen,) = capture.seen[0].segments
        return values[:, _corner(seen.h, seen.w, self.side).to(values.device)].unbind(0)

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's norm and its matrix."""
        projector: Any = self.core.multi_modal_projector
        with weights_at_hand(projector):
            return torch.matmul(projector.mm_soft_emb_norm(features), projector.mm_input_projection_weight)

    # Signals

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention received `(N,)`, which sums to 1 per image, or keys `(N, D_key)`, means of patches."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        (grid,) = capture.seen[0].segments
        patches = self.crop_signal(signal, capture)
        blocks = patches.unflatten(1, (grid.h, self.merge, grid.w, self.merge)).transpose(2, 3)
        blocks = blocks.flatten(3, 4).flatten(1, 2)
        reduced = blocks.sum(dim=2) if isinstance(signal, EncoderAttention) else blocks.mean(dim=2)
        return reduced.unbind(0)


def _corner(rows: int, columns: int, width: int) -> Tensor:
    """Return the numbers of the tokens in the upper left corner of a grid that is `width` wide: `(n,)` int64.

    >>> _corner(2, 2, 4)
    tensor([0, 1, 4, 5])
    """
    return (torch.arange(rows)[:, None] * width + torch.arange(columns)).flatten()
