"""Agreement with the outputs of the authors' own code (tests/golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.methods import Cls, Pool
from foveate.tokens import Segment, VisualTokens

FOLDER = Path(__file__).parent.parent / "golden"
CASES = {case["file"]: case for case in json.loads((FOLDER / "index.json").read_text())["cases"]}


def named(method: str) -> list[str]:
    return [file for file, case in CASES.items() if case["method"] == method]


def load(file: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(FOLDER / file) as arrays:
        return CASES[file]["parameters"], dict(arrays)


def test_every_case_is_there() -> None:
    assert set(CASES) == {path.name for path in FOLDER.glob("*.npz")}
    assert len(named("fastervlm")) == 3
    assert len(named("llavolta_avgpool1d")) == 7


@pytest.mark.parametrize("file", named("fastervlm"))
def test_cls_is_fastervlm(file: str) -> None:
    parameters, arrays = load(file)
    features = torch.from_numpy(arrays["features"])
    attention = torch.from_numpy(arrays["attention_heads"]).mean(dim=1)
    torch.testing.assert_close(attention, torch.from_numpy(arrays["scores"]))
    t, h, w = arrays["grid"].tolist()
    assert Segment(t, h, w).count == features.shape[1]
    plan = Cls(keep=parameters["visual_token_num"]).plan(
        VisualTokens.of(features, (t, h, w), encoder_attention=attention)
    )
    assert torch.equal(plan.slot, torch.from_numpy(arrays["index"]))
    torch.testing.assert_close(plan.apply(features), torch.from_numpy(arrays["features_out"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("file", named("llavolta_avgpool1d"))
def test_pool_is_llavolta(file: str) -> None:
    """Their arrays hold whole sequences: text, 576 visual tokens per image, text."""
    parameters, arrays = load(file)
    length, stride = parameters["visual_length"], parameters["stride"]
    kept = length // stride
    assert int(arrays["n_visual_out"]) == kept
    hidden, expected = (torch.from_numpy(arrays[name]) for name in ("hidden_states", "features_out"))
    pool = Pool(keep=kept, remainder="drop")
    differing = 0
    for row, begins in enumerate(arrays["images_idx"].tolist()):
        parts: list[torch.Tensor] = []
        places: list[torch.Tensor] = []
        end = 0
        for begin in begins:
            features = hidden[row : row + 1, begin : begin + length]
            plan = pool.plan(VisualTokens.of(features, (24, 24)))
            parts += [hidden[row, end:begin], plan.apply(features)[0]]
            places += [torch.arange(end, begin), begin + plan.slot[0]]
            end = begin + length
        parts.append(hidden[row, end:])
        places.append(torch.arange(end, hidden.shape[1]))
        torch.testing.assert_close(torch.cat(parts), expected[row], atol=1e-4, rtol=0)

        positions = arrays["position_ids"][0]
        ours, theirs = positions[torch.cat(places).numpy()], arrays["position_ids_out"][row]
        for number, begin in enumerate(begins):
            out = slice(begin - number * (length - kept), begin - number * (length - kept) + kept)
            mean = positions[begin : begin + kept * stride].reshape(kept, stride).mean(axis=1)
            assert np.array_equal(ours[out], np.floor(mean).astype(np.int64))
            assert np.array_equal(theirs[out], mean.astype(np.float16).astype(np.int64))
            differing += int((theirs[out] != ours[out]).sum())
            ours[out] = theirs[out] = 0
        assert np.array_equal(theirs, ours), "text keeps its positions"
    said = CASES[file]["quirks_reproduced"]
    assert differing == (int(said[0].split()[0]) if said else 0)
