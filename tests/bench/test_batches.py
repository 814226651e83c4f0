"""A padded batch gives the answers that each prompt gives alone, for every family."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rows import ROWS
from rows.aya_vision import make_aya_vision

from foveate.bench.answers import Asker, Prompts, _after_last
from foveate.bench.runner import Benchmark
from foveate.engine import apply
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import family_of
from foveate.fingerprint import answering_fingerprint
from foveate.spec import parse

PROCESSOR = SimpleNamespace(
    chat_template="x", batch_decode=lambda ids, skip_special_tokens: [str(each) for each in ids]
)
SPECS = ("cluster:6", "prumerge:auto", "cdpruner:4", "stride:5:positions=keep", "pool:4@1", "cluster:7+fastv:3@1")
"""At the input, ragged, reading the question, keeping positions, inside the decoder, both."""


def asker_of(row: Any, batch: int | None) -> Asker:
    return Asker(row.model(), PROCESSOR, longest=4, batch=batch)


def prompts_of(row: Any) -> tuple[list[Prompts], list[list[str]]]:
    """Three pictures of different layouts, each with questions of different lengths, and the prompts as text."""
    prompts, texts = [], []
    family = family_of(row.model())
    for number, letter in enumerate("ABC"):
        beginning = f"t{3 + 2 * number} {letter}"
        texts.append([f"{beginning} {end}" for end in ("t3", "t5", "t7'1")])
        ids = tuple(tuple(row.ids(text)) for text in texts[-1])
        # What no column of the image looks ahead at can differ.
        shared = len(ids[0]) - _after_last(ids[0], family)
        prompts.append(Prompts(row.pixels(letter), ids, shared))
    return prompts, texts


@torch.inference_mode()
def answers(asker: Asker, prompts: list[Prompts], spec: str) -> list[list[str]]:
    steps = parse(spec)
    return asker.answer(prompts, steps, asker.encode(prompts, [steps])).texts


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_padded_batch_is_its_prompts_alone(row: Any, spec: str) -> None:
    prompts, texts = prompts_of(row)
    model = row.model()
    try:
        with apply(model, spec):
            pass
    except (FoveateError, UnsupportedFamily):
        pytest.skip(f"{row.name} has no {spec}")
    alone: list[list[str]] = []
    for asked in texts:
        alone.append([])
        for text in asked:
            inputs = row.inputs(text)
            with apply(model, spec):
                ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            alone[-1].append(str(ids[0].tolist()))
    for batch in (None, 1, 2, 5):
        assert answers(asker_of(row, batch), prompts, spec) == alone, batch
    assert len({text for each in alone for text in each}) > 3


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("window", [10, 512])
def test_no_padding_comes_into_windows_between_image_and_question(window: int, batch: int | None) -> None:
    row = next(row for row in ROWS if row.name == "aya_vision")
    row = replace(row, make=partial(make_aya_vision, window))
    asker = asker_of(row, batch)
    assert asker.family.reach == window
    asked: list[list[int]] = []
    handle = asker.model.register_forward_pre_hook(
        lambda _, args, given: asked.append(given["attention_mask"][:, -given["input_ids"].shape[1] :].sum(1).tolist()),
        with_kwargs=True,
    )
    prompts, _ = prompts_of(row)
    found = answers(asker, prompts, "cluster:6")
    handle.remove()
    questions = [lengths for lengths in asked if max(lengths) in (3, 5, 7, 8)]
    assert all(len(set(lengths)) == 1 for lengths in questions) == (window == 10)
    single = asker_of(row, 1)
    assert found == answers(single, prompts, "cluster:6")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_prompts_are_padded_as_processors_pad(row: Any) -> None:
    made = asker_of(row, None).padded([row.ids("t2 A t3"), row.ids("t4 B t5")])
    processors = row.inputs("t2 A t3", "t4 B t5")
    assert made.keys() == {"input_ids", "attention_mask", *row.types_of(torch.zeros(1, 1))}
    assert all(torch.equal(value, processors[name]) for name, value in made.items())


def test_a_batch_is_what_the_model_gets(model: Any, processor: Any, task: Any, tmp_path: Any) -> None:
    rows: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        rows.append(kwargs["inputs_embeds"].shape[0])

    handle = model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    found = {}
    try:
        for batch in (1, 3, 8):
            rows.clear()
            made = Benchmark(
                model, processor, task, ["cluster:4", "cdpruner:4", "pool:4@1"], tmp_path / f"{batch}", batch=batch
            )
            found[batch] = made.run()
            assert max(rows) == batch
            assert made.parts == 4 * -(-12 // batch)
    finally:
        handle.remove()
    for key in ("accuracy", "tokens", "loyalty"):
        values = [[row[key] for row in metrics["configurations"]] for metrics in found.values()]
        assert values[0] == values[1] == values[2]
    assert [metrics["batch"] for metrics in found.values()] == [1, 3, 8]
    assert "float32 on cpu, batch 8" in (tmp_path / "8" / "table.md").read_text()
    with pytest.raises(FoveateError, match=r"another run \(different batch\)"):
        Benchmark(model, processor, task, ["cluster:4", "cdpruner:4", "pool:4@1"], tmp_path / "8", batch=4)
    with pytest.raises(FoveateError, match="--batch is 0"):
        Asker(model, processor, batch=0)


def test_inputs_that_fit_into_no_batch(model: Any, processor: Any) -> None:
    asker = Asker(model, processor)
    prompts = [Prompts({"pixel_attention_mask": torch.ones(1, size, 4)}, ((1,),), 0) for size in (3, 5)]
    with pytest.raises(FoveateError, match=r"pixel_attention_mask of different shapes .*; use --batch 1"):
        asker.pixels(prompts)


@pytest.mark.parametrize("spec", ["cluster:6", "cdpruner:4", "pool:4@1"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_offloaded_model_answers_as_one_in_memory(row: Any, spec: str) -> None:
    """Parameters of an offloaded model are on the meta device; inputs go to where its embeddings run."""
    if not row.offloads:
        pytest.skip("the dense model doesn't run while its weights are offloaded")
    from accelerate import cpu_offload

    prompts, _ = prompts_of(row)
    plain = asker_of(row, 4)
    expected, known = answers(plain, prompts, spec), answering_fingerprint(plain.model, PROCESSOR)
    made = asker_of(row, 4)
    cpu_offload(made.model, torch.device("cpu"))
    assert next(made.model.parameters()).is_meta
    offloaded = Asker(made.model, PROCESSOR, longest=4, batch=4)
    assert offloaded.device == torch.device("cpu")
    assert answering_fingerprint(offloaded.model, PROCESSOR) == known
    assert answers(offloaded, prompts, spec) == expected
