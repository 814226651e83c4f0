"""The cost model against torch's own counter, and against the tensors of real caches."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from rows import FAMILIES, LLAVA, ROWS, Row
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from versions import CACHE, cache_of_output

from foveate.costmodel import Cost, cost_of_layouts, device, read_model
from foveate.costmodel.decoder_shape import Delta, read_decoder
from foveate.costmodel.model_config import published
from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import Family, family_of, supported
from foveate.families.wrappers import holds
from foveate.schedule import tokens_between, tokens_per_layer

CLOSE = 0.005
PROMPTS = ("t4 A t5", "t3 B t2 C t7")
# At every place before the decoder, one behind another, and inside the decoder.
SPECS = (
    "cluster:6",
    "cls:0.5@features",
    "resize:4",
    "stride:0.5+pool:3",
    "pool:0.5@1",
    "stride:0.5@1,2",
    "vtw@1",
    "tome:9@encoder",
    "resize:0.5+tome:8@encoder+stride:4",
)


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def counting(row: Row) -> Any:
    """A model all of whose arithmetic the counter sees: it knows no fused attention of the CPU and no fused experts."""
    model = row.model("eager")
    model.set_experts_implementation("eager")
    return model


def flops_of(model: nn.Module, call: Any) -> tuple[dict[nn.Module, int], int, Any]:
    """What each module of a call did, and all of them; and what the call returned."""
    with FlopCounterMode(display=False, depth=None) as counter, torch.inference_mode():
        result = call()
    totals = {name.removeprefix(f"{type(model).__name__}."): sum(of.values()) for name, of in _by_module(counter)}
    return {module: totals.get(name, 0) for name, module in model.named_modules()}, counter.get_total_flops(), result


def _by_module(counter: FlopCounterMode) -> Any:
    return counter.get_flop_counts().items()


def vision_flops(family: Family, flops: dict[nn.Module, int]) -> int:
    """What the encoder and the projectors did; some encoders have a projector inside, and some have one behind it."""
    modules = dict.fromkeys((family.tower, family.projected_module, *family.projectors))
    return sum(flops[each] for each in modules if not any(holds(other, each) for other in modules if other is not each))


def text_tokens(row: Row, prompt: str) -> int:
    return int((~row.is_image(torch.tensor(row.ids(prompt)))).sum())


def costs(row: Row, family: Family, inputs: Any, prompt: str, spec: str | None, new_tokens: int = 1) -> Cost:
    model = read_model(family.config)
    return cost_of_layouts(
        model, spec, family.layouts(inputs), text_tokens(row, prompt), new_tokens, 1, device("h100"), "float32"
    )


def cache_bytes(cache: Any) -> int:
    total = 0
    for layer in cache.layers:
        held = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for states in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})):
            held += states.values()
        total += sum(tensor.nbytes for tensor in held if tensor is not None)
    return total


def test_every_family_is_counted(row: Row) -> None:
    from foveate.costmodel.model import counted

    assert set(supported()) <= set(counted())
    assert set(supported()) == FAMILIES


@pytest.mark.parametrize("prompt", PROMPTS)
def test_dense(row: Row, prompt: str) -> None:
    model = counting(row)
    family = family_of(model)
    inputs = row.inputs(prompt)
    flops, total, output = flops_of(model, lambda: model(**inputs, use_cache=True, logits_to_keep=1))
    cost = costs(row, family, inputs, prompt, None)
    assert cost.flops == pytest.approx(total, rel=CLOSE + row.uncounted)
    assert cost.part("prefill").flops == pytest.approx(flops[family.decoder], rel=CLOSE + row.uncounted)
    assert cost.part("head").flops == pytest.approx(flops[model.get_output_embeddings()], rel=CLOSE + row.uncounted)
    seen = vision_flops(family, flops)
    assert cost.part("encoder").flops + cost.part("projector").flops == pytest.approx(seen, rel=CLOSE + row.uncounted)
    assert cost.kv_bytes == cache_bytes(cache_of_output(output))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_compressed(row: Row, prompt: str, spec: str) -> None:
    model = counting(row)
    family = family_of(model)
    inputs = row.inputs(prompt)
    try:
        with apply(model, spec) as run:
            flops, _, output = flops_of(model, lambda: model(**inputs, use_cache=True, logits_to_keep=1))
    except ValueError as error:
        if "@encoder" not in str(error) and "crops of one size" not in str(error):
            raise
        pytest.skip(str(error))
    cost = costs(row, family, inputs, prompt, spec)
    between = [tokens_between(spec, family, layout) for layout in family.layouts(inputs)]
    if any(fewest != most for fewest, most in between):
        # The content decides which rows of a picture keep their newlines: the most is told.
        assert cost.kv_bytes >= cache_bytes(cache_of_output(output))
        assert cost.kept_tokens == sum(most for _, most in between)
        return
    assert cost.kv_bytes == cache_bytes(cache_of_output(output))
    assert cost.kept_tokens == sum(image.after for image in run.report().images)
    assert cost.part("prefill").flops == pytest.approx(flops[family.decoder], rel=CLOSE + row.uncounted)
    if "features" not in spec:
        # A step at @features projects once more; that is the compressor's, and runs through the same module.
        seen = vision_flops(family, flops)
        close = CLOSE + row.uncounted
        assert cost.part("encoder").flops + cost.part("projector").flops == pytest.approx(seen, rel=close)


@pytest.mark.parametrize("spec", [None, "stride:4"])
def test_an_answer(row: Row, spec: str | None) -> None:
    """Five tokens: one from the prefill, four decode steps."""
    from contextlib import nullcontext

    model = counting(row)
    family = family_of(model)
    prompt = PROMPTS[0]
    inputs = row.inputs(prompt)

    def generate() -> Any:
        return model.generate(**inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)

    with apply(model, spec) if spec else nullcontext():
        flops, _, output = flops_of(model, generate)
    cost = costs(row, family, inputs, prompt, spec, new_tokens=5)
    both = cost.part("prefill").flops + cost.part("decode").flops
    assert both == pytest.approx(flops[family.decoder], rel=CLOSE)
    assert cost.part("head").flops == pytest.approx(flops[model.get_output_embeddings()], rel=CLOSE)
    assert cost.kv_bytes == cache_bytes(cache_of_output(output))


def test_a_batch_is_as_many_prompts(row: Row) -> None:
    model = counting(row)
    family = family_of(model)
    prompt = PROMPTS[0]
    inputs = row.inputs(prompt, prompt, prompt)
    _, total, _ = flops_of(model, lambda: model(**inputs, logits_to_keep=1))
    shapes = read_model(family.config)
    cost = cost_of_layouts(
        shapes, None, family.layouts(inputs)[:1], text_tokens(row, prompt), 1, 3, device("h100"), "float32"
    )
    assert cost.flops == pytest.approx(total, rel=CLOSE)


SPELLED = (
    "cluster:0.3", "pool:0.5@features+stride:7", "resize:0.5", "resize:4+random:3", "resize:0.5:mode=enlarge",
    "stride:0.5@1+pool:0.5@2", "pool:5/2@1,2", "pool:mean=6@1,2", "stride:2:per=tile", "stride:0.5:per=tile+cluster:4",
    "cls:0.5", "prumerge", "visionzip:6", "hired:0.4:per=image", "vtw@2", "tome:5@0", "tome:9@encoder",
    "resize:0.5+tome:0.5@encoder+stride:4",
)  # fmt: skip


@pytest.mark.parametrize("spec", SPELLED)
def test_a_configuration_tells_what_the_model_tells(row: Row, spec: str) -> None:
    """Tokens in every layer, of every image; and where the model's family refuses, the same words."""
    family = family_of(row.model())
    known = read_model(family.config).family
    assert not known.has_model
    for layout in family.layouts(row.inputs("t2 A t2 B t3 C t2")):
        try:
            expected = tokens_per_layer(spec, family, layout)
        except FoveateError as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                tokens_per_layer(spec, known, layout)
            continue
        assert tokens_per_layer(spec, known, layout) == expected


def test_what_clustering_takes_is_near_the_estimate() -> None:
    row = LLAVA
    model = counting(row)
    family = family_of(model)
    inputs = row.inputs(PROMPTS[0])
    with apply(model, "cluster:12"):
        flops, total, _ = flops_of(model, lambda: model(**inputs, logits_to_keep=1))
    ours = total - sum(
        flops[each] for each in (family.tower, family.projected_module, family.decoder, model.get_output_embeddings())
    )
    rounds = 11
    # An early stop leaves rounds out, and a CPU adds up means without products.
    assert (
        0 < ours <= costs(row, family, inputs, PROMPTS[0], "cluster:12").part("compressor").flops <= 2 * rounds * ours
    )


# Decoders of other kinds, alone


def small(**fields: Any) -> dict[str, Any]:
    return {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        **fields,
    }


def decoder_configs() -> dict[str, Any]:
    from transformers import (
        Gemma3TextConfig,
        LlamaConfig,
        MistralConfig,
        MixtralConfig,
        PhiConfig,
        Qwen2Config,
        Qwen2MoeConfig,
        Qwen3_5TextConfig,
        Qwen3Config,
        Qwen3MoeConfig,
        Starcoder2Config,
    )

    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return {
        "plain attention": LlamaConfig(**small(num_key_value_heads=4)),
        "grouped": LlamaConfig(**small()),
        "one key head": Qwen2Config(**small(num_key_value_heads=1)),
        "heads wider than the model": Qwen3Config(**small(head_dim=32)),
        "tied": LlamaConfig(**small(tie_word_embeddings=True)),
        "plain MLP": PhiConfig(**small()),
        "plain MLP and a window": Starcoder2Config(**small(sliding_window=7)),
        "all windows": MistralConfig(**small(sliding_window=9)),
        "some windows": Gemma3TextConfig(
            **small(sliding_window=6, head_dim=16), layer_types=["sliding_attention"] * 3 + ["full_attention"]
        ),
        "experts": MixtralConfig(**small(num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
        "narrow experts": Qwen3MoeConfig(**small(head_dim=16), **experts, mlp_only_layers=[1]),
        "shared experts": Qwen2MoeConfig(
            **small(), **experts, shared_expert_intermediate_size=40, decoder_sparse_step=2
        ),
        "linear attention": Qwen3_5TextConfig(
            **small(head_dim=16),
            linear_key_head_dim=8,
            linear_value_head_dim=12,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            pad_token_id=0,
        ),
    }


@pytest.mark.parametrize("kind", decoder_configs())
@pytest.mark.parametrize("tokens", [5, 70])
def test_decoders(kind: str, tokens: int) -> None:
    from transformers import AutoModelForCausalLM

    config = decoder_configs()[kind]
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if "experts" in kind:
        model.set_experts_implementation("eager")
    shapes = read_decoder(config)
    batch, steps = 2, 3
    ids = torch.randint(1, 90, (batch, tokens))
    _, prefill, output = flops_of(model, lambda: model(ids, use_cache=True, logits_to_keep=1))
    lengths = [tokens] * 4
    parts = (shapes.prefill(lengths, batch, 4), shapes.head(1, batch, 4))
    assert sum(part.flops for part in parts) == pytest.approx(prefill, rel=CLOSE)
    assert shapes.cache(lengths, batch, 4) == cache_bytes(cache_of_output(output))

    def decode() -> None:
        for _ in range(steps):
            model(ids[:, :1], **{CACHE: cache_of_output(output)}, use_cache=True)

    _, decoding, _ = flops_of(model, decode)
    parts = (shapes.decode(lengths, steps, batch, 4), shapes.head(steps, batch, 4))
    assert sum(part.flops for part in parts) == pytest.approx(decoding, rel=CLOSE)
    assert shapes.cache([tokens + steps] * 4, batch, 4) == cache_bytes(cache_of_output(output))
    weights = sum(weight.numel() for name, weight in model.named_parameters() if not name.endswith("bias"))
    assert shapes.parameters == pytest.approx(weights, rel=0.01)


def test_linear_attention_holds_the_same_whatever_the_length() -> None:
    shapes = read_decoder(decoder_configs()["linear attention"])
    delta = next(layer.mixer for layer in shapes.layers if isinstance(layer.mixer, Delta))
    assert delta.cache(10, 2) == delta.cache(10_000, 2) > 0


# The published models at full size: their real modules, on no device


@pytest.mark.parametrize("name", published())
def test_published_models_at_full_size(name: str) -> None:
    from transformers import AutoModelForImageTextToText

    from foveate.costmodel.model_config import load_config

    config = load_config(name)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    shapes = read_model(name)
    weights = sum(weight.numel() for weight in model.parameters())
    assert shapes.parameters == pytest.approx(weights, rel=CLOSE)
    decoder = model.model.language_model
    embeds = torch.empty(1, 636, shapes.decoder.hidden, device="meta")
    positions = torch.zeros(1, 636, dtype=torch.long, device="meta")
    _, total, output = flops_of(model, lambda: decoder(inputs_embeds=embeds, position_ids=positions, use_cache=True))
    part = shapes.decoder.prefill([636] * len(shapes.decoder.layers), 1, 4)
    assert part.flops == pytest.approx(total, rel=CLOSE)
    assert shapes.decoder.cache([636] * len(shapes.decoder.layers), 1, 4) == cache_bytes(cache_of_output(output))


def test_a_wrong_shape_would_be_seen() -> None:
    """The oracle can tell: half the key heads, and the numbers differ by more than the tolerance."""
    shapes = read_model("qwen2.5-vl-7b").decoder
    first = shapes.layers[0]
    other = replace(shapes, layers=(replace(first, mixer=replace(first.mixer, groups=28)),) * len(shapes.layers))
    lengths = [636] * len(shapes.layers)
    assert other.prefill(lengths, 1, 2).flops > shapes.prefill(lengths, 1, 2).flops * (1 + CLOSE)
    assert other.cache(lengths, 1, 2) == 7 * shapes.cache(lengths, 1, 2)


def test_a_pooling_head_is_counted() -> None:
    from dataclasses import replace

    from rows.llava_siglip import ROW, make_llava_siglip

    row = replace(ROW, make=lambda: make_llava_siglip(head=True))
    test_dense(row, PROMPTS[1])
