"""The points of the contract inside the decoder: any plan at the input of any layer."""

from typing import Any

import pytest
import torch
from rows import Row
from test_contract import BATCH, CHAT, dense_positions, generate, kept_columns, logits
from torch import Tensor

from foveate.engine import apply, compress
from foveate.errors import FoveateError
from foveate.models import family_of

SELECT = "random:6"


def layer_masks(model: Any, visible: Tensor, first: int) -> list[Any]:
    """Hooks that hide columns from decoder layer `first` on: `visible` `(B, S)` bool; undo them with `remove()`."""
    columns = torch.arange(visible.shape[1])
    seen = (columns[None] <= columns[:, None]) & visible[:, None, :]
    # Whoever would see nothing sees itself: nobody reads it.
    seen |= torch.eye(visible.shape[1], dtype=torch.bool)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
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


def longer(inputs: dict[str, Tensor], more: Tensor) -> dict[str, Tensor]:
    """A prompt with more text behind it."""
    result = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1)}
    result["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
    if "mm_token_type_ids" in inputs:
        result["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more).int()], dim=1)
    return result


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
            torch.testing.assert_close(logits(any_model, inputs)[real], dense[real], atol=1e-6, rtol=0)


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
    oracle = masked_inside(any_model, longer(inputs, answer), {int(layer): keep}).logits
    torch.testing.assert_close(torch.stack(out.logits, dim=1), oracle[:, -6:-1].float(), atol=1e-4, rtol=1e-4)


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


# 7. The numbers agree.


@torch.no_grad()
def test_the_cache_of_each_layer_is_as_long_as_the_plan_says(row: Row, any_model: Any) -> None:
    inputs = row.inputs(*BATCH)
    with apply(any_model, "random:6+pool:3@1+stride:1@2") as run:
        cache = any_model(**inputs, use_cache=True).past_key_values
    images = run.report().images
    for layer, each in enumerate((6, 3, 1)):
        counts = [image.layers[layer] for image in images]
        assert cache.get_seq_length(layer) == max(11 + counts[0], 14 + counts[1] + counts[2])
        for image in images:
            assert each <= image.layers[layer] <= each + image.structural
            assert image.structural or image.layers[layer] == each


# What is refused.


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("random:6@3", "this decoder has 3 layers"),
        ("random:6@1,1", "names layer 1 twice"),
        ("random:6@2,1", "stands behind a later place"),
        ("resize:0.5@1", "cannot act at @1"),
    ],
)
def test_layers_that_cannot_be(row: Row, model: Any, spec: str, message: str) -> None:
    with pytest.raises(FoveateError, match=message), apply(model, spec):
        pass


def test_compress_sends_depth_to_apply(row: Row, model: Any) -> None:
    with pytest.raises(FoveateError, match=r"use foveate\.apply"):
        compress(model, row.inputs(CHAT), "random:6@1")
