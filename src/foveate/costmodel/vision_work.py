"""Count the work, weights and memory of a vision encoder and its projector, from their sizes.

The sizes are a family's (`Family.vision_shape`). Where a family does not know them (None), nothing is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from foveate.costmodel.decoder_shape import Mlp
from foveate.costmodel.ops import CallPart, Op, attention, elementwise, fused_norm, linear, norm, repeated, rotary
from foveate.families.vision_shape import VisionShape
from foveate.tokens import Segment


def vision_parameters(shape: VisionShape | None) -> int:
    """Count the weights of encoder and projector, without biases and position embeddings."""
    if shape is None:
        return 0
    layer = 4 * shape.width**2 + _mlp(shape).parameters(shape.width) + 2 * shape.width
    projector = sum(width * following for width, following in _projector_layers(shape))
    after = layer if shape.pooling else 0
    if shape.attends:
        after += (3 * shape.levels + 1) * shape.width**2
    if shape.merged_after is not None:
        after += 4 * shape.width**2 + (4 * shape.width + shape.width) * 4 * shape.mlp_width
    after += shape.width * shape.merge**2 * (shape.down_sampled or 0)
    return shape.patch_values * shape.width + shape.depth * layer + after + (1 + shape.extra_projectors) * projector


def encoder_work(
    shape: VisionShape | None, grids: Sequence[Segment], batch: int, size: int, kept: Sequence[Sequence[int]] = ()
) -> CallPart:
    """Count the encoder's work on grids of patches.

    Args:
        shape: sizes of the encoder.
        grids: of the images of a prompt: one per image, or one per tile.
        batch: equal prompts.
        size: bytes of a number.
        kept: for each grid its patches in each encoder layer, where a step inside the encoder drops some.
    """
    patches = batch * sum(grid.count for grid in grids)
    if shape is None or not patches:
        return CallPart("encoder", ())
    embedded = patches
    if shape.joint:
        embedded = batch * len(grids) * max(grid.h for grid in grids) * max(grid.w for grid in grids)
    ops: list[Op] = [linear("patch embedding", embedded, shape.patch_values, shape.width, size)]
    layers = [tuple(grids)] * shape.depth
    if kept:
        layers = [tuple(Segment(1, 1, count) for count in counts) for counts in zip(*kept, strict=True)]
    if shape.merged_after is not None:
        merged = tuple(replace(grid, h=grid.h // 2, w=grid.w // 2) for grid in grids)
        layers = [merged if layer > shape.merged_after else tuple(grids) for layer in range(shape.depth)]
        ops += _merging(shape, patches, size)
    windowed = [shape.window is not None and layer not in shape.full_attention_layers for layer in range(shape.depth)]
    for (seen, inside), times in Counter(zip(layers, windowed, strict=True)).items():
        ops += repeated(_layer(shape, _rows(shape, seen, batch), size), times)
        lengths, rows = (_windows if inside else _frames)(shape, seen), batch
        if shape.joint:
            lengths, rows = Counter({_rows(shape, seen, batch): 1}), 1
        for length, count in lengths.items():
            attended = attention(rows, shape.heads, shape.heads, shape.width // shape.heads, length, length, size)
            ops += repeated([attended], times * count)
    last = layers[-1] if layers else tuple(grids)
    ops.append(_norm(shape, _rows(shape, last, batch), size))
    if shape.pooling:
        ops += _pooling(shape, last, batch, size)
    if shape.averaged_by_product:
        ops += [
            linear("means of patches", batch * grid.count // shape.merge**2, grid.h * grid.w, shape.width, size)
            for grid in last
        ]
    if shape.down_sampled:
        tokens = _rows(shape, last, batch) // shape.merge**2
        ops.append(linear("down-sampling", tokens, shape.width * shape.merge**2, shape.down_sampled, size))
    return CallPart("encoder", tuple(ops))


def projector_work(shape: VisionShape | None, tokens: int, batch: int, size: int, extra: bool = True) -> CallPart:
    """Count the projector's work on visual tokens.

    Args:
        shape: sizes of the projector.
        tokens: visual tokens of a prompt.
        batch: equal prompts.
        size: bytes of a number.
        extra: whether the projectors beside the first run, too.
    """
    rows = batch * tokens
    if shape is None or not rows:
        return CallPart("projector", ())
    if shape.projects_patches:
        rows *= shape.merge**2
    ops = _attending(shape, rows, size) if shape.attends else list[Op]()
    for width, following in _projector_layers(shape):
        if ops:
            ops.append(elementwise("activation", rows * width, 2, size))
        ops.append(linear("projector", rows, width, following, size))
    return CallPart("projector", tuple(repeated(ops, 1 + shape.extra_projectors if extra else 1)))


def vision_activations(shape: VisionShape | None, grids: Sequence[Segment], batch: int, size: int) -> int:
    """Estimate the bytes of the encoder's activations at their peak, with the outputs of the layers that are read."""
    if shape is None:
        return 0
    widths = 3 * shape.mlp_width + (3 + shape.levels + shape.extra_projectors) * shape.width
    return _rows(shape, grids, batch) * size * widths


def _mlp(shape: VisionShape) -> Mlp:
    return Mlp(shape.mlp_width, gated=shape.gated_mlp)


def _projector_layers(shape: VisionShape) -> list[tuple[int, int]]:
    """Return the width that each matrix of a projector reads, and the one that it makes."""
    between = (shape.decoder_width,) if shape.projector_widths is None else shape.projector_widths
    inputs = shape.width if shape.projects_patches else shape.projector_inputs
    layers = list(pairwise([inputs, *between, shape.decoder_width]))
    return layers[:-1] + layers[-2:] if shape.gated_projector else layers


def _rows(shape: VisionShape, grids: Iterable[Segment], batch: int) -> int:
    """Count the rows of a layer's matrix products: patches, and [CLS] of each frame."""
    return batch * sum(grid.count + shape.marks * grid.t for grid in grids)


def _layer(shape: VisionShape, rows: int, size: int) -> list[Op]:
    """Return the work of a layer without its attention."""
    width = shape.width
    ops = [
        *repeated([linear("queries, keys, values", rows, width, width, size)], 3),
        linear("output", rows, width, width, size),
        elementwise("heads side by side", rows * width, 2, size),
        *_mlp(shape).ops(rows, width, size),
        *repeated([elementwise("residual", rows * width, 3, size), _norm(shape, rows, size)], 2),
    ]
    if shape.rotary:
        ops.append(rotary(rows, 2 * width, size))
    return ops


def _pooling(shape: VisionShape, grids: Sequence[Segment], batch: int, size: int) -> list[Op]:
    """Return the work of one query per grid after the last layer."""
    rows, width = batch * len(grids), shape.width
    ops = [
        linear("pooling query", rows, width, width, size),
        *repeated([linear("pooling keys, values", _rows(shape, grids, batch), width, width, size)], 2),
        linear("pooling output", rows, width, width, size),
        *_mlp(shape).ops(rows, width, size),
    ]
    for length, count in _frames(shape, grids).items():
        ops += repeated([attention(batch, shape.heads, shape.heads, width // shape.heads, 1, length, size)], count)
    return ops


def _merging(shape: VisionShape, patches: int, size: int) -> list[Op]:
    """Return the work of making one row of each window of 2 x 2 patches between two layers."""
    width, rows = shape.width, patches // 4
    return [
        *repeated([linear("window queries, keys, values", patches, width, width, size)], 3),
        attention(rows, shape.heads, shape.heads, width // shape.heads, 4, 4, size),
        linear("window output", patches, width, width, size),
        linear("window MLP", rows, 4 * width, 4 * shape.mlp_width, size),
        elementwise("activation", rows * 4 * shape.mlp_width, 2, size),
        linear("window MLP", rows, 4 * shape.mlp_width, width, size),
        *repeated([elementwise("residual", patches * width, 3, size), _norm(shape, patches, size)], 2),
    ]


def _attending(shape: VisionShape, tokens: int, size: int) -> list[Op]:
    """Return the work of one query per token, which attends to the token's patches."""
    width, patches = shape.width, tokens * shape.merge**2
    return [
        linear("pooling query", tokens, width * shape.levels, width, size),
        *repeated([linear("pooling keys, values", patches, width * shape.levels, width, size)], 2),
        attention(tokens, shape.heads, shape.heads, width // shape.heads, 1, shape.merge**2, size),
        linear("pooling output", tokens, width, width, size),
    ]


def _norm(shape: VisionShape, rows: int, size: int) -> Op:
    return norm(rows, shape.width) if shape.rotary else fused_norm(rows, shape.width, size)


def _frames(shape: VisionShape, grids: Iterable[Segment]) -> Counter[int]:
    """Count the frames of each length: a layer without windows attends within a frame."""
    lengths: Counter[int] = Counter()
    for grid in grids:
        lengths[grid.h * grid.w + shape.marks] += grid.t
    return lengths


def _windows(shape: VisionShape, grids: Iterable[Segment]) -> Counter[int]:
    """Count the windows of each length; windows at the edge of an image are smaller."""
    lengths: Counter[int] = Counter()
    side = shape.window or 1
    for grid in grids:
        rows, columns = ([min(side, n - start) for start in range(0, n, side)] for n in (grid.h, grid.w))
        for row in rows:
            for column in columns:
                lengths[row * column] += grid.t
    return lengths
