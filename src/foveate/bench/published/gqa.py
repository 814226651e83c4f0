"""GQA: compositional questions about photos."""

from __future__ import annotations

from foveate.bench.hugging_face import Columns, DatasetTask, Images
from foveate.bench.published.registry import SHORT, register

TASK = register(
    DatasetTask(
        name="gqa",
        dataset="lmms-lab-encoder/GQA",
        subset="testdev_balanced_instructions",
        split="testdev",
        columns=Columns(image="imageId", id="id", image_id="imageId"),
        prompt=SHORT,
        score="plain",
        paper="arXiv 1902.09506",
        images=Images("testdev_balanced_images", "testdev", key="id"),
    )
)
