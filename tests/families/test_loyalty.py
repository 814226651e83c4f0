"""A spec that drops nothing answers as the dense model, which answers as its own `generate`: any method, any place."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from directories import make_processor
from PIL import Image
from rows import LLAVA, Row
from test_processors import needs_torchvision

import foveate
from foveate.bench import Benchmark, TaskImage, TaskQuestion, scenes
from foveate.bench.answers import Asker, Prompts
from foveate.bench.configurations import DENSE
from foveate.bench.report import DIFFERENCE, HEADS, cells_of
from foveate.errors import FoveateError
from foveate.spec import Spec, parse

pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length constraints")

STUB = SimpleNamespace(chat_template="x", batch_decode=lambda ids, skip_special_tokens: [str(each) for each in ids])
SETTINGS: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.05},
    "large_penalty": {"repetition_penalty": 1.3, "encoder_repetition_penalty": 1.2},
    "words": {
        "bad_words_ids": [[30], [40, 41]],
        "no_repeat_ngram_size": 2,
        "suppress_tokens": [33],
        "min_length": 48,
        "eos_token_id": list(range(60, 90)),
    },
    "new_words": {"min_length": 60, "min_new_tokens": 3, "eos_token_id": list(range(8, 98))},
}
SPECS = ("fastv:1.0@2", "pool:1.0@1", "cluster:1.0", "cluster:1.0@1", "cdpruner:1.0", "divprune:1.0@features")
MORE = (
    *("random:1.0", "stride:1.0", "pool2d:1.0", "cls:1.0", "dart:1.0@1", "sparsevlm:1.0@1", "pyramiddrop:1.0@1,2"),
    *("tome:1.0@encoder", "visionzip:1.0", "dpc_knn:1.0", "agglomerative:1.0", "divprune:1.0", "holov:1.0"),
    *("cluster:1.0@features+fastv:1.0@2", "resize:1.0"),
)


def asker_of(row: Row, settings: dict[str, Any], batch: int | None = None) -> Asker:
    model = row.model()
    model.generation_config.update(**settings)
    return Asker(model, STUB, longest=6, batch=batch)


def prompts_of(row: Row) -> list[Prompts]:
    """Two pictures with three questions each, of different lengths."""
    found = []
    for letter in "AB":
        ids = tuple(tuple(row.ids(f"t4 {letter} {end}")) for end in ("t3", "t5", "t7'1"))
        last = max(at for at, token in enumerate(ids[0]) if token in (row.image_token, *row.typed))
        found.append(Prompts(row.pixels(letter), ids, last + 1))
    return found


@torch.inference_mode()
def answers(asker: Asker, prompts: list[Prompts], spec: Spec) -> list[list[str]]:
    return asker.answer(prompts, spec, asker.encode(prompts, [spec])).texts


@torch.inference_mode()
def generated(row: Row, asker: Asker, prompts: list[Prompts]) -> list[list[str]]:
    """The answers of the model's own `generate`, prompt by prompt."""
    found: list[list[str]] = []
    for each in prompts:
        found.append([])
        for ids in each.rows:
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long(), **each.pixels}
            inputs |= row.types_of(inputs["input_ids"])
            new = asker.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
            end = next((at for at, token in enumerate(new) if token in asker.decoding.ends), len(new))
            found[-1].append(str(new[:end]))
    return found


def check(row: Row, settings: str, specs: tuple[str, ...], batch: int | None = None) -> None:
    asker, prompts = asker_of(row, SETTINGS[settings], batch), prompts_of(row)
    dense = answers(asker, prompts, DENSE)
    assert dense == generated(row, asker, prompts)
    if settings != "penalty":
        # So small a penalty may change nothing in so small a model.
        assert dense != answers(asker_of(row, {}, batch), prompts, DENSE), "the settings change nothing"
    for spec in specs:
        try:
            found = answers(asker, prompts, parse(spec))
        except FoveateError:
            found = None
        # A family may refuse a method, but not all of them.
        assert found == dense or (found is None and not (row.plain and spec == "fastv:1.0@2")), spec


@pytest.mark.parametrize("settings", ["large_penalty", "words"])
def test_what_drops_nothing_is_loyal(row: Row, settings: str) -> None:
    check(row, settings, SPECS)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_method_is_loyal(row: Row, settings: str, batch: int | None) -> None:
    check(row, settings, (*SPECS, *MORE), batch)


@torch.inference_mode()
def test_with_a_chat_template_what_drops_nothing_is_loyal(row: Row) -> None:
    """Dense answers are those of `generate` after the processor's own chat template, and all specs give the same."""
    if needs_torchvision(row, "pil") and find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    model = row.model()
    model.generation_config.update(**SETTINGS["large_penalty"])
    processor = make_processor(row, model.config, "pil")
    asker = Asker(model, processor, longest=6)
    asked = tuple(TaskQuestion(text, "-") for text in ("what is it ?", "is it word40 word41 ?", "what colour is it ?"))
    pictures = [
        TaskImage(str(seed), Image.effect_noise((90 + 20 * seed, 100), 80.0).convert("RGB"), asked) for seed in (1, 2)
    ]
    prompts = [asker.prompts(picture) for picture in pictures]
    expected: list[list[str]] = []
    for picture in pictures:
        expected.append([])
        for question in asked:
            content = [{"type": "image", "image": picture.source}, {"type": "text", "text": question.text}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
            )
            # Some processors make bfloat16 of pixels.
            inputs = {name: each.float() if each.is_floating_point() else each for name, each in inputs.items()}
            new = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            expected[-1].append(processor.batch_decode(new, skip_special_tokens=True)[0].strip())
    assert answers(asker, prompts, DENSE) == expected
    for spec in filter(row.takes, ("fastv:1.0@2", "pool:1.0@1", "cluster:1.0")):
        assert answers(asker, prompts, parse(spec)) == expected, spec


def test_the_table_shows_no_difference_for_what_drops_nothing(tmp_path: Path) -> None:
    model, processor = foveate.reference()
    model.generation_config.repetition_penalty = 1.3
    specs = ["fastv:1.0@2", "pool:1.0@1", "cluster:1.0", "random:4"]
    metrics = Benchmark(model, processor, scenes(12), specs, tmp_path / "results", longest=4).run()
    dense, *loyal, random = metrics["configurations"]
    assert "1.3" in metrics["decoding"]
    written = (tmp_path / "results" / "table.md").read_text("utf-8").splitlines()
    for row in (*loyal, random):
        cells = dict(zip(HEADS, cells_of(metrics, row), strict=True))
        shown = cells[DIFFERENCE], cells["95 % interval"], cells["loyal"]
        if row is random:
            assert shown[2] != "100%"
            continue
        assert shown == ("0.0", "unchanged", "100%"), row["spec"]
        assert row["accuracy"] == dense["accuracy"]
        assert (row["difference"]["value"], row["difference"]["changed"], row["loyalty"]) == (0.0, 0, 1.0)
        (line,) = (each for each in written if each.startswith(f"| `{row['spec']}` |") and "unchanged" in each)
        assert "| 0.0 unchanged | 100% |" in line


def test_greedy_obeys_no_setting(row: Row) -> None:
    asker = asker_of(row, SETTINGS["large_penalty"])
    plain = asker_of(row, {"suppress_tokens": None})
    greedy = Asker(asker.model, STUB, longest=6, greedy=True)
    prompts = prompts_of(row)
    assert answers(greedy, prompts, DENSE) == answers(plain, prompts, DENSE)
    assert greedy.decoding.title == "greedy, without the model's own configuration"


@pytest.mark.parametrize(
    ("setting", "value"), [("num_beams", 4), ("guidance_scale", 1.5), ("penalty_alpha", 0.6), ("dola_layers", "high")]
)
def test_what_cannot_be_obeyed_alike_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(FoveateError, match=f"sets {setting} to {value}"):
        asker_of(LLAVA, {setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("repetition_penalty", 0), ("repetition_penalty", "x"), ("bad_words_ids", [[10**9]]), ("eos_token_id", "x")],
)
def test_a_configuration_that_is_broken_is_refused(setting: str, value: Any) -> None:
    model = LLAVA.model()
    setattr(model.generation_config, setting, value)
    with pytest.raises(FoveateError, match="generation configuration can't be used"):
        Asker(model, STUB)
