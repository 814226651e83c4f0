"""Ask about a scene: questions with one right answer, balanced over answers, each with the skill that it needs."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from foveate.arguments import check_kind, listed
from foveate.numbers import Between, check_whole
from foveate.scenes.things import Thing
from foveate.scenes.vocabulary import COLOURS, SHAPES, WORDS

_CANVAS: Final = 192
_MARGIN: Final = 0.035


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer and the skill it needs.

    >>> Question("how many stars ?", "3", "count").answer
    '3'
    """

    text: str
    answer: str
    skill: str


def plural(shape: str) -> str:
    """Return the plural of a shape.

    >>> plural("cross"), plural("star")
    ('crosses', 'stars')
    """
    return shape + ("es" if shape == "cross" else "s")


def described(things: Sequence[Thing]) -> Iterator[tuple[Thing, str]]:
    """Return every way to name exactly one thing: (thing, "the red circle")."""
    names: dict[str, list[Thing]] = defaultdict(list)
    for t in things:
        if t.kind == "shape":
            names[f"the {t.colour} {t.shape}"].append(t)
            names[f"the {t.shape}"].append(t)
            names[f"the {t.colour} shape"].append(t)
            if t.size:
                names[f"the {t.size} {t.shape}"].append(t)
        elif t.kind == "word":
            names[f"the word {t.word}"].append(t)
        elif t.kind == "number":
            names[f"the number {t.value}"].append(t)
        elif t.kind == "bar":
            names[f"the {t.colour} bar"].append(t)
        elif t.kind == "digit":
            names[f"the {t.value}"].append(t)
        elif t.kind == "photo":
            names[f"the {t.photo}"].append(t)
    for name, found in names.items():
        if len(found) == 1:
            yield found[0], name


def _exist(rng: random.Random, things: Sequence[Thing]) -> Iterator[Question]:
    shapes = [t for t in things if t.kind == "shape"]
    words = {t.word for t in things if t.kind == "word"}
    numbers = {t.value for t in things if t.kind == "number"}
    bars = {t.colour for t in things if t.kind == "bar"}
    if shapes:
        pairs = {(t.colour, t.shape) for t in shapes}
        colours, forms = sorted({str(c) for c, _ in pairs}), sorted({str(s) for _, s in pairs})
        for c, s in sorted(pairs, key=str):
            yield Question(f"is there a {c} {s} ?", "yes", "exist")
        for c in colours:
            for s in forms:
                if (c, s) not in pairs:
                    yield Question(f"is there a {c} {s} ?", "no", "exist")
        for s in SHAPES:
            yield Question(f"is there a {s} ?", "yes" if s in forms else "no", "exist")
        for c in COLOURS:
            yield Question(f"is there a {c} shape ?", "yes" if c in colours else "no", "exist")
    if words:
        for w in sorted(map(str, words)):
            yield Question(f"is there the word {w} ?", "yes", "exist")
        for w in rng.sample(WORDS, 6):
            if w not in words:
                yield Question(f"is there the word {w} ?", "no", "exist")
    if numbers:
        for n in sorted(x for x in numbers if x is not None):
            yield Question(f"is there the number {n} ?", "yes", "exist")
        for n in rng.sample(range(1, 100), 4):
            if n not in numbers:
                yield Question(f"is there the number {n} ?", "no", "exist")
    if bars:
        for c in COLOURS:
            yield Question(f"is there a {c} bar ?", "yes" if c in bars else "no", "exist")


def _count(rng: random.Random, things: Sequence[Thing]) -> Iterator[Question]:
    shapes = [t for t in things if t.kind == "shape"]
    if shapes:
        forms, colours = Counter(t.shape for t in shapes), Counter(t.colour for t in shapes)
        pairs = Counter((t.colour, t.shape) for t in shapes)
        tallies = [(f"how many {plural(s)} ?", forms[s]) for s in SHAPES]
        tallies += [(f"how many {c} shapes ?", colours[c]) for c in COLOURS]
        tallies += [(f"how many {c} {plural(str(s))} ?", n) for (c, s), n in sorted(pairs.items(), key=str)]
        tallies.append(("how many shapes ?", len(shapes)))
        for text, n in tallies:
            if n <= 9:
                yield Question(text, str(n), "count")
    for kind in ("word", "number", "bar"):
        n = sum(t.kind == kind for t in things)
        if 0 < n <= 9:
            yield Question(f"how many {kind}s ?", str(n), "count")


def _attribute(rng: random.Random, things: Sequence[Thing]) -> Iterator[Question]:
    for t, name in described(things):
        if t.kind == "shape":
            noun = name.split()[-1]
            if str(t.colour) not in name:
                yield Question(f"what colour is {name} ?", str(t.colour), "attribute")
            if noun == "shape":
                yield Question(f"what shape is {name} ?", str(t.shape), "attribute")
            if t.size and t.size not in name:
                yield Question(f"what size is {name} ?", str(t.size), "attribute")
        elif t.kind in ("word", "number") and len({x.colour for x in things}) > 1:
            yield Question(f"what colour is {name} ?", str(t.colour), "attribute")


def _where(rng: random.Random, things: Sequence[Thing]) -> Iterator[Question]:
    for t, name in described(things):
        place = t.place(_CANVAS, _MARGIN)
        if place and t.kind != "bar":
            yield Question(f"where is {name} ?", place, "where")


def _relation(rng: random.Random, things: Sequence[Thing]) -> Iterator[Question]:
    named: dict[int, tuple[Thing, str]] = {}
    for t, name in described(things):
        if t.kind in ("shape", "word"):
            named[id(t)] = (t, name)
    pool = list(named.values())
    for _ in range(12 if len(pool) > 1 else 0):
        (a, name_a), (b, name_b) = rng.sample(pool, 2)
        dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
        if abs(dx) > 14:
            side = rng.choice(("left", "right"))
            right = (dx < 0) == (side == "left")
            yield Question(f"is {name_a} {side} of {name_b} ?", "yes" if right else "no", "relation")
        if abs(dy) > 14:
            side = rng.choice(("above", "below"))
            right = (dy < 0) == (side == "above")
            yield Question(f"is {name_a} {side} {name_b} ?", "yes" if right else "no", "relation")
        if a.size and b.size and a.size != b.size:
            side = rng.choice(("larger", "smaller"))
            right = (a.extent > b.extent) == (side == "larger")
            yield Question(f"is {name_a} {side} than {name_b} ?", "yes" if right else "no", "relation")
    shapes = [t for t in things if t.kind == "shape"]
    if 2 <= len(shapes) <= 9:
        for word, axis, sign in (("leftmost", 0, 1), ("rightmost", 0, -1), ("topmost", 1, 1), ("lowest", 1, -1)):
            first, second = sorted(shapes, key=lambda t: sign * t.centre[axis])[:2]
            if abs(first.centre[axis] - second.centre[axis]) > 10:
                yield Question(f"what colour is the {word} shape ?", str(first.colour), "relation")
                yield Question(f"what shape is the {word} shape ?", str(first.shape), "relation")
    bars = sorted((t for t in things if t.kind == "bar"), key=lambda t: t.value or 0)
    if len(bars) > 2:
        for _ in range(3):
            a, b = rng.sample(bars, 2)
            if a.value != b.value:
                side = rng.choice(("taller", "shorter"))
                right = ((a.value or 0) > (b.value or 0)) == (side == "taller")
                text = f"is the {a.colour} bar {side} than the {b.colour} bar ?"
                yield Question(text, "yes" if right else "no", "relation")
        if bars[-1].value != bars[-2].value:
            for _ in range(2):  # twice, so that open questions are not outnumbered by yes/no ones
                yield Question("what colour is the tallest bar ?", str(bars[-1].colour), "relation")
        if bars[0].value != bars[1].value:
            yield Question("what colour is the shortest bar ?", str(bars[0].colour), "relation")


def _read(rng: random.Random, things: Sequence[Thing]) -> Iterator[Question]:
    words, numbers = [t for t in things if t.kind == "word"], [t for t in things if t.kind == "number"]
    listed = any(t.word for t in numbers)
    for group, noun, skill in ((words, "word", "read_text"), (numbers, "number", "read_value")):
        colours, places = Counter(t.colour for t in group), Counter(t.place(_CANVAS) for t in group)
        for t in group:
            answer = str(t.word if noun == "word" else t.value)
            place = t.place(_CANVAS, _MARGIN)
            if not listed:
                if colours[t.colour] == 1:
                    yield Question(f"what is the {t.colour} {noun} ?", answer, skill)
                if place and places[place] == 1:
                    yield Question(f"what {noun} is {place} ?", answer, skill)
                if len(group) == 1:
                    yield Question(f"what is the {noun} ?", answer, skill)
            elif noun == "number":
                yield Question(f"what number is next to {t.word} ?", answer, skill)
            else:
                value = next(n.value for n in numbers if n.word == t.word)
                yield Question(f"what word is next to {value} ?", answer, skill)
    for t in things:
        if t.kind == "bar":
            yield Question(f"what is the value of the {t.colour} bar ?", str(t.value), "read_value")


def _find_small(rng: random.Random, things: Sequence[Thing]) -> Iterator[Question]:
    shapes = [t for t in things if t.kind == "shape"]
    marked = {id(t) for t in shapes if t.mark is not None}
    for t, name in described(things):
        if id(t) in marked and t.size is None:
            yield Question(f"what digit is on {name} ?", str(t.mark), "find_small")
    if marked:
        tiny = min(shapes, key=lambda t: t.extent)
        if tiny.extent < 13:
            yield Question("what colour is the tiny shape ?", str(tiny.colour), "find_small")
            yield Question("what shape is the tiny shape ?", str(tiny.shape), "find_small")
            place = tiny.place(_CANVAS, _MARGIN)
            if place:
                yield Question("where is the tiny shape ?", place, "find_small")


_ASKERS: Final = {
    "exist": _exist, "count": _count, "attribute": _attribute, "where": _where,
    "relation": _relation, "read": _read, "find_small": _find_small,
}  # fmt: skip

SHARES: Final[dict[str, dict[str, int]]] = {
    "shapes": {"exist": 2, "count": 2, "attribute": 2, "where": 2, "relation": 3},
    "crowd": {"exist": 3, "count": 4, "attribute": 2, "where": 2},
    "words": {"exist": 1, "attribute": 1, "where": 2, "read": 6},
    "list": {"exist": 1, "count": 1, "where": 1, "read": 7},
    "chart": {"exist": 1, "count": 1, "relation": 4, "read": 4},
    "tiny": {"exist": 1, "attribute": 1, "where": 1, "relation": 1, "find_small": 6},
}
"""How many questions of each skill a scene of each kind gets (fewer where a scene allows fewer)."""


def balanced(rng: random.Random, pool: Sequence[Question], count: int) -> list[Question]:
    """Draw up to ``count`` distinct questions, the answer first and then the question, so that answers are even.

    >>> pool = [Question(f"q{i} ?", "no", "exist") for i in range(9)] + [Question("p ?", "yes", "exist")]
    >>> sorted(q.answer for q in balanced(random.Random(0), pool, 2))
    ['no', 'yes']
    """
    by_answer: dict[str, list[Question]] = defaultdict(list)
    for q in dict.fromkeys(pool):
        by_answer[q.answer].append(q)
    chosen: list[Question] = []
    for _ in range(count):
        fresh = [a for a in sorted(by_answer) if by_answer[a]]
        if not fresh:
            break
        # Answers that this scene has not used yet come first.
        used = Counter(q.answer for q in chosen)
        least = min(used[a] for a in fresh)
        candidates = by_answer[rng.choice([a for a in fresh if used[a] == least])]
        chosen.append(candidates.pop(rng.randrange(len(candidates))))
    return chosen


def ask(rng: random.Random, kind: str, things: Sequence[Thing], boost: int = 1) -> tuple[Question, ...]:
    """Ask about a scene of a kind; return about ten questions (times ``boost``), all different.

    >>> from foveate.scenes.compose import compose
    >>> rng = random.Random(0)
    >>> len(ask(rng, "crowd", compose(rng, "crowd")[1])) >= 8
    True
    """
    questions: list[Question] = []
    for name, share in SHARES[kind].items():
        pool = list(_ASKERS[name](rng, things))
        texts: dict[str, set[str]] = defaultdict(set)
        for q in pool:
            texts[q.text].add(q.answer)
        unambiguous = [q for q in pool if len(texts[q.text]) == 1]
        questions += balanced(rng, unambiguous, share * boost)
    return tuple(questions)


def caption(things: Sequence[Thing], limit: int = 8) -> str:
    """List what is in a scene, in reading order, at most ``limit`` things.

    >>> caption([Thing("shape", (0, 0, 20, 20), colour="red", shape="star", size="small")])
    'small red star top-left'
    """
    things = listed("things", things, "what is in a scene, such as scene(3).things")
    for thing in things:
        check_kind("a thing", thing, Thing, "a Thing")
    check_whole("limit", limit, Between(0))
    parts = []
    for t in sorted(things, key=lambda t: (int(t.centre[1] // 32), t.centre[0]))[:limit]:
        place = str(t.place(_CANVAS))
        if t.kind == "shape":
            parts.append(" ".join(filter(None, (t.size, t.colour, t.shape, place))))
        elif t.kind == "word":
            parts.append(f"{t.colour} word {t.word} {place}")
        elif t.kind == "bar":
            parts.append(f"{t.colour} bar {t.value}")
        elif t.kind == "number":
            parts.append(f"number {t.value} {place}")
        elif t.kind == "digit":
            parts.append(f"{t.value} {place}")
        else:
            parts.append(f"{t.photo} {place}")
    return " , ".join(parts)
