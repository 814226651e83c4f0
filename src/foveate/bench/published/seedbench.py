"""SEED-Bench: multiple choice, its questions about single images."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask
from foveate.bench.published.registry import LETTER, register

TASK = register(
    DatasetTask(
        name="seedbench",
        dataset="lmms-lab-encoder/SEED-Bench",
        split="test",
        columns=Columns(choices="choice_a/choice_b/choice_c/choice_d", id="question_id", skill="question_type_id"),
        prompt=LETTER,
        score="choice",
        paper="arXiv 2307.16125",
        keep=lambda row: row["data_type"] == "image",
        reads=("data_type",),
    )
)
