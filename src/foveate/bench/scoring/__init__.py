"""Score answers: one file for each metric.

A metric is a function of one `Response`; it returns a score from 0 to 1. A table's accuracy is the mean score.

>>> from foveate.bench.scoring import Response, scoring_of
>>> scoring_of("anls").score(Response("Los Angles", ("Los Angeles",)))
0.9090909090909091
"""

from foveate.bench.scoring.registry import (
    DEFAULT,
    Figures,
    Metric,
    Response,
    Scored,
    Scoring,
    metric,
    metrics,
    scoring_of,
)
from foveate.bench.scoring.words import words

__all__ = [
    "DEFAULT",
    "Figures",
    "Metric",
    "Response",
    "Scored",
    "Scoring",
    "metric",
    "metrics",
    "scoring_of",
    "words",
]
