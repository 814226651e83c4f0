"""From encoded images to what is left of them: images of one layout are planned as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.cut import CutImage
from foveate.engine.encode import Encoded
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.methods import Method
from foveate.methods.tiles import plan_of
from foveate.plan import Plan
from foveate.schedule import ExpectedTokens as Remaining
from foveate.schedule import Schedule, schedule
from foveate.schedule.resizing import dense_slots
from foveate.spec import Spec
from foveate.tokens import Layout, Origin, Segment, Signal, Signals, Text, VisualTokens


@dataclass(frozen=True)
class ImagePlan:
    """What became of one image.

    Attributes:
        layout: its full layout.
        seen: the layout that the plan is over: the full one, or the smaller one of a step at `@pixels`.
        plan: a batch of one image; None if nothing was planned inside the encoder or behind it.
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
    methods = schedule.ahead
    if not methods and seen == layout and not layout.structural and not encoded.inside:
        return [_whole(family, encoded, layout, image) for image in members]
    if len(members) > 1 and any(method.ragged for method in methods[:-1]):
        # What arrives at a later step differs from image to image.
        return [_plan_group(family, schedule, encoded, texts, layout, seen, [image])[0] for image in members]

    course = _Course(seen, Remaining.of(seen))
    if schedule.encoder is not None:
        course.remaining = course.remaining.after(schedule.encoder)
    if encoded.inside:
        course.plan = Plan.batch([encoded.inside[image] for image in members])
    if schedule.features:
        assert encoded.features is not None
        stack = torch.stack([encoded.features[image] for image in members])
        for method in schedule.features:
            stack = course.step(method, stack, encoded, None, members)
        features = family.project(stack)
    else:
        features = torch.stack([encoded.projected[image] for image in members])
    for method in schedule.inputs:
        features = course.step(method, features, encoded, texts, members)
    plan = course.plan

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
    for row, image in enumerate(members):
        kept = slots[row] if valid is None else slots[row][valid[row]]
        values, *companions = (
            each[row] if valid is None else each[row][valid[row].to(each.device)] for each in (features, *levels)
        )
        slot, source = layout.placed(to_dense[kept])
        if layout.structural:
            source = source.to(values.device)
            newlines = encoded.structural[image].to(values)
            values = torch.cat([values, newlines])[source]
            # A companion has nothing to say of a structural token.
            companions = [
                torch.cat([each, each.new_zeros(newlines.shape[0], each.shape[1])])[source] for each in companions
            ]
        if packed:
            positions = torch.arange(slot.shape[0]).expand(relative.shape[0], -1)
            span = slot.shape[0]
        else:
            positions = relative[:, seen.placed(kept)[0] if small else slot]
            span = family.image_span(base)
        cut = CutImage(
            layout,
            slot,
            values,
            positions,
            span,
            companions=tuple(companions),
            untouched=not packed and not small,
        )
        results.append(ImagePlan(layout, seen, None if plan is None else plan.image(row, len(kept)), cut))
    return results


def _whole(family: Family, encoded: Encoded, layout: Layout, image: int) -> ImagePlan:
    """An image of which everything enters the decoder."""
    places = torch.arange(layout.total)
    cut = CutImage(
        layout,
        places,
        encoded.projected[image],
        family.image_positions(layout),
        family.image_span(layout),
        companions=tuple(encoded.companions[image]),
        untouched=True,
    )
    return ImagePlan(layout, layout, None, cut)


_ENCODED = "foveate_encoded"


def encoder_outputs(model: nn.Module, encoded: Encoded) -> dict[str, Any]:
    """Encoded images as `mm_encoder_outputs` at full length, for one prompt or batch under `apply`.

    The encoder isn't run again. `generate` changes what it is given, so each call needs its own.

    Args:
        model: that encoded them.
        encoded: the images in prompt order, encoded for the spec that is applied (and maybe others).

    Raises:
        UnsupportedFamily: the model is of no supported family.
    """
    family = family_of(model)
    images = plan_images(family, schedule(Spec(()), family), encoded)
    # One image may come several times, and each time with a question of its own.
    features = [image.cut.features[:] for image in images]
    outputs = family.container(features, [image.cut.companions for image in images])
    setattr(outputs["image"], _ENCODED, replace(encoded))
    return outputs


def encoded_of(output: Any) -> Encoded | None:
    """The images that `encoder_outputs` made this output of, or None if the model made it."""
    return getattr(output, _ENCODED, None)


@dataclass
class _Course:
    """Images of one layout on their way through the steps behind the encoder, or from inside it on.

    Attributes:
        seen: the layout that the encoder saw.
        remaining: what is left of it so far, as the layout tells.
        plan: what became of it so far.
    """

    seen: Layout
    remaining: Remaining
    plan: Plan | None = None

    def step(
        self,
        method: Method,
        features: Tensor,
        encoded: Encoded,
        texts: Sequence[Tensor] | None,
        members: Sequence[int],
    ) -> Tensor:
        """One method on what arrives: features `(B, N, D)` -> `(B, M, D)`."""
        before = self.plan
        stacks = {s: torch.stack([values[image] for image in members]) for s, values in encoded.signals.items()}
        answers: dict[Signal, Tensor] = (
            stacks if before is None else {s: before.select(value) for s, value in stacks.items()}
        )
        if texts is not None:
            answers = {**answers, Text(): torch.stack([texts[image] for image in members]).to(features.device)}
        if before is None:
            layout, origin = self.seen, None
        else:
            layout = Layout((Segment(1, 1, features.shape[1]),))
            tiles = self.remaining.tiles
            origin = Origin(self.seen, before.slot, None if tiles is None else tuple(tile.content for tile in tiles))
        tokens = VisualTokens(features if method.trained else features.detach(), layout, Signals(answers), origin)
        with torch.set_grad_enabled(method.trained and torch.is_grad_enabled()):
            plan = plan_of(method, tokens)
        self.plan = plan if before is None else before.compose(plan, self.seen.content)
        self.remaining = self.remaining.after(method)
        return plan.apply(features)
