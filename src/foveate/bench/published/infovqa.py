"""InfographicVQA: questions about infographics."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask
from foveate.bench.published.registry import SHORT, register

TASK = register(
    DatasetTask(
        name="infovqa",
        dataset="lmms-lab-encoder/DocVQA",
        subset="InfographicVQA",
        split="validation",
        columns=Columns(answer="answers", id="questionId"),
        prompt=SHORT,
        score="anls",
        longest=32,
        paper="arXiv 2104.12756",
    )
)
