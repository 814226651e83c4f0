"""OCRBench: reading text of ten kinds."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask
from foveate.bench.published.registry import register

TASK = register(
    DatasetTask(
        name="ocrbench",
        dataset="echo840/OCRBench",
        split="test",
        columns=Columns(skill="question_type"),
        score="contains",
        longest=128,
        paper="arXiv 2305.07895",
    )
)
