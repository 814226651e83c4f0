"""ScienceQA: questions from schools, those that have a picture."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask, Row
from foveate.bench.published.registry import LETTER, register


def _with_context(row: Row) -> str:
    """Return the question after its context, where it has one."""
    context = str(row["hint"] or "").strip()
    return f"Context: {context}\n{row['question']}" if context else str(row["question"])


TASK = register(
    DatasetTask(
        name="scienceqa",
        dataset="lmms-lab-encoder/ScienceQA",
        subset="ScienceQA-IMG",
        split="test",
        columns=Columns(choices="choices", skill="subject"),
        prompt=LETTER,
        score="choice",
        paper="arXiv 2209.09513",
        ask=_with_context,
        reads=("hint",),
    )
)
