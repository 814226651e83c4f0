"""Answer questions about very many images, or compress them: on Ray Data, in `datasets.map`, or in a loop.

`Answer` and `Compress` take a dict of columns and return one, so they fit whatever calls a function on batches of rows.
`run` goes through a file with one of them, on Ray where it is to use several processes, and can be killed and started
again.
"""

from __future__ import annotations

from foveate.bulk.job import Done, run
from foveate.bulk.rows import Answer, Compress, features_of

__all__ = ["Answer", "Compress", "Done", "features_of", "run"]
