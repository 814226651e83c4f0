"""Make scenes from seeds: one at a time, forever for training, and the fixed test set."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from PIL import Image

from foveate.errors import FoveateError
from foveate.numbers import Between, check_whole
from foveate.scenes.compose import KINDS, compose
from foveate.scenes.questions import Question, ask
from foveate.scenes.things import Thing

Split = Literal["train", "test"]

TEST_QUESTIONS: Final = 4_800
"""Questions in the whole test set (about; whole scenes are never cut)."""


@dataclass(frozen=True)
class Scene:
    """One image with what is in it and what is asked about it."""

    id: str
    """``train-000012`` or ``test-000012``: the split and the seed."""
    kind: str
    """shapes, crowd, words, list, chart or tiny."""
    image: Image.Image
    """192 x 192, RGB."""
    things: tuple[Thing, ...]
    questions: tuple[Question, ...]


def scene(seed: int, *, split: Split = "train", kind: str | None = None, boost: int = 1) -> Scene:
    """Make the scene of a seed; the two splits never share a random stream.

    Args:
        seed: any whole number from 0.
        split: "train" or "test".
        kind: shapes, crowd, words, list, chart or tiny; drawn at random when left out.
        boost: how many times ten questions to ask.

    Raises:
        FoveateError: for an unknown kind, or a seed that is no whole number from 0.

    >>> one = scene(7)
    >>> one.id, one.image.size, scene(7).questions == one.questions
    ('train-000007', (192, 192), True)
    """
    check_whole("seed", seed, Between(0, 2**63 - 1))
    if kind is not None and kind not in KINDS:
        raise FoveateError(f"no scenes of kind {kind!r}; there are {', '.join(KINDS)}")
    rng = random.Random(f"foveate scenes {split} {seed}")
    drawn = rng.choices(list(KINDS), list(KINDS.values()))[0]
    kind = kind or drawn
    image, things = compose(rng, kind)
    return Scene(f"{split}-{seed:06d}", kind, image, things, ask(rng, kind, things, boost))


def test_set(n_questions: int | None = None, skip: int = 0) -> Iterator[Scene]:  # noqa: PT028
    """Yield the fixed test set: about 4,800 questions, or the first ``n_questions`` after ``skip`` scenes.

    >>> sum(len(one.questions) for one in test_set(50))
    50
    """
    if n_questions is not None:
        check_whole("n_questions", n_questions, Between(1))
    check_whole("skip", skip, Between(0))
    wanted, seen, seed = n_questions or TEST_QUESTIONS, 0, skip
    while seen < wanted:
        one = scene(seed, split="test")
        seed += 1
        if n_questions is not None and seen + len(one.questions) > wanted:
            one = Scene(one.id, one.kind, one.image, one.things, one.questions[: wanted - seen])
        seen += len(one.questions)
        yield one


test_set.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it


def question_only_floor(train: Iterable[Question], test: Iterable[Question]) -> dict[str, float]:
    """Measure accuracy without the image: each question gets its most frequent answer of the training scenes.

    A text that training never asked gets the most frequent answer of its skill. Returns the accuracy per skill.

    >>> train = [Question("how many stars ?", a, "count") for a in "112"]
    >>> question_only_floor(
    ...     train, [Question("how many stars ?", "1", "count"), Question("how many stars ?", "2", "count")]
    ... )
    {'count': 0.5}
    """
    texts: dict[str, Counter[str]] = defaultdict(Counter)
    skills: dict[str, Counter[str]] = defaultdict(Counter)
    for q in train:
        texts[q.text][q.answer] += 1
        skills[q.skill][q.answer] += 1
    right, total = Counter[str](), Counter[str]()
    for q in test:
        tally = texts.get(q.text) or skills.get(q.skill)
        total[q.skill] += 1
        if tally and min((-n, a) for a, n in tally.items())[1] == q.answer:
            right[q.skill] += 1
    return {skill: right[skill] / n for skill, n in sorted(total.items())}
