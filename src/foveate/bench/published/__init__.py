"""Tasks that papers report: one file for each, which says where its questions are and how they are asked and scored.

>>> from foveate.bench.published import published, task_called
>>> task_called("pope").score
'yes-no'
"""

from foveate.bench.published.registry import LETTER, SHORT, published, register, task_called

__all__ = ["LETTER", "SHORT", "published", "register", "task_called"]
