"""The VoCo mask is the authors' for one image, and hides each of several images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.voco import voco_mask

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = [case for case in json.loads((GOLDEN / "index.json").read_text())["cases"] if case["method"] == "voco_mask"]
PADDING, VOCO, AFTER = 0, 4, 5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_the_authors_mask(case):
    with np.load(GOLDEN / case["file"]) as arrays:
        kind, theirs = torch.from_numpy(arrays["token_kind"]), torch.from_numpy(arrays["mask"])
    # A sample without VoCo tokens is all text.
    has_image = (kind == VOCO).any(dim=1, keepdim=True)
    segment = torch.where((kind == AFTER) | ~has_image, 0, 1).masked_fill(kind == PADDING, -1)
    ours = voco_mask(segment, kind == VOCO)
    real = kind != PADDING
    assert torch.equal(ours[real], theirs[real])
    # Rows of padding: the authors let them see everything; here they see themselves, which no softmax minds.
    assert ours.any(dim=-1).all()


def test_there_are_golden_cases():
    assert len(CASES) == 8


def test_two_images_are_hidden_each_by_its_own_tokens():
    segment = torch.tensor([[1, 1, 1, 2, 2, 2, 0, 0]])
    voco = torch.tensor([[0, 0, 1, 0, 0, 1, 0, 0]]).bool()
    mask = voco_mask(segment, voco)[0]
    assert mask[7].nonzero().flatten().tolist() == [2, 5, 6, 7]
    assert mask[5].nonzero().flatten().tolist() == [3, 4, 5], "a segment sees itself alone"


def test_text_between_images_sees_only_what_came():
    segment = torch.tensor([[1, 1, 0, 2, 2, 0]])
    voco = torch.tensor([[0, 1, 0, 0, 1, 0]]).bool()
    mask = voco_mask(segment, voco)[0]
    assert mask[2].nonzero().flatten().tolist() == [1, 2]
    assert mask[5].nonzero().flatten().tolist() == [1, 2, 4, 5]
