"""Plot accuracy over visual tokens, one line per method."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from foveate import plots
from foveate.bench.formatting import printable
from foveate.bench.report import placement_line
from foveate.errors import shortened

MARKERS: Final = "osD^vPX*"
_LONGEST: Final = 32
"""Characters of the name of a line; a longer one loses its middle."""

FORMATS: Final = ("png", "svg", "pdf")
"""What the figure is saved as: for screens, and for pages and papers at any size."""


def plot(metrics: Mapping[str, Any], path: Path) -> tuple[Path, ...]:
    """Draw a benchmark as a PNG of 1,600 x 1,000 pixels, as SVG and as PDF.

    Args:
        metrics: what metrics.json holds.
        path: of the PNG; the others stand beside it.

    Returns:
        The files, each written atomically; none without matplotlib, or if nothing but dense was measured.

    Raises:
        FoveateError: a file can't be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return ()
    rows, where = metrics["configurations"], placement_line(metrics)
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows[1:]:
        lines.setdefault(printable(row["label"]), []).append(row)
    if not lines:
        return ()
    dense = rows[0]
    counts = sorted({row["tokens"]["mean_over_layers"] for row in rows[1:]})
    with plots.style():
        figure = plots.figure(8, 5, dpi=200)
        axes = figure.add_subplot()
        ends: list[tuple[float, str, str, bool]] = []
        # Points of one budget are shifted, so that their error bars do not overlap.
        step = 1.022
        for number, (label, points) in enumerate(lines.items()):
            colour = plots.COLOURS[number % len(plots.COLOURS)]
            points = sorted(points, key=lambda row: row["tokens"]["mean_over_layers"])
            shift = step ** (number - (len(lines) - 1) / 2)
            x = [row["tokens"]["mean_over_layers"] * shift for row in points]
            y = [row["accuracy"]["value"] * 100 for row in points]
            if all(row["accuracy"]["low"] is not None for row in points):
                low = [max(0.0, v - row["accuracy"]["low"] * 100) for v, row in zip(y, points)]
                high = [max(0.0, row["accuracy"]["high"] * 100 - v) for v, row in zip(y, points)]
                axes.errorbar(x, y, yerr=[low, high], fmt="none", ecolor=colour, elinewidth=1, alpha=0.45, zorder=2)
            baseline = points[0]["baseline"]
            axes.plot(
                x,
                y,
                color=colour,
                linewidth=1.4 if baseline else 2.2,
                linestyle=(0, (4, 2)) if baseline else "-",
                marker=MARKERS[number % len(MARKERS)],
                markersize=5.5,
                markeredgecolor="white",
                markeredgewidth=0.7,
                zorder=3 if baseline else 4,
            )
            ends.append((y[-1], label, colour, baseline))

        full = dense["tokens"]["before"]
        left, right = counts[0] / 1.35, max(counts[-1] * 1.12, counts[-1] + 0.5)
        plots.log2_axis(axes, _ticks([_tick(row) for row in rows[1:]]))
        axes.set_xlim(left, right)
        value = dense["accuracy"]["value"] * 100
        if dense["accuracy"]["low"] is not None:
            axes.axhspan(
                dense["accuracy"]["low"] * 100, dense["accuracy"]["high"] * 100, color="black", alpha=0.06, linewidth=0
            )
        axes.axhline(value, color="black", linewidth=1.3, zorder=1)
        axes.annotate(
            f"dense, {full:.0f} tokens: {value:.1f} %",
            (left, value),
            xytext=(6, 4),
            textcoords="offset points",
            va="bottom",
            fontsize=10,
        )
        if metrics["floor"] is not None:
            floor = metrics["floor"]["overall"] * 100
            axes.axhline(floor, color="#666666", linewidth=1.1, linestyle=":", zorder=1)
            axes.annotate(
                f"question only, no image: {floor:.1f} %",
                (right, floor),
                xytext=(-2, -4),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=10,
                color="#555555",
            )
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(-3.0, bottom - 4), min(103.0, top + 3))
        names = _label_ends(axes, ends, right)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
        axes.set_xlabel("visual tokens per image, mean over layers (logarithmic)")
        plots.plain(axes, ("top", "right", "left"), grid=True)
        axes.tick_params(axis="y", length=0)
        asked = f"{metrics['questions']:,} questions, {metrics['images']:,} images"
        axes.set_title(
            f"Accuracy on {printable(metrics['task'])}: {asked}",
            loc="left",
            fontsize=12.5,
            fontweight="bold",
            pad=22,
            parse_math=False,
        )
        axes.text(
            0,
            1.02,
            "Bars are 95 % intervals clustered by image. Dashed lines are baselines."
            + (f" Measured in {where}." if where else ""),
            transform=axes.transAxes,
            parse_math=False,
            fontsize=9.5,
            color="#555555",
        )
        # A name may be as long as a spec: the axes leave it the room that it needs, up to half of the figure.
        widest = max(name.get_window_extent().width for name in names) / figure.bbox.width
        figure.subplots_adjust(left=0.075, right=max(0.5, 0.965 - widest), top=0.87, bottom=0.12)
        files = tuple(path.with_suffix(f".{kind}") for kind in FORMATS)
        for file in files:
            plots.save(figure, file)
    return files


def _label_ends(axes: Any, ends: list[tuple[float, str, str, bool]], right: float) -> list[Any]:
    """Write the name of each line after its last point, and return the texts; those that overlap are pushed apart."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * 0.052
    order = sorted(ends, key=lambda end: end[0])
    places = [end[0] for end in order]
    for _ in range(200):
        moved = False
        for i in range(len(places) - 1):
            overlap = gap - (places[i + 1] - places[i])
            if overlap > 1e-6:
                places[i] -= overlap / 2
                places[i + 1] += overlap / 2
                moved = True
        if not moved:
            break
    return [
        axes.annotate(
            shortened(label, _LONGEST),
            (right, value),
            xytext=(1.035, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=colour,
            fontsize=11,
            fontweight="normal" if baseline else "bold",
            annotation_clip=False,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "alpha": 0.7,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 0,
            },
        )
        for place, (value, label, colour, baseline) in zip(places, order)
    ]


def _tick(row: Mapping[str, Any]) -> float:
    """Return where a configuration is marked: its budget, or the mean over layers if layers differ."""
    tokens = row["tokens"]
    inside = tokens["mean_over_layers"] != tokens["after"]
    return round(tokens["mean_over_layers"]) if inside else row["budget"]


def _ticks(budgets: list[float]) -> list[float]:
    """Return the budgets, or powers of two if there are more than eight."""
    whole = sorted(set(budgets))
    if len(whole) <= 8:
        return whole
    ticks, tick = [], 1.0
    while tick <= whole[-1]:
        if tick >= whole[0]:
            ticks.append(tick)
        tick *= 2
    return ticks
