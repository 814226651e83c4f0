"""LoRA weights of an adapter are added to the model while they are used, and leave no trace."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from rows import ROWS, Row

from foveate.engine import encode
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.voco import VoCo
from foveate.voco.two_pass import read_images

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
ROW = next(row for row in ROWS if row.name == "llava")
LAYERS = r".*language_model.*(q_proj|v_proj)"


def tuned(seed: int, row: Row = ROW, **options: Any) -> Any:
    """Return a model with random LoRA weights, in evaluation mode."""
    settings = {"r": 2, "lora_alpha": 3, "target_modules": LAYERS, **options}
    wrapped: Any = peft.get_peft_model(row.model(), peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return wrapped.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return VoCo(ROW.model(), 2).save_pretrained(tmp_path_factory.mktemp("lora") / "voco", lora=tuned(1))


def state(model: Any) -> dict[str, Any]:
    """Return all that a block may change: modules, hooks, weights, requires_grad, and enabled adapters."""
    return {
        "modules": [(name, type(module), module.training) for name, module in model.named_modules()],
        "hooks": [name for name, module in model.named_modules() if module._forward_hooks and name.endswith("_proj")],
        "learns": [(name, weight.requires_grad) for name, weight in model.named_parameters()],
        "weights": [weight.sum().item() for weight in model.parameters()],
        "on": [(each.active_adapters, each.disable_adapters) for each in model.modules() if hasattr(each, "lora_A")],
        "adapters": list(getattr(model, "peft_config", {})),
    }


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("llava", "qwen2_5_vl")], ids=lambda row: row.name)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 3}}], ids=["plain", "ranks"])
def test_the_weights_are_in_the_model_only_while_they_are_used(row, options, tmp_path):
    """The result equals peft's; afterwards the model is unchanged, and can be saved."""
    model, wrapped = row.model(), tuned(1, row, **options)
    model.train()
    model.lm_head.weight.requires_grad_(False)
    before, inputs = state(model), row.inputs("t4 A t3")
    VoCo(model, 2).save_pretrained(tmp_path / "voco", lora=wrapped)
    voco = VoCo.from_pretrained(tmp_path / "voco")
    (memory,) = voco.encode(model, inputs)
    with torch.no_grad():
        encoded = encode(model, inputs)
        expected = read_images(family_of(wrapped), encoded.projected, encoded.layouts, voco.embeddings(2), "", "")[0]
    torch.testing.assert_close(memory.keys, expected.keys, atol=1e-5, rtol=1e-5)
    assert (memory.keys - VoCo(model, 2).encode(model, inputs)[0].keys).abs().max() > 1e-3
    ids = row.inputs("t5")["input_ids"]
    voco.generate(model, memory, ids, max_new_tokens=2)
    assert state(model) == before
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("off", [False, True])
def test_adapters_that_the_model_has_are_off_meanwhile_and_as_before_afterwards(folder, tmp_path, off):
    """Else memories of another model would have the same fingerprints."""
    if off:
        from transformers.integrations.peft import MIN_PEFT_VERSION

        if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
            pytest.skip(f"this transformers switches adapters off with peft {MIN_PEFT_VERSION} or newer")
    tuned(2).save_pretrained(tmp_path / "mine")
    model, plain = ROW.model(), ROW.model()
    model.load_adapter(str(tmp_path / "mine"), adapter_name="mine")
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_A" in name)
    if off:
        model.disable_adapters()
    before, inputs = state(model), ROW.inputs("t4 A t3")
    with torch.no_grad():
        logits = model(**inputs).logits
        assert torch.equal(logits, plain(**inputs).logits) == off
    for voco in (VoCo(plain, 2), VoCo.from_pretrained(folder)):
        with_mine, without = (voco.encode(each, inputs)[0] for each in (model, plain))
        torch.testing.assert_close(with_mine.keys, without.keys)
        assert (with_mine.base, with_mine.adapter) == (without.base, without.adapter)
        with pytest.raises(RuntimeError), voco.on(model):
            raise RuntimeError
        assert state(model) == before
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, logits)


def test_blocks_in_blocks(folder):
    """Only the innermost adapter counts, and the outer one again after it; cached weights can be trained with."""
    model, voco, bare = ROW.model(), VoCo.from_pretrained(folder), VoCo(ROW.model(), 2)
    inputs = ROW.inputs("t4 A t3")
    alone = [each.encode(model, inputs)[0].keys for each in (voco, bare)]
    with torch.inference_mode(), voco.on(model):
        outer = model(**inputs).logits
        for each, keys in zip((voco, bare), alone, strict=True):
            assert torch.equal(each.encode(model, inputs)[0].keys, keys)
        assert torch.equal(model(**inputs).logits, outer)
    model.double()
    with torch.inference_mode():
        voco.encode(model, inputs)
    loss = voco(model, {**inputs, "labels": inputs["input_ids"]}).loss
    loss.backward()
    assert voco.embedding.grad.abs().max() > 0


def test_a_loss_is_that_of_the_whole_adapter(folder):
    """It equals peft's in its wrapper, whose own weights are the ones that are trained."""
    model, voco, inputs = ROW.model(), VoCo.from_pretrained(folder), ROW.inputs("t4 A t3")
    inputs["labels"] = inputs["input_ids"].masked_fill(ROW.is_image(inputs["input_ids"]), -100)
    for two in (True, False):
        loss = voco(model, inputs, in_two_passes=two).loss
        torch.testing.assert_close(loss, voco(tuned(1), inputs, in_two_passes=two).loss, atol=1e-5, rtol=1e-5)
        assert (loss - VoCo(model, 2)(model, inputs).loss).abs() > 1e-3


def test_the_model_in_a_wrapper_is_used(folder):
    """In peft's wrapper as in any other; the wrapper's own weights are off meanwhile."""
    wrapped = tuned(2)
    before = state(wrapped)
    voco, inputs = VoCo.from_pretrained(folder), ROW.inputs("t4 A t3")
    expected = voco.encode(ROW.model(), inputs)[0]
    questions = torch.tensor([[20, 30, 40]])
    answers = voco.generate(ROW.model(), expected, questions, max_new_tokens=4)
    for model in (
        wrapped,
        wrapped.get_base_model(),
        torch.nn.DataParallel(ROW.model()),
        torch.nn.ModuleList([wrapped]),
    ):
        (memory,) = voco.encode(model, inputs)
        torch.testing.assert_close(memory.keys, expected.keys)
        assert torch.equal(voco.generate(model, memory, questions, max_new_tokens=4), answers)
    assert state(wrapped) == before


def test_two_models_in_one_wrapper(folder):
    both = torch.nn.ModuleDict({"student": ROW.model(), "teacher": tuned(2)})
    with pytest.raises(FoveateError, match=r"2 vision-language models inside .*student.*teacher.*pass the one"):
        VoCo.from_pretrained(folder).encode(both, ROW.inputs("A"))


def test_where_an_adapter_is(folder, tmp_path, monkeypatch):
    """It works from another working directory; missing or damaged weights raise an error that says so."""
    shutil.copytree(folder, tmp_path / "voco")
    monkeypatch.chdir(tmp_path)
    voco, model, inputs = VoCo.from_pretrained("voco"), ROW.model(), ROW.inputs("A")
    monkeypatch.chdir("/")
    voco.encode(model, inputs)
    shutil.rmtree(tmp_path / "voco" / "lora")
    for use in (lambda: voco.encode(model, inputs), voco.fingerprint, lambda: voco.save_pretrained(tmp_path / "again")):
        with pytest.raises(FoveateError, match="LoRA weights are gone from"):
            use()
    assert not (tmp_path / "again").exists()
    with pytest.raises(FoveateError, match="LoRA weights are gone from"):
        VoCo.from_pretrained(tmp_path / "voco")
    shutil.copytree(folder / "lora", tmp_path / "voco" / "lora")
    weights = tmp_path / "voco" / "lora" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(FoveateError, match="holds no complete LoRA weights"):
        VoCo.from_pretrained(tmp_path / "voco")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"q_proj": 5}}, "alpha_pattern"),
    ],
)
def test_more_than_plain_lora_is_refused_when_it_is_saved(tmp_path, options, said):
    with pytest.raises(FoveateError, match=f"{said}.*plain LoRA weights"):
        VoCo(ROW.model(), 2).save_pretrained(tmp_path / "voco", lora=tuned(1, **options))
    assert not (tmp_path / "voco").exists()
