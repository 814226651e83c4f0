"""What was measured of a published claim, and whether it agrees: one function for each kind of measurement.

Each takes the numbers of the claim, reads docs/measured or the cost model, and returns what the page shows. All decide
by the same rules:

* an order agrees if the 95 % interval of the paired difference is on that side of zero, disagrees if it is on the
  other, and is not shown if zero is inside;
* "no loss" agrees if the interval isn't below zero and doesn't reach `MARGIN` points of loss, disagrees if it is below
  zero, and is not shown otherwise;
* a published share of the dense score agrees if our interval reaches it and begins at most `WIDE` below it, disagrees
  if it ends below it, and is not shown otherwise;
* a published saving agrees if ours is at least `ENOUGH` of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Final

from foveate.bench.formatting import direction, outward, points_text, share_text
from foveate.bench.metrics import difference_of
from foveate.costmodel import cost
from foveate.costmodel.papers import figures
from foveate.files import is_file
from generators.folders import MEASURED
from generators.llavolta import SHORT, longest, schedules
from generators.saliency import Study, claim_rows

AGREES: Final = "agrees"
DISAGREES: Final = "does not agree"
NOT_SHOWN: Final = "not shown here"
VERDICTS: Final = (AGREES, DISAGREES, NOT_SHOWN)
MARGIN: Final = 0.05
"""The loss that an interval must leave out for "no loss"."""
WIDE: Final = 0.1
"""How far below a published share our interval may begin, if it reaches it."""
ENOUGH: Final = 0.9
"""The part of a published saving that ours must reach."""

Bounds = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What was measured of a claim.

    Attributes:
        text: for the page.
        verdict: one of `VERDICTS`.
        made_by: the file of docs/measured, or the command, that it comes from; "" if nothing was measured.
        beside: another such file, where the text has numbers of two.
    """

    text: str
    verdict: str
    made_by: str = ""
    beside: str = ""


MEASURES: dict[str, Callable[..., Found]] = {}
"""All measures by name."""


def measure(function: Callable[..., Found]) -> Callable[..., Found]:
    """Register a measure under its name."""
    MEASURES[function.__name__] = function
    return function


@cache
def measured(name: str) -> Any:
    """Return a file of docs/measured."""
    return json.loads((MEASURED / name).read_text(encoding="utf-8"))


# Rules


def ordered(difference: Bounds, sign: int = 1, margin: float = 0.0) -> str:
    """Return whether a difference has a sign: clearly above `margin` if `sign` is 1, clearly below if it is -1.

    >>> ordered({"low": 0.02, "high": 0.1}), ordered({"low": 0.02, "high": 0.1}, -1), ordered({"low": -0.02, "high": 1})
    ('agrees', 'does not agree', 'not shown here')
    """
    shifted = {end: difference[end] - sign * margin for end in ("low", "high")}
    return {1: AGREES, 0: NOT_SHOWN, -1: DISAGREES}[sign * direction(shifted)]


def lost_nothing(difference: Bounds) -> str:
    """Return whether nothing was lost.

    >>> lost_nothing({"low": -0.03, "high": 0.02}), lost_nothing({"low": -0.03, "high": -0.01})
    ('agrees', 'does not agree')
    >>> lost_nothing({"low": -0.09, "high": 0.02})
    'not shown here'
    """
    if direction(difference) < 0:
        return DISAGREES
    ends = outward(difference)
    return AGREES if ends is not None and ends[0] > -100 * MARGIN else NOT_SHOWN


def reached(share: Bounds, published: float) -> str:
    """Return whether a share of the dense score reaches a published one.

    >>> reached({"low": 0.88, "high": 0.96}, 0.95), reached({"low": 0.8, "high": 0.9}, 0.95)
    ('agrees', 'does not agree')
    >>> reached({"low": 0.8, "high": 0.99}, 0.95)
    'not shown here'
    """
    if share["high"] < published:
        return DISAGREES
    return AGREES if share["low"] >= published - WIDE else NOT_SHOWN


def saved(ours: float, published: float) -> str:
    """Return whether a saving is about as large as published, or larger."""
    return AGREES if ours >= ENOUGH * published else DISAGREES


def of_dense(difference: Bounds, dense: float) -> dict[str, float]:
    """Return a difference to the dense score as a share of it.

    >>> of_dense({"value": -0.2, "low": -0.3, "high": -0.1}, 0.8)["value"]
    0.75
    """
    return {end: 1 + difference[end] / dense for end in ("value", "low", "high")}


# The benchmark for this page


def _row(spec: str) -> dict[str, Any]:
    return next(row for row in measured("claims.json")["metrics"]["configurations"] if row["spec"] == spec)


def _pair(first: str, other: str) -> dict[str, Any]:
    found = difference_of(measured("claims.json")["metrics"], first, other)
    assert found is not None
    return found


def _against(first: str, other: str, difference: Bounds) -> str:
    return f"`{first}` less `{other}`: {points_text(difference)}"


def _kept(spec: str, difference: Bounds, dense: float, published: float, made_by: str) -> Found:
    share = of_dense(difference, dense)
    return Found(f"`{spec}`: {share_text(share)} of the dense score", reached(share, published), made_by)


@measure
def kept(spec: str, share: float) -> Found:
    """The share of the dense score that a spec keeps."""
    return _kept(spec, _row(spec)["difference"], _row("dense")["accuracy"]["value"], share, "claims.json")


@measure
def kept_of_run(spec: str, share: float, **_: Any) -> Found:
    """The same; the published share is computed from published scores."""
    return kept(spec, share)


@measure
def no_loss(spec: str) -> Found:
    """The difference of a spec to dense."""
    row = _row(spec)
    tokens = row["tokens"]["mean_over_layers"]
    text = f"`{spec}` ({tokens:.0f} tokens per layer) less dense: {points_text(row['difference'])}"
    return Found(text, lost_nothing(row["difference"]), "claims.json")


@measure
def order(first: str, other: str, margin: float = 0.0) -> Found:
    """One spec less another; `margin` is a share of the other's score."""
    difference = _pair(first, other)
    verdict = ordered(difference, margin=margin * _row(other)["accuracy"]["value"])
    return Found(_against(first, other, difference), verdict, "claims.json")


@measure
def keeps_up(first: str, other: str) -> Found:
    """One spec less another, which it shall not be clearly below."""
    difference = _pair(first, other)
    verdict = DISAGREES if direction(difference) < 0 else AGREES
    return Found(_against(first, other, difference), verdict, "claims.json")


@measure
def first_token(spec: str, after: float, before: float) -> Found:
    """The time until the first token as a share of that of a dense call."""
    times = [
        sum(row["time_ms"][part] for part in ("encoder", "compressor", "prefill"))
        for row in (_row(spec), _row("dense"))
    ]
    ours = 1 - times[0] / times[1]
    text = f"`{spec}`: {ours:.0%} sooner (published: {1 - after / before:.0%})"
    return Found(text, saved(ours, 1 - after / before), "claims.json")


# The cost model


@measure
def figure(system: str, what: str, published: float) -> Found:
    """A published figure of cost, counted by the cost model under the paper's convention."""
    one = next(each for each in figures() if (each.system, each.what) == (system, what))
    assert one.published == published, f"{system}, {what}: two published figures, {one.published} and {published}"
    ours = f"{one.ours:.1%}" if one.unit == "share" else f"{one.ours:.3g} {one.unit}"
    same = "the same" if one.same else "not reproduced"
    return Found(f"{ours} by the cost model: {same}", AGREES if one.same else DISAGREES, "python docs/make.py cost")


@measure
def saved_flops(model: str, spec: str, share: float, images: Sequence[Sequence[int]] | None = None) -> Found:
    """The share of FLOPs of a call with one token as its answer that a spec saves, the encoder left out."""
    given: dict[str, Any] = {} if images is None else {"images": [tuple(size) for size in images]}
    flops = [cost(model, each, new_tokens=1, **given).part("prefill").flops for each in (spec, None)]
    ours = 1 - flops[0] / flops[1]
    image = "" if images is None else f" --image {'x'.join(map(str, images[0]))}"
    command = f"foveate cost --model {model} --spec {spec} --new-tokens 1{image}"
    return Found(f"`{spec}` saves {ours:.0%} of a prefill", saved(ours, share), command)


# Training schedules


def _tested(schedule: str, spec: str) -> tuple[str, str]:
    """Return what to read; "last" is the setting that a schedule ends with."""
    return schedule, schedules(SHORT).spec(schedule) if spec == "last" else spec


@measure
def llavolta_no_loss(pairs: Sequence[Sequence[str]], **_: Any) -> Found:
    """Models of schedules less others, each under a setting of its own; of the longest runs of each pair."""
    found: dict[str, dict[str, Any]] = {}
    files: dict[str, list[str]] = {}
    for first, spec, other, under in pairs:
        one, two = _tested(first, spec), _tested(other, under)
        file = longest(one, two)
        found[first] = schedules(file).difference(one, two).to_dict()
        files.setdefault(file, []).append(first)
    verdicts = {lost_nothing(each) for each in found.values()}
    verdict = next(each for each in (DISAGREES, NOT_SHOWN, AGREES) if each in verdicts)
    text = "; ".join(
        f"after {schedules(file).measured['setting']['steps']} steps: "
        + ", ".join(f"`{name}` {points_text(found[name])}" for name in names)
        for file, names in files.items()
    )
    return Found(text, verdict, *files)


@measure
def llavolta_time(schedule: str, after: float, before: float) -> Found:
    """The time of a schedule's forward and backward passes as a share of a dense run's."""
    ours = 1 - schedules(SHORT).time(schedule)
    text = f"{ours:.0%} less for forward and backward passes (published: {1 - after / before:.0%})"
    return Found(text, saved(ours, 1 - after / before), "llavolta.json")


@measure
def llavolta_order(first: Sequence[str], other: Sequence[str], sign: int, **_: Any) -> Found:
    """One model under a setting less another under one; of the longest runs that there are."""
    one, two = _tested(*first), _tested(*other)
    file = longest(one, two)
    difference = schedules(file).difference(one, two).to_dict()
    steps = schedules(file).measured["setting"]["steps"]
    name, beside = (
        f"`{spec}` " + ("before training" if schedule == "start" else f"after {steps} steps of `{schedule}`")
        for schedule, spec in (one, two)
    )
    return Found(f"{name} less {beside}: {points_text(difference)}", ordered(difference, sign), file)


@measure
def llavolta_clips(**_: Any) -> Found:
    """A schedule that ends dense, trained on clips; nothing if that hasn't been measured."""
    if not is_file(MEASURED / "llavolta-clips.json"):
        return Found("", NOT_SHOWN)
    row = next(each for each in measured("llavolta-clips.json")["rows"] if each["schedule"] == "two-compression")
    difference = row["tests"]["dense"]["over_single"]
    text = f"`two-compression`, {1 - row['flops']:.0%} fewer FLOPs, less `single`: {points_text(difference)}"
    return Found(text, lost_nothing(difference), "llavolta-clips.json")


# VoCo tokens


def _voco(what: str) -> dict[str, Any]:
    return next(row for row in measured("voco.json")["rows"] if row["what"] == what)


@measure
def voco_share(row: str, share: float) -> Found:
    """The share of what the image adds that VoCo tokens retain."""
    found = _voco(row)
    text = f"{share_text(found['retention'])} retention; {share_text(found['ratio'])} of the dense score"
    return Found(text, reached(found["retention"], share), "voco.json")


@measure
def voco_rivals(**_: Any) -> Found:
    """One VoCo token less one token made before the decoder."""
    row = _voco("press-longer:1")
    found = {"average pooling": row["over_pool"], "the Q-Former": row["over_qformer"]}
    verdicts = {ordered(each) for each in found.values()}
    verdict = next(each for each in (DISAGREES, NOT_SHOWN, AGREES) if each in verdicts)
    text = "; ".join(f"one token less {name}: {points_text(each)}" for name, each in found.items())
    return Found(text, verdict, "voco.json")


@measure
def voco_rises(**_: Any) -> Found:
    """Retention by the number of tokens."""
    rows = [row for row in measured("voco.json")["rows"] if row["what"].startswith("press-longer:")]
    shares = {int(row["what"].partition(":")[2]): row["retention"] for row in rows}
    few, many = min(shares), max(shares)
    values = [shares[count]["value"] for count in sorted(shares)]
    rises = values == sorted(values) and shares[few]["high"] < shares[many]["low"]
    text = f"from {values[0]:.1%} with {few} to {values[-1]:.1%} with {many}"
    return Found(text, AGREES if rises else DISAGREES, "voco.json")


@measure
def voco_bytes(after: float, before: float) -> Found:
    """How many times less memory an image's keys and values take."""
    sizes = measured("voco.json")["times"]["bytes"]
    times = sizes["dense"] / sizes["1"]
    text = f"{sizes['1'] / 1024:.0f} KB instead of {sizes['dense'] / 1024:,.0f}: {times:.0f} times"
    return Found(text, saved(times, before / after), "voco.json")


@measure
def voco_time(after: float, before: float, beside: str) -> Found:
    """The time of a question about an image that has been read."""
    times = measured("voco.json")["times"]["milliseconds"]
    ours = 1 - times["voco"] / times[beside]
    text = f"{times['voco']:.1f} of {times[beside]:.1f} ms: {ours:.0%} less (published: {1 - after / before:.1%})"
    return Found(text, saved(ours, 1 - after / before), "voco.json")


@measure
def voco_order_of_frames() -> Found:
    """Questions about clips that need the order, in order less shuffled, with the fewest tokens."""
    row = measured("voco.json")["clips"]["rows"][0]
    titles = {"way": "where it moves", "first": "which comes first"}
    verdicts = {ordered(row[skill]["difference"]) for skill in titles}
    verdict = next(each for each in (DISAGREES, NOT_SHOWN, AGREES) if each in verdicts)
    text = "; ".join(
        f"{title}, in order less shuffled: {points_text(row[skill]['difference'])}" for skill, title in titles.items()
    )
    return Found(text, verdict, "voco.json")


# Learned budgets

BUDGETS: Final = "atp-budgets.json"
"""Thresholds on a frozen model at four budgets, with two seeds."""


def _atp(name: str) -> dict[str, Any]:
    return measured("atp.json")["configurations"][name]


@measure
def atp_kept(rows: Sequence[str], names: Sequence[str], share: float) -> Found:
    """The shares of the dense score that learned budgets keep; the first one counts."""
    dense = _atp("dense")["accuracy"]["value"]
    found = {name: of_dense(_atp(row)["to_dense"], dense) for row, name in zip(rows, names, strict=True)}
    text = "; ".join(f"{name}: {share_text(each)}" for name, each in found.items())
    return Found(text, reached(found[names[0]], share), "atp.json")


@measure
def atp_budget_kept(mean: int, share: float) -> Found:
    """The share of the dense score that learned thresholds keep at a budget, the model frozen."""
    found, budget = measured(BUDGETS), _budget(mean)
    kept = of_dense(budget["learned"]["to_dense"], found["dense"]["accuracy"]["value"])
    text = f"thresholds alone, two seeds, {budget['entering']} tokens entering the decoder: {share_text(kept)}"
    return Found(text, reached(kept, share), BUDGETS)


@measure
def atp_budget_order(other: str, at: Sequence[int], **_: Any) -> Found:
    """Learned thresholds less a fixed rule, or less thresholds that were learned otherwise; the first budget counts."""
    found = {mean: _learned_less(mean, other) for mean in at}
    text = "; ".join(f"at {mean} tokens: {points_text(each)}" for mean, each in found.items())
    return Found(f"thresholds alone, two seeds, {text}", ordered(found[at[0]]), BUDGETS)


def _budget(mean: int) -> dict[str, Any]:
    return next(each for each in measured(BUDGETS)["budgets"] if each["mean"] == mean)


def _learned_less(mean: int, other: str) -> dict[str, Any]:
    """Return the difference to the row whose name, without what acts before the decoder, fits a pattern."""
    rows = {row["what"].rpartition("+")[2]: row for row in _budget(mean)["rows"]}
    name = next(name for name in rows if re.fullmatch(other, name))
    return rows[name]["learned_less_it"]


@measure
def atp_order(first: str, other: str, sign: int = 1, **_: Any) -> Found:
    """One configuration less another."""
    rivals = _atp(first).get("to_rivals", {})
    if other in rivals:
        difference = rivals[other]
    else:
        found = _atp(other)["to_rivals"][first]
        difference = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
    return Found(points_text(difference), ordered(difference, sign), "atp.json")


@measure
def atp_budgets(row: str) -> Found:
    """How many tokens images and questions get, from the least to the most."""
    need = measured("atp.json")["needs"][row]
    tokens, skills = need["tokens"], need["by_skill"]
    known = {skill: each for skill, each in skills.items() if each["low"] is not None}
    most = max(known, key=lambda skill: known[skill]["value"])
    apart = [skill for skill in known if known[skill]["high"] < known[most]["low"]]
    least = min(apart or known, key=lambda skill: known[skill]["value"])
    text = (
        f"from {tokens['least']:.0f} to {tokens['most']:.0f} tokens per layer; `{most}` questions "
        f"{known[most]['value']:.0f}, `{least}` {known[least]['value']:.0f}"
    )
    return Found(text, AGREES if apart else NOT_SHOWN, "atp.json")


@measure
def atp_cache(row: str, share: float) -> Found:
    """What an image's keys and values shrink by: tokens per layer."""
    ours = 1 - _atp(row)["mean_tokens"] / _atp("dense")["mean_tokens"]
    return Found(f"{ours:.0%} fewer tokens per layer", saved(ours, share), "atp.json")


# Attention


@cache
def _study() -> Study:
    return Study(measured("saliency.json"))


@measure
def saliency(claim: str) -> Found:
    """A row of the study of attention."""
    text, verdict = next(row[1:] for row in claim_rows(_study()) if row[0] == claim)
    verdict = {"agrees": AGREES, "disagrees": DISAGREES, "no clear difference": NOT_SHOWN}[verdict]
    return Found(text, verdict, "saliency.json")


@measure
def rises_with_depth() -> Found:
    """Accuracy with few random tokens from ever later layers on."""
    study = _study()
    rows = [study.rows[f"random:{study.kept}@{layer}"]["accuracy"] for layer in study.inside]
    values = [row["value"] for row in rows]
    grows = rows[0]["high"] < rows[-1]["low"] and all(b > a - MARGIN for a, b in pairwise(values))
    text = (
        f"{study.kept} random tokens from layer {study.inside[0]} of {study.found['layers']} on: {values[0]:.1%}; "
        f"from layer {study.inside[-1]} on: {values[-1]:.1%}; dense {study.rows['dense']['accuracy']['value']:.1%}"
    )
    return Found(text, AGREES if grows else DISAGREES, "saliency.json")


# Clips


def _clip(what: str) -> dict[str, Any]:
    return next(row for row in measured("clips.json")["rows"] if row["what"] == what)


@measure
def clips_kept(row: str, share: float) -> Found:
    """The share of the dense score that a spec keeps on clips."""
    return _kept(row, _clip(row)["over_dense"], _clip("dense")["accuracy"]["value"], share, "clips.json")


@measure
def clips_no_loss(row: str) -> Found:
    """The difference of a spec to dense on clips."""
    found = _clip(row)
    text = f"`{row}` of {_clip('dense')['tokens']:.0f} tokens less dense: {points_text(found['over_dense'])}"
    return Found(text, lost_nothing(found["over_dense"]), "clips.json")


@measure
def not_shown(**_: Any) -> Found:
    """Nothing: the claim's `why` says why."""
    return Found("", NOT_SHOWN)
