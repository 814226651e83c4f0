"""Models that accelerate has spread or offloaded, and wrappers that rebuild what is passed to a model."""

from contextlib import suppress
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from rows import Row
from torch import Tensor, nn
from versions import beams_of

from foveate.engine import apply, compress, encode, encoder_outputs, timed
from foveate.families import family_of

# What transformers said up to 5.22 of inputs on another device than the weights.
pytestmark = pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")

PROMPTS = ("t6 A t5", "t2 B t9 C t3")
SPECS = ("stride:6", "pool2d:6", "cluster:6@features", "random:9+fastv:0.5@1", "cls:6", "resize:0.5@pixels")


class Copying(ModelHook):
    """Rebuild every container and copy every tensor, as a transfer to another device does."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return copied(args), copied(kwargs)


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)({name: copied(each) for name, each in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(copied(each) for each in value)
    return value


def dispatched(model: Any) -> Any:
    """The hooks that a `device_map` over two devices puts on, here with one."""
    return accelerate.dispatch_model(
        model, {"": "cpu"}, main_device="cpu", force_hooks=True, skip_keys=model._skip_keys_device_placement
    )


def offloaded(model: Any) -> Any:
    """Weights lie on the meta device between calls."""
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def copying(model: Any) -> Any:
    for module in dict.fromkeys((model, family_of(model).core, family_of(model).decoder)):
        add_hook_to_module(module, Copying())
    return model


@pytest.fixture(params=[dispatched, offloaded, copying], ids=lambda place: place.__name__)
def placed(row: Row, request: pytest.FixtureRequest) -> Any:
    if request.param is offloaded and not row.offloads:
        pytest.skip("the dense model doesn't run while its weights are offloaded")
    return request.param(row.model())


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_apply_is_as_on_the_bare_model(row: Row, model: Any, placed: Any, spec: str) -> None:
    skip_what_transformers_cannot(row, placed, spec)
    inputs = row.inputs(*PROMPTS)
    options = {"max_new_tokens": 4, "do_sample": False}
    with apply(model, spec) as run:
        expected, ids = model(**inputs).logits, generated(model, inputs, **options)
        beams = [generated(model, inputs, **each, **options) for each in beams_of(row)]
    with apply(placed, spec) as other:
        torch.testing.assert_close(placed(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        assert equal(generated(placed, inputs, **options), ids)
        for each, found in zip(beams_of(row), beams, strict=True):
            assert equal(generated(placed, inputs, **each, **options), found)
        with timed(placed) as times:
            placed(**inputs)
        assert times.prefill > 0
    assert [image.after for image in other.report().images][:2] == [image.after for image in run.report().images][:2]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "@1" not in spec])
@torch.no_grad()
def test_compress_is_as_on_the_bare_model(row: Row, model: Any, placed: Any, spec: str) -> None:
    skip_what_transformers_cannot(row, placed, spec)
    inputs = row.inputs(*PROMPTS)
    short, other = compress(model, inputs, spec), compress(placed, inputs, spec)
    for one, two in zip(short.images, other.images, strict=True):
        assert torch.equal(one.slot, two.slot)
        torch.testing.assert_close(one.features, two.features, atol=1e-5, rtol=1e-5)
    for options in ({"do_sample": False}, {"num_beams": 2, "do_sample": False}):
        expected = model.generate(**short, max_new_tokens=4, **options)
        assert torch.equal(placed.generate(**other, max_new_tokens=4, **options), expected)


@torch.no_grad()
def test_encoded_images_are_known_again(row: Row, model: Any, placed: Any) -> None:
    inputs = row.inputs(*PROMPTS)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    encoded = encode(placed, inputs, "cluster:6")
    with apply(model, "cluster:6"):
        expected = model(**inputs).logits
    with apply(placed, "cluster:6"):
        given = {**rest, "mm_encoder_outputs": encoder_outputs(placed, encoded)}
        torch.testing.assert_close(placed(**given).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_device_that_inputs_go_to(placed: Any) -> None:
    assert family_of(placed).device == torch.device("cpu")


def generated(model: Any, inputs: Any, **options: Any) -> Tensor | None:
    """None where the dense model can't generate either: LLaVA-NeXT reads an offloaded weight outside of `forward`."""
    with suppress(NotImplementedError):
        return model.generate(**inputs, **options)
    return None


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is None or (other is not None and torch.equal(one, other))


def skip_what_transformers_cannot(row: Row, placed: Any, spec: str) -> None:
    weight = next(family_of(placed).tower.parameters())
    if "@pixels" in spec and weight.device.type == "meta" and family_of(placed).resize_modes[0] == "interpolate":
        pytest.skip("CLIP interpolates its position embeddings from a weight that accelerate has not loaded")
