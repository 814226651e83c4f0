"""The points of the contract inside the decoder: any plan at the input of any layer."""

import copy
from typing import Any

import pytest
import test_contract
import torch
from rows import ROWS, Row
from test_contract import BATCH, CHAT, dense_positions, generate, kept_columns, logits
from torch import Tensor
from transformers import DynamicCache, StaticCache
from versions import BEAMS_OF_SEVERAL_IMAGES, CACHE, CHECKPOINTING_INSIDE, cache_of_output

from foveate.engine import Encoded, apply, compress, encode, encoder_outputs
from foveate.errors import FoveateError, KeepError
from foveate.families import family_of
from foveate.families.decoder import Decoder
from foveate.schedule import tokens_per_layer
from foveate.spec import parse
from foveate.tokens import Layout, Segment, VisualTokens

pytestmark = pytest.mark.inside

SELECT = "random:6"
plain_backend = test_contract.plain_backend


def visible_to(given: dict[str, Any], width: int) -> Tensor:
    """Which columns see each other in a layer that was called with these arguments: `(1 or B, 1, S, S)` bool."""
    own = given.get("attention_mask")
    if own is None:
        return torch.ones(width, width).tril().bool()[None, None]
    return own if own.dtype == torch.bool else own == 0


def layer_masks(model: Any, visible: Tensor, first: int) -> list[Any]:
    """Hooks that hide columns from decoder layer `first` on: `visible` `(B, S)` bool; undo them with `remove()`."""

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        seen = visible_to(kwargs, visible.shape[1]) & visible[:, None, None, :]
        # Whoever would see nothing sees itself: nobody reads it.
        seen = seen | torch.eye(visible.shape[1], dtype=torch.bool)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": mask}

    layers = family_of(model).decoder_layers
    return [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers[first:]]


def masked_inside(model: Any, inputs: dict[str, Tensor], keeps: dict[int, Tensor], **extra: Any) -> Any:
    """The dense model's output when columns can't be seen from some layers on: `keeps[layer]` is `(B, S)` bool."""
    real = inputs["attention_mask"].bool()
    handles = [handle for layer, keep in keeps.items() for handle in layer_masks(model, keep & real, layer)]
    try:
        return model(**{**inputs, "position_ids": dense_positions(model, inputs)}, use_cache=False, **extra)
    finally:
        for handle in handles:
            handle.remove()


def keeps_of(row: Row, model: Any, inputs: dict[str, Tensor], spec: str) -> Tensor:
    """The columns that a rule which looks at nothing keeps, `(B, S)` bool, as it does at `@input`."""
    given = {**inputs, "position_ids": dense_positions(model, inputs)}
    return kept_columns(row, inputs, compress(model, given, f"{spec}:positions=keep"))


# 1. Keep everything = the untouched model.


@pytest.mark.parametrize("spec", ["random:1.0@1", "pool:1.0@1,2", "cls:1.0:positions=keep@2"])
def test_keeping_everything_is_the_untouched_model(row: Row, any_model: Any, spec: str) -> None:
    for inputs in (row.inputs(CHAT), row.inputs(*BATCH)):
        dense, ids = logits(any_model, inputs), generate(any_model, inputs)
        with apply(any_model, spec):
            assert torch.equal(generate(any_model, inputs), ids)
            real = inputs["attention_mask"].bool()
            torch.testing.assert_close(logits(any_model, inputs)[real], dense[real], atol=row.rounding, rtol=0)


# 2. Dropping = masking from that layer on.


@pytest.mark.parametrize("layer", [1, 2])
@torch.no_grad()
def test_dropping_is_masking(row: Row, any_model: Any, layer: int) -> None:
    inputs = row.inputs(*BATCH)
    keep = keeps_of(row, any_model, inputs, SELECT)
    oracle = masked_inside(any_model, inputs, {layer: keep}).logits
    with apply(any_model, f"{SELECT}@{layer}"):
        mine = any_model(**inputs, position_ids=dense_positions(any_model, inputs)).logits
    assert mine.shape == oracle.shape
    real = keep & inputs["attention_mask"].bool()
    torch.testing.assert_close(mine[real], oracle[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", ["random:6@1", "stride:4@2"])
@torch.no_grad()
def test_decoding_is_masking(row: Row, any_model: Any, spec: str) -> None:
    """Every step of `generate`, against the dense model over the whole sequence at once."""
    inputs = row.inputs(*BATCH)
    rule, _, layer = spec.partition("@")
    with apply(any_model, spec):
        out = any_model.generate(
            **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    answer = out.sequences[:, -5:]
    keep = keeps_of(row, any_model, inputs, rule)
    keep = torch.cat([keep, torch.ones_like(answer).bool()], dim=1)
    oracle = masked_inside(any_model, row.with_text(inputs, answer), {int(layer): keep}).logits
    torch.testing.assert_close(torch.stack(out.logits, dim=1), oracle[:, -6:-1].float(), atol=1e-4, rtol=1e-4)


# Merging, and positions without gaps, against the layers run one by one.


@torch.no_grad()
def by_hand(row: Row, model: Any, prompt: str, spec: str, answer: Tensor | None = None) -> Tensor:
    """Logits `(1, S', V)` of one prompt without padding: the layers in a loop, images shortened in between."""
    inputs = row.inputs(prompt)
    if answer is not None:
        inputs = row.with_text(inputs, answer)
    family = family_of(model)
    asked: dict[str, Any] = {}

    def remember(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        asked.update(kwargs)

    calls: list[dict[str, Any]] = []
    beside: list[tuple[Any, ...]] = []

    def listen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append(kwargs)
        beside.append(args[1:])

    layers = family.decoder_layers
    handles = [family.decoder.register_forward_pre_hook(remember, with_kwargs=True)]
    for each in layers:
        handles.append(each.register_forward_pre_hook(listen, with_kwargs=True))
    model(**{**inputs, "position_ids": dense_positions(model, inputs)}, use_cache=False)
    for handle in handles:
        handle.remove()
    hidden = asked["inputs_embeds"]
    positions = asked["position_ids"].view(family.position_axes, 1, -1)
    added = list(asked.get("deepstack_visual_embeds") or ())

    # Every image as it is now: its columns, its content tokens left, and its whole run (gone tokens hold nothing).
    images: list[dict[str, Any]] = []
    columns = torch.arange(hidden.shape[1])
    seen = 0
    for piece, own in zip([piece for piece in prompt.split() if piece[0] != "t"], row.image_columns(prompt)):
        layout = row.layout(piece)
        run, _ = layout.placed(torch.arange(layout.content))
        images.append(
            {
                "layout": layout,
                "own": own,
                "run": run,
                "content": torch.arange(layout.content),
                "spans": list(family.image_spans(layout)),
                "values": hidden[0, own].clone(),
                "added": [level[seen : seen + layout.total].clone() for level in added],
            }
        )
        seen += layout.total

    for number, layer in enumerate(family.decoder_layers):
        for step in parse(spec).steps:
            if number not in step.places:
                continue
            for image in images:
                layout, old = image["layout"], image["run"]
                at = torch.searchsorted(columns, image["own"][old])
                image["values"][old] = hidden[0, at]
                places = layout.places[image["content"]]
                first = len(image["content"]) == layout.content
                grid = layout if first else (1, len(places))
                tokens = VisualTokens.of(image["values"][places][None], grid)
                plan = step.method.plan(tokens)
                image["content"] = image["content"][plan.slot[0]]
                kept = layout.places[image["content"]]
                image["values"][kept] = plan.apply(image["values"][places][None])[0]
                for level in image["added"]:
                    level[kept] = plan.apply(level[places][None])[0]
                image["run"], _ = layout.placed(image["content"])
                stays = torch.isin(old, image["run"])
                if step.method.positions == "pack":
                    positions = positions.clone()
                    for part, span in enumerate(image["spans"]):
                        here = layout.run_of[old] == part
                        if not here.any():
                            continue
                        begin, end = int(at[here][0]), int(at[here][-1]) + 1
                        left = at[here & stays]
                        base = positions[:, 0, begin - 1].max() + 1 if begin else torch.tensor(0)
                        positions[:, 0, left] = base + torch.arange(len(left))
                        positions[:, 0, end:] -= span - len(left)
                        image["spans"][part] = len(left)
                hidden = hidden.clone()
                hidden[0, at[stays]] = image["values"][image["run"]]
                alive = torch.ones(len(columns), dtype=torch.bool)
                alive[at[~stays]] = False
                columns, hidden, positions = columns[alive], hidden[:, alive], positions[:, :, alive]
        # What is left sees what the dense model lets it see.
        seen = visible_to(calls[number], inputs["input_ids"].shape[1])[:, :, columns][..., columns]
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(hidden.dtype).min)
        rotary = family.rotary(hidden, positions[0] if family.position_axes == 1 else positions, number)
        # What a layer gets for each token beside its hidden states: a merged one has that of its own place.
        own = [None if each is None else each[:, columns] for each in beside[number]]
        given = {"attention_mask": mask, "position_embeddings": rotary, "position_ids": None, CACHE: None}
        if "shared_kv_states" in calls[number]:
            given["shared_kv_states"] = {}
        hidden = layer(hidden, *own, **given)
        if number < len(added):
            hidden = hidden.clone()
            for image in images:
                at = torch.searchsorted(columns, image["own"][image["run"]])
                hidden[0, at] += image["added"][number][image["run"]]
    return model.get_output_embeddings()(family.decoder.norm(hidden))


@pytest.mark.parametrize(
    "spec",
    [
        "pool:0.25@1",
        "pool:0.5@1,2",
        "pool:0.5:positions=pack@2",
        "random:7:positions=pack@1+pool:3:positions=pack@2",
        "stride:4@1+pool:2:positions=pack@2",
        "pool:5:positions=pack@1+random:2@2",
        "random:4:positions=pack@1+vtw:positions=pack@2",
        "vtw:positions=pack@1",
    ],
)
@torch.no_grad()
def test_merging_and_packing_are_the_layers_run_by_hand(row: Row, any_model: Any, spec: str) -> None:
    for prompt in ("t6 A t5", "t2 B t9 C t3"):
        inputs = row.inputs(prompt)
        with apply(any_model, spec):
            out = any_model.generate(
                **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
            full = any_model(**inputs, position_ids=dense_positions(any_model, inputs)).logits
        expected = by_hand(row, any_model, prompt, spec, out.sequences[:, -4:])
        torch.testing.assert_close(torch.stack(out.logits, dim=1), expected[:, -5:-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(full[:, -1], expected[:, -5], atol=1e-4, rtol=1e-4)


# 4. A left-padded batch = its samples alone.


@pytest.mark.parametrize("spec", ["random:6@1", "cls:0.3@2", "cluster:6@1", "pool:0.25@1,2", "cluster:6+pool:0.5@2"])
def test_a_batch_is_its_samples_alone(row: Row, any_model: Any, spec: str) -> None:
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with apply(any_model, spec):
        batch = any_model.generate(**row.inputs(*BATCH), **options)
        for number, prompt in enumerate(BATCH):
            alone = any_model.generate(**row.inputs(prompt), **options)
            for step, (both, one) in enumerate(zip(batch.logits, alone.logits)):
                torch.testing.assert_close(both[number], one[0], atol=1e-4, rtol=1e-4, msg=f"{prompt}, step {step}")


@pytest.mark.parametrize(
    "spec", ["random:6@1", "cluster:6@1", "pool:0.25:positions=pack@1,2", "fastv:4@2", "cluster:6+pool:0.5@2"]
)
@torch.no_grad()
def test_tokens_that_only_the_device_knows(
    row: Row, any_model: Any, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An accelerator is not waited for to learn which tokens stay; here it is played by a host that doesn't look.
    inputs = row.inputs(*BATCH)
    with apply(any_model, spec):
        expected, ids = logits(any_model, inputs), generate(any_model, inputs)
    monkeypatch.setattr("foveate.engine.decoder.on_cpu", lambda x: False)
    with apply(any_model, spec):
        assert torch.equal(logits(any_model, inputs), expected)
        assert torch.equal(generate(any_model, inputs), ids)


@pytest.mark.parametrize("spec", ["random:6@1", "random:0.9+random:0.5@2", "random:6"])
@torch.no_grad()
def test_hidden_states_keep_their_columns(row: Row, any_model: Any, spec: str) -> None:
    """Each as long as the prompt; a column that is gone has the one before it, as in the logits."""
    inputs = row.inputs(*BATCH)
    with apply(any_model, spec):
        out = any_model(**inputs, position_ids=dense_positions(any_model, inputs), output_hidden_states=True)
    layers = len(family_of(any_model).decoder_layers)
    assert [tuple(each.shape[:2]) for each in out.hidden_states] == [inputs["input_ids"].shape] * (layers + 1)
    torch.testing.assert_close(any_model.get_output_embeddings()(out.hidden_states[-1]), out.logits)
    if spec == "random:6@1":
        keep = keeps_of(row, any_model, inputs, SELECT)
        expected = masked_inside(any_model, inputs, {1: keep}, output_hidden_states=True).hidden_states
        # DeepStack's additions are in what our layers return; the model makes them behind its own.
        text = inputs["input_ids"] != family_of(any_model).image_token
        real = keep & inputs["attention_mask"].bool() & (text | (row.name not in ("qwen3_vl", "qwen3_vl_moe")))
        for ours, oracle in zip(out.hidden_states, expected, strict=True):
            torch.testing.assert_close(ours[real], oracle[real], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_images_that_were_encoded_before(row: Row, model: Any) -> None:
    """Several specs and several questions about an image, and one run of the encoder."""
    specs = (row.select("9") + "+fastv:0.5@1", "random:5@2")

    def given(prompts: tuple[str, ...], encoded: Encoded) -> dict[str, Any]:
        text = {name: value for name, value in row.inputs(*prompts).items() if name != "pixel_values"}
        return text | {"mm_encoder_outputs": encoder_outputs(model, encoded)}

    encoded = encode(model, row.inputs(*BATCH), specs)
    for spec in specs:
        with apply(model, spec):
            assert torch.equal(generate(model, given(BATCH, encoded)), generate(model, row.inputs(*BATCH)))
    twice = ("t6 A t5", "t6' A t5'")
    again = encode(model, row.inputs("t6 A t5"), specs).pick([0, 0])
    with apply(model, specs[0]) as run:
        assert torch.equal(generate(model, given(twice, again)), generate(model, row.inputs(*twice)))
    assert len(run.report().images) == 4
    if row.keys is not None:
        without = pytest.raises(FoveateError, match="which the images were encoded without")
        with apply(model, "prumerge:4@input+random:3@1"), without:
            generate(model, given(BATCH, encoded))


@torch.no_grad()
def test_the_plan_of_one_question_is_not_the_plan_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cache a prompt that has become longer follows its plan; one that came with a cache is another's."""
    (row,) = (row for row in ROWS if row.name == "llava")
    model = row.model()
    inputs = row.inputs("t6 A t5")
    encoded = encode(model, inputs, ["fastv:6@1"])
    made: list[Any] = []
    plan = type(parse("fastv:6@1").steps[0].method).plan
    monkeypatch.setattr(
        type(parse("fastv:6@1").steps[0].method), "plan", lambda self, tokens: made.append(1) or plan(self, tokens)
    )
    del inputs["pixel_values"]
    question = row.with_text(inputs, torch.tensor([[60, 61, 62, 63]]))
    for first, expected in (({"use_cache": True}, 2), ({"use_cache": False, "logits_to_keep": 3}, 2), ({}, 2)):
        outputs = encoder_outputs(model, encoded)
        made.clear()
        with apply(model, "fastv:6@1"):
            model(**inputs, mm_encoder_outputs=outputs, **first)
            model(**question, mm_encoder_outputs=outputs, use_cache=False)
            assert len(made) == expected
            model(**row.with_text(question, torch.tensor([[7]])), mm_encoder_outputs=outputs, use_cache=False)
            assert len(made) == expected


# What holds at `@input` holds inside: the same tests, of a spec with a layer.

INSIDE = ("random:9+pool:0.5@1+stride:3@2", "random:6:positions=pack@1")


@pytest.mark.parametrize("spec", INSIDE)
@pytest.mark.parametrize(
    "name",
    [
        "test_swapping_the_image_changes_the_logits",
        "test_dropping_tokens_changes_the_logits",
        "test_a_batch_that_only_the_cut_makes_ragged",
        "test_a_second_turn_is_the_whole_conversation",
        "test_a_second_turn_of_a_padded_batch",
        "test_a_second_turn_of_a_padded_batch_in_generate",
        "test_a_second_image_after_an_answer",
        "test_an_image_after_a_text_only_turn",
        "test_two_conversations_at_once",
        "test_a_copied_cache_knows_what_it_holds",
        "test_rows_of_a_cache_move_with_what_it_knows",
        "test_prompt_lookup_is_greedy_decoding",
        "test_a_failed_call_leaves_the_next_one_right",
        "test_static_caches_are_refused",
        "test_chunked_prefill_is_refused",
    ],
)
def test_the_contract_inside(row: Row, any_model: Any, name: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_contract, "SELECT", spec)
    getattr(test_contract, name)(row, any_model)


@pytest.mark.parametrize("spec", INSIDE)
def test_a_second_image_in_a_second_turn(row: Row, any_model: Any, spec: str) -> None:
    test_contract.test_a_second_image_in_a_second_turn(row, any_model, spec)


@pytest.mark.parametrize("spec", INSIDE)
@pytest.mark.parametrize("prompts", [(CHAT,), BATCH])
def test_decoding_with_a_cache_is_forward_without(
    row: Row, any_model: Any, prompts: tuple[str, ...], spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_contract, "SELECT", spec)
    test_contract.test_decoding_with_a_cache_is_forward_without(row, any_model, prompts)


@pytest.mark.parametrize("spec", INSIDE)
def test_attention_implementations_agree(
    row: Row, plain_backend: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_contract, "SELECT", spec)
    test_contract.test_attention_implementations_agree(row, plain_backend)


@CHECKPOINTING_INSIDE
@pytest.mark.parametrize("spec", INSIDE)
def test_gradient_checkpointing_changes_nothing(row: Row, spec: str) -> None:
    test_contract.test_gradient_checkpointing_changes_nothing(row, spec)


@pytest.mark.parametrize("keep", [1, 3])
def test_logits_to_keep(row: Row, model: Any, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_contract, "SELECT", INSIDE[0])
    test_contract.test_logits_to_keep(row, model, keep)


@pytest.mark.parametrize("prompts", [(CHAT,), pytest.param(BATCH, marks=BEAMS_OF_SEVERAL_IMAGES)])
@torch.no_grad()
def test_beams(row: Row, any_model: Any, prompts: tuple[str, ...]) -> None:
    """The score of the best beam is the dense model's, with the dropped columns hidden."""
    inputs = row.inputs(*prompts)
    with apply(any_model, f"{SELECT}@1") as run:
        out = any_model.generate(
            **inputs, max_new_tokens=5, num_beams=3, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
    answer = out.sequences[:, -5:]
    keep = torch.cat([keeps_of(row, any_model, inputs, SELECT), torch.ones_like(answer).bool()], dim=1)
    oracle = masked_inside(any_model, row.with_text(inputs, answer), {1: keep}).logits[:, -6:-1]
    scores = oracle.float().log_softmax(-1).gather(-1, answer[..., None]).squeeze(-1).sum(dim=1) / 5
    torch.testing.assert_close(out.sequences_scores, scores, atol=1e-4, rtol=1e-4)
    assert len(run.report().images) == sum(piece[0] != "t" for prompt in prompts for piece in prompt.split())


@BEAMS_OF_SEVERAL_IMAGES
@pytest.mark.parametrize("looks", [True, False])
def test_beams_without_a_cache_follow_the_plan_of_their_sample(
    row: Row, model: Any, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second token on beams differ in what they have said, not in the prompt that the plan was made for."""
    monkeypatch.setattr("foveate.engine.decoder.on_cpu", lambda x: looks)
    inputs, beams = row.inputs(*BATCH), {"num_beams": 3}
    with apply(model, "fastv:6@1+pool:0.5@2"):
        expected = generate(model, inputs, 4, **beams)
        assert torch.equal(generate(model, inputs, 4, **beams, use_cache=False), expected)


@torch.no_grad()
def test_a_long_conversation(row: Row, model: Any) -> None:
    """Three turns with images, a batch of four, two hundred tokens decoded: each layer's cache at every step."""
    turns = (
        ("t6 A t5", "t2 B t9 C t3", "t11", "t3 C t4"),
        ("t3' B t4", "t7'", "t2 A t2", "t9'"),
        ("t5'", "t4' C t3", "t6'", "t2 B t2"),
    )
    if not row.blocks_after_cache:
        turns = (turns[0], ("t3' t4", "t7'", "t2 t2'", "t9'"), ("t5'", "t4' t3", "t6'", "t2 t2'"))
    cache = DynamicCache(config=model.config.get_text_config())
    mask = torch.empty(4, 0, dtype=torch.int64)
    lengths = [0, 0, 0]
    generator = torch.Generator().manual_seed(0)
    with apply(model, "random:6@1+pool:0.5@2") as run:
        for prompts in turns:
            before = len(run.report().images)
            inputs = row.inputs(*prompts)
            mask = torch.cat([mask, inputs["attention_mask"]], dim=1)
            model(**inputs | {"attention_mask": mask}, **{CACHE: cache})
            images = list(run.report().images[before:])
            texts = [row.text(prompt) for prompt in prompts]
            for layer in range(3):
                fresh = [
                    text + sum(images[n].layers[layer] for n in numbers)
                    for text, numbers in zip(texts, image_numbers(prompts))
                ]
                lengths[layer] += max(fresh)
            assert [cache.get_seq_length(layer) for layer in range(3)] == lengths
            for _ in range(67):
                token = torch.randint(20, 120, (4, 1), generator=generator)
                mask = torch.cat([mask, mask.new_ones(4, 1)], dim=1)
                out = model(input_ids=token, attention_mask=mask, **{CACHE: cache})
                lengths = [length + 1 for length in lengths]
                assert [cache.get_seq_length(layer) for layer in range(3)] == lengths
    assert out.logits.isfinite().all()


def image_numbers(prompts: tuple[str, ...]) -> list[list[int]]:
    """Which images of a batch stand in each prompt."""
    numbers = iter(range(100))
    return [[next(numbers) for piece in prompt.split() if piece[0] != "t"] for prompt in prompts]


# 8. Training.


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_are_the_masked_models(row: Row, side: str) -> None:
    model = row.model()
    inputs = test_contract.labelled(row, *BATCH, side=side)
    labels = inputs.pop("labels")
    given = {**inputs, "position_ids": dense_positions(model, inputs)}
    keep = keeps_of(row, model, inputs, SELECT)

    def loss_and_gradients(loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, gradients = loss_and_gradients(masked_inside(model, inputs, {1: keep}, labels=labels).loss)
    with apply(model, f"{SELECT}@1"):
        out = model(**given, labels=labels, use_cache=False)
        assert out.logits.shape[:2] == inputs["input_ids"].shape
        loss, mine = loss_and_gradients(out.loss)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert mine.keys() == gradients.keys()
    for name in gradients:
        torch.testing.assert_close(
            mine[name], gradients[name], atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


# 7. The numbers agree.


@torch.no_grad()
def test_the_cache_of_each_layer_is_as_long_as_the_plan_says(row: Row, any_model: Any) -> None:
    inputs = row.inputs(*BATCH)
    with apply(any_model, "random:6+pool:3@1+stride:1@2") as run:
        cache = cache_of_output(any_model(**inputs, use_cache=True))
    images = run.report().images
    for layer, each in enumerate((6, 3, 1)):
        counts = [image.layers[layer] for image in images]
        longest = max(row.text(BATCH[0]) + counts[0], row.text(BATCH[1]) + counts[1] + counts[2])
        assert cache.get_seq_length(layer) == longest
        for image in images:
            assert each <= image.layers[layer] <= each + image.structural
            assert image.structural or image.layers[layer] == each


@pytest.mark.parametrize("spec", ["pool:6/3@1,2", "random:0.5/2@1,2", "vtw@2", "pool:0.5@1,2"])
@torch.no_grad()
def test_budgets_are_told_before_the_model_runs(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    family = family_of(model)
    expected = [tokens_per_layer(spec, family, layout) for layout in family.layouts(inputs)]
    with apply(model, spec) as run:
        model(**inputs)
    for image, layers in zip(run.report().images, expected, strict=True):
        assert image.structural or image.layers == layers
        assert all(mine <= most for mine, most in zip(image.layers, layers))


@torch.no_grad()
def test_a_mean_over_layers(row: Row, model: Any) -> None:
    arriving = row.pictures["A"].content
    mean = round(arriving * 0.6)
    with apply(model, f"pool:mean={mean}@1,2") as run:
        model(**row.inputs(CHAT))
    (image,) = run.report().images
    first, second, third = image.layers
    assert first - image.structural == arriving
    if not image.structural:
        assert first > second > third
        assert abs(image.mean_over_layers - mean) <= 1


def test_fractions_are_of_what_arrives(row: Row, model: Any) -> None:
    layout = Layout((Segment(1, 24, 24),))
    family = family_of(model)
    assert tokens_per_layer("pool:0.5@1,2", family, layout) == (576, 288, 144)
    assert tokens_per_layer("cluster:128+pool:0.5@2", family, layout) == (128, 128, 64)
    assert tokens_per_layer("pool:300/110@1,2", family, layout) == (576, 300, 110)
    assert tokens_per_layer("pool:mean=336@1,2", family, layout) == (576, 288, 144)
    with pytest.raises(KeepError, match=r"the mean over layers can be 192\.7 to 576"):
        tokens_per_layer("pool:mean=64@1,2", family, layout)


@torch.no_grad()
def test_dropping_every_visual_token(row: Row, any_model: Any) -> None:
    """From a layer on there is text alone: the dense model's, with all visual columns hidden from there."""
    inputs = row.inputs(*BATCH)
    text = ~row.is_image(inputs["input_ids"])
    with apply(any_model, "vtw@1") as run:
        out = any_model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    answer = out.sequences[:, -3:]
    keep = torch.cat([text, torch.ones_like(answer).bool()], dim=1)
    oracle = masked_inside(any_model, row.with_text(inputs, answer), {1: keep}).logits
    torch.testing.assert_close(torch.stack(out.logits, dim=1), oracle[:, -4:-1].float(), atol=1e-4, rtol=1e-4)
    assert all(image.layers[1:] == (0, 0) for image in run.report().images)
    assert cache_of_output(out).get_seq_length(2) == max(map(row.text, BATCH)) + 2


def test_a_prompt_of_nothing_but_an_image_must_keep_something(row: Row, model: Any) -> None:
    ids = torch.tensor([row.bare(row.pictures["A"])])
    inputs = {**row.pixels("A"), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with apply(model, "vtw@1"), pytest.raises(FoveateError, match="leaves a row without any token"):
        model(**inputs)


@pytest.mark.parametrize(
    ("spec", "turn", "message"),
    [
        ("random:20@1", "t3 B t4", r"random:20 at layer 1: keep 20 is more than the \d+ tokens there are"),
        ("random:0.5@1+random:12@2", "t3 B t4", r"random:12 at layer 2: keep 12 is more than the \d+ tokens"),
        ("sparsevlm:0.5@2", "B", "reads the question, and an image came without any text"),
        ("random:0.5@1+vtw@2", "B", "vtw at layer 2 leaves a row without any token"),
    ],
)
@torch.no_grad()
def test_what_cannot_be_is_refused_before_a_layer_has_run(spec: str, turn: str, message: str) -> None:
    """So the conversation goes on as if the turn hadn't come."""
    (row,) = (row for row in ROWS if row.name == "qwen2_5_vl")
    model = row.model()

    def conversation(*failing: str) -> Tensor:
        cache = DynamicCache(config=model.config.get_text_config())
        model(**row.inputs("t6 A t5"), **{CACHE: cache})
        for prompt in failing:
            with pytest.raises(FoveateError, match=message):
                model(**{**row.inputs(prompt), "attention_mask": None}, **{CACHE: cache})
        return model(input_ids=torch.tensor([[40, 41, 42]]), **{CACHE: cache}).logits

    with apply(model, spec):
        assert torch.equal(conversation(turn), conversation())


@pytest.mark.parametrize("spec", ["random:6@1", "random:9@1+pool:0.5@2"])
@torch.no_grad()
def test_a_cache_that_a_failed_call_has_half_filled_is_refused(spec: str) -> None:
    (row,) = (row for row in ROWS if row.name == "llava")
    model = row.model()
    inputs = {**row.inputs("t6 A t5"), "attention_mask": None}

    def fail(*_: Any) -> None:
        raise MemoryError

    with apply(model, spec):
        for turn in (1, 2):
            cache = DynamicCache()
            if turn == 2:
                model(**inputs, **{CACHE: cache})
            handle = family_of(model).decoder_layers[turn].register_forward_pre_hook(fail)
            with pytest.raises(MemoryError):
                model(**inputs, **{CACHE: cache})
            handle.remove()
            with pytest.raises(FoveateError, match="a call on it failed inside the decoder"):
                model(input_ids=torch.tensor([[40, 41, 42]]), **{CACHE: cache})


# What is refused.


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("random:6@3", "this decoder has 3 layers"),
        ("random:6@1,1", "names layer 1 twice"),
        ("random:6@1+pool:3@1", "names layer 1 twice"),
        ("pool:mean=9@1+pool:0.5@2", "must be the only one inside the decoder"),
        ("random:6@2,1", "comes after a step that acts later"),
        ("resize:0.5@1", "cannot act at @1"),
        ("cluster:8+pool:16@1", "keep 16 is more than the 8 tokens"),
        ("random:8@1+pool:16@2", "keep 16 is more than the 8 tokens"),
        ("cluster:8+pool:mean=20@1", "a mean of 20 tokens over layers, and no more than 8 arrive"),
    ],
)
def test_layers_that_cannot_be(row: Row, model: Any, spec: str, message: str) -> None:
    with pytest.raises(FoveateError, match=message), apply(model, spec):
        pass


def test_a_static_cache_is_refused_in_forward(row: Row, model: Any) -> None:
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128)
    with apply(model, "random:6@1"), pytest.raises(FoveateError, match="a static cache has one length"):
        model(**row.inputs(CHAT), **{CACHE: cache})


def sliding(window: int, decoder: str = "Mistral", **facts: Any) -> Any:
    """A LLaVA whose decoder has sliding windows in all layers, or in some."""
    import transformers
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=84, patch_size=14
    )
    text = getattr(transformers, f"{decoder}Config")(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        **facts,
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=5))
    model.generation_config.eos_token_id = None
    return model.eval()


@torch.no_grad()
def test_attention_is_read_up_to_the_very_window() -> None:
    # A layer with a window keeps one key less than it sees.
    (row,) = (row for row in ROWS if row.name == "llava")
    inputs = row.inputs(CHAT)
    length = inputs["input_ids"].shape[1]
    kept = []
    for window in (length, length + 20):
        model = sliding(window)
        with apply(model, "fastv:6@1"):
            kept.append(logits(model, inputs | {"use_cache": True}))
    torch.testing.assert_close(*kept)


@torch.no_grad()
def test_layers_that_turn_by_different_angles() -> None:
    """Each layer behind a step takes its own rotary table."""
    (row,) = (row for row in ROWS if row.name == "llava")
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model = sliding(64, "Gemma3Text", layer_types=kinds, head_dim=16)
    inputs = row.inputs(CHAT)
    with apply(model, "random:6@1"):
        short = logits(model, inputs)
    keep = keeps_of(row, model, inputs, SELECT)
    torch.testing.assert_close(short[keep], masked_inside(model, inputs, {1: keep}).logits[keep], atol=1e-5, rtol=1e-4)


def test_layers_with_a_memory_of_their_own_are_refused(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    model = row.model()
    monkeypatch.setattr(Decoder, "layer_kinds", lambda self: ("full_attention", "full_attention", "linear_attention"))
    with pytest.raises(FoveateError, match="layers of linear_attention"), apply(model, "random:6@1"):
        pass


def test_compress_sends_depth_to_apply(row: Row, model: Any) -> None:
    with pytest.raises(FoveateError, match=r"use foveate\.apply"):
        compress(model, row.inputs(CHAT), "random:6@1")


# Decoding with drafts: the first call holds guesses behind the prompt, and wrong ones are taken back.


@pytest.mark.parametrize("spec", [SELECT, f"{SELECT}@1", "fastv:4@2", "pool:0.5:positions=pack@1,2"])
def test_assisted_decoding_is_greedy_decoding(row: Row, model: Any, spec: str) -> None:
    if family_of(model).images_see_question:
        pytest.skip("generate lets the prompt see the first drafts, in the dense model, too")
    inputs = row.inputs(CHAT)
    with apply(model, spec):
        greedy = generate(model, inputs, 12)
        drafts = generate(model, inputs, 12, assistant_model=row.model())
    assert torch.equal(drafts, greedy)


def test_a_cache_cropped_into_its_images_is_refused(row: Row, model: Any) -> None:
    with apply(model, f"{SELECT}@1"):
        inputs = row.inputs(CHAT)
        cache = cache_of_output(model(**inputs, use_cache=True))
        columns = row.is_image(inputs["input_ids"])[0]
        cache.crop(int(columns.nonzero().max()) - len(columns))
        with pytest.raises(FoveateError, match="cropped into its compressed prompt"):
            model(input_ids=torch.full((1, 1), 33), **{CACHE: cache})


@torch.no_grad()
def test_a_cache_cropped_behind_its_images_goes_on(row: Row, any_model: Any) -> None:
    inputs = row.inputs(CHAT)
    more = torch.tensor([[40, 41, 42]])
    with apply(any_model, "random:6@1+pool:0.5:positions=pack@2"):
        cache = cache_of_output(any_model(**row.with_text(inputs, more), use_cache=True))
        cache.crop(-3)
        expected = cache_of_output(any_model(**inputs, use_cache=True))
        other = torch.tensor([[50, 51]])
        torch.testing.assert_close(
            any_model(input_ids=other, **{CACHE: cache}).logits,
            any_model(input_ids=other, **{CACHE: expected}).logits,
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("spec", [SELECT, "random:6@1+pool:0.5:positions=pack@2"])
@torch.no_grad()
def test_a_later_turn_with_a_mask_can_be_cropped(row: Row, any_model: Any, spec: str) -> None:
    inputs = row.inputs("t6 A t5", "t2 B t9 A t3")
    length = inputs["input_ids"].shape[1]

    def turn(cache: Any, ids: list[list[int]], pads: int = 0) -> torch.Tensor:
        mask = torch.ones(2, length + len(ids[0]), dtype=torch.long)
        mask[:, :length] = inputs["attention_mask"]
        mask[0, length : length + pads] = 0
        return any_model(input_ids=torch.tensor(ids), attention_mask=mask, **{CACHE: cache}).logits

    first, other = [[40, 41, 42], [43, 44, 45]], [[50, 51], [52, 53]]
    with apply(any_model, spec):
        cache = cache_of_output(any_model(**inputs, use_cache=True))
        expected = turn(copy.deepcopy(cache), other)
        padded = copy.deepcopy(cache)
        turn(cache, first)
        cache.crop(-3)
        torch.testing.assert_close(turn(cache, other), expected, atol=1e-5, rtol=1e-5)
        turn(padded, first, pads=1)
        padded.crop(-3)
        with pytest.raises(FoveateError, match="cropped into"):
            turn(padded, other)


@torch.no_grad()
def test_a_compiled_decoder_is_compiled_once_for_all_steps() -> None:
    """Layers of several lengths, each longer with every token: new code for none of them."""
    (row,) = (row for row in ROWS if row.name == "llava")
    model, inputs = row.model(), row.inputs(*BATCH)
    compiled: list[Any] = []

    def count(graph: Any, examples: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    def answer() -> tuple[Tensor, list[int]]:
        cache, mask = DynamicCache(config=model.config.get_text_config()), inputs["attention_mask"]
        out = model(**inputs, **{CACHE: cache})
        logits, counts = [], []
        for _ in range(8):
            mask = torch.cat([mask, mask.new_ones(len(BATCH), 1)], dim=1)
            out = model(input_ids=out.logits[:, -1:].argmax(-1), attention_mask=mask, **{CACHE: cache})
            logits.append(out.logits)
            counts.append(len(compiled))
        return torch.cat(logits, dim=1), counts

    torch._dynamo.reset()
    # Each layer is code of its own; the limit is for all of them together.
    with torch._dynamo.config.patch(recompile_limit=64), apply(model, "random:6@1+pool:0.5:positions=pack@2"):
        expected, _ = answer()
        for layer in family_of(model).decoder_layers[1:]:
            layer.compile(backend=count)
        got, counts = answer()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    # The second token tells the compiler that lengths change.
    assert counts[0] > 0
    assert counts[2:] == [counts[2]] * 6
