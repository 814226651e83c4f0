"""Gemma 4 without an encoder: squares of pixels become visual tokens by one matrix.  Google DeepMind 2026.

The model of `transformers`: `Gemma4UnifiedForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.families.config_fields import read_number
from foveate.families.family import Capture
from foveate.families.gemma4 import Gemma4
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape
from foveate.tokens import Signal

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Gemma4Unified(Gemma4):
    """The processor cuts an image into squares of pixels, in a grid of its shape; two matrices make a token of each.

    `image_position_ids` gives the column and row of each square, and tells real ones from padding.

    There are no encoder layers, so there is neither attention nor keys of them: methods that read them are refused.
    `@features` is what the projector's norm and its last matrix read. "exact" averages the pixels of an image down to a
    smaller grid, as if the processor had been given a smaller image; "enlarge" enlarges it to its size again, which
    saves no token.

    The tokens of an image, or of one frame of a clip, see each other in both directions, in layers of each kind.
    """

    name = "gemma4_unified"
    title = "Gemma 4 Unified"
    core_class = "Gemma4UnifiedModel"
    encoders = ("gemma4_unified_vision",)
    outside_encoder = "it has no encoder"
    block_layers = ("full_attention", "sliding_attention")
    column_inputs = ()
    checkpoints: ClassVar[tuple[str, ...]] = ("google/gemma-4-12B-it",)
    clips_since = (5, 23)

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Squares along one side of a visual token: one, since the processor has joined patches."""
        return 1

    @property
    def patch(self) -> int:
        """Pixels along one side of a square."""
        vision = self.config.vision_config
        return read_number(vision, "patch_size") * read_number(vision, "pooling_kernel_size")

    def vision_shape(self) -> VisionShape:
        """Read the sizes of the two matrices: of pixels, and the projector's."""
        vision = self.config.vision_config
        return VisionShape(
            depth=0,
            width=read_number(vision, "mm_embed_dim"),
            heads=1,
            mlp_width=0,
            patch_values=3 * self.patch**2,
            decoder_width=read_number(self.config.text_config, "hidden_size"),
            projector_widths=(),
        )

    def gives(self, signal: Signal) -> bool:
        """Return False: without layers there is neither attention nor keys."""
        return False

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """Two matrices and their norms, the last of them the projector."""
        return self.core.embed_vision  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """Nothing."""
        return ()

    @property
    def feature_module(self) -> nn.Module:
        """The projector's norm."""
        return self.projected_module.embedding_pre_projection_norm  # pyright: ignore[reportReturnType]

    @property
    def projected_module(self) -> nn.Module:
        """The projector: a norm and a matrix."""
        return self.tower.multimodal_embedder  # pyright: ignore[reportReturnType]

    # Layouts and features

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the images from the positions of their squares."""
        layouts = self.layouts({**dict(zip(self.pixel_inputs, args)), **kwargs})
        return Capture(layouts=layouts, seen=layouts)

    def clip_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the clips from the positions of their frames' squares."""
        return super().clip_call((), kwargs)

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return what the projector reads, per image `(N, D_features)`."""
        assert capture.features is not None
        return _without_padding(capture.features, capture)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return _without_padding(capture.projected, capture)

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Make none: `gives` says that there is none."""
        raise NotImplementedError


def _without_padding(rows: Tensor, capture: Capture) -> tuple[Tensor, ...]:
    """Return the real rows of each image or clip `(N, D)`, of all images or frames `(images, squares, D)`."""
    grids = [layout.segments[0] for layout in capture.seen]
    own = rows.split([grid.t for grid in grids])
    return tuple(frames[:, : grid.h * grid.w].flatten(0, 1) for frames, grid in zip(own, grids, strict=True))
