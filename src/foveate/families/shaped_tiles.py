"""Tiles of different shapes, whose tokens leave the encoder and the projector one tile after another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from foveate.families.family import Capture, attention_received
from foveate.families.tiling import TiledFamily
from foveate.tokens import EncoderAttention, EncoderKeys, Signal

if TYPE_CHECKING:
    from torch import Tensor


class ShapedTiles(TiledFamily):
    """Each tile has rows and columns of its own, which the processor's outputs tell.

    `EncoderAttention` is the attention that the patches of a token receive, as a share of all attention in their tile.
    """

    projects_each = True

    @abstractmethod
    def tile_shapes(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Return rows and columns of tokens of each tile, once the form of the pixels is checked."""

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return 1 for each tile: the encoder's output has an entry for each."""
        return [1] * len(self.tile_shapes(inputs))

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Note the grid of each tile."""
        kwargs = {"pixel_values": args[0], **kwargs} if args else kwargs
        capture = super().tower_call((), kwargs)
        capture.extra["shapes"] = self.tile_shapes(kwargs)
        return capture

    def by_image(self, tiles: Sequence[Tensor], capture: Capture) -> tuple[Tensor, ...]:
        """Join values of the tokens of each tile, `(n, ...)`, by image: `(N, ...)` each."""
        return tuple(torch.cat([tiles[tile] for tile in own]) for own in capture.extra["tiles"])

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the patches of each token side by side, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return self.by_image(self.by_tile(capture.features, capture), capture)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return self.by_image(self.by_tile(capture.projected, capture), capture)

    def by_tile(self, rows: Tensor, capture: Capture) -> Sequence[Tensor]:
        """Split what the projector read or made, `(tokens, D)`, by tile."""
        return rows.split([height * width for height, width in capture.extra["shapes"]])

    def merged_in(self, layer: int) -> int:
        """Return the rows along one side of a visual token in an encoder layer: by default, its patches."""
        return self.merge

    def patches_of(self, values: Tensor, shapes: Sequence[tuple[int, int]], side: int) -> Sequence[Tensor]:
        """Split what the patches of all tiles have by tile, `(P, ...)` each.

        Args:
            values: `(tiles, P, ...)`, where shorter tiles are filled up, or `(1, P, ...)` with one tile after another.
            shapes: rows and columns of tokens of each tile.
            side: patches along one side of a token.
        """
        counts = [rows * columns * side**2 for rows, columns in shapes]
        if values.shape[0] == 1:
            return values[0, : sum(counts)].split(counts)
        return [tile[:count] for tile, count in zip(values, counts, strict=True)]

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention received `(N,)`, which sums to 1 per tile, or keys `(N, D_key)`, means of patches."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        scale = _scale(self.encoder_attentions[layer])
        side, shapes = self.merged_in(layer), capture.extra["shapes"]
        queries, keys = (self.patches_of(each, shapes, side) for each in self.patch_heads(capture, layer))
        found: list[Tensor] = []
        for query, key, shape in zip(queries, keys, shapes, strict=True):
            if isinstance(signal, EncoderKeys):
                heads = key.mean(dim=1) if signal.heads == "mean" else key.flatten(1)
                found.append(_by_token(heads, shape, side).mean(dim=1))
                continue
            rows = query.transpose(0, 1)[None], key.transpose(0, 1)[None]
            (received,) = attention_received(*rows, scale, heads=signal.heads)
            found.append(_by_token(received, shape, side).sum(dim=1) / len(key))
        return self.by_image(found, capture)


def _scale(attention: Any) -> float:
    return float(cast("float", getattr(attention, "scale", None) or attention.scaling))


def _by_token(patches: Tensor, shape: tuple[int, int], side: int) -> Tensor:
    """Group what patches have `(P, ...)`, in raster order, by token: `(n, side ** 2, ...)`.

    >>> _by_token(torch.arange(8), (1, 2), 2).tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    rows, columns = shape
    blocks = patches.unflatten(0, (rows, side, columns, side)).transpose(1, 2)
    return blocks.flatten(2, 3).flatten(0, 1)
