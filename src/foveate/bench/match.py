"""Compare at equal cost: choose keeps so that specs have the same mean of tokens or the same FLOPs.

Papers count tokens where it suits them: at the decoder's input, or averaged over its layers. A method that drops half
of the tokens at layer 16 and one that drops them before layer 0 are not at "50 %" together. Here the keep of each spec
is chosen so that all of them have the same mean of tokens over layers, or take the same FLOPs to prefill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from foveate.bench.configurations import DENSE, METHODS, has_keep, name_of, read_budgets, seeded
from foveate.errors import FoveateError
from foveate.spec import Spec, parse
from foveate.tokens import Keep

Measure = Literal["mean", "flops"]

TITLES: Final = {"mean": "mean tokens over layers", "flops": "FLOPs of the prefill"}

_STEPS = 10_000
"""Shares are searched in steps of 1 / 10,000, which is finer than one token of most images."""


def matched(
    specs: Sequence[str],
    keep: str,
    measure: Measure,
    config: Any,
    size: tuple[int, int],
    text_tokens: int = 20,
    seed: int | None = None,
) -> tuple[tuple[Spec, ...], dict[str, float], tuple[str, ...]]:
    """Return configurations that are equal in `measure`, dense first.

    Args:
        specs: written specs, or none for the default methods; one without a keep is given one per budget, one with a
            keep stands as it is, and so does one that takes none. These belong to a budget if they cost what it costs,
            to 1 %.
        keep: budgets, parted by commas: tokens, or shares of them, of a step at `@input`, which all others must equal.
        measure: "mean" for tokens averaged over decoder layers, "flops" for FLOPs of the prefill.
        config: the model's configuration.
        size: width and height of a picture in pixels.
        text_tokens: tokens of a prompt beside the visual ones; they count for FLOPs.
        seed: given to every method that has a seed and wasn't given one in its spec.

    Returns:
        The configurations; the budget that each belongs to, by name; a line for each spec and budget that can't be
        equal.

    Raises:
        FoveateError: the cost model doesn't know the model, there is no such measure, or no spec equals any budget.
        KeepError: a budget can't be read.
        SpecError: a spec can't be read.

    >>> specs, budgets, lacking = matched(["pool", "pool@4"], "288,64", "mean", None, (192, 192))
    >>> [name_of(spec) for spec in specs]
    ['dense', 'pool:288', 'pool:64', 'pool:0.2508@4']
    >>> lacking[0].partition(";")[0]
    'pool@4 at 64: its mean tokens over layers is 192.7 or more'
    """
    from foveate.costmodel import cost, read_model

    if measure not in TITLES:
        raise FoveateError(f"--match {measure} is unknown; match mean (tokens over layers) or flops (of the prefill)")
    model = read_model(config)

    def value(spec: Spec) -> float:
        found = cost(model, spec, images=[size], text_tokens=text_tokens, new_tokens=1)
        return found.mean_over_layers if measure == "mean" else found.part("prefill").flops

    chosen: dict[str, Spec] = {name_of(DENSE): DENSE}
    budgets: dict[str, float] = {}
    lacking: list[str] = []
    whole = cost(model, None, images=[size]).visual_tokens
    counts = {budget: budget.count(whole) for budget in read_budgets(keep)}
    targets = {budget: (count, value(parse(f"pool:{count}"))) for budget, count in counts.items()}
    for text in specs or METHODS:
        spec = seeded(parse(text), text, seed)
        if has_keep(text) or not any(step.method.takes_keep for step in spec.steps):
            chosen.setdefault(name_of(spec), spec)
            if not any(step.method.keep.auto for step in spec.steps):
                own = value(spec)
                near = [count for count, target in targets.values() if abs(own - target) <= _NEAR * target]
                budgets.update({name_of(spec): float(count) for count in near[:1]})
            continue
        for budget in read_budgets(keep):
            count, target = targets[budget]
            # What doesn't work at all is refused with the budget that was given, before others are tried.
            value(_with_keep(spec, budget))
            if all(place in ("pixels", "encoder", "features", "input") for step in spec.steps for place in step.places):
                found = _with_keep(spec, budget)
            else:
                found = _nearest(spec, target, value)
            if found is None:
                least = value(_with_keep(spec, _share(1)))
                cost_told = (
                    f"{least:.1f}" if measure == "mean" else f"{least / target:.2f} times that of {count} tokens"
                )
                lacking.append(
                    f"{text} at {budget}: its {TITLES[measure]} is {cost_told} or more; act at an earlier layer"
                )
                continue
            chosen.setdefault(name_of(found), found)
            budgets.setdefault(name_of(found), float(count))
    if len(chosen) == 1:
        raise FoveateError(f"--match {measure} leaves nothing to measure: {'; '.join(lacking)}")
    return tuple(chosen.values()), budgets, tuple(lacking)


_NEAR = 0.01
"""The largest relative distance between a spec and the budget that it belongs to."""


def _nearest(spec: Spec, target: float, value: Callable[[Spec], float]) -> Spec | None:
    """Return the spec with the share nearest to the target, or None if the smallest is more than 1 % above it."""
    low, high = 1, _STEPS
    if value(_with_keep(spec, _share(low))) > target * (1 + _NEAR):
        return None
    # The cost of a spec grows with its keep.
    while high - low > 1:
        middle = (low + high) // 2
        if value(_with_keep(spec, _share(middle))) <= target:
            low = middle
        else:
            high = middle
    return min((_with_keep(spec, _share(each)) for each in (low, high)), key=lambda each: abs(value(each) - target))


def _share(parts: int) -> Keep:
    return Keep.of(f"{parts / _STEPS:.4f}")


def _with_keep(spec: Spec, keep: Keep) -> Spec:
    """Return the spec with this keep in every step that takes one."""

    def changed(method: Any) -> Any:
        return dataclasses.replace(method, keep=keep) if method.takes_keep else method

    return Spec(tuple(dataclasses.replace(step, method=changed(step.method)) for step in spec.steps))
