"""InternVL 3 and 3.5: InternViT over tiles of an image, then over all of it.  Zhu et al. 2025, arXiv 2504.10479."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foveate.errors import UnsupportedFamily
from foveate.families.arranged_tiles import ArrangedTiles, nearest_shape
from foveate.families.config_fields import read_field, read_number
from foveate.families.family import Capture, cls_attention
from foveate.families.registry import register_family
from foveate.families.tiling import TileGrid
from foveate.families.vision_shape import VisionShape
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Signal

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class InternVl(ArrangedTiles):
    """InternVL with InternViT: an image in tiles and then as a whole, [CLS] dropped after the encoder.

    The tokens of all tiles of an image are one run of placeholders. How the tiles lie is not among the processor's
    outputs: it is the arrangement in which they make the picture of the last tile, the whole image. A run whose tiles
    make no such picture is one image for each tile. Position ids are one-dimensional.

    `EncoderAttention` is the attention of [CLS], summed over the patches of a token.
    """

    name = "internvl"
    title = "InternVL"
    checkpoints = (
        "OpenGVLab/InternVL3-1B-hf",
        "OpenGVLab/InternVL3-2B-hf",
        "OpenGVLab/InternVL3-8B-hf",
        "OpenGVLab/InternVL3-14B-hf",
        "OpenGVLab/InternVL3-38B-hf",
        "OpenGVLab/InternVL3-78B-hf",
        "OpenGVLab/InternVL3_5-1B-HF",
        "OpenGVLab/InternVL3_5-2B-HF",
        "OpenGVLab/InternVL3_5-4B-HF",
        "OpenGVLab/InternVL3_5-8B-HF",
        "OpenGVLab/InternVL3_5-14B-HF",
        "OpenGVLab/InternVL3_5-38B-HF",
        "OpenGVLab/InternVL3_5-30B-A3B-HF",
    )
    core_class = "InternVLModel"
    clips_are_images = True
    encoders = ("internvl_vision",)
    outside_encoder = "the pixel shuffle after its encoder reads blocks of patches, which merging would break up"

    def check_config(self) -> None:
        """Check that the encoder is InternViT, that one of its layers is read, and that [CLS] is dropped after it."""
        self.check_encoder()
        depth = read_number(self.config.vision_config, "num_hidden_layers")
        layer = self.config.vision_feature_layer
        if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
            raise UnsupportedFamily(
                f"{self.title} that reads layers {layer} of its encoder (vision_feature_layer) is not supported; one "
                f"of its {depth} layers is"
            )
        strategy = getattr(self.config, "vision_feature_select_strategy", "default")
        if strategy != "default":
            raise UnsupportedFamily(
                f"{self.title} that keeps [CLS] among the visual tokens (vision_feature_select_strategy={strategy!r}) "
                "is not supported; 'default' is"
            )
        ratio = read_field(self.config, "downsample_ratio")
        if not isinstance(ratio, int | float) or not 0 < ratio <= 1 or round(1 / ratio) != 1 / ratio:
            raise UnsupportedFamily(
                f"downsample_ratio of {self.title} is {ratio!r}; it must be 1 divided by a whole number"
            )

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return round(1 / self.config.downsample_ratio)

    @property
    def patch(self) -> int:
        """Pixels along one side of a patch."""
        return self._square("patch_size")

    @property
    def edge(self) -> int:
        """Pixels along one side of a tile."""
        return self._square("image_size")

    def _square(self, name: str) -> int:
        sides = read_field(self.config.vision_config, name)
        sides = sides if isinstance(sides, Sequence) else (sides, sides)
        if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int) or sides[0] < 1:
            raise UnsupportedFamily(f"{name} of {self.title} is {sides!r}; only squares are supported")
        return sides[0]

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the tiles of an image of `height` x `width` pixels: up to 12 in the arrangement nearest its shape."""
        rows, columns = nearest_shape(height, width, self.edge)
        cut = rows * columns
        grid = TileGrid(cut + 1, rows, columns) if cut > 1 else TileGrid()
        return self.tiled(grid, self.tile_side)

    def frame_layout(self, height: int, width: int) -> Layout:
        """Return one tile, whatever the size."""
        return self.tiled(TileGrid(), self.tile_side)

    def vision_shape(self) -> VisionShape:
        """Read InternViT's sizes."""
        return VisionShape.read(self.config, self.patch, merge=self.merge, marks=1)

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """The InternViT encoder."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The attention of each InternViT layer."""
        return [layer.attention for layer in self.core.vision_tower.encoder.layer]  # pyright: ignore

    def encoder_projections(self, layer: int) -> Mapping[str, nn.Module]:
        """Return the norms after the projections of an InternViT layer to "queries" and "keys", heads side by side."""
        attention: Any = self.encoder_attentions[layer]
        return {"queries": attention.q_norm, "keys": attention.k_norm}

    @property
    def feature_module(self) -> nn.Module:
        """The projector, which reads the patches of a token side by side."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def projected_module(self) -> nn.Module:
        """The projector, too: it returns the tiles of all images."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels, and the layer of the tower that is read."""
        return (*self.pixel_inputs, "vision_feature_layer", "vision_feature_select_strategy")

    # Tiles

    def tiles_of_images(self, input_ids: Tensor, tokens: Sequence[int]) -> list[int] | None:
        """Take each run of placeholders as one image."""
        runs = self.placeholder_runs(input_ids)
        if not tokens or any(run % tokens[0] for run in runs):
            return None
        return [run // tokens[0] for run in runs]

    # Encoding

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector: a norm and an MLP."""
        return self.projected_module(features)

    # Signals

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention of [CLS] `(N,)` within each token's tile, or keys `(N, D_key)`, means of patches."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        query, key = self.patch_heads(capture, layer)
        if isinstance(signal, EncoderKeys):
            key = key[:, 1:].mean(dim=2) if signal.heads == "mean" else key[:, 1:].flatten(2)
            return self.by_image(self.by_token(key).mean(dim=2), capture)
        weights = cls_attention(query[:, 0], key.transpose(1, 2), attention.scale, signal.heads)
        return self.by_image(self.by_token(weights[:, 1:]).sum(dim=2), capture)
