"""ChartQA: questions about charts, some by people and some made."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask
from foveate.bench.published.registry import register

TASK = register(
    DatasetTask(
        name="chartqa",
        dataset="lmms-lab-encoder/ChartQA",
        split="test",
        columns=Columns(skill="type"),
        prompt="{question}\nAnswer the question with a single word.",
        score="relaxed",
        paper="arXiv 2203.10244",
    )
)
