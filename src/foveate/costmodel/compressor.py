"""Estimate the work of the steps themselves: plans, the signals that they need, and a second projection."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.costmodel.decoder_shape import Attention
from foveate.costmodel.model import Model
from foveate.costmodel.ops import CallPart, Op, elementwise, linear
from foveate.costmodel.vision_work import projector_work
from foveate.errors import FoveateError
from foveate.families.vision_shape import VisionShape
from foveate.schedule import ImageTokens, StepTokens
from foveate.tokens import DecoderAttention, DecoderKeys, DecoderLogits, EncoderAttention, EncoderKeys, Signal, Text

_FLOAT32 = 4
# What the engine starts beside plans and signals at batch 1, as counted in tests/engine/test_operations.py.
_LOOKING, _CUTTING, _TEXT = 7, 6, 8
_ENCODER_LAYER, _DECODER_LAYER, _PACKING = 32, 24, 30
_DECODING, _DECODING_PACKED = 6, 10
_SIGNAL = 1


def compressor_work(images: Sequence[ImageTokens], model: Model, text: int, batch: int, size: int) -> CallPart:
    """Estimate the work of the steps on the images of a prompt.

    Equal images are planned as one batch, so their launches are counted once.

    Args:
        images: of a prompt.
        model: sizes of the model.
        text: tokens of a prompt beside the visual ones.
        batch: equal prompts.
        size: bytes of a number.

    Raises:
        FoveateError: a step needs what is not known of the model.
    """
    equal: dict[tuple[StepTokens, ...], list[ImageTokens]] = {}
    for image in images:
        equal.setdefault(image.steps, []).append(image)
    ops = _engine_work(list({image.steps: image for image in images}.values()))
    for steps, alike in equal.items():
        patches = sum(grid.count for grid in model.family.encoder_grids(alike[-1].seen))
        for step in steps:
            ops += _step(step, model, patches, text, len(alike) * batch, size)
    return CallPart("compressor", tuple(ops))


def plan_bytes(images: Sequence[ImageTokens], model: Model, batch: int, size: int) -> int:
    """Estimate the most bytes that a plan holds at once; equal images are planned as one batch.

    Args:
        images: of a prompt.
        model: sizes of the model.
        batch: equal prompts.
        size: bytes of a number.
    """
    equal: dict[tuple[StepTokens, ...], int] = {}
    for image in images:
        equal[image.steps] = equal.get(image.steps, 0) + batch
    most = 0
    for steps, number in equal.items():
        for step in steps:
            width = _width(step, model)
            copy = 0 if size == _FLOAT32 else _FLOAT32 * step.arriving * width
            most = max(most, number * (step.method.memory(step.arriving, width) + copy))
    return most


def _step(step: StepTokens, model: Model, patches: int, text: int, images: int, size: int) -> list[Op]:
    """Return the work of one step on equal images."""
    vision, method = model.vision, step.method
    if method.keeps_all(step.arriving) and step.place != "encoder":
        return []
    needs_encoder = any(isinstance(need, EncoderKeys | EncoderAttention) for need in method.needs)
    if vision is None and (step.place in ("encoder", "features") or needs_encoder):
        raise FoveateError(
            f"{method.name} acts on what is inside the vision side, and of {model.kind} that is not known"
        )
    width = _width(step, model)
    effort = method.effort(step.arriving, width)
    ops = [
        Op(
            f"plan of {method.name}",
            flops=effort.flops * images,
            moved=images * step.arriving * width * (size + _FLOAT32),
            launches=effort.launches,
            waits=effort.waits,
        )
    ]
    for signal in method.needs:
        if isinstance(signal, EncoderKeys | EncoderAttention) and vision is not None:
            ops += _encoder_signal(signal, step, vision, patches, images, size)
        elif isinstance(step.place, int):
            ops.append(Op("signal", launches=_SIGNAL))
        if isinstance(signal, DecoderAttention | DecoderKeys | DecoderLogits):
            ops += _decoder_signal(signal, step, model, text, images, size)
    moved_width = vision.width if vision is not None and step.place == "encoder" else width
    # The launches of the gather are among those of the plan.
    ops.append(elementwise("gather", images * (step.arriving + step.kept) * moved_width, 2, size, launches=0))
    if step.place == "features":
        ops += projector_work(vision, step.kept, images, size, extra=False).ops
    return ops


def _width(step: StepTokens, model: Model) -> int:
    """Return the width of the vectors that a step compares."""
    vision = model.vision
    if vision is None or step.place not in ("encoder", "features"):
        return model.decoder.hidden
    if step.place == "features":
        return vision.projector_inputs
    by_keys = any(isinstance(need, EncoderKeys) and need.heads == "mean" for need in step.method.needs)
    return vision.width // vision.heads if by_keys else vision.width


def _encoder_signal(
    signal: EncoderKeys | EncoderAttention, step: StepTokens, vision: VisionShape, patches: int, images: int, size: int
) -> list[Op]:
    """Return the work of computing queries and keys of an encoder layer again."""
    width, ops = vision.width, list[Op]()
    patches = vision.rows_in(signal.layer, patches)
    # Inside the encoder the keys of the layer before are there already.
    if step.place != "encoder":
        ops.append(linear("keys again", images * patches, width, width, size))
    if isinstance(signal, EncoderAttention):
        # One row of [CLS]; an encoder without it is asked for every row, inside windows where it has some.
        queries = 1 if vision.marks else patches
        ops.append(linear("queries again", images * queries, width, width, size))
        scores = images * queries * (patches if vision.window is None else min(patches, vision.window**2))
        ops.append(_scores(scores, width, 4 * scores * vision.heads, launches=3))
    return ops


def _decoder_signal(signal: Signal, step: StepTokens, model: Model, text: int, images: int, size: int) -> list[Op]:
    """Return the work of computing queries and keys of a decoder layer again."""
    assert isinstance(signal, DecoderAttention | DecoderKeys | DecoderLogits)
    decoder = model.decoder
    layer = step.place if isinstance(step.place, int) else 0
    mixer = decoder.layers[min(layer, len(decoder.layers) - 1)].mixer
    if not isinstance(mixer, Attention):
        raise FoveateError(f"{step.method.name} needs attention, and decoder layer {layer} has none")
    tokens, ops = step.arriving + text, list[Op]()
    # Keys of the layer before are in the cache by then.
    if signal.layer == "here":
        ops.append(linear("keys again", images * tokens, decoder.hidden, mixer.groups * mixer.head, size))
    if not isinstance(signal, DecoderKeys):
        queries = {"last": 1, "text": text}.get(getattr(signal, "rows", "all"), step.arriving)
        ops.append(linear("queries again", images * queries, decoder.hidden, mixer.heads * mixer.head, size))
        if isinstance(signal, DecoderAttention):
            scores = images * queries * tokens * mixer.heads
            ops.append(_scores(scores, mixer.head, 4 * scores, launches=32))
    return ops


def _scores(products: int, width: int, elements: int, launches: int) -> Op:
    """Return the work of attention scores and their softmax in float32."""
    return Op("scores", flops=2 * products * width, moved=elements * _FLOAT32, launches=launches)


def _engine_work(images: Sequence[ImageTokens]) -> list[Op]:
    """Return what the engine does itself: it finds the prompt's images, cuts the prompt, and cuts at decoder layers."""
    steps = [step for image in images for step in image.steps]
    smaller = any(image.seen != image.layout for image in images)
    if not steps and not smaller:
        return []
    changing = _changing(images)
    before = [step for step in changing if not isinstance(step.place, int)]
    inside = {step.place: step for step in changing if isinstance(step.place, int)}
    ops = [Op("looking", launches=_LOOKING, waits=2)]
    if before or smaller:
        ops.append(Op("cutting the prompt", launches=_CUTTING, waits=1))
    if any(isinstance(need, Text) for step in before for need in step.method.needs):
        ops.append(Op("text", launches=_TEXT, waits=3))
    patches = [step for step in before if step.place == "encoder"]
    if patches:
        ops.append(Op("between encoder layers", launches=_ENCODER_LAYER * len(patches), waits=1))
    for step in inside.values():
        packing = _PACKING if step.method.positions == "pack" else 0
        ops.append(Op("cutting at a layer", launches=_DECODER_LAYER + packing))
    return ops


def with_steps(part: CallPart, images: Sequence[ImageTokens], tokens: int) -> CallPart:
    """Return the decoding of some tokens, with what the engine adds to each of them if there are steps."""
    ops = _engine_work(images)
    if not tokens or not ops:
        return part
    packed = any(isinstance(step.place, int) and step.method.positions == "pack" for step in _changing(images))
    launches = _DECODING + (_DECODING_PACKED if packed else 0)
    return CallPart(part.name, (*part.ops, Op("places", launches=launches, times=tokens)))


def _changing(images: Sequence[ImageTokens]) -> list[StepTokens]:
    """Return the steps that leave something out."""
    return [step for image in images for step in image.steps if not step.method.keeps_all(step.arriving)]
