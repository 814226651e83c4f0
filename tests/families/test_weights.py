"""Weights that aren't where they look: signals of unmerged LoRA and of quantised layers are what the model computes."""

from collections.abc import Callable
from typing import Any, Literal

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from rows import Row
from test_contract import BATCH, CHAT
from test_depth_signals import NEEDS, told
from test_signals import captured, weights_of
from torch import Tensor, nn

from foveate import ATP, VoCo
from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.fingerprint import model_fingerprint
from foveate.tokens import DecoderAttention, EncoderAttention, EncoderKeys, Signal

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft reads an old name
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning"),
]

PROJECTIONS = ("qkv", "q_proj", "k_proj", ".q", ".k")
SPECS = (
    "cls:4", "visionzip:6@features", "prumerge:5", "vispruner:6@features", "cls:9@encoder", "tome:9@encoder",
    "fastv:4@2", "pyramiddrop:0.5@1,2", "sparsevlm:6@2", "dart:4@2", "atp:6@1,2",
)  # fmt: skip
ENCODER_SIGNALS: tuple[Signal, ...] = tuple(
    kind(layer=layer, heads=heads)
    for kind in (EncoderAttention, EncoderKeys)
    for layer in (-1, 0)
    for heads in ("mean", "full")
)


def with_lora(row: Row) -> Any:
    """A model whose projections to queries and keys have unmerged LoRA weights that matter."""
    model = row.model()
    targets = [
        # Some are around their matrix.
        name if isinstance(part, nn.Linear) else f"{name}.linear"
        for name, part in model.named_modules()
        if name.endswith(PROJECTIONS)
    ]
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    return get_peft_model(model, config).eval()


def kept(model: Any, inputs: dict[str, Tensor], spec: str) -> list[list[int]]:
    with torch.no_grad(), apply(model, spec) as run:
        model(**inputs)
    return [image.kept().tolist() for image in run.plans]


def signals_of_encoder(model: Any, inputs: dict[str, Tensor]) -> dict[Signal, tuple[Tensor, ...]]:
    found: dict[Signal, tuple[Tensor, ...]] = {}
    for layer in (-1, 0):
        family, capture = captured(model, inputs, layer)
        for signal in ENCODER_SIGNALS:
            if signal.layer == layer:  # pyright: ignore
                found[signal] = family.encoder_signal(signal, capture)
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_unmerged_lora_keeps_what_merged_lora_keeps(row: Row, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    plain = row.model()
    if spec.endswith("@encoder") and "encoder" not in family_of(plain).places:
        pytest.skip("no step acts inside this encoder")
    if spec == "cls:9@encoder" and row.name == "llava_next":
        inputs = row.inputs(CHAT)
    model = with_lora(row)
    unmerged = kept(model, inputs, spec)
    assert unmerged == kept(model.merge_and_unload(), inputs, spec)
    # The test can see: LoRA changes what is kept.
    assert unmerged != kept(plain, inputs, spec)


@pytest.mark.encoder_signals
def test_encoder_signals_of_unmerged_lora(row: Row) -> None:
    inputs = row.inputs("A B C A")
    model = with_lora(row)
    unmerged, plain = signals_of_encoder(model, inputs), signals_of_encoder(row.model(), inputs)
    merged = signals_of_encoder(model.merge_and_unload(), inputs)
    for signal in ENCODER_SIGNALS:
        for one, other, before in zip(unmerged[signal], merged[signal], plain[signal], strict=True):
            torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)
            assert not torch.allclose(one, before, atol=1e-5, rtol=1e-2)


@pytest.mark.inside
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_decoder_signals_of_unmerged_lora(row: Row, use_cache: bool) -> None:
    inputs = row.inputs("t6 A t5")
    model = with_lora(row)
    (unmerged,) = told(model, inputs, 2, use_cache=use_cache)
    (merged,) = told(model.merge_and_unload(), inputs, 2, use_cache=use_cache)
    for signal in NEEDS:
        torch.testing.assert_close(unmerged[signal], merged[signal], atol=1e-4, rtol=1e-4)


# Quantised layers: signals are what eager attention of the quantised model does.


NOT_QUANTISED = ("patch_embedding", "input_proj", "patch_dense", "embedding_projection")


def dynamic_int8(model: nn.Module) -> nn.Module:
    """Linear layers of torch's own dynamic quantisation have no weight tensor: `weight` is a method.

    Those of NOT_QUANTISED stay as they are: a model reads the dtype of their weights.
    """
    named = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    chosen: Any = {name for name in named if not name.endswith(NOT_QUANTISED)}
    how = dict.fromkeys(chosen, torch.ao.quantization.default_dynamic_qconfig)
    return torch.ao.quantization.quantize_dynamic(model, how)  # pyright: ignore


def torchao_weights(model: nn.Module) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def torchao_dynamic(model: nn.Module) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    return model


QUANTISE = [dynamic_int8, torchao_weights, torchao_dynamic]


@pytest.mark.encoder_signals
@pytest.mark.parametrize("quantise", QUANTISE)
@torch.no_grad()
def test_encoder_signals_of_quantised_layers(row: Row, quantise: Callable[[nn.Module], nn.Module]) -> None:
    model: Any = quantise(row.model("eager"))
    inputs = row.inputs("A B")
    family, capture = captured(model, inputs, -1)
    got = family.encoder_signal(EncoderAttention(layer=-1), capture)
    for mine, theirs in zip(got, row.attention(weights_of(model, inputs, -1), inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.inside
@pytest.mark.parametrize("quantise", QUANTISE)
@torch.no_grad()
def test_decoder_signals_of_quantised_layers(row: Row, quantise: Callable[[nn.Module], nn.Module]) -> None:
    model: Any = quantise(row.model("eager"))
    prompt = row.inputs("t6 A t5")
    maps = model(**prompt, output_attentions=True).attentions
    columns = row.is_image(prompt["input_ids"][0]).nonzero().squeeze(1)[row.pictures["A"].places]
    (image,) = told(model, prompt, 2)
    where: Literal["here", "previous"]
    for where, layer in (("here", 2), ("previous", 1)):
        mine = image[DecoderAttention("last", where, "each")]
        # Dynamic quantisation rounds by the rows that are computed together.
        loose = {"atol": 0.02, "rtol": 0.05} if quantise is not torchao_weights else {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(mine, maps[layer][0][:, -1, columns], **loose)


@pytest.mark.parametrize("spec", ["prumerge:5", "pyramiddrop:0.5@1,2"])
@pytest.mark.parametrize("quantise", QUANTISE)
def test_quantised_layers_generate(row: Row, quantise: Callable[[nn.Module], nn.Module], spec: str) -> None:
    model: Any = quantise(row.model())
    inputs = row.inputs("t6 A t5")
    with apply(model, spec) as run:
        ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 3
    assert len(run.plans[0].kept()) < row.pictures["A"].content


# Adapters of such models.


@pytest.mark.inside
@pytest.mark.parametrize("quantise", QUANTISE)
@torch.no_grad()
def test_adapters_of_quantised_layers(row: Row, quantise: Callable[[nn.Module], nn.Module]) -> None:
    model: Any = quantise(row.model())
    adapter = ATP(model, layers=(1, 2))
    with apply(model, adapter.spec()) as run:
        model(**row.inputs("t6 A t5"))
    assert run.plans
    if row.name in ("llava", "qwen2_5_vl"):
        voco = VoCo(model, 2)
        (memory,) = voco.encode(model, row.inputs("t4 A t3"))
        answers = voco.generate(model, memory, torch.tensor([[20, 30, 40]]), max_new_tokens=3)
        assert answers.shape == (1, 3)


@pytest.mark.inside
def test_one_fingerprint_wherever_the_weights_are(row: Row) -> None:
    """Compiled parts have other names, and offloaded weights are loaded; weights that are nowhere are refused."""
    model, compiled = row.model(), row.model()
    fingerprint = model_fingerprint(family_of(model).core)
    decoder = family_of(compiled).decoder
    name = next(name for name, part in compiled.named_modules() if part is decoder)
    compiled.set_submodule(name, torch.compile(decoder, backend="eager"))
    assert model_fingerprint(family_of(compiled).core) == fingerprint
    offloaded = accelerate.cpu_offload(row.model(), execution_device=torch.device("cpu"))
    assert ATP(offloaded, layers=(1, 2)).base == fingerprint
    empty = row.model().to("meta")
    for make in (lambda: ATP(empty, layers=(1, 2)), lambda: VoCo(empty, 2)):
        with pytest.raises(FoveateError, match="was never loaded, and an adapter is matched"):
            make()
