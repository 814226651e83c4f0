"""What holds for every family: the points of the contract, at @input."""

import copy
import inspect
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import FAMILIES, PAD, Row
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, Trainer, TrainingArguments
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from versions import BEAMS_OF_SEVERAL_IMAGES, CACHE, CHUNKS, cache_of_output, set_checkpointing

from foveate.engine import apply, compress, encode, timed
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.schedule import tokens_between
from foveate.spec import parse
from foveate.transformers_api import chunks_lose_images

CHAT = "t6 A t5"
BATCH = ("t6 A t5", "t2 B t9 C t3", "t11", "t3 C t4")
SELECT = "random:6"
METHODS = (
    "random:6", "stride:6", "pool:6", "pool2d:6", "cluster:6", "cls:6", "cdpruner:6", "cluster:6@features",
    "cls:5@features",
)  # fmt: skip


@torch.no_grad()
def logits(model: Any, inputs: Any) -> Tensor:
    return model(**inputs).logits


def generate(model: Any, inputs: Any, count: int = 6, **options: Any) -> Tensor:
    ids = model.generate(**inputs, max_new_tokens=count, do_sample=False, **options)
    return ids[:, inputs["input_ids"].shape[1] :]


def dense_positions(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The positions that the dense model gives every column in `generate`."""
    mask = inputs["attention_mask"]
    if family_of(model).position_axes == 1:
        return (mask.cumsum(1) - 1).clamp(min=0)
    takes = inspect.signature(model.model.get_rope_index).parameters
    names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    given = {name: inputs.get(name) for name in names if name in takes}
    positions, _ = model.model.get_rope_index(inputs["input_ids"], attention_mask=mask, **given)
    return positions.long()


def masked(model: Any, inputs: dict[str, Tensor], keep: Tensor) -> dict[str, Any]:
    """Dense inputs in which the dropped columns cannot be seen."""
    positions = inputs["position_ids"] if "position_ids" in inputs else dense_positions(model, inputs)
    return {**inputs, "attention_mask": inputs["attention_mask"] * keep, "position_ids": positions}


def by_hand(model: Any, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
    """Logits `(B, S, V)` of the model fed the kept embeddings and positions, row by row; 0 at other columns."""
    asked: dict[str, Any] = {}

    def remember(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        asked.update(kwargs)

    handle = family_of(model).decoder.register_forward_pre_hook(remember, with_kwargs=True)
    whole = masked(model, inputs, torch.ones_like(keep))
    model(**whole, use_cache=False)
    handle.remove()
    positions = whole["position_ids"]
    types = {name: inputs[name] for name in ("token_type_ids", "mm_token_type_ids") if name in inputs}
    rows = []
    for row, columns in enumerate(keep & inputs["attention_mask"].bool()):
        embedded = asked["inputs_embeds"][row : row + 1, columns]
        found = model(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.int64),
            position_ids=positions[..., row : row + 1, columns],
            use_cache=False,
            **{name: value[row : row + 1, columns] for name, value in types.items()},
        ).logits
        empty = found.new_zeros(columns.shape[0], found.shape[-1])
        rows.append(empty.index_copy(0, columns.nonzero()[:, 0], found[0]))
    return torch.stack(rows)


def without(row: Row, model: Any, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
    """Logits `(B, S, V)` of the dense model without some columns: `keep` `(B, S)`. Those columns' own mean nothing."""
    if not row.full_attention:
        return by_hand(model, inputs, keep)
    return model(**masked(model, inputs, keep)).logits


def kept_columns(row: Row, inputs: dict[str, Tensor], short: Any) -> Tensor:
    """`(B, S)` bool, worked out from the images' slots alone."""
    keep = ~row.is_image(inputs["input_ids"])
    places = (~keep).flatten().nonzero().squeeze(1)
    offset = 0
    for image in short.images:
        keep.view(-1)[places[offset + image.slot]] = True
        offset += image.before
    return keep


# 0. The test can see.


def test_swapping_the_image_changes_the_logits(row: Row, any_model: Any) -> None:
    inputs = row.inputs(CHAT)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0) * -1}
    assert (logits(any_model, inputs)[:, -1] - logits(any_model, other)[:, -1]).abs().max() > 1e-2
    with apply(any_model, SELECT):
        assert (logits(any_model, inputs)[:, -1] - logits(any_model, other)[:, -1]).abs().max() > 1e-2


def test_dropping_tokens_changes_the_logits(row: Row, any_model: Any) -> None:
    inputs = row.inputs(CHAT)
    dense = logits(any_model, inputs)[:, -1]
    with apply(any_model, SELECT):
        assert (logits(any_model, inputs)[:, -1] - dense).abs().max() > 1e-2


# 1. Keep everything = the untouched model.


@pytest.mark.parametrize("spec", ["random:1.0", "pool:1.0", "cls:1.0:positions=keep@features"])
def test_keeping_everything_is_the_untouched_model(row: Row, any_model: Any, spec: str) -> None:
    for inputs in (row.inputs(CHAT), row.inputs(*BATCH)):
        dense, ids = logits(any_model, inputs), generate(any_model, inputs)
        with apply(any_model, spec):
            assert torch.equal(generate(any_model, inputs), ids)
            real = inputs["attention_mask"].bool()
            torch.testing.assert_close(logits(any_model, inputs)[real], dense[real], atol=row.rounding, rtol=0)


def test_keeping_everything_is_bit_equal_without_padding(row: Row, any_model: Any) -> None:
    inputs = row.inputs(CHAT)
    dense = logits(any_model, inputs)
    with apply(any_model, "random:1.0"):
        assert torch.equal(logits(any_model, inputs), dense)


# 2. Dropping = masking.


@pytest.mark.parametrize("spec", [SELECT, "stride:6", "cls:6"])
def test_dropping_is_masking(row: Row, any_model: Any, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    given = {**inputs, "position_ids": dense_positions(any_model, inputs)}
    short = compress(any_model, given, f"{spec}:positions=keep")
    keep = kept_columns(row, inputs, short)
    with torch.no_grad():
        oracle = without(row, any_model, inputs, keep)
    real = keep & inputs["attention_mask"].bool()
    with apply(any_model, f"{spec}:positions=keep"):
        full = logits(any_model, given)
    assert full.shape == oracle.shape
    torch.testing.assert_close(full[real], oracle[real], atol=1e-5, rtol=1e-5)
    cut = logits(any_model, short)
    torch.testing.assert_close(cut[short["attention_mask"].bool()], oracle[real], atol=1e-5, rtol=1e-5)


# 3. Positions.


def test_kept_tokens_keep_their_positions(row: Row, model: Any) -> None:
    inputs = row.inputs(*BATCH)
    short = compress(model, inputs | {"position_ids": dense_positions(model, inputs)}, f"{SELECT}:positions=keep")
    keep = kept_columns(row, inputs, short) & inputs["attention_mask"].bool()
    expected = dense_positions(model, inputs)[..., keep]
    assert torch.equal(short["position_ids"][..., short["attention_mask"].bool()], expected)


def test_positions_made_here_are_the_models_own(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    short = compress(model, inputs, f"{SELECT}:positions=keep")
    keep = kept_columns(row, inputs, short)
    assert torch.equal(short["position_ids"].flatten(), dense_positions(model, inputs)[..., keep].flatten())


@pytest.mark.parametrize("given", [True, False])
def test_packed_positions_have_no_gaps(row: Row, model: Any, given: bool) -> None:
    inputs = row.inputs(CHAT)
    if given:
        inputs["position_ids"] = dense_positions(model, inputs)
    short = compress(model, inputs, f"{SELECT}:positions=pack")
    positions = short["position_ids"].reshape(-1, short["input_ids"].shape[1])
    assert torch.equal(positions, torch.arange(positions.shape[1]).expand_as(positions))


def test_packed_decoding_goes_on_without_gaps(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    short = compress(model, inputs, f"{SELECT}:positions=pack")
    with apply(model, f"{SELECT}:positions=pack"):
        under_apply = generate(model, inputs)
    assert torch.equal(generate(model, short), under_apply)


# 4. A left-padded batch = its samples alone.


@pytest.mark.parametrize("spec", ["random:6", "cls:0.3", "cluster:6", "pool:0.25:positions=keep"])
def test_a_batch_is_its_samples_alone(row: Row, any_model: Any, spec: str) -> None:
    with apply(any_model, spec):
        batch = any_model.generate(
            **row.inputs(*BATCH), max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        for number, prompt in enumerate(BATCH):
            alone = any_model.generate(
                **row.inputs(prompt),
                max_new_tokens=5,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            for step, (both, one) in enumerate(zip(batch.logits, alone.logits)):
                torch.testing.assert_close(both[number], one[0], atol=1e-4, rtol=1e-4, msg=f"{prompt}, step {step}")
            assert torch.equal(batch.sequences[number, -5:], alone.sequences[0, -5:])


def test_a_batch_that_only_the_cut_makes_ragged(row: Row, any_model: Any) -> None:
    """No padding comes in, so `generate` drops the mask; the rows are of different length all the same."""
    prompts = ("t6 A t5", f"t{6 + row.count('A') + 5}")
    with apply(any_model, SELECT):
        batch = generate(any_model, row.inputs(*prompts))
        for number, prompt in enumerate(prompts):
            assert torch.equal(batch[number], generate(any_model, row.inputs(prompt))[0])


# 5. Decoding, attention implementations, turns.


@pytest.mark.parametrize("prompts", [(CHAT,), BATCH])
def test_decoding_with_a_cache_is_forward_without(row: Row, any_model: Any, prompts: tuple[str, ...]) -> None:
    inputs = row.inputs(*prompts)
    with apply(any_model, SELECT):
        out = any_model.generate(
            **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        answer = out.sequences[:, -5:]
        whole = row.with_text(inputs, answer)
        whole["position_ids"] = dense_positions(any_model, whole)
        forward = any_model(**whole, use_cache=False).logits[:, -6:-1]
        without = any_model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=False)
    torch.testing.assert_close(torch.stack(out.logits, dim=1), forward.float(), atol=1e-4, rtol=1e-4)
    assert torch.equal(without, out.sequences)


def plain_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention that is told of padding by a 2-D mask, as flash attention is."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    if kwargs.get("is_causal", getattr(module, "is_causal", False)):
        columns = torch.arange(key.shape[2])
        visible = columns[None] <= (columns[-query.shape[2] :])[:, None]
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if attention_mask is not None and module.is_causal:
        assert attention_mask.ndim == 2
        scores = scores.masked_fill(~attention_mask[:, None, None].bool(), torch.finfo(scores.dtype).min)
    elif attention_mask is not None and attention_mask.ndim == 2:
        scores = scores.masked_fill(~attention_mask[:, None, None].bool(), torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        # An encoder that makes its own.
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


@pytest.fixture
def plain_backend():
    ALL_ATTENTION_FUNCTIONS.register("plain", plain_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("plain", flash_attention_mask)
    yield "plain"
    del ALL_ATTENTION_FUNCTIONS._global_mapping["plain"]
    del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping["plain"]


def test_attention_implementations_agree(row: Row, plain_backend: str) -> None:
    results = []
    # A backend of 2-D masks drops what isn't causal, also in the dense model.
    for attention in ("eager", "sdpa", *([] if row.types else [plain_backend])):
        model = row.model(attention)
        with apply(model, SELECT):
            out = model.generate(
                **row.inputs(*BATCH),
                max_new_tokens=4,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        results.append(torch.stack(out.logits))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_second_turn_is_the_whole_conversation(row: Row, any_model: Any) -> None:
    """Token by token through `forward`, and once more through `generate` with the whole conversation and a cache."""
    first, second = row.inputs(CHAT), row.inputs("t7'")["input_ids"]
    whole = row.with_text(row.inputs(CHAT), second)
    whole_text = {name: whole[name] for name in ("input_ids", "attention_mask")}
    types = {name: whole[name] for name in ("token_type_ids", "mm_token_type_ids") if name in whole}
    with apply(any_model, SELECT):
        expected = any_model(**whole).logits[:, -7:]
        cache = cache_of_output(any_model(**first, use_cache=True))
        got = any_model(input_ids=second, **{CACHE: cache}).logits
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)

        cache = cache_of_output(any_model(**first, use_cache=True))
        with_mask = any_model(
            input_ids=second, attention_mask=torch.ones_like(whole["input_ids"]), **{CACHE: cache}
        ).logits
        torch.testing.assert_close(with_mask, expected, atol=1e-4, rtol=1e-4)

        # A caller who counts what the cache holds.
        cache = cache_of_output(any_model(**first, use_cache=True))
        held = torch.arange(cache.get_seq_length(), cache.get_seq_length() + 7)[None]
        counted = any_model(input_ids=second, position_ids=held, **{CACHE: cache}).logits
        torch.testing.assert_close(counted, expected, atol=1e-4, rtol=1e-4)

        answer = generate(any_model, whole, 4)
        for extra in ({}, types):
            cache = cache_of_output(any_model(**first, use_cache=True))
            ids = any_model.generate(**whole_text, **{CACHE: cache}, max_new_tokens=4, do_sample=False, **extra)
            assert torch.equal(ids[:, -4:], answer)


@CHUNKS
@torch.no_grad()
def test_a_second_turn_in_chunks(row: Row, model: Any) -> None:
    """A chunk may hold new tokens and known ones; one of known tokens alone is refused."""
    first = row.inputs(CHAT)
    whole = row.with_text(first, row.inputs("t7'")["input_ids"])
    text = {name: whole[name] for name in ("input_ids", "attention_mask")}
    with apply(model, SELECT):
        answer = generate(model, whole, 4)
        cache = cache_of_output(model(**first, use_cache=True))
        assert torch.equal(generate(model, text, 4, **{CACHE: cache}, prefill_chunk_size=row.count("A") + 1), answer)
        cache = cache_of_output(model(**first, use_cache=True))
        with pytest.raises(FoveateError, match="holds already"):
            generate(model, text, 4, **{CACHE: cache}, prefill_chunk_size=2)


@torch.no_grad()
def test_a_mask_that_counts_what_the_cache_holds_is_refused(row: Row, model: Any) -> None:
    """By its shape it could be that of `generate`, which passes known tokens again: these are all new."""
    first = row.inputs(CHAT)
    length = first["input_ids"].shape[1]
    with apply(model, SELECT):
        cache = cache_of_output(model(**first, use_cache=True))
        held = cache.get_seq_length()
        more = row.inputs(f"t{length - held + 7}")["input_ids"]
        mask = torch.ones(1, held + more.shape[1], dtype=torch.long)
        with pytest.raises(FoveateError, match=f"the conversation so far has {length}"):
            model(input_ids=more, attention_mask=mask, **{CACHE: cache})


def second_turns(row: Row, *turns: str) -> tuple[str, ...]:
    """Turns of text for the rows of a batch: of one length where padding between turns isn't neutral."""
    return turns if row.full_attention else tuple(f"t5'{number}" for number in range(len(turns)))


@torch.no_grad()
def test_a_second_turn_of_a_padded_batch(row: Row, any_model: Any) -> None:
    first = row.inputs(*BATCH)
    turns = second_turns(row, "t7'", "t3", "t5", "t6'")
    second = row.inputs(*turns)
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    with apply(any_model, SELECT):
        given = dense_positions(any_model, first)
        cache = cache_of_output(any_model(**first, position_ids=given, use_cache=True))
        out = any_model(input_ids=second["input_ids"], attention_mask=mask, **{CACHE: cache})
        following = any_model(
            input_ids=torch.full((4, 1), 33),
            **{CACHE: cache_of_output(out)},
            attention_mask=torch.cat([mask, mask.new_ones(4, 1)], dim=1),
        ).logits[:, -1]
        for number, (one, two) in enumerate(zip(BATCH, turns)):
            alone = row.inputs(one)
            for name in family_of(any_model).memories:  # a dense text-only call trips over what another call left here
                setattr(family_of(any_model).core, name, None)
            first = any_model(
                **alone,
                position_ids=dense_positions(any_model, alone) if "pixel_values" in alone else None,
                use_cache=True,
            )
            cache = cache_of_output(first)
            any_model(input_ids=row.inputs(two)["input_ids"], **{CACHE: cache})
            expected = any_model(input_ids=torch.full((1, 1), 33), **{CACHE: cache}).logits[0, -1]
            torch.testing.assert_close(following[number], expected, atol=1e-4, rtol=1e-4)


def in_two_turns(row: Row, model: Any, first: tuple[str, ...], second: tuple[str, ...]) -> Tensor:
    """The answers to a batch of prompts, and to text after these: `(B, 7)`."""
    inputs, more = row.inputs(*first), row.inputs(*second)
    cache = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([cache.sequences, more["input_ids"]], dim=1)
    mask = torch.cat(
        [inputs["attention_mask"], torch.ones_like(cache.sequences[:, -3:]), more["attention_mask"]], dim=1
    )
    whole = model.generate(
        input_ids=ids, attention_mask=mask, **{CACHE: cache_of_output(cache)}, max_new_tokens=4, do_sample=False
    )
    return torch.cat([cache.sequences[:, -3:], whole[:, -4:]], dim=1)


def test_a_second_turn_of_a_padded_batch_in_generate(row: Row, any_model: Any) -> None:
    firsts, seconds = ("t6 A t5", "t2 B t9 C t3", "t3 C t4"), second_turns(row, "t7'", "t3", "t5")
    with apply(any_model, SELECT):
        together = in_two_turns(row, any_model, firsts, seconds)
        for number, (first, second) in enumerate(zip(firsts, seconds)):
            assert torch.equal(together[number], in_two_turns(row, any_model, (first,), (second,))[0])


def test_padding_between_turns_is_what_it_is_to_the_dense_model(row: Row, model: Any) -> None:
    turns = (BATCH, ("t7'", "t3", "t5", "t6'"))
    dense = in_two_turns(row, model, *turns)
    with apply(model, "random:1.0"):
        assert torch.equal(in_two_turns(row, model, *turns), dense)


@torch.no_grad()
def later_image_is_refused(row: Row, model: Any) -> None:
    with apply(model, SELECT):
        cache = cache_of_output(model(**row.inputs(CHAT), use_cache=True))
        later = row.inputs("t2 B t4")
        later["attention_mask"] = torch.ones(1, len(row.ids(CHAT + " t2 B t4")), dtype=torch.int64)
        with pytest.raises(FoveateError, match="look in both directions"):
            model(**later, **{CACHE: cache})


@torch.no_grad()
@pytest.mark.parametrize("spec", [SELECT, f"{SELECT}:positions=pack"])
def test_a_second_image_in_a_second_turn(row: Row, any_model: Any, spec: str) -> None:
    if not row.blocks_after_cache:
        later_image_is_refused(row, any_model)
        return
    if row.images_see_later_ones:
        # The first image of the whole conversation has seen the second one, and here it can't.
        test_an_image_after_a_text_only_turn(row, any_model)
        return
    whole = row.inputs("t6 A t5 t2 B t4")
    first, second = row.inputs("t6 A t5"), row.inputs("t2 B t4")
    tail = whole["input_ids"].shape[1] - first["input_ids"].shape[1]
    second["input_ids"] = whole["input_ids"][:, -tail:]
    second["attention_mask"] = torch.ones_like(whole["input_ids"])
    with apply(any_model, spec) as run:
        expected = any_model(**whole).logits[:, -4:]
        cache = cache_of_output(any_model(**first, use_cache=True))
        got = any_model(**second, **{CACHE: cache}).logits[:, -4:]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        next_token = torch.full((1, 1), 33)
        more = any_model(input_ids=next_token, **{CACHE: cache}).logits
        longer = row.with_text(whole, next_token)
        torch.testing.assert_close(more[:, -1], any_model(**longer).logits[:, -1], atol=1e-4, rtol=1e-4)
    assert len(run.report().images) == 6


@torch.no_grad()
def test_a_second_image_after_an_answer(row: Row, any_model: Any) -> None:
    if not row.blocks_after_cache or row.images_see_later_ones:
        return
    whole = row.inputs("t6 A t5 t3 B t4")
    first, second = row.inputs("t6 A t5"), row.inputs("B t4")
    begin = first["input_ids"].shape[1]
    second["attention_mask"] = torch.ones_like(whole["input_ids"])
    with apply(any_model, SELECT):
        cache = cache_of_output(any_model(**first, use_cache=True))
        for column in range(begin, begin + 3):
            any_model(input_ids=whole["input_ids"][:, column : column + 1], **{CACHE: cache})
        got = any_model(**second | {"input_ids": whole["input_ids"][:, begin + 3 :]}, **{CACHE: cache}).logits
        torch.testing.assert_close(got[:, -4:], any_model(**whole).logits[:, -4:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_image_after_a_text_only_turn(row: Row, any_model: Any) -> None:
    if not row.blocks_after_cache:
        return
    whole = row.inputs("t9 t2 B t4")
    second = row.inputs("t2 B t4")
    second["input_ids"] = whole["input_ids"][:, 9:]
    second["attention_mask"] = torch.ones_like(whole["input_ids"])
    with apply(any_model, SELECT):
        cache = cache_of_output(any_model(input_ids=whole["input_ids"][:, :9], use_cache=True))
        got = any_model(**second, **{CACHE: cache}).logits[:, -4:]
        torch.testing.assert_close(got, any_model(**whole).logits[:, -4:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_two_conversations_at_once(row: Row, any_model: Any) -> None:
    one, two = row.inputs("t6 A t5"), row.inputs("t2 B t9")
    steps = torch.randint(20, 120, (2, 4), generator=torch.Generator().manual_seed(1))

    def talk(inputs: dict[str, Tensor], tokens: Tensor):
        cache = cache_of_output(any_model(**inputs, use_cache=True))
        for token in tokens:
            yield any_model(input_ids=token.view(1, 1), **{CACHE: cache}).logits

    with apply(any_model, SELECT):
        alone = [list(talk(one, steps[0])), list(talk(two, steps[1]))]
        together = list(zip(talk(one, steps[0]), talk(two, steps[1])))
    for step, (first, second) in enumerate(together):
        assert torch.equal(first, alone[0][step])
        assert torch.equal(second, alone[1][step])


def test_two_threads(row: Row, model: Any) -> None:
    prompts = ["t6 A t5", "t2 B t9", "t3 C t4", "t5 B t2"]
    with apply(model, row.select("6")):
        alone = [generate(model, row.inputs(prompt), 6) for prompt in prompts]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda prompt: generate(model, row.inputs(prompt), 6), prompts))
    for one, other in zip(alone, together):
        assert torch.equal(one, other)


@torch.no_grad()
def test_a_copied_cache_knows_what_it_holds(row: Row, model: Any) -> None:
    """One image, several questions: the copy carries the state along, into a later `apply` too."""
    second = row.inputs("t7'")["input_ids"]
    with apply(model, SELECT):
        cache = cache_of_output(model(**row.inputs(CHAT), use_cache=True))
        kept = copy.deepcopy(cache)
        expected = model(input_ids=second, **{CACHE: cache}).logits
    with apply(model, "stride:4"):
        assert torch.equal(model(input_ids=second, **{CACHE: kept}).logits, expected)


@torch.no_grad()
def test_rows_of_a_cache_move_with_what_it_knows(row: Row, model: Any) -> None:
    first = row.inputs(*BATCH)
    with apply(model, SELECT):
        cache = cache_of_output(model(**first, position_ids=dense_positions(model, first), use_cache=True))
        moved, taken = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
        mask = torch.cat([first["attention_mask"], first["attention_mask"].new_ones(4, 1)], dim=1)
        ids = torch.full((4, 1), 33)
        expected = model(input_ids=ids, attention_mask=mask, **{CACHE: cache}).logits
        order = torch.tensor([2, 0, 3, 1])
        moved.reorder_cache(order)
        got = model(input_ids=ids, attention_mask=mask[order], **{CACHE: moved}).logits
        torch.testing.assert_close(got, expected[order])
        taken.batch_select_indices(order[1:3])
        got = model(input_ids=ids[:2], attention_mask=mask[order[1:3]], **{CACHE: taken}).logits
        torch.testing.assert_close(got, expected[order[1:3]], atol=1e-5, rtol=1e-4)
    alive = weakref.ref(cache)
    del cache
    assert alive() is None


@pytest.mark.parametrize("spec", [SELECT])
@pytest.mark.parametrize("prompts", [(CHAT,), pytest.param(BATCH, marks=BEAMS_OF_SEVERAL_IMAGES)])
def test_beams(row: Row, any_model: Any, prompts: tuple[str, ...], spec: str) -> None:
    inputs = row.inputs(*prompts)
    short = compress(any_model, inputs | {"position_ids": dense_positions(any_model, inputs)}, spec)
    expected = any_model.generate(**short, max_new_tokens=5, num_beams=3, do_sample=False)[:, -5:]
    with apply(any_model, spec) as run:
        beams = generate(any_model, inputs, 5, num_beams=3)
        assert len(run.report().images) == sum(
            prompt.count("A") + prompt.count("B") + prompt.count("C") for prompt in prompts
        )
    assert torch.equal(beams, expected)


@BEAMS_OF_SEVERAL_IMAGES
@pytest.mark.parametrize("spec", [SELECT])
def test_several_answers_share_one_plan(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    with apply(model, spec) as run:
        torch.manual_seed(0)
        several = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert several.shape[0] == 12
    assert len(run.report().images) == 4
    short = compress(model, inputs | {"position_ids": dense_positions(model, inputs)}, spec)
    torch.manual_seed(0)
    expected = model.generate(**short, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert torch.equal(several[:, -4:], expected[:, -4:])


def test_prompt_lookup_is_greedy_decoding(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    with apply(model, SELECT):
        if not row.takes_back:
            with pytest.raises(ValueError, match="not supported with stateful models"):
                generate(model, inputs, 12, prompt_lookup_num_tokens=2)
            return
        greedy = generate(model, inputs, 12)
        assert torch.equal(generate(model, inputs, 12, prompt_lookup_num_tokens=2), greedy)


# 6. Text only, several images, twice.


def test_text_only_prompts_pass_untouched(row: Row, any_model: Any) -> None:
    inputs = row.inputs("t9", "t4")
    dense, ids = logits(any_model, inputs), generate(any_model, inputs)
    with apply(any_model, SELECT) as run:
        assert torch.equal(logits(any_model, inputs), dense)
        assert torch.equal(generate(any_model, inputs), ids)
    assert run.report().images == ()
    short = compress(any_model, inputs, SELECT)
    assert dict(short) == inputs


@torch.no_grad()
def test_features_that_serve_two_questions_get_two_plans(row: Row, model: Any) -> None:
    spec = "cdpruner:6"
    inputs = [row.inputs(prompt) for prompt in ("t6 A t5", "t6 A t9", "t2 A t5", "t6 A t5")]
    pixels = {name: value for name, value in inputs[0].items() if name in family_of(model).pixel_inputs}
    with apply(model, spec):
        expected = [model(**each).logits for each in inputs]
        features = family_of(model).core.get_image_features(**pixels, return_dict=True)  # pyright: ignore
        for each, right in zip(inputs, expected, strict=True):
            given = {name: value for name, value in each.items() if name != "pixel_values"}
            got = model(**given, mm_encoder_outputs={"image": features}).logits
            torch.testing.assert_close(got, right, atol=1e-5, rtol=1e-5)


def test_each_image_gets_its_own_plan(row: Row, model: Any) -> None:
    both = compress(model, row.inputs("t2 A t4 B t3"), row.select("6"))
    for image, letter in zip(both.images, "AB"):
        alone = compress(model, row.inputs(f"t2 {letter}"), row.select("6")).images[0]
        assert torch.equal(image.slot, alone.slot)
        torch.testing.assert_close(image.features, alone.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", METHODS)
def test_twice_is_the_same(row: Row, any_model: Any, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    with apply(any_model, spec):
        first, second = logits(any_model, inputs), logits(any_model, inputs)
    assert torch.equal(first, second)
    short = compress(any_model, inputs, spec)
    assert torch.equal(generate(any_model, short), generate(any_model, short))


# 7. The numbers agree.


@pytest.mark.parametrize("spec", METHODS)
@torch.no_grad()
def test_counts(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    method = parse(spec).steps[0].method
    family = family_of(model)
    with apply(model, spec) as run:
        cache = cache_of_output(model(**inputs, use_cache=True))
    report = run.report()
    counts = [image.after for image in report.images]
    for image, layout, count in zip(compress(model, inputs, spec).images, family.layouts(inputs), counts):
        assert int(torch.isin(image.slot, layout.places).sum()) == method.count(layout)
        fewest, most = tokens_between(spec, family, layout)
        assert fewest <= count <= most
        # Only which rows still need their newline may be left to the content.
        assert fewest == most == method.count(layout) or layout.structural
        assert fewest == most or not method.fixed
    assert [image.before for image in report.images] == [row.count(letter) for letter in "ABCC"[:1] + "BCC"]
    lengths = [int((~row.is_image(torch.tensor(row.ids(prompt)))).sum()) for prompt in BATCH]
    images = iter(counts)
    for number, prompt in enumerate(BATCH):
        lengths[number] += sum(next(images) for piece in prompt.split() if piece[0] != "t")
    for layer in (layer for layer, each in enumerate(cache.layers) if hasattr(each, "keys")):
        assert cache.get_seq_length(layer) == max(lengths)
    assert compress(model, inputs, spec)["input_ids"].shape[1] == max(lengths)
    assert str(report.before) in str(report)
    assert report.to_dict()["tokens_after"] == sum(counts)


@pytest.mark.parametrize("spec", METHODS)
def test_compress_is_apply(row: Row, any_model: Any, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    short = compress(any_model, inputs | {"position_ids": dense_positions(any_model, inputs)}, spec)
    expected = generate(any_model, short)
    with apply(any_model, spec):
        assert torch.equal(generate(any_model, inputs), expected)


def test_images_encoded_once_serve_many_specs_and_questions(row: Row, model: Any) -> None:
    inputs = row.inputs("t6 A t5")
    other = row.inputs("t2 A t9")
    specs = ("random:6", row.select("6"), "cluster:6@features")
    encoded = encode(model, inputs, specs)
    without = {name: value for name, value in other.items() if name not in family_of(model).pixel_inputs}
    for spec in specs:
        once = compress(model, without, spec, encoded=encoded)
        again = compress(model, other, spec)
        assert torch.equal(once["input_ids"], again["input_ids"])
        torch.testing.assert_close(logits(model, once), logits(model, again), atol=1e-5, rtol=1e-5)
    pair = compress(model, row.inputs("t6 A t5", "t2 A t9"), row.select("6"), encoded=encoded.pick([0, 0]))
    assert pair["input_ids"].shape[0] == 2


# 8. Training.


def labelled(row: Row, *prompts: str, side: str = "left") -> dict[str, Tensor]:
    """Labels on text behind text: a dropped slot, standing for the kept one before it, predicts as that one does."""
    inputs = row.inputs(*prompts, side=side)
    labels = inputs["input_ids"].clone()
    labels[(labels == PAD) | (row.is_image(labels))] = -100
    for line, mask in zip(labels, inputs["attention_mask"]):
        end = int(mask.nonzero().max()) + 1
        line[: end - 2] = -100
    return inputs | {"labels": labels}


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_are_the_masked_models(row: Row, side: str) -> None:
    model = row.model()
    inputs = labelled(row, *BATCH, side=side)
    given = {**inputs, "position_ids": dense_positions(model, inputs)}
    short = compress(model, given, SELECT)
    keep = kept_columns(row, inputs, short)

    def loss_and_gradients(loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    oracle = without(row, model, given, keep)[:, :-1].flatten(0, 1)
    expected, gradients = loss_and_gradients(cross_entropy(oracle, inputs["labels"][:, 1:].flatten()))
    with apply(model, SELECT):
        out = model(**given, use_cache=False)
        assert out.logits.shape[:2] == inputs["input_ids"].shape
        loss, mine = loss_and_gradients(out.loss)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert mine.keys() == gradients.keys()
    for name in gradients:
        torch.testing.assert_close(
            mine[name], gradients[name], atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
    shorter, _ = loss_and_gradients(model(**short, use_cache=False).loss)
    torch.testing.assert_close(shorter, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", [SELECT, "cls:6@features"])
def test_gradient_checkpointing_changes_nothing(row: Row, spec: str) -> None:
    inputs = labelled(row, *BATCH)
    losses = []
    gradients = []
    for checkpointing in (False, True):
        model = row.model().train()
        if checkpointing:
            set_checkpointing(model, True)
        with apply(model, spec):
            loss = model(**inputs, use_cache=False).loss
            loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[0], losses[1])
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-6, rtol=1e-5)


def test_trainer(row: Row, tmp_path: Path) -> None:
    """transformers' own Trainer, unchanged: two steps under apply move the weights as two steps by hand do."""
    batch = labelled(row, "t6 A t5", "t3 C t4")

    def trained(by_hand: bool) -> dict[str, Tensor]:
        model = row.model().train()
        if by_hand:
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                with apply(model, SELECT):
                    model(**batch, use_cache=False).loss.backward()
                optimiser.step()
                optimiser.zero_grad()
        else:
            arguments = TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=2,
                per_device_train_batch_size=1,
                learning_rate=0.1,
                optim="sgd",
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            )
            trainer = Trainer(model, arguments, train_dataset=[0, 1], data_collator=lambda _: batch)
            with apply(model, SELECT):
                trainer.train()
        return {name: weight.detach() for name, weight in model.named_parameters()}

    ours, theirs = trained(by_hand=True), trained(by_hand=False)
    untrained = dict(row.model().named_parameters())
    assert max((untrained[name] - ours[name]).abs().max() for name in ours) > 1e-4
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("keep", [1, 3])
def test_logits_to_keep(row: Row, model: Any, keep: int) -> None:
    inputs = row.inputs(*BATCH)
    with apply(model, SELECT):
        full = logits(model, inputs)
        if not row.logits_to_keep:
            assert torch.equal(logits(model, inputs | {"logits_to_keep": keep}), full)
            return
        assert torch.equal(logits(model, inputs | {"logits_to_keep": keep}), full[:, -keep:])
        chosen = torch.tensor([4, 9, full.shape[1] - 1])
        torch.testing.assert_close(logits(model, inputs | {"logits_to_keep": chosen}), full[:, chosen])


# Behind the block, and what is refused.


@pytest.mark.parametrize("spec", ["cls:6", "cluster:6@features", "resize:0.25"])
def test_nothing_is_left_behind_an_exception(row: Row, spec: str) -> None:
    model = row.model()
    inputs = row.inputs(*BATCH)
    dense = logits(model, inputs)
    core = family_of(model).core
    memory = getattr(core, "rope_deltas", None)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()

    def stop_inside() -> None:
        with apply(model, spec):
            generate(model, inputs)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_inside()
    assert hooks() == before
    assert "get_image_features" not in vars(core)
    assert getattr(core, "rope_deltas", None) is memory
    assert torch.equal(logits(model, inputs), dense)


def test_a_failed_call_leaves_the_next_one_right(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    with apply(model, SELECT):
        good = logits(model, inputs)
        with pytest.raises(FoveateError, match="placeholders"):
            logits(model, {**inputs, "input_ids": inputs["input_ids"][:, :-9], "attention_mask": None})
        assert torch.equal(logits(model, inputs), good)


def test_nested_apply_is_an_error(row: Row, model: Any) -> None:
    with apply(model, SELECT), pytest.raises(FoveateError, match="compose by spec"), apply(model, row.select("6")):
        pass


def test_rules_of_the_grid_are_refused_inside_the_encoder(row: Row, model: Any) -> None:
    with pytest.raises(FoveateError, match=r"encoder.*; use @features or @input"), apply(model, f"{SELECT}@encoder"):
        pass


def test_static_caches_are_refused(row: Row, model: Any) -> None:
    with apply(model, SELECT), pytest.raises(FoveateError, match="static cache"):
        generate(model, row.inputs(CHAT), cache_implementation="static")


def test_chunked_prefill_is_refused(row: Row, model: Any) -> None:
    ours = row.chunks or chunks_lose_images()
    error, words = (FoveateError, "chunked prefill") if ours else (TypeError, "missing 1 required positional")
    with apply(model, SELECT), pytest.raises(error, match=words):
        generate(model, row.inputs(CHAT), prefill_chunk_size=9)


def test_video_is_refused(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT) | {"pixel_values_videos": torch.zeros(1)}
    with pytest.raises(FoveateError, match="video"):
        compress(model, inputs, SELECT)


def test_compressed_inputs_are_not_compressed_again(row: Row, model: Any) -> None:
    short = compress(model, row.inputs(CHAT), SELECT)
    with apply(model, SELECT), pytest.raises(FoveateError, match="without apply"):
        logits(model, short)


# Every first method, every dtype.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(row: Row, dtype: torch.dtype) -> None:
    model = row.model(dtype=dtype)
    # Some encoders take pixels in their own dtype alone.
    inputs = {name: each.to(dtype) if each.is_floating_point() else each for name, each in row.inputs(CHAT).items()}
    for spec in filter(row.takes, METHODS):
        with apply(model, spec):
            assert logits(model, inputs).isfinite().all(), spec


def test_every_row_has_a_family() -> None:
    from foveate.families import supported

    assert set(supported()) == FAMILIES


def test_a_given_cache_is_used(row: Row, model: Any) -> None:
    with apply(model, SELECT):
        cache = DynamicCache(config=model.config.get_text_config())
        generate(model, row.inputs(CHAT), 3, **{CACHE: cache})
    assert cache.get_seq_length() == compress(model, row.inputs(CHAT), SELECT)["input_ids"].shape[1] + 2


def test_times(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    with timed(model) as dense:
        generate(model, inputs, 4)
    with apply(model, SELECT) as run, timed(model) as short:
        generate(model, inputs, 4)
    for times in (dense, short):
        assert times.encoder > 0
        assert times.prefill > 0
        assert times.decode > 0
        assert times.decode_tokens == 3
    assert dense.prefill_tokens == inputs["input_ids"].shape[1]
    assert short.prefill_tokens == compress(model, inputs, SELECT)["input_ids"].shape[1]
    assert run.report().milliseconds > 0
    assert compress(model, inputs, SELECT).milliseconds.keys() == {"encoder", "compressor"}
