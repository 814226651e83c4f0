"""Convert layers that a paper gives for a decoder of 32 layers to a decoder of another depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from foveate.numbers import Between, check_whole

PUBLISHED_DEPTH = 32
"""Layers of the decoders in the papers (Llama and Vicuna of 7 billion parameters)."""


def scaled_layer(layer: int, depth: int) -> int:
    """Return the layer of a decoder of `depth` layers that lies as deep as layer `layer` of 32.

    Rounds to the nearest layer, halves up, as `Keep` rounds tokens; Python's `round` would take 2.5 to 2 and 3.5 to 4.
    The result is at least 1: layer 0 is the input of the decoder, where a step acts at `@input`.

    >>> [scaled_layer(2, depth) for depth in (12, 24, 28, 32, 40, 80)]
    [1, 2, 2, 2, 3, 5]

    Raises:
        FoveateError: the layer or the depth is something else.
    """
    layer = check_whole("layer", layer, Between(0))
    depth = check_whole("depth", depth, Between(1))
    return max(1, math.floor(Fraction(layer * depth, PUBLISHED_DEPTH) + Fraction(1, 2)))


def scaled_layers(layers: Sequence[int], depth: int) -> list[int]:
    """Return the layers of a decoder of `depth` layers that lie as deep as `layers`, ascending, of 32.

    Each is `scaled_layer`, or the layer after the one before it where two would meet. Layers that the decoder does not
    have are left out.

    >>> scaled_layers((8, 16, 24), 12), scaled_layers((2,), 40), scaled_layers((3, 7, 16), 6)
    ([3, 6, 9], [3], [1, 2, 3])
    """
    scaled: list[int] = []
    for layer in layers:
        scaled.append(max(scaled_layer(layer, depth), scaled[-1] + 1 if scaled else 1))
    return [layer for layer in scaled if layer < depth]
