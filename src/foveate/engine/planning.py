"""From encoded images to what is left of them: images of one layout are planned as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.engine.cut import CutImage
from foveate.engine.encode import Encoded
from foveate.engine.schedule import Schedule
from foveate.engine.watch import dense_slots
from foveate.errors import FoveateError
from foveate.methods import Method
from foveate.models import Family
from foveate.plan import Plan
from foveate.tokens import Layout, Segment, Signal, Signals, Text, VisualTokens


@dataclass(frozen=True)
class ImagePlan:
    """What became of one image.

    Attributes:
        layout: its full layout.
        seen: the layout that the plan is over: the full one, or the smaller one of a step at `@pixels`.
        plan: a batch of one image; None if nothing was planned behind the encoder.
        cut: what goes into the prompt.
    """

    layout: Layout
    seen: Layout
    plan: Plan | None
    cut: CutImage

    @property
    def before(self) -> int:
        """Tokens of the image in the whole prompt, structural ones included."""
        return self.layout.total

    @property
    def after(self) -> int:
        """Tokens of the image in the shorter prompt."""
        return int(self.cut.slot.shape[0])


def plan_images(
    family: Family, schedule: Schedule, encoded: Encoded, texts: Sequence[Tensor] | None = None
) -> list[ImagePlan]:
    """Make and apply the plans of all images, in their order.

    Args:
        family: of the model.
        schedule: what to do.
        encoded: the images.
        texts: per image `(T, D)`, the text that stands with it; for schedules that read it.

    Raises:
        FoveateError: the text is read, and an image stands without any.
    """
    groups: dict[tuple[Layout, Layout, int], list[int]] = {}
    for image, (layout, seen) in enumerate(zip(encoded.layouts, encoded.seen, strict=True)):
        # Texts of different length can't be one batch without padding, which a method would have to know about.
        length = 0 if texts is None else texts[image].shape[0]
        if texts is not None and not length:
            raise FoveateError(f"{schedule.spec} reads the question, and image {image} came without any text")
        groups.setdefault((layout, seen, length), []).append(image)
    planned: dict[int, ImagePlan] = {}
    for (layout, seen, _), members in groups.items():
        results = _plan_group(family, schedule, encoded, texts, layout, seen, members)
        for image, result in zip(members, results, strict=True):
            planned[image] = result
    return [planned[image] for image in range(len(encoded))]


def _plan_group(
    family: Family,
    schedule: Schedule,
    encoded: Encoded,
    texts: Sequence[Tensor] | None,
    layout: Layout,
    seen: Layout,
    members: Sequence[int],
) -> list[ImagePlan]:
    methods: tuple[Method, ...] = (*schedule.features, *schedule.inputs)
    if len(members) > 1 and any(method.ragged for method in methods[:-1]):
        # What arrives at a later step differs from image to image.
        return [_plan_group(family, schedule, encoded, texts, layout, seen, [image])[0] for image in members]

    plan: Plan | None = None
    if schedule.features:
        assert encoded.features is not None
        stack = torch.stack([encoded.features[image] for image in members])
        for method in schedule.features:
            plan, stack = _step(method, stack, plan, encoded, None, seen, members)
        features = family.project(stack)
    else:
        features = torch.stack([encoded.projected[image] for image in members])
    for method in schedule.inputs:
        plan, features = _step(method, features, plan, encoded, texts, seen, members)

    levels = [torch.stack(level) for level in zip(*(encoded.companions[image] for image in members), strict=True)]
    if plan is not None:
        levels = [plan.apply(level) for level in levels]

    packed = any(method.positions == "pack" for method in methods)
    small = schedule.pixels is not None and schedule.pixels.positions == "pack" and seen != layout
    base = seen if small else layout
    relative = family.image_positions(base)
    to_dense = dense_slots(seen, layout)
    # One copy to the host for the whole group: the prompt is cut there.
    slots = torch.arange(seen.content).expand(len(members), -1) if plan is None else plan.slot.cpu()
    valid = None if plan is None or plan.valid is None else plan.valid.cpu()
    results: list[ImagePlan] = []
    for row in range(len(members)):
        kept = slots[row] if valid is None else slots[row][valid[row]]
        values, *companions = (
            each[row] if valid is None else each[row][valid[row].to(each.device)] for each in (features, *levels)
        )
        if packed:
            positions = torch.arange(kept.shape[0]).expand(relative.shape[0], -1)
            span = kept.shape[0]
        else:
            positions = relative[:, kept if small else to_dense[kept]]
            span = family.image_span(base)
        cut = CutImage(
            layout,
            to_dense[kept],
            values,
            positions,
            span,
            companions=tuple(companions),
            untouched=not packed and not small,
        )
        results.append(ImagePlan(layout, seen, None if plan is None else _row(plan, row, kept), cut))
    return results


def _step(
    method: Method,
    features: Tensor,
    before: Plan | None,
    encoded: Encoded,
    texts: Sequence[Tensor] | None,
    seen: Layout,
    members: Sequence[int],
) -> tuple[Plan, Tensor]:
    """One method on what arrives: features `(B, N, D)` -> the plan so far and features `(B, M, D)`."""
    stacks = {s: torch.stack([values[image] for image in members]) for s, values in encoded.signals.items()}
    answers: dict[Signal, Tensor] = (
        stacks if before is None else {s: before.select(value) for s, value in stacks.items()}
    )
    if texts is not None:
        answers = {**answers, Text(): torch.stack([texts[image] for image in members]).to(features.device)}
    signals = Signals(answers)
    layout = seen if before is None else Layout((Segment(1, 1, features.shape[1]),))
    with torch.set_grad_enabled(method.trained and torch.is_grad_enabled()):
        seen_by_method = features if method.trained else features.detach()
        plan = method.plan(VisualTokens(seen_by_method, layout, signals))
    return (plan if before is None else before.compose(plan, seen.content)), plan.apply(features)


def _row(plan: Plan, row: int, kept: Tensor) -> Plan:
    """The plan of one image of a batch, without the padding of a ragged one."""

    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[row : row + 1]

    mix = of(plan.mix)
    if mix is not None:
        # Kept tokens come first, so what is behind them is padding; groups never point there.
        mix = mix[:, : kept.shape[0]]
    return Plan(slot=kept[None].to(plan.slot.device), group=of(plan.group), weight=of(plan.weight), mix=mix)
