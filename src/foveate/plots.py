"""Draw plots that look alike: colours that colour-blind readers can tell apart, plain axes, atomic saving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from foveate.errors import FoveateError
from foveate.files import atomic_file

__all__ = ["BASELINE", "COLOURS", "DENSE", "figure", "log2_axis", "plain", "save", "style"]

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Colours of lines, in order of use: Okabe and Ito's and two more, which differ in lightness, too."""
DENSE: Final = "#333333"
"""The colour of the dense model."""
BASELINE: Final = "#8a8a8a"
"""The colour of baselines where they share one."""


@contextmanager
def style() -> Iterator[None]:
    """Draw with foveate's font and line widths inside the block.

    Raises:
        FoveateError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise FoveateError(
            'pictures need matplotlib; install foveate with its bench extra (pip install ".[bench]" in a clone)'
        ) from None
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "axes.linewidth": 0.8}):
        yield


def figure(width: float, height: float, dpi: int = 150, **options: Any) -> Any:
    """Return an empty matplotlib figure that needs no display.

    Args:
        width: in inches.
        height: in inches.
        dpi: pixels per inch.
        **options: for `matplotlib.figure.Figure`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=dpi, **options)
    FigureCanvasAgg(made)
    return made


def plain(axes: Any, sides: Sequence[str] = ("top", "right"), grid: bool = False) -> None:
    """Remove the frame at some sides; `grid` draws light horizontal lines behind the data."""
    axes.spines[list(sides)].set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)


def log2_axis(axes: Any, ticks: Iterable[float]) -> None:
    """Make the horizontal axis logarithmic, with ticks at these whole numbers alone."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")


_UNDATED: Final = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
"""What matplotlib would write into a file of each format, and what would make two files of one figure differ."""


def save(made: Any, path: Path) -> None:
    """Save a figure as PNG, SVG or PDF, atomically; what is drawn twice gives the same bytes.

    Args:
        made: the figure.
        path: the file; its suffix is the format. Text in an SVG or a PDF stays text.

    Raises:
        FoveateError: the file can't be written.
    """
    import matplotlib

    kind = path.suffix.lstrip(".").lower()
    as_text = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "foveate", "pdf.fonttype": 42})
    with as_text, atomic_file(path) as partial:
        made.savefig(partial, format=kind, metadata=_UNDATED[kind])
