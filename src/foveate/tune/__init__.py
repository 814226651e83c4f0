"""Find the cheapest spec that is good enough on a model and its questions.

``Search(model, processor, task, max_drop=0.01).run()`` races methods, places and budgets on some of the questions, and
verifies what it has chosen on the others; `foveate.bench` has the tasks.

>>> from foveate.bench import scenes
>>> from foveate.tune import parts_of
>>> parts = parts_of(scenes(200))
>>> parts.search.questions + parts.held_out.questions
200
"""

from foveate.tune.candidates import LeftOut, proposed
from foveate.tune.parts import Parts, parts_of, questions_before, same_part
from foveate.tune.search import HELD_OUT, Search, read_result
from foveate.tune.verdict import sentences

__all__ = [
    "HELD_OUT",
    "LeftOut",
    "Parts",
    "Search",
    "parts_of",
    "proposed",
    "questions_before",
    "read_result",
    "same_part",
    "sentences",
]
