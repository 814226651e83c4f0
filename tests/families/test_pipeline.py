"""`pipeline("image-text-to-text")`, with a tokenizer and a processor made here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from directories import save
from PIL import Image
from rows import ROWS
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from foveate.engine import apply, compress

LLAVA, TILES = (next(row for row in ROWS if row.name == name) for name in ("llava", "llava_next"))


@pytest.fixture(scope="module", params=[LLAVA, TILES], ids=lambda row: row.name)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param.name))


def photo(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((120, 90))


@pytest.mark.parametrize("spec", ["random:6", "cls:6", "resize:0.25"])
def test_pipeline(directory: Path, spec: str) -> None:
    pipe: Any = pipeline("image-text-to-text", model=str(directory), device="cpu", dtype=torch.float32)
    pipe.model.eval()
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": photo(seed)}, {"type": "text", "text": question}]}]
        for seed, question in ((1, "what colour is it ?"), (2, "what is it ?"))
    ]

    def ask(**options: int) -> list[str]:
        answers = pipe(
            messages, generate_kwargs={"do_sample": False, "max_new_tokens": 5}, return_full_text=False, **options
        )
        return [answer[0]["generated_text"] for answer in answers]

    dense = ask()
    with apply(pipe.model, spec) as run:
        short, batch = ask(), ask(batch_size=2)
    (before,) = {image.before for image in run.report().images}
    assert before == (36 if pipe.model.config.model_type == "llava" else 16 + 6 * 9)
    assert len(run.report().images) == 4
    assert all(image.after <= before / 2 for image in run.report().images)
    assert short == batch
    assert all(len(answer.split()) == 5 for answer in short)
    assert short != dense
    assert ask() == dense


def test_a_processor_and_auto_classes(directory: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(directory)
    inputs = processor(images=[photo(1)], text="user : <image> what is it ? assistant :", return_tensors="pt")
    short = compress(model, inputs, "pool:4")
    (image,) = short.images
    assert int(torch.isin(image.slot, image.layout.places).sum()) == 4
    assert short["input_ids"].shape[1] == inputs["input_ids"].shape[1] - image.before + image.after
    ids = model.generate(**short, max_new_tokens=4, do_sample=False)
    with apply(model, "pool:4"):
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:], ids[:, -4:])
