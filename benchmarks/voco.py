#!/usr/bin/env python3
"""How much of an image a few VoCo tokens keep: `python benchmarks/voco.py`.

Trains VoCo tokens for the embedded model by recipes/voco.yaml, and two rivals alike (the same images, questions, LoRA
weights, learning rate, and steps unless --rival-steps says otherwise): average pooling with a linear layer, and a small
Q-Former, one token each. Then asks all of them the questions of the test set, beside the dense model, the dense model
without an image, and VoCo tokens that nobody trained; and measures what a second question about a known image takes.
Three more parts go on from the trained tokens: `longer` trains all three on other images by recipes/voco-longer.yaml,
rivals for --rival-longer steps; `distil` trains them further on the right answers, and alike towards the
dense model's distribution; `clips` trains them on clips by recipes/voco-clips.yaml, and asks about the frames in order
and in another order. Every part writes a file under --runs and is skipped when that is there; training goes on at its
last checkpoint. The result is docs/measured/voco.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache

import foveate
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.engine import encode
from foveate.families import Family, family_of
from foveate.scenes import CLIP_SKILLS, Scene, clip, test_set
from foveate.tokens import Layout, Segment
from foveate.train import checkpoint as files
from foveate.train.batches import Batches
from foveate.train.recipe import Recipe, Voco, parse_recipe, read_mapping
from foveate.train.run import make_trainer, prepare, run
from foveate.train.sources import read_conversation
from foveate.train.voco import VoCoTrainee, alike
from foveate.transformers_api import cache_argument
from foveate.voco import VoCo, VoCoMemory
from foveate.voco.embeddings import embedding_table
from foveate.voco.prompt_rows import IGNORED, PromptRow, padded_text, prompt_rows
from foveate.voco.two_pass import memory_cache, read_images, text_logits

ROOT = Path(__file__).parents[1]
COUNTS = (1, 2, 4, 8, 32)
RIVALS = ("pool", "qformer")
LONGER = ("press-longer", "pool-longer", "qformer-longer")
"""The same three, after they have gone on with other images."""
FURTHER = {"plain": 0.0, "distil": 0.5}
"""Weights of the dense model's distribution, for the runs that go on from the trained tokens."""
PRESSED = ("press", LONGER[0], *FURTHER)
"""Runs whose result is VoCo tokens."""
AT_ONCE = 8
"""Images at a time."""
AGAIN = 2_000
"""Draws of images for the intervals of retention."""


def main() -> int:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(arguments)
    if "press" in arguments.parts:
        train("press", recipe, arguments.runs)
    for kind in RIVALS:
        if kind in arguments.parts:
            train_rival(kind, recipe, arguments)
    if "longer" in arguments.parts:
        again = longer_recipe(recipe, arguments)
        train("press-longer", again, arguments.runs)
        for kind in RIVALS:
            train_rival(f"{kind}-longer", again, arguments)
    if "distil" in arguments.parts:
        for name, weight in FURTHER.items():
            train(name, further_recipe(recipe, arguments, weight), arguments.runs)
    if "clips" in arguments.parts:
        train("clips", clips_recipe(recipe, arguments), arguments.runs)
        target = arguments.runs / "answers-clips.json"
        if not target.exists():
            files.write_json(ask_clips(arguments), target)
    if "answers" in arguments.parts:
        answers(recipe, arguments)
    if "times" in arguments.parts:
        target = arguments.runs / "times.json"
        if not target.exists():
            files.write_json(times(arguments), target)
    if arguments.parts != ["page"]:
        files.write_json(summary(recipe, arguments), arguments.out)
        say(f"{arguments.out} is written")
    if "page" in arguments.parts:
        write_page(json.loads(arguments.out.read_text(encoding="utf-8")), ROOT / "docs" / "voco.md")
    return 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "voco.yaml")
    parser.add_argument("--steps", type=int, help="instead of the recipe's; rivals get as many")
    parser.add_argument("--rival-steps", type=int, help="instead of as many as VoCo tokens get")
    parser.add_argument("--scenes", type=int, help="training scenes instead of the recipe's")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "voco")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "voco.json")
    parser.add_argument("--questions", type=int, default=1_500, help="of the test set")
    parser.add_argument(
        "--parts", nargs="*", default=["press", *RIVALS, "answers", "times"], help="also: longer, distil, clips, page"
    )
    parser.add_argument(
        "--rival-longer", type=int, help="steps of rivals in longer, instead of as many as VoCo tokens get"
    )
    parser.add_argument("--further", type=int, default=100, help="steps of distil, and of what it stands beside")
    parser.add_argument("--clips", type=int, default=200, help="of the test split that are asked about")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    given = read_mapping(arguments.recipe)
    if arguments.steps is not None:
        given["steps"] = arguments.steps
    if arguments.scenes is not None:
        given["data"]["scenes"] = arguments.scenes
    return parse_recipe(given)


# Training


class Rival(VoCoTrainee):
    """One token for an image that another module makes of its visual tokens, at the decoder's input."""

    def __init__(self, trainee: VoCoTrainee, kind: str) -> None:
        super().__init__(trainee.model, trainee.voco, Voco(shared=False, apart=True))
        width = trainee.voco.embedding.shape[1]
        torch.manual_seed(1)
        self.presser = Pooling(width) if kind == "pool" else QFormer(width)
        self.voco.requires_grad_(False)

    def memories(self, family: Family, features: Sequence[Tensor], layouts: Sequence[Layout]) -> list[VoCoMemory]:
        """The beginning of the sequence and the one token: all that text sees."""
        pressed = self.presser(torch.stack(list(features)))
        begin = embedding_table(family)(torch.tensor([family.config.get_text_config().bos_token_id]))
        return prefixes(family, torch.cat([begin.expand(len(pressed), -1, -1), pressed], dim=1))

    def held(self, row: PromptRow, memories: Sequence[VoCoMemory], count: int) -> VoCoMemory | None:
        return memories[row.images[0]] if row.images else None


class Pooling(nn.Module):
    """The mean of the visual tokens and a linear layer, which begins as the mean alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean(dim=1, keepdim=True))


class QFormer(nn.Module):
    """A learned query that looks at the visual tokens in two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        layer = nn.TransformerDecoderLayer(width, 3, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, 2, nn.LayerNorm(width))
        self.linear = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.layers(self.query.expand(len(features), -1, -1), features))


def prefixes(family: Family, embeddings: Tensor) -> list[VoCoMemory]:
    """What `(B, P, D)` leave in the cache, as memories that stand for all of it."""
    config: Any = family.decoder.config
    cache: Any = DynamicCache(config=config)
    rows, length = embeddings.shape[:2]
    family.decoder(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(rows, length, dtype=torch.int64),
        position_ids=torch.arange(length).expand(rows, -1),
        **cache_argument(family.decoder.forward, cache),
        use_cache=True,
    )
    keys = torch.stack([layer.keys for layer in cache.layers], dim=1)
    values = torch.stack([layer.values for layer in cache.layers], dim=1)
    return [VoCoMemory(k, v, 0, length, length, "", "", torch.ones(k.shape[-1] // 2)) for k, v in zip(keys, values)]


def longer_recipe(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """What recipes/voco-longer.yaml says, from the tokens that were trained here."""
    given = read_mapping(ROOT / "recipes" / "voco-longer.yaml")
    given["voco"]["adapter"] = str(arguments.runs / "press" / "voco")
    for name, value in (("steps", arguments.steps), ("scenes", arguments.scenes)):
        if value is not None:
            (given if name == "steps" else given["data"])[name] = value
    given["data"]["features"] = recipe.data.features
    return parse_recipe(given)


def rival_recipe(recipe: Recipe, steps: int | None) -> Recipe:
    """The same images, questions and LoRA weights; one token, always."""
    return parse_recipe(
        given_again(recipe) | {"voco": {"tokens": 1, "shared": False, "apart": True}, "steps": steps or recipe.steps}
    )


def run_folder(runs: Path, name: str) -> Path:
    """Where a run's files go; it takes the features that the first run has kept."""
    out = runs / name
    out.mkdir(parents=True, exist_ok=True)
    shared = runs / "press" / "features"
    if shared.exists() and not (out / "features").exists():
        (out / "features").symlink_to(shared.resolve())
    return out


def train(name: str, recipe: Recipe, runs: Path) -> None:
    """Train VoCo tokens, from wherever an earlier run was broken off."""
    run(recipe, run_folder(runs, name), resume=True, say=say)


def train_rival(name: str, recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train a rival, from wherever an earlier run was broken off; one that goes on begins with what it has learned."""
    out = run_folder(arguments.runs, name)
    done = out / "rival.safetensors"
    if done.exists():
        return
    kind, _, again = name.partition("-")
    steps = arguments.rival_longer if again else arguments.rival_steps
    trainer, switch, _ = make_trainer(prepare(rival_recipe(recipe, steps)), out, say, flops=False)
    trainee: Any = trainer.model
    rival = Rival(trainee, kind)
    if again:
        learned(rival, arguments.runs / kind)
    trainer.model = trainer.model_wrapped = rival
    kept = files.checkpoints(out)
    try:
        trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)
    finally:
        switch.close()
    trained = {name: weight.detach().contiguous() for name, weight in rival.named_parameters() if weight.requires_grad}
    files.write_tensors(trained, done)


def learned(rival: Rival, folder: Path) -> None:
    """Give a rival what it has learned."""
    stored = load_file(folder / "rival.safetensors")
    missing = {name for name, weight in rival.named_parameters() if weight.requires_grad} ^ stored.keys()
    assert not missing, missing
    rival.load_state_dict(stored, strict=False)


def further_recipe(recipe: Recipe, arguments: argparse.Namespace, weight: float) -> Recipe:
    """Further steps on the same data, whole conversations, since the dense model reads them so."""
    given = given_again(recipe)
    for name in ("words", "apart"):
        given["voco"].pop(name, None)
    given["voco"] |= {"adapter": str(arguments.runs / "press" / "voco"), "distil": weight}
    given |= {"steps": arguments.further, "lr": recipe.lr / 4}
    return parse_recipe(given)


def clips_recipe(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """Clips as recipes/voco-clips.yaml has them, from the tokens that were trained here."""
    given = read_mapping(ROOT / "recipes" / "voco-clips.yaml")
    given["voco"]["adapter"] = str(arguments.runs / "press" / "voco")
    given["data"]["features"] = recipe.data.features
    if arguments.steps is not None and arguments.steps < given["steps"]:
        given["steps"] = arguments.steps
        given["data"]["clips"] = min(given["data"]["clips"], arguments.steps * given["batch"])
    return parse_recipe(given)


def given_again(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it can be read again: without what has no value."""

    def full(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: full(each) for name, each in value.items() if each not in (None, [], {}, ())}
        return value

    return full(recipe.to_dict())


# Answers


def answers(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Which questions of the test set are answered exactly, one file per configuration."""
    wanted: dict[str, Callable[[], Way]] = {
        "dense": dense_ways,
        "untrained": untrained_ways,
        **{name: (lambda name=name: press_ways(arguments.runs / name / "voco")) for name in PRESSED},
        **{name: (lambda name=name: rival_ways(recipe, arguments.runs, name)) for name in (*RIVALS, *LONGER[1:])},
    }
    ready = {
        **{name: arguments.runs / name / "voco" / "voco.json" for name in PRESSED},
        **{name: arguments.runs / name / "rival.safetensors" for name in (*RIVALS, *LONGER[1:])},
    }
    for name, make in wanted.items():
        target = arguments.runs / f"answers-{name}.json"
        if target.exists() or (name in ready and not ready[name].exists()):
            continue
        files.write_json(ask(make(), recipe, arguments), target)
        say(f"{name}: {arguments.questions} questions are answered")


class Images:
    """A batch of test images: what the encoder and the projector make of them, dense and behind the recipe's spec."""

    def __init__(self, dense: Tensor, left: Tensor) -> None:
        self.dense, self.left = dense, left


class Way:
    """A model, and for each name what its text is asked behind.

    Args:
        model: with whatever adapters it is asked with.
        memories: of a batch of images, by name.
        drop: how many tokens of a question stand in the memory already.
        opened: what keeps adapters on the model; they go when it goes.
    """

    def __init__(
        self,
        model: Any,
        memories: Callable[[Family, Images], Mapping[str, list[VoCoMemory]]],
        drop: int,
        opened: ExitStack | None = None,
    ) -> None:
        self.model, self.memories, self.drop, self.opened = model, memories, drop, opened
        self.family = family_of(model)


def ask(way: Way, recipe: Recipe, arguments: argparse.Namespace) -> dict[str, list[int]]:
    """1 for each question that is answered exactly, 0 for the others, by name."""
    right: dict[str, list[int]] = {}
    scenes = list(test_set(arguments.questions))
    with torch.inference_mode():
        for one, images in zip(batched(scenes), test_images(recipe, arguments, scenes), strict=True):
            rows, owners = questions(way, one)
            for name, memories in way.memories(way.family, images).items():
                right.setdefault(name, []).extend(answered(way, rows, [memories[owner] for owner in owners]))
    return right


def answered(way: Way, rows: list[PromptRow], held: list[VoCoMemory]) -> list[int]:
    """Whether the likeliest token is the right one at every step of an answer: greedy decoding gives it then."""
    out = [0] * len(rows)
    for group in alike([row.text.shape[0] for row in rows]):
        logits, labels = text_logits(way.model, way.family, [rows[i] for i in group], [held[i] for i in group])
        assert labels is not None
        good = (logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == IGNORED)
        for place, each in zip(group, good.all(dim=1).tolist(), strict=True):
            out[place] = int(each)
    return out


def questions(way: Way, scenes: Sequence[Scene]) -> tuple[list[PromptRow], list[int]]:
    """Every question of these scenes with its answer as text, and which scene it is about."""
    batches, rows, owners = Batches(processor(), way.family), [], []
    for owner, scene in enumerate(scenes):
        for each in scene.questions:
            one = read_conversation({"question": each.text, "answer": each.answer}, scene.id, Path())
            (row,) = prompt_rows(way.family, batches.row(one), ())
            assert row.labels is not None
            rows.append(PromptRow((), row.text[way.drop :], row.labels[way.drop :]))
            owners.append(owner)
    return rows, owners


def ask_clips(arguments: argparse.Namespace) -> dict[str, list[int]]:
    """1 for each question about a clip that is answered exactly, by tokens per frame and order of the frames."""
    way = press_ways(arguments.runs / "clips" / "voco")
    voco = VoCo.from_pretrained(arguments.runs / "clips" / "voco")
    batches, right = Batches(processor(), way.family), {}
    for seed in range(arguments.clips):
        one = clip(seed, split="test")
        rows = []
        for each in one.questions:
            said = read_conversation({"question": each.text, "answer": each.answer}, one.id, Path())
            rows += prompt_rows(way.family, batches.row(said), ())
        for order, shown in (("in order", one), ("shuffled", one.shuffled())):
            inputs = dict(processor().image_processor(images=list(shown.frames), return_tensors="pt"))
            inputs["input_ids"] = torch.full((1, 576 * len(shown.frames)), way.family.image_token)
            frames = voco.encode(way.model, inputs)
            with torch.inference_mode(), voco.on(way.model):
                for count in COUNTS:
                    memory = voco.join([frame.first(count) for frame in frames])
                    good = answered(way, rows, [memory] * len(rows))
                    right.setdefault(f"{order}:{count}", []).extend(good)
    return right


_processor: list[Any] = []


def processor() -> Any:
    if not _processor:
        _processor.append(foveate.reference()[1])
    return _processor[0]


def base() -> Any:
    return foveate.reference()[0].float().eval()


def test_images(recipe: Recipe, arguments: argparse.Namespace, scenes: Sequence[Scene]) -> Iterator[Images]:
    """Encoded once, kept in half precision, and read for every configuration."""
    path = arguments.runs / f"test-{arguments.questions}.safetensors"
    if not path.exists():
        model, spec = base(), recipe.data.features
        dense, left = [], []
        with torch.inference_mode():
            for group in batched(scenes):
                inputs = dict(processor().image_processor(images=[s.image for s in group], return_tensors="pt"))
                encoded = encode(model, inputs, () if spec is None else (spec,))
                dense.append(torch.stack(list(encoded.projected)).half())
                if spec is None:
                    continue
                ids = torch.full((len(group), dense[-1].shape[1]), family_of(model).image_token)
                short = foveate.compress(model, {**inputs, "input_ids": ids}, spec, encoded)
                left.append(torch.stack([each.cut.features for each in short.images]).half())
        whole = torch.cat(dense)
        files.write_tensors({"dense": whole, "left": torch.cat(left) if left else whole.clone()}, path)
    kept = load_file(path)
    for start in range(0, len(scenes), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        yield Images(kept["dense"][part].float(), kept["left"][part].float())


def batched(scenes: Sequence[Scene]) -> Iterator[list[Scene]]:
    stream = iter(scenes)
    while group := list(islice(stream, AT_ONCE)):
        yield group


def dense_ways() -> Way:
    """The dense model with all visual tokens, with those that VoCo tokens read, and with none, as it was trained."""

    def memories(family: Family, images: Images) -> dict[str, list[VoCoMemory]]:
        ids = processor().tokenizer("<bos>USER:", return_tensors="pt")["input_ids"]
        begin = embedding_table(family)(ids).expand(len(images.dense), -1, -1)
        seen = {"dense": images.dense, "left": images.left, "none": images.dense[:, :0]}
        return {name: prefixes(family, torch.cat([begin, each], dim=1)) for name, each in seen.items()}

    return Way(base(), memories, drop=1)


def rows_of(features: Tensor) -> list[Layout]:
    return [Layout((Segment(1, 1, features.shape[1]),))] * len(features)


def untrained_ways() -> Way:
    """The paper's lower bound: the mask, and nobody trained for it."""
    model = base()
    rows = VoCo(model, 1).embeddings(1)
    return Way(
        model,
        lambda family, images: {"1": read_images(family, list(images.dense), rows_of(images.dense), rows, "", "")},
        drop=0,
    )


def press_ways(path: Path) -> Way:
    """The trained adapter: read once with all tokens, and asked behind the first of them."""
    model, voco = base(), VoCo.from_pretrained(path)
    voco.check(model)
    opened = ExitStack()
    opened.enter_context(voco.on(model))
    counts = [count for count in COUNTS if count <= voco.tokens]

    def memories(family: Family, images: Images) -> dict[str, list[VoCoMemory]]:
        found = read_images(family, list(images.left), rows_of(images.left), voco.embeddings(voco.tokens), "", "")
        return {str(count): [memory.first(count) for memory in found] for count in counts}

    return Way(model, memories, drop=0, opened=opened)


def rival_ways(recipe: Recipe, runs: Path, name: str) -> Way:
    from foveate.train.run import choose_parameters

    model = base()
    given = rival_recipe(recipe, None)
    trainee = VoCoTrainee(choose_parameters(model, given), VoCo(model, 1, shared=False), given.voco or Voco())
    rival = Rival(trainee, name.partition("-")[0])
    learned(rival, runs / name)
    rival.eval()
    return Way(rival.model, lambda family, images: {"1": rival.memories(family, list(images.left), ())}, drop=0)


# Times and bytes


def times(arguments: argparse.Namespace, turns: int = 15) -> dict[str, Any]:
    """Milliseconds of processor time to the first token of an answer; all ways take turns."""
    model, words = base(), "what colour is the large star ?"
    family = family_of(model)
    (scene,) = test_set(1)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}]
    text = processor().apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = dict(processor()(text=[text], images=[scene.image], return_tensors="pt"))
    voco = VoCo(model, 1)
    (row,) = prompt_rows(family, {**inputs, "input_ids": inputs["input_ids"]}, family.layouts(inputs))
    ids, mask, _ = padded_text([PromptRow((), row.text, None)])
    with torch.inference_mode():
        encoded = encode(model, inputs)
        (one,) = voco.encode(model, inputs, encoded=encoded)
        begin = processor().tokenizer("<bos>USER:", return_tensors="pt")["input_ids"]
        whole = torch.cat([embedding_table(family)(begin)[0], encoded.projected[0]])[None]
        kept = {"voco": one, "cached": prefixes(family, whole)[0]}
        ways: dict[str, Callable[[], Any]] = {
            "dense": lambda: model(**inputs),
            "voco_first": lambda: asked(model, family, voco.encode(model, inputs)[0], ids, mask)(),
            **{
                name: asked(model, family, memory, ids[:, name == "cached" :], mask[:, name == "cached" :])
                for name, memory in kept.items()
            },
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                began = time.process_time()
                way()
                found[name].append((time.process_time() - began) * 1e3)
    return {
        "milliseconds": {name: round(statistics.median(values), 3) for name, values in found.items()},
        "second_question_over_dense": ratio(found, "voco", "dense"),
        "second_question_over_cached": ratio(found, "voco", "cached"),
        "first_question_over_dense": ratio(found, "voco_first", "dense"),
        "question_tokens": ids.shape[1],
        "bytes": {
            "dense": 2 * len(family.decoder_layers) * 576 * kept["voco"].keys[0, :, 0].numel() * 4,
            **{str(count): count * one.nbytes for count in COUNTS},
        },
        "turns": turns,
        "threads": arguments.threads,
    }


def ratio(found: Mapping[str, list[float]], one: str, other: str) -> float:
    """The median of each turn's own ratio: what else the machine does hits both alike."""
    return round(statistics.median(a / b for a, b in zip(found[one], found[other], strict=True)), 4)


def asked(model: Any, family: Family, memory: VoCoMemory, ids: Tensor, mask: Tensor) -> Callable[[], Any]:
    """A question behind a cache that is there already, and is as it was afterwards."""
    cache, seen, positions = memory_cache(family, [memory], mask, ids.device)
    whole = torch.cat([seen, mask], dim=1)

    def once() -> None:
        model(
            input_ids=ids,
            attention_mask=whole,
            position_ids=positions,
            **cache_argument(model.forward, cache),
            logits_to_keep=1,
        )
        cache.crop(-ids.shape[1])

    return once


# The result


def summary(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy with intervals, retention by both measures, per configuration; what is missing is not there."""
    scenes = list(test_set(arguments.questions))
    owners = [scene.id for scene in scenes for _ in scene.questions]
    skills = [each.skill for scene in scenes for each in scene.questions]
    found: dict[str, list[int]] = {}
    for name in ("dense", "untrained", "press", *RIVALS, *LONGER, *FURTHER):
        path = arguments.runs / f"answers-{name}.json"
        if path.exists():
            for key, right in json.loads(path.read_text(encoding="utf-8")).items():
                found[f"{name}:{key}" if name in ("dense", *PRESSED) else name] = right
    rows: list[dict[str, Any]] = []
    upper, lower = found.get("dense:dense"), found.get("untrained")
    for name, right in found.items():
        row: dict[str, Any] = {"what": name, "accuracy": plain(mean_interval(right, owners))}
        row["by_skill"] = {
            skill: round(statistics.mean(r for r, s in zip(right, skills) if s == skill), 4)
            for skill in sorted({*skills})
        }
        if upper is not None and lower is not None and name not in ("dense:dense", "untrained"):
            row |= retention(right, upper, lower, owners)
            row["over_untrained"] = plain(difference_interval(right, lower, owners))
        kind, _, count = name.partition(":")
        for rival in RIVALS:
            beside = rival + kind.removeprefix("press")
            if name in ("press:1", "press-longer:1") and beside in found:
                row[f"over_{rival}"] = plain(difference_interval(right, found[beside], owners))
        if kind == "distil":
            row["over_plain"] = plain(difference_interval(right, found[f"plain:{count}"], owners))
        rows.append(row)
    measured = arguments.runs / "times.json"
    return {
        "what": "share of test questions answered exactly; retention: (x - untrained) / (dense - untrained); "
        "ratio: x / dense",
        "questions": len(owners),
        "images": len(scenes),
        "recipe": recipe.to_dict(),
        "rival_steps": arguments.rival_steps or recipe.steps,
        "longer": longer_summary(recipe, arguments) if "press-longer:1" in found else None,
        "rows": rows,
        "further": arguments.further if "plain:1" in found else None,
        "clips": clips_summary(recipe, arguments),
        "times": json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else None,
        "environment": {
            "machine": platform.machine(),
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
        },
    }


def longer_summary(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """By what recipe the trained ones went on, and for how many steps the rivals did."""
    again = longer_recipe(recipe, arguments)
    given = again.to_dict()
    given["voco"]["adapter"] = "press"  # Where its folder is means nothing elsewhere.
    return {"recipe": given, "rival_steps": arguments.rival_longer or again.steps}


def clips_summary(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Accuracy by what is asked, the frames in order and in another order, and the difference clip by clip."""
    path = arguments.runs / "answers-clips.json"
    if not path.exists():
        return None
    found: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
    asked = [each for seed in range(arguments.clips) for each in clip(seed, split="test").questions]
    given = clips_recipe(recipe, arguments).to_dict()
    given["voco"]["adapter"] = "press"  # Where its folder is means nothing elsewhere.
    rows: list[dict[str, Any]] = []
    for count in COUNTS:
        row: dict[str, Any] = {"tokens": count}
        for skill in CLIP_SKILLS:
            ordered, shuffled = (
                [good for good, each in zip(found[f"{order}:{count}"], asked, strict=True) if each.skill == skill]
                for order in ("in order", "shuffled")
            )
            owners = [str(number) for number in range(len(ordered))]
            row[skill] = {
                "in_order": plain(mean_interval(ordered, owners)),
                "shuffled": plain(mean_interval(shuffled, owners)),
                "difference": plain(difference_interval(ordered, shuffled, owners)),
            }
        rows.append(row)
    guessed = {
        skill: max(Counter(each.answer for each in asked if each.skill == skill).values()) / arguments.clips
        for skill in CLIP_SKILLS
    }
    return {
        "clips": arguments.clips,
        "frames": len(clip(0).frames),
        "recipe": given,
        "commonest_answer": {name: round(value, 4) for name, value in guessed.items()},
        "rows": rows,
    }


def retention(
    right: Sequence[int], upper: Sequence[int], lower: Sequence[int], owners: Sequence[str]
) -> dict[str, Any]:
    """Retention and ratio, with 95 % intervals from drawing images again."""
    sums: dict[str, list[int]] = {}
    for *values, owner in zip(right, upper, lower, owners, strict=True):
        own = sums.setdefault(owner, [0, 0, 0])
        for at, value in enumerate(values):
            own[at] += int(value)
    images, drawn = list(sums.values()), random.Random(1)

    def both(chosen: Sequence[Sequence[int]]) -> tuple[float, float]:
        x, top, bottom = (sum(each[at] for each in chosen) for at in range(3))
        return ((x - bottom) / (top - bottom) if top != bottom else math.nan), (x / top if top else math.nan)

    many = [both(drawn.choices(images, k=len(images))) for _ in range(AGAIN)]
    out: dict[str, Any] = {}
    for at, name in enumerate(("retention", "ratio")):
        values = sorted(each[at] for each in many)
        low, high = values[int(0.025 * AGAIN)], values[int(0.975 * AGAIN) - 1]
        out[name] = {"value": round(both(images)[at], 4), "low": round(low, 4), "high": round(high, 4)}
    return out


TITLES = {
    "dense:dense": "dense, 576 visual tokens",
    "dense:left": "dense, the visual tokens that VoCo reads; not trained for it",
    "dense:none": "dense, no image",
    "untrained": "one VoCo token, not trained: the lower bound",
    "pool": "average pooling and a linear layer, one token, trained alike",
    "qformer": "Q-Former, one token, trained alike",
    **{f"press:{count}": f"VoCo, {count} token{'s' * (count > 1)}" for count in COUNTS},
}


def table(found: Mapping[str, Any]) -> str:
    """The rows of a result as the page has them."""
    size = (found["times"] or {}).get("bytes", {})
    rows = {row["what"]: row for row in found["rows"]}
    lines = ["| what | KV of an image | accuracy | retention | ratio |", "|:--|--:|--:|--:|--:|"]
    longer = found.get("longer")
    first = [name for name in rows if name.partition(":")[0] in ("press", *RIVALS)]
    shown = [name for name in rows if name in TITLES and name not in first]
    shown += [name for name in rows if name.partition(":")[0] in LONGER]
    for name in [*shown, *first]:
        row, (what, _, count) = rows[name], name.partition(":")
        title = TITLES[name.replace("-longer", "")]
        if longer and name in first:
            steps = found["recipe"]["steps"] if what == "press" else found["rival_steps"]
            title += f", after its first {steps:,} steps"
        if name == "dense:dense":
            count = "dense"
        held = f"{size[count or '1'] / 1024:,.0f} KB" if (count or "1") in size else ""
        cells = [
            f"{row[key]['value']:.1%} ({row[key]['low']:.1%} to {row[key]['high']:.1%})" if key in row else ""
            for key in ("accuracy", "retention", "ratio")
        ]
        lines.append(f"| {' | '.join([title, held, *cells])} |")
    lines += [
        f"\nOne VoCo token over {title}: {each['value'] * 100:+.1f} points ({each['low'] * 100:+.1f} to "
        f"{each['high'] * 100:+.1f}), question by question."
        for row in [rows.get("press-longer:1" if longer else "press:1", {})]
        for key, title in (("over_pool", "average pooling"), ("over_qformer", "the Q-Former"))
        for each in ([row[key]] if key in row else [])
    ]
    if found.get("further"):
        lines += [
            f"\n{found['further']} further steps behind the first {found['recipe']['steps']:,}, with a quarter of the "
            "learning rate:\n",
            "| tokens | before | on the right answers | half of it the dense model's distribution | difference |",
            "|--:|--:|--:|--:|--:|",
        ]
        for count in COUNTS:
            shown = [rows[f"{kind}:{count}"]["accuracy"]["value"] for kind in ("press", *FURTHER)]
            lines.append(
                f"| {count} | {' | '.join(f'{value:.1%}' for value in shown)} | "
                f"{points(rows[f'distil:{count}']['over_plain'])} |"
            )
    if found.get("clips"):
        lines += clips_table(found["clips"])
    if found["times"]:
        took, less = found["times"]["milliseconds"], found["times"]["second_question_over_cached"]
        lines += [
            "",
            "| to the first token of an answer | processor time |",
            "|:--|--:|",
            f"| dense, nothing kept | {took['dense']:.1f} ms |",
            f"| dense, the image's 576 keys and values kept | {took['cached']:.1f} ms |",
            f"| one VoCo token kept | {took['voco']:.1f} ms, {less:.0%} of the one above |",
            f"| one VoCo token, on the first question | {took['voco_first']:.1f} ms |",
        ]
    return "\n".join(lines)


SKILL_TITLES = {"way": "where it moves", "first": "which is first", "often": "in how many frames"}


def clips_table(found: Mapping[str, Any]) -> list[str]:
    """What is answered about clips, frames in order and not."""
    lines = [
        f"\n{found['clips']} clips of {found['frames']} frames that nobody trained on, each question exactly right:\n",
        "| tokens per frame | asked | in order | shuffled | difference | the commonest answer |",
        "|--:|:--|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        for skill, title in SKILL_TITLES.items():
            one = row[skill]
            lines.append(
                f"| {row['tokens']} | {title} | {one['in_order']['value']:.1%} | {one['shuffled']['value']:.1%} | "
                f"{points(one['difference'])} | {found['commonest_answer'][skill]:.1%} |"
            )
    return lines


def points(each: Mapping[str, float]) -> str:
    return f"{each['value'] * 100:+.1f} ({each['low'] * 100:+.1f} to {each['high'] * 100:+.1f})"


def write_page(found: Mapping[str, Any], page: Path) -> None:
    """Put the table into the page, between its two marks."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition("<!-- measured -->\n")
    _, end, after = rest.partition("<!-- end -->")
    assert begin
    assert end
    page.write_text(f"{before}{begin}{table(found)}\n{end}{after}", encoding="utf-8")


def plain(interval: Any) -> dict[str, Any]:
    return {name: None if value is None else round(value, 4) for name, value in interval.to_dict().items()}


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
