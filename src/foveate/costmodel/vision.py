"""The vision side's work: encoder and projector, from the configuration.

Each architecture is one function at the end of this file and one row of `_SIDES`: which grids a picture gets, and the
dimensions of encoder and projector.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foveate.costmodel.decoder import Mlp
from foveate.costmodel.fields import field, number
from foveate.costmodel.ops import Op, Part, attention, elementwise, fused_norm, linear, norm, repeated, rotary
from foveate.costmodel.pictures import Fixed, Flexible, Picture, Row, Tiled
from foveate.errors import FoveateError, FoveateWarning
from foveate.tokens import Segment


@dataclass(frozen=True)
class Vision:
    """An encoder of patches and a projector of two layers.

    Attributes:
        sizing: what becomes of a picture of so many pixels.
        depth: encoder layers.
        width: width of a patch.
        heads: attention heads.
        mlp: the MLP of an encoder layer.
        inputs: values of one patch: channels, frames and pixels.
        hidden: width of the decoder.
        merge: patches along one side of a visual token.
        marks: tokens beside the patches ([CLS]).
        window: patches along one side of an attention window, or None.
        whole: layers that attend beyond windows.
        levels: encoder layers that the projector reads side by side.
        extra: projectors beside the first (DeepStack).
        rotates: whether there are rotary embeddings; the norms are RMS norms then and not fused.
    """

    sizing: Fixed | Flexible | Tiled | Row
    depth: int
    width: int
    heads: int
    mlp: Mlp
    inputs: int
    hidden: int
    merge: int = 1
    marks: int = 0
    window: int | None = None
    whole: frozenset[int] = frozenset()
    levels: int = 1
    extra: int = 0
    rotates: bool = False
    inner: int = 0
    """Width between the projector's two layers; 0 is the decoder's."""
    reads: int | None = None
    """The encoder layer whose output is read, where steps can act inside the encoder; None where they can't."""

    @property
    def projector_width(self) -> int:
        """What the projector reads of one visual token."""
        return self.width * self.levels * self.merge**2

    @property
    def parameters(self) -> int:
        """Weights of encoder and projector; biases and position embeddings are left out."""
        layer = 4 * self.width**2 + self.mlp.parameters(self.width) + 2 * self.width
        inner = self.inner or self.hidden
        projector = self.projector_width * inner + inner * self.hidden
        return self.inputs * self.width + self.depth * layer + (1 + self.extra) * projector

    def encode(self, grids: Sequence[Segment], batch: int, size: int, left: Sequence[Sequence[int]] = ()) -> Part:
        """The encoder over these grids of patches, `batch` times.

        `left` is for each grid how many of its patches are in each layer, where a step inside makes them fewer.
        """
        patches = batch * sum(grid.count for grid in grids)
        if not patches:
            return Part("encoder", ())
        ops: list[Op] = [linear("patch embedding", patches, self.inputs, self.width, size)]
        layers = [tuple(grids)] * self.depth
        if left:
            layers = [tuple(Segment(1, 1, count) for count in counts) for counts in zip(*left, strict=True)]
        windowed = [self.window is not None and layer not in self.whole for layer in range(self.depth)]
        for (seen, inside), times in Counter(zip(layers, windowed, strict=True)).items():
            ops += repeated(self._layer(self._rows(seen, batch), size), times)
            for length, count in (self._windows(seen) if inside else self._frames(seen)).items():
                one = attention(batch, self.heads, self.heads, self.width // self.heads, length, length, size)
                ops += repeated([one], times * count)
        ops.append(self._norm(self._rows(layers[-1], batch), size))
        return Part("encoder", tuple(ops))

    def _rows(self, grids: Iterable[Segment], batch: int) -> int:
        """What goes through the products of a layer: patches, and [CLS] of each frame."""
        return batch * sum(grid.count + self.marks * grid.t for grid in grids)

    def _layer(self, rows: int, size: int) -> list[Op]:
        """A layer without its attention."""
        ops = [
            *repeated([linear("queries, keys, values", rows, self.width, self.width, size)], 3),
            linear("output", rows, self.width, self.width, size),
            elementwise("heads side by side", rows * self.width, 2, size),
            *self.mlp.ops(rows, self.width, size),
            *repeated([elementwise("residual", rows * self.width, 3, size), self._norm(rows, size)], 2),
        ]
        if self.rotates:
            ops.append(rotary(rows, 2 * self.width, size))
        return ops

    def _norm(self, rows: int, size: int) -> Op:
        return norm(rows, self.width) if self.rotates else fused_norm(rows, self.width, size)

    def _frames(self, grids: Iterable[Segment]) -> Counter[int]:
        """Lengths that attend to themselves in whole layers, and how many of each."""
        lengths: Counter[int] = Counter()
        for grid in grids:
            lengths[grid.h * grid.w + self.marks] += grid.t
        return lengths

    def _windows(self, grids: Iterable[Segment]) -> Counter[int]:
        """The same for windowed layers; windows at the edge are what is left."""
        lengths: Counter[int] = Counter()
        side = self.window or 1
        for grid in grids:
            rows, columns = ([min(side, n - start) for start in range(0, n, side)] for n in (grid.h, grid.w))
            for row in rows:
                for column in columns:
                    lengths[row * column] += grid.t
        return lengths

    def project(self, tokens: int, batch: int, size: int, extra: bool = True) -> Part:
        """The projector over so many visual tokens per row; `extra` projectors with it unless told otherwise."""
        rows, inner = batch * tokens, self.inner or self.hidden
        if not rows:
            return Part("projector", ())
        ops = [
            linear("projector in", rows, self.projector_width, inner, size),
            elementwise("activation", rows * inner, 2, size),
            linear("projector out", rows, inner, self.hidden, size),
        ]
        return Part("projector", tuple(repeated(ops, 1 + self.extra if extra else 1)))

    def working(self, grids: Sequence[Segment], batch: int, size: int) -> int:
        """Bytes of activations at the widest point of a layer, and of the layers that are kept; an estimate."""
        rows = batch * sum(grid.t * (grid.h * grid.w + self.marks) for grid in grids)
        return rows * size * (3 * self.mlp.width + (3 + self.levels + self.extra) * self.width)

    def tokens(self, picture: Picture) -> int:
        """Visual tokens of one picture that leave the encoder."""
        return picture.patches // self.merge**2


def read_vision(config: Any) -> Vision:
    """The vision side of a vision-language model's configuration.

    Of an architecture that is not counted, encoder and projector are left out, with one warning that says so.

    Raises:
        FoveateError: a field is missing or makes no sense, or it can't be told how many visual tokens there are.
    """
    kind = str(getattr(config, "model_type", ""))
    try:
        if kind not in _SIDES:
            known = ", ".join(counted())
            raise UncountedError(f"the cost model does not know the vision side of {kind!r}; it knows {known}")
        vision = _SIDES[kind](config)
    except UncountedError as error:
        return unseen(config, str(error))
    if vision.width % vision.heads:
        raise FoveateError(f"the encoder's width {vision.width} is no multiple of its {vision.heads} heads")
    return vision


class UncountedError(FoveateError):
    """A vision side that is not counted."""


@dataclass(frozen=True)
class Unseen(Vision):
    """A vision side of which nothing is known but how many visual tokens leave it: it costs nothing."""

    @property
    def parameters(self) -> int:
        """None."""
        return 0

    def encode(self, grids: Sequence[Segment], batch: int, size: int, left: Sequence[Sequence[int]] = ()) -> Part:
        """No work."""
        return Part("encoder", ())

    def project(self, tokens: int, batch: int, size: int, extra: bool = True) -> Part:
        """No work."""
        return Part("projector", ())

    def working(self, grids: Sequence[Segment], batch: int, size: int) -> int:
        """No bytes."""
        return 0


# Where configurations tell how many visual tokens a picture gets; the decoder's part is looked at, too.
_TELLING = ("mm_tokens_per_image", "image_seq_length", "num_image_tokens", "image_token_length", "num_image_token")


def unseen(config: Any, why: str) -> Unseen:
    """The vision side of an architecture that is not counted, with a warning.

    Raises:
        FoveateError: its configuration doesn't tell how many visual tokens a picture gets.
    """
    parts = (config, config.text_config, config.vision_config)
    told = [(name, getattr(part, name, None)) for part in parts for name in _TELLING]
    name, tokens = next(((name, value) for name, value in told if isinstance(value, int) and value > 0), (None, 0))
    if name is None:
        raise FoveateError(
            f"{why}, and its configuration doesn't tell how many visual tokens a picture gets; write the number into "
            "it as image_seq_length, and the decoder can be counted"
        )
    warnings.warn(
        f"{why}. Encoder and projector are left out of every figure, their weights too, and every picture counts as "
        f"{tokens} visual tokens ({name}); the decoder is counted in full",
        FoveateWarning,
        stacklevel=2,
    )
    return Unseen(Row(tokens), 0, 1, 1, Mlp(1, gated=False), 0, number(config.text_config, "hidden_size"))


def counted() -> tuple[str, ...]:
    """The `model_type` of every architecture that is counted."""
    return tuple(_SIDES)


# The architectures


def _llava(config: Any) -> Vision:
    vision = config.vision_config
    side = _clip(config, Fixed(number(vision, "image_size") // number(vision, "patch_size")))
    read = getattr(config, "vision_feature_layer", -2)
    # Counted with the embeddings in front of the first layer.
    return replace(side, reads=read % (side.depth + 1) - 1 if isinstance(read, int) else None)


def _llava_next(config: Any) -> Vision:
    vision = config.vision_config
    pixels, patch = number(vision, "image_size"), number(vision, "patch_size")
    sizes = tuple((int(rows), int(columns)) for rows, columns in field(config, "image_grid_pinpoints"))
    return _clip(config, Tiled(pixels // patch, pixels, sizes))


def _clip(config: Any, sizing: Fixed | Tiled) -> Vision:
    vision = config.vision_config
    kind = getattr(vision, "model_type", "")
    if kind != "clip_vision_model":
        raise UncountedError(f"the cost model does not know {config.model_type} with a {kind} encoder")
    if getattr(config, "vision_feature_select_strategy", "default") != "default":
        raise FoveateError(f"the cost model does not count {config.model_type} with [CLS] among the visual tokens")
    levels = getattr(config, "vision_feature_layer", -2)
    return Vision(
        sizing=sizing,
        depth=number(vision, "num_hidden_layers"),
        width=number(vision, "hidden_size"),
        heads=number(vision, "num_attention_heads"),
        mlp=Mlp(number(vision, "intermediate_size"), gated=False),
        inputs=number(vision, "num_channels") * number(vision, "patch_size") ** 2,
        hidden=number(config.text_config, "hidden_size"),
        marks=1,
        levels=1 if isinstance(levels, int) else len(levels),
    )


def _qwen2_vl(config: Any) -> Vision:
    vision = config.vision_config
    width = number(vision, "embed_dim")
    mlp = Mlp(int(width * field(vision, "mlp_ratio")), gated=False)
    return _qwen(config, width, mlp, _QWEN2_PIXELS)


def _qwen2_5_vl(config: Any) -> Vision:
    vision = config.vision_config
    mlp = Mlp(number(vision, "intermediate_size"))
    window = number(vision, "window_size") // number(vision, "patch_size")
    whole = frozenset(field(vision, "fullatt_block_indexes"))
    return _qwen(config, number(vision, "hidden_size"), mlp, _QWEN2_PIXELS, window=window, whole=whole)


def _qwen3_vl(config: Any) -> Vision:
    vision = config.vision_config
    mlp = Mlp(number(vision, "intermediate_size"), gated=False)
    extra = len(getattr(vision, "deepstack_visual_indexes", None) or ())
    return _qwen(config, number(vision, "hidden_size"), mlp, _QWEN3_PIXELS, extra=extra)


# Pixels at least and at most, as the released checkpoints' preprocessor_config.json have them.
_QWEN2_PIXELS = (3136, 12_845_056)
_QWEN3_PIXELS = (65_536, 16_777_216)


def _qwen(config: Any, width: int, mlp: Mlp, pixels: tuple[int, int], **rest: Any) -> Vision:
    vision = config.vision_config
    patch, merge = number(vision, "patch_size"), number(vision, "spatial_merge_size")
    channels = number(vision, "in_channels", "in_chans")
    return Vision(
        sizing=Flexible(patch * merge, merge, *pixels),
        depth=number(vision, "depth"),
        width=width,
        heads=number(vision, "num_heads"),
        mlp=mlp,
        inputs=channels * number(vision, "temporal_patch_size") * patch**2,
        hidden=number(config.text_config, "hidden_size"),
        merge=merge,
        inner=width * merge**2,
        rotates=True,
        **rest,
    )


_SIDES: dict[str, Callable[[Any], Vision]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
}
