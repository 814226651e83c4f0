"""A step inside the encoder: in front of its layers patches become fewer, and attention weighs what is left.

A token that stands for several patches gets the attention of several: the logarithm of their number is added to its
scores in every later layer (ToMe's proportional attention). Without that, what is large in the image would be looked
at less the more alike its patches are.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.families import Capture, Family
from foveate.methods import Method
from foveate.methods.tiles import plan_of
from foveate.plan import Plan
from foveate.schedule.encoder_layers import encoder_methods as inside
from foveate.schedule.encoder_layers import encoder_needs as needs_inside
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Origin, Segment, Signal, Signals, VisualTokens

_BIASED = ("sdpa", "eager")
"""Attention implementations that add a mask of numbers to the scores."""


class EncoderStep:
    """Puts the hooks of a step at `@encoder` on the layers of an encoder.

    Args:
        family: of the model; it has the place.
        method: what acts.
        local: where the running passage of each thread is kept.
        kept: layers whose attention arguments others look at later.
    """

    def __init__(self, family: Family, method: Method, local: threading.local, kept: Collection[int]) -> None:
        self.family = family
        self.method = method
        self.kept = kept
        self._local = local

    def open(self) -> Iterator[Any]:
        """Put the hooks on; yields what takes each off."""
        reads = self.family.encoder_reads
        watched = range(reads) if needs_inside(self.method) else range(0)
        for layer, module in enumerate(self.family.encoder_layers):
            if layer in watched:
                attention, keys = self.family.encoder_attentions[layer], self.family.encoder_keys[layer]
                yield attention.register_forward_pre_hook(partial(self._before_attention, layer), with_kwargs=True)
                yield keys.register_forward_hook(partial(self._after_keys, layer))
            if layer:
                yield module.register_forward_pre_hook(partial(self._before_layer, layer), with_kwargs=True)

    def start(self, capture: Capture) -> None:
        """The encoder begins with the images of a capture."""
        (seen,) = set(capture.seen)
        methods = inside(self.method, seen, self.family.encoder_reads)
        self._local.passage = _Passage(self.family, capture, methods, seen)

    def acts_on(self, capture: Capture) -> bool:
        """Whether anything would become of the images of a capture."""
        return any(inside(self.method, seen, self.family.encoder_reads) for seen in capture.seen)

    def stop(self) -> None:
        """The encoder is done; a backward pass may run its layers again, on what was merged before."""
        self._local.passage = None

    def _before_attention(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passage: _Passage | None = getattr(self._local, "passage", None)
        if passage is not None:
            call = {**kwargs, **({"hidden_states": args[0]} if args else {})}
            passage.capture.attention[layer] = call | {"hidden_states": call["hidden_states"].detach()}

    def _after_keys(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        passage: _Passage | None = getattr(self._local, "passage", None)
        if passage is not None:
            passage.capture.attention[layer]["keys"] = output.detach()

    def _before_layer(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        passage: _Passage | None = getattr(self._local, "passage", None)
        if passage is None:
            return None
        names = ("hidden_states", "attention_mask")
        call = {**dict(zip(names, args)), **kwargs}
        call["hidden_states"] = passage.narrowed(layer, call["hidden_states"])
        if layer - 1 not in self.kept:
            passage.capture.attention.pop(layer - 1, None)
        if (bias := passage.bias(call["hidden_states"])) is not None:
            assert call.get("attention_mask") is None
            call["attention_mask"] = bias
        # Hidden states stay where they came: checkpointing finds what needs a gradient among those.
        here = names[: len(args)]
        kwargs = {name: value for name, value in call.items() if name not in here}
        return tuple(call[name] for name in here) + args[len(here) :], kwargs


@dataclass
class _Passage:
    """The images of one call on their way through the encoder.

    Attributes:
        family: of the model.
        capture: of the call; the plans are noted there.
        methods: what acts in front of which layer.
        seen: the layout of every image.
        slot: `(B, n)` int64, where what is left stands in it; None for all of it.
        size: `(B, n)` float32, how many patches each of it stands for; None for one each.
    """

    family: Family
    capture: Capture
    methods: dict[int, Method]
    seen: Layout
    slot: Tensor | None = None
    size: Tensor | None = None

    def narrowed(self, layer: int, hidden: Tensor) -> Tensor:
        """What enters a layer `(B, marks + n, D)`, behind the step in front of it `(B, marks + m, D)`.

        Raises:
            FoveateError: others make patches fewer in this encoder, too.
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
        answers: dict[Signal, Tensor] = {}
        with torch.no_grad():
            for signal in method.needs:
                # Inside the encoder there is one layer to ask, the one that has just run.
                assert isinstance(signal, EncoderAttention | EncoderKeys)
                values = self.family.encoder_signal(replace(signal, layer=layer - 1), self.capture)
                answers[signal] = torch.stack(values)
        layout, origin = self.seen, None
        if self.slot is not None:
            layout = Layout((Segment(1, 1, patches.shape[1]),))
            origin = Origin(self.seen, self.slot, (patches.shape[1],))
        tokens = VisualTokens(patches if method.trained else patches.detach(), layout, Signals(answers), origin)
        with torch.set_grad_enabled(method.trained and torch.is_grad_enabled()):
            plan = self._weighed(plan_of(method, tokens))
        assert plan.valid is None
        self.capture.inside[layer] = plan
        self.slot = plan.slot if self.slot is None else self.slot.gather(1, plan.slot)
        return torch.cat([hidden[:, :marks], plan.apply(patches)], dim=1)

    def _weighed(self, plan: Plan) -> Plan:
        """The plan with means over patches, where it makes means of tokens; and the sizes behind it."""
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
        """What is added to the attention scores of `(B, marks + n, D)`: `(B, 1, 1, marks + n)`; None for nothing.

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


def whole_plan(capture: Capture, behind: int = 0) -> Plan | None:
    """What became of the patches that entered encoder layer `behind`, until they left the encoder; None for nothing."""
    plan: Plan | None = None
    (seen,) = {layout.content for layout in capture.seen} if capture.inside else (0,)
    entered = seen
    for layer, each in sorted(capture.inside.items()):
        if layer <= behind:
            entered = each.slot.shape[1]
            continue
        plan = each if plan is None else plan.compose(each, entered)
    return plan


def summed(plan: Plan, values: Tensor) -> Tensor:
    """The sum over all that flowed into each kept token: `(B, N)` float32 -> `(B, M)`."""
    if plan.mix is not None:
        return torch.bmm((plan.mix != 0).to(values), values[..., None])[..., 0]
    if plan.group is None:
        return plan.select(values)
    if values.is_cuda:
        # Scattered sums on CUDA come in any order; a product with the dense map repeats exactly.
        numbers = torch.arange(plan.slot.shape[1], device=values.device)
        return torch.bmm((plan.group[:, None] == numbers[:, None]).to(values), values[..., None])[..., 0]
    sums = values.new_zeros(values.shape[0], plan.slot.shape[1] + 1)
    return sums.scatter_add(1, plan.group + 1, values)[:, 1:]


def behind_encoder(capture: Capture, signal: Signal, answers: Sequence[Tensor], family: Family) -> tuple[Tensor, ...]:
    """What the encoder said of its patches, as what is said of the tokens that left it.

    Attention is summed over the patches that became one token, keys are averaged. It stands at the token's place in
    the image; where nothing is left, zeros.

    Args:
        capture: of a run of the encoder with a step inside.
        signal: what was asked for.
        answers: per image, of the patches that entered the signal's layer, `(n,)` or `(n, D_key)`.
        family: of the model.

    Returns:
        Per image `(N,)` or `(N, D_key)`, over all patches that the encoder saw.
    """
    assert isinstance(signal, EncoderAttention | EncoderKeys)
    values = torch.stack(tuple(answers))
    after, whole = whole_plan(capture, family.encoder_layer(signal.layer)), whole_plan(capture)
    assert whole is not None
    if after is not None:
        values = summed(after, values) if isinstance(signal, EncoderAttention) else after.apply(values)
    places = whole.slot.view(*whole.slot.shape, *(1,) * (values.ndim - 2)).expand_as(values)
    full = values.new_zeros(values.shape[0], capture.seen[0].content, *values.shape[2:])
    return full.scatter(1, places, values).unbind(0)
