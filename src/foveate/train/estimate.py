"""Estimate what a recipe takes before it runs: tokens, FLOPs and memory of each stage."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final

from foveate.arguments import check_kind
from foveate.costmodel import cost, read_model
from foveate.errors import FoveateError
from foveate.layout import Layout
from foveate.loading import skeleton
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
    """

    spec: str
    steps: int
    kept: float
    mean_over_layers: float
    flops: float
    memory: float


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
        return json.dumps({**dataclasses.asdict(self), "flops": self.flops, "saved": self.saved}, indent=1)

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


def estimate(recipe: Recipe, processes: int = 1) -> Estimate:
    """Estimate a recipe, after checking everything in it; no weights are loaded.

    Raises:
        FoveateError: something in the recipe is missing, broken, or can't be done on its model.
    """
    check_kind("recipe", recipe, Recipe, "what parse_recipe returns")
    check_whole("processes", processes, Between(1))
    ready = prepare(recipe)
    recipe = ready.recipe
    at_once, _ = accumulation(recipe.batch, recipe.per_device, processes)
    sample = sampled(ready)
    shell = skeleton(**recipe.source)
    stored = 2 if str(shell.dtype).endswith(("float16", "bfloat16")) and recipe.precision != "fp32" else _FLOAT32
    wrapped = choose_parameters(shell, recipe)
    trained = sum(weight.numel() for weight in wrapped.parameters() if weight.requires_grad)
    parameters = sum(weight.numel() for weight in wrapped.parameters())
    # Weights, gradients and the optimiser's state of what is trained; DDP keeps a second copy of the gradients.
    state = OPTIMISERS[recipe.trainer.get("optim", "adamw_torch")][1]
    copies = 2 if processes == 1 else 3
    fixed = trained * (copies * _FLOAT32 + state) + (parameters - trained) * stored
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
    )


def stage_flops(ready: Prepared) -> tuple[tuple[float, ...], float]:
    """Count FLOPs of one conversation, forward and backward, under each stage's spec and without compression."""
    sample, config = sampled(ready), read_model(skeleton(**ready.recipe.source).config)

    def flops(spec: str) -> float:
        return _mean([measure(config, ready.recipe, spec, one)[1] for one in sample])

    return tuple(flops(spec) for spec in ready.timetable.specs), flops(DENSE)


def sampled(ready: Prepared) -> list[ConversationSize]:
    """Measure the first conversations, and check that every spec of the recipe can be done on their images.

    Raises:
        FoveateError: a conversation can't be trained on, or a spec keeps more tokens than an image has.
    """
    recipe, out = ready.recipe, []
    positions = recipe.objective.dense_positions
    batches = Batches(ready.processor, ready.family, recipe.max_length, positions=positions)
    for index in range(min(SAMPLE, len(ready.rows))):
        one = ready.rows[index]
        row = batches.row(one)
        ids = row["input_ids"]
        for layout in dict.fromkeys(ready.family.layouts(row)) if "pixel_values" in row else ():
            _check_keeps(ready, layout)
        visual = int((ids == ready.family.image_token).sum())
        out.append(ConversationSize(ids.numel() - visual, visual, tuple(image.size for image in one.pictures())))
    return out


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
    kept = recipe.data.features
    steps = [each for each in (kept, spec) if each not in (None, DENSE)]
    call: dict[str, Any] = {"images": one.images, "clips": one.clips, "text_tokens": one.text, "new_tokens": 1}
    found = cost(config, "+".join(steps) or None, **call)
    length = one.text + (found.visual_tokens if kept is None else _arriving(config, kept, one))
    full = recipe.train == "full"
    # Forward once; backward once for activations, and once more for weights that are trained.
    through = 3 if full else 2
    again = any(recipe.trainer.get(key) for key in CHECKPOINTING)
    encoder = 0 if kept is not None else found.part("encoder").flops * (3 if recipe.train_encoder else 1)
    projector = found.part("projector").flops * (1 if recipe.train == "lora" else 3)
    flops = (
        encoder
        + projector * (1 if kept is None else length / (one.text + one.visual))
        + found.part("compressor").flops
        + found.part("prefill").flops * (through + again)
        # Under labels every position has logits: compression doesn't shorten these.
        + found.part("head").flops * length * through
    )
    return found.layers, flops, _activations(config.decoder, found.layers, one.text, length, recipe.precision, again)


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
