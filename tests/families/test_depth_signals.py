"""What methods are told inside the decoder, against what eager attention really did."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from rows import Row
from test_contract import CHAT, dense_positions
from test_depth import keeps_of, masked_inside
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from versions import BEAMS_OF_SEVERAL_IMAGES, CACHE, cache_of_output

from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.methods import Method
from foveate.plan import Plan
from foveate.spec import Spec, Step, parse
from foveate.tokens import (
    Behind,
    DecoderAttention,
    DecoderInput,
    DecoderKeys,
    DecoderLogits,
    RotaryLogits,
    Signal,
    Text,
    VisualTokens,
)

pytestmark = pytest.mark.inside

PROMPTS = ("t6 A t5", "t2 B t9 C t3", "t11", "t3 C t4")
NEEDS = (
    *(
        DecoderAttention(rows, layer, heads)
        for rows in ("last", "text")
        for layer in ("here", "previous")
        for heads in ("mean", "each")
    ),
    *(DecoderLogits(layer) for layer in ("here", "previous")),
    *(DecoderKeys(of, layer) for of in ("visual", "text") for layer in ("here", "previous")),
    Text(),
    DecoderInput("visual"),
    DecoderInput("text"),
    RotaryLogits(),
    Behind(),
)


@dataclass(frozen=True)
class Probe(Method):
    """Keeps everything and remembers what it was told."""

    seen: list[VisualTokens] = field(default_factory=list, hash=False)
    name = "probe"

    @property
    def needs(self) -> tuple[Signal, ...]:
        return NEEDS

    def plan(self, tokens: VisualTokens) -> Plan:
        self.seen.append(tokens)
        count = tokens.features.shape[1]
        return Plan(slot=torch.arange(count).expand(tokens.features.shape[0], -1))


def told(model: Any, inputs: dict[str, Any], layer: int, before: str = "", **extra: Any) -> dict[Any, list[Tensor]]:
    """What a probe at a layer is told, per image in prompt order."""
    probe = Probe()
    steps = parse(before).steps if before else ()
    with apply(model, Spec((*steps, Step(probe, (layer,))))):
        model(**inputs, **extra)
    every: list[dict[Any, Tensor]] = []
    for tokens in probe.seen:
        for image in range(tokens.features.shape[0]):
            every.append({need: tokens.signals[need][image] for need in NEEDS} | {"features": tokens.features[image]})
    return every


def attentions(model: Any, inputs: dict[str, Tensor], keeps: dict[int, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Eager attention weights `(B, H, S, S)` and inputs `(B, S, D)` of all layers of the dense model."""
    hidden: list[Tensor] = []

    def remember(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden.append(args[0] if args else kwargs["hidden_states"])

    handles = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in family_of(model).decoder_layers]
    try:
        out = masked_inside(model, inputs, keeps, output_attentions=True)
    finally:
        for handle in handles:
            handle.remove()
    return list(out.attentions), hidden


def images_of(row: Row, inputs: dict[str, Tensor], prompts: tuple[str, ...] = PROMPTS) -> list[tuple[int, Tensor]]:
    """Row and content columns of each image."""
    found: list[tuple[int, Tensor]] = []
    for number, prompt in enumerate(prompts):
        columns = row.is_image(inputs["input_ids"][number]).nonzero().squeeze(1)
        for piece in prompt.split():
            if piece[0] != "t":
                layout = row.pictures[piece]
                found.append((number, columns[: layout.total][layout.places]))
                columns = columns[layout.total :]
    return found


@pytest.mark.parametrize("before", ["", "random:6@1"])
@torch.no_grad()
def test_attention_is_what_eager_attention_does(row: Row, before: str) -> None:
    model = row.model("eager")
    inputs = row.inputs(*PROMPTS)
    keep = keeps_of(row, model, inputs, "random:6") if before else torch.ones_like(inputs["input_ids"]).bool()
    maps, hidden = attentions(model, inputs, {1: keep})
    given = {**inputs, "position_ids": dense_positions(model, inputs)}
    real = inputs["attention_mask"].bool()
    every = told(model, given, 2, before)
    placed = images_of(row, inputs)
    assert len(every) == len(placed)
    # The probe sees images of one layout and text length at a time: match them by their hidden states.
    for number, columns in placed:
        columns = columns[keep[number, columns]]
        image = next(
            each
            for each in every
            if each["features"].shape[0] == len(columns)
            and torch.allclose(each["features"], hidden[2][number, columns], atol=1e-5)
        )
        text = (real[number] & (~row.is_image(inputs["input_ids"][number]))).nonzero().squeeze(1)
        for where, layer in (("here", 2), ("previous", 1)):
            weights = maps[layer][number][:, :, columns]
            for rows, expected in (("last", weights[:, -1]), ("text", weights[:, text])):
                got = image[DecoderAttention(rows, where, "each")]
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(
                    image[DecoderAttention(rows, where, "mean")], expected.mean(dim=0), atol=1e-5, rtol=1e-5
                )
        torch.testing.assert_close(image[Text()], hidden[2][number, text], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(image[DecoderInput("text")], hidden[0][number, text], atol=1e-5, rtol=1e-5)
        assert torch.equal(image[Behind()], text > columns[0])


@torch.no_grad()
def test_keys_and_logits_are_those_of_the_cache(row: Row) -> None:
    """Keys as the dense model's cache holds them; logits from the whole map of queries and keys, made with hooks."""
    model = row.model("sdpa")
    family = family_of(model)
    inputs = row.inputs("t2 B t9 C t3")
    queries: dict[int, Tensor] = {}
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def remember(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        if getattr(module, "layer_idx", None) is not None:
            queries[module.layer_idx] = query
        return attention(module, query, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("remember", remember)
    ALL_MASK_ATTENTION_FUNCTIONS.register("remember", sdpa_mask)
    try:
        model.set_attn_implementation("remember")
        cache = cache_of_output(model(**inputs, use_cache=True))
    finally:
        model.set_attn_implementation("sdpa")
        del ALL_ATTENTION_FUNCTIONS._global_mapping["remember"]
        del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping["remember"]
    text = (~row.is_image(inputs["input_ids"][0])).nonzero().squeeze(1)
    # Without a cache, keys of the layer before are made again.
    for image in (*told(model, inputs, 2), *told(model, inputs, 2, use_cache=False)):
        letter, run = next(
            (letter, own)
            for letter, own in zip("BC", row.image_columns("t2 B t9 C t3"))
            if torch.equal(image[Behind()], text > own[0])
        )
        columns = run[row.pictures[letter].places]
        for where, layer in (("here", 2), ("previous", 1)):
            key = cache.layers[layer].keys[0]
            for of, places in (("visual", columns), ("text", text)):
                expected = key[:, places].transpose(0, 1).flatten(1)
                torch.testing.assert_close(image[DecoderKeys(of, where)], expected, atol=1e-5, rtol=1e-5)
            query = queries[layer][0][:, columns]
            repeated = key[:, columns].repeat_interleave(query.shape[0] // key.shape[0], dim=0)
            scores = (query @ repeated.transpose(1, 2)) * family.attention_scale(layer)
            count = len(columns)
            behind = torch.ones(count, count).tril()
            expected = (scores.mean(dim=0) * behind).sum(dim=0) / behind.sum(dim=0)
            torch.testing.assert_close(image[DecoderLogits(where)], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_keys_of_the_layer_before_are_not_made_again(row: Row) -> None:
    model = row.model()
    made: list[int] = []
    attention: Any = family_of(model).decoder_layers[1].self_attn
    assert family_of(model).has_own_keys()  # which runs a layer of each kind when it is first asked
    handle = attention.k_proj.register_forward_hook(lambda *_: made.append(1))
    try:
        for use_cache in (True, False):
            made.clear()
            with apply(model, "dart:4@2"):
                model(**row.inputs("t6 A t5"), use_cache=use_cache)
            assert len(made) == 1
    finally:
        handle.remove()


@torch.no_grad()
def test_what_rotary_embedding_adds(row: Row) -> None:
    """A query and a key of ones, turned to their positions by the model's own function."""
    model = row.model()
    family = family_of(model)
    inputs = row.inputs(CHAT)
    positions = dense_positions(model, inputs)
    hidden = torch.zeros(1, inputs["input_ids"].shape[1], 64)
    given = family.rotary(hidden, positions, 1)
    cos, sin = family.cos_sin(given)
    module = __import__(type(family.decoder_layers[0]).__module__, fromlist=["apply_rotary_pos_emb"])
    ones = torch.ones(1, 1, hidden.shape[1], cos.shape[-1])
    if isinstance(given, Tensor):  # complex numbers, with columns before heads
        query, key = (each.transpose(1, 2) for each in module.apply_rotary_emb(*(ones.transpose(1, 2),) * 2, given))
    else:
        turn = module.apply_rotary_pos_emb
        # Some turn queries and keys in one call, and some one of them.
        both = "q" in inspect.signature(turn).parameters
        query, key = turn(ones, ones, cos, sin) if both else (turn(ones, cos, sin),) * 2
    (image,) = told(model, {**inputs, "position_ids": positions}, 1)
    ((_, columns),) = images_of(row, inputs, (CHAT,))
    text = (~row.is_image(inputs["input_ids"][0])).nonzero().squeeze(1)
    expected = (query @ key.transpose(2, 3))[0, 0][text][:, columns] * family.attention_scale(1)
    torch.testing.assert_close(image[RotaryLogits()], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_later_turn_is_told_what_one_prefill_is(row: Row) -> None:
    """Attention to an image in a second turn counts the first one, too; text is that of the turn."""
    if not row.blocks_after_cache:
        pytest.skip("its images come in the first turn alone")
    if row.images_see_later_ones:
        pytest.skip("in one prefill the first image sees the second one")
    model = row.model()
    whole, first = row.inputs("t6 A t5 t2 B t4"), row.inputs("t6 A t5")
    begin = first["input_ids"].shape[1]
    second = row.inputs("t2 B t4") | {"input_ids": whole["input_ids"][:, begin:]}
    second["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in second:
        second["mm_token_type_ids"] = whole["mm_token_type_ids"][:, begin:]
    probe = Probe()
    with apply(model, Spec((Step(probe, (2,)),))):
        model(**whole)
        together = probe.seen[:]
        probe.seen.clear()
        cache = cache_of_output(model(**first, use_cache=True))
        model(**second, **{CACHE: cache})
    # The second image is the last one of either.
    expected, got = together[-1].signals, probe.seen[-1].signals
    for where in ("here", "previous"):
        for heads in ("mean", "each"):
            need = DecoderAttention("last", where, heads)
            torch.testing.assert_close(got[need][0], expected[need][-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            got[DecoderLogits(where)][0], expected[DecoderLogits(where)][-1], atol=1e-5, rtol=1e-5
        )
        need = DecoderAttention("text", where)
        words = int((~row.is_image(second["input_ids"])).sum())
        torch.testing.assert_close(got[need][0], expected[need][-1][-words:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_where_the_prompt_ends(row: Row) -> None:
    """With labels the prompt ends before the first one, with `logits_to_keep` at the first logits."""
    model = row.model()
    prompt = row.inputs(CHAT)
    answered = row.with_text(prompt, torch.tensor([[40, 41, 42]]))
    (alone,) = told(model, prompt, 2)
    labels = torch.full_like(answered["input_ids"], -100)
    labels[:, -3:] = answered["input_ids"][:, -3:]
    few = {"labels": labels[:, -5:], "logits_to_keep": 5}
    for extra in ({"labels": labels}, {"logits_to_keep": 4}, few) if row.logits_to_keep else ({"labels": labels},):
        (image,) = told(model, answered, 2, **extra)
        for need in NEEDS:
            torch.testing.assert_close(image[need], alone[need], atol=1e-5, rtol=1e-5, msg=lambda m, n=need: f"{n} {m}")
    (whole,) = told(model, answered, 2)
    assert whole[Text()].shape[0] == alone[Text()].shape[0] + 3
    # Predictions from the image on, or from before it, say nothing of where the prompt ends.
    for count in (answered["input_ids"].shape[1], 12):
        (image,) = told(model, answered, 2, logits_to_keep=count)
        for need in NEEDS:
            torch.testing.assert_close(image[need], whole[need])


class Wrapped(torch.nn.Module):
    """A model inside another module, which takes a batch as one thing."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, batch: dict[str, Any]) -> Any:
        return self.inner(**batch)


@torch.no_grad()
def test_what_is_asked_holds_for_one_call_and_through_a_wrapper(row: Row) -> None:
    model, prompt = row.model(), row.inputs(CHAT)
    answered = row.with_text(prompt, torch.tensor([[40, 41, 42]]))
    labels = torch.full_like(answered["input_ids"], -100)
    labels[:, -3:] = 7
    probe, core = Probe(), family_of(model).core
    with apply(Wrapped(model), Spec((Step(probe, (2,)),))):
        Wrapped(model)(answered | {"labels": labels})
        core(**answered)
        with pytest.raises(FoveateError, match="labels came and"):
            model(**answered, labels=labels[:, 1:])
        core(**answered)
    asked = [tokens.signals[Text()].shape[1] for tokens in probe.seen]
    assert asked == [asked[0], asked[0] + 3, asked[0] + 3]


@BEAMS_OF_SEVERAL_IMAGES
def test_beams_share_what_is_planned(row: Row) -> None:
    model = row.model()
    probe = Probe()
    with apply(model, Spec((Step(probe, (1,)),))) as run:
        model.generate(**row.inputs(*PROMPTS), max_new_tokens=3, num_beams=3, do_sample=False)
    assert sum(tokens.features.shape[0] for tokens in probe.seen) == len(run.report().images) == 4


def test_without_a_cache_the_plan_of_the_prompt_stays(row: Row) -> None:
    """Every step passes the whole prompt and more; the plan doesn't follow the answer."""
    model = row.model()
    probe = Probe()
    with apply(model, Spec((Step(probe, (1,)),))):
        model.generate(**row.inputs(*PROMPTS), max_new_tokens=4, do_sample=False, use_cache=False)
    assert sum(tokens.features.shape[0] for tokens in probe.seen) == 4
    inputs = row.inputs(*PROMPTS)
    with apply(model, "fastv:3@2"):
        cached = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=False), cached)
