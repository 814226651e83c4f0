"""Clips in the bench: every answer is that of `generate` for one question, in each way in which models take clips."""

import json
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from directories import make_processor, save
from rows import ROWS, Row

from clip_files import animation, folder, frame, video
from foveate.bench import Benchmark, TaskClip, TaskImage, TaskQuestion, jsonl
from foveate.bench.answers import Asker
from foveate.bench.configurations import DENSE, is_baseline
from foveate.clips import Clip
from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.spec import Spec, parse
from foveate.visual_prompts import shown_to

WAYS = {"qwen2_5_vl": "video", "qwen3_vl": "video", "llava_onevision": "video", "smolvlm": "written", "llava": "images"}
QUESTIONS = tuple(TaskQuestion(text, "word40") for text in ("what is it ?", "what colour is it ? word41 word42"))
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")


def clip(count: int, first: int) -> Clip:
    frames = tuple(frame(first + 3 * number, (120, 100)) for number in range(count))
    return Clip(frames, tuple(number + 0.5 for number in range(count)), float(count), 30)


PICTURES = (
    TaskClip("a", clip(4, 0), QUESTIONS),
    TaskImage("b", frame(9, (100, 90)), QUESTIONS),
    TaskClip("c", clip(6, 5), QUESTIONS),
)


@needs_torchvision
@pytest.mark.parametrize("row", [row for row in ROWS if row.name in WAYS], ids=lambda row: row.name)
def test_answers_are_those_of_generate(row: Row, in_full: bool) -> None:
    if not in_full and row.name not in ("qwen2_5_vl", "smolvlm"):
        pytest.skip("nightly")
    torch.manual_seed(0)
    model = row.model()
    processor: Any = make_processor(row, model.config, "torchvision")
    asker, family = Asker(model, processor, longest=4), family_of(model)
    prompts = [asker.prompts(picture) for picture in PICTURES]
    specs = [DENSE, *map(parse, ("random:0.5", "cluster:3:per=frame", "fastv:0.5@1"))]
    if WAYS[row.name] != "video" or "pixels" in family.clip_places:
        specs.append(parse("resize:0.5+fastv:0.5@1"))
    for spec in [*specs, parse("evs:0.5")] if WAYS[row.name] == "video" else specs:
        chosen = [0, 2] if any(step.method.temporal for step in spec.steps) else [0, 1, 2]
        asked = [prompts[number] for number in chosen]
        with torch.inference_mode():
            encoded = asker.encode(asked, [spec])
            answered = asker.answer(asked, spec, encoded)
        for at, number in enumerate(chosen):
            texts, counts = zip(
                *(alone(asker, family, picture_of(number), asked_text, spec) for asked_text in QUESTIONS)
            )
            assert tuple(answered.texts[at]) == texts, (spec, number)
            before, after = (sum(each) / len(each) for each in zip(*counts, strict=True))
            assert (answered.before[at], answered.after[at]) == pytest.approx((before, after)), (spec, number)
    assert prompts[0].images == (1 if WAYS[row.name] == "video" else 4)


def picture_of(number: int) -> Any:
    return PICTURES[number].load()


def alone(asker: Asker, family: Any, what: Any, question: TaskQuestion, spec: Spec) -> tuple[str, tuple[float, float]]:
    """The answer of `generate` to one question, and the visual tokens before and after."""
    shown = shown_to(family, asker.processor, what)
    inputs = shown.inputs(asker.processor, shown.text(asker.processor, question.text))
    with apply(asker.model, spec) if spec.steps else nullcontext() as run:
        ids = asker.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    ends = [number for number, each in enumerate(ids.tolist()) if each in asker.decoding.ends]
    text = asker.processor.decode(ids[: min(ends, default=len(ids))], skip_special_tokens=True)
    visual = float(family.placeholders(inputs["input_ids"]).sum())
    report = None if run is None else run.report()
    return text, (visual, visual) if report is None else (float(report.before), float(report.after))


@pytest.fixture
def questions(tmp_path):
    video(tmp_path / "clip.mp4", 12)
    folder(tmp_path / "frames", 12)
    animation(tmp_path / "clip.gif", 12)
    frame(3).save(tmp_path / "still.png")
    rows = [
        {"video": "clip.mp4", "question": "what is it ?", "answer": "it"},
        {"video": "./clip.mp4", "question": "what colour is it ?", "answer": "it"},
        {"video": "frames", "question": "what is it ?", "answer": "it"},
        {"video": "clip.gif", "question": "what is it ?", "answer": "it"},
        {"image": "clip.gif", "question": "what is it ?", "answer": "it"},
        {"image": "still.png", "question": "what is it ?", "answer": "it"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_rows_of_a_file(questions):
    task = jsonl(questions, frames=3)
    assert [type(picture).__name__ for picture in task.pictures] == ["TaskClip"] * 3 + ["TaskImage"] * 2
    assert (task.questions, task.has_clips) == (6, True)
    assert [len(picture.load().frames) for picture in task.pictures if isinstance(picture, TaskClip)] == [3, 3, 3]
    assert jsonl(questions, frames=3).digest == task.digest != jsonl(questions, frames=4).digest
    assert not jsonl(questions, skip=3).has_clips


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"video": "none.mp4"}, "q.jsonl, line 1: there is no clip"),
        ({"video": "q.jsonl"}, "line 1: .*is not a clip, whatever its name says"),
        ({"video": ""}, 'line 1: "video" is empty or not text; each line needs "image" or "video"'),
        ({"video": 3}, 'line 1: "video" is empty or not text'),
        ({"video": "a.mp4", "image": "a.png"}, 'line 1 has both "image" and "video"'),
        ({}, 'line 1: "image" is missing; each line needs "image" or "video", "question" and "answer"'),
    ],
)
def test_bad_rows_are_one_line(tmp_path, row, words):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "what ?", "answer": "it", **row}))
    with pytest.raises(FoveateError, match=words):
        jsonl(path)


def test_the_command_has_a_model_for_clips(questions, tmp_path, monkeypatch):
    from commands import Commands

    run, words = Commands(), ("bench", "--data", questions, "--frames", 4, "--spec", "evs:0.5", "--max-new-tokens", 2)
    found = run.json(*words, "--questions", 2, "--out", tmp_path / "clips")
    assert [each["tokens"]["after"] for each in found["configurations"]] == [144, 72]
    said = run(*words, "--questions", 2, "--out", tmp_path / "clips")
    assert "q: 2 questions about 1 clip" in said


@needs_torchvision
def test_the_command(questions, tmp_path):
    from commands import Commands

    run, model = Commands(), save(next(row for row in ROWS if row.name == "qwen2_5_vl"), tmp_path / "model")
    words = ("bench", "--data", questions, "--questions", 4, "--frames", 4, "--model", model, "--max-new-tokens", 2)
    found = run.json(*words, "--keep", "0.5", "--out", tmp_path / "results")
    names = [each["spec"] for each in found["configurations"]]
    assert {"dense", "random:0.5", "frames:0.5", "stride3d:0.5", "pool3d:0.5", "resize:0.5", "evs:0.5"} <= set(names)
    dense, half = (
        next(each for each in found["configurations"] if each["spec"] == name) for name in ("dense", "frames:0.5")
    )
    assert half["tokens"]["after"] == pytest.approx(dense["tokens"]["after"] / 2)
    assert all(is_baseline(parse(f"{name}:0.5")) for name in ("frames", "stride3d", "pool3d"))
    assert "--match mean counts images" in run.refused(*words, "--match", "mean")
    assert "--frames 4 chooses frames of clips, and the generated scenes are images" in run.refused(
        "bench", "--frames", 4
    )


def test_frames_of_the_embedded_model(questions, tmp_path):
    from foveate.loading import load

    model, processor = load()
    task = jsonl(questions, 3, frames=2)
    run = Benchmark(model, processor, task, ["cluster:16"], tmp_path / "results", longest=2)
    dense, short = run.run()["configurations"]
    assert (dense["tokens"]["after"], short["tokens"]["after"]) == (2 * 576, 2 * 16)
    with pytest.raises(FoveateError, match="room for 2048; take fewer frames, or shorten"):
        Benchmark(model, processor, jsonl(questions, 3, frames=6), [], tmp_path / "more")
