"""Make one HTML file of results of `foveate bench`, which opens anywhere and asks no network for anything.

>>> from foveate.report import Measured, sentences, write_page
"""

from foveate.report.examples import Examples, examples
from foveate.report.figures import figures, write_figures
from foveate.report.measured import Measured, read_runs
from foveate.report.page import write_page
from foveate.report.summary import sentences

__all__ = ["Measured", "read_runs", "sentences", "figures", "write_figures", "Examples", "examples", "write_page"]
