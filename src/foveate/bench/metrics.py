"""Compute metrics from answers and times."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from foveate.bench.configurations import budget_of, is_baseline, label_of
from foveate.bench.results import Part, Prediction
from foveate.bench.scoring import Figures, Scored
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.bench.tasks import Task, normalised
from foveate.bench.times import comparable_parts
from foveate.spec import Spec

TIMES: Final = ("encoder", "compressor", "prefill", "decode", "total")
"""The parts of a call that are timed, and their sum."""


def measure(
    task: Task,
    specs: Mapping[str, Spec],
    predictions: Sequence[Prediction],
    parts: Sequence[Part],
    floor: Mapping[str, float] | None = None,
    budgets: Mapping[str, float] | None = None,
    figures: Figures | None = None,
) -> dict[str, Any]:
    """Return the contents of metrics.json.

    Args:
        task: the images and questions.
        specs: the configurations by name, "dense" among them.
        predictions: every configuration's answer to every question.
        parts: tokens and times.
        floor: accuracy per skill of answering without looking.
        budgets: by configuration, the budget that it equals at its cost; the others belong to their mean over layers.
        figures: what the metric says about all answers of a configuration beside the mean score.

    Returns:
        "configurations": one entry each, dense first, then by budget, with "difference" to dense and "against", the
        paired difference to each baseline of its budget, and "cut", how many answers reached the most tokens without an
        end; "pairs": see `_pairs`; "floor"; counts. Times are milliseconds
        per question about a new image, from as many "images" as one session measured for all configurations; shares
        are between 0 and 1.
    """
    answers: dict[str, list[Prediction]] = {}
    for each in predictions:
        answers.setdefault(each.spec, []).append(each)
    for own in answers.values():
        own.sort(key=lambda each: each.number)
    dense = answers["dense"]
    timed = comparable_parts(parts, specs)
    skills = [skill for skill in task.skills if any(each.skill == skill for each in dense)]
    rows = []
    for name, spec in specs.items():
        own_parts = [part for part in parts if part.spec == name]
        rows.append(_configuration(name, spec, answers[name], dense, own_parts, skills))
        rows[-1]["time_ms"] = _times([part for part in timed if part.spec == name])
        if budgets:
            # A spec that equals no budget is held against no baseline of one.
            rows[-1]["budget"] = budgets.get(name, rows[-1]["tokens"]["mean_over_layers"])
        if figures is not None:
            rows[-1]["figures"] = dict(figures(_scored(task, answers[name])))
    for row in rows:
        row["against"] = _against(row, rows, answers)
    base = rows[0]["time_ms"]
    for row in rows:
        row["time_ratio"] = {part: _ratio(row["time_ms"][part], base[part]) for part in TIMES}
        # The dense model compresses nothing.
        row["time_ratio"]["compressor"] = None
    # Dense first, then the largest budget; sorting keeps the order of methods.
    rows[1:] = sorted(rows[1:], key=lambda row: -row["budget"])
    return {
        "task": task.name,
        "images": len(task.pictures),
        **({"clips": clips} if (clips := task.clips) else {}),
        "questions": task.questions,
        "floor": None if floor is None else _floor(floor, dense),
        "configurations": rows,
        "pairs": _pairs([row["spec"] for row in rows], answers),
    }


def difference_of(metrics: Mapping[str, Any], spec: str, reference: str) -> dict[str, Any] | None:
    """Return the paired difference of two configurations, `spec` minus `reference`; None for one and itself.

    Args:
        metrics: what `measure` returns.
        spec: a configuration's name.
        reference: another one's.

    >>> metrics = {"pairs": {"cluster:4": {"dense": [-0.5, -0.9, -0.1, 7]}}}
    >>> difference_of(metrics, "dense", "cluster:4")
    {'value': 0.5, 'low': 0.1, 'high': 0.9, 'changed': 7}
    """
    if spec == reference:
        return None
    found = metrics["pairs"].get(spec, {}).get(reference)
    if found is not None:
        value, low, high, changed = found
    else:
        value, high, low, changed = metrics["pairs"][reference][spec]
        value, low, high = (None if end is None else 0.0 - end for end in (value, low, high))
    return {"value": value, "low": low, "high": high, "changed": changed}


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Return the text of metrics.json, each list of numbers on one line.

    >>> print(metrics_text({"pairs": {"pool:4": {"dense": [-0.5, None, None, 2]}}}), end="")
    {
     "pairs": {
      "pool:4": {
       "dense": [-0.5, null, null, 2]
      }
     }
    }
    """
    text = json.dumps(metrics, ensure_ascii=False, indent=1)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


_NUMBERS: Final = re.compile(r"\[\n\s*([-+.0-9enul,\s]+?)\s*\]")
"""A list of numbers over several lines; text in JSON never holds a line break."""


def _configuration(
    name: str,
    spec: Spec,
    own: Sequence[Prediction],
    dense: Sequence[Prediction],
    parts: Sequence[Part],
    skills: Sequence[str],
) -> dict[str, Any]:
    images = sum(part.spent.images for part in parts)
    before = sum(part.before for part in parts) / images
    after = sum(part.after for part in parts) / images
    mean = sum(part.after if part.mean is None else part.mean for part in parts) / images
    same = [normalised(a.prediction) == normalised(b.prediction) for a, b in zip(own, dense, strict=True)]
    return {
        "spec": name,
        "label": label_of(spec),
        "baseline": is_baseline(spec),
        "budget": budget_of(spec, before, after),
        "tokens": {
            "before": before,
            "after": after,
            "share": after / before,
            "mean_over_layers": mean,
        },
        **_accuracy(own, dense),
        "loyalty": sum(same) / len(same),
        "cut": sum(each.cut for each in own),
        "skills": {
            skill: _accuracy([p for p in own if p.skill == skill], [p for p in dense if p.skill == skill])
            for skill in skills
        },
    }


def _pairs(names: Sequence[str], answers: Mapping[str, Sequence[Prediction]]) -> dict[str, dict[str, list[Any]]]:
    """Return the paired difference of each configuration to each one before it, to six digits.

    By name, and by the other's name: value, low, high, and how many questions have another score.
    """
    return {
        name: {
            other: [
                None if found is None else round(found, 6) for found in _paired(answers[name], answers[other]).values()
            ]
            for other in names[:number]
        }
        for number, name in enumerate(names)
        if number
    }


def _against(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[Prediction]]
) -> dict[str, Any]:
    """Return the paired difference of a configuration to each other baseline of its budget."""
    if row["spec"] == "dense":
        return {}
    rivals = [each["spec"] for each in rows if each["baseline"] and each["budget"] == row["budget"]]
    return {name: _paired(answers[row["spec"]], answers[name]) for name in rivals if name != row["spec"]}


def _accuracy(own: Sequence[Prediction], dense: Sequence[Prediction]) -> dict[str, Any]:
    return {
        "questions": len(own),
        "accuracy": mean_interval(_scores(own), [each.image for each in own]).to_dict(),
        "difference": None if own[0].spec == "dense" else _paired(own, dense),
    }


def _paired(own: Sequence[Prediction], reference: Sequence[Prediction]) -> dict[str, Any]:
    """Return the paired difference, and how many questions have another score."""
    scores, others = _scores(own), _scores(reference)
    found = difference_interval(scores, others, [each.image for each in own])
    return {**found.to_dict(), "changed": sum(one != other for one, other in zip(scores, others, strict=True))}


def _scored(task: Task, own: Sequence[Prediction]) -> list[Scored]:
    """Return all answers of a configuration as a metric saw them."""
    asked = [(picture.name, each) for picture in task.pictures for each in picture.questions]
    return [
        Scored(each.response(answer.prediction), answer.score, image, each.skill)
        for (image, each), answer in zip(asked, own, strict=True)
    ]


def _scores(own: Sequence[Prediction]) -> list[float]:
    return [each.score for each in own]


def _times(parts: Sequence[Part]) -> dict[str, float]:
    """Return medians over parts, since other work on the machine slows some of them, and the number of images."""
    spent = [part.spent for part in parts]
    times = {
        "encoder": median(each.encoder / each.images for each in spent),
        "compressor": median(each.compressor / each.compressions for each in spent),
        "prefill": median(each.prefix / each.images + each.question / each.questions for each in spent),
        "decode": median(each.decode / each.questions for each in spent),
    }
    return {**times, "total": sum(times.values()), "images": sum(each.images for each in spent)}


def _ratio(value: float, base: float) -> float | None:
    return value / base if base else None


def _floor(floor: Mapping[str, float], dense: Sequence[Prediction]) -> dict[str, float]:
    """Return the floor per skill, and overall, weighted by the questions of each skill."""
    overall = sum(floor[each.skill] for each in dense if each.skill is not None) / len(dense)
    return {"overall": overall, **floor}
