"""The example images are what the generator makes, and their questions are its questions."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.clips import open_clip
from foveate.scenes import clip, scene

FOLDER = Path(__file__).parents[2] / "examples"


def test_examples_come_from_the_generator():
    listed = json.loads((FOLDER / "questions.json").read_text())
    assert {row["image"] for row in listed} == {p.name for p in FOLDER.glob("*.png")}
    for row in listed:
        one = scene(row["scene"]["seed"], kind=row["scene"]["kind"])
        stored = np.asarray(Image.open(FOLDER / row["image"])).astype(int)
        # Rasterizers differ by a hair between versions of Pillow; pictures don't.
        assert np.abs(stored - np.asarray(one.image)).mean() < 1.0
        told = [{"question": q.text, "answer": q.answer, "skill": q.skill} for q in one.questions]
        assert row["questions"] == told


def test_the_example_clip_comes_from_the_generator():
    stored = open_clip(FOLDER / "clip.webp").frames
    for found, made in zip(stored, clip(3, split="test", frames=8, kind="lane").frames, strict=True):
        assert np.abs(np.asarray(found).astype(int) - np.asarray(made)).mean() < 1.0
