"""Score free answers: a short sentence may stand around the answer."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from foveate.bench.scoring.registry import DEFAULT, Response, metric

__all__ = ["words"]


@metric(DEFAULT, "the answer, or a short sentence that says nothing else; case, punctuation and articles don't count")
def words(response: Response) -> float:
    """Score 1 if the prediction is one of the answers, or a sentence that gives this answer and no other.

    Both are normalised much as VQA's evaluation does (arXiv 1505.00468, Section 4): lower case; no punctuation; no
    articles; numbers up to twenty as digits ("none" is 0). Signs at a number or a word stay, unlike there: "A+" is not
    "A-", and ">5" not "5"; "5 %" and "$5" count as "5", but not the other way round. Plurals are not folded.

    If one of the answers is yes or no, it must be the first word of the prediction that carries an answer, and the
    other one must not occur. Any other answer must be the whole prediction, or stand in it as whole words, and what is
    left must be words of the question or words that carry no answer ("it", "is", "there", "in", "picture"). A
    negation, an "or", another number, or a word of which nobody knows whether it is a second answer makes the
    prediction wrong; so does repeating the question. In a question that offers a choice ("red or blue"), the words that
    are offered carry an answer. "No" before what was counted is 0.

    >>> asked = "what colour is the circle ?"
    >>> [words(Response(said, ("red",), asked)) for said in ("Red.", "The circle is red.", "it's a red circle")]
    [1.0, 1.0, 1.0]
    >>> [words(Response(said, ("red",), asked)) for said in ("not red", "red or blue", "red, blue", "reddish", "")]
    [0.0, 0.0, 0.0, 0.0, 0.0]
    >>> words(Response("There are two.", ("2",), "how many ?")), words(Response("12", ("2",), "how many ?"))
    (1.0, 0.0)
    >>> words(Response("Yes, it is.", ("yes",))), words(Response("No, not yes.", ("yes",)))
    (1.0, 0.0)
    >>> words(Response("A-", ("A+",))), words(Response("The right one.", ("right",)))
    (0.0, 1.0)
    """
    return float(any(_gives(response.prediction, answer, response.question) for answer in set(response.answers)))


_NUMBER_WORDS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
_NUMBERS: Final = {name: str(number) for number, name in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_ARTICLES: Final = {"a", "an", "the"}
_YES_NO: Final = {"yes", "no"}
_REJECTING: Final = (
    "no not never neither nor none nothing without cannot cant dont doesnt didnt isnt arent wasnt werent wont wouldnt "
    "hasnt havent hadnt unknown unclear unsure or either maybe perhaps but except instead than if"
)
"""Words beside an answer that take it back, or offer another."""
_EMPTY: Final = (
    "it its is are was were be being been this that these those there here they he she i you we am has have had of in "
    "on at to as by with from and so then thus which who what answer correct answers image picture photo scene shown "
    "shows show see seen visible depicted located positioned colored coloured color colour shape number count total "
    "exactly only just appears seems looks called named says reads would can will do does sure"
)
"""Words that carry no answer."""
_UNITS: Final = {"$", "\u20ac", "\u00a3", "\u00a5", "%", "\u00b0", "#"}
"""Signs that a prediction may have beside a number where the answer has none."""


@lru_cache(maxsize=256)
def _pattern(marks: str) -> re.Pattern[str]:
    """Return what finds numbers, words and signs; `marks` are vowel signs and the like, which are parts of words."""
    letter = rf"[^\W_]|[{re.escape(marks)}]" if marks else r"[^\W_]"
    number = rf"-?(?:\d+(?:[.:/]\d+)*|(?<!\d)\.\d+)(?!{letter})"
    signs = r"[$\u20ac\u00a3\u00a5%\u00b0#^]|[<>~\u221a=+]+(?=\s?\.?\d)|(?<=\w)[+\-]+(?!\w)"
    return re.compile(rf"{number}|(?:{letter})+|{signs}")


def _words(text: str, articles: bool = False) -> list[str]:
    """Return the words of a text in their normal form, without articles unless nothing else is there."""
    # Raised digits are powers, and fractions are numbers of their own: x2 is not x^2, 1/2 is not 12.
    for sign in {sign for sign in text if unicodedata.category(sign) == "No"}:
        kind = unicodedata.decomposition(sign).partition("> ")[0]
        if kind in ("<super", "<fraction"):
            text = text.replace(sign, ("^" if kind == "<super" else " ") + unicodedata.normalize("NFKC", sign))
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2044", "/")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"[\u2212\u2013](?=\d)", "-", text)
    # it's -> its, don't -> dont: an apostrophe ends no word.
    text = re.sub(r"(?<=\w)['\u2019](?=\w)", "", text)
    # A hyphen after a word is no sign of a number.
    text = re.sub(r"(?<=\w)-(?=\d)", " ", text)
    marks = "".join(sorted({sign for sign in text if unicodedata.category(sign)[0] == "M"}))
    found = [_number(word) for word in _pattern(marks).findall(text)]
    kept = [word for word in found if word not in _ARTICLES]
    return found if articles or not kept else kept


def _number(word: str) -> str:
    """Return a number in its shortest form, as digits."""
    word = _NUMBERS.get(word, word)
    if re.fullmatch(r"-?\d*(\.\d+)?", word) and word.isascii() and word[-1:].isdigit():
        sign, digits = ("-", word[1:]) if word.startswith("-") else ("", word)
        whole, _, part = digits.partition(".")
        whole, part = whole.lstrip("0") or "0", part.rstrip("0")
        word = (sign if (whole, part) != ("0", "") else "") + whole + (f".{part}" if part else "")
    return word


def _gives(prediction: str, answer: str, question: str) -> bool:
    """Return whether a prediction gives this answer and no other."""
    wanted, said = _words(answer), _words(prediction)
    if said == wanted:
        return bool(said) or prediction.split() == answer.split()
    if not wanted:
        return prediction.split() == answer.split()
    if not said:
        return False
    if set(wanted) <= _ARTICLES:
        # The letter of a choice, such as A: only as the last word it is no article.
        said = _words(prediction, articles=True)
        if said[-len(wanted) :] != wanted:
            return False
    if said == wanted:
        return True
    if said == _words(question):
        return False
    empty = set(_EMPTY.split())
    if len(wanted) == 1 and wanted[0] in _YES_NO:
        first = next((word for word in said if word not in empty), None)
        return first == wanted[0] and not (_YES_NO - set(wanted)) & set(said)
    if wanted == ["0"]:
        said = ["0" if word == "no" else word for word in said]
    if not any(word[-1].isdigit() for word in wanted):
        # "The red one" names no number.
        said = [word for word in said if word != "1"] if re.search(r"\bone\b", prediction.casefold()) else said
    allowed = empty | set(_words(question, articles=True)) | _ARTICLES
    allowed -= _offered(question) | set(_REJECTING.split())
    allowed = {word for word in allowed if word[-1].isalpha()} | set(wanted) | _UNITS
    places = (at for at in range(len(said) - len(wanted) + 1) if said[at : at + len(wanted)] == wanted)
    return any(allowed.issuperset([*said[:at], *said[at + len(wanted) :]]) for at in places)


def _offered(question: str) -> set[str]:
    """Return the words beside each "or" of a question, and beside the commas before it: what it offers as answers."""
    parts = re.split(r",|\bor\b", question.casefold())
    if not re.search(r"\bor\b", question.casefold()):
        return set()
    before = {word for part in parts[:-1] for word in _words(part)[-1:]}
    return before | {word for part in parts[1:] for word in _words(part)[:1]}
