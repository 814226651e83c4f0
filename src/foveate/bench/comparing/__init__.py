"""Compare configurations of finished runs: tests, power, equal cost, hard questions, ranks. One file for each.

>>> from foveate.bench.comparing import holm
>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

from foveate.bench.comparing.corrections import benjamini_hochberg, holm
from foveate.bench.comparing.mcnemar import Changes, changes
from foveate.bench.comparing.power import questions_needed
from foveate.bench.comparing.ranks import Rank, agreement, ranks
from foveate.bench.comparing.resampling import bootstrap_interval, permutation_probability
from foveate.bench.comparing.runs import Answers, Results, read_results
from foveate.bench.comparing.summary import compare

__all__ = [
    "Answers",
    "Changes",
    "Rank",
    "Results",
    "agreement",
    "benjamini_hochberg",
    "bootstrap_interval",
    "changes",
    "compare",
    "holm",
    "permutation_probability",
    "questions_needed",
    "ranks",
    "read_results",
]
