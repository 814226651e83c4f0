"""The measured part of docs/video.md, from docs/measured/clips.json; the rest of that page is written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from foveate.bench.formatting import count, points_text, share_text
from foveate.scenes import CLIP_SKILLS
from generators.folders import DOCS, MEASURED
from generators.markdown import fill, table, with_part

SKILLS = {
    "way": "where something moves",
    "first": "which comes first",
    "often": "in how many frames",
    "times": "how many times",
    "change": "before and after",
    "glimpse": "shown in one frame",
    "detail": "what a picture tells",
}
CONTROLS = {"dense": "dense", "shuffled": "dense, frames shuffled"}


def pages() -> dict[str, str]:
    """Return the page."""
    found = json.loads((MEASURED / "clips.json").read_text(encoding="utf-8"))
    text = (DOCS / "video.md").read_text(encoding="utf-8")
    return {"video.md": with_part(text, "clips", "\n" + measured_part(found))}


def measured_part(found: Mapping[str, Any]) -> str:
    """Return the tables of a result of benchmarks/clips.py."""
    rows = {row["what"]: row for row in found["rows"]}
    tables = [_budget(found, rows, budget) for budget in found["budgets"]]
    middle = found["budgets"][len(found["budgets"]) // 2]
    return "\n".join([_skills(found, rows), *tables, _skills_at(rows, middle)])


def _skills(found: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """Return the table of what the dense model can do, beside its controls."""
    cells = []
    for skill in CLIP_SKILLS:
        own = [rows[name]["skills"].get(skill) for name in CONTROLS]
        floor = found["floor"].get(skill)
        shares = ["" if share is None else f"{share:.1%}" for share in (floor, *own)]
        cells.append([f"{SKILLS[skill]} (`{skill}`)", str(found["by_skill"][skill]), *shares])
    total = sum(found["floor"].get(skill, 0) * n for skill, n in found["by_skill"].items()) / found["questions"]
    cells.append(
        [
            "all",
            str(found["questions"]),
            f"{total:.1%}",
            *(share_text(rows[name]["accuracy"]) for name in CONTROLS),
        ]
    )
    return table(["question", "questions", "without looking", *CONTROLS.values()], cells, "lrrrr")


def _budget(found: Mapping[str, Any], rows: Mapping[str, Any], budget: int) -> str:
    """Return the table of everything with one budget, the best first, and what was refused there."""
    named = [row for row in rows.values() if row.get("budget") == budget]
    named.sort(key=lambda row: -row["accuracy"]["value"])
    cells = [
        [
            f"`{row['what']}`",
            count(row["tokens"]),
            share_text(row["accuracy"]),
            points_text(row["over_dense"], unit=""),
            points_text(row["over_frames"], unit="") if "over_frames" in row else "",
        ]
        for row in named
    ]
    columns = ["configuration", "tokens", "accuracy", "less dense", "less fewer frames"]
    text = f"**{budget} of {count(rows['dense']['tokens'])} tokens of a clip**\n\n{table(columns, cells, 'lrrrr')}"
    refused = [name for name, why in found["refused"].items() if why["budget"] == budget]
    if refused:
        text += "\n" + fill(f"Refused at this budget: {_listed(refused)}.") + "\n"
    return text


def _skills_at(rows: Mapping[str, Any], budget: int) -> str:
    """Return the table of accuracy by skill with one budget, the best first."""
    named = [row for row in rows.values() if row.get("budget") == budget]
    named.sort(key=lambda row: -row["accuracy"]["value"])
    skills = [skill for skill in CLIP_SKILLS if skill in rows["dense"]["skills"]]
    cells = [
        [f"`{row['what']}`" if "budget" in row else row["what"], *(f"{row['skills'][skill]:.0%}" for skill in skills)]
        for row in (rows["dense"], *named)
    ]
    return f"**By question, {budget} tokens**\n\n{table(['', *skills], cells, 'l' + 'r' * len(skills))}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
