"""Count what a call costs: FLOPs, bytes, cache, memory and time, from a configuration and a spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveate.costmodel.compressor import compressor_work, plan_bytes, with_steps
from foveate.costmodel.device import SIZES, Device
from foveate.costmodel.device import device as device_of
from foveate.costmodel.image_sizes import read_clip_sizes, read_sizes
from foveate.costmodel.model import Model, read_model
from foveate.costmodel.vision_work import encoder_work, projector_work, vision_activations
from foveate.errors import FoveateError, KeepError, quoted
from foveate.families import Family
from foveate.numbers import Between, check_whole
from foveate.schedule import ImageTokens, SpecLike, count_tokens, schedule
from foveate.spec import Spec, as_spec
from foveate.tokens import Layout, Segment

_FLOAT32 = 4
_LARGEST_GRID = 128
_LONGEST_ANSWER = 1_000_000
"""Rows and columns of the largest image that `break_even` tries."""


@dataclass(frozen=True)
class PartCost:
    """The cost of one part of a call.

    Attributes:
        name: encoder, projector, compressor, prefill, head or decode.
        flops: FLOPs, one multiply-add being 2.
        moved: bytes read and written, weights included.
        launches: kernels.
        waits: how often the host waits for the device.
        seconds: of time on the device.
    """

    name: str
    flops: float
    moved: float
    launches: int
    waits: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """The cost of one call: a batch of equal prompts is encoded, prefilled and answered.

    Attributes:
        model: the `model_type`.
        spec: what is applied; "dense" for nothing.
        device: the device's name.
        dtype: the data type of weights, activations and cache.
        batch: prompts at once.
        text_tokens: tokens of each prompt beside the visual ones.
        new_tokens: tokens of each answer. The prefill gives the first, so there is one decode step less.
        visual_tokens: visual tokens of each prompt without the spec.
        layers: visual tokens of each prompt in each decoder layer; the most, if `adaptive`.
        adaptive: whether the content decides how many remain.
        parts: encoder, projector, compressor, prefill, head, decode.
        kv_bytes: cache after the answer: keys, values, and states of linear attention.
        visual_kv_bytes: the visual tokens' share of the cache after the prefill.
        weight_bytes: all weights.
        plan_bytes: the most that a plan of the spec holds at once, beside features and signals; an estimate.
        peak_bytes: weights, cache and the widest activations or plans; an estimate.
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
    plan_bytes: int
    peak_bytes: int
    memory: float

    def part(self, name: str) -> PartCost:
        """Return one part by its name."""
        return next(part for part in self.parts if part.name == name)

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
        return sum(part.flops for part in self.parts)

    @property
    def seconds(self) -> float:
        """Time of the whole call."""
        return sum(part.seconds for part in self.parts)

    @property
    def first_token(self) -> float:
        """Seconds until the first token of the answer."""
        before = sum(part.seconds for part in self.parts if part.name not in ("decode", "head"))
        return before + self.part("head").seconds / self.new_tokens

    @property
    def per_token(self) -> float:
        """Mean seconds per further token of the answer; 0 if there is none."""
        steps = self.new_tokens - 1
        return self.part("decode").seconds / steps + self.part("head").seconds / self.new_tokens if steps else 0.0

    @property
    def fits(self) -> bool:
        """Whether the peak fits into the device's memory."""
        return self.peak_bytes <= self.memory

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as plain data, for JSON."""
        sums = ("kept_tokens", "mean_over_layers", "flops", "seconds", "first_token", "per_token", "fits")
        return asdict(self) | {name: getattr(self, name) for name in sums}

    def __str__(self) -> str:
        parts = ", ".join(f"{part.name} {part.seconds * 1e3:.2f}" for part in self.parts if part.launches)
        return (
            f"{self.model} {self.spec} on {self.device}, {self.dtype}, batch {self.batch}: "
            f"{self.visual_tokens} -> {self.kept_tokens} visual tokens (mean over layers {self.mean_over_layers:.1f})\n"
            f"  {self.flops / 1e12:.3f} TFLOPs; KV cache {self.kv_bytes / 1e6:.1f} MB; "
            f"peak memory {self.peak_bytes / 1e9:.2f} GB\n"
            f"  {self.seconds * 1e3:.2f} ms ({parts}); first token after {self.first_token * 1e3:.2f}"
        )


def cost(
    config: Any,
    spec: SpecLike | None = None,
    *,
    images: Sequence[tuple[int, int]] = ((336, 336),),
    clips: Sequence[tuple[int, int, int]] = (),
    text_tokens: int = 60,
    new_tokens: int = 64,
    batch: int = 1,
    device: str | Device = "h100",
    dtype: str | None = None,
) -> Cost:
    """Count what a call costs, from the model's configuration alone: no weights, no GPU, nothing run.

    Args:
        config: a transformers configuration, a mapping as config.json holds it, a model directory, the name of a
            published configuration ("llava-1.5-7b") or of a model on the Hugging Face hub, or None for the embedded
            model.
        spec: what is applied: text, a method object, a `Spec`, or a list of these; None is dense.
        images: size of each image of a prompt, (width, height) in pixels.
        clips: size of each clip of a prompt, (frames, width, height); the frames are those that are chosen of it. A
            model that takes no clips as videos gets each frame as an image.
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
    >>> cost("qwen2.5-vl-7b", "cluster:64", images=[], clips=[(16, 640, 360)]).visual_tokens
    2392
    """
    model = config if isinstance(config, Model) else read_model(config)
    layouts = [model.family.image_layout(height, width) for width, height in read_sizes(images)]
    for frames, width, height in read_clip_sizes(clips):
        if model.family.clip_places:
            layouts.append(model.family.clip_layout(frames, height, width))
        else:
            layouts += [model.family.frame_layout(height, width)] * frames
    return cost_of_layouts(model, spec, layouts, text_tokens, new_tokens, batch, device_of(device), dtype)


def cost_of_layouts(
    model: Model,
    spec: SpecLike | None,
    layouts: Sequence[Layout],
    text_tokens: int,
    new_tokens: int,
    batch: int,
    device: Device,
    dtype: str | None = None,
) -> Cost:
    """Count what a call costs on images of these layouts; the other arguments and errors are those of `cost`."""
    check_whole("text_tokens", text_tokens, Between(0))
    check_whole("new_tokens", new_tokens, Between(1, _LONGEST_ANSWER))
    check_whole("batch", batch, Between(1))
    dtype = _checked_dtype(dtype, device)
    size, decoder = SIZES[dtype], model.decoder
    steps = None if spec is None else as_spec(spec)
    images = _images(model.family, steps, layouts)
    visual = tuple(sum(image.most[layer] for image in images) for layer in range(len(decoder.layers)))
    lengths = [text_tokens + tokens for tokens in visual]
    if not all(lengths):
        raise FoveateError("a prompt without images and without text has nothing to count; give one of them")
    # Hidden states come at full length to the head, whatever was left out before.
    logits = text_tokens + sum(image.layout.total for image in images) if model.family.all_logits else 1
    grids = [grid for image in images for grid in model.family.encoder_grids(image.seen)]
    acts_inside = any(isinstance(step.place, int) for image in images for step in image.steps)
    parts = (
        encoder_work(model.vision, grids, batch, size, _patches_kept(images, model)),
        projector_work(model.vision, sum(_encoded(image, model) for image in images), batch, size),
        compressor_work(images, model, text_tokens, batch, size),
        decoder.prefill(lengths, batch, size, last_alone=not acts_inside),
        decoder.head(new_tokens, batch, size, logits),
        with_steps(decoder.decode(lengths, new_tokens - 1, batch, size), images, new_tokens - 1),
    )
    kv_bytes = decoder.cache([length + new_tokens - 1 for length in lengths], batch, size)
    text_bytes = decoder.cache([text_tokens] * len(lengths), batch, size)
    weight_bytes = model.parameters * size
    activations = max(
        decoder.activations(batch * max(lengths), size),
        # Logits, and the float32 copy that is sampled from.
        batch * logits * decoder.vocabulary * (size + _FLOAT32),
    )
    planning = plan_bytes(images, model, batch, size)
    return Cost(
        model=model.kind,
        spec="dense" if steps is None else str(steps),
        device=device.name,
        dtype=dtype,
        batch=batch,
        text_tokens=text_tokens,
        new_tokens=new_tokens,
        visual_tokens=sum(image.layout.total for image in images),
        layers=visual,
        adaptive=any(step.method.ragged for image in images for step in image.steps),
        parts=tuple(
            PartCost(part.name, part.flops, part.moved, part.launches, part.waits, device.seconds(part, dtype))
            for part in parts
        ),
        kv_bytes=kv_bytes,
        visual_kv_bytes=decoder.cache(lengths, batch, size) - text_bytes,
        weight_bytes=weight_bytes,
        plan_bytes=planning,
        peak_bytes=weight_bytes
        + max(vision_activations(model.vision, grids, batch, size), kv_bytes + max(activations, planning)),
        memory=device.memory,
    )


def _checked_dtype(dtype: str | None, device: Device) -> str:
    """Return the data type of a call on a device; by default bfloat16, or the first that the device has a rate for.

    Raises:
        FoveateError: there is no such data type, or the device has no rate for it.
    """
    if dtype is None:
        dtype = "bfloat16" if "bfloat16" in device.rates else next(iter(device.rates))
    if not isinstance(dtype, str) or dtype not in SIZES:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FoveateError(f"there is no data type {quoted(dtype)} here; use {', '.join(SIZES)}")
    device.rate(dtype)
    return dtype


def _images(family: Family, spec: Spec | None, layouts: Sequence[Layout]) -> list[ImageTokens]:
    """Count the tokens of each image; equal images are counted once."""
    plan = schedule(Spec(()) if spec is None else spec, family)
    counted = {layout: count_tokens(plan, family, layout) for layout in dict.fromkeys(layouts)}
    return [counted[layout] for layout in layouts]


def _encoded(image: ImageTokens, model: Model) -> int:
    """Count the visual tokens of an image that leave the encoder, padding of tiles included."""
    if image.patches:
        return image.patches[-1]
    if model.vision is not None and model.vision.attends:
        # Patches may be in several tokens, or in none.
        return image.seen.content
    seen = image.layout if model.vision is not None and model.vision.whole_projector else image.seen
    patches = sum(grid.count for grid in model.family.encoder_grids(seen))
    return patches if model.vision is None else patches // model.vision.merge**2


def _patches_kept(images: Sequence[ImageTokens], model: Model) -> list[tuple[int, ...]]:
    """Count the patches of each grid in each encoder layer; [] without a step inside the encoder."""
    if model.vision is None or not any(image.patches for image in images):
        return []
    kept: list[tuple[int, ...]] = []
    for image in images:
        for grid in model.family.encoder_grids(image.seen):
            counts = image.patches or (grid.count,)
            # Layers after the one that is read run all the same.
            kept.append((*counts, *counts[-1:] * (model.vision.depth - len(counts))))
    return kept


@dataclass(frozen=True)
class BreakEven:
    """From how many visual tokens on a spec makes a call faster.

    Attributes:
        tokens: the fewest visual tokens of one square image per prompt for which the call is faster than dense, and so
            for every larger one that was tried; None if there are none.
        largest: the largest number of visual tokens that was tried.
        saved: the share of the time that is saved at the largest.
    """

    tokens: int | None
    largest: int
    saved: float


def break_even(
    model: Model, spec: SpecLike, text_tokens: int, new_tokens: int, batch: int, device: Device, dtype: str | None
) -> BreakEven:
    """Compare a spec with dense on one square image per prompt, up to 16,384 visual tokens.

    All sizes are tried, also those that the model's processor never makes.

    Raises:
        FoveateError: the spec cannot act on this model.
        KeepError: even the largest image has fewer tokens than a step keeps.
    """
    spec = as_spec(spec)
    fewest: int | None = None
    saved = 0.0
    for side in range(_LARGEST_GRID, 0, -1):
        call = ([Layout((Segment(1, side, side),))], text_tokens, new_tokens, batch, device, dtype)
        dense = cost_of_layouts(model, None, *call)
        try:
            compressed = cost_of_layouts(model, spec, *call)
        except KeepError:
            if side == _LARGEST_GRID:
                raise
            break
        if side == _LARGEST_GRID:
            saved = 1 - compressed.seconds / dense.seconds
        if compressed.seconds >= dense.seconds:
            break
        fewest = side * side
    return BreakEven(fewest, _LARGEST_GRID**2, saved)
