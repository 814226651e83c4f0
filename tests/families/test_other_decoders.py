"""Families whose decoder or whose call is another one than in their row: right, or refused by name."""

from dataclasses import replace
from typing import Any

import pytest
import test_depth
import torch
import transformers
from rows import ROWS, Row
from rows.row import DECODER, INSTALLED
from test_contract import generate
from torch import Tensor

import foveate.engine.signals as signals
from foveate.engine import apply, compress, encode
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import family_of

CHAT = "t6 A t5"
plain_backend = test_depth.plain_backend
BY_NAME = {row.name: row for row in ROWS}


def with_decoder(name: str, kind: str, **more: Any) -> Row:
    """The row of a family, with a decoder of another type."""
    row = BY_NAME[name]

    def make() -> Any:
        model: Any = row.make()
        model.config.text_config = getattr(transformers, kind)(**{**DECODER, "pad_token_id": 0, **more})
        return type(model)(model.config)

    return replace(row, name=f"{name} with {kind}", make=make)


def off_by(row: Row, monkeypatch: pytest.MonkeyPatch, spec: str) -> list[float]:
    """How far the attention that a method is told of is from the maps of the eager model."""
    model, inputs = row.model("eager"), row.inputs(CHAT)
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    found: list[float] = []
    attention = signals.attention

    def told(given: Any, places: Any, columns: Tensor) -> Tensor:
        answer = attention(given, places, columns)
        expected = maps[given.layer][places.rows[:, None], :, columns].transpose(1, 2)
        expected = expected.gather(-1, places.visual[:, None, None].expand(*answer.shape))
        found.append(float((answer - expected).abs().max() / expected.max()))
        return answer

    monkeypatch.setattr(signals, "attention", told)
    with apply(model, spec):
        generate(model, inputs, 1)
    return found


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("CohereConfig", {"use_qk_norm": True}),
        ("SmolLM3Config", {"no_rope_layers": [1, 0, 1], "layer_types": ["full_attention"] * 3}),
        ("Olmo2Config", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attention_of_decoders_that_the_family_does_not_know_is_refused(kind: str, more: dict[str, Any]) -> None:
    """Heads rotated in other pairs, layers without rotary embedding, no norm before attention."""
    model = with_decoder("llava", kind, **more).model()
    with pytest.raises(FoveateError, match="which LLaVA cannot give"), apply(model, "fastv:6@2"):
        pass
    inputs = BY_NAME["llava"].inputs(CHAT)
    dense = generate(model, inputs)
    with apply(model, "random:1.0@1"):
        assert torch.equal(generate(model, inputs), dense)


@pytest.mark.parametrize(
    ("kind", "more"), [("LlamaConfig", {"num_key_value_heads": 1, "attention_bias": True}), ("GraniteConfig", {})]
)
def test_attention_of_other_decoders_is_the_eager_models(
    kind: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (off,) = off_by(with_decoder("llava", kind, **more), monkeypatch, "fastv:6@2")
    assert off < 1e-5


CAPPED: dict[str, Any] = {"head_dim": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": None}


@pytest.mark.parametrize(
    ("name", "kind", "capped"), [("paligemma", "Gemma2Config", True), ("gemma3", "Gemma3TextConfig", False)]
)
def test_scores_with_a_soft_cap_are_the_eager_models(
    name: str, kind: str, capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3's configuration may name a cap, too, which its attention never reads."""
    row = with_decoder(name, kind, **CAPPED, query_pre_attn_scalar=16, layer_types=["full_attention"] * 3)
    for spec in ("fastv:6@1", "fastv:6@2"):
        (off,) = off_by(row, monkeypatch, spec)
        assert off < 1e-5
    assert (family_of(row.model("eager")).soft_cap == 2.0) is capped
    model: Any = row.make()
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:
        # The attention of torch knows no cap, so later versions of transformers don't take it.
        assert capped
    else:
        assert family_of(model).soft_cap is None


def test_sinks_take_their_share_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the eager model, in layers with a window and without."""
    sizes = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    plain = with_decoder("internvl", "GptOssConfig", **sizes, layer_types=kinds)

    def make() -> Any:
        model: Any = plain.make()
        with torch.no_grad():
            for layer in model.model.language_model.layers:
                layer.self_attn.sinks.fill_(3.0)
        return model

    row = replace(plain, make=make)
    for spec in ("fastv:6@1", "fastv:6@2"):
        (off,) = off_by(row, monkeypatch, spec)
        assert off < 1e-5
    model, inputs = row.model("eager"), row.inputs(CHAT)
    dense = generate(model, inputs)
    for spec in ("random:1.0", "random:1.0@1"):
        with apply(model, spec):
            assert torch.equal(generate(model, inputs), dense)


def test_a_decoder_whose_layers_are_elsewhere_is_refused() -> None:
    sizes = {"word_embed_proj_dim": 64, "ffn_dim": 96}
    with pytest.raises(UnsupportedFamily, match="language model of type opt"):
        family_of(with_decoder("llava", "OPTConfig", **sizes).model())


def ministral() -> Row:
    """Queries are enlarged from position 8 on."""
    rope = {"llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8, "rope_theta": 1e4, "factor": 1.0}
    rope |= {"rope_type": "default"}
    return with_decoder("mistral3", "Ministral3Config", head_dim=16, rope_parameters=rope)


@pytest.mark.skipif("mistral3" not in BY_NAME or INSTALLED < (5, 20), reason="Mistral 3 or its decoder is not there")
def test_a_decoder_that_reads_position_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ministral()
    for attention in ("sdpa", "eager"):
        model = row.model(attention)
        test_depth.test_dropping_is_masking(row, model, 1)
        for spec in ("random:6@1", "random:6:positions=pack@1"):
            test_depth.test_a_batch_is_its_samples_alone(row, model, spec)
    for spec in ("fastv:6@1", "fastv:6@2"):
        (off,) = off_by(row, monkeypatch, spec)
        assert off < 1e-5


def test_a_decoder_that_reads_position_ids_needs_a_mask(plain_backend: str) -> None:
    model = ministral().model()
    model.set_attn_implementation(plain_backend)
    with pytest.raises(FoveateError, match="reads position ids"), apply(model, "random:6@1"):
        pass


def test_aya_vision_with_the_first_cohere_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    row = with_decoder("aya_vision", "CohereConfig", use_qk_norm=True, max_position_embeddings=1024)
    model = row.model()
    assert family_of(model).title == "Aya Vision"
    test_depth.test_dropping_is_masking(row, model, 1)
    for spec in ("fastv:6@1", "fastv:6@2"):
        (off,) = off_by(row, monkeypatch, spec)
        assert off < 1e-5


@pytest.mark.parametrize(
    "name", ["llava", "llava_siglip", "llava_next", "llava_onevision", "mistral3", "pixtral", "internvl", "aya_vision"]
)
@torch.no_grad()
def test_the_encoder_layer_that_a_call_names_is_read(name: str) -> None:
    row = BY_NAME[name]
    model, inputs = row.model(), {**row.inputs(CHAT), "vision_feature_layer": -3}
    dense = model(**inputs).logits
    assert (model(**row.inputs(CHAT)).logits - dense).abs().max() > 1e-2
    with apply(model, "random:1.0"):
        torch.testing.assert_close(model(**inputs).logits, dense, atol=row.rounding, rtol=0)
    torch.testing.assert_close(model(**compress(model, inputs, "random:1.0")).logits, dense, atol=1e-5, rtol=0)


def test_tokens_that_a_call_alone_allows_are_refused() -> None:
    row = BY_NAME["llava_onevision"]
    model, inputs = row.model(), {**row.inputs(CHAT), "vision_aspect_ratio": "anyres_max_1"}
    with pytest.raises(FoveateError, match="write 'anyres_max_1' into"):
        encode(model, inputs)


@pytest.mark.parametrize("layer", [-9, 7, [-1, -2]])
def test_encoder_layers_of_mistral_3_that_are_not_there(layer: Any) -> None:
    config: Any = BY_NAME["mistral3"].make().config
    config.vision_feature_layer = layer
    with pytest.raises(UnsupportedFamily, match="one of its 3 layers is"):
        type(family_of(BY_NAME["mistral3"].make())).of_config(config)
