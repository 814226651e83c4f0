"""Count the visual tokens of an image along a model, from the image's layout alone."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.arguments import check_kind
from foveate.errors import KeepError
from foveate.families import Family
from foveate.methods import Method
from foveate.schedule.encoder_layers import encoder_methods
from foveate.schedule.expected import ExpectedTokens, kept_slots
from foveate.schedule.resizing import dense_slots, resize_mode
from foveate.schedule.steps import Schedule, SpecLike, check_clip_places, schedule
from foveate.tokens import Layout, Place


@dataclass(frozen=True)
class StepTokens:
    """The content tokens of one image that one step gets and keeps.

    Attributes:
        method: what acts.
        place: "encoder", once for each encoder layer where patches go; "features"; "input"; or a decoder layer above 0.
        arriving: content tokens that the method sees.
        kept: content tokens that it keeps; the most, if the content decides.
    """

    method: Method
    place: Place
    arriving: int
    kept: int


@dataclass(frozen=True)
class ImageTokens:
    """The visual tokens of one image along the model.

    Attributes:
        layout: of the image without any step.
        seen: the layout that the encoder sees: a smaller one after a step at `@pixels`.
        steps: the steps after `@pixels`, in order.
        patches: patches in each encoder layer up to the one that is read; () without a step inside the encoder.
        layers: the fewest and the most visual tokens in each decoder layer, structural ones included.
    """

    layout: Layout
    seen: Layout
    steps: tuple[StepTokens, ...]
    patches: tuple[int, ...]
    layers: tuple[tuple[int, int], ...]

    @property
    def most(self) -> tuple[int, ...]:
        """The most visual tokens in each decoder layer."""
        return tuple(most for _, most in self.layers)


def tokens_after(spec: SpecLike, family: Family, layout: Layout) -> int:
    """Return the visual tokens of one image of this layout after the last step of a spec, structural ones included.

    The most, if the content decides; `tokens_between` gives the fewest, too.

    Raises:
        FoveateError: the spec cannot be applied to this family.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.
    """
    return tokens_between(spec, family, layout)[1]


def tokens_between(spec: SpecLike, family: Family, layout: Layout) -> tuple[int, int]:
    """Return the fewest and the most visual tokens of one image after the last step, structural ones included.

    They are equal, unless a method is adaptive, or the layout has newlines and the content decides which rows they end.

    Raises:
        FoveateError: the spec cannot be applied to this family.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.
    """
    return count_tokens(schedule(spec, family), family, layout).layers[-1]


def tokens_per_layer(spec: SpecLike, family: Family, layout: Layout) -> tuple[int, ...]:
    """Return the visual tokens of one image in each decoder layer, structural ones included; the most, if several.

    Raises:
        FoveateError: the spec cannot be applied to this family.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.
    """
    return count_tokens(schedule(spec, family), family, layout).most


def count_tokens(plan: Schedule, family: Family, layout: Layout) -> ImageTokens:
    """Count the tokens of one image of this layout at every step of a schedule and in every decoder layer.

    Raises:
        FoveateError: a step keeps per tile, and the number of tokens of each tile is unknown.
        KeepError: a step would keep more than arrives.
    """
    check_kind("plan", plan, Schedule, "what foveate.schedule.schedule returns")
    check_kind("family", family, Family, "what foveate.families.family_of returns")
    check_kind("layout", layout, Layout, "a Layout")
    try:
        counter = _Counter(plan, family, layout, family.decoder_depth)
        counter.pass_to_decoder()
        for layer, method in plan.layer_methods(counter.most.layout.content, family.decoder_depth).items():
            counter.pass_step(method, layer)
    except KeepError as error:
        raise KeepError(f"{plan.spec}: {error}") from None
    return ImageTokens(layout, counter.seen, tuple(counter.steps), counter.patches, tuple(counter.layers))


def tokens_entering(plan: Schedule, family: Family, layout: Layout) -> tuple[int, int]:
    """Return the fewest and the most visual tokens of one image that enter the decoder, structural ones included.

    Reads nothing of the configuration that is about the decoder.

    Raises:
        FoveateError: a step acts where none can act on clips, and the layout is one; or a step keeps per tile, and the
            number of tokens of each tile is unknown.
        KeepError: a step would keep more than arrives.
    """
    try:
        counter = _Counter(plan, family, layout, 1)
        counter.pass_to_decoder()
    except KeepError as error:
        raise KeepError(f"{plan.spec}: {error}") from None
    return counter.layers[0]


class _Counter:
    """Counts the tokens of one image from step to step."""

    def __init__(self, plan: Schedule, family: Family, layout: Layout, depth: int) -> None:
        if layout.is_clip:
            steps = {"pixels": plan.pixels, "encoder": plan.encoder, "features": plan.features}
            check_clip_places(family, [place for place, step in steps.items() if step])
        self.plan, self.family, self.layout, self.seen = plan, family, layout, layout
        # An image that is enlarged again keeps its number of tokens.
        if plan.pixels is not None and resize_mode(family, plan.pixels) != "enlarge":
            self.seen = family.shrunk_by(layout, plan.pixels.shrink)
        self.fewest = self.most = ExpectedTokens.of(self.seen)
        self.methods: list[Method] = []
        self.steps: list[StepTokens] = []
        self.patches: tuple[int, ...] = ()
        self.layers = [self._with_structural()] * depth

    def pass_to_decoder(self) -> None:
        """Count up to the input of the decoder."""
        if self.plan.encoder is not None:
            self.pass_encoder(self.plan.encoder)
        for method in self.plan.features:
            self.pass_step(method, "features")
        for method in self.plan.inputs:
            self.pass_step(method, "input")

    def pass_encoder(self, method: Method) -> None:
        """Count the patches in each encoder layer."""
        counts = [self.seen.content]
        here = encoder_methods(method, self.seen, self.family.encoder_reads)
        for layer in range(1, self.family.encoder_reads + 1):
            if layer in here:
                kept = here[layer].keep.count(counts[-1])
                self.steps.append(StepTokens(here[layer], "encoder", counts[-1], kept))
                counts.append(kept)
            else:
                counts.append(counts[-1])
        self.patches = tuple(counts)
        self._keep(method, 0)

    def pass_step(self, method: Method, place: Place) -> None:
        """Count the tokens that a step after the encoder gets and keeps."""
        arriving = self.most.layout.content
        self._keep(method, place if isinstance(place, int) else 0)
        self.steps.append(StepTokens(method, place, arriving, self.most.layout.content))

    def _keep(self, method: Method, layer: int) -> None:
        # A later step must find enough in the image of which the fewest are left.
        self.fewest, self.most = self.fewest.after(method, fewest=True), self.most.after(method)
        self.methods.append(method)
        self.layers[layer:] = [self._with_structural()] * (len(self.layers) - layer)

    def _with_structural(self) -> tuple[int, int]:
        """Return the fewest and the most tokens, with the structural ones that are kept with them."""
        fewest, most = self.fewest.layout.content, self.most.layout.content
        if not self.layout.structural:
            return fewest, most
        whole = not self.methods and self.seen == self.layout
        if not whole and all(method.fixed for method in self.methods):
            kept = dense_slots(self.seen, self.layout)[kept_slots(self.methods, self.seen)]
            structural = int(self.layout.held(kept).sum())
            return fewest + structural, most + structural
        return fewest + self.seen.held_between(fewest)[0], most + self.seen.held_between(most)[1]
