"""Score captions: CIDEr-D, computed by the pycocoevalcap library."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Final

from foveate.bench.scoring.exact import plainly
from foveate.bench.scoring.registry import Metric, Response, Scored, metric
from foveate.errors import FoveateError

__all__ = ["cider"]

_MOST: Final = 10.0
"""The library's scores are from 0 to 10."""


def _prepare(asked: Sequence[Response]) -> Metric:
    """Return the metric that weighs words by how many of all questions have them in a right caption.

    Raises:
        FoveateError: the library isn't there.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise FoveateError(
            'the metric cider needs pycocoevalcap; install foveate with its cider extra (pip install ".[cider]" in a '
            "clone), or use another --score"
        )
    from pycocoevalcap.cider.cider_scorer import (  # pyright: ignore[reportMissingImports]
        CiderScorer,
        cook_refs,
        cook_test,
    )

    whole: Any = CiderScorer()
    for each in asked:
        whole += (None, [plainly(answer) for answer in each.answers])
    whole.compute_doc_freq()

    def score(response: Response) -> float:
        one: Any = CiderScorer()
        one.document_frequency = whole.document_frequency
        one.ctest = [cook_test(plainly(response.prediction))]
        # The library takes the number of all questions from the length of this list.
        one.crefs = [cook_refs([plainly(answer) for answer in response.answers])] * len(asked)
        return min(1.0, float(one.compute_cider()[0]) / _MOST)

    return score


def _percent(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean as papers print it: 100 times the library's."""
    return {"CIDEr": 100 * _MOST * sum(each.score for each in scored) / len(scored)}


@metric("cider", "a tenth of CIDEr-D, by pycocoevalcap", prepare=_prepare, figures=_percent)
def cider(response: Response) -> float:
    """Score a caption against the right ones: CIDEr-D (arXiv 1411.5726, Section 6) over 10, so that it is at most 1.

    Words are weighed by the right captions of all questions, so this function alone can't score: `Scoring.ready` makes
    the one that does. Captions are compared in lower case without punctuation, where COCO's evaluation has a tokenizer
    in Java. Captions of plain words score the same with both. That one parts "dog's" into two words and makes words of
    brackets, so such captions score otherwise, and through the weights of words all others do a little.

    Raises:
        FoveateError: the metric wasn't made ready.
    """
    raise FoveateError("the metric cider needs the right captions of all questions; call Scoring.ready with them")
