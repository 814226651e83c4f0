"""PerceptionLM: a Perception Encoder of timm over an image and its tiles.  Cho et al. 2025, arXiv 2504.13180."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from foveate.errors import UnsupportedFamily
from foveate.families.arranged_tiles import PREVIEW, arrangement
from foveate.families.config_fields import kind_of, read_number
from foveate.families.decoder import rotate_neighbours
from foveate.families.family import Capture, attention_received, cls_attention
from foveate.families.registry import register_family
from foveate.families.tiling import TiledFamily, TileGrid
from foveate.families.vision_shape import VisionShape
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Signal

if TYPE_CHECKING:
    from torch import Tensor, nn

_MOST_TILES = 36
"""Tiles of an image, without the whole one, as the processors of all released models have it."""


class _Tower(NamedTuple):
    """What an architecture of timm has if `model_args` doesn't say otherwise, and whether it has [CLS]."""

    patch: int
    heads: int
    mlp_ratio: float
    marks: int


_TOWERS: Mapping[str, _Tower] = {
    "vit_pe_core_large_patch14_336": _Tower(14, 16, 4.0, 1),
    "vit_pe_core_gigantic_patch14_448": _Tower(14, 16, 8960 / 1536, 0),
    "vit_pe_lang_large_patch14_448": _Tower(14, 16, 4.0, 1),
    "vit_pe_lang_gigantic_patch14_448": _Tower(14, 16, 8960 / 1536, 0),
}
_ARGUMENTS = {
    *("embed_dim", "depth", "img_size", "patch_size", "num_heads", "mlp_ratio"),
    *("global_pool", "use_post_transformer_norm", "init_values", "ref_feat_shape"),
}
"""The values of `model_args` after which the tower still works as described here."""


@register_family
class PerceptionLm(TiledFamily):
    """PerceptionLM: the whole image and then its tiles, seen by a Perception Encoder, [CLS] dropped after it.

    The encoder is a model of timm, which has to be installed. The projector's MLP runs on each patch, and a visual
    token is the mean of what it makes of 2 x 2 of them. At `@features` a token is these patches side by side.

    The tokens of all tiles of an image are one run of placeholders. `pixel_values` has the tiles of each image,
    `(images, tiles, channels, height, width)`. Images of different numbers of tiles fit into no such tensor: pass the
    tiles of all of them as if they were those of one, `(1, tiles, ...)`, and each run is taken as one image. How the
    tiles lie is not among the processor's outputs: it is the arrangement in which they make the picture of the first
    tile, the whole image. Tiles that make none, such as the frames of a clip, are an image without rows and columns of
    tiles. Position ids are one-dimensional.

    `EncoderAttention` is the attention of [CLS], summed over the patches of a token; where the encoder has no [CLS], as
    that of the 8B model, the attention that the patches receive, as a share of all attention in their tile.
    """

    name = "perception_lm"
    title = "PerceptionLM"
    checkpoints = ("facebook/Perception-LM-1B", "facebook/Perception-LM-3B", "facebook/Perception-LM-8B")
    core_class = "PerceptionLMModel"
    example: ClassVar[Mapping[str, Any]] = {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {"embed_dim": 1024, "depth": 23, "img_size": [448, 448]},
        },
        "projector_pooling_ratio": 2,
    }
    whole_first = True
    resize_modes = ("enlarge",)
    pixel_axes = ("images", "tiles", "channels", "height", "width")
    # The tower sees tiles; the shape of the pixels tells which image a tile belongs to.
    encoder_arguments: ClassVar[tuple[str, ...]] = ("pixel_values",)
    outside_encoder = "the pooling after its projector reads blocks of patches, which merging would break up"

    def check_config(self) -> None:
        """Check that the encoder is a Perception Encoder as released models have it, and how patches are pooled."""
        vision = self.config.vision_config
        kind = kind_of(vision)
        architecture = getattr(vision, "architecture", None)
        if kind != "timm_wrapper" or architecture not in _TOWERS:
            found = f"the encoder {architecture} of timm" if kind == "timm_wrapper" else f"a {kind} encoder"
            raise UnsupportedFamily(
                f"{self.title} with {found} is not supported; {self.title} with {' or '.join(_TOWERS)} is"
            )
        arguments = self._arguments
        if others := sorted(arguments.keys() - _ARGUMENTS):
            raise UnsupportedFamily(
                f"{self.title} whose encoder has {', '.join(others)} among vision_config.model_args is not supported; "
                f"{', '.join(sorted(_ARGUMENTS))} may be there"
            )
        if bool(self.config.vision_use_cls_token) != bool(self.marks):
            raise UnsupportedFamily(
                f"{self.title} with vision_use_cls_token={self.config.vision_use_cls_token} is not supported with the "
                f"encoder {architecture}, which has {'a' if self.marks else 'no'} [CLS]; write {bool(self.marks)}"
            )
        for name in ("embed_dim", "depth", "num_heads"):
            self._number(name)
        if self.width % self.heads:
            raise UnsupportedFamily(f"embed_dim {self.width} of {self.title} is no multiple of num_heads {self.heads}")
        read_number(self.config, "projector_pooling_ratio")
        _ = self.tile_side

    # What the configuration alone tells

    @property
    def _arguments(self) -> Mapping[str, Any]:
        return self.config.vision_config.model_args or {}

    @property
    def _tower(self) -> _Tower:
        return _TOWERS[self.config.vision_config.architecture]

    def _number(self, name: str) -> int:
        value = self._arguments.get(name, self._tower.heads if name == "num_heads" else None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UnsupportedFamily(
                f"{name} in vision_config.model_args of {self.title} is {value!r}; it must be a whole number of 1 or "
                "more"
            )
        return value

    def _square(self, name: str, default: int | None) -> int:
        given = self._arguments.get(name, default)
        sides = given if isinstance(given, Sequence) else (given, given)
        if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int) or sides[0] < 1:
            raise UnsupportedFamily(
                f"{name} in vision_config.model_args of {self.title} is {given!r}; only squares are supported"
            )
        return sides[0]

    @property
    def depth(self) -> int:
        """Encoder layers."""
        return self._number("depth")

    @property
    def width(self) -> int:
        """Width of a patch's hidden state."""
        return self._number("embed_dim")

    @property
    def heads(self) -> int:
        """Attention heads of an encoder layer."""
        return self._number("num_heads")

    @property
    def marks(self) -> int:
        """Rows of the encoder in front of the patches: [CLS], or none."""
        return self._tower.marks

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return read_number(self.config, "projector_pooling_ratio")

    @property
    def patch(self) -> int:
        """Pixels along one side of a patch."""
        return self._square("patch_size", self._tower.patch)

    @property
    def edge(self) -> int:
        """Pixels along one side of a tile."""
        return self._square("img_size", None)

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the whole image of `height` x `width` pixels, and its tiles: 1 to 36."""
        rows, columns = _canvas(height, width, self.edge)
        return self.tiled(TileGrid(rows * columns + 1, rows, columns), self.tile_side)

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return the same layout: the encoder takes tiles of one size, to which smaller ones are enlarged again."""
        return layout

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes; the projector runs on each patch."""
        ratio = self._arguments.get("mlp_ratio", self._tower.mlp_ratio)
        return VisionShape(
            depth=self.depth,
            width=self.width,
            heads=self.heads,
            mlp_width=int(self.width * ratio),
            patch_values=3 * self.patch**2,
            decoder_width=read_number(self.config.text_config, "hidden_size"),
            merge=self.merge,
            marks=self.marks,
            rotary=True,
            projects_patches=True,
        )

    def check_encoder_layer(self, layer: int) -> None:
        """Check that the encoder has a layer.

        Raises:
            FoveateError: it has no such layer.
        """
        self._checked_layer(layer, self.depth)

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """The model of timm in its wrapper."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The attention of each block."""
        return [block.attn for block in self.core.vision_tower.timm_model.blocks]  # pyright: ignore

    def encoder_projections(self, layer: int) -> Mapping[str, nn.Module]:
        """Return the projection of a block to "qkv": queries, keys and values side by side."""
        attention: Any = self.encoder_attentions[layer]
        return {"qkv": attention.qkv}

    @property
    def feature_module(self) -> nn.Module:
        """The projector, which reads patches without [CLS]."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def projected_module(self) -> nn.Module:
        """The projector, too: it returns the tiles of all images."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    # Tiles

    def joined(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the tiles of several prompts: images one after another, or all tiles if images differ in their number.

        Args:
            images: for each prompt its pixel inputs by name.
        """
        given = [each["pixel_values"] for each in images]
        if len({pixels.shape[1] for pixels in given}) == 1:
            return {"pixel_values": torch.cat(given)}
        return {"pixel_values": torch.cat([pixels.flatten(0, 1) for pixels in given])[None]}

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return 1 for each tile: the encoder's output has an entry for each."""
        return [1] * inputs["pixel_values"].shape[:2].numel()

    def previews(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return a small picture of each tile: `(images, tiles, channels, 8, 8)` float32."""
        pixels: Tensor = inputs["pixel_values"]
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.flatten(0, 1).float(), PREVIEW)
        return small.unflatten(0, pixels.shape[:2])

    def tile_grids(
        self, input_ids: Tensor, tokens: Sequence[int], tiles: Sequence[int], previews: Tensor | None
    ) -> list[TileGrid] | None:
        """Part runs of placeholders into images of as many tiles as the pixels have, and look at these."""
        runs = self.placeholder_runs(input_ids)
        if not tokens or sum(runs) != sum(tokens) or any(run % tokens[0] for run in runs):
            return None
        assert previews is not None
        counts = [run // tokens[0] for run in runs]
        each = previews.shape[1]
        if not any(count % each for count in counts):
            # Images may follow each other without text between them.
            counts = [each] * (sum(counts) // each)
        small, grids, begin = previews.flatten(0, 1), list[TileGrid](), 0
        for count in counts:
            whole, *rest = tiles[begin : begin + count]
            begin += count
            grids.append(TileGrid(count, *arrangement(small[rest], small[whole])) if rest else TileGrid())
        return grids

    # Features and signals

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the patches of each token side by side, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return self.by_image(self.by_token(capture.features).flatten(2), capture)

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's MLP to each patch of a token, and return the mean."""
        projector: Any = self.projected_module
        patches = features.unflatten(-1, (self.merge**2, -1))
        return projector.linear_2(projector.gelu(projector.linear_1(patches))).mean(dim=-2)

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention `(N,)` within each token's tile, or keys `(N, D_key)`, means of patches."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        call = capture.attention[layer]
        query, key, _ = call["qkv"].unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        if isinstance(signal, EncoderKeys):
            key = key[:, self.marks :]
            key = key.mean(dim=2) if signal.heads == "mean" else key.flatten(2)
            return self.by_image(self.by_token(key).mean(dim=2), capture)
        sin, cos = call["rope"].chunk(2, dim=-1)
        query, key = (self._rotated(states.transpose(1, 2), cos, sin) for states in (query, key))
        if self.marks:
            weights = cls_attention(query[:, :, 0], key, attention.scale, signal.heads)[:, 1:]
            return self.by_image(self.by_token(weights).sum(dim=2), capture)
        received = attention_received(query, key, attention.scale, heads=signal.heads)
        return self.by_image(self.by_token(received).sum(dim=2) / received.shape[1], capture)

    def _rotated(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the rotary embedding of patches: `(tiles, H, T, d)`; [CLS] has none."""
        marks, patches = states.split([self.marks, states.shape[2] - self.marks], dim=2)
        return torch.cat([marks, rotate_neighbours(patches, cos, sin).to(states.dtype)], dim=2)


@cache
def _canvases() -> tuple[tuple[int, int], ...]:
    """Return the columns and rows of all canvases of tiles, those of one shape together, as the processor tries them.

    >>> len(_canvases()), _canvases()[0], _canvases()[-1]
    (140, (1, 36), (10, 1))
    """
    sides = [
        (columns, tiles // columns)
        for tiles in range(_MOST_TILES, 0, -1)
        for columns in range(1, tiles + 1)
        if tiles % columns == 0
    ]
    shapes = list(dict.fromkeys(columns / rows for columns, rows in sides))
    return tuple(sorted(sides, key=lambda side: shapes.index(side[0] / side[1])))


def _canvas(height: int, width: int, edge: int) -> tuple[int, int]:
    """Return the rows and columns of the tiles of an image of `height` x `width` pixels.

    Of the canvases that hold it, that on which its shorter side becomes longest, and of equal ones the last. If it fits
    on none, the canvas whose shape is nearest, which may not be longer than the image, with the most tiles.

    >>> _canvas(480, 640, 448), _canvas(100, 100, 448), _canvas(100, 3000, 448), _canvas(3000, 4000, 448)
    ((5, 7), (6, 6), (1, 30), (3, 4))
    """
    shape = width / height
    best, longest = None, -math.inf
    for columns, rows in _canvases():
        if columns * edge < width or rows * edge < height:
            continue
        scale = min(columns * edge / width, rows * edge / height)
        # Rounded as the processor rounds: the shorter side of what isn't square.
        shorter = scale * height
        if shape > 1:
            shorter = math.floor(scale * width / shape)
        elif shape < 1:
            shorter = math.floor(scale * height * shape)
        if shorter >= longest:
            best, longest = (rows, columns), shorter
    if best is not None:
        return best
    fitting = {columns / rows for columns, rows in _canvases() if (columns / rows <= shape) == (shape >= 1)}
    nearest = min(fitting, key=lambda each: shape - each if shape >= 1 else 1 / shape - 1 / each)
    columns, rows = max(side for side in _canvases() if side[0] / side[1] == nearest)
    return rows, columns
