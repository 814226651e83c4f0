"""How many tokens a spec leaves, told from the layout alone."""

from __future__ import annotations

from foveate.engine.schedule import schedule
from foveate.engine.watch import resize_mode
from foveate.errors import KeepError
from foveate.models import Family
from foveate.spec import Spec
from foveate.tokens import Layout, Segment


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
    """The fewest and the most visual tokens that may be left of one image: one number unless a method is adaptive.

    Raises:
        FoveateError: the spec can't be done on this family.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.
    """
    plan = schedule(spec, family)
    try:
        if plan.pixels is not None:
            height, width = plan.pixels.shrink(layout)
            # An image that is enlarged again saves no token.
            if resize_mode(family, plan.pixels) != "enlarge":
                layout = Layout((Segment(layout.segments[0].t, height, width),))
        fewest = most = layout
        for method in (*plan.features, *plan.inputs):
            # A later step must find enough in the image of which least was left.
            fewest = Layout((Segment(1, 1, method.bounds(fewest)[0]),))
            most = Layout((Segment(1, 1, method.bounds(most)[1]),))
    except KeepError as error:
        raise KeepError(f"{plan.spec}: {error}") from None
    return fewest.total, most.total
