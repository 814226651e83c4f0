"""Methods that read features and text, inside every family: what a prompt alone gets, it gets in a batch."""

from typing import Any

import pytest
import torch
from rows import Row

from foveate.engine import apply, compress

BATCH = ("t6 A t5", "t2 B t9 C t3", "t11", "t3 C t4")
SPECS = ("divprune:5", "cdpruner:5", "tome:5", "dpc-knn:5", "agglomerative:5")


@pytest.mark.parametrize("spec", SPECS)
def test_a_batch_is_its_samples_alone(row: Row, model: Any, spec: str) -> None:
    batch = compress(model, row.inputs(*BATCH), spec)
    alone = [compress(model, row.inputs(prompt), spec) for prompt in BATCH]
    images = [image for short in alone for image in short.images]
    assert [image.slot.tolist() for image in batch.images] == [image.slot.tolist() for image in images]
    for one, other in zip(batch.images, images, strict=True):
        torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_compress_is_apply(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs(BATCH[1])
    short = compress(model, inputs, spec)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    ours = model.generate(**short, **options)
    with apply(model, spec) as run:
        theirs = model.generate(**inputs, **options)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert [image.after for image in run.report().images] == [image.after for image in short.images]
