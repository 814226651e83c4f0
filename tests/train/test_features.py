"""Training on kept features is training behind the frozen encoder, and costs the encoder once."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import recipe

import foveate
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.loading import load
from foveate.scenes import clip, scene
from foveate.train import features as features_module
from foveate.train.batches import Batches
from foveate.train.features import FeatureBatches, KeptFeatures, check_features, train_on_features
from foveate.train.objectives import parse_recipe
from foveate.train.prepared import prepare
from foveate.train.run import run
from foveate.train.settings import RecipeError
from foveate.train.sources import Scenes

SPEC = "pool2d:9:positions=pack@features"


def test_a_model_on_kept_features_is_the_model_under_their_spec(tiny_model: Path, tmp_path: Path) -> None:
    rows = Scenes(5, turns=2)
    whole, processor = load(tiny_model)
    model, _ = load(tiny_model)
    kept = KeptFeatures(tmp_path, rows, model, processor, SPEC, "key")
    assert len(kept) == 5
    assert kept[3].messages == rows[3].messages
    assert kept.features(0).shape == (1, 32, 1, 9)
    family = family_of(model)
    family.read_feature_maps(1, 9)
    batch = FeatureBatches(processor, family, kept)([(i, kept[i]) for i in (4, 0, 2)])
    assert batch.pop("rows") == [4, 0, 2]
    batch.pop("tokens")
    dense = Batches(processor, family_of(whole))([(i, rows[i]) for i in (4, 0, 2)])
    dense.pop("rows")
    dense.pop("tokens")
    with torch.no_grad():
        for spec in ("", "pool:3"):
            if spec:
                with foveate.apply(model, spec):
                    ours = model(**batch).loss
            else:
                ours = model(**batch).loss
            with foveate.apply(whole, SPEC + (f"+{spec}" if spec else "")):
                theirs = whole(**dense).loss
            assert ours.item() == pytest.approx(theirs.item(), abs=2e-3)  # features are kept in half precision


def test_a_run_on_features_gives_a_whole_model_and_never_encodes_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "SHARD", 4)
    calls: list[int] = []
    encode = features_module.encode_for
    monkeypatch.setattr(features_module, "encode_for", lambda *a: (calls.append(1), encode(*a))[1])
    stages = [{"share": "1/2", "spec": "pool:0.34"}, {"share": "1/2", "spec": "dense"}]
    given = recipe(tiny_model, stages=stages, data={"scenes": 10, "turns": 2, "features": SPEC}, steps=4)
    said: list[str] = []
    run(parse_recipe(given), tmp_path / "a", say=said.append)
    assert len(calls) == 3
    assert f"use it under {SPEC}" in said[-1]
    before, after = (
        load_file(tiny_model / "model.safetensors"),
        load_file(tmp_path / "a" / "model" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == ("vision_tower" in name), name
    # The files of a run that broke off are taken.
    features = tmp_path / "a" / "features"
    (file,) = features.glob("*/00001.safetensors")
    file.unlink()
    (tmp_path / "b").mkdir()
    features.rename(tmp_path / "b" / "features")
    run(parse_recipe(given), tmp_path / "b", say=said.append)
    assert len(calls) == 4
    again = load_file(tmp_path / "b" / "model" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in after.items())


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_files_in_half_precision(tiny_model: Path, tmp_path: Path, stored: str) -> None:
    """Features are made in the precision of the recipe, by a frozen encoder and a projector in float32."""
    for part in load(tiny_model, dtype=stored):
        part.save_pretrained(tmp_path / "half")
    data = {"scenes": 8, "turns": 2, "features": SPEC}
    stages = [{"share": 1, "spec": "dense"}]
    given = recipe(tmp_path / "half", stages=stages, data=data, steps=1, precision="bf16")
    run(parse_recipe(given), tmp_path / "run", say=lambda _: None)
    (file,) = (tmp_path / "run" / "features").glob("*/00000.safetensors")
    features = load_file(file)["features"].float()
    model, processor = load(tiny_model)
    exact = KeptFeatures(tmp_path, Scenes(8, turns=2), model, processor, SPEC, "key").features(0).float()
    torch.testing.assert_close(features[:1], exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("spec", "stage", "message"),
    [
        ("pool2d:9", "dense", "must act at @features"),
        ("pool2d:9@features", "dense", "write positions=pack"),
        (SPEC, "cls:3", "looks at the encoder"),
        (SPEC, "resize:9", "acts before the decoder"),
    ],
)
def test_what_cannot_be_kept_is_told_before_anything_runs(
    tiny_model: Path, spec: str, stage: str, message: str
) -> None:
    stages: Any = [{"share": 1, "spec": stage}]
    parsed = parse_recipe(recipe(tiny_model, stages=stages, data={"scenes": 3, "features": spec}))
    with pytest.raises(RecipeError, match=message):
        prepare(parsed)


def test_several_images_or_none_in_a_conversation(tiny_model: Path, tmp_path: Path) -> None:
    frames = [f"{number}.png" for number in range(3)]
    for name, picture in zip(frames, clip(1).frames):
        picture.save(tmp_path / name)
    rows = [
        {"images": frames[:2], "question": "which is first ?", "answer": "star"},
        {"question": "what ?", "answer": "star"},
        {"image": frames[2], "question": "what ?", "answer": "star"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    given = parse_recipe(recipe(tiny_model, data={"jsonl": str(path), "features": SPEC}, steps=2))
    conversations = prepare(given).rows
    whole, processor = load(tiny_model)
    model, _ = load(tiny_model)
    kept = KeptFeatures(tmp_path / "kept", conversations, model, processor, SPEC, "key")
    assert [kept.features(number).shape[0] for number in range(3)] == [2, 0, 1]
    family = family_of(model)
    family.read_feature_maps(1, kept.tokens)
    batches, dense = FeatureBatches(processor, family, kept), Batches(processor, family_of(whole))
    for numbers in ([2, 0, 1], [0], [1]):
        batch = batches([(number, kept[number]) for number in numbers])
        other = dense([(number, conversations[number]) for number in numbers])
        for each in (batch, other):
            del each["rows"], each["tokens"]
        with torch.no_grad(), foveate.apply(whole, SPEC):
            theirs = whole(**other).loss.item()
        assert model(**batch).loss.item() == pytest.approx(theirs, abs=2e-3)
    run(given, tmp_path / "run", say=lambda _: None, flops=False)


def test_features_of_edited_data_or_another_processor_are_made_anew(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "rows.jsonl"
    made: list[str] = []

    def features(answer: str, picture: int) -> KeptFeatures:
        scene(picture).image.save(tmp_path / "0.png")
        os.utime(tmp_path / "0.png", ns=(picture, picture))
        path.write_text(json.dumps({"image": "0.png", "question": "what ?", "answer": answer}))
        given = parse_recipe(recipe(model, data={"jsonl": str(path), "features": SPEC}, steps=2))
        ready = prepare(given)
        alone = SimpleNamespace(process_index=0, world_size=1, device="cpu")
        whole, processor = load(model)
        return train_on_features(whole, processor, ready.rows, given, tmp_path / "kept", made.append, alone)[0]

    first = features("a cat", 1)
    features("a cat", 1)
    assert len(made) == 1, "the same data"
    assert features("a star", 1)[0].messages[1]["content"][0]["text"] == "a star"
    other = features("a cat", 2)
    assert not torch.equal(other.features(0), first.features(0))
    assert len(made) == 3
    config = next(file for file in model.glob("*processor_config.json") if "image_mean" in file.read_text())
    config.write_text(config.read_text().replace("0.5", "0.25"))
    features("a cat", 2)
    assert len(made) == 4


def test_text_alone_has_no_features(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "what ?", "answer": "star"}')
    given = recipe(tiny_model, data={"jsonl": str(path), "features": SPEC}, steps=2)
    with pytest.raises(FoveateError, match=r"no conversation of data has an image; leave data\.features out"):
        run(parse_recipe(given), tmp_path / "run", say=lambda _: None, flops=False)


@pytest.mark.parametrize("texts", [range(4), range(4, 8)], ids=["first", "between"])
def test_files_of_text_alone_among_others(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: range
) -> None:
    """As many rows of text follow each other as a file has."""
    monkeypatch.setattr(features_module, "SHARD", 4)
    scene(0).image.save(tmp_path / "0.png")
    text = {"question": "what ?", "answer": "star"}
    rows = [text if number in texts else {**text, "image": "0.png"} for number in range(10)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    given = parse_recipe(recipe(tiny_model, data={"jsonl": str(path), "features": SPEC}, steps=3))
    run(given, tmp_path / "run", say=lambda _: None, flops=False)
    model, processor = load(tiny_model)
    kept = KeptFeatures(tmp_path / "kept", prepare(given).rows, model, processor, SPEC, "key")
    assert kept.tokens == 9
    assert [len(kept.features(number)) for number in range(10)] == [int(number not in texts) for number in range(10)]


def test_families_that_have_no_such_way_say_so(tiny_model: Path) -> None:
    from foveate.families.family import Family

    model, _ = load(tiny_model)
    family = family_of(model)
    with pytest.raises(FoveateError, match="LLaVA can't train on kept features yet"):
        Family.check_feature_maps(family)
    assert check_features(family, SPEC).features
