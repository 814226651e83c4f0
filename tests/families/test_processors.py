"""From pictures and questions to an answer, with the real processor of each family: three sizes in one padded batch."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Commands
from directories import make_processor, save
from PIL import Image
from rows import ROWS, Row
from torch import Tensor
from torch.nn.functional import pad

from foveate.engine import apply, compress
from foveate.errors import FoveateError
from foveate.families import family_of

SIZES = ((100, 160), (170, 60), (80, 80))
"""Height and width of the pictures."""
QUESTIONS = ("what is it ?", "what colour is it ? word40 word41 word42", "is it ?")
SPECS = ("random:6", "cls:6", "pool:0.25:positions=keep", "resize:0.5", "fastv:6@2")


CLIPS = {
    "<video>": "<video>",
    "<|video_pad|>": "<|vision_start|><|video_pad|><|vision_end|>",
    "<|video|>": "<|begin_of_video|><|video|><|end_of_video|>",
}
"""The placeholders of clips, and how the texts of their processors write one."""


def needs_torchvision(row: Row, backend: str) -> bool:
    # Where there is a processor of clips, too, it does.
    return backend == "torchvision" or bool({"<video>", *CLIPS} & row.words.keys())


@pytest.fixture(params=["torchvision", "pil"])
def processor(row: Row, model: Any, request: pytest.FixtureRequest) -> Any:
    if needs_torchvision(row, request.param) and find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    made = make_processor(row, model.config, request.param)
    return made if row.joins else OneByOne(made, model)


class OneByOne:
    """A processor that takes conversations one by one, whose images the family joins."""

    def __init__(self, processor: Any, model: Any) -> None:
        self.processor, self.family = processor, family_of(model)

    def apply_chat_template(self, chats: list[Any], **options: Any) -> dict[str, Tensor]:
        rows = [self.processor.apply_chat_template([chat], **options) for chat in chats]
        longest = max(row["input_ids"].shape[1] for row in rows)
        joined = self.family.joined([{name: row[name] for name in self.family.pixel_inputs} for row in rows])
        for name in ("input_ids", "attention_mask"):
            joined[name] = torch.cat([pad(row[name], (longest - row[name].shape[1], 0)) for row in rows])
        return joined


def photo(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def conversation(size: tuple[int, int], question: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": photo(*size)}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


CHATS = [conversation(size, question) for size, question in zip(SIZES, QUESTIONS)]


def inputs_of(processor: Any, *chats: list[dict[str, Any]]) -> dict[str, Tensor]:
    inputs = processor.apply_chat_template(
        list(chats),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )
    # Some processors make bfloat16 of pixels, and the models here are float32.
    return {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}


def generated(model: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    """Answers `(B, 5)` and their logits `(5, B, vocabulary)`."""
    found = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return found.sequences[:, -5:], torch.stack(found.logits)


def test_pictures_of_three_sizes_make_padded_rows(row: Row, model: Any, processor: Any) -> None:
    inputs = inputs_of(processor, *CHATS)
    with apply(model, "random:0.5") as run:
        generated(model, inputs)
    counts = [image.before for image in run.report().images]
    squares = len({row.count(letter) for letter in row.pictures}) == 1
    # Where a processor fills the largest canvas that it can, two sizes may be alike.
    assert len(set(counts)) == (1 if squares else 3 if row.joins else 2)
    assert (inputs["attention_mask"][:, 0] == 0).any()


@pytest.mark.parametrize("spec", ["random:1.0", "cls:1.0:positions=keep@features"])
def test_keeping_everything_is_the_untouched_model(model: Any, processor: Any, spec: str) -> None:
    inputs = inputs_of(processor, *CHATS)
    answers, logits = generated(model, inputs)
    with apply(model, spec):
        kept, kept_logits = generated(model, inputs)
    assert torch.equal(kept, answers)
    torch.testing.assert_close(kept_logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_a_batch_is_its_samples_alone(row: Row, model: Any, processor: Any, spec: str) -> None:
    inputs = inputs_of(processor, *CHATS)
    with apply(model, spec) as run:
        answers, logits = generated(model, inputs)
        images = run.report().images
        for number, chat in enumerate(CHATS):
            answer, each = generated(model, inputs_of(processor, chat))
            torch.testing.assert_close(logits[:, number], each[:, 0], atol=1e-4, rtol=1e-4)
            assert torch.equal(answers[number], answer[0])
    assert len(images) == 3
    assert all(image.after < image.before for image in images) or not row.saves(spec)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "@" not in spec])
def test_compressed_inputs_answer_as_under_apply(row: Row, model: Any, processor: Any, spec: str) -> None:
    inputs = inputs_of(processor, *CHATS)
    short = compress(model, inputs, spec)
    assert short["input_ids"].shape[1] < inputs["input_ids"].shape[1] or not row.saves(spec)
    with apply(model, spec):
        answers, logits = generated(model, inputs)
    cut, cut_logits = generated(model, short)
    assert torch.equal(cut, answers)
    torch.testing.assert_close(cut_logits, logits, atol=1e-4, rtol=1e-4)


def test_dropping_changes_the_answer(model: Any, processor: Any) -> None:
    inputs = inputs_of(processor, *CHATS)
    _, dense = generated(model, inputs)
    with apply(model, "random:4"):
        _, short = generated(model, inputs)
    assert ((dense[0] - short[0]).abs().amax(1) > 1e-2).all()
    assert torch.equal(generated(model, inputs)[1], dense)


@pytest.mark.parametrize("row", [row for row in ROWS if CLIPS.keys() & row.words.keys()], ids=lambda row: row.name)
def test_a_clip_of_a_real_processor(row: Row, model: Any) -> None:
    pytest.importorskip("torchvision")
    processor = make_processor(row, model.config)
    inputs = clip_inputs(row, processor, 5, 100, 120)
    dense, dense_logits = generated(model, inputs)
    # Some processors write a clip as images with text between them.
    as_images = not any("video" in name for name in inputs)
    if not (row.clips or as_images):
        with apply(model, "random:4"), pytest.raises(FoveateError, match="video is not supported yet for"):
            generated(model, inputs)
        with pytest.raises(FoveateError, match="video is not supported yet for"):
            compress(model, inputs, "random:4")
        return
    with apply(model, "random:1.0"):
        answer, kept_logits = generated(model, inputs)
    assert torch.equal(answer, dense)
    torch.testing.assert_close(kept_logits, dense_logits, atol=1e-5, rtol=1e-5)
    with apply(model, "random:4") as run:
        answer, short_logits = generated(model, inputs)
    images = run.report().images
    assert as_images or len(images) == 1
    token = row.clips.token if row.clips else row.image_token
    assert sum(image.before for image in images) == int((inputs["input_ids"] == token).sum())
    assert all(image.after < image.before for image in images)
    assert torch.equal(generated(model, compress(model, inputs, "random:4"))[0], answer)
    assert (short_logits - dense_logits).abs().max() > 1e-3


@pytest.mark.parametrize("row", [row for row in ROWS if row.clips], ids=lambda row: row.name)
def test_layouts_of_clips_are_the_processors_own(row: Row, model: Any) -> None:
    pytest.importorskip("torchvision")
    processor, family = make_processor(row, model.config), family_of(model)
    limits = getattr(family, "clip_pixel_limits", None)
    if limits is not None:
        # As released models have it; a row may ask for small ones.
        processor.video_processor.size = {"shortest_edge": limits[0], "longest_edge": limits[1]}
    sizes = ((4, 100, 120), (5, 30, 300), (8, 336, 336), (2, 720, 1280), (3, 20, 20), (33, 640, 480), (16, 333, 334))
    for frames, height, width in sizes:
        inputs = clip_inputs(row, processor, frames, height, width)
        (found,), told = family.clip_layouts(inputs), family.clip_layout(frames, height, width)
        assert found.total == int((inputs["input_ids"] == row.clips.token).sum())  # pyright: ignore
        assert (told.segments, told.run_lengths) == (found.segments, found.run_lengths), (frames, height, width)


def clip_inputs(row: Row, processor: Any, frames: int, height: int, width: int) -> Any:
    """A question about a clip, as the real processor gives it."""
    (word,) = CLIPS.keys() & row.words.keys()
    return processor(
        text=[f"user {CLIPS[word]} what is it ?"],
        videos=[np.stack([np.asarray(photo(height, width))] * frames)],
        return_tensors="pt",
        do_sample_frames=False,
        video_metadata=[{"fps": 2.0, "total_num_frames": frames, "frames_indices": list(range(frames))}],
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate(SIZES):
        photo(*size).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def test_commands_on_a_saved_model(row: Row, pictures: list[Path], tmp_path: Path) -> None:
    if needs_torchvision(row, "torchvision"):
        pytest.importorskip("torchvision")
    directory = save(row, tmp_path / "model")
    words = ("--model", directory, "--max-new-tokens", "2", "--spec", row.select("6"))
    found = Commands().json("ask", pictures[0], QUESTIONS[0], *words)
    dense, short = (answer["tokens_after"] for answer in found["answers"])
    assert 6 <= short < dense
    task = tmp_path / "task.jsonl"
    lines = [{"image": str(path), "question": text, "answer": "word20"} for path, text in zip(pictures, QUESTIONS)]
    task.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Commands().json("bench", *words, "--data", task, "--keep", "6", "--out", tmp_path / "run")
    before = [each["tokens"]["before"] for each in found["configurations"]]
    assert before[0] > max(each["tokens"]["after"] for each in found["configurations"][1:])
