"""Put a report together: one HTML file with its figures, pictures, styles and scripts inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from foveate.bench.formatting import interval, points, printable, share_text
from foveate.bench.report import HEADS, caption, cells_of, clearly_below
from foveate.errors import FoveateError
from foveate.files import read_text, write_text
from foveate.report.examples import Examples
from foveate.report.figures import figures, names_of, script, specifications
from foveate.report.measured import Measured
from foveate.report.summary import sentences

__all__ = ["page", "write_page"]

MOST_CHANGES: Final = 2_000
"""The most changed questions that a page lists of one run."""


def page(runs: Sequence[Measured], shown: Mapping[str, Examples] | None = None, title: str = "") -> str:
    """Return a report as HTML, with all that it needs inside.

    Args:
        runs: what was measured, in the order in which the page has it.
        shown: per run, by name, pictures for its browser of changed questions.
        title: of the page; the tasks' names if there is none.

    Raises:
        FoveateError: jinja2 or altair is missing, or a run has only the dense model.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise FoveateError(
            'a report needs jinja2; install foveate with its report extra (pip install ".[report]" in a clone)'
        ) from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(read_text(Path(__file__).with_name("page.html.j2")))
    shown = shown or {}
    parts = [_part(number, run, shown.get(run.name, Examples())) for number, run in enumerate(runs)]
    tasks = ", ".join(dict.fromkeys(printable(run.metrics["task"]) for run in runs))
    return template.render(
        title=title or f"Fewer visual tokens: {tasks}",
        parts=parts,
        beside=_beside(runs),
        script=script(),
        data=_embedded({part["id"]: part.pop("data") for part in parts}),
    )


def write_page(
    runs: Sequence[Measured], path: Path, shown: Mapping[str, Examples] | None = None, title: str = ""
) -> Path:
    """Write a report as one HTML file, atomically; `page` tells the arguments.

    Raises:
        FoveateError: `page` tells when, or the file can't be written.
    """
    write_text(path, page(runs, shown, title))
    return path


def _part(number: int, run: Measured, shown: Examples) -> dict[str, Any]:
    made = figures(run)
    metrics = run.metrics
    heads = [*HEADS]
    changes = run.changes()
    lines = [*shown.lines]
    if len(changes) > MOST_CHANGES:
        lines.append(f"Listed are the first {MOST_CHANGES:,} of {len(changes):,} changed questions.")
    return {
        "id": f"run-{number}",
        "name": printable(run.name),
        "task": printable(metrics["task"]),
        "questions": metrics["questions"],
        "images": metrics["images"],
        "sentences": sentences(run),
        "figures": names_of(list(made)),
        "heads": heads,
        "rows": [
            {"cells": cells_of(metrics, row), "baseline": row["baseline"], "losses": _losses(row)} for row in run.rows
        ],
        "caption": caption(metrics),
        "skills": _skills(run),
        "facts": _facts(run),
        "lines": lines,
        "changed": len(changes),
        "data": {
            "figures": specifications(made),
            "specs": run.specs,
            "pictures": shown.pictures,
            "kept": shown.kept,
            "changes": [
                {
                    "image": printable(each.image),
                    "skill": each.skill and printable(each.skill.replace("_", " ")),
                    "question": printable(each.question),
                    "answer": printable(each.answer),
                    "dense": [printable(each.dense[0]), each.dense[1]],
                    "others": {spec: [printable(text), score] for spec, (text, score) in each.others.items()},
                }
                for each in changes[:MOST_CHANGES]
            ],
        },
    }


def _losses(row: Mapping[str, Any]) -> list[str]:
    return [f"{name} {points(each['value'])} {interval(each)}" for name, each in clearly_below(row).items()]


def _skills(run: Measured) -> dict[str, Any] | None:
    """Return the table of skills: a row per configuration, each cell with its interval and its questions."""
    names = list(run.rows[0]["skills"])
    if not names:
        return None
    return {
        "heads": [(printable(name.replace("_", " ")), run.rows[0]["skills"][name]["questions"]) for name in names],
        "rows": [
            (printable(row["spec"]), [share_text(row["skills"][name]["accuracy"]) for name in names])
            for row in run.rows
        ],
    }


def _facts(run: Measured) -> list[tuple[str, str]]:
    """Return what was measured with: the model's fingerprint, versions, the machine."""
    config = run.config
    facts = [("model", f"fingerprint {config['model'][:16]}"), ("questions", f"fingerprint {config['data'][:16]}")]
    facts += [(name, str(version)) for name, version in config.get("versions", {}).items()]
    facts += [(key.replace("_", " "), str(value)) for key, value in run.environment.items() if key not in dict(facts)]
    return [(key, printable(value)) for key, value in facts]


def _beside(runs: Sequence[Measured]) -> dict[str, Any] | None:
    """Return one table of several runs: accuracy of each configuration in each; None for one run."""
    if len(runs) < 2:
        return None
    specs = dict.fromkeys(row["spec"] for run in runs for row in run.rows)
    found = {run.name: {row["spec"]: row for row in run.rows} for run in runs}
    return {
        "same": len({run.config["data"] for run in runs}) == 1,
        "heads": [printable(run.name) for run in runs],
        "rows": [
            (printable(spec), [share_text(held[spec]["accuracy"]) if spec in held else "" for held in found.values()])
            for spec in specs
        ],
    }


def _embedded(data: Any) -> str:
    """Return data as JSON that can stand inside a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
