"""What a run did: tokens before and after, and our own time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any

from foveate.engine.planning import ImagePlan


@dataclass(frozen=True)
class ImageCount:
    """Visual tokens of one image.

    Attributes:
        before: in the whole prompt, structural tokens included.
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
        """Behind the last step."""
        return self.layers[-1]

    @property
    def mean_over_layers(self) -> float:
        """Tokens per decoder layer, averaged over layers."""
        return sum(self.layers) / len(self.layers)


@dataclass(frozen=True)
class Report:
    """What an `apply` has done so far.

    Attributes:
        spec: the written form of what was applied.
        images: one entry per image and prompt, in the order they came.
        milliseconds: time of the compressor, all images together; the encoder is not in it.
        inside: the part of that time that was spent inside the decoder, and so is in the decoder's time, too.
    """

    spec: str
    images: tuple[ImageCount, ...] = ()
    milliseconds: float = 0.0
    inside: float = 0.0

    @property
    def before(self) -> int:
        """Visual tokens of all images in their whole prompts."""
        return sum(image.before for image in self.images)

    @property
    def after(self) -> int:
        """Visual tokens of all images behind the last step."""
        return sum(image.after for image in self.images)

    @property
    def mean_over_layers(self) -> float:
        """Visual tokens of all images per decoder layer, averaged over layers."""
        return sum(image.mean_over_layers for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return {
            "spec": self.spec,
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
        for number, image in enumerate(self.images, start=1):
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


@dataclass
class Ledger:
    """Collects what a report will say."""

    spec: str
    decoder_layers: int
    images: list[ImageCount] = field(default_factory=list)
    milliseconds: float = 0.0
    inside: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, plans: list[ImagePlan], milliseconds: float) -> int:
        """Enter the images of one call; returns the number of the first."""
        with self._lock:
            first = len(self.images)
            self.images += [
                ImageCount(
                    before=plan.before,
                    layers=(plan.after,) * self.decoder_layers,
                    structural=len(plan.layout.structural),
                    grid=tuple((segment.h, segment.w) for segment in plan.layout.segments),
                )
                for plan in plans
            ]
        self.milliseconds += milliseconds
        return first

    def descend(self, image: int, layer: int, count: int) -> None:
        """Enter that an image, by its number, has `count` tokens from a decoder layer on."""
        layers = self.images[image].layers
        self.images[image] = replace(self.images[image], layers=layers[:layer] + (count,) * (len(layers) - layer))

    def report(self) -> Report:
        """What has been collected so far."""
        return Report(self.spec, tuple(self.images), self.milliseconds, self.inside)
