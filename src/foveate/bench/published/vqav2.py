"""VQAv2: questions about photos, each answered by ten people."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask
from foveate.bench.published.registry import SHORT, register

TASK = register(
    DatasetTask(
        name="vqav2",
        dataset="lmms-lab-encoder/VQAv2",
        split="validation",
        columns=Columns(answer="answers", id="question_id", image_id="image_id", skill="answer_type"),
        prompt=SHORT,
        score="vqa",
        paper="arXiv 1612.00837",
    )
)
