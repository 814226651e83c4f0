"""How many tokens a spec leaves, told from the layout alone."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.errors import KeepError
from foveate.families import Family
from foveate.methods import Method
from foveate.schedule.expected import ExpectedTokens, kept_slots
from foveate.schedule.resizing import dense_slots, resize_mode
from foveate.schedule.steps import Schedule, schedule
from foveate.spec import Spec
from foveate.tokens import Layout


def tokens_after(spec: str | Spec, family: Family, layout: Layout) -> int:
    """Visual tokens of one image of this layout behind the last step of a spec, before any encoder runs.

    If the content decides, the most that may be left; see `tokens_between`.

    Raises:
        FoveateError: the spec can't be done on this family.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.
    """
    return tokens_between(spec, family, layout)[1]


def tokens_between(spec: str | Spec, family: Family, layout: Layout) -> tuple[int, int]:
    """The fewest and the most visual tokens that may be left of one image, structural ones included.

    One number, unless a method is adaptive, or the layout has newlines and the content decides which rows they close.

    Raises:
        FoveateError: the spec can't be done on this family.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.
    """
    return _layers_between(schedule(spec, family), family, layout)[-1]


def tokens_per_layer(spec: str | Spec, family: Family, layout: Layout) -> tuple[int, ...]:
    """Visual tokens of one image of this layout in each decoder layer, structural ones included; the most, if several.

    Raises:
        FoveateError: the spec can't be done on this family.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.
    """
    return tuple(most for _, most in _layers_between(schedule(spec, family), family, layout))


def _layers_between(plan: Schedule, family: Family, layout: Layout) -> list[tuple[int, int]]:
    """The fewest and the most visual tokens of one image in each decoder layer."""
    methods = plan.ahead
    layers = len(family.decoder_layers)
    try:
        seen = layout
        # An image that is enlarged again saves no token.
        if plan.pixels is not None and resize_mode(family, plan.pixels) != "enlarge":
            seen = family.shrunk(layout, plan.pixels.shrink(layout))
        fewest = most = ExpectedTokens.of(seen)
        for method in methods:
            # A later step must find enough in the image of which least was left.
            fewest, most = fewest.after(method, fewest=True), most.after(method)
        counts = [_with_structural(methods, seen, layout, fewest, most)] * layers
        for layer, method in plan.inside(most.layout.content, layers).items():
            methods = (*methods, method)
            fewest, most = fewest.after(method, fewest=True), most.after(method)
            counts[layer:] = [_with_structural(methods, seen, layout, fewest, most)] * (layers - layer)
    except KeepError as error:
        raise KeepError(f"{plan.spec}: {error}") from None
    return counts


def _with_structural(
    methods: Sequence[Method], seen: Layout, layout: Layout, fewest: ExpectedTokens, most: ExpectedTokens
) -> tuple[int, int]:
    """The fewest and the most tokens behind some steps, with the structural tokens that are kept with them."""
    least, greatest = fewest.layout.content, most.layout.content
    if not layout.structural:
        return least, greatest
    if all(method.fixed for method in methods):
        held = int(layout.held(dense_slots(seen, layout)[kept_slots(methods, seen)]).sum())
        return least + held, greatest + held
    return least + seen.held_between(least)[0], greatest + seen.held_between(greatest)[1]
