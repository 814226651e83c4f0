"""Which configurations are measured: the defaults, and what `--spec` and `--keep` make of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from foveate.errors import FoveateError
from foveate.spec import Spec, Step, parse
from foveate.tokens import Keep

METHODS: Final = ("random", "stride", "pool", "pool2d", "resize", "cluster", "cls")
"""What is measured when nothing is asked for."""

BASELINES: Final = frozenset({"random", "stride", "pool2d", "resize"})
"""What every claim must beat; marked in tables."""

BUDGETS: Final = "288,144,64,16,4"
"""The budgets when nothing is asked for: of 576, the half, a quarter, a ninth, and very little."""

DENSE: Spec = Spec(())
"""No step at all: the untouched model."""


def name_of(spec: Spec) -> str:
    """The written form of a configuration, "dense" without any step."""
    return str(spec) or "dense"


def is_baseline(spec: Spec) -> bool:
    """Whether a configuration is one of the baselines, alone."""
    return len(spec.steps) == 1 and spec.steps[0].method.name in BASELINES


def label_of(spec: Spec) -> str:
    """A configuration without its budget: what one line of a plot is called.

    >>> label_of(parse("cluster:64")), label_of(parse("cluster:0.25:seed=3")), label_of(DENSE)
    ('cluster', 'cluster:seed=3', 'dense')
    """
    parts = []
    for step in spec.steps:
        body, at, place = str(step).partition("@")
        pieces = body.split(":")
        parts.append(":".join([pieces[0], *pieces[2:]]) + at + place)
    return "+".join(parts) or "dense"


def budget_of(spec: Spec, before: float, after: float) -> float:
    """The tokens that a configuration was allowed: its keep; where that isn't one number, what was left."""
    if len(spec.steps) != 1 or len(spec.steps[0].places) > 1:
        return after
    keep = spec.steps[0].method.keep
    if keep.auto or keep.layers or keep.mean is not None or not spec.steps[0].method.takes_keep:
        return after
    return float(keep.tokens) if keep.tokens is not None else float((keep.share or 1) * before)


def read_budgets(text: str) -> tuple[Keep, ...]:
    """Read a list of budgets, such as "288,0.25,4".

    Raises:
        FoveateError: there is none in it.
        KeepError: one of them is no budget.
    """
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    if not pieces:
        raise FoveateError(f"--keep {text!r} names no budget; write for instance --keep {BUDGETS}")
    return tuple(dict.fromkeys(Keep.of(piece) for piece in pieces))


def configurations(specs: Sequence[str] = (), keep: str = BUDGETS, seed: int | None = None) -> tuple[Spec, ...]:
    """All configurations of a run, dense first, each once.

    Args:
        specs: written specs; one without a budget ("cluster") gets every budget of `keep`, one with ("cluster:64")
            stands alone. None at all means the default methods.
        keep: budgets, parted by commas.
        seed: given to every method that has a seed and wasn't given one in its spec; it becomes part of the spec.

    Raises:
        SpecError: a spec can't be read.
        KeepError: a budget can't be read.

    >>> [name_of(spec) for spec in configurations(["cluster", "cls:0.5"], "64,4")]
    ['dense', 'cluster:64', 'cluster:4', 'cls:0.5']
    """
    budgets = read_budgets(keep)
    found: dict[str, Spec] = {name_of(DENSE): DENSE}
    for text in specs or METHODS:
        spec = seeded(parse(text), text, seed)
        crossed = len(spec.steps) == 1 and not has_keep(text) and spec.steps[0].method.takes_keep
        for each in _crossed(spec, budgets) if crossed else [spec]:
            found.setdefault(name_of(each), each)
    return tuple(found.values())


def _crossed(spec: Spec, budgets: Sequence[Keep]) -> list[Spec]:
    (step,) = spec.steps
    return [
        Spec((dataclasses.replace(step, method=dataclasses.replace(step.method, keep=budget)),)) for budget in budgets
    ]


def has_keep(text: str) -> bool:
    """Whether a written spec says itself how much to keep, in its first step."""
    options = text.partition("@")[0].split(":")[1:]
    return any("=" not in option or option.strip().startswith(("keep", "mean")) for option in options)


def seeded(spec: Spec, text: str, seed: int | None) -> Spec:
    """A spec whose methods have this seed, if they have one and its text doesn't give it."""
    return spec if seed is None else Spec(tuple(_seeded(step, text, seed) for step in spec.steps))


def _seeded(step: Step, text: str, seed: int) -> Step:
    if "seed" not in {field.name for field in dataclasses.fields(step.method)} or "seed=" in text:
        return step
    return dataclasses.replace(step, method=dataclasses.replace(step.method, seed=seed))
