"""Command A Vision: SigLIP over tiles of an image, then over all of it.  Cohere 2025."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.errors import UnsupportedFamily
from foveate.families.arranged_tiles import ArrangedTiles, arrangements, tiles_by_end
from foveate.families.config_fields import kind_of, read_number
from foveate.families.decoder import rotate_neighbours
from foveate.families.family import Capture
from foveate.families.registry import register_family
from foveate.families.siglip_tiles import SiglipTiles
from foveate.families.tiling import TileGrid
from foveate.families.vision_shape import VisionShape
from foveate.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Cohere2Vision(ArrangedTiles, SiglipTiles):
    """Cohere2 Vision with a SigLIP encoder: an image in tiles and then as a whole, no [CLS].

    A line break, as a text token, follows each tile. This text is no part of the image, and always stays. An image ends
    where what follows a tile is what follows the prompt's last one. How tiles lie is not among the processor's outputs:
    it is the arrangement in which they make the picture of the last tile. Tiles that make none are an image each.
    Position ids are one-dimensional.

    Most layers of the decoder see a window; the others see all earlier columns and know no positions.
    """

    name = "cohere2_vision"
    title = "Cohere2 Vision"
    core_class = "Cohere2VisionModel"
    encoders = ("siglip_vision_model",)
    places = ("pixels", "features", "input", "decoder")
    words_between_tiles = True
    checkpoints: ClassVar[tuple[str, ...]] = ("CohereLabs/command-a-vision-07-2025",)
    decoders: ClassVar[tuple[str, ...]] = ("cohere2",)
    """The `model_type` of the decoders that it takes."""
    end: ClassVar[int] = 2
    """How many tokens after the last tile of an image no other tile has: the line break, and the mark of the end."""

    def check_config(self) -> None:
        """Check that the encoder is SigLIP's, and that the decoder is Cohere's, whose positions are its own."""
        self.check_encoder()
        kind = kind_of(self.decoder_config)
        if kind not in self.decoders:
            known = f"{' or '.join(self.decoders)} is"
            raise UnsupportedFamily(f"{self.title} with a decoder of type {kind} is not supported; {known}")

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return read_number(self.config, "downsample_factor")

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the tiles of an image of `height` x `width` pixels: up to 12, so that it is scaled least."""
        return self._cut(*_least_scaled(height, width, self.edge))

    def _cut(self, rows: int, columns: int) -> Layout:
        """Return the layout of an image of so many tiles, and of the whole of it if they are two and more."""
        count = rows * columns
        return self.tiled(TileGrid(count + 1, rows, columns) if count > 1 else TileGrid(), self.tile_side)

    @property
    def projector_widths(self) -> tuple[int, ...]:
        """The width of what the projector's first layer makes: values, and as many gates beside them."""
        return (read_number(self.config, "alignment_intermediate_size") // 2,)

    def vision_shape(self) -> VisionShape:
        """Read SigLIP's sizes, and those of a projector with a gate."""
        return replace(super().vision_shape(), gated_projector=True)

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """The SigLIP encoder."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def feature_module(self) -> nn.Module:
        """The first layer of the projector's MLP, which reads the patches of a token side by side."""
        return self.core.multi_modal_projector.linear_1  # pyright: ignore

    @property
    def projected_module(self) -> nn.Module:
        """The projector: pixel shuffle and MLP."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The projector."""
        return (self.projected_module,)

    # The decoder

    def rotate(self, layer: int, values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the rotary embedding, which turns neighbours of a head; only layers of Cohere2 with windows have it."""
        turns = kind_of(self.decoder_config) != "cohere2" or self.layer_kinds()[layer] == "sliding_attention"
        return rotate_neighbours(values, cos, sin) if turns else values

    # Tiles

    def tiles_of_images(self, input_ids: Tensor, tokens: Sequence[int]) -> list[int] | None:
        """Find the last tile of each image by what follows it."""
        return tiles_by_end(input_ids, self.image_token, tokens, self.end)

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Average the pixels of each tile down to its target grid; "enlarge" enlarges them to their size again."""
        found = super().resized_inputs(inputs, layouts, sizes, mode)
        return found if mode == "enlarge" else {**found, "interpolate_pos_encoding": True}

    # Features

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the patches of each token side by side, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return self.by_image(capture.features.flatten(1, 2), capture)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return self.by_image(capture.projected.flatten(1, 2), capture)

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's MLP, whose second half is a gate."""
        projector: Any = self.projected_module
        values, gate = projector.linear_1(features).chunk(2, dim=-1)
        return projector.linear_2(projector.act(gate) * values)


def _least_scaled(height: int, width: int, edge: int) -> tuple[int, int]:
    """Return the rows and columns of the tiles into which an image is scaled up the least, or else down the least.

    >>> _least_scaled(480, 640, 512), _least_scaled(100, 100, 512), _least_scaled(3000, 4000, 512)
    ((1, 2), (1, 1), (3, 4))
    """
    shapes = arrangements()
    scales = [min(columns * edge / width, rows * edge / height) for rows, columns in shapes]
    enough = [scale for scale in scales if scale >= 1]
    return shapes[scales.index(min(enough) if enough else max(scales))]
