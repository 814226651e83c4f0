"""MME: fourteen kinds of questions that are answered with yes or no."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask, Row
from foveate.bench.published.registry import SHORT, register


def _without_its_own_prompt(row: Row) -> str:
    """Return the question without the ending that the dataset has, in place of which `SHORT` stands."""
    return str(row["question"]).replace(" Please answer yes or no.", "")


TASK = register(
    DatasetTask(
        name="mme",
        dataset="lmms-lab-encoder/MME",
        split="test",
        columns=Columns(image_id="question_id", skill="category"),
        prompt=SHORT,
        score="mme",
        paper="arXiv 2306.13394",
        ask=_without_its_own_prompt,
    )
)
