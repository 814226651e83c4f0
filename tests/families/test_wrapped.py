"""A model inside a wrapper: its family is found there, and what is kept is what the bare model keeps."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from others import OTHERS
from peft import LoraConfig, get_peft_model
from rows import LLAVA, ROWS, Row
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foveate import ATP, VoCo
from foveate.engine import apply, compress, encode, timed
from foveate.errors import FoveateError, FoveateWarning, UnsupportedFamily
from foveate.families import family_of, vlm_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads an old name

CHAT = "t6 A t5"
SPECS = ("pool2d:6", "cls:6", "visionzip:6@features", "resize:0.5", "fastv:4@2", "sparsevlm:6@1,2")


class Lightning(nn.Module):
    """As a LightningModule has it: the model is an attribute, among other modules."""

    def __init__(self, vlm: nn.Module) -> None:
        super().__init__()
        self.norm, self.vlm, self.head = nn.LayerNorm(8), vlm, nn.Linear(8, 8)
        self.again = vlm

    def forward(self, **inputs: Any) -> Any:
        return self.vlm(**inputs)


def peft_model(model: nn.Module) -> Any:
    """New LoRA weights change nothing: their product is zero."""
    ends = ("qkv", "q_proj", "k_proj", "down_proj")
    parts = [(name, part) for name, part in model.named_modules() if name.endswith(ends)]
    names = [name if isinstance(part, nn.Linear) else f"{name}.linear" for name, part in parts]  # some are around it
    return get_peft_model(model, LoraConfig(r=2, target_modules=names)).eval()  # pyright: ignore


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "Lightning": Lightning,
    "peft": peft_model,
    "compiled": compiled,
    "peft in DDP in a Lightning module": lambda model: Lightning(DistributedDataParallel(peft_model(model))),
}


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The process group that DistributedDataParallel asks for."""
    file: Path = tmp_path_factory.mktemp("group") / "rendezvous"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    torch.compiler.reset()


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "compiled")) for name in WRAPPERS])
def wrap(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return WRAPPERS[request.param]


@torch.no_grad()
def applied(model: Any, inputs: dict[str, Tensor], spec: str) -> tuple[Tensor, list[list[int]], str]:
    try:
        with apply(model, spec) as run:
            logits = model(**inputs).logits
    except FoveateError as error:
        # In some versions of transformers the decoder is one graph, compiled before the step was there.
        if "torch.compiler.reset()" not in str(error):
            raise
        torch.compiler.reset()
        return applied(model, inputs, spec)
    return logits, [image.kept(layer).tolist() for image in run.plans for layer in range(3)], str(run.report().images)


def test_a_wrapped_model_is_the_model(row: Row, wrap: Callable[[Any], Any], in_full: bool) -> None:
    if wrap is compiled and not row.compiles:
        pytest.skip("torch.compile warns of the dense model")
    bare, inputs = row.model(), row.inputs(CHAT)
    wrapped = wrap(row.model())
    family = family_of(wrapped)
    assert type(family) is type(family_of(bare))
    assert family.core is family_of(vlm_of(wrapped)).core
    with torch.no_grad():
        torch.testing.assert_close(wrapped(**inputs).logits, bare(**inputs).logits)
    # Each spec compiles again.
    specs = SPECS if in_full or wrap is not compiled else ("pool2d:6", "sparsevlm:6@1,2")
    for spec in filter(row.takes, specs):
        expected, got = applied(bare, inputs, spec), applied(wrapped, inputs, spec)
        torch.testing.assert_close(got[0], expected[0], atol=1e-6, rtol=1e-6)
        assert got[1:] == expected[1:]


@torch.no_grad()
def test_compress_and_encode_of_a_wrapped_model(row: Row, wrap: Callable[[Any], Any]) -> None:
    bare, wrapped, inputs = row.model(), wrap(row.model()), row.inputs(CHAT, "t3 C t4")
    specs = [row.select("6"), "visionzip:6@features" if row.keys else "cluster:6@features"]
    both = [encode(model, inputs, specs) for model in (bare, wrapped)]
    for spec in specs:
        expected = compress(bare, inputs, spec, encoded=both[0])
        for got in (compress(wrapped, inputs, spec), compress(wrapped, inputs, spec, encoded=both[1])):
            assert [image.slot.tolist() for image in got.images] == [image.slot.tolist() for image in expected.images]
            torch.testing.assert_close(wrapped(**got).logits, bare(**expected).logits)


@torch.no_grad()
def test_a_model_compiled_and_run_before_apply(row: Row) -> None:
    """What was compiled without hooks doesn't run without them."""
    bare, inputs = row.model(), row.inputs(CHAT)
    model = compiled(row.model())
    model(**inputs)
    for spec in filter(row.takes, ("cls:6", "fastv:4@2")):
        expected, got = applied(bare, inputs, spec), applied(model, inputs, spec)
        torch.testing.assert_close(got[0], expected[0], atol=1e-6, rtol=1e-6)
        assert got[1:] == expected[1:]


@pytest.mark.inside
@torch.no_grad()
def test_a_compiled_core_shows_where_the_prompt_ends(row: Row) -> None:
    """Labels are arguments of the model around it."""
    bare, model, inputs = row.model(), row.model(), row.inputs("t6 A t8")
    if family_of(model).core is model:
        pytest.skip("there is no model around its core")
    model.model = compiled(model.model)
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    losses = []
    for each in (bare, model):
        with apply(each, "fastv:6@2"):
            losses.append(each(**inputs, labels=labels).loss)
    torch.testing.assert_close(losses[1], losses[0])


def test_training_a_wrapped_model(row: Row) -> None:
    """The loss and the gradients of DistributedDataParallel are those of the bare model."""
    inputs = row.inputs(CHAT)
    inputs["labels"] = inputs["input_ids"].masked_fill(row.is_image(inputs["input_ids"]), -100)
    bare = row.model()
    wrapped = DistributedDataParallel(row.model(), find_unused_parameters=True)
    spec = row.select("6") + ("+fastv:4@2" if row.plain else "")
    for model in (bare, wrapped):
        with apply(model, spec):
            model(**inputs, use_cache=False).loss.backward()
    for (name, one), other in zip(bare.named_parameters(), wrapped.parameters(), strict=True):
        assert (one.grad is None or not one.grad.any()) == (other.grad is None or not other.grad.any()), name
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.inside
@torch.no_grad()
def test_timed_and_adapters_of_a_wrapped_model(row: Row) -> None:
    bare, inputs = row.model(), row.inputs(CHAT)
    wrapped = Lightning(row.model())
    with timed(wrapped) as times:
        wrapped(**inputs)
    assert times.encoder > 0
    assert times.prefill > 0
    expected, got = ATP(bare, layers=(1, 2)), ATP(wrapped, layers=(1, 2))
    assert got.base == expected.base
    for adapter, model in ((expected, bare), (got, wrapped)):
        adapter.prepare(model, [inputs], 0.5)
        adapter.calibrate(model, [inputs])
    assert got.curve == expected.curve
    with apply(wrapped, got.spec()) as run:
        wrapped(**inputs)
    assert run.plans


def test_voco_trains_outside_of_data_parallel() -> None:
    row = next(each for each in ROWS if each.name == "llava")
    bare, inputs = row.model(), row.inputs("t4 A t3")
    inputs["labels"] = inputs["input_ids"].masked_fill(row.is_image(inputs["input_ids"]), -100)
    wrapped, voco = DistributedDataParallel(bare), VoCo(bare, 2)
    with pytest.raises(FoveateError, match="put the model and this adapter into one module"):
        voco(wrapped, inputs)
    with torch.no_grad():
        torch.testing.assert_close(voco(wrapped, inputs).loss, voco(bare, inputs).loss)


def test_two_models_in_one_wrapper(row: Row) -> None:
    other = next(each for each in ROWS if each.name != row.name)
    both = nn.ModuleDict({"student": row.model(), "teacher": Lightning(other.model())})
    inputs = row.inputs(CHAT)
    for call in (
        lambda: family_of(both),
        lambda: apply(both, "pool:6").close(),
        lambda: compress(both, inputs, "pool:6"),
        lambda: encode(both, inputs),
        lambda: ATP(both),
    ):
        with pytest.raises(FoveateError, match=r"ModuleDict has 2 .*'student', .*'teacher.vlm'\); pass the one"):
            call()
    assert family_of(both["teacher"]).name == other.name


@torch.no_grad()
def test_a_generic_model_in_a_wrapper() -> None:
    row = next(each for each in OTHERS if each.name == "janus")
    bare, wrapped, inputs = row.model(), Lightning(row.model()), row.inputs(CHAT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FoveateWarning)
        expected, got = applied(bare, inputs, "cluster:6"), applied(wrapped, inputs, "cluster:6")
        torch.testing.assert_close(got[0], expected[0])
        assert got[1:] == expected[1:]
        for second in (row.model(), LLAVA.model()):
            with pytest.raises(FoveateError, match="2 vision-language models inside"):
                family_of(nn.ModuleList([wrapped, second]))


def test_a_wrapper_without_a_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    for model in (Lightning(nn.Linear(2, 2)), LlamaForCausalLM(config), Lightning(LlamaForCausalLM(config))):
        with pytest.raises(UnsupportedFamily, match="no module with get_image_features"):
            family_of(model)


def test_copies_of_data_parallel_are_refused(row: Row) -> None:
    """On several GPUs it calls copies of the model's modules; one is made here by hand."""
    model = row.model()
    core = family_of(model).core
    replica: Any = core._replicate_for_data_parallel()
    for name, module in core._modules.items():
        replica._modules[name] = module
    for name, weight in core._parameters.items():
        replica._parameters[name] = weight
    with apply(model, "pool:6"), pytest.raises(FoveateError, match="use DistributedDataParallel, or a single GPU"):
        replica(**row.inputs(CHAT))
