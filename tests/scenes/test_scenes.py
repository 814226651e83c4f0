"""Scenes are the same for the same seed, balanced, unambiguous and exact."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from foveate.scenes import KINDS, SKILLS, WORDS, Question, Thing, caption, question_only_floor, scene, test_set


@pytest.fixture(scope="module")
def some():
    return [scene(seed) for seed in range(250)]


@pytest.fixture(scope="module")
def tests():
    return list(test_set())


def test_a_seed_gives_the_same_scene_again(some):
    for seed in (0, 3, 17):
        again = scene(seed)
        assert again.questions == some[seed].questions
        assert again.things == some[seed].things
        assert np.array_equal(np.asarray(again.image), np.asarray(some[seed].image))


def test_splits_differ():
    assert scene(5).questions != scene(5, split="test").questions


def test_unknown_kinds_and_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="shapes, crowd"):
        scene(0, kind="maps")
    with pytest.raises(ValueError, match="-1"):
        scene(-1)


def test_the_test_set_is_the_one_that_results_are_about(tests):
    digest = hashlib.sha256()
    for one in tests:
        for q in one.questions:
            digest.update(f"{one.id}|{q.text}|{q.answer}|{q.skill}\n".encode())
    assert digest.hexdigest()[:16] == "995c58126f2926b2"


def test_the_test_set_has_every_skill_often_enough(tests):
    counts = Counter(q.skill for one in tests for q in one.questions)
    assert sum(counts.values()) >= 4_000
    assert set(counts) == set(SKILLS)
    assert min(counts.values()) >= 300


def test_a_short_test_set_is_the_beginning_of_the_long_one(tests):
    short = list(test_set(25))
    assert sum(len(one.questions) for one in short) == 25
    assert short[0].questions == tests[0].questions
    assert short[1].questions == tests[1].questions[: len(short[1].questions)]


def test_questions_of_a_scene_are_distinct_and_have_one_word_answers(some):
    for one in some:
        assert len({q.text for q in one.questions}) == len(one.questions)
        for q in one.questions:
            assert q.text.endswith(" ?")
            assert len(q.answer.split()) == 1


def test_yes_and_no_are_even(some):
    for skill in ("exist", "relation"):
        answers = Counter(q.answer for one in some for q in one.questions if q.skill == skill)
        assert 0.4 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.6


def test_looking_is_needed(some, tests):
    floor = question_only_floor([q for one in some for q in one.questions], [q for one in tests for q in one.questions])
    assert floor["exist"] < 0.7
    assert all(value < 0.4 for skill, value in floor.items() if skill != "exist")


@pytest.mark.parametrize("kind", list(KINDS))
def test_things_lie_inside_and_do_not_touch(kind):
    for seed in range(12):
        things = scene(seed, kind=kind).things
        assert things
        for t in things:
            x0, y0, x1, y1 = t.box
            assert 0 <= x0 < x1 <= 192
            assert 0 <= y0 < y1 <= 192
        if kind != "chart":
            for i, a in enumerate(things):
                for b in things[i + 1 :]:
                    apart = a.box[2] <= b.box[0] or b.box[2] <= a.box[0] or a.box[3] <= b.box[1] or b.box[3] <= a.box[1]
                    assert apart, (kind, seed, a, b)


def test_crowds_are_crowds_and_small_things_are_small():
    assert np.mean([len(scene(s, kind="crowd").things) for s in range(20)]) >= 20
    for seed in range(10):
        extents = [t.extent for t in scene(seed, kind="tiny").things]
        assert min(extents) < 13 < max(extents)


def _fits(t, word):
    if word in ("shape", "shapes"):
        return True
    return word in (t.colour, t.shape, t.size) or word.rstrip("es") == str(t.shape).rstrip("es")


def _matching(things, text):
    """The things that a description like "red circle" or "stars" fits."""
    return [t for t in things if t.kind == "shape" and all(_fits(t, word) for word in text.split())]


def test_shape_answers_agree_with_what_was_drawn(some):
    checked = Counter()
    for one in some:
        shapes = [t for t in one.things if t.kind == "shape"]
        for q in one.questions:
            words = q.text.removesuffix(" ?")
            if q.skill == "count" and shapes and words.split()[-1] not in ("words", "numbers", "bars"):
                assert q.answer == str(len(_matching(shapes, words.removeprefix("how many "))))
                checked["count"] += 1
            elif words.startswith("is there a ") and not words.endswith("bar"):
                found = _matching(shapes, words.removeprefix("is there a "))
                assert q.answer == ("yes" if found else "no")
                checked["exist"] += 1
            elif words.startswith("what shape is the ") and words.endswith(" shape") and q.skill == "attribute":
                found = _matching(shapes, words.removeprefix("what shape is the "))
                assert [t.shape for t in found] == [q.answer]
                checked["attribute"] += 1
    assert min(checked.values()) > 20, checked


def test_text_that_is_asked_for_is_there(some):
    for one in some:
        texts = {str(t.word) for t in one.things} | {str(t.value) for t in one.things}
        for q in one.questions:
            if q.skill in ("read_text", "read_value"):
                assert q.answer in texts


def test_a_picture_shows_its_things():
    one = scene(1, kind="shapes")
    pixels = np.asarray(one.image).astype(int)
    for t in one.things:
        if t.shape in ("circle", "square", "diamond"):
            cx, cy = (int(c) for c in t.centre)
            around = pixels[1, 1]
            assert np.abs(pixels[cy, cx] - around).sum() > 60


def test_captions_list_things_in_reading_order():
    things = [
        Thing("word", (100, 100, 130, 110), colour="red", word=WORDS[0]),
        Thing("number", (10, 10, 20, 20), colour="blue", value=42),
        Thing("bar", (50, 150, 60, 180), colour="green", value=3),
    ]
    assert caption(things) == "number 42 top-left , red word cat middle , green bar 3"


def test_floor_falls_back_to_the_skill():
    train = [Question("a ?", "yes", "exist"), Question("b ?", "yes", "exist"), Question("b ?", "no", "exist")]
    assert question_only_floor(train, [Question("new ?", "yes", "exist")]) == {"exist": 1.0}
