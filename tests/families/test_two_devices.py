"""A model spread over two devices, as `device_map="auto"` does on a machine with two."""

from contextlib import suppress
from typing import Any

import pytest
import torch
from fake_devices import FakeDevices, place_of, spread
from rows import Row
from test_depth_methods import SCENARIOS
from torch import Tensor
from versions import CACHE, beams_of, cache_of_output

from foveate.engine import apply, compress
from foveate.families import family_of
from foveate.families.wrappers import holds

PROMPTS = ("t6 A t5", "t2 B t9 C t3", "t11")
BEFORE = ("stride:6", "pool2d:6", "cluster:6@features", "cls:6", "resize:0.5@pixels", "prumerge:auto", "random:9")
INSIDE = (*SCENARIOS, "fastv:0.5:positions=pack@2", "random:9+fastv:0.5@2", "pool2d:0.5@2")
FIRST, SECOND = "cuda:0", "cuda:1"


@pytest.fixture(autouse=True)
def nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)


@pytest.fixture
def apart(row: Row) -> Any:
    """The model with its last layers, norm and head on the second device; its encoder, too, where dense can do that."""
    if not row.made_up_devices:
        pytest.skip("the dense model doesn't run on devices that are made up")
    for encoder in (SECOND, FIRST):
        model = row.model()
        # Others ask for kernels that the CPU lacks.
        model.set_experts_implementation("eager")
        model = spread(model, places(model, encoder))
        # Qwen's core reads the grids of images, which it is handed on one device, beside ids on the other.
        with FakeDevices(), torch.no_grad(), suppress(RuntimeError):
            model(**on(FIRST, row.inputs(*PROMPTS)))
            return model
    raise AssertionError("the dense model doesn't run on two devices")


def places(model: Any, encoder: str) -> dict[str, str]:
    """Return the device of each block, by its name."""
    core, decoder = family_of(model).core, family_of(model).decoder
    names = {part: name for name, part in model.named_modules()}
    text = names[decoder]
    found = {"": FIRST, names[model.get_output_embeddings()]: SECOND}
    found |= {names[part]: encoder for part in core.children() if not holds(part, decoder)}
    found |= {f"{text}.{name}": FIRST for name, _ in decoder.named_children() if name != "layers"}
    (norm,) = (name for name, _ in decoder.named_children() if name in ("norm", "embedding_norm"))
    found[f"{text}.{norm}"] = SECOND
    return found | {f"{text}.layers.{n}": FIRST if n < 2 else SECOND for n in range(len(decoder.layers))}


def on(device: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


@pytest.mark.parametrize(
    "spec", [*BEFORE, *INSIDE[:3], *(pytest.param(spec, marks=pytest.mark.slow) for spec in INSIDE[3:])]
)
@torch.no_grad()
def test_it_is_as_on_one_device(row: Row, model: Any, apart: Any, spec: str) -> None:
    inputs = row.inputs(*PROMPTS)
    options = {"max_new_tokens": 3, "do_sample": False}
    with apply(model, spec) as run:
        expected = model(**inputs, output_hidden_states=True)
        ids = model.generate(**inputs, **options)
    with FakeDevices():
        there = on(FIRST, inputs)
        with apply(apart, spec) as other:
            output = apart(**there, output_hidden_states=True)
            new = apart.generate(**there, **options)
        assert place_of(output.logits) == torch.device(FIRST)
        assert str(other.report()).splitlines()[:-1] == str(run.report()).splitlines()[:-1]
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for one, two in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert torch.equal(new, ids)


@pytest.mark.parametrize("spec", BEFORE)
@torch.no_grad()
def test_short_inputs_are_as_on_one_device(row: Row, model: Any, apart: Any, spec: str) -> None:
    inputs = row.inputs(*PROMPTS)
    expected = model.generate(**compress(model, inputs, spec), max_new_tokens=3, do_sample=False)
    with FakeDevices():
        new = apart.generate(**compress(apart, on(FIRST, inputs), spec), max_new_tokens=3, do_sample=False)
    assert torch.equal(new, expected)


@pytest.mark.parametrize("spec", ["stride:6", "fastv:0.5@1", "random:9+sparsevlm:0.5@2"])
@torch.no_grad()
def test_turns_and_beams_are_as_on_one_device(row: Row, model: Any, apart: Any, spec: str) -> None:
    inputs, more = row.inputs("t6 A t5"), torch.tensor([[21, 22, 23]])
    mask = torch.ones(1, inputs["input_ids"].shape[1] + 3, dtype=torch.long)
    options = {"max_new_tokens": 3, "do_sample": False}
    with apply(model, spec):
        cache = cache_of_output(model(**inputs))
        turn = model(input_ids=more, attention_mask=mask, **{CACHE: cache}).logits
        beams = [model.generate(**row.inputs(*PROMPTS), **options, **each) for each in beams_of(row)]
    with FakeDevices(), apply(apart, spec):
        cache = cache_of_output(apart(**on(FIRST, inputs)))
        second = on(FIRST, {"input_ids": more, "attention_mask": mask})
        new = apart(**second, **{CACHE: cache}).logits
        ids = [apart.generate(**on(FIRST, row.inputs(*PROMPTS)), **options, **each) for each in beams_of(row)]
    assert all(torch.equal(found, expected) for found, expected in zip(ids, beams, strict=True))
    torch.testing.assert_close(new, turn, atol=1e-5, rtol=1e-5)


def test_the_fake_devices_are_strict() -> None:
    with FakeDevices():
        one, two = torch.arange(3.0, device=FIRST), torch.arange(3.0).to(SECOND)
        assert (one.device, two.device) == (torch.device(FIRST), torch.device(SECOND))
        assert (one + 1).device == torch.device(FIRST)
        for wrong in (lambda: one + two, lambda: one[two.long()], lambda: torch.cat([one, two])):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            one.numpy()
        assert one[torch.tensor([1])].device == torch.device(FIRST)
        assert two.cpu().numpy().tolist() == [0, 1, 2]
        assert two.device == torch.device(SECOND)
