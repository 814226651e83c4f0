"""What a call costs: FLOPs, bytes, cache, memory and time, from a configuration and a spec alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveate.costmodel.decoder import Attention, Decoder, read_decoder
from foveate.costmodel.device import SIZES, Device
from foveate.costmodel.device import device as device_of
from foveate.costmodel.fields import load_config
from foveate.costmodel.journey import Journey, Visit, journey
from foveate.costmodel.ops import Op, Part, elementwise, linear
from foveate.costmodel.pictures import Picture, grid_picture, read_sizes
from foveate.costmodel.vision import Unseen, Vision, read_vision
from foveate.errors import FoveateError, KeepError
from foveate.methods import Method
from foveate.spec import Spec, parse
from foveate.tokens import DecoderAttention, DecoderKeys, DecoderLogits, EncoderAttention, EncoderKeys

_FLOAT32 = 4
_LARGEST_GRID = 128


@dataclass(frozen=True)
class PartCost:
    """One part of a call.

    Attributes:
        name: encoder, projector, compressor, prefill, head or decode.
        flops: FLOPs, one multiply-add being 2.
        moved: bytes read and written, weights included.
        launches: kernels.
        seconds: time on the device.
    """

    name: str
    flops: float
    moved: float
    launches: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What one call costs: a batch of equal prompts, encoded, prefilled and answered.

    Attributes:
        model: the `model_type`.
        spec: what is applied; "dense" for nothing.
        device: the device's name.
        dtype: the data type of weights, activations and cache.
        batch: prompts at once.
        text_tokens: tokens of each prompt beside the visual ones.
        new_tokens: tokens of each answer. The first comes from the prefill, so there is one decode step less.
        visual_tokens: visual tokens of each prompt without the spec.
        layers: visual tokens of each prompt in each decoder layer; the most, if `adaptive`.
        adaptive: whether the content decides how many remain.
        parts: encoder, projector, compressor, prefill, head, decode.
        kv_bytes: cache behind the answer: keys, values, and states of linear attention.
        visual_kv_bytes: the visual tokens' share of the cache behind the prefill.
        weight_bytes: all weights.
        peak_bytes: weights, cache and the widest activations; an estimate.
        memory: bytes of the device's memory.
    """

    model: str
    spec: str
    device: str
    dtype: str
    batch: int
    text_tokens: int
    new_tokens: int
    visual_tokens: int
    layers: tuple[int, ...]
    adaptive: bool
    parts: tuple[PartCost, ...]
    kv_bytes: int
    visual_kv_bytes: int
    weight_bytes: int
    peak_bytes: int
    memory: float

    def part(self, name: str) -> PartCost:
        """One part by its name."""
        return next(each for each in self.parts if each.name == name)

    @property
    def kept_tokens(self) -> int:
        """Visual tokens in the last decoder layer."""
        return self.layers[-1]

    @property
    def mean_over_layers(self) -> float:
        """Visual tokens per decoder layer, averaged over layers."""
        return sum(self.layers) / len(self.layers)

    @property
    def flops(self) -> float:
        """FLOPs of the whole call."""
        return sum(each.flops for each in self.parts)

    @property
    def seconds(self) -> float:
        """Time of the whole call."""
        return sum(each.seconds for each in self.parts)

    @property
    def first_token(self) -> float:
        """Seconds until the first token of the answer."""
        before = sum(each.seconds for each in self.parts if each.name not in ("decode", "head"))
        return before + self.part("head").seconds / self.new_tokens

    @property
    def per_token(self) -> float:
        """Seconds per further token of the answer, on average; 0 if there is none."""
        steps = self.new_tokens - 1
        return self.part("decode").seconds / steps + self.part("head").seconds / self.new_tokens if steps else 0.0

    @property
    def fits(self) -> bool:
        """Whether the peak is within the device's memory."""
        return self.peak_bytes <= self.memory

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        sums = ("kept_tokens", "mean_over_layers", "flops", "seconds", "first_token", "per_token", "fits")
        return asdict(self) | {name: getattr(self, name) for name in sums}

    def __str__(self) -> str:
        parts = ", ".join(f"{each.name} {each.seconds * 1e3:.2f}" for each in self.parts if each.launches)
        return (
            f"{self.model} {self.spec} on {self.device}, {self.dtype}, batch {self.batch}: "
            f"{self.visual_tokens} -> {self.kept_tokens} visual tokens (mean over layers {self.mean_over_layers:.1f})\n"
            f"  {self.flops / 1e12:.3f} TFLOPs; KV cache {self.kv_bytes / 1e6:.1f} MB; "
            f"peak memory {self.peak_bytes / 1e9:.2f} GB\n"
            f"  {self.seconds * 1e3:.2f} ms ({parts}); first token after {self.first_token * 1e3:.2f}"
        )


@dataclass(frozen=True)
class Model:
    """The shapes of one model, read from its configuration.

    Attributes:
        kind: the `model_type`.
        vision: encoder and projector.
        decoder: language model and head.
        modes: ways to shrink a picture before the encoder, best first.
    """

    kind: str
    vision: Vision
    decoder: Decoder
    modes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Weights of all parts."""
        return self.vision.parameters + self.decoder.parameters


def read_model(config: Any) -> Model:
    """The shapes of a model from its configuration, in any form that `cost` takes.

    Of a vision side that is not known only the number of visual tokens is read, with a `FoveateWarning` that says so.

    Raises:
        FoveateError: there is no such configuration, a field is missing or makes no sense, or it can't be counted.
    """
    from foveate.families import family_class

    config = load_config(config)
    vision = read_vision(config)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    text = config.text_config
    tied = tied or bool(getattr(text, "tie_word_embeddings", False))
    try:
        modes = family_class(config).resize_modes
    except FoveateError:
        modes = ()
    return Model(str(config.model_type), vision, read_decoder(text, tied), modes)


def cost(
    config: Any,
    spec: str | Spec | None = None,
    *,
    images: Sequence[tuple[int, int]] = ((336, 336),),
    text_tokens: int = 60,
    new_tokens: int = 64,
    batch: int = 1,
    device: str | Device = "h100",
    dtype: str | None = None,
) -> Cost:
    """Count what a call costs, from the model's configuration alone: no weights, no GPU, nothing run.

    Args:
        config: a transformers configuration, a mapping as config.json holds it, a model directory, the name of a
            published configuration ("llava-1.5-7b"), or None for the embedded model.
        spec: what is applied; None is dense.
        images: size of each picture of a prompt, (width, height) in pixels.
        text_tokens: tokens of a prompt beside the visual ones.
        new_tokens: tokens of an answer.
        batch: equal prompts at once.
        device: a name that `foveate cost --devices` lists, a file that `foveate calibrate --out` wrote, or a `Device`.
        dtype: "bfloat16", "float16" or "float32"; None is bfloat16 where the device has a rate for it.

    Raises:
        FoveateError: a number makes no sense, the device or the model is unknown, or the spec can't act there.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.

    >>> dense = cost("llava-1.5-7b", new_tokens=1)
    >>> dense.visual_tokens, f"{dense.visual_kv_bytes / 1e6:.0f} MB"
    (576, '302 MB')
    >>> cost("llava-1.5-7b", "pool:0.25@16").mean_over_layers
    360.0
    """
    model = config if isinstance(config, Model) else read_model(config)
    pictures = [model.vision.sizing.picture(*size) for size in read_sizes(images)]
    return count(model, spec, pictures, text_tokens, new_tokens, batch, device_of(device), dtype)


def count(
    model: Model,
    spec: str | Spec | None,
    pictures: Sequence[Picture],
    text_tokens: int,
    new_tokens: int,
    batch: int,
    device: Device,
    dtype: str | None = None,
) -> Cost:
    """Count a call on pictures whose grids are known; see `cost`."""
    for name, value, least in (("text_tokens", text_tokens, 0), ("new_tokens", new_tokens, 1), ("batch", batch, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise FoveateError(f"{name} is {value!r}; it must be a whole number of {least} or more")
    if dtype is None:
        dtype = "bfloat16" if "bfloat16" in device.rates else next(iter(device.rates))
    if dtype not in SIZES:
        raise FoveateError(f"there is no data type {dtype!r} here; use {', '.join(SIZES)}")
    device.rate(dtype)
    size, decoder, vision = SIZES[dtype], model.decoder, model.vision
    spec = parse(spec) if isinstance(spec, str) else spec
    ways = [journey(spec, picture, vision, len(decoder.layers), model.modes) for picture in pictures]
    visual = tuple(sum(way.layers[layer] for way in ways) for layer in range(len(decoder.layers)))
    lengths = [text_tokens + each for each in visual]
    if not all(lengths):
        raise FoveateError("a prompt without images and without text has nothing to count; give one of them")
    grids = [grid for way in ways for grid in way.seen.grids]
    behind = [n + new_tokens - 1 for n in lengths]
    parts = (
        vision.encode(grids, batch, size, _left(ways, vision.depth)),
        vision.project(sum(way.leaves for way in ways), batch, size),
        _compressor(ways, model, text_tokens, batch, size),
        decoder.prefill(lengths, batch, size),
        decoder.head(new_tokens, batch, size),
        decoder.decode(lengths, new_tokens - 1, batch, size),
    )
    kv = decoder.cache(behind, batch, size)
    weights = model.parameters * size
    decoding = kv + max(decoder.working(batch * max(lengths), size), batch * decoder.vocabulary * (size + _FLOAT32))
    return Cost(
        model=model.kind,
        spec="dense" if spec is None else str(spec),
        device=device.name,
        dtype=dtype,
        batch=batch,
        text_tokens=text_tokens,
        new_tokens=new_tokens,
        visual_tokens=sum(way.dense for way in ways),
        layers=visual,
        adaptive=any(way.adaptive for way in ways),
        parts=tuple(
            PartCost(part.name, part.flops, part.moved, part.launches, device.seconds(part, dtype)) for part in parts
        ),
        kv_bytes=kv,
        visual_kv_bytes=decoder.cache(lengths, batch, size) - decoder.cache([text_tokens] * len(lengths), batch, size),
        weight_bytes=weights,
        peak_bytes=weights + max(vision.working(grids, batch, size), decoding),
        memory=device.memory,
    )


def _compressor(ways: Sequence[Journey], model: Model, text: int, batch: int, size: int) -> Part:
    """What the steps themselves take, signals and a second projection included; an estimate.

    Equal pictures are planned as one batch, so their launches are counted once.
    """
    ops: list[Op] = []
    planned: dict[tuple[Visit, ...], int] = {}
    for way in ways:
        planned[way.visits] = planned.get(way.visits, 0) + 1
    patches = {way.visits: way.seen.patches for way in ways}
    for visits, pictures in planned.items():
        images = pictures * batch
        for visit in visits:
            if isinstance(model.vision, Unseen) and (visit.place == "features" or _sees_encoder(visit.method)):
                raise FoveateError(
                    f"{visit.method.name} acts on what is inside the vision side, and of {model.kind} that is not known"
                )
            width = _width(visit, model)
            effort = visit.method.effort(visit.arriving, width)
            moved = images * visit.arriving * width * (size + _FLOAT32)
            ops.append(Op(f"plan of {visit.method.name}", effort.flops * images, 0, moved, effort.launches))
            for signal in visit.method.needs:
                ops += _signal(signal, visit, model, patches[visits], text, images, size)
            moves = model.vision.width if visit.place == "encoder" else width
            kept = elementwise("gather", images * (visit.arriving + visit.leaving) * moves, 2, size, launches=4)
            ops.append(kept)
            if visit.place == "features":
                ops += model.vision.project(visit.leaving, images, size, extra=False).ops
    return Part("compressor", tuple(ops))


def _sees_encoder(method: Method) -> bool:
    return any(isinstance(need, EncoderKeys | EncoderAttention) for need in method.needs)


def _left(ways: Sequence[Journey], depth: int) -> list[tuple[int, ...]]:
    """Patches of each grid in each encoder layer, where a step inside the encoder makes them fewer; else empty."""
    if not any(way.inside for way in ways):
        return []
    return [way.inside or (grid.count,) * depth for way in ways for grid in way.seen.grids]


def _width(visit: Visit, model: Model) -> int:
    """How wide what a step compares is."""
    vision = model.vision
    if visit.place == "encoder":
        by_keys = any(isinstance(need, EncoderKeys) and need.heads == "mean" for need in visit.method.needs)
        return vision.width // vision.heads if by_keys else vision.width
    return vision.projector_width if visit.place == "features" else model.decoder.hidden


def _signal(signal: Any, visit: Visit, model: Model, patches: int, text: int, images: int, size: int) -> list[Op]:
    """Queries and keys that are made again for a method to look at."""
    vision = model.vision
    if isinstance(signal, EncoderKeys | EncoderAttention):
        # Inside the encoder, keys are those that the layer before has made.
        again = images * patches
        ops = [] if visit.place == "encoder" else [linear("keys again", again, vision.width, vision.width, size)]
        if isinstance(signal, EncoderAttention):
            # One row of [CLS]; encoders without it are asked for every row, inside windows where there are some.
            queries = 1 if vision.marks else patches
            ops.append(linear("queries again", images * queries, vision.width, vision.width, size))
            scores = images * queries * (patches if vision.window is None else min(patches, vision.window**2))
            ops.append(Op("scores", 2 * scores * vision.width, 0, 4 * scores * vision.heads * _FLOAT32, launches=6))
        return ops
    if isinstance(signal, DecoderAttention | DecoderKeys | DecoderLogits):
        layer = visit.place if isinstance(visit.place, int) else 0
        mixer = model.decoder.layers[min(layer, len(model.decoder.layers) - 1)].mixer
        if not isinstance(mixer, Attention):
            raise FoveateError(f"{visit.method.name} looks at attention, and decoder layer {layer} has none")
        hidden, tokens = model.decoder.hidden, visit.arriving + text
        ops: list[Op] = []
        if signal.layer == "here":
            # Keys of the layer before are in the cache by then.
            ops.append(linear("keys again", images * tokens, hidden, mixer.groups * mixer.head, size))
        if not isinstance(signal, DecoderKeys):
            queries = {"last": 1, "text": text}.get(getattr(signal, "rows", "all"), visit.arriving)
            ops.append(linear("queries again", images * queries, hidden, mixer.heads * mixer.head, size))
            if isinstance(signal, DecoderAttention):
                scores = images * queries * tokens * mixer.heads
                ops.append(Op("scores", 2 * scores * mixer.head, 0, 4 * scores * _FLOAT32, launches=6))
        return ops
    return []


@dataclass(frozen=True)
class BreakEven:
    """From how many visual tokens on a spec pays.

    Attributes:
        tokens: the fewest visual tokens, of one square picture per prompt, from which on the whole call is faster than
            dense, for every larger one that was tried; None if there is none.
        largest: the largest that was tried.
        saved: the share of the time that is saved at the largest.
    """

    tokens: int | None
    largest: int
    saved: float


def break_even(
    model: Model, spec: str | Spec, text_tokens: int, new_tokens: int, batch: int, device: Device, dtype: str | None
) -> BreakEven:
    """Try one square picture per prompt, up to 16,384 visual tokens, whatever sizes the model really takes.

    Raises:
        FoveateError: the spec can't act on this model.
        KeepError: even the largest picture has fewer tokens than a step keeps.
    """
    spec = parse(spec) if isinstance(spec, str) else spec
    found: int | None = None
    saved = 0.0
    for side in range(_LARGEST_GRID, 0, -1):
        picture = [grid_picture(side, side, model.vision.merge)]
        rest = (picture, text_tokens, new_tokens, batch, device, dtype)
        dense = count(model, None, *rest)
        try:
            short = count(model, spec, *rest)
        except KeepError:
            if side == _LARGEST_GRID:
                raise
            break
        if side == _LARGEST_GRID:
            saved = 1 - short.seconds / dense.seconds
        if short.seconds >= dense.seconds:
            break
        found = side * side
    return BreakEven(found, _LARGEST_GRID**2, saved)


__all__ = ["BreakEven", "Cost", "Model", "PartCost", "break_even", "cost", "count", "read_model"]
