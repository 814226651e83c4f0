"""What a step at `@encoder` does in front of each layer of the encoder."""

from __future__ import annotations

from foveate.methods import Method
from foveate.tokens import Layout, Signal


def encoder_needs(method: Method) -> tuple[Signal, ...]:
    """Return the signals that a method needs in front of an encoder layer.

    Raises:
        FoveateError: the method cannot act inside the encoder.
    """
    (plain,) = method.in_encoder(method.keep.tokens or 1, 1)
    return plain.needs


def encoder_methods(method: Method, layout: Layout, reads: int) -> dict[int, Method]:
    """Return the method in front of each encoder layer, without the layers in front of which no patch would go.

    Args:
        method: that of the step at `@encoder`.
        layout: of the image that the encoder sees.
        reads: the encoder layer, counted from zero, whose output becomes features.

    Raises:
        KeepError: the method would keep more patches than there are.
    """
    patches = layout.content
    methods: dict[int, Method] = {}
    for layer, plain in enumerate(method.in_encoder(patches, reads), start=1):
        count = plain.keep.count(patches)
        if count < patches:
            methods[layer] = plain
        patches = count
    return methods
