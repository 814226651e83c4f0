"""TextVQA: questions about text in photos."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask
from foveate.bench.published.registry import SHORT, register

TASK = register(
    DatasetTask(
        name="textvqa",
        dataset="lmms-lab-encoder/textvqa",
        split="validation",
        columns=Columns(answer="answers", id="question_id", image_id="image_id"),
        prompt=SHORT,
        score="vqa",
        paper="arXiv 1904.08920",
    )
)
