"""What a run did: tokens before and after, its plans, and the compressor's own time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.engine.prompt import CompressedImage
from foveate.numbers import Between, check_whole
from foveate.plan import Plan
from foveate.tokens import Layout

PLANS_KEPT = 256
"""`Run.plans` holds the plans of so many images, the latest ones."""
COUNTS_KEPT = 1024
"""A report has an entry for so many images, the latest ones; all are in its sums."""
_LINES = 32
"""The written report has a line for so many images."""


@dataclass(frozen=True)
class ImageCount:
    """Visual tokens of one image.

    Attributes:
        before: in the full prompt, structural tokens included.
        layers: in each decoder layer, structural tokens included.
        structural: how many of `before` are structural.
        grid: rows and columns of each grid of the image.
    """

    before: int
    layers: tuple[int, ...]
    structural: int
    grid: tuple[tuple[int, int], ...]

    @property
    def after(self) -> int:
        """Return the tokens after the last step."""
        return self.layers[-1]

    @property
    def mean_over_layers(self) -> float:
        """Return the tokens per decoder layer, averaged over layers."""
        return sum(self.layers) / len(self.layers)


@dataclass(frozen=True)
class Sums:
    """Visual tokens of several images, added up."""

    images: int = 0
    before: int = 0
    after: int = 0
    mean_over_layers: float = 0.0

    def plus(self, image: ImageCount) -> Sums:
        """Return the sums with one image more."""
        mean = self.mean_over_layers + image.mean_over_layers
        return Sums(self.images + 1, self.before + image.before, self.after + image.after, mean)


@dataclass(frozen=True)
class Report:
    """What an `apply` has done so far.

    Attributes:
        spec: the written form of what was applied.
        images: one entry per image and prompt, in the order they came: the latest 1024.
        milliseconds: time of the compressor, all images together, without the encoder.
        inside: the part of that time that was spent inside the decoder, and so is in the decoder's time, too.
        earlier: the sums over the images that came before `images`.
    """

    spec: str
    images: tuple[ImageCount, ...] = ()
    milliseconds: float = 0.0
    inside: float = 0.0
    earlier: Sums = Sums()

    @property
    def sums(self) -> Sums:
        """Return the sums over all images."""
        return reduce(Sums.plus, self.images, self.earlier)

    @property
    def before(self) -> int:
        """Return the visual tokens of all images in their full prompts."""
        return self.sums.before

    @property
    def after(self) -> int:
        """Return the visual tokens of all images after the last step."""
        return self.sums.after

    @property
    def mean_over_layers(self) -> float:
        """Return the visual tokens of all images per decoder layer, averaged over layers."""
        return self.sums.mean_over_layers

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, for JSON."""
        return {
            "spec": self.spec,
            "image_count": self.sums.images,
            "tokens_before": self.before,
            "tokens_after": self.after,
            "mean_over_layers": self.mean_over_layers,
            "milliseconds": self.milliseconds,
            "images": [
                {
                    "before": image.before,
                    "after": image.after,
                    "structural": image.structural,
                    "mean_over_layers": image.mean_over_layers,
                    "layers": list(image.layers),
                    "grid": [list(grid) for grid in image.grid],
                }
                for image in self.images
            ],
        }

    def __str__(self) -> str:
        if not self.images:
            return f"{self.spec}: no image has come yet"
        lines = [f"{'image':>5}  {'grid':>9}  {'before':>6}  {'after':>6}  {'mean over layers':>16}"]
        first = max(0, len(self.images) - _LINES)
        if hidden := self.earlier.images + first:
            lines.append(f"{'...':>5}  {hidden} earlier images")
        for number, image in enumerate(self.images[first:], start=hidden + 1):
            grid = "+".join(f"{h}x{w}" for h, w in image.grid)
            lines.append(
                f"{number:>5}  {grid:>9}  {image.before:>6}  {image.after:>6}  {image.mean_over_layers:>16.1f}"
            )
        share = self.after / self.before
        inside = any(len(set(image.layers)) > 1 for image in self.images)
        mean = f", {self.mean_over_layers / self.before:.1%} over all layers" if inside else ""
        lines.append(
            f"{self.spec}: {self.before} -> {self.after} visual tokens ({share:.1%}{mean}), "
            f"compressor {self.milliseconds:.1f} ms"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class ImagePlans:
    """Which tokens of one image were kept at each step, and where each of the others went.

    Tokens are content tokens of `seen`, numbered in raster order from 0; newlines and separators are not among them.

    Attributes:
        layout: the image's full layout.
        seen: the layout that the encoder saw: smaller than `layout` after a step at `@pixels`.
        steps: per decoder layer at whose input something was done, the plan of that step: a batch of one image, over
            what arrived there. Layer 0 stands for all that was done before the decoder.
        decoder_layers: how many layers the decoder has.
    """

    layout: Layout
    seen: Layout
    steps: dict[int, Plan]
    decoder_layers: int

    def plan(self, layer: int = -1) -> Plan:
        """Return what became of the image by a decoder layer: a batch of one, over all N tokens of `seen`.

        Args:
            layer: of the decoder, its step included; -1 for after the last step.

        Raises:
            FoveateError: there is no such layer.
        """
        layer = check_whole("layer", layer, Between(-1, self.decoder_layers - 1))
        plan: Plan | None = None
        for step, later in sorted(self.steps.items()):
            if layer < 0 or step <= layer:
                plan = later if plan is None else plan.compose(later, self.seen.content)
        return Plan(torch.arange(self.seen.content)[None]) if plan is None else plan

    def kept(self, layer: int = -1) -> Int64[Tensor, " M"]:
        """Return which tokens are left in a decoder layer, ascending."""
        return self.plan(layer).slot[0]

    def into(self, layer: int = -1) -> Int64[Tensor, " N"]:
        """Return, for each token, the token that it has flowed into by a decoder layer; itself if kept, -1 if dropped.

        Of a token that flows into several, the one that takes most of it.
        """
        plan = self.plan(layer)
        slot, tokens = plan.slot[0], self.seen.content
        into = slot.new_full((tokens,), -1)
        if len(slot) and plan.mix is not None:
            share, group = plan.mix[0].max(dim=0)
            into = slot[group].masked_fill(share == 0, -1)
        elif len(slot) and plan.group is not None:
            into = torch.where(plan.group[0] >= 0, slot[plan.group[0].clamp(min=0)], -1)
        into[slot] = slot
        return into


@dataclass
class ReportBuilder:
    """Collects what a report and its plans will hold."""

    spec: str
    decoder_layers: int
    milliseconds: float = 0.0
    inside: float = 0.0
    _counts: OrderedDict[int, ImageCount] = field(default_factory=OrderedDict)
    """Per image, by its number: its tokens."""
    _earlier: Sums = Sums()
    _came: int = 0
    _plans: OrderedDict[int, tuple[CompressedImage, dict[int, tuple[Plan, int]]]] = field(default_factory=OrderedDict)
    """Per image, by its number: what entered the decoder, and per layer the plan of a batch and the image's row."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, images: Sequence[CompressedImage], milliseconds: float) -> int:
        """Enter the images of one call; return the number of the first."""
        with self._lock:
            first = self._came
            self._came += len(images)
            for number, image in enumerate(images, start=first):
                self._counts[number] = ImageCount(
                    before=image.before,
                    layers=(image.after,) * self.decoder_layers,
                    structural=len(image.layout.structural),
                    grid=tuple((segment.h, segment.w) for segment in image.layout.segments),
                )
                # Features aren't kept: they are large, and no plan needs them.
                self._plans[number] = (replace(image, features=image.features.new_empty(0), companions=()), {})
            while len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
            # Steps inside the decoder are still to come for the images of this call.
            while len(self._counts) > max(COUNTS_KEPT, len(images)):
                self._earlier = self._earlier.plus(self._counts.popitem(last=False)[1])
        self.milliseconds += milliseconds
        return first

    def add_step(self, image: int, layer: int, count: int) -> None:
        """Enter that an image, by its number, has `count` tokens from a decoder layer on."""
        with self._lock:
            if (found := self._counts.get(image)) is not None:
                layers = found.layers[:layer] + (count,) * (len(found.layers) - layer)
                self._counts[image] = replace(found, layers=layers)

    def add_plan(self, image: int, layer: int, plan: Plan, row: int) -> None:
        """Enter the plan of a step inside the decoder for an image, by its number: one row of a batch."""
        with self._lock:
            if image in self._plans:
                self._plans[image][1][layer] = (plan, row)

    def report(self) -> Report:
        """Return what has been collected so far."""
        with self._lock:
            return Report(self.spec, tuple(self._counts.values()), self.milliseconds, self.inside, self._earlier)

    def plans(self) -> tuple[ImagePlans, ...]:
        """Return the plans of the latest images."""
        with self._lock:
            entries = [(image, dict(inside)) for image, inside in self._plans.values()]
        return tuple(
            ImagePlans(image.layout, image.grid, _steps(image, inside), self.decoder_layers)
            for image, inside in entries
        )


def _steps(image: CompressedImage, inside: dict[int, tuple[Plan, int]]) -> dict[int, Plan]:
    """Return the plan of each step of one image, per decoder layer."""
    steps = {} if image.plan is None else {0: image.plan}
    for layer, (plan, row) in inside.items():
        steps[layer] = plan.image(row, None if plan.valid is None else int(plan.valid[row].sum()))
    return steps
