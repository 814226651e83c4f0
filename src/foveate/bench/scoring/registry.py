"""A registry of metrics.

A metric is a function of one `Response`; it returns a score from 0 to 1. A table's accuracy is the mean score. Some
metrics have more to say about all answers together (`figures`), fit some answers only (`fits`), or look at all right
answers before they score one (`prepare`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import CodeType, FunctionType
from typing import Any, Final

from foveate.discovery import Discovery
from foveate.errors import FoveateError, unknown

__all__ = ["DEFAULT", "Figures", "Metric", "Response", "Scored", "Scoring", "metric", "metrics", "scoring_of"]


@dataclass(frozen=True)
class Response:
    """What a metric sees.

    Attributes:
        prediction: the model's answer, as it was decoded.
        answers: the right ones, as the data gives them, at least one; an answer that several people gave stands there
            several times.
        question: its text.
        choices: the texts among which the question lets choose, in order; () if it is free.
    """

    prediction: str
    answers: tuple[str, ...]
    question: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """A response with its score, as `Figures` see it.

    Attributes:
        response: the answer.
        score: from 0 to 1.
        image: the name of its picture; two questions about one picture have the same.
        skill: what the question tests, or None.
    """

    response: Response
    score: float
    image: str = ""
    skill: str | None = None


Metric = Callable[[Response], float]
"""Returns the score of one answer: 0 is wrong, 1 is right."""

Figures = Callable[[Sequence[Scored]], Mapping[str, float]]
"""Returns what else tables say about all answers of a configuration, by name."""

DEFAULT: Final = "words"


@dataclass(frozen=True)
class Scoring:
    """A metric with its name, and what tables say about it.

    Attributes:
        name: of the metric.
        title: one sentence without its full stop.
        function: scores one answer.
        code: a digest of a caller's own function, so that results of another one aren't taken for its; "" for a metric
            that has a name.
        figures: computes what tables say about all answers beside the mean score; None if nothing.
        fits: raises a FoveateError if the right answers of a question, given as a response without a prediction, are
            none for this metric; None takes all.
        prepare: makes the metric from the right answers of all questions; None if it needs only those of one.
    """

    name: str
    title: str
    function: Metric
    code: str = ""
    figures: Figures | None = None
    fits: Callable[[Response], None] | None = None
    prepare: Callable[[Sequence[Response]], Metric] | None = None

    def score(self, response: Response) -> float:
        """Return the score of one answer.

        Raises:
            FoveateError: the metric returned something other than a number from 0 to 1.
        """
        value = self.function(response)
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            raise FoveateError(
                f"the metric {self.name} scored {response.prediction[:40]!r} as {str(value)[:40]}; it must return a "
                "number from 0 to 1"
            )
        return float(value)

    def ready(self, asked: Iterable[Response]) -> Scoring:
        """Return the metric for these questions.

        Args:
            asked: each question with its right answers, as a response whose prediction is empty.

        Raises:
            FoveateError: the metric doesn't fit the answers of one of them.
        """
        every = list(asked)
        if self.fits is not None:
            for each in every:
                try:
                    self.fits(each)
                except FoveateError as error:
                    question = each.question if len(each.question) <= 60 else f"{each.question[:57]}..."
                    raise FoveateError(f'--score {self.name} doesn\'t fit the question "{question}": {error}') from None
        return self if self.prepare is None else replace(self, function=self.prepare(every))


_METRICS: dict[str, Scoring] = {}
_discovery = Discovery("foveate.bench.scoring", "foveate.metrics")


def metric(
    name: str,
    title: str,
    *,
    figures: Figures | None = None,
    fits: Callable[[Response], None] | None = None,
    prepare: Callable[[Sequence[Response]], Metric] | None = None,
) -> Callable[[Metric], Metric]:
    """Register a metric under a name, which `bench --score` takes.

    Args:
        name: in lower case.
        title: what tables say about it: one sentence without its full stop.
        figures: as `Scoring` has it.
        fits: as `Scoring` has it.
        prepare: as `Scoring` has it.

    Raises:
        FoveateError: the name is taken.

    >>> @metric("length", "the share of the right answer's length")
    ... def length(response):
    ...     return min(1.0, len(response.prediction) / len(response.answers[0]))
    >>> "length" in metrics()
    True
    """
    if name in _METRICS:
        raise FoveateError(f'a metric is called "{name}" already; choose another name')

    def register(function: Metric) -> Metric:
        _METRICS[name] = Scoring(name, title, function, "", figures, fits, prepare)
        return function

    return register


def metrics() -> tuple[str, ...]:
    """Return the names of all metrics.

    >>> "anls" in metrics()
    True
    """
    _discovery.load()
    return tuple(_METRICS)


def scoring_of(metric: str | Metric = DEFAULT) -> Scoring:
    """Return a metric by its name, or one of your own.

    Raises:
        FoveateError: no metric has that name.

    >>> scoring_of("exact").score(Response("Red", ("red",)))
    1.0
    """
    if callable(metric):
        name = f"{getattr(metric, '__module__', '?')}.{getattr(metric, '__qualname__', type(metric).__qualname__)}"
        return Scoring(name, f"{name}, a metric of the caller's", metric, _code(metric))
    if metric not in metrics():
        raise FoveateError(unknown("metric is called", str(metric), metrics()))
    return _METRICS[metric]


def _code(function: Any) -> str:
    """Return a digest of what a function does, as far as it holds that itself; what holds no code is like no other."""
    if isinstance(function, partial):
        parts: tuple[Any, ...] = (_code(function.func), function.args, sorted(function.keywords.items()))
    elif isinstance(function, FunctionType):
        held = [cell.cell_contents for cell in function.__closure__ or ()]
        parts = (_constants(function.__code__), function.__defaults__, function.__kwdefaults__, held)
    else:
        return secrets.token_hex(8)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _constants(code: CodeType) -> tuple[Any, ...]:
    """Return the instructions of a code object with its names and constants, those of functions inside included."""
    inside = [_constants(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    return code.co_code, code.co_names, inside
