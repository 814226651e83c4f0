"""Compare all configurations of one or several runs with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from foveate.bench.comparing.corrections import CORRECTIONS
from foveate.bench.comparing.equal import COSTS, cost_of, mixture
from foveate.bench.comparing.hard import split
from foveate.bench.comparing.mcnemar import changes
from foveate.bench.comparing.power import questions_needed
from foveate.bench.comparing.ranks import agreement, ranks
from foveate.bench.comparing.resampling import bootstrap_interval, permutation_probability
from foveate.bench.comparing.runs import Answers, Results
from foveate.bench.statistics import Interval, difference_interval, mean_interval
from foveate.errors import FoveateError, unknown

__all__ = ["compare"]


def compare(
    results: Results,
    against: str | None = None,
    correct: str | None = None,
    equal: str | None = None,
    hard: str | None = None,
    points: float = 1.0,
) -> dict[str, Any]:
    """Return how the configurations differ from one of them.

    Args:
        results: of finished runs.
        against: the name of the configuration that differences are taken from; None is the first run's dense model.
        correct: `holm` or `bh` corrects the probabilities for as many comparisons as there are rows; None doesn't.
        equal: compares each method with the others at equal `tokens`, `layers`, `flops` or `time`.
        hard: a configuration with `resize`; accuracy is also told for what it fails and the dense model doesn't.
        points: the difference that `needed` questions show, in points.

    Returns:
        Plain data: "rows", one per configuration but the reference; "skills", "equal", "hard", "ranks", "agreement"
        where there are such.

    Raises:
        FoveateError: a name or an option is unknown, or the runs don't say what costs are to be equal.
    """
    reference = _named(results, results.first.name if against is None else against, "--against")
    if correct is not None and correct not in CORRECTIONS:
        raise FoveateError(f"--correct {correct} is unknown; correct by holm or bh")
    if equal is not None and equal not in COSTS:
        raise FoveateError(f"--equal {equal} is unknown; compare at equal {', '.join(COSTS)}")
    images = results.images
    others = [each for each in results.answers.values() if each.name != reference.name]
    rows = [_row(each, reference, images, points) for each in others]
    if correct is not None:
        for row, value in zip(rows, CORRECTIONS[correct]([row["probability"] for row in rows]), strict=True):
            row["corrected"] = value
    found: dict[str, Any] = {
        "task": results.task,
        "questions": len(images),
        "images": len(set(images)),
        "against": reference.name,
        "correct": correct,
        "points": points,
        "rows": rows,
        "skills": _skills(results, others, reference),
        "ranks": {
            name: asdict(rank)
            for name, rank in ranks({name: each.scores for name, each in results.answers.items()}, images).items()
        },
    }
    if len(results.runs) > 1:
        orders = [
            {results.answers[name].row["spec"]: _mean(results.answers[name]) for name in own} for own in results.runs
        ]
        found["agreement"] = agreement([{_seedless(k): v for k, v in order.items()} for order in orders])
    if equal is not None:
        found["equal"] = {"cost": equal, "rows": _equal(results, equal)}
    if hard is not None:
        found["hard"] = _hard(results, _named(results, hard, "--hard"))
    return found


def _named(results: Results, name: str, option: str) -> Answers:
    if name not in results.answers:
        raise FoveateError(f"{option}: {unknown('configuration is called', name, list(results.answers))}")
    return results.answers[name]


def _row(own: Answers, reference: Answers, images: Sequence[str], points: float) -> dict[str, Any]:
    scores, others = own.scores, reference.scores
    return {
        "spec": own.name,
        "accuracy": mean_interval(scores, images).to_dict(),
        "difference": difference_interval(scores, others, images).to_dict(),
        "bootstrap": bootstrap_interval(scores, others, images).to_dict(),
        "probability": permutation_probability(scores, others, images),
        "changes": asdict(changes(scores, others)),
        "needed": questions_needed(scores, others, images, points / 100),
    }


def _skills(results: Results, others: Sequence[Answers], reference: Answers) -> dict[str, dict[str, Any]]:
    """Return McNemar's test of each skill, by configuration."""

    def of(own: Answers, numbers: Sequence[int]) -> dict[str, Any]:
        return asdict(changes([own.scores[n] for n in numbers], [reference.scores[n] for n in numbers]))

    skills = results.skills
    return (
        {each.name: {skill: of(each, numbers) for skill, numbers in skills.items()} for each in others}
        if skills
        else {}
    )


def _equal(results: Results, what: str) -> list[dict[str, Any]]:
    """Return each configuration against each other method at the same cost."""
    costs = {name: cost_of(each.row, what) for name, each in results.answers.items()}
    if lacking := [name for name, cost in costs.items() if cost is None]:
        raise FoveateError(f"--equal {what}: the run doesn't say the {COSTS[what]} of {lacking[0]}; run it again")
    known = {name: float(cost) for name, cost in costs.items() if cost is not None}
    scores = {name: each.scores for name, each in results.answers.items()}
    rows = []
    for run in results.runs:
        dense, *own = run
        labels = {name: results.answers[name].row["label"] for name in own}
        for name in own:
            for label in dict.fromkeys(labels.values()):
                rival = [other for other in own if labels[other] == label]
                if labels[name] == label:
                    continue
                mixed = mixture({other: known[other] for other in [*rival, dense]}, known[name])
                if mixed is None:
                    continue
                found = difference_interval(scores[name], mixed.scores(scores), results.images)
                rows.append({"spec": name, "rival": label, **asdict(mixed), "cost": known[name], **found.to_dict()})
    return rows


def _hard(results: Results, resized: Answers) -> dict[str, Any]:
    """Return accuracy on what down-sampling fails, and on what it doesn't."""
    if not any(each.row["spec"].startswith("resize") for each in (resized,)):
        raise FoveateError(f"--hard {resized.name} is no down-sampling; name a configuration with resize")
    own = next(run for run in results.runs if resized.name in run)
    parts = split(results.answers[own[0]].scores, resized.scores)

    def of(answers: Answers, numbers: Sequence[int]) -> dict[str, Any]:
        if not numbers:
            return Interval(0.0, None, None).to_dict()
        return mean_interval([answers.scores[n] for n in numbers], [results.images[n] for n in numbers]).to_dict()

    return {
        "by": resized.name,
        "questions": {"hard": len(parts.hard), "easy": len(parts.easy)},
        "rows": {
            name: {"hard": of(each, parts.hard), "easy": of(each, parts.easy)} for name, each in results.answers.items()
        },
    }


def _mean(answers: Answers) -> float:
    return sum(answers.scores) / len(answers.scores)


def _seedless(spec: str) -> str:
    """Return a spec without the seeds of its methods, under which runs with other seeds are one."""
    return "+".join(
        "@".join(":".join(word for word in part.split(":") if not word.startswith("seed=")) for part in step.split("@"))
        for step in spec.split("+")
    )
