"""One step of a spec: what arrives at a method is put together here, and nowhere else, and the method plans it.

A step acts inside the encoder, after it, or at the input of a decoder layer. What differs between these places is who
moves the tensors and who answers signals; what a method sees does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.layout import Layout, one_row
from foveate.methods import Method
from foveate.methods.tiles import plan_of
from foveate.plan import Plan
from foveate.precision import without_autocast
from foveate.tokens import Origin, Signal, Signals, VisualTokens


@dataclass(frozen=True)
class Arrival:
    """Where the tokens that reach a step stand in their images, which all have one layout.

    Attributes:
        layout: the layout that the encoder saw.
        slot: `(B, N)` int64, the place of each token in `layout`; None for all of them, in order.
        tiles: how many of the N tokens each tile has; None where an earlier step left that open.
    """

    layout: Layout
    slot: Tensor | None = None
    tiles: tuple[int, ...] | None = None


def make_plan(
    method: Method,
    features: Float[Tensor, "B N D"],
    arrival: Arrival,
    signals: Callable[[], dict[Signal, Tensor]],
) -> Plan:
    """Let a method plan what arrives at its step.

    Untrained methods get no gradient: their inputs are detached. `signals` is called where the method's gradient is
    already on or off.

    Args:
        method: acts at the step.
        features: what arrives.
        arrival: where it stands in the images.
        signals: answers what the method asked for.

    Raises:
        FoveateError: the method keeps per tile, and it isn't known how many tokens each tile has.
        KeepError: more would be kept than arrive.
    """
    if arrival.slot is None:
        layout, origin = arrival.layout, None
    else:
        layout = one_row(features.shape[1])
        origin = Origin(arrival.layout, arrival.slot, arrival.tiles)
    with torch.set_grad_enabled(method.trained and torch.is_grad_enabled()):
        seen = features if method.trained else features.detach()
        # Where a model is spread over devices, the encoder's answers lie on another one than the decoder's layers.
        given = {signal: values.to(features.device) for signal, values in signals().items()}
        with without_autocast(features.device):
            return plan_of(method, VisualTokens(seen, layout, Signals(given), origin))
