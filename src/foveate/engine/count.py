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
        for method in (*plan.features, *plan.inputs):
            layout = Layout((Segment(1, 1, method.count(layout)),))
    except KeepError as error:
        raise KeepError(f"{plan.spec}: {error}") from None
    return layout.total
