"""What `apply` adds to a model's own operations on an accelerator: at batch 1 these are the time.

The cost model knows how many there are, and how often the host waits.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import foveate
from accelerator import PLACE, Accelerator
from foveate.prompts import question_inputs
from foveate.scenes import scene
from foveate.transformers_api import cache_argument, cache_of_output

Counts = tuple[int, int, int]


def operations(model: Any, inputs: Any, counted: Accelerator) -> Counts:
    """Count launches and waits of a prefill, and launches of a step of decoding; the first prefill is not counted."""
    model(**inputs)
    counted.forget()
    cache = cache_of_output(model(**inputs))
    launches, waits = counted.launches, counted.waits
    last = {name: inputs[name][:, -1:] for name in ("input_ids", "attention_mask")}
    mask = torch.cat([inputs["attention_mask"], last["attention_mask"]], dim=1)
    counted.forget()
    model(input_ids=last["input_ids"], attention_mask=mask, **cache_argument(model.forward, cache))
    return launches, waits, counted.launches


@pytest.fixture(scope="module")
def call() -> Iterator[tuple[Any, Any, Accelerator, Counts]]:
    model, processor = foveate.reference()
    one = scene(3)
    inputs = question_inputs(processor, one.image, one.questions[0].text)
    with torch.no_grad(), Accelerator() as counted:
        model.to(PLACE)
        there = {name: value.to(PLACE) for name, value in inputs.items()}
        yield model, there, counted, operations(model, there, counted)


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ("cluster:1.0", 8),
        ("fastv:1.0@2", 10),
        ("resize:0.25", 16),
        ("cls:64@features", 26),
        ("cdpruner:16", 240),  # its text is looked for
        ("tome:64@encoder", 500),
        ("fastv:0.5@2,4", 135),
        ("pyramiddrop:0.5@2", 105),
        ("sparsevlm:64@2", 185),
    ],
)
def test_being_there_takes_few_operations(call: Any, spec: str, most: int) -> None:
    model, inputs, counted, dense = call
    with foveate.apply(model, spec):
        launches, waits, decoding = (mine - plain for mine, plain in zip(operations(model, inputs, counted), dense))
    told = foveate.cost(None, spec, new_tokens=2)
    assert launches <= most
    assert told.part("compressor").launches == pytest.approx(launches, abs=4, rel=0.08)
    assert told.part("compressor").waits == waits
    assert told.part("decode").launches - foveate.cost(None, new_tokens=2).part("decode").launches == decoding
