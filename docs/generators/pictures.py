"""The look of all pictures: colours that colour-blind readers can tell apart, plain axes, atomic saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.files import atomic_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Colours of methods, in order of use."""
DENSE = "#333333"
"""The colour of the dense model."""
BASELINE = "#8a8a8a"
"""The colour of baselines."""


def figure(width: float, height: float, **options: Any) -> Any:
    """Return an empty matplotlib figure that needs no display; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=150, **options)
    FigureCanvasAgg(made)
    return made


def plain(axes: Any) -> None:
    """Remove the frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def save(made: Any, path: Path) -> None:
    """Save a figure as PNG atomically."""
    with atomic_file(path) as partial:
        made.savefig(partial, format="png")
