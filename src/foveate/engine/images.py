"""From encoded images to compressed ones, before the decoder: images of one layout are planned as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.containers import mark_images
from foveate.engine.encode import Encoded
from foveate.engine.modalities import containers, modality_of
from foveate.engine.prompt import CompressedImage, reaches_of
from foveate.engine.sharding import gathered
from foveate.engine.step import Arrival, make_plan
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.methods import Method
from foveate.plan import Plan
from foveate.schedule import ExpectedTokens, Schedule, schedule
from foveate.schedule.resizing import dense_slots
from foveate.spec import Spec
from foveate.tokens import Layout, Signal, Text


def plan_images(
    family: Family, schedule: Schedule, encoded: Encoded, texts: Sequence[Tensor] | None = None
) -> list[CompressedImage]:
    """Make and apply the plans of all images, in their order.

    Args:
        family: of the model.
        schedule: the steps.
        encoded: the images.
        texts: per image `(T, D)`, the text that stands with it; for schedules that read it.

    Raises:
        FoveateError: a step reads the text, and an image stands without any.
    """
    groups: dict[tuple[Layout, Layout, int], list[int]] = {}
    for image, (layout, seen) in enumerate(zip(encoded.layouts, encoded.seen, strict=True)):
        # Texts of different length can't be one batch without padding, which a method would have to know about.
        length = 0 if texts is None else texts[image].shape[0]
        if texts is not None and not length:
            raise FoveateError(f"{schedule.spec} reads the question, and image {image} came without any text")
        groups.setdefault((layout, seen, length), []).append(image)
    # What arrives at a step after a ragged one differs from image to image.
    apart = any(method.ragged for method in schedule.before_decoder[:-1])
    compressed: dict[int, CompressedImage] = {}
    for members in groups.values():
        for batch in [[image] for image in members] if apart else [members]:
            group = _ImageGroup(family, schedule, encoded, texts, batch)
            compressed |= dict(zip(batch, group.compressed(), strict=True))
    return [compressed[image] for image in range(len(encoded))]


@dataclass(frozen=True)
class KeptTokens:
    """Content tokens of one image after the steps before the decoder.

    Attributes:
        layout: its full layout.
        seen: the layout that the encoder saw.
        slot: `(M,)` int64, the place of each token among the content tokens of `seen`, ascending.
        features: `(M, D)`, at the decoder's input.
        companions: what goes along with them, each `(M, D)`.
        signals: the encoder's answers about them, by request: `(M,)` or `(M, D_key)`.
        structural: `(S, D)`, what stands at the image's structural tokens that are no text.
    """

    layout: Layout
    seen: Layout
    slot: Tensor
    features: Tensor
    companions: tuple[Tensor, ...]
    signals: Mapping[Signal, Tensor]
    structural: Tensor

    def __len__(self) -> int:
        return len(self.slot)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, and of what they are views of."""
        tensors = (self.slot, self.features, *self.companions, *self.signals.values(), self.structural)
        return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())

    def thinned(self, method: Method) -> KeptTokens:
        """Let a method keep some of them, as a later step would."""

        def signals() -> dict[Signal, Tensor]:
            return {signal: values[None] for signal, values in self.signals.items()}

        plan = make_plan(method, self.features[None], Arrival(self.seen, self.slot[None]), signals)
        return replace(
            self,
            slot=plan.select(self.slot[None])[0],
            features=plan.apply(self.features[None])[0],
            companions=tuple(plan.apply(each[None])[0] for each in self.companions),
            signals={signal: plan.select(values[None])[0] for signal, values in self.signals.items()},
        )


class _ImageGroup:
    """Images of one layout on their way through the steps between the encoder and the decoder."""

    def __init__(
        self,
        family: Family,
        schedule: Schedule,
        encoded: Encoded,
        texts: Sequence[Tensor] | None,
        members: Sequence[int],
    ) -> None:
        self.family = family
        self.schedule = schedule.for_layout(encoded.layouts[members[0]])
        self.encoded = encoded
        self.texts = texts
        self.members = members
        self.layout = encoded.layouts[members[0]]
        self.seen = encoded.seen[members[0]]
        self.plan: Plan | None = None
        self.companions: Sequence[Tensor] | None = None
        """What the projector made beside features after a step in front of it."""
        self.expected = ExpectedTokens.of(self.seen)

    def compressed(self) -> list[CompressedImage]:
        """Run the steps and lay out what is left of each image."""
        methods = self.schedule.before_decoder
        untouched = self.seen == self.layout and self.schedule.encoder is None and not self.encoded.inside
        untouched = untouched and all(method.keeps_all(self.layout.content) for method in methods)
        if untouched and all(token.is_text for token in self.layout.structural):
            plan = Plan.complete(1, self.layout.content) if methods else None
            return [self._complete(image, plan) for image in self.members]
        features = self.run_steps()
        return self.laid_out(features, self.run_companions())

    def run_steps(self) -> Tensor:
        """Run every step on the group: `(B, M, D)`, what is left at the decoder's input."""
        schedule, encoded = self.schedule, self.encoded
        if schedule.encoder is not None:
            self.expected = self.expected.after(schedule.encoder)
        if encoded.inside:
            self.plan = Plan.batch([encoded.inside[image] for image in self.members])
        if schedule.features:
            assert encoded.features is not None
            features = self._stack(encoded.features)
            for method in schedule.features:
                features = self._step(method, features)
            with gathered(self.family.core, self.family.projectors):
                features, self.companions = self.family.project_with_companions(features)
        else:
            features = self._stack(encoded.projected)
        for method in schedule.inputs:
            features = self._step(method, features, self.texts)
        return features

    def _step(self, method: Method, features: Tensor, texts: Sequence[Tensor] | None = None) -> Tensor:
        """Run one method on what arrives: features `(B, N, D)` -> `(B, M, D)`."""
        before = self.plan
        if method.keeps_all(features.shape[1]):
            self.plan = before or Plan.complete(features.shape[0], features.shape[1], features.device)
            self.expected = self.expected.after(method)
            return features

        def signals() -> dict[Signal, Tensor]:
            found = {signal: self._stack(values) for signal, values in self.encoded.signals.items()}
            if before is not None:
                found = {signal: before.select(values) for signal, values in found.items()}
            if texts is not None:
                found[Text()] = self._stack(texts).to(features.device)
            return found

        arrival = Arrival(self.seen)
        if before is not None:
            tiles = self.expected.tiles
            arrival = Arrival(self.seen, before.slot, None if tiles is None else tuple(tile.content for tile in tiles))
        plan = make_plan(method, features, arrival, signals)
        self.plan = plan if before is None else before.compose(plan, self.seen.content)
        self.expected = self.expected.after(method)
        if self.companions is not None:
            self.companions = tuple(plan.apply(level) for level in self.companions)
        return plan.apply(features)

    def run_companions(self) -> Sequence[Tensor]:
        """Return what goes along with what `run_steps` has left, `(B, M, D)` each."""
        if self.companions is not None:
            return self.companions
        companions = [self._stack(level) for level in zip(*self.encoded.companions, strict=True)]
        return companions if self.plan is None else [self.plan.apply(level) for level in companions]

    def laid_out(self, features: Tensor, companions: Sequence[Tensor]) -> list[CompressedImage]:
        """Place what is left of each image in its run of placeholders, with its position ids."""
        layout, seen, plan = self.layout, self.seen, self.plan
        positions = ImagePositions(self.family, self.schedule, layout, seen)
        to_dense = dense_slots(seen, layout)
        # One copy to the host for the group: the prompt is cut there.
        slots = torch.arange(seen.content).expand(len(self.members), -1) if plan is None else plan.slot.cpu()
        valid = None if plan is None or plan.valid is None else plan.valid.cpu()
        images: list[CompressedImage] = []
        for row, image in enumerate(self.members):
            kept = slots[row] if valid is None else slots[row][valid[row]]
            own, *ridden = (values[row] for values in (features, *companions))
            if valid is not None:
                own, *ridden = (values[valid[row].to(values.device)] for values in (own, *ridden))
            slot = to_dense[kept]
            if layout.structural:
                slot, source = layout.placed(slot)
            if any(not token.is_text for token in layout.structural):
                own, ridden = _with_structural(own, ridden, self.encoded.structural[image], layout, source)
            images.append(
                CompressedImage(
                    layout,
                    slot,
                    own,
                    companions=tuple(ridden),
                    seen=seen,
                    plan=None if plan is None else plan.image(row, len(kept)),
                    **positions.of(slot, kept),
                )
            )
        return images

    def _complete(self, image: int, plan: Plan | None) -> CompressedImage:
        """Return an image of which everything enters the decoder, and the plan that says so if there was a step."""
        positions = self.family.image_positions(self.layout)
        return CompressedImage(
            self.layout,
            torch.arange(self.layout.total),
            self.encoded.projected[image],
            positions,
            self.family.image_spans(self.layout),
            companions=tuple(self.encoded.companions[image]),
            own_positions=True,
            seen=self.seen,
            plan=plan,
            reaches=reaches_of(positions, self.layout),
        )

    def _stack(self, values: Sequence[Tensor]) -> Tensor:
        """Stack what belongs to the group's images."""
        return torch.stack([values[image] for image in self.members])


class ImagePositions:
    """The position ids of what remains of images of one layout.

    Args:
        family: of the model.
        schedule: the steps.
        layout: of the images.
        seen: the layout that the encoder sees: smaller than `layout` after a step at `@pixels`.
    """

    def __init__(self, family: Family, schedule: Schedule, layout: Layout, seen: Layout) -> None:
        self.layout, self.seen = layout, seen
        self.packed = any(method.positions == "pack" for method in schedule.before_decoder)
        self.small = schedule.pixels is not None and schedule.pixels.positions == "pack" and seen != layout
        base = seen if self.small else layout
        self.relative = family.image_positions(base)
        self.spans, self.reaches = family.image_spans(base), reaches_of(self.relative, base)

    def of(self, slot: Tensor, kept: Tensor) -> dict[str, Any]:
        """Return the fields of `CompressedImage` about the positions of one image.

        Args:
            slot: `(M,)` int64, the kept places among the image's columns, structural ones included.
            kept: `(M,)` int64, the kept content tokens of `seen`.
        """
        layout, seen, small = self.layout, self.seen, self.small
        # An image of which everything stays has no gaps to close: it is the dense model's.
        own = not small and (not self.packed or (seen == layout and len(kept) == layout.content))
        if self.packed and not own:
            lengths = layout.run_of[slot].bincount(minlength=len(layout.run_lengths)).tolist()
            positions = torch.cat([torch.arange(length) for length in lengths]).expand(self.relative.shape[0], -1)
            spans = reaches = tuple(lengths)
        else:
            positions = self.relative[:, seen.placed(kept)[0] if small else slot]
            spans, reaches = self.spans, self.reaches
        return {"positions": positions, "spans": spans, "reaches": reaches, "own_positions": own}


def keep_tokens(family: Family, schedule: Schedule, encoded: Encoded) -> list[KeptTokens]:
    """Run the steps before the decoder on each image by itself, and return what they leave, outside of any prompt."""
    kept: list[KeptTokens] = []
    for image in range(len(encoded)):
        group = _ImageGroup(family, schedule, encoded, None, [image])
        features = group.run_steps()
        count = group.seen.content
        plan = Plan.complete(1, count, features.device) if group.plan is None else group.plan
        left = slice(None) if plan.valid is None else plan.valid[0]
        companions = [each[0] for each in group.run_companions()]
        signals = {signal: plan.select(values[image][None])[0] for signal, values in encoded.signals.items()}
        kept.append(
            KeptTokens(
                group.layout,
                group.seen,
                plan.slot[0][left],
                features[0][left],
                tuple(each[left] for each in companions),
                {signal: values[left] for signal, values in signals.items()},
                encoded.structural[image],
            )
        )
    return kept


def place_tokens(family: Family, schedule: Schedule, kept: KeptTokens) -> CompressedImage:
    """Return tokens that were kept as an image that can enter a prompt, as the steps of a schedule place it."""
    encoded = Encoded((kept.layout,), (kept.seen,), (), (), (kept.structural,), None, {})
    group = _ImageGroup(family, schedule, encoded, None, [0])
    group.plan = Plan(slot=kept.slot[None])
    (image,) = group.laid_out(kept.features[None], [each[None] for each in kept.companions])
    return image


def _with_structural(
    features: Tensor, companions: Sequence[Tensor], structural: Tensor, layout: Layout, source: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Put structural tokens among content tokens: features and companions `(M, D)` -> `(M + S, D)`.

    Args:
        features: of the content tokens.
        companions: likewise.
        structural: `(S_all, D)`, what stands at structural tokens that are no text.
        layout: of the image.
        source: `(M + S_t,)` int64, the number of each token among content tokens, then structural ones, text included.
    """
    is_text = torch.tensor([False] * features.shape[0] + [token.is_text for token in layout.structural])
    number = (~is_text).cumsum(0) - 1
    source = number[source[~is_text[source]]].to(features.device)
    structural = structural.to(features)
    # Structural tokens have no companions: zeros change nothing where they are added.
    ridden = [torch.cat([each, each.new_zeros(structural.shape[0], each.shape[1])])[source] for each in companions]
    return torch.cat([features, structural])[source], ridden


def encoder_outputs(model: nn.Module, encoded: Encoded) -> dict[str, Any]:
    """Return encoded images as `mm_encoder_outputs` at full length, for one prompt or batch under `apply`.

    The encoder doesn't run again. `generate` changes what it is given, so each call needs its own.

    Args:
        model: the one that encoded them.
        encoded: the images in prompt order, encoded for the spec that is applied (and maybe others).

    Raises:
        UnsupportedFamily: the model is of no supported family.
    """
    family = family_of(model)
    images = plan_images(family, schedule(Spec(()), family), encoded)
    # One image may come several times, and each time with a question of its own.
    outputs = containers(
        family.container, [replace(image, features=image.features[:]) for image in images], encoded.stacked
    )
    for name, output in outputs.items():
        own = [number for number, layout in enumerate(encoded.layouts) if modality_of(layout) == name]
        mark_images(output, encoded.pick(own))
    return outputs
