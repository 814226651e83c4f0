"""Scenes of real pixels: mosaics of handwritten digits and of small photos, and easy-VQA, from a data folder."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image
from recipes.reference.targets import PHOTOS

from foveate.scenes import COLOURS, PLACES, Question, Scene, Thing
from foveate.scenes.draw import background
from foveate.scenes.questions import balanced

Part = Literal["train", "held_out"]

KINDS: Final[dict[str, float]] = {"digits": 0.5, "photos": 0.33, "easy": 0.17}
"""The kinds of real-pixel scenes and how often each is drawn."""

_CANVAS: Final = 192
_HELD_OUT: Final = {"digits": 5_000, "photos": 1_000, "easy": 400}


class Pixels:
    """The real pictures of a data folder: ``mnist/train.npz``, ``cifar10/train.npz``, ``easy_vqa/train.{zip,jsonl}``.

    The last 5,000 digits, 1,000 photos and 400 easy-VQA images are held out: ``part="held_out"`` draws only from them,
    ``part="train"`` never does. Sets that the folder lacks are left out; ``kinds`` tells which there are.

    >>> Pixels(Path("/no/such/folder")).kinds
    ()
    """

    def __init__(self, folder: Path | None) -> None:
        self.arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for kind, name in (("digits", "mnist"), ("photos", "cifar10")):
            path = folder / name / "train.npz" if folder else None
            if path and path.exists():
                with np.load(path) as data:
                    self.arrays[kind] = data["images"], data["labels"]
        self.easy: list[tuple[bytes, list[tuple[str, str]]]] = []
        if folder and (folder / "easy_vqa" / "train.jsonl").exists():
            rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
            with (folder / "easy_vqa" / "train.jsonl").open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    rows[row["image"]].append((row["question"].replace("?", " ?"), row["answer"]))
            with zipfile.ZipFile(folder / "easy_vqa" / "train.zip") as archive:
                self.easy = [(archive.read(name), asked) for name, asked in rows.items()]
        self.kinds: tuple[str, ...] = tuple(k for k in KINDS if k in self.arrays or (k == "easy" and self.easy))

    def scene(self, seed: int, *, part: Part = "train", kind: str | None = None) -> Scene:
        """Make the real-pixel scene of a seed.

        The skills of its questions are ``digits``, ``photos``, ``easy_open`` and ``easy_yes_no``.
        """
        rng = random.Random(f"foveate pixels {part} {seed}")
        kind = kind or rng.choices(self.kinds, [KINDS[k] for k in self.kinds])[0]
        image, things, questions = self._easy(rng, part) if kind == "easy" else self._mosaic(rng, part, kind)
        return Scene(f"{part}-{kind}-{seed:06d}", kind, image, tuple(things), tuple(questions))

    def _index(self, rng: random.Random, kind: str, part: Part, total: int) -> int:
        cut = total - _HELD_OUT[kind]
        return rng.randrange(cut) if part == "train" else rng.randrange(cut, total)

    def _mosaic(self, rng: random.Random, part: Part, kind: str) -> tuple[Image.Image, list[Thing], list[Question]]:
        pictures, labels = self.arrays[kind]
        style = rng.random()
        if style < 0.35:
            image, ink = Image.new("RGB", (_CANVAS, _CANVAS), (0, 0, 0)), (255, 255, 255)
        elif style < 0.6:
            image, ink = Image.new("RGB", (_CANVAS, _CANVAS), (255, 255, 255)), (0, 0, 0)
        else:
            image, base = background(rng, _CANVAS)
            bright = sum(base) > 380
            ink = (rng.randint(0, 90), rng.randint(0, 90), rng.randint(0, 90))
            ink = ink if bright else (255 - ink[0], 255 - ink[1], 255 - ink[2])
        things = []
        for place in sorted(rng.sample(range(9), rng.randint(3, 9))):
            i = self._index(rng, kind, part, len(labels))
            side = round((28 if kind == "digits" else 32) * rng.uniform(1.0, 1.6))
            tile = Image.fromarray(pictures[i])
            if kind == "photos" and rng.random() < 0.5 and part == "train":
                tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            tile = tile.resize((side, side), Image.Resampling.BICUBIC)
            reach = min(19, (64 - side) // 2 + 6)
            cx, cy = (64 * p + 32 + rng.randint(-reach, reach) for p in (place % 3, place // 3))
            x, y = (min(max(c - side // 2, 0), _CANVAS - side) for c in (cx, cy))
            box = (float(x), float(y), float(x + side), float(y + side))
            if kind == "digits":
                image.paste(ink, (x, y), tile)
                things.append(Thing("digit", box, value=int(labels[i])))
            else:
                image.paste(tile, (x, y))
                things.append(Thing("photo", box, photo=PHOTOS[int(labels[i])]))
        return image, things, list(_ask_mosaic(rng, things, kind))

    def _easy(self, rng: random.Random, part: Part) -> tuple[Image.Image, list[Thing], list[Question]]:
        data, asked = self.easy[self._index(rng, "easy", part, len(self.easy))]
        small = Image.open(io.BytesIO(data)).convert("RGB")
        image = small.resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC)
        pixels = np.asarray(image).astype(np.int32)
        far = np.abs(pixels - pixels[0, 0]).sum(-1) > 40
        things = []
        if far.any():
            ys, xs = np.nonzero(far)
            answers = {a for _, a in asked} | {
                w
                for q, a in asked
                for w in q.split()
                if a == ("no" if "not" in q.split() or "no" in q.split() else "yes")
            }
            colour = next((c for c in COLOURS if c in answers), None)
            shape = next((s for s in ("rectangle", "circle", "triangle") if s in answers), None)
            box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
            things.append(Thing("shape", box, colour=colour, shape=shape))
        questions = [Question(q, a, "easy_yes_no" if a in ("yes", "no") else "easy_open") for q, a in asked]
        rng.shuffle(questions)
        return image, things, questions[:10]


def _ask_mosaic(rng: random.Random, things: list[Thing], kind: str) -> Iterator[Question]:
    names = [str(t.value) if kind == "digits" else str(t.photo) for t in things]
    every = [str(d) for d in range(10)] if kind == "digits" else list(PHOTOS)
    tally, noun = Counter(names), "digit" if kind == "digits" else "photo"
    at = {t.place(_CANVAS): n for t, n in zip(things, names)}
    places = [p for p in PLACES if p in at]
    for place in rng.sample(places, min(4, len(places))):
        yield Question(f"which {noun} is {place} ?", at[place], f"{noun}s")
    article = {n: "an" if n[0] == "a" and kind == "photos" else "a" for n in every}
    pool = [Question(f"is there {article[n]} {n} ?", "yes" if tally[n] else "no", f"{noun}s") for n in every]
    yield from balanced(rng, pool, 2)
    if kind == "digits":
        pool = [Question(f"how many digits are {n} ?", str(tally[n]), "digits") for n in every]
        yield from balanced(rng, pool, 2)
    single = [Question(f"where is the {n} ?", p, f"{noun}s") for p, n in at.items() if p and tally[n] == 1]
    yield from rng.sample(single, min(2, len(single)))
    yield Question(f"how many {noun}s ?", str(len(things)), f"{noun}s")
