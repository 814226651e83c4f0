"""POPE: is this object there?"""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask
from foveate.bench.published.registry import SHORT, register

TASK = register(
    DatasetTask(
        name="pope",
        dataset="lmms-lab-encoder/POPE",
        split="test",
        columns=Columns(id="id", image_id="image_source", skill="category"),
        prompt=SHORT,
        score="yes-no",
        paper="arXiv 2305.10355",
    )
)
