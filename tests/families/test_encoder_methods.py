"""Methods that read the encoder, inside a small random model of every family."""

from typing import Any

import pytest
import test_contract
import torch
from rows import Row
from versions import BEAMS_OF_SEVERAL_IMAGES

from foveate.engine import apply, compress
from foveate.errors import KeepError
from foveate.families import family_of
from foveate.schedule import tokens_between

ADAPTIVE = ("prumerge:auto", "prumerge-plus:auto")
FIXED = ("visionzip:6", "prumerge:6", "prumerge-plus:6", "vispruner:6", "holov:6", "hired:6", "cluster:6:take=weighted")


@pytest.mark.parametrize("spec", FIXED)
def test_what_it_keeps_is_what_it_says(row: Row, model: Any, spec: str) -> None:
    test_contract.test_counts(row, model, spec)
    test_contract.test_compress_is_apply(row, model, spec)


@pytest.mark.parametrize(
    "spec", [*ADAPTIVE, "prumerge:auto+cls:0.5@features", "prumerge:auto+cluster:0.5", "visionzip:6"]
)
def test_a_batch_is_its_samples_alone(row: Row, model: Any, spec: str) -> None:
    test_contract.test_a_batch_is_its_samples_alone(row, model, spec)


@pytest.mark.parametrize("spec", ADAPTIVE)
def test_as_many_as_the_content_asks_for(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs(*test_contract.BATCH)
    family = family_of(model)
    short = compress(model, inputs, spec)
    with apply(model, spec) as run:
        model(**inputs)
    report = run.report()
    assert [image.after for image in short.images] == [image.after for image in report.images]
    for image, layout in zip(short.images, family.layouts(inputs)):
        fewest, most = tokens_between(spec, family, layout)
        assert fewest <= image.after <= most
        assert fewest < most
    test_contract.test_compress_is_apply(row, model, spec)


@pytest.mark.encoder_signals
def test_ragged_plans_keep_their_padding_to_themselves(row: Row, model: Any) -> None:
    """Images of one layout are planned as one batch; what an image gets doesn't depend on the others."""
    together = compress(model, row.inputs("A t2 B t3 C A t1 C"), "prumerge-plus:auto").images
    for letter, image in zip("ABCAC", together, strict=True):
        assert image.plan is not None
        assert image.plan.valid is None
        (alone,) = compress(model, row.inputs(letter), "prumerge-plus:auto").images
        torch.testing.assert_close(image.features, alone.features)
        assert torch.equal(image.slot, alone.slot)


@pytest.mark.encoder_signals
def test_a_step_behind_one_that_decides_must_find_enough(row: Row, model: Any) -> None:
    family = family_of(model)
    (layout,) = family.layouts(row.inputs("A"))
    fewest, most = tokens_between("prumerge:auto+cluster:0.5", family, layout)
    assert fewest < most
    with pytest.raises(KeepError, match=r"may leave so few; keep a fraction at cluster:6"):
        tokens_between("prumerge:auto+cluster:6", family, layout)
    with pytest.raises(KeepError, match=r"keep at most \d+, or 1.0$"):
        tokens_between("cls:600@features+prumerge:auto", family, layout)


@pytest.mark.parametrize("spec", ["prumerge-plus:auto+cls:0.5@features", "prumerge:auto+stride:0.5@1"])
@BEAMS_OF_SEVERAL_IMAGES
def test_beams_of_ragged_plans(row: Row, model: Any, spec: str) -> None:
    with apply(model, spec):
        together = test_contract.generate(model, row.inputs(*test_contract.BATCH), 4, num_beams=2)
        for number, prompt in enumerate(test_contract.BATCH):
            alone = test_contract.generate(model, row.inputs(prompt), 4, num_beams=2)
            assert together[number, : alone.shape[1]].tolist() == alone[0].tolist()
