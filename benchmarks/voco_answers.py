"""Ask trained VoCo tokens, their rivals and the dense model the same test questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from voco_rivals import Rival, load_rival, prefix_memories

import foveate
from foveate.engine import encode
from foveate.families import Family, family_of
from foveate.files import write_tensors
from foveate.layout import Layout, one_row
from foveate.loading import load_model
from foveate.scenes import Scene, clip, test_set
from foveate.train.batches import Batches
from foveate.train.parameters import choose_parameters
from foveate.train.recipe import Recipe
from foveate.train.sources import read_conversation
from foveate.voco import VoCo, VoCoMemory
from foveate.voco.embeddings import embedding_table
from foveate.voco.objective import VoCoTrainee, alike
from foveate.voco.prompt_rows import IGNORED, PromptRow, prompt_rows
from foveate.voco.two_pass import read_images, text_logits

COUNTS = (1, 2, 4, 8, 32)
"""Numbers of VoCo tokens that are asked."""
IMAGES_AT_ONCE = 8


@cache
def processor() -> Any:
    """Return the embedded model's processor."""
    return foveate.reference()[1]


def embedded_model() -> Any:
    """Return a new embedded model in float32."""
    return foveate.reference()[0].float().eval()


@dataclass(frozen=True)
class TestImages:
    """A batch of test images, at the decoder's input.

    Attributes:
        dense: `(B, 576, D)`, all visual tokens.
        reduced: `(B, N, D)`, what the recipe's spec leaves of them.
    """

    __test__ = False

    dense: Tensor
    reduced: Tensor


class Configuration:
    """A model, and what text is asked after, under one or several names.

    Args:
        model: with the adapters that it is asked with.
        memories: makes the memories of a batch of images, by name.
        skip: how many tokens of a question the memory has already.
        adapters: keeps adapters on the model for as long as the configuration lives.
        encoder: the model whose encoder and projector see the images; None for the embedded model.
    """

    def __init__(
        self,
        model: Any,
        memories: Callable[[Family, TestImages], Mapping[str, list[VoCoMemory]]],
        skip: int,
        adapters: ExitStack | None = None,
        encoder: Any = None,
    ) -> None:
        self.model, self.memories, self.skip, self.adapters = model, memories, skip, adapters
        self.encoder = encoder
        self.family = family_of(model)


# Configurations


def dense_configuration() -> Configuration:
    """Return the dense model with all visual tokens, with those that VoCo tokens read, and with none."""

    def memories(family: Family, images: TestImages) -> dict[str, list[VoCoMemory]]:
        ids = processor().tokenizer("<bos>USER:", return_tensors="pt")["input_ids"]
        begin = embedding_table(family)(ids).expand(len(images.dense), -1, -1)
        visual = {"dense": images.dense, "left": images.reduced, "none": images.dense[:, :0]}
        return {name: prefix_memories(family, torch.cat([begin, tokens], dim=1)) for name, tokens in visual.items()}

    return Configuration(embedded_model(), memories, skip=1)


def untrained_configuration() -> Configuration:
    """Return the paper's lower bound: a VoCo token that wasn't trained."""
    model = embedded_model()
    embeddings = VoCo(model, 1).embeddings(1)

    def memories(family: Family, images: TestImages) -> dict[str, list[VoCoMemory]]:
        return {"1": read_images(family, list(images.dense), row_layouts(images.dense), embeddings, "", "")}

    return Configuration(model, memories, skip=0)


def voco_configuration(folder: Path) -> Configuration:
    """Return a trained adapter: images are read with all tokens, and asked after the first 1, 2, 4, ... of them.

    An adapter beside which there is a model, its decoder trained with it, is read with that model.
    """
    own = folder.parent / "model"
    model = load_model(own).float().eval() if own.exists() else embedded_model()
    voco = VoCo.from_pretrained(folder)
    voco.check(model)
    adapters = ExitStack()
    adapters.enter_context(voco.on(model))
    counts = [count for count in COUNTS if count <= voco.tokens]

    def memories(family: Family, images: TestImages) -> dict[str, list[VoCoMemory]]:
        layouts = row_layouts(images.reduced)
        read = read_images(family, list(images.reduced), layouts, voco.embeddings(voco.tokens), "", "")
        return {str(count): [memory.first(count) for memory in read] for count in counts}

    return Configuration(model, memories, skip=0, adapters=adapters, encoder=model)


def rival_configuration(kind: str, recipe: Recipe, folder: Path) -> Configuration:
    """Return a trained rival.

    Args:
        kind: of `RIVALS`.
        recipe: it was trained by.
        folder: of its run.
    """
    model = embedded_model()
    trainee = VoCoTrainee(choose_parameters(model, recipe), VoCo(model, 1, shared=False), recipe.objective.settings)
    rival = Rival(trainee, kind)
    load_rival(rival, folder)
    rival.eval()

    def memories(family: Family, images: TestImages) -> dict[str, list[VoCoMemory]]:
        return {"1": rival.memories(family, list(images.reduced), ())}

    return Configuration(rival.model, memories, skip=0)


def row_layouts(features: Tensor) -> list[Layout]:
    """Return layouts of one row for `(B, N, D)` features."""
    return [one_row(features.shape[1])] * len(features)


# Answers


def ask(configuration: Configuration, recipe: Recipe, questions: int, images: Path) -> dict[str, list[int]]:
    """Return 1 for each question that is answered exactly and 0 for the others, by name.

    Args:
        configuration: what is asked.
        recipe: its spec reduces the images.
        questions: of the test set.
        images: the file of encoded test images; written if it is missing.
    """
    right: dict[str, list[int]] = {}
    scenes = list(test_set(questions))
    with torch.inference_mode():
        for batch, encoded in zip(
            batched(scenes), encoded_images(recipe, images, scenes, configuration.encoder), strict=True
        ):
            rows, owners = question_rows(configuration, batch)
            for name, memories in configuration.memories(configuration.family, encoded).items():
                found = answered(configuration, rows, [memories[owner] for owner in owners])
                right.setdefault(name, []).extend(found)
    return right


def ask_clips(folder: Path, clips: int) -> dict[str, list[int]]:
    """Return 1 for each question about a clip that is answered exactly, by order of frames and tokens per frame.

    Args:
        folder: of the adapter.
        clips: how many test clips.
    """
    configuration, voco = voco_configuration(folder), VoCo.from_pretrained(folder)
    batches, right = Batches(processor(), configuration.family), {}
    for seed in range(clips):
        ordered = clip(seed, split="test")
        rows = []
        for question in ordered.questions:
            text = read_conversation({"question": question.text, "answer": question.answer}, ordered.id, Path())
            rows += prompt_rows(configuration.family, batches.row(text), ())
        for order, shown in (("in order", ordered), ("shuffled", ordered.shuffled())):
            inputs = dict(processor().image_processor(images=list(shown.frames), return_tensors="pt"))
            inputs["input_ids"] = torch.full((1, 576 * len(shown.frames)), configuration.family.image_token)
            frames = voco.encode(configuration.model, inputs)
            with torch.inference_mode(), voco.on(configuration.model):
                for count in COUNTS:
                    memory = voco.join([frame.first(count) for frame in frames])
                    found = answered(configuration, rows, [memory] * len(rows))
                    right.setdefault(f"{order}:{count}", []).extend(found)
    return right


def answered(configuration: Configuration, rows: list[PromptRow], memories: list[VoCoMemory]) -> list[int]:
    """Return 1 for each row whose most likely token is right at every step of the answer, as in greedy decoding."""
    right = [0] * len(rows)
    for group in alike([row.text.shape[0] for row in rows]):
        texts, own = [rows[row] for row in group], [memories[row] for row in group]
        logits, labels = text_logits(configuration.model, configuration.family, texts, own)
        assert labels is not None
        correct = (logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == IGNORED)
        for row, every in zip(group, correct.all(dim=1).tolist(), strict=True):
            right[row] = int(every)
    return right


def question_rows(configuration: Configuration, scenes: Sequence[Scene]) -> tuple[list[PromptRow], list[int]]:
    """Return every question of scenes with its answer, and the number of its scene."""
    batches, rows, owners = Batches(processor(), configuration.family), [], []
    for owner, scene in enumerate(scenes):
        for question in scene.questions:
            text = read_conversation({"question": question.text, "answer": question.answer}, scene.id, Path())
            (row,) = prompt_rows(configuration.family, batches.row(text), ())
            assert row.labels is not None
            rows.append(PromptRow((), row.text[configuration.skip :], row.labels[configuration.skip :]))
            owners.append(owner)
    return rows, owners


# Images


def encoded_images(recipe: Recipe, path: Path, scenes: Sequence[Scene], model: Any) -> Iterator[TestImages]:
    """Yield the test images in batches; they are encoded once, by a model (None: the embedded one), and kept in half
    precision."""
    if not path.exists():
        model = embedded_model() if model is None else model
        spec = recipe.data.features
        dense, reduced = [], []
        with torch.inference_mode():
            for batch in batched(scenes):
                inputs = dict(processor().image_processor(images=[s.image for s in batch], return_tensors="pt"))
                encoded = encode(model, inputs, () if spec is None else (spec,))
                dense.append(torch.stack(list(encoded.projected)).half())
                if spec is None:
                    continue
                ids = torch.full((len(batch), dense[-1].shape[1]), family_of(model).image_token)
                short = foveate.compress(model, {**inputs, "input_ids": ids}, spec, encoded)
                reduced.append(torch.stack([image.features for image in short.images]).half())
        every = torch.cat(dense)
        # The names are those of files that were written before.
        write_tensors(path, {"dense": every, "left": torch.cat(reduced) if reduced else every.clone()})
    kept = load_file(path)
    for start in range(0, len(scenes), IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        yield TestImages(kept["dense"][part].float(), kept["left"][part].float())


def batched(scenes: Sequence[Scene]) -> Iterator[list[Scene]]:
    """Yield scenes in batches."""
    stream = iter(scenes)
    while batch := list(islice(stream, IMAGES_AT_ONCE)):
        yield batch
