"""Clips: what is asked is what is seen, the answers are even, and only the order of the frames tells some of them."""

from collections import Counter

import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.scenes import CLIP_KINDS, CLIP_SKILLS, COLOURS, clip
from foveate.scenes.clip_kinds import WAYS

LANE = 88
"""The digit moves within so many pixels of the top or the left, and shapes stand beyond."""


def seen(one, number: int) -> np.ndarray:
    """Where a frame differs from what stays, which most frames show: (192, 192) bool."""
    frames = np.stack([np.asarray(frame, dtype=np.int64) for frame in one.frames])
    return np.abs(frames[number] - np.median(frames, axis=0)).max(axis=-1) > 40


@pytest.mark.parametrize("seed", range(12))
def test_the_digit_moves_where_the_answer_says(seed: int) -> None:
    one = clip(seed, split="test", frames=5)
    way = next(q.answer for q in one.questions if q.skill == "way")
    x, y = WAYS[way]
    middles = []
    for number in (0, 4):
        mask = seen(one, number)
        lane = mask[:LANE] if x else mask[:, :LANE]
        middles.append(np.argwhere(lane).mean(axis=0)[::-1])
    moved = middles[1] - middles[0]
    assert moved @ (x, y) > 80
    assert abs(moved @ (y, x)) < 8


def test_answers_are_even_and_seeds_hold() -> None:
    counted: dict[str, Counter[str]] = {skill: Counter() for skill in CLIP_KINDS["lane"]}
    first_named = 0
    for seed in range(200):
        for question in clip(seed).questions:
            counted[question.skill][question.answer] += 1
            first_named += question.skill == "first" and question.text.split()[5] == question.answer
    assert set(counted["way"]) == set(WAYS)
    assert max(counted["way"].values()) < 75
    assert set(counted["often"]) == set("1234")
    assert 70 < first_named < 130, "naming the first of the two must not be the answer"
    assert clip(3).questions == clip(3).questions != clip(3, split="test").questions
    assert [a.tobytes() for a in clip(3).frames] == [b.tobytes() for b in clip(3).frames]


def test_the_control_has_the_same_frames_in_another_order() -> None:
    one = clip(5)
    other = one.shuffled()
    assert other.questions == one.questions
    assert sorted(map(id, other.frames)) == sorted(map(id, one.frames))
    assert other.frames != one.frames
    assert one.shuffled(1).frames != one.frames
    # The way is lost: for some clips the digit goes to and fro.
    assert any(clip(seed).shuffled().frames[0] is not clip(seed).frames[0] for seed in range(3))


def test_clips_that_can_not_be() -> None:
    for seed, frames, message in ((-1, 4, "from 0 to 9,223,372,036,854,775,807, not -1"), (0, 1, "2 frames or more")):
        with pytest.raises(FoveateError, match=message):
            clip(seed, frames=frames)
    with pytest.raises(FoveateError, match="no clips of kind 'zoom'; there are lane, events, change, glimpse, camera"):
        clip(0, kind="zoom")


def inked(picture, colour: str | None = None) -> int:
    """How many pixels have a colour, or any of the colours, that shapes are drawn in."""
    pixels = np.asarray(picture)
    codes = pixels.astype(np.int64) @ (65536, 256, 1)
    wanted = COLOURS.values() if colour is None else [COLOURS[colour]]
    return int(np.isin(codes, np.array(list(wanted)) @ (65536, 256, 1)).sum())


def answers(one, skill: str) -> list[str]:
    return [q.answer for q in one.questions if q.skill == skill]


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_every_kind_is_made_of_its_seed_and_asks_for_its_skills(kind: str) -> None:
    for frames in (2, 3, 8, 32):
        one = clip(5, frames=frames, kind=kind)
        again = clip(5, frames=frames, kind=kind)
        assert [a.tobytes() for a in one.frames] == [b.tobytes() for b in again.frames]
        assert one.questions == again.questions
        assert len(one.frames) == frames
        assert {frame.size for frame in one.frames} == {(192, 192)}
        assert set(CLIP_KINDS[kind]) == {q.skill for q in one.questions} <= set(CLIP_SKILLS)
        assert len({q.text for q in one.questions}) == len(one.questions)
    assert clip(5, kind=kind).questions != clip(5, kind=kind, split="test").questions
    assert kind == "lane" or one.id == f"train-{kind}-clip-000005"


def test_events_are_counted_as_they_are_shown() -> None:
    counted = Counter[str]()
    for seed in range(40):
        one = clip(seed, frames=9, kind="events")
        times = answers(one, "times")
        counted.update(times)
        if len(times) == 1 and len(set(map(id, one.frames))) > 1:
            ink = {id(frame): inked(frame) for frame in {id(frame): frame for frame in one.frames}.values()}
            shown = [ink[id(frame)] == max(ink.values()) for frame in one.frames]
            starts = sum(now and not before for before, now in zip([False, *shown], shown))
            assert str(starts) == times[0]
    assert set(counted) == set("1234")
    assert max(counted.values()) < 3 * min(counted.values())


def test_a_change_is_between_the_first_image_and_the_last() -> None:
    for seed in range(12):
        one = clip(seed, frames=8, kind="change")
        before, after, _ = answers(one, "change")
        first, last = one.frames[0], one.frames[-1]
        assert inked(first, before) > 100 > 2 * inked(last, before)
        assert inked(last, after) > 100 > 2 * inked(first, after)
        gone = next(q.text for q in one.questions if q.text.startswith("what shape is not"))
        assert (inked(last) > inked(first) + 100) == ("first" in gone)
        assert 2 <= len(set(map(id, one.frames))) <= 3


def test_a_glimpse_is_in_one_frame() -> None:
    for seed in range(8):
        one = clip(seed, frames=8, kind="glimpse")
        assert sorted(Counter(map(id, one.frames)).values()) == [1, 7]


def test_the_camera_moves_where_the_answer_says() -> None:
    for seed in range(8):
        one = clip(seed, frames=8, kind="camera")
        x, y = WAYS[answers(one, "way")[0]]
        first, second = (np.asarray(frame) for frame in one.frames[:2])
        overlaps = []
        for step in range(10, 30):
            # What is at p in the second frame was at p + step in the first.
            a, b = (np.roll(each, by, axis=(0, 1)) for each, by in ((first, (-y * step, -x * step)), (second, (0, 0))))
            middle = np.s_[40:-40, 40:-40]
            overlaps.append((a[middle] == b[middle]).all())
        assert any(overlaps)


def test_a_clip_that_stands_still_is_its_own_control() -> None:
    still = next(
        one
        for one in (clip(seed, frames=4, kind="events") for seed in range(100))
        if len(set(map(id, one.frames))) == 1
    )
    assert still.shuffled().frames == still.frames
