"""DocVQA: questions about pages of documents."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask
from foveate.bench.published.registry import SHORT, register

TASK = register(
    DatasetTask(
        name="docvqa",
        dataset="lmms-lab-encoder/DocVQA",
        subset="DocVQA",
        split="validation",
        columns=Columns(answer="answers", id="questionId", image_id="docId"),
        prompt=SHORT,
        score="anls",
        longest=32,
        paper="arXiv 2007.00398",
    )
)
