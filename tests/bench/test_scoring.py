"""The default score: what counts as the right answer, and what only looks like it."""

import pytest

from foveate.bench.scoring import Response, words

CHOICE = "which one is bigger, the red one or the blue one?"
CIRCLE = "what colour is the circle ?"


@pytest.mark.parametrize(
    ("said", "answer", "question"),
    [
        ("Red.", "red", CIRCLE),
        ("The circle is red.", "red", CIRCLE),
        ("It's a red circle", "red", CIRCLE),
        ("The red one.", "red", CHOICE),
        ("The one on the right", "right", "which one is red ?"),
        ("two", "2", ""),
        ("There are two.", "2", "how many ?"),
        ("There are no circles.", "0", "how many circles are there ?"),
        ("None.", "0", "how many ?"),
        ("The answer is yes.", "yes", ""),
        ("Yes, it is.", "yes", ""),
        ("There is no star.", "no", "is there a star ?"),
        (".5", "0.5", ""),
        ("0.50", ".5", ""),
        ("½", "1/2", ""),
        ("$5", "5", "how much ?"),
        ("5%", "5", "how many percent ?"),
        ("A+", "a+", ""),
        ("C++.", "C++", ""),
        ("- 5", "5", ""),
        ("1,000", "1000", ""),
        ("दिन", "दिन", ""),
        ("\uff21\uff12", "a2", ""),
    ],
)
def test_right(said: str, answer: str, question: str) -> None:
    assert words(Response(said, (answer,), question)) == 1


@pytest.mark.parametrize(
    ("said", "answer", "question"),
    [
        ("not red", "red", CIRCLE),
        ("red or blue", "red", CIRCLE),
        ("red, not blue", "red", CIRCLE),
        (CIRCLE, "circle", CIRCLE),
        ("reddish", "red", CIRCLE),
        ("12", "2", ""),
        ("two or three", "2", ""),
        ("A-", "A+", ""),
        ("O-", "O+", ""),
        ("A", "A+", ""),
        ("C++", "C", ""),
        (">5", "<5", ""),
        (">5", "5", ""),
        ("√2", "2", ""),
        ("~5", "5", ""),
        ("€5", "$5", ""),
        ("-5", "5", ""),
        (".5", "5", ""),
        ("²", "2", ""),
        ("x²", "x2", ""),
        ("1½", "11/2", ""),
        ("दीन", "दिन", ""),
        ("กัน", "กิน", ""),
        ("No, not yes.", "yes", ""),
        ("No, there are 3.", "0", "how many ?"),
        ("one", "red", CIRCLE),
        ("", "red", CIRCLE),
        ("...", "red", CIRCLE),
    ],
)
def test_wrong(said: str, answer: str, question: str) -> None:
    assert words(Response(said, (answer,), question)) == 0
