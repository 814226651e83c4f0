"""A step inside the encoder: before its layers patches become fewer, and attention weighs what is left.

A token that stands for several patches gets the attention of several: the logarithm of their number is added to its
scores in every later layer (ToMe's proportional attention). Without that, a large uniform area would get less attention
the more of its patches are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foveate.devices import on_cpu
from foveate.engine.step import Arrival, make_plan
from foveate.errors import FoveateError
from foveate.families import Capture, Family
from foveate.methods import Method
from foveate.plan import Plan
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Signal

_BIASED = ("sdpa", "eager")
"""Attention implementations that add a mask of numbers to the scores."""


@dataclass
class EncoderPass:
    """The images of one call on their way through the encoder's layers.

    Attributes:
        family: of the model.
        capture: of the call; the plans are noted there.
        methods: what acts before which layer.
        seen: the layout of every image.
        slot: `(B, n)` int64, the place in it of each patch that is left; None for all.
        size: `(B, n)` float32, how many patches each one stands for; None for one each.
    """

    family: Family
    capture: Capture
    methods: dict[int, Method]
    seen: Layout
    slot: Tensor | None = None
    size: Tensor | None = None

    def narrowed(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what enters a layer after the step before it: `(B, marks + n, D)` -> `(B, marks + m, D)`.

        Raises:
            FoveateError: another step makes patches fewer in this encoder, too.
        """
        method = self.methods.get(layer)
        if method is None:
            return hidden
        marks = self.family.encoder_marks
        patches = hidden[:, marks:]
        if patches.shape[1] != (self.seen.content if self.slot is None else self.slot.shape[1]):
            raise FoveateError(
                f"{method} finds {patches.shape[1]} patches inside the encoder, and another step acts there already; "
                "encode or compress outside of the other's apply"
            )

        def signals() -> dict[Signal, Tensor]:
            found: dict[Signal, Tensor] = {}
            with torch.no_grad():
                for signal in method.needs:
                    # Inside the encoder signals come from the previous layer only.
                    assert isinstance(signal, EncoderAttention | EncoderKeys)
                    values = self.family.encoder_signal(replace(signal, layer=layer - 1), self.capture)
                    found[signal] = torch.stack(values)
            return found

        tiles = None if self.slot is None else (patches.shape[1],)
        plan = self._weighted(make_plan(method, patches, Arrival(self.seen, self.slot, tiles), signals))
        assert plan.valid is None
        self.capture.inside[layer] = plan
        self.slot = plan.slot if self.slot is None else self.slot.gather(1, plan.slot)
        return torch.cat([hidden[:, :marks], plan.apply(patches)], dim=1)

    def _weighted(self, plan: Plan) -> Plan:
        """Return the plan with means over patches where it makes means of tokens, and note the sizes after it."""
        if plan.group is None and plan.mix is None:
            self.size = None if self.size is None else plan.select(self.size)
            return plan
        tokens = (plan.mix if plan.mix is not None else plan.group).shape[-1]  # pyright: ignore
        size = self.size if self.size is not None else plan.slot.new_ones(plan.slot.shape[0], tokens).float()
        self.size = summed(plan, size)
        if plan.group is None or plan.weight is not None:
            return plan
        total = self.size.gather(1, plan.group.clamp(min=0))
        return replace(plan, weight=size / total * (plan.group >= 0))

    def bias(self, hidden: Tensor) -> Tensor | None:
        """Return what is added to the attention scores of `(B, marks + n, D)`: `(B, 1, 1, marks + n)`; None: nothing.

        Raises:
            FoveateError: the encoder's attention can't add anything.
        """
        if self.size is None:
            return None
        config: Any = self.family.tower.config
        if config._attn_implementation not in _BIASED:
            raise FoveateError(
                f"inside the encoder, attention must weigh merged tokens, and {config._attn_implementation} takes no "
                f'weights; load the model with attn_implementation="sdpa", or use @features'
            )
        log = torch.nn.functional.pad(self.size.log(), (self.family.encoder_marks, 0))
        return log.to(hidden.dtype)[:, None, None]


def plan_inside(capture: Capture, after: int = 0) -> Plan | None:
    """Return what became of the patches that entered encoder layer `after` by the encoder's end; None for nothing."""
    plan: Plan | None = None
    (seen,) = {layout.content for layout in capture.seen} if capture.inside else (0,)
    entered = seen
    for layer, each in sorted(capture.inside.items()):
        if layer <= after:
            entered = each.slot.shape[1]
            continue
        plan = each if plan is None else plan.compose(each, entered)
    return plan


def full_index(capture: Capture, arrived: int) -> Tensor | None:
    """Return, for each patch that entered the encoder, the token that stands for it: `(B, N)` int64; None: itself.

    Args:
        capture: of a run of the encoder.
        arrived: how many features came out for each image.

    Raises:
        FoveateError: they are not as many as the step left.
    """
    inside = plan_inside(capture)
    if inside is None:
        return None
    if arrived != inside.slot.shape[1]:
        raise FoveateError(
            f"{arrived} features came for an image of which {inside.slot.shape[1]} patches were to leave the encoder; "
            "with a step at @encoder its layer can't be chosen in a call (vision_feature_layer)"
        )
    marks = torch.zeros(inside.slot.shape[0], capture.seen[0].content, dtype=torch.int64, device=inside.slot.device)
    return (marks.scatter(1, inside.slot, 1).cumsum(dim=1) - 1).clamp(min=0)


def summed(plan: Plan, values: Tensor) -> Tensor:
    """Return the sum over all that flowed into each kept token: `(B, N)` float32 -> `(B, M)`."""
    if plan.mix is not None:
        return torch.bmm((plan.mix != 0).to(values), values[..., None])[..., 0]
    if plan.group is None:
        return plan.select(values)
    if not on_cpu(values):
        # Scattered sums of accelerators come in any order; a product with the dense map repeats exactly.
        numbers = torch.arange(plan.slot.shape[1], device=values.device)
        return torch.bmm((plan.group[:, None] == numbers[:, None]).to(values), values[..., None])[..., 0]
    sums = values.new_zeros(values.shape[0], plan.slot.shape[1] + 1)
    return sums.scatter_add(1, plan.group + 1, values)[:, 1:]


def mapped_signal(capture: Capture, signal: Signal, values: Sequence[Tensor], family: Family) -> tuple[Tensor, ...]:
    """Map a signal of the patches in an encoder layer to the tokens that left the encoder.

    Attention is summed over the patches that became one token, keys are averaged. The value stands at the token's place
    in the image; where nothing is left, zeros.

    Args:
        capture: of a run of the encoder with a step inside.
        signal: what was asked for.
        values: per image, of the patches that entered the signal's layer, `(n,)` or `(n, D_key)`.
        family: of the model.

    Returns:
        Per image `(N,)` or `(N, D_key)`, over all patches that entered the encoder.
    """
    assert isinstance(signal, EncoderAttention | EncoderKeys)
    stacked = torch.stack(tuple(values))
    later, complete = plan_inside(capture, family.encoder_layer(signal.layer)), plan_inside(capture)
    assert complete is not None
    if later is not None:
        stacked = summed(later, stacked) if isinstance(signal, EncoderAttention) else later.apply(stacked)
    places = complete.slot.view(*complete.slot.shape, *(1,) * (stacked.ndim - 2)).expand_as(stacked)
    full = stacked.new_zeros(stacked.shape[0], capture.seen[0].content, *stacked.shape[2:])
    return full.scatter(1, places, stacked).unbind(0)
