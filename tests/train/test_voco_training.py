"""VoCo tokens on the trainer: an adapter or a model at the end, resumed to the same weights, from the loss it names."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import TOKENS, recipe

from foveate.embedded import PATH
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.loading import load
from foveate.scenes import clip, scene
from foveate.train.batches import Batches
from foveate.train.estimate import estimate
from foveate.train.objectives import parse_recipe
from foveate.train.run import run
from foveate.train.settings import RecipeError
from foveate.train.sources import Clips, Conversation, Scenes
from foveate.train.trainer import Passes, Reader
from foveate.voco import VoCo
from foveate.voco.lora import load_lora
from foveate.voco.losses import cross_entropy
from foveate.voco.objective import VoCoBatches, VoCoObjective, VoCoSettings, VoCoTrainee, alike, questions_apart

PEFT = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # asked for by peft
LORA = {"train": "lora", "lora": {"rank": 2, "alpha": 4}}


def given(folder: Path, voco: dict[str, Any], **changes: Any) -> dict[str, Any]:
    whole = recipe(folder, voco=voco, lr=5e-3, **changes)
    del whole["stages"]
    return whole


def rows_of(folder: Path) -> Path:
    """One image, two images, and text alone."""
    rows: list[dict[str, Any]] = []
    for number in range(4):
        scene(number).image.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "is there a star ?", "answer": "yes"})
        rows.append({"images": ["0.png", f"{number}.png"], "question": "is it the same picture ?", "answer": "no"})
        rows.append({"question": "what is a star ?", "answer": "a shape"})
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def trained(folder: Path, what: dict[str, Any], **more: Any) -> Path:
    return run(parse_recipe(what), folder, say=lambda _: None, **more)


@PEFT
def test_adapters_are_trained_beside_a_model_that_stays(tiny_model: Path, tmp_path: Path) -> None:
    """Questions asked apart, any number of tokens, LoRA and kept features; broken off, it ends in the same weights."""
    voco = {"tokens": 4, "elastic": [1, 2, 4], "shared": False, "apart": True, "words": "red star top"}
    data = {"scenes": 8, "turns": 3, "captions": 0.5, "features": "pool2d:9:positions=pack@features"}
    what = given(tiny_model, voco, data=data, **LORA)
    told: list[str] = []
    out = run(parse_recipe(what), tmp_path / "whole", say=told.append)
    assert out == tmp_path / "whole" / "voco"
    assert f'with foveate.VoCo.from_pretrained("{out}"), or lmms-eval\'s voco={out}' in told[-1]
    assert not (tmp_path / "whole" / "model").exists(), "the base model is what it was"
    kinds = {path.suffix for path in (tmp_path / "whole").rglob("*") if "checkpoint-" not in str(path.parent)}
    assert kinds - {""} <= {".safetensors", ".json"}
    assert str(tiny_model) not in (out / "lora" / "adapter_config.json").read_text(), "others have it elsewhere"
    # Broken off behind its first checkpoint, and gone on with.
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "voco")
    shutil.rmtree(tmp_path / "broken" / "checkpoint-6")
    again = trained(tmp_path / "broken", what, resume=True)
    for name in ("voco.safetensors", "lora/adapter_model.safetensors"):
        one, other = load_file(out / name), load_file(again / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[each], other[each]) for each in one), name
    # Used on the whole model, whose encoder training never ran again.
    model, processor = load(tiny_model)
    adapter = VoCo.from_pretrained(out)
    picture = processor.image_processor(images=[scene(3).image], return_tensors="pt")
    text = processor.tokenizer("<image>" * TOKENS, return_tensors="pt")
    (memory,) = adapter.encode(model, {**text, **picture})
    trained_names = {name.split(".lora_")[0] for name in load_file(out / "lora" / "adapter_model.safetensors")}
    assert len(trained_names) == 4 * 7
    assert not any("vision" in name for name in trained_names)
    assert (memory.tokens, memory.visual_tokens) == (4, TOKENS)
    assert len(adapter.generate(model, memory.first(2), ["is there a star ?"] * 2, processor, max_new_tokens=2)) == 2
    adapter.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    half = VoCo.from_pretrained(tmp_path / "half")
    assert half.fingerprint() == adapter.fingerprint() != VoCo.from_pretrained(out).fingerprint()
    assert {value.dtype for value in load_file(half.lora / "adapter_model.safetensors").values()} == {torch.bfloat16}
    (coarse,) = half.encode(load(tiny_model)[0], {**text, **picture})
    torch.testing.assert_close(coarse.values, memory.values, atol=0.02, rtol=0.05)
    before = VoCo(model, 4, shared=False, seed=1, start=processor.tokenizer("red star top")["input_ids"])
    assert (adapter.embedding - before.embedding).abs().max() > 1e-3
    trained(tmp_path / "whole", what, resume=True)


@PEFT
def test_an_image_adapter_goes_on_with_clips(tiny_model: Path, tmp_path: Path) -> None:
    """The second stage: sequences of memories, from the weights of the first."""
    first = given(tiny_model, {"tokens": 2, "shared": False}, steps=2, **LORA)
    path = trained(tmp_path / "images", first)
    again = trained(tmp_path / "again", first)
    one, other = (load_file(each / "lora" / "adapter_model.safetensors") for each in (path, again))
    assert all(torch.equal(one[name], other[name]) for name in one), "adapters begin where the seed says"
    clips = {"tokens": 2, "shared": False, "adapter": str(path), "packed": True, "apart": True}
    data = {"clips": 4}
    begun = VoCo.from_pretrained(
        trained(tmp_path / "begun", given(tiny_model, clips, data=data, steps=1, **LORA) | {"lr": 1e-12})
    )
    assert begun.packed
    torch.testing.assert_close(begun.embedding, VoCo.from_pretrained(path).embedding, atol=1e-6, rtol=0)
    weights = [load_file(each / "lora" / "adapter_model.safetensors") for each in (path, tmp_path / "begun" / "voco")]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-6 for name in weights[0])
    assert any(value.abs().max() > 1e-4 for name, value in weights[0].items() if "lora_B" in name)
    model, processor = load(tiny_model)
    frames = clip(1).frames
    picture = processor.image_processor(images=list(frames), return_tensors="pt")
    text = processor.tokenizer("<image>" * TOKENS * 4, return_tensors="pt")
    memories = begun.encode(model, {**text, **picture})
    assert begun.join(memories).tokens == 8
    assert begun.generate(model, begun.join(memories), "where does the 3 move ?", processor, max_new_tokens=1)
    for change, said in (
        ({"tokens": 3}, "has 2 tokens and the recipe has 3"),
        ({"adapter": str(tmp_path)}, "no complete VoCo adapter"),
    ):
        with pytest.raises(FoveateError, match=said):
            trained(tmp_path / "bad", given(tiny_model, {**clips, **change}, data=data, **LORA))
    with pytest.raises(FoveateError, match="doesn't go with train: embedding"):
        trained(tmp_path / "bad", given(tiny_model, clips, data=data, train="embedding"))
    with pytest.raises(FoveateError, match="LoRA weights of rank 2 and the recipe's lora has 1; write rank: 2 or more"):
        trained(tmp_path / "bad", given(tiny_model, clips, data=data, train="lora", lora={"rank": 1}))


@PEFT
def test_a_larger_rank_and_other_visual_tokens_go_on_from_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    """What LoRA adds is the same at first, whatever the new rank and scale."""
    path = trained(tmp_path / "first", given(tiny_model, {"tokens": 2, "shared": False}, steps=3, **LORA))
    larger = {"train": "lora", "lora": {"rank": 6, "alpha": 3}}
    data = {"scenes": 4, "features": "pool2d:4:positions=pack@features"}
    settings = {"tokens": 2, "shared": False, "adapter": str(path)}
    gone_on = trained(
        tmp_path / "larger",
        given(tiny_model, settings, data=data, steps=1, **larger) | {"lr": 1e-12, "precision": "fp32"},
    )
    before, after = (load_lora(each / "lora") for each in (path, gone_on))
    assert before.keys() == after.keys()
    for name, one in before.items():
        assert (one.rank, after[name].rank) == (2, 6)
        torch.testing.assert_close(after[name].up @ after[name].down, one.up @ one.down, atol=1e-5, rtol=1e-4)
    assert VoCo.from_pretrained(gone_on).features == data["features"]


def test_full_training_ends_in_a_model_and_its_tokens(tiny_model: Path, tmp_path: Path) -> None:
    """Rows with one image, two, and none; a dense teacher, and its distance in the log."""
    what = given(tiny_model, {"tokens": 2, "distil": 0.5}, data={"jsonl": str(rows_of(tmp_path))}, steps=8)
    out = trained(tmp_path / "run", what)
    model, _ = load(out)
    adapter = VoCo.from_pretrained(tmp_path / "run" / "voco")
    adapter.check(model)
    with pytest.raises(FoveateError, match="another base model"):
        adapter.check(load(tiny_model)[0])
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    losses = [each["loss"] for each in history if "loss" in each]
    assert losses[-1] < losses[0]
    assert all(each["distance"] > 0 for each in history if "loss" in each)


def test_embeddings_alone_and_the_mask(tiny_model: Path, tmp_path: Path) -> None:
    """The pass under the mask trains as the two passes do; nothing of the model moves."""
    found = []
    for name, two in (("two", True), ("one", False)):
        what = given(tiny_model, {"tokens": 2, "two_passes": two}, train="embedding", steps=3)
        out = trained(tmp_path / name, what)
        assert [path.name for path in sorted(out.iterdir())] == ["voco.json", "voco.safetensors"]
        found.append(load_file(out / "voco.safetensors")["embedding"])
    assert (found[0] - VoCo(load(tiny_model)[0], 2, seed=1).embedding).abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_questions_apart_are_questions_alone(tiny_model: Path) -> None:
    model, processor = load(tiny_model)
    voco = VoCo(model, 3, shared=False)
    rows, batches = Scenes(2, turns=3, captions=1.0), Batches(processor, family_of(model))
    settings = VoCoSettings(tokens=3, elastic=(1, 3), shared=False, apart=True)
    placed = [replace(rows[0], place=4), replace(rows[1], place=7)]
    batch = VoCoBatches(batches, settings)([(0, placed[0]), (1, placed[1])])
    assert batch["behind"].tolist() == [0, 1, 0, 0, 0, 1, 1, 1]
    assert batch["counts"].tolist() == [1, 3, 3, 1, 3, 1, 3, 1]
    assert batch["pixel_values"].shape[0] == 2
    numbers, tokens = batch.pop("rows"), batch.pop("tokens")
    assert numbers == [0, 1]
    assert tokens == int(batch["attention_mask"].sum())
    found = VoCoTrainee(model, voco, settings)(**batch)["loss"]
    total, learned = 0.0, 0
    for number in (0, 1):
        for turn, part in enumerate(questions_apart(rows[number])):
            alone = batches([(0, part if turn == 0 else type(part)(part.name, rows[number].images, with_image(part)))])
            output = voco(model, alone, tokens=settings.elastic[((4, 7)[number] + turn) % 2])
            count = int((output.labels[:, 1:] != -100).sum())
            total += cross_entropy(output.logits, output.labels).item() * count
            learned += count
    assert found.item() == pytest.approx(total / learned, rel=1e-4)


@pytest.mark.parametrize("elastic", [(1, 4), (4, 1)])
def test_every_image_sees_every_number_over_the_run(tiny_model: Path, elastic: tuple[int, ...]) -> None:
    """By numbers of rows, images would always see the first number, and text alone the second."""
    _, processor = load(tiny_model)

    class Alternating(Scenes):
        def __getitem__(self, index: int) -> Conversation:
            one = super().__getitem__(index)
            text = tuple({**each, "content": each["content"][-1:]} for each in one.messages)
            return Conversation(one.name, (), text) if index % 2 else one

    order = Passes(8, 64, seed=1)
    batches = VoCoBatches(Batches(processor, family_of(load(tiny_model)[0])), VoCoSettings(tokens=4, elastic=elastic))
    read = Reader(Alternating(8, turns=1), batches)
    seen: dict[int, set[int]] = {}
    for start in range(0, 64, 4):
        batch = read([order[place] for place in range(start, start + 4)])
        for row, count in zip(batch["rows"], batch["counts"].tolist(), strict=True):
            seen.setdefault(row, set()).add(count)
    assert seen == {row: set(elastic) for row in range(8)}


def with_image(part: Any) -> tuple[Any, ...]:
    first, *others = part.messages
    return ({"role": "user", "content": [{"type": "image"}, *first["content"]]}, *others)


@PEFT
def test_the_teacher_is_the_model_without_its_adapters(tiny_model: Path) -> None:
    import peft

    model, processor = load(tiny_model)
    batch = Batches(processor, family_of(model))([(0, Scenes(1, turns=2)[0])])
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")}
    voco = VoCo(model, 2)
    settings = VoCoSettings(tokens=2, distil=1.0)
    apart = VoCoTrainee(model, voco, settings, load(tiny_model)[0])(**batch)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    inside = VoCoTrainee(tuned, voco, settings)
    torch.testing.assert_close(inside(**batch)["loss"], apart["loss"])
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 3.0)
    assert (inside(**batch)["loss"] - apart["loss"]).abs() > 0.01 * apart["loss"]
    del batch["labels"]
    with torch.no_grad():
        torch.testing.assert_close(inside._dense(batch), load(tiny_model)[0](**batch).logits)


def test_a_teacher_from_float16_files(tiny_model: Path, tmp_path: Path) -> None:
    for part in load(tiny_model, dtype="float16"):
        part.save_pretrained(tmp_path / "half")
    changes = {"train": "full", "precision": "bf16", "steps": 1}
    trained(tmp_path / "run", given(tmp_path / "half", {"tokens": 2, "distil": 0.5}, **changes))


@pytest.mark.parametrize(
    ("voco", "changes", "said"),
    [
        ({"tokens": 2, "elastic": [1, 3]}, {}, "elastic has 3, and there are 2 tokens"),
        ({"tokens": 0}, {}, "tokens is a whole number from 1 to 65,536"),
        ({"tokens": 70000}, {}, "tokens is a whole number from 1 to 65,536"),
        ({"tokken": 2}, {}, 'did you mean "tokens"?'),
        ({"words": "red"}, {}, "shared gives all of them one"),
        ({"distil": 2.0}, {}, "a weight from 0 to 1"),
        ({"distil": 0.5, "apart": True}, {}, "excludes apart"),
        ({"two_passes": False, "apart": True}, {}, "need two_passes: true"),
        ({}, {"stages": [{"share": 1, "spec": "pool:0.25"}]}, "text sees VoCo tokens alone"),
        ({}, {"test": "pool:0.25"}, "text sees VoCo tokens alone"),
        ({}, {"trainer": {"activation_checkpointing": True}}, "two_passes: false"),
        (None, {"train": "embedding"}, "the recipe has no voco"),
    ],
)
def test_recipes_that_can_not_be(tiny_model: Path, voco: Any, changes: dict[str, Any], said: str) -> None:
    whole = {**recipe(tiny_model), **changes}
    if voco is not None:
        whole["voco"] = voco
        if "stages" not in changes:
            del whole["stages"]
    with pytest.raises(RecipeError, match=said.replace("?", r"\?")):
        parse_recipe(whole)


@pytest.mark.parametrize(
    ("voco", "changes", "said"),
    [
        ({"adapter": "MADE/nowhere"}, {}, "nowhere"),
        ({"adapter": "MADE/shared", "shared": False}, {}, "one embedding for all its tokens; write shared: true"),
        ({"adapter": "MADE/own"}, {}, "an embedding for each of its tokens; write shared: false"),
        ({"adapter": "shipped", "tokens": 32, "shared": False}, LORA | {"lora": {"rank": 32}}, "embeddings of width"),
        ({"adapter": "MADE/shared"}, LORA, "has no LoRA weights, which doesn't go with train: lora"),
        ({"teacher": "MADE/nowhere", "distil": 0.5}, {}, "there is no model directory"),
        ({"words": "   ", "shared": False}, {}, "holds no token"),
        ({"apart": True}, {"data": {"jsonl": "MADE/rows.jsonl"}}, "a later question brings an image"),
    ],
)
def test_what_can_not_be_is_found_without_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voco: Any, changes: dict[str, Any], said: str
) -> None:
    model, _ = load(tiny_model)
    VoCo(model, 2).save_pretrained(tmp_path / "shared")
    VoCo(model, 2, shared=False).save_pretrained(tmp_path / "own")
    turns = [("user", "<image> a ?"), ("assistant", "b"), ("user", "<image> c ?"), ("assistant", "d")]
    for number in range(2):
        scene(number).image.save(tmp_path / f"{number}.png")
    messages = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"images": ["0.png", "1.png"], "messages": messages}))
    what = given(tiny_model, {"tokens": 2, **voco}, train="embedding") | changes
    parsed = parse_recipe(json.loads(json.dumps(what).replace("MADE", str(tmp_path))))

    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("foveate.train.run.load_model", loaded)
    for begin in (estimate, lambda recipe: run(recipe, tmp_path / "run", say=lambda _: None)):
        with pytest.raises(FoveateError, match=said):
            begin(parsed)


def test_a_later_question_with_an_image_is_not_asked_apart(tmp_path: Path) -> None:
    from foveate.train.sources import read_conversation

    turns = [("user", "<image> a ?"), ("assistant", "b"), ("user", "<image> c ?"), ("assistant", "d")]
    value = {"images": ["0.png", "1.png"], "messages": [{"role": r, "content": c} for r, c in turns]}
    with pytest.raises(FoveateError, match="a later question brings an image"):
        questions_apart(read_conversation(value, "row 1", tmp_path))


def test_texts_go_together_that_are_alike() -> None:
    groups = alike([3, 16, 17, 40, 33, 16])
    assert sorted(number for group in groups for number in group) == list(range(6))
    assert groups == [[0, 1, 5], [2], [3, 4]]


def test_packed_images_take_no_positions() -> None:
    """A clip of 2,304 visual tokens has no place in 2,048 positions; its VoCo tokens have."""
    model, processor = load(PATH)
    family, one = family_of(model), Clips(1)[0]
    with pytest.raises(FoveateError, match=r"clip 0 has 2,3\d\d tokens, and the model has room for 2,048"):
        Batches(processor, family).row(one)
    assert [VoCoObjective(VoCoSettings(packed=packed)).dense_positions for packed in (True, False)] == [False, True]
    assert Batches(processor, family, positions=False).row(one)["input_ids"].shape[1] > 2304
