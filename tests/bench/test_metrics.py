"""Each metric against cases that were worked out by hand."""

import importlib.util
import shutil
from collections.abc import Mapping, Sequence

import pytest

from foveate.bench.scoring import Response, Scored, metrics, scoring_of
from foveate.errors import FoveateError

TEN = ("yes", "yes", "yes", "no", "no", "no", "no", "maybe", "a dog", "two")
PETS = ("cat", "dog", "a red bird", "none of these")


@pytest.mark.parametrize(
    ("name", "said", "answers", "score"),
    [
        ("exact", "Red ", ("red",), 1),
        ("exact", "red.", ("red",), 0),
        ("plain", "Red.", ("red",), 1),
        ("plain", "the red", ("red",), 0),
        # Three people: each of them sees two others, everybody else three.
        ("vqa", "yes", TEN, (3 * 2 / 3 + 7) / 10),
        ("vqa", "no", TEN, 1.0),
        ("vqa", "The dog!", TEN, 9 / 3 / 10),
        ("vqa", "2", TEN, 9 / 3 / 10),
        ("vqa", "blue", TEN, 0),
        ("vqa", "dont", ("don't",) * 10, 1),
        ("vqa", "1,000", ("1000",) * 10, 1),
        ("vqa", "half-full", ("half full",) * 10, 1),
        ("vqa", "3.5", ("35",) * 10, 0),
        ("vqa", "red", ("red",), 1),
        ("anls", "Los Angles", ("new york", "Los Angeles"), 10 / 11),
        ("anls", "  LOS   angeles", ("Los Angeles",), 1),
        ("anls", "abcd", ("abxy",), 0.5),
        ("anls", "abcd", ("axyz",), 0),
        ("anls", "", ("x",), 0),
        ("relaxed", "10.5", ("10",), 1),
        ("relaxed", "10.51", ("10",), 0),
        ("relaxed", "-10", ("10",), 0),
        ("relaxed", "40%", ("0.41",), 1),
        ("relaxed", "0", ("0",), 1),
        ("relaxed", "0.01", ("0",), 0),
        ("relaxed", "France", ("france",), 1),
        ("relaxed", "2", ("two",), 0),
        ("relaxed", "nan", ("3",), 0),
        ("relaxed", "infinity", ("3",), 0),
        ("contains", "It says: EXIT here", ("exit", "way out"), 1),
        ("contains", "out", ("way out",), 0),
        ("yes-no", "Yes, there is.", ("yes",), 1),
        ("yes-no", "No", ("yes",), 0),
        ("yes-no", "I do not know", ("no",), 0),
        ("yes-no", "yesterday", ("yes",), 0),
        ("mme", "yes.", ("Yes",), 1),
        ("iou", "(0,0),(10,10)", ("[5, 0, 15, 10]",), 50 / 150),
        ("iou", "10 10 0 0", ("0 0 10 10",), 1),
        ("iou", "0 0 1 1", ("5 5 6 6", "0 0 2 1"), 0.5),
        ("iou", "0 0 10", ("0 0 10 10",), 0),
        ("iou", "0 0 10 10 and 1 1 2 2", ("0 0 10 10",), 0),
        ("iou", "1 1 1 1", ("1 1 1 1",), 0),
        ("box", '[{"bbox_2d": [0.0, 0, 10, 5], "label": "cat"}]', ("0 0 10 10",), 1),
        ("box", "0 0 10 4.9", ("0 0 10 10",), 0),
    ],
)
def test_scores(name: str, said: str, answers: tuple[str, ...], score: float) -> None:
    assert scoring_of(name).score(Response(said, answers)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("B", "B", 1),
        ("(b)", "B", 1),
        ("B. dog", "dog", 1),
        ("B\nbecause", "B", 1),
        ("The correct option is (B)", "B", 1),
        ("Answer: B", "dog", 1),
        ("dog", "B", 1),
        ("It is a dog.", "B", 1),
        ("A dog", "B", 1),
        ("A dog", "A", 0),
        ("cat or dog", "B", 0),
        ("E", "B", 0),
        ("", "B", 0),
        ("C.", "a red bird", 1),
    ],
)
def test_choices(said: str, answer: str, score: float) -> None:
    assert scoring_of("choice").score(Response(said, (answer,), choices=PETS)) == score


def test_letters_without_choices() -> None:
    assert [scoring_of("choice").score(Response(said, ("C",))) for said in ("C", "c)", "D", "cat")] == [1, 1, 0, 0]


def scored(name: str, *rows: tuple[str, str, str, str]) -> dict[str, float]:
    """The figures of answers, each with what is right, the picture and the skill."""
    scoring = scoring_of(name)
    responses = [Response(said, (right,)) for said, right, _, _ in rows]
    every = [
        Scored(each, scoring.score(each), image, skill)
        for each, (_, _, image, skill) in zip(responses, rows, strict=True)
    ]
    assert scoring.figures is not None
    return dict(scoring.figures(every))


def test_precision_and_recall() -> None:
    rows = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no"), ("unclear", "no")]
    found = scored("yes-no", *((said, right, "", "") for said, right in rows))
    assert found == pytest.approx({"precision": 3 / 4, "recall": 3 / 5, "F1": 2 / 3, "yes": 1 / 2})
    assert scored("yes-no", ("no", "yes", "", ""))["F1"] == 0


def test_the_totals_of_mme() -> None:
    rows = [("yes", "yes", "a", "count"), ("no", "no", "a", "count"), ("yes", "yes", "b", "count")]
    rows += [("yes", "no", "b", "count"), ("no", "no", "c", "code_reasoning"), ("no", "yes", "c", "code_reasoning")]
    # count: 3 of 4 right, one picture of two whole; code: 1 of 2 right, none whole.
    assert scored("mme", *rows) == {"perception": 75 + 50, "cognition": 50}


def test_turned_options_must_all_be_right() -> None:
    scoring = scoring_of("choice")
    turned = [("cat", "dog"), ("dog", "cat")]

    def of(*picks: str) -> dict[str, float]:
        responses = [
            Response(pick, ("cat",), choices=choices) for pick, choices in zip(picks, [*turned, *turned], strict=True)
        ]
        rows = [Scored(each, scoring.score(each), str(number // 2)) for number, each in enumerate(responses)]
        assert scoring.figures is not None
        return dict(scoring.figures(rows))

    assert of("A", "A", "A", "B") == {"right in every order": 0.5}


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("yes-no", "red", 'the answer "red" is neither yes nor no'),
        ("mme", "yes or no", "neither yes nor no"),
        ("choice", "a dog", "no choices"),
        ("iou", "12", "is no box"),
        ("box", "1 2 3", "is no box"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(name: str, answer: str, message: str) -> None:
    asked = [Response("", (answer,), "what is it ?")]
    with pytest.raises(FoveateError, match=rf'--score {name} doesn\'t fit the question "what is it \?": .*{message}'):
        scoring_of(name).ready(asked)


def test_a_choice_that_is_none_of_the_options_is_refused() -> None:
    with pytest.raises(FoveateError, match='"horse" is no option'):
        scoring_of("choice").ready([Response("", ("horse",), "which ?", PETS)])


CAPTIONS = {
    "a red dog sleeps here": ("a red dog runs fast", "the dog is red"),
    "two cats sleep here": ("two cats sleep here",),
    "": ("a man on a bench reads the news", "someone reads"),
    "the the the red the red": ("the red kite", "a kite", "the red kite in the red sky"),
    "a long caption of many words that nobody wrote about this kite": ("a kite",),
}
"""Captions as a model says them, each with the right ones: one alike, one empty, one that repeats itself."""


def asked_for(captions: Mapping[str, Sequence[str]]) -> list[Response]:
    return [Response("", tuple(right), str(number)) for number, right in enumerate(captions.values())]


def cider_scores(captions: Mapping[str, Sequence[str]]) -> list[float]:
    """The scores of foveate's metric, as the library counts: from 0 to 10."""
    asked = asked_for(captions)
    ready = scoring_of("cider").ready(asked)
    return [
        10 * ready.score(Response(said, each.answers, each.question))
        for said, each in zip(captions, asked, strict=True)
    ]


def test_cider_without_its_library_is_refused() -> None:
    if importlib.util.find_spec("pycocoevalcap") is not None:
        pytest.skip("the library is there")
    with pytest.raises(FoveateError, match="needs pycocoevalcap"):
        scoring_of("cider").ready(asked_for(CAPTIONS))


def test_cider_is_what_pycocoevalcap_computes() -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.cider.cider import Cider

    right = {number: list(each) for number, each in enumerate(CAPTIONS.values())}
    mean, each = Cider().compute_score(right, {number: [said] for number, said in enumerate(CAPTIONS)})
    ours = cider_scores(CAPTIONS)
    assert ours == pytest.approx(list(each))
    assert ours[1] == pytest.approx(10)
    assert ours[2] == 0
    scoring = scoring_of("cider")
    assert scoring.figures is not None
    scored = [Scored(one, score / 10) for one, score in zip(asked_for(CAPTIONS), ours, strict=True)]
    assert scoring.figures(scored)["CIDEr"] == pytest.approx(100 * mean)


@pytest.mark.parametrize(
    ("captions", "same"),
    [
        ({f"{said.capitalize()} .": [f"{one.title()}!" for one in right] for said, right in CAPTIONS.items()}, True),
        ({**CAPTIONS, "the ball, a red one, lies there": ("The ball; red: lies there?",)}, True),
        # Its tokenizer parts "dog's" into two words, and makes words of brackets.
        ({**CAPTIONS, "the ball lies there": ("The ball (red) lies there",)}, False),
        ({**CAPTIONS, "the dog's ball lies there": ("the dog's ball is in the half open box",)}, False),
    ],
)
def test_cider_is_that_of_coco_where_captions_hold_plain_words(captions: dict[str, list[str]], same: bool) -> None:
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("the tokenizer of COCO's evaluation needs Java")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    right = {number: [{"caption": one} for one in each] for number, each in enumerate(captions.values())}
    said = {number: [{"caption": one}] for number, one in enumerate(captions)}
    _, each = Cider().compute_score(PTBTokenizer().tokenize(right), PTBTokenizer().tokenize(said))
    assert (cider_scores(captions) == pytest.approx(list(each))) == same


def test_every_metric_is_tested_here() -> None:
    assert {name for name in metrics() if name != "length"} == {
        *("anls", "box", "choice", "cider", "contains", "exact", "iou", "mme", "plain", "relaxed", "vqa", "words"),
        "yes-no",
    }
