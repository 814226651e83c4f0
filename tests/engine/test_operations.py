"""How many tensor operations `apply` adds to a model's own; on a GPU at batch 1 they are the time."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import foveate
from foveate.prompts import question_inputs
from foveate.scenes import scene
from foveate.transformers_api import cache_argument, cache_of_output


class Operations(TorchDispatchMode):
    """Counts the operations that reach torch's dispatcher."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(model: Any, inputs: Any) -> tuple[int, int]:
    """Count those of a prefill and of one step of decoding; the first prefill fills what is remembered."""
    with torch.no_grad():
        model(**inputs)
        with Operations() as prefill:
            cache = cache_of_output(model(**inputs))
        last = {name: inputs[name][:, -1:] for name in ("input_ids", "attention_mask")}
        mask = torch.cat([inputs["attention_mask"], last["attention_mask"]], dim=1)
        with Operations() as decode:
            model(input_ids=last["input_ids"], attention_mask=mask, **cache_argument(model.forward, cache))
    return prefill.count, decode.count


@pytest.fixture(scope="module")
def call() -> tuple[Any, Any, tuple[int, int]]:
    model, processor = foveate.reference()
    one = scene(3)
    inputs = question_inputs(processor, one.image, one.questions[0].text)
    return model, inputs, operations(model, inputs)


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ("cluster:1.0", 45),
        ("cls:1.0", 45),
        ("cdpruner:1.0", 55),  # its text is looked for
        ("fastv:1.0@2", 60),
        ("stride:64", 95),  # about 20 of them are its plan
        ("fastv:0.5@2", 165),
    ],
)
def test_being_there_takes_few_operations(call: Any, spec: str, most: int) -> None:
    model, inputs, (prefill, decode) = call
    with foveate.apply(model, spec):
        counted = operations(model, inputs)
    assert counted[0] - prefill <= most
    assert counted[1] - decode <= 10
