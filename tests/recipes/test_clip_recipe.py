"""The recipe for clips: what is trained is what the finished model computes; reversed clips have the right answers."""

from pathlib import Path

import pytest
import torch
from recipes.reference.clip_model import as_clip_model
from recipes.reference.clips import ClipBatches, Recipe, Stage, reverse
from recipes.reference.stages import Trainee

import foveate
from foveate.scenes import CLIP_KINDS, clip
from foveate.train.settings import RecipeError, read_mapping

ROOT = Path(__file__).parents[2]
SMALL = Stage.model_validate({"name": "small", "frames": 4, "steps": 1, "batch": 6, "fresh": 4})


def test_the_recipe_can_be_read() -> None:
    given = read_mapping(ROOT / "recipes" / "reference-clips.yaml")
    assert given.pop("builds") == "reference-clips"
    assert Recipe.model_validate(given).stages[0].frames == 1
    with pytest.raises(RecipeError, match='no key "frame"; did you mean "frames"'):
        Recipe.model_validate({"stages": [{"name": "a", "frame": 4, "steps": 1}]})


@torch.inference_mode()
def test_training_sees_what_the_finished_model_sees() -> None:
    model, processor = foveate.reference()
    trainee = Trainee(model)
    one = clip(3, kind="change")
    seen = model.model.multi_modal_projector(ClipBatches(trainee, SMALL, 4, 0).encode(one.frames).float())
    finished = as_clip_model(model, 4)
    pixels = processor.image_processor(list(one.frames), return_tensors="pt")["pixel_values"]
    found = finished.model.get_video_features(pixels[None]).pooler_output
    found = torch.stack(list(found)).reshape(seen.shape)
    # Training encodes in bfloat16.
    assert (seen - found).abs().mean() < 0.02 * found.abs().mean()
    assert torch.nn.functional.cosine_similarity(seen, found, dim=-1).min() > 0.99


def test_a_batch_has_new_rows_and_rows_that_come_back() -> None:
    batches = ClipBatches(Trainee(foveate.reference()[0]), SMALL, 4, 0)
    first, second = batches(range(6)), batches(range(6, 12))
    assert first["features"].shape == second["features"].shape == (6, 4 * 36, 192)
    length = second["text"]["ids"].shape[1]
    assert second["mask"].shape == (6, 1, 2 + 4 * 36 + length, 2 + 4 * 36 + length)
    assert second["text"]["positions"].max() < 2 + 4 * 36 + length
    new = {tuple(row.flatten()[:50].tolist()) for row in first["features"]}
    assert any(tuple(row.flatten()[:50].tolist()) in new for row in second["features"])


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_a_clip_backwards_is_answered_backwards(kind: str) -> None:
    one = clip(4, kind=kind)
    other = reverse(one)
    if kind == "change":
        assert other is None
        return
    assert other is not None
    assert other.frames == one.frames[::-1]
    assert [q.text for q in other.questions] == [q.text for q in one.questions]
    for before, after in zip(one.questions, other.questions, strict=True):
        assert (before.answer != after.answer) == (before.skill in ("way", "first"))
    again = reverse(other)
    assert again is not None
    assert again.questions == one.questions
