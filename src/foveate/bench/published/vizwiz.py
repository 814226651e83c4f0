"""VizWiz: questions of blind people about their photos."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask, Row
from foveate.bench.published.registry import register


def _capitalised(row: Row) -> str:
    return str(row["question"]).capitalize()


TASK = register(
    DatasetTask(
        name="vizwiz",
        dataset="lmms-lab-encoder/VizWiz-VQA",
        split="val",
        columns=Columns(answer="answers", id="question_id", skill="category"),
        prompt="{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase.",
        score="vqa",
        paper="arXiv 1802.08218",
        ask=_capitalised,
    )
)
