"""What a run did: tokens before and after, and our own time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from foveate.engine.planning import ImagePlan


@dataclass(frozen=True)
class ImageCount:
    """Visual tokens of one image.

    Attributes:
        before: in the whole prompt, structural tokens included.
        after: behind the last step, structural tokens included.
        structural: how many of `before` are structural.
        mean_over_layers: tokens per decoder layer, averaged over layers.
        grid: rows and columns of each grid of the image.
    """

    before: int
    after: int
    structural: int
    mean_over_layers: float
    grid: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Report:
    """What an `apply` has done so far.

    Attributes:
        spec: the written form of what was applied.
        images: one entry per image and prompt, in the order they came.
        milliseconds: time of the compressor, all images together; the encoder is not in it.
    """

    spec: str
    images: tuple[ImageCount, ...] = ()
    milliseconds: float = 0.0

    @property
    def before(self) -> int:
        """Visual tokens of all images in their whole prompts."""
        return sum(image.before for image in self.images)

    @property
    def after(self) -> int:
        """Visual tokens of all images behind the last step."""
        return sum(image.after for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return {
            "spec": self.spec,
            "tokens_before": self.before,
            "tokens_after": self.after,
            "milliseconds": self.milliseconds,
            "images": [
                {
                    "before": image.before,
                    "after": image.after,
                    "structural": image.structural,
                    "mean_over_layers": image.mean_over_layers,
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
        lines.append(
            f"{self.spec}: {self.before} -> {self.after} visual tokens ({share:.1%}), "
            f"compressor {self.milliseconds:.1f} ms"
        )
        return "\n".join(lines)


@dataclass
class Ledger:
    """Collects what a report will say."""

    spec: str
    images: list[ImageCount] = field(default_factory=list)
    milliseconds: float = 0.0

    def add(self, plans: list[ImagePlan], milliseconds: float) -> None:
        """Enter the images of one call."""
        for plan in plans:
            self.images.append(
                ImageCount(
                    before=plan.before,
                    after=plan.after,
                    structural=len(plan.layout.structural),
                    mean_over_layers=float(plan.after),
                    grid=tuple((segment.h, segment.w) for segment in plan.layout.segments),
                )
            )
        self.milliseconds += milliseconds

    def report(self) -> Report:
        """What has been collected so far."""
        return Report(self.spec, tuple(self.images), self.milliseconds)
