"""Estimate what a recipe takes before it runs: tokens, FLOPs and memory of each stage."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from foveate.arguments import check_kind
from foveate.costmodel import Cost, Device, cost, read_model
from foveate.errors import FoveateError
from foveate.layout import Layout
from foveate.numbers import Between, check_whole
from foveate.schedule import tokens_after
from foveate.train.batches import Batches
from foveate.train.parameters import choose_parameters
from foveate.train.prepared import Prepared, prepare
from foveate.train.recipe import CHECKPOINTING, Recipe
from foveate.train.settings import DENSE, RecipeError
from foveate.train.trainer import accumulation
from foveate.train.trainer_options import OPTIMISERS

SAMPLE: Final = 8
"""The number of conversations whose lengths and images are measured."""

_FLOAT32 = 4

_REACHED: Final = 0.4
"""A share of the peak rate, for a second figure of time beside the one at the peak."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage.

    Attributes:
        spec: what is applied.
        steps: optimiser steps.
        kept: visual tokens of a conversation in the last decoder layer.
        mean_over_layers: visual tokens of a conversation per decoder layer, averaged over layers.
        flops: of one conversation, forward and backward; one multiply-add is 2 FLOPs.
        memory: bytes of one process: weights, gradients, the optimiser's state, and activations; an estimate.
        seconds: of one conversation on one device at its peak rate; 0 without a device.
    """

    spec: str
    steps: int
    kept: float
    mean_over_layers: float
    flops: float
    memory: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A whole run.

    Attributes:
        stages: in order.
        conversations: in the data.
        text_tokens: of a conversation, averaged over a sample.
        visual_tokens: of a conversation, dense, averaged over the sample.
        batch: conversations per step.
        per_device: conversations at a time in one process.
        trained: weights that are trained.
        parameters: all weights.
        dense_flops: of one conversation without compression.
        warnings: what people should know.
        processes: how many train together.
        sharded: whether they share weights, gradients and the optimiser's state.
        device: what each has; None if time isn't estimated.
    """

    stages: tuple[StageEstimate, ...]
    conversations: int
    text_tokens: float
    visual_tokens: float
    batch: int
    per_device: int
    trained: int
    parameters: int
    dense_flops: float
    warnings: tuple[str, ...] = ()
    processes: int = 1
    sharded: bool = False
    device: Device | None = None

    @property
    def hours(self) -> float:
        """Hours of the whole run if every device reaches its peak rate; 0 without a device."""
        return sum(stage.steps * self.batch * stage.seconds for stage in self.stages) / self.processes / 3600

    @property
    def flops(self) -> float:
        """FLOPs of the whole run."""
        return sum(stage.steps * self.batch * stage.flops for stage in self.stages)

    @property
    def saved(self) -> float:
        """The share of the FLOPs of a dense run that the stages save."""
        steps = sum(stage.steps for stage in self.stages)
        return 1 - self.flops / (steps * self.batch * self.dense_flops)

    def to_json(self) -> str:
        """Return the same as JSON."""
        plain = dataclasses.asdict(dataclasses.replace(self, device=None))
        plain["device"] = None if self.device is None else self.device.name
        return json.dumps({**plain, "flops": self.flops, "saved": self.saved, "hours": self.hours}, indent=1)

    def __str__(self) -> str:
        head = ("stage", "spec", "steps", "visual tokens", "mean over layers", "GFLOPs each", "PFLOPs", "memory")
        rows = [
            (
                str(number),
                stage.spec,
                f"{stage.steps}",
                f"{stage.kept:.0f}",
                f"{stage.mean_over_layers:.1f}",
                f"{stage.flops / 1e9:,.1f}",
                f"{stage.flops * stage.steps * self.batch / 1e15:,.3f}",
                f"{stage.memory / 1e9:.2f} GB",
            )
            for number, stage in enumerate(self.stages, start=1)
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(
                text.ljust(width) if i == 1 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))
            )
            for row in (head, *rows)
        ]
        lines.append(
            f"{self.conversations:,} conversations of {self.visual_tokens:.0f} visual and {self.text_tokens:.0f} other "
            f"tokens; {self.batch} per step, {self.per_device} at a time; {self.trained / 1e6:,.1f} of "
            f"{self.parameters / 1e6:,.1f} million weights are trained"
        )
        lines.append(
            f"{self.flops / 1e15:,.3f} PFLOPs in all, forward and backward, 1 multiply-add = 2 FLOPs; {self.saved:.0%} "
            "fewer than without compression. Memory is per process, with the optimiser; activations are an estimate"
        )
        if self.device is not None:
            shared = ", in shards" if self.sharded else ""
            most, room = max(stage.memory for stage in self.stages), self.device.memory
            fit = "fits" if most <= room else "DOES NOT FIT"
            lines.append(
                f"on {self.processes} x {self.device.title}{shared}: {most / 1e9:.0f} of {room / 1e9:.0f} GB, {fit}; "
                f"{self.hours:,.1f} hours at the peak rate, {self.hours / _REACHED:,.1f} at {_REACHED:.0%} of it. "
                "Predicted, not measured"
            )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


@dataclass(frozen=True)
class ConversationSize:
    """The size of a conversation: text tokens, visual tokens, its images in pixels, (width, height), and its clips."""

    text: int
    visual: int
    images: tuple[tuple[int, int], ...] = ()
    clips: tuple[tuple[int, int, int], ...] = ()
    """Frames, width and height of each."""


def estimate(recipe: Recipe, processes: int = 1, device: Device | None = None) -> Estimate:
    """Estimate a recipe, after checking everything in it; no weights are loaded.

    Where the model or the data isn't here, published sizes and what the recipe expects of the data are taken.

    Args:
        recipe: what to estimate.
        processes: how many train together.
        device: what each has, to estimate hours.

    Raises:
        FoveateError: something in the recipe is missing, broken, or can't be done on its model.
    """
    check_kind("recipe", recipe, Recipe, "what parse_recipe returns")
    check_whole("processes", processes, Between(1))
    ready = prepare(recipe, estimate=True)
    recipe = ready.recipe
    at_once, _ = accumulation(recipe.batch, recipe.per_device, processes)
    sample = sampled(ready)
    shell = ready.skeleton
    wrapped = choose_parameters(shell, recipe)
    trained = sum(weight.numel() for weight in wrapped.parameters() if weight.requires_grad)
    parameters = sum(weight.numel() for weight in wrapped.parameters())
    sharded = recipe.shards and processes > 1
    fixed = _fixed(wrapped, ready, processes, sharded)
    config = read_model(shell.config)
    stages = []
    for number, spec in enumerate(ready.timetable.specs):
        found = [measure(config, recipe, spec, one) for one in sample]
        stages.append(
            StageEstimate(
                spec,
                ready.timetable.length(number),
                _mean([one[0][-1] for one in found]),
                _mean([sum(one[0]) / len(one[0]) for one in found]),
                _mean([one[1] for one in found]),
                fixed + at_once * _mean([one[2] for one in found]),
                0.0 if device is None else _mean([seconds(config, recipe, spec, one, device) for one in sample]),
            )
        )
    return Estimate(
        tuple(stages),
        len(ready.rows),
        _mean([one.text for one in sample]),
        _mean([measure(config, recipe, DENSE, one)[0][0] for one in sample]),
        recipe.batch,
        at_once,
        trained,
        parameters,
        _mean([measure(config, recipe, DENSE, one)[1] for one in sample]),
        ready.warnings + ((recipe.objective.uncounted,) if recipe.objective.uncounted else ()),
        processes,
        sharded,
        device,
    )


def _fixed(wrapped: nn.Module, ready: Prepared, processes: int, sharded: bool) -> float:
    """Count bytes of a process that don't depend on its batch: weights, gradients, the optimiser's state."""
    recipe = ready.recipe
    stored = _FLOAT32 if recipe.precision == "fp32" else ready.stored
    state = OPTIMISERS[recipe.trainer.get("optim", "adamw_torch")][1]
    trained = sum(weight.numel() for weight in wrapped.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in wrapped.parameters() if not weight.requires_grad)
    # DDP keeps a second copy of the gradients.
    copies = 2 if processes == 1 or sharded else 3
    fixed = trained * (copies * _FLOAT32 + state) + frozen * stored
    if not sharded:
        return fixed
    # Gathered at once: what is in no decoder layer, and two layers, the second while the first is used. Gradients are
    # whole in the format of products, and once more in float32 while they are summed.
    half = _FLOAT32 if recipe.precision == "fp32" else 2
    layers = [(_weights(layer), _weights(layer, trained=True)) for layer in ready.family.decoder_layers]
    largest, largest_trained = max(layers)
    rest = trained + frozen - sum(count for count, _ in layers)
    rest_trained = trained - sum(count for _, count in layers)
    gathered = (rest + 2 * largest) * half + (rest_trained + largest_trained) * (half + _FLOAT32)
    return fixed / processes + gathered


def _weights(module: nn.Module, trained: bool = False) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not trained)


def stage_flops(ready: Prepared) -> tuple[tuple[float, ...], float]:
    """Count FLOPs of one conversation, forward and backward, under each stage's spec and without compression."""
    sample, config = sampled(ready), read_model(ready.skeleton.config)

    def flops(spec: str) -> float:
        return _mean([measure(config, ready.recipe, spec, one)[1] for one in sample])

    return tuple(flops(spec) for spec in ready.timetable.specs), flops(DENSE)


def sampled(ready: Prepared) -> list[ConversationSize]:
    """Measure the first conversations, and check that they and their images can be trained on as the recipe says.

    Raises:
        FoveateError: a conversation can't be trained on, or a spec keeps more tokens than an image has.
    """
    recipe, out = ready.recipe, []
    if ready.expected:
        return [_expected(ready)]
    positions = recipe.objective.dense_positions
    batches = Batches(ready.processor, ready.family, recipe.max_length, positions=positions)
    for index in range(min(SAMPLE, len(ready.rows))):
        one = ready.rows[index]
        recipe.objective.collate(batches, [(index, one)])
        row = batches.row(one)
        ids = row["input_ids"]
        for layout in dict.fromkeys(ready.family.layouts(row)) if "pixel_values" in row else ():
            _check_keeps(ready, layout)
        visual = int((ids == ready.family.image_token).sum())
        out.append(ConversationSize(ids.numel() - visual, visual, tuple(image.size for image in one.pictures())))
    return out


def _expected(ready: Prepared) -> ConversationSize:
    """Return the size of a conversation that the recipe expects."""
    expected = ready.recipe.data.expected
    assert expected is not None
    width, height = expected.image
    layout = ready.family.image_layout(height, width)
    _check_keeps(ready, layout)
    return ConversationSize(expected.text_tokens, layout.total, ((width, height),))


def _check_keeps(ready: Prepared, layout: Layout) -> None:
    stages = {f"stage {number}": stage.spec for number, stage in enumerate(ready.stages, start=1)}
    for where, spec in {**stages, "test": ready.test}.items():
        steps = [each for each in (ready.recipe.data.features, spec) if each not in (None, DENSE)]
        try:
            tokens_after("+".join(steps), ready.family, layout) if steps else None
        except FoveateError as error:
            raise RecipeError(f"{where}: {error}") from None


def measure(config: Any, recipe: Recipe, spec: str, one: ConversationSize) -> tuple[tuple[int, ...], float, float]:
    """Count what one conversation takes under one spec.

    Args:
        config: the model's shapes, from `foveate.costmodel.read_model`.
        recipe: what is trained, and which features are kept.
        spec: what is applied.
        one: the conversation.

    Returns:
        Visual tokens in each decoder layer; FLOPs forward and backward; bytes of activations.
    """
    found, length, times = _passes(config, recipe, spec, one)
    flops = sum(found.part(name).flops * count for name, count in times.items())
    again = _again(recipe)
    return found.layers, flops, _activations(config.decoder, found.layers, one.text, length, recipe.precision, again)


def seconds(config: Any, recipe: Recipe, spec: str, one: ConversationSize, device: Device) -> float:
    """Count seconds of one conversation, forward and backward, on a device; the other arguments are as in `measure`.

    Each part takes as long as in a prompt, as often as it is run. Logits of all positions take their FLOPs.
    """
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[recipe.precision]
    found, _, times = _passes(config, recipe, spec, one, device=device, dtype=dtype)
    head = found.part("head").flops * times.pop("head") / device.rate(dtype)
    return head + sum(found.part(name).seconds * count for name, count in times.items())


def _passes(
    config: Any, recipe: Recipe, spec: str, one: ConversationSize, **place: Any
) -> tuple[Cost, int, dict[str, float]]:
    """Return the cost of a prompt, the decoder's positions, and how often training runs each of its parts."""
    kept = recipe.data.features
    steps = [each for each in (kept, spec) if each not in (None, DENSE)]
    call: dict[str, Any] = {"images": one.images, "clips": one.clips, "text_tokens": one.text, "new_tokens": 1}
    found = cost(config, "+".join(steps) or None, **call, **place)
    length = one.text + (found.visual_tokens if kept is None else _arriving(config, kept, one))
    # Forward once; backward once for activations, and once more for weights that are trained.
    through = 3 if recipe.train == "full" else 2
    return (
        found,
        length,
        {
            "encoder": 0 if kept is not None else 3 if recipe.train_encoder else 1,
            "projector": (1 if recipe.train == "lora" else 3)
            * (1 if kept is None else length / (one.text + one.visual)),
            "compressor": 1,
            "prefill": through + _again(recipe),
            # Under labels every position has logits: compression doesn't shorten these.
            "head": length * through,
        },
    )


def _again(recipe: Recipe) -> bool:
    """Return whether activations are computed again in the backward pass."""
    return any(recipe.trainer.get(key) for key in CHECKPOINTING)


def _arriving(config: Any, kept: str, one: ConversationSize) -> int:
    return cost(config, kept, images=one.images, text_tokens=one.text, new_tokens=1).layers[0]


def _activations(decoder: Any, visual: tuple[int, ...], text: int, length: int, precision: str, again: bool) -> float:
    """Count bytes that the decoder keeps for its backward pass; with checkpointing, one layer's and all inputs."""
    half = _FLOAT32 if precision == "fp32" else 2
    each = []
    for layer, tokens in zip(decoder.layers, visual):
        heads, groups = getattr(layer.mixer, "heads", 0), getattr(layer.mixer, "groups", 0)
        head = getattr(layer.mixer, "head", 0)
        width = layer.mlp.width * getattr(layer.mlp, "active", 1)
        inner = 3 * decoder.hidden + heads * head + 2 * groups * head + 4 * width
        each.append((text + tokens) * (4 * decoder.hidden * _FLOAT32 + inner * half))
    inputs = sum((text + tokens) * decoder.hidden * half for tokens in visual)
    logits = length * decoder.vocabulary * (_FLOAT32 if precision == "fp32" else half + _FLOAT32)
    return logits + (max(each) + inputs if again else sum(each))


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
