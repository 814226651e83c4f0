"""What older versions of transformers get wrong is refused by name; here every version passes for such a one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rows import ROWS, Row
from versions import set_checkpointing

from foveate import transformers_api
from foveate.engine import apply
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import family_of

RUNS_HOOKS_AGAIN = (
    r"inside the decoder can't be trained with gradient checkpointing in transformers \d.*or install 5.23"
)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checkpointing_repeats_hooks", "chunks_lose_images"):
        monkeypatch.setattr(transformers_api, name, lambda *generator: True)


@pytest.mark.inside
@pytest.mark.usefixtures("old")
def test_checkpointing_is_refused_at_apply_and_when_it_is_turned_on_later(row: Row) -> None:
    model, inputs = row.model(), row.inputs("t6 A t5")
    with apply(model, "random:6@1"):
        model.train()
        set_checkpointing(model, True)
        with pytest.raises(FoveateError, match=RUNS_HOOKS_AGAIN):
            model(**inputs, use_cache=False)
        model.eval()
        model(**inputs, use_cache=False)
    model.train()
    with pytest.raises(FoveateError, match=RUNS_HOOKS_AGAIN):
        apply(model, "random:6@1")
    with apply(model, "random:6"):
        model(**inputs, use_cache=False)


@pytest.mark.usefixtures("old")
def test_chunks_are_known_by_what_is_not_said(row: Row, model: Any) -> None:
    prompt = row.inputs("t6 A t5")["input_ids"]
    with apply(model, "random:6"):
        with pytest.raises(FoveateError, match=r"chunked prefill of transformers .* or install 5.23"):
            model.prepare_inputs_for_generation(prompt)
        model.prepare_inputs_for_generation(prompt, next_sequence_length=None)
        model.generate(**row.inputs("t6 A t5"), max_new_tokens=2)


class Blocks(torch.nn.Module):
    """Takes features in blocks of some length, as SmolVLM does in one version."""

    config = SimpleNamespace(image_token_id=5)

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def inputs_merger(self, ids: torch.Tensor, embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        features = features.view(-1, self.length, features.shape[-1])
        return embeddings.masked_scatter((ids == 5)[..., None], features)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_a_family_says_which_version_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next((row for row in ROWS if row.name == name), None)
    if row is None:
        pytest.skip(f"{name} isn't supported with this version")
    model = row.model()
    monkeypatch.setattr(transformers_api, "_installed", lambda: "5.19.0")
    with pytest.raises(UnsupportedFamily, match=r"needs transformers 5.2[01] or later, and this is 5.19.0"):
        family_of(model)


def test_features_in_blocks_are_refused() -> None:
    transformers_api.refuse_blocks(Blocks(1))
    with pytest.raises(UnsupportedFamily, match=r"in blocks of one length.*install another version"):
        transformers_api.refuse_blocks(Blocks(14))
