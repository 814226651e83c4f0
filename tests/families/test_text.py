"""What methods see of the question: the text of the image's own row, whatever the batch looks like."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from rows import PAD, Row
from torch import Tensor
from versions import CACHE

from foveate.engine import apply, compress, encode
from foveate.errors import FoveateError
from foveate.methods import ScoredMethod
from foveate.spec import Spec, Step
from foveate.tokens import Text, VisualTokens

BATCH = ("t6 A t5", "t2 B t9 C t3", "t11", "t3 C t4")
TEXTS = {0: "t6 A t5", 1: "t2 B t9 C t3", 2: "t2 B t9 C t3", 3: "t3 C t4"}
"""Per image of the batch, the prompt that it stands in."""


@dataclass(frozen=True)
class Probe(ScoredMethod):
    """Keeps what is most like the text, and remembers every text that it saw."""

    seen: list[Tensor] = field(default_factory=list, compare=False)

    name = "probe"
    query_aware = True

    @property
    def needs(self) -> tuple[Text, ...]:
        return (Text(),)

    def score(self, tokens: VisualTokens) -> Tensor:
        text = tokens.signals[Text()]
        self.seen.extend(text)
        return torch.einsum("bnd,btd->bn", tokens.features, text)


def spec(method: Probe, *before: Any) -> Spec:
    return Spec((*before, Step(method)))


def text(row: Row, model: Any, prompt: str) -> Tensor:
    ids = torch.tensor([each for each in row.ids(prompt) if each not in (row.image_token, row.break_token)])
    return model.get_input_embeddings()(ids).detach()


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_image_comes_with_its_own_row(row: Row, model: Any, side: str) -> None:
    inputs = row.inputs(*BATCH, side=side)
    for under_apply in (False, True):
        probe = Probe(keep=6)
        if under_apply:
            with apply(model, spec(probe)), torch.no_grad():
                model(**inputs)
        else:
            compress(model, inputs, spec(probe))
        expected = [text(row, model, TEXTS[image]) for image in TEXTS]
        assert len(probe.seen) == len(expected)
        for each in expected:
            assert any(each.shape == other.shape and torch.equal(each, other) for other in probe.seen)


def test_a_batch_is_its_samples_alone(row: Row, model: Any) -> None:
    batch = compress(model, row.inputs(*BATCH), spec(Probe(keep=6))).images
    alone = [
        image
        for prompt in BATCH
        if any(piece[0] != "t" for piece in prompt.split())
        for image in compress(model, row.inputs(prompt), spec(Probe(keep=6))).images
    ]
    assert [image.slot.tolist() for image in batch] == [image.slot.tolist() for image in alone]


def test_the_question_matters_and_encoding_does_not_hold_it(row: Row, model: Any) -> None:
    first, second = row.inputs("t6 A t5"), row.inputs("t4 A t9")
    encoded = encode(model, first, [spec(Probe(keep=6))])
    slots = [compress(model, inputs, spec(Probe(keep=6)), encoded=encoded).images[0].slot for inputs in (first, second)]
    assert not torch.equal(*slots)
    assert torch.equal(slots[1], compress(model, second, spec(Probe(keep=6))).images[0].slot)


def test_beams_and_steps_without_a_cache_see_the_prompt_once(row: Row, model: Any) -> None:
    inputs = row.inputs("t6 A t5", "t2 C t3")
    for options in ({"num_beams": 2}, {"use_cache": False}):
        probe = Probe(keep=6)
        with apply(model, spec(probe)):
            model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)
        expected = [len(text(row, model, prompt)) for prompt in ("t6 A t5", "t2 C t3")]
        assert sorted(len(each) for each in probe.seen) == sorted(expected)


def test_a_later_turn_brings_its_own_text(row: Row, model: Any) -> None:
    if not row.blocks_after_cache:
        pytest.skip("its images come in the first turn alone")
    from transformers import DynamicCache

    cache, probe = DynamicCache(config=model.config.get_text_config()), Probe(keep=6)
    first, both = row.inputs("t6 A t5"), row.inputs("t6 A t5 t4 C t3")
    with apply(model, spec(probe)), torch.no_grad():
        model(**first, **{CACHE: cache}, use_cache=True)
        later = row.inputs("C")
        new = {name: value[:, first["input_ids"].shape[1] :] for name, value in both.items() if value.ndim == 2}
        new = {name: new[name] for name in first if name in new and name not in row.pixels("C")}
        new["attention_mask"] = both["attention_mask"]
        pixels = {name: later[name] for name in row.pixels("C")}
        model(**new, **pixels, **{CACHE: cache}, use_cache=True)
    assert [len(each) for each in probe.seen] == [len(text(row, model, turn)) for turn in ("t6 A t5", "t4 C t3")]


def test_behind_another_step_the_text_is_whole(row: Row, model: Any) -> None:
    from foveate.methods import Random

    probe = Probe(keep=3)
    compress(model, row.inputs("t6 A t5"), spec(probe, Step(Random(keep=6))))
    assert torch.equal(probe.seen[0], text(row, model, "t6 A t5"))


def test_no_text_and_no_place_for_it(row: Row, model: Any) -> None:
    inputs = {**row.pixels("A"), "input_ids": torch.tensor([row.bare(row.pictures["A"])])}
    if row.token_types:
        inputs["mm_token_type_ids"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(FoveateError, match="image 0 came without any text"):
        compress(model, inputs, spec(Probe(keep=6)))
    padded = {
        **{name: inputs[name] for name in inputs if name in row.pixels("A")},
        "input_ids": torch.cat([torch.tensor([[PAD, PAD]]), inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.tensor([[0, 0]]), inputs["attention_mask"]], dim=1),
    }
    with pytest.raises(FoveateError, match="without any text"):
        compress(model, padded, spec(Probe(keep=6)))
    with (
        pytest.raises(FoveateError, match="cannot give at @features"),
        apply(model, Spec((Step(Probe(keep=6), ("features",)),))),
    ):
        pass
