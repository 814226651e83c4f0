"""MMBench: multiple choice, each question in several orders of its options."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask, Row
from foveate.bench.published.registry import LETTER, register


def _with_hint(row: Row) -> str:
    """Return the question after its hint, where it has one."""
    hint = str(row["hint"] or "").strip()
    return str(row["question"]) if hint in ("", "nan") else f"{hint} {row['question']}"


TASK = register(
    DatasetTask(
        name="mmbench",
        dataset="lmms-lab-encoder/MMBench",
        subset="en",
        split="dev",
        columns=Columns(choices="A/B/C/D/E", id="index", skill="category"),
        prompt=LETTER,
        score="choice",
        paper="arXiv 2307.06281",
        ask=_with_hint,
        reads=("hint",),
    )
)
