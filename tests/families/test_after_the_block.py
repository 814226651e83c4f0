"""What outlives an `apply`: caches, copies of the model, threads, short inputs. They work, or raise; never silently."""

import copy
import io
import pickle
from threading import Event, Thread
from typing import Any

import pytest
import torch
from rows import Row
from transformers import DynamicCache
from versions import CACHE, cache_of_output

from foveate.engine import apply, compress
from foveate.errors import FoveateError

CHAT = "t6 A t5"
SPECS = ("stride:6", "fastv:0.5@1")


def turn(model: Any, inputs: Any, cache: Any, mask: bool = True) -> torch.Tensor:
    """The logits of a second turn of three tokens."""
    given: dict[str, Any] = {"input_ids": torch.tensor([[21, 22, 23]]), CACHE: cache}
    if mask:
        given["attention_mask"] = torch.ones(1, inputs["input_ids"].shape[1] + 3, dtype=torch.long)
    return model(**given).logits


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_a_compressed_cache_is_refused_outside(row: Row, any_model: Any, spec: str) -> None:
    inputs = row.inputs(CHAT)
    with apply(any_model, spec):
        cache = cache_of_output(any_model(**inputs))
        right = turn(any_model, inputs, copy.deepcopy(cache))
    for other in (cache, copy.deepcopy(cache), copy.copy(cache), pickle.loads(pickle.dumps(cache))):
        length = other.get_seq_length()
        with pytest.raises(FoveateError, match=r"without the foveate\.apply"):
            turn(any_model, inputs, other)
        assert other.get_seq_length() == length
    with apply(any_model, spec):
        torch.testing.assert_close(turn(any_model, inputs, cache), right)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_a_cache_that_was_made_anew_is_refused(row: Row, model: Any, spec: str, mask: bool) -> None:
    inputs = row.inputs(CHAT)
    with apply(model, spec):
        cache = cache_of_output(model(**inputs))
        anew = DynamicCache(config=model.config.get_text_config())
        for old, new in zip(cache.layers, anew.layers, strict=True):
            vars(new).update(copy.deepcopy(vars(old)))
        del cache
        with pytest.raises(FoveateError, match="made anew"):
            turn(model, inputs, anew, mask)
        text = DynamicCache(config=model.config.get_text_config())
        model(**row.inputs("t9"), **{CACHE: text})
        assert turn(model, row.inputs("t9"), text, mask=False).isfinite().all()


@torch.no_grad()
def test_an_emptied_cache_is_plain_again(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    cache = DynamicCache(config=model.config.get_text_config())
    with apply(model, "stride:6"):
        model(**inputs, **{CACHE: cache})
    assert isinstance(cache, DynamicCache)
    assert type(cache) is not DynamicCache
    for layer in cache.layers:
        if hasattr(layer, "keys"):
            layer.keys, layer.values = layer.keys[:, :, :0], layer.values[:, :, :0]
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = 0
        else:
            layer.reset()
    text = row.inputs("t9")
    torch.testing.assert_close(model(**text, **{CACHE: cache}).logits, model(**text).logits)
    assert type(cache) is DynamicCache


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_generate_in_a_thread_that_outlives_the_block_raises(row: Row, model: Any, spec: str) -> None:
    started, ended, raised = Event(), Event(), []

    def wait(ids: Any, scores: Any) -> Any:
        started.set()
        ended.wait(60)
        return scores

    def run() -> None:
        try:
            model.generate(**row.inputs(CHAT), max_new_tokens=4, do_sample=False, logits_processor=[wait])
        except FoveateError as error:
            raised.append(str(error))

    thread = Thread(target=run)
    with apply(model, spec):
        thread.start()
        assert started.wait(60)
    ended.set()
    thread.join(60)
    assert len(raised) == 1
    assert "without the foveate.apply" in raised[0]


@pytest.mark.parametrize("spec", SPECS)
def test_a_model_cannot_be_copied_meanwhile(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs(CHAT)
    with torch.no_grad(), apply(model, spec):
        compressed = model(**inputs).logits
        for copied in (copy.deepcopy, pickle.dumps, lambda whole: torch.save(whole, io.BytesIO())):
            with pytest.raises(FoveateError, match="can't be copied or pickled"):
                copied(model)
        torch.testing.assert_close(model(**inputs).logits, compressed)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_short_inputs_travel(row: Row, model: Any) -> None:
    inputs = row.inputs("t6 A t5", "t2 B t9 C t3")
    short = compress(model, inputs, "stride:6")
    expected = model(**short).logits
    there = pickle.loads(pickle.dumps(short))
    torch.testing.assert_close(model(**there).logits, expected)
    assert len(pickle.dumps(short)) < 100_000
    moved = short.to("cpu", torch.bfloat16)
    assert moved["input_ids"].dtype == torch.int64
    assert {image.features.dtype for image in moved.images} == {torch.bfloat16}
    assert {image.features.device for image in short.to("meta").images} == {torch.device("meta")}
    torch.testing.assert_close(model(**moved.to(dtype=torch.float32)).logits, expected, atol=0.2, rtol=0.2)


@pytest.mark.inside
@torch.no_grad()
def test_a_long_apply_does_not_grow(row: Row, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.engine.report.COUNTS_KEPT", 3)
    inputs = row.inputs(CHAT)
    with apply(model, "random:6+fastv:0.5@1") as run:
        for _ in range(5):
            model(**inputs)
    report = run.report()
    assert len(report.images) == 3
    assert report.before == 5 * report.images[0].before
    assert report.after == 5 * report.images[0].after
    assert report.to_dict()["image_count"] == 5
    assert "2 earlier images" in str(report)
