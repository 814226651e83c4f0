"""A model with an encoder for audio, too: what it hears passes untouched beside fewer visual tokens."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from rows.gemma4 import AUDIO, IMAGE, ROW, make_gemma4
from test_contract import generate, logits
from torch import Tensor

from foveate.engine import apply, compress

HEARS = replace(ROW, make=partial(make_gemma4, hears=True))


@pytest.fixture(scope="module")
def hearing() -> Any:
    return HEARS.model("eager")  # the encoder of audio has no other attention


def heard(model: Any, first: str) -> dict[str, Tensor]:
    """A prompt with a picture and some audio, one of them first."""
    generator = torch.Generator().manual_seed(4)
    inputs = HEARS.inputs("t6 A t5")
    audio = {
        "input_features": torch.randn(1, 24, 128, generator=generator),
        "input_features_mask": torch.ones(1, 24, dtype=torch.bool),
    }
    count = int(model.model.get_audio_features(**audio, return_dict=True).attention_mask.sum())
    pieces = [inputs["input_ids"], torch.tensor([[30, *[AUDIO] * count, 31]])]
    ids = torch.cat(pieces if first == "image" else pieces[::-1], dim=1)
    types = (ids == IMAGE).int() + 3 * (ids == AUDIO).int()
    return {**inputs, **audio, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}


@pytest.mark.parametrize("first", ["image", "audio"])
@pytest.mark.parametrize("spec", ["random:1.0", "cls:1.0:positions=keep@features", "pool:1.0@1"])
def test_keeping_everything_is_the_untouched_model(hearing: Any, spec: str, first: str) -> None:
    inputs = heard(hearing, first)
    dense, ids = logits(hearing, inputs), generate(hearing, inputs)
    with apply(hearing, spec):
        torch.testing.assert_close(logits(hearing, inputs), dense, atol=ROW.rounding, rtol=0)
        assert torch.equal(generate(hearing, inputs), ids)


@pytest.mark.parametrize("first", ["image", "audio"])
@pytest.mark.parametrize("spec", ["random:6", "random:6@1"])
def test_what_is_heard_stays(hearing: Any, spec: str, first: str) -> None:
    inputs = heard(hearing, first)
    with apply(hearing, spec):
        one = logits(hearing, inputs)
        other = logits(hearing, inputs | {"input_features": inputs["input_features"].flip(1)})
        answer = generate(hearing, inputs)
    assert (one - other)[:, -1].abs().max() > 1e-3
    if "@" not in spec:
        short = compress(hearing, inputs, spec)
        assert int((short["input_ids"] == AUDIO).sum()) == int((inputs["input_ids"] == AUDIO).sum()) > 3
        assert torch.equal(generate(hearing, short)[:, -4:], answer[:, -4:])
