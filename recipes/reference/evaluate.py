"""Measure a reference VLM: accuracy per skill on the fixed test set and on held-out real pixels, beside its floor.

``python -m recipes.reference.evaluate [MODEL_DIR] [--data DIR] [--questions N] [--random 64] [--json]``

All questions of an image are answered in one pass: an answer counts as right when the model's most likely token is the
right one at every step up to and including the end of the answer, which is when greedy decoding gives exactly it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes.reference.decoder import DecoderTrainer, attention_mask, pack
from recipes.reference.encoder import pixel_values
from recipes.reference.pixels import Pixels
from recipes.reference.targets import GRID
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from foveate.embedded import PATH
from foveate.scenes import SKILLS, Question, Scene, question_only_floor, scene, test_set

REAL: tuple[str, ...] = ("digits", "photos", "easy_open", "easy_yes_no")


@torch.inference_mode()
def right_answers(
    model: LlavaForConditionalGeneration, scenes: Sequence[Scene], *, keep: int | None = None, seed: int = 0
) -> list[list[bool]]:
    """Tell which questions of each scene the model answers exactly.

    Args:
        model: the reference VLM or one in training.
        scenes: a batch of them.
        keep: look at this many of the 576 visual tokens only, drawn at random for each image.
        seed: of that drawing.

    Returns:
        One list per scene, in the order of its questions.
    """
    images = torch.from_numpy(np.stack([pixel_values(s.image) for s in scenes]))
    encoded: Any = model.model.get_image_features(images)
    features = encoded.pooler_output
    visual = torch.stack(list(features)) if not isinstance(features, Tensor) else features
    places = torch.arange(GRID * GRID).expand(len(scenes), -1)
    if keep is not None:
        drawn = [sorted(random.Random(f"{seed} {s.id}").sample(range(GRID * GRID), keep)) for s in scenes]
        places = torch.tensor(drawn)
        visual = visual.gather(1, places[..., None].expand(-1, -1, visual.shape[-1]))
    length = max(sum(len(q.text.split()) + 2 * len(q.answer) + 8 for q in s.questions) for s in scenes)
    # Skills stand for the questions' numbers here: that is what tells them apart after packing.
    numbered = [
        Scene(
            s.id,
            s.kind,
            s.image,
            s.things,
            tuple(Question(q.text, q.answer, str(i)) for i, q in enumerate(s.questions)),
        )
        for s in scenes
    ]
    names = [str(i) for i in range(max(len(s.questions) for s in scenes))]
    text = pack(numbered, length, names, random.Random(0), captions=0.0, vary=False)
    mask = attention_mask(text.segment, visual.shape[1], visual.dtype)
    logits = DecoderTrainer(model)(visual, places, text.ids, text.positions, mask)
    good = (logits.argmax(-1) == text.label) | (text.label < 0)
    out = []
    for b, s in enumerate(scenes):
        out.append(
            [
                bool(good[b][text.skill[b] == i].all()) and bool((text.skill[b] == i).any())
                for i in range(len(s.questions))
            ]
        )
    return out


def accuracy(
    model: LlavaForConditionalGeneration, scenes: Iterable[Scene], *, keep: int | None = None, batch: int = 16
) -> dict[str, tuple[float, int]]:
    """Measure accuracy per skill: {skill: (share of right answers, number of questions)}."""
    right, asked = Counter[str](), Counter[str]()
    stream = iter(scenes)
    while group := list(islice(stream, batch)):
        for one, answers in zip(group, right_answers(model, group, keep=keep)):
            for q, good in zip(one.questions, answers):
                asked[q.skill] += 1
                right[q.skill] += good
    return {skill: (right[skill] / n, n) for skill, n in sorted(asked.items())}


def held_out(pixels: Pixels, count: int) -> Iterator[Scene]:
    """Go through ``count`` held-out real-pixel scenes of each kind that the folder has."""
    for kind in pixels.kinds:
        for seed in range(count):
            yield pixels.scene(seed, part="held_out", kind=kind)


def measure(
    model: LlavaForConditionalGeneration,
    data: Path | None = None,
    *,
    questions: int | None = None,
    keep: int | None = None,
) -> dict[str, dict[str, float]]:
    """Measure everything: {skill: {"accuracy", "floor", "questions"}}, scenes' skills first."""
    tests = list(test_set(questions))
    pixels = Pixels(data)
    real = list(held_out(pixels, 100 if questions is None else max(8, questions // 48)))
    trained = [q for i in range(2_000) for q in scene(i).questions]
    trained += [q for i in range(1_000 if pixels.kinds else 0) for q in pixels.scene(i).questions]
    floor = question_only_floor(trained, [q for s in [*tests, *real] for q in s.questions])
    found = accuracy(model, [*tests, *real], keep=keep)
    order = [s for s in (*SKILLS, *REAL) if s in found]
    return {s: {"accuracy": found[s][0], "floor": floor[s], "questions": found[s][1]} for s in order}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.reference.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=PATH)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--questions", type=int)
    parser.add_argument("--random", type=int, help="also with this many visual tokens drawn at random")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        given.model, dtype=torch.float32, local_files_only=True
    ).eval()
    found = measure(model, given.data, questions=given.questions)
    few = measure(model, given.data, questions=given.questions, keep=given.random) if given.random else None
    if given.json:
        print(json.dumps({"dense": found, f"random:{given.random}": few} if few else {"dense": found}, indent=1))
        return
    head = f"{'skill':12} {'asked':>6} {'floor':>6} {'dense':>6}" + (f" {given.random:>4} random" if few else "")
    print(head)
    for skill, row in found.items():
        line = f"{skill:12} {row['questions']:6.0f} {row['floor']:6.1%} {row['accuracy']:6.1%}"
        print(line + (f" {few[skill]['accuracy']:8.1%}" if few else ""))
    own = [s for s in found if s in SKILLS]
    mean = sum(found[s]["accuracy"] for s in own) / len(own)
    print(
        f"{'mean':12} {'':6} {'':6} {mean:6.1%}"
        + (f" {sum(few[s]['accuracy'] for s in own) / len(own):8.1%}" if few else "")
    )


if __name__ == "__main__":
    main()
