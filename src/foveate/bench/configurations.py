"""Choose the configurations of a benchmark: the defaults, or specs crossed with budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from foveate.errors import FoveateError, KeepError, shown, unknown
from foveate.quotes import pieces
from foveate.spec import Spec, SpecLike, Step, as_spec, parse, spec_list
from foveate.tokens import Keep

METHODS: Final = ("random", "stride", "pool", "pool2d", "resize", "cluster", "cls")
"""The default methods."""

CLIP_METHODS: Final = ("random", "frames", "stride3d", "pool3d", "resize", "cluster", "evs", "dycoke", "fastvid")
"""The default methods for clips that are videos to the model."""

IMAGE_BASELINES: Final = ("random", "stride", "pool2d", "resize")
"""Methods that every other one should beat on images."""

CLIP_BASELINES: Final = ("random", "frames", "stride3d", "pool3d", "resize")
"""Those for clips that are videos to the model."""

BASELINES: Final = frozenset({*IMAGE_BASELINES, *CLIP_BASELINES})
"""All baselines; tables mark them."""

BUDGETS: Final = "288,144,64,16,4"
"""The default budgets: of 576 tokens a half, a quarter, a ninth, and very few."""

CLIP_BUDGETS: Final = "0.5,0.25,0.1"
"""The default budgets for such clips, which have thousands of tokens or a hundred."""

DENSE: Spec = Spec(())
"""The spec without steps: the untouched model."""


def name_of(spec: Spec) -> str:
    """Return a configuration as text, "dense" if it has no step."""
    return str(spec) or "dense"


def is_baseline(spec: Spec) -> bool:
    """Return whether a configuration is a baseline method alone."""
    return len(spec.steps) == 1 and spec.steps[0].method.name in BASELINES


def label_of(spec: Spec) -> str:
    """Return a configuration without its budget, as lines of plots are called.

    >>> label_of(parse("cluster:64")), label_of(parse("cluster:0.25:seed=3")), label_of(DENSE)
    ('cluster', 'cluster:seed=3', 'dense')
    """
    parts = []
    for step in spec.steps:
        (_, body), *places = pieces(str(step), "@")
        words = [word for _, word in pieces(body, ":")]
        parts.append("@".join([":".join([words[0], *words[2:]]), *(place for _, place in places)]))
    return "+".join(parts) or "dense"


def budget_of(spec: Spec, before: float, after: float) -> float:
    """Return the budget of a configuration in tokens: its keep, or the tokens left if that isn't one number."""
    if len(spec.steps) != 1 or len(spec.steps[0].places) > 1:
        return after
    keep = spec.steps[0].method.keep
    if keep.auto or keep.layers or keep.mean is not None or not spec.steps[0].method.takes_keep:
        return after
    return float(keep.tokens) if keep.tokens is not None else float((keep.share or 1) * before)


def read_budgets(text: str) -> tuple[Keep, ...]:
    """Read a list of budgets, such as "288,0.25,4".

    Raises:
        FoveateError: it is no text, or there is none in it.
        KeepError: one of them is no budget.
    """
    if not isinstance(text, str):
        raise FoveateError(f"budgets are text such as {BUDGETS!r}, not {shown(text)}")
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise FoveateError(f"--keep {text!r} names no budget at one place; write for instance --keep {BUDGETS}")
    return tuple(dict.fromkeys(Keep.of(part) for part in parts))


def configurations(
    specs: SpecLike | Iterable[SpecLike] = (), keep: str = BUDGETS, seed: int | None = None
) -> tuple[Spec, ...]:
    """Return all configurations of a run, dense first, each once.

    Args:
        specs: one configuration, or a list with one per item; each in any form that `as_spec` reads. Text without a
            budget ("cluster") gets every budget of `keep`; text with one ("cluster:64") and objects are measured as
            they are. An empty list means the default methods.
        keep: budgets, separated by commas.
        seed: for every method that has a seed and whose text sets none; it becomes part of the spec.

    Raises:
        SpecError: a spec can't be read.
        KeepError: a budget can't be read.

    >>> from foveate.methods import Cluster, FastV
    >>> [name_of(spec) for spec in configurations([Cluster(keep=64), [Cluster(keep=288), FastV(keep=0.5).at(2)]])]
    ['dense', 'cluster:64', 'cluster:288+fastv:0.5@2']

    >>> [name_of(spec) for spec in configurations(["cluster", "cls:0.5"], "64,4")]
    ['dense', 'cluster:64', 'cluster:4', 'cls:0.5']
    """
    budgets = read_budgets(keep)
    found: dict[str, Spec] = {name_of(DENSE): DENSE}
    for given in spec_list(specs) or METHODS:
        if not isinstance(given, str):
            spec = as_spec(given)
            found.setdefault(name_of(spec), spec)
            continue
        text = given
        spec = seeded(parse(text), text, seed)
        for each in _crossed(spec, budgets) if _takes_budgets(text, spec) else [spec]:
            found.setdefault(name_of(each), each)
    return tuple(found.values())


def unused(specs: Sequence[str], keep: str | None, seed: int | None, match: str | None = None) -> list[str]:
    """Return a line for each option that changes nothing about these specs, as text; None is an option that isn't set.

    >>> unused(["cluster:64"], "16", None)
    ['--keep 16 changes nothing: each --spec names its keep, or takes none']
    """
    lines: list[str] = []
    read = [parse(text) for text in specs]
    free = [text for text, spec in zip(specs, read, strict=True) if _takes_budgets(text, spec)]
    if specs and not free:
        given = [f"--{name} {value}" for name, value in (("keep", keep), ("match", match)) if value is not None]
        lines += [f"{option} changes nothing: each --spec names its keep, or takes none" for option in given]
    if seed is not None and specs:
        pairs = list(zip(read, specs, strict=True))
        if all(seeded(spec, text, 0) == seeded(spec, text, 1) for spec, text in pairs):
            lines.append(f"--seed {seed} changes nothing: no method of --spec has a seed, or each spec sets it")
    names = [name_of(spec) for spec in read]
    lines += [f"{name} is given twice and measured once" for name in dict.fromkeys(names) if names.count(name) > 1]
    return lines


def _takes_budgets(text: str, spec: Spec) -> bool:
    """Return whether a spec says nothing of its keep and takes any, as an adapter that decides by itself doesn't."""
    if len(spec.steps) != 1 or has_keep(text) or not spec.steps[0].method.takes_keep:
        return False
    try:
        _crossed(spec, [Keep(tokens=1)])
    except KeepError:
        return False
    return True


def _crossed(spec: Spec, budgets: Sequence[Keep]) -> list[Spec]:
    (step,) = spec.steps
    return [
        Spec((dataclasses.replace(step, method=dataclasses.replace(step.method, keep=budget)),)) for budget in budgets
    ]


def reference_name(text: str, specs: Iterable[Spec], seed: int | None = None) -> str:
    """Return the name of the configuration that differences are taken from.

    Args:
        text: as the user wrote it: "dense", or a spec in any spelling.
        specs: all configurations of the run.
        seed: what methods that have a seed got.

    Raises:
        FoveateError: no configuration is called so.

    >>> reference_name("cluster:keep=64", [DENSE, parse("cluster:64")])
    'cluster:64'
    """
    known = [name_of(spec) for spec in specs]
    names = [text.strip()]
    # What can't be read as a spec is answered with the names that there are.
    with suppress(FoveateError):
        names += [name_of(spec) for spec in (parse(text), seeded(parse(text), text, seed))]
    found = [name for name in names if name in known]
    if not found:
        raise FoveateError(f"--against: {unknown('configuration is called', text, known)}")
    return found[-1]


def has_keep(text: str) -> bool:
    """Return whether the text of a spec sets a keep in its first step."""
    first = next(step for _, step in pieces(text, "@"))
    options = [option for _, option in pieces(first, ":")][1:]
    return any("=" not in option or option.strip().startswith(("keep", "mean")) for option in options)


def seeded(spec: Spec, text: str, seed: int | None) -> Spec:
    """Return the spec with this seed for every method that has one and whose text sets none."""
    return spec if seed is None else Spec(tuple(_seeded(step, text, seed) for step in spec.steps))


def _seeded(step: Step, text: str, seed: int) -> Step:
    if "seed" not in {field.name for field in dataclasses.fields(step.method)} or "seed=" in text:
        return step
    return dataclasses.replace(step, method=dataclasses.replace(step.method, seed=seed))
