"""Draw a benchmark with Altair: accuracy over tokens and over time, differences, and skills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from foveate.bench.formatting import count, direction, printable
from foveate.errors import FoveateError, shortened
from foveate.files import make_folder, write_text
from foveate.plots import BASELINE, COLOURS, DENSE
from foveate.report.measured import Measured
from foveate.report.summary import pareto

__all__ = ["figures", "needed", "script", "write_figures"]

_WIDTH: Final = 370
_HEIGHT: Final = 290
_LONGEST: Final = 40
"""Characters of a name in a figure; a longer one loses its middle."""
_CLEAR: Final = {-1: "clearly below dense", 0: "no clear difference", 1: "clearly above dense"}
_CLEAR_COLOURS: Final = ("#C43D3D", "#8a8a8a", "#2E8B57")


def needed() -> Any:
    """Return the module altair.

    Raises:
        FoveateError: altair or vl-convert, which brings its JavaScript along, is missing.
    """
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise FoveateError(
            f'a report needs {error.name}; install foveate with its report extra (pip install ".[report]" in a clone)'
        ) from None
    return altair


def figures(run: Measured) -> dict[str, Any]:
    """Return the figures of a run by name, as Altair charts: tokens, time, differences, and skills if there are any.

    Raises:
        FoveateError: altair is missing, or nothing but the dense model was measured.
    """
    altair = needed()
    if not run.specs:
        raise FoveateError(f"{run.name} has only the dense model; measure a spec to report on")
    made = {
        "tokens": _accuracy(
            altair,
            run,
            "tokens",
            "visual tokens per image, mean over layers",
            altair.Scale(type="log", base=2, nice=False, padding=18),
        ),
        "time": _accuracy(
            altair, run, "time", "time of a whole call, beside dense", altair.Scale(zero=False, padding=18)
        ),
        "differences": _differences(altair, run),
    }
    if any(row["skills"] for row in run.rows):
        made["skills"] = _skills(altair, run)
    return made


def script() -> str:
    """Return the JavaScript that draws such figures, with all that it needs; it names itself `vegaEmbed`."""
    needed()
    import vl_convert

    return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]


def write_figures(run: Measured, folder: Path) -> tuple[Path, ...]:
    """Write each figure of a run as SVG, for papers and slides.

    Args:
        run: what was measured.
        folder: is made if it isn't there.

    Returns:
        The files, each written atomically.

    Raises:
        FoveateError: altair is missing, or a file can't be written.
    """
    made = figures(run)
    import vl_convert

    make_folder(folder)
    written = []
    for name, chart in made.items():
        file = folder / f"{name}.svg"
        write_text(file, vl_convert.vegalite_to_svg(chart.to_dict()))
        written.append(file)
    return tuple(written)


def _name(text: str) -> str:
    return shortened(printable(text), _LONGEST)


def _data(run: Measured) -> list[dict[str, Any]]:
    found = []
    for row in run.rows:
        accuracy, difference, ratio = row["accuracy"], row.get("difference"), row.get("time_ratio") or {}
        found.append(
            {
                "spec": _name(row["spec"]),
                "method": _name(row["label"]),
                "baseline": "baseline" if row["baseline"] else "method",
                "tokens": row["tokens"]["mean_over_layers"],
                "time": ratio.get("total", 1.0),
                "accuracy": accuracy["value"],
                "low": accuracy["value"] if accuracy["low"] is None else accuracy["low"],
                "high": accuracy["value"] if accuracy["high"] is None else accuracy["high"],
                "difference": None if difference is None else difference["value"] * 100,
                "below": None if difference is None or difference["low"] is None else difference["low"] * 100,
                "above": None if difference is None or difference["high"] is None else difference["high"] * 100,
                "clear": None if difference is None else _CLEAR[direction(difference)],
            }
        )
    return found


def _colours(altair: Any, run: Measured) -> Any:
    """Return one colour per method; baselines share a grey if there are more methods than colours."""
    methods = dict.fromkeys((_name(row["label"]), row["baseline"]) for row in run.rows[1:])
    own = [name for name, baseline in methods if not baseline]
    free = [*COLOURS[len(own) :]]
    colours = dict(zip(own, COLOURS * (1 + len(own) // len(COLOURS))))
    colours |= {name: free.pop(0) if free else BASELINE for name, baseline in methods if baseline}
    return altair.Scale(domain=[name for name, _ in methods], range=[colours[name] for name, _ in methods])


def _accuracy(altair: Any, run: Measured, across: str, title: str, scale: Any) -> Any:
    data = _data(run)
    dense, rows = data[0], data[1:]
    x = altair.X(
        f"{across}:Q",
        title=title,
        scale=scale,
        axis=altair.Axis(format="~s" if across == "tokens" else ".0%", grid=False, tickCount=6),
    )
    y = altair.Y("accuracy:Q", title="accuracy", axis=altair.Axis(format=".0%"), scale=altair.Scale(zero=False))
    colour = altair.Color(
        "method:N",
        scale=_colours(altair, run),
        legend=altair.Legend(title=None, orient="right", symbolType="circle", symbolOpacity=1),
    )
    tooltip = [
        altair.Tooltip("spec:N"),
        altair.Tooltip("accuracy:Q", format=".1%"),
        altair.Tooltip("difference:Q", format="+.1f", title="points from dense"),
        altair.Tooltip("tokens:Q", format=".1f"),
        altair.Tooltip("time:Q", format=".2f", title="time / dense"),
    ]
    base = altair.Chart(altair.Data(values=rows)).encode(x=x, color=colour)
    layers = [
        altair.Chart(altair.Data(values=[dense])).mark_rule(color=DENSE, strokeWidth=1.5).encode(y="accuracy:Q"),
        altair.Chart(altair.Data(values=[{**dense, "text": f"dense, {count(dense['tokens'])} tokens"}]))
        .mark_text(align="left", dx=4, dy=-7, color=DENSE)
        .encode(x=altair.value(0), y="accuracy:Q", text="text:N"),
    ]
    if run.metrics["floor"] is not None:
        floor = [{"accuracy": run.metrics["floor"]["overall"], "text": "question only, no image"}]
        layers += [
            altair.Chart(altair.Data(values=floor))
            .mark_rule(color="#777777", strokeDash=[2, 3])
            .encode(y="accuracy:Q"),
            altair.Chart(altair.Data(values=floor))
            .mark_text(align="left", dx=4, dy=10, color="#666666")
            .encode(x=altair.value(0), y="accuracy:Q", text="text:N"),
        ]
    if across == "time":
        front = [_name(row["spec"]) for row in pareto(run.rows[1:])]
        steps = [each for each in rows if each["spec"] in front]
        layers.append(
            altair.Chart(altair.Data(values=steps))
            .mark_line(color="#bbbbbb", interpolate="step-after", strokeWidth=5)
            .encode(x=x, y=y)
        )
    else:
        layers.append(
            base.mark_line(strokeWidth=1.8).encode(
                y=y,
                strokeDash=altair.StrokeDash(
                    "baseline:N",
                    scale=altair.Scale(domain=["method", "baseline"], range=[[1, 0], [5, 3]]),
                    legend=altair.Legend(title=None, orient="right"),
                ),
            )
        )
    layers += [
        base.mark_rule(opacity=0.35).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=80, opacity=1, stroke="white", strokeWidth=0.8).encode(y=y, tooltip=tooltip),
    ]
    return _plain(altair.layer(*layers).properties(width=_WIDTH, height=_HEIGHT))


def _differences(altair: Any, run: Measured) -> Any:
    rows = _data(run)[1:]
    order = [each["spec"] for each in rows]
    base = altair.Chart(altair.Data(values=rows)).encode(
        y=altair.Y(
            "spec:N",
            sort=order,
            title=None,
            axis=altair.Axis(labelLimit=320, ticks=False, domain=False, grid=True, gridColor="#eeeeee"),
        ),
        color=altair.Color(
            "clear:N",
            scale=altair.Scale(domain=list(_CLEAR.values()), range=list(_CLEAR_COLOURS)),
            legend=altair.Legend(title=None, orient="top"),
        ),
    )
    zero = (
        altair.Chart(altair.Data(values=[{"zero": 0}]))
        .mark_rule(color=DENSE)
        .encode(x=altair.X("zero:Q", title="points from dense, with 95 % intervals"))
    )
    tooltip = [altair.Tooltip("spec:N"), *(altair.Tooltip(f"{name}:Q", format="+.1f") for name in _BOUNDS)]
    return _plain(
        altair.layer(
            zero,
            base.mark_rule(strokeWidth=2).encode(x="below:Q", x2="above:Q"),
            base.mark_point(filled=True, size=60, opacity=1).encode(x="difference:Q", tooltip=tooltip),
        ).properties(width=2 * _WIDTH - 60, height={"step": 20})
    )


_BOUNDS: Final = ("below", "difference", "above")


def _skills(altair: Any, run: Measured) -> Any:
    values: list[Mapping[str, Any]] = []
    for row in run.rows[1:]:
        for skill, found in row["skills"].items():
            difference = found["difference"]
            values.append(
                {
                    "spec": _name(row["spec"]),
                    "skill": printable(skill.replace("_", " ")),
                    "questions": found["questions"],
                    "accuracy": found["accuracy"]["value"],
                    "difference": difference["value"] * 100,
                    "text": f"{difference['value'] * 100:+.0f}{'*' if direction(difference) else ''}",
                }
            )
    base = altair.Chart(altair.Data(values=values)).encode(
        x=altair.X("skill:N", title=None, axis=altair.Axis(labelAngle=-30, ticks=False, domain=False, labelLimit=140)),
        y=altair.Y(
            "spec:N",
            sort=[_name(spec) for spec in run.specs],
            title=None,
            axis=altair.Axis(labelLimit=320, ticks=False, domain=False),
        ),
    )
    tooltip = [
        altair.Tooltip("spec:N"),
        altair.Tooltip("skill:N"),
        altair.Tooltip("questions:Q"),
        altair.Tooltip("accuracy:Q", format=".1%"),
        altair.Tooltip("difference:Q", format="+.1f", title="points from dense"),
    ]
    colour = altair.Color(
        "difference:Q",
        title="points from dense",
        scale=altair.Scale(scheme="redblue", domain=[-100, 100]),
        legend=altair.Legend(orient="top", gradientLength=220),
    )
    return _plain(
        altair.layer(
            base.mark_rect(stroke="white").encode(color=colour, tooltip=tooltip),
            base.mark_text(fontSize=11).encode(
                text="text:N",
                color=altair.condition("abs(datum.difference) > 55", altair.value("white"), altair.value("#222222")),
            ),
        ).properties(width=2 * _WIDTH - 60, height={"step": 22})
    )


def _plain(chart: Any) -> Any:
    """Return a chart with foveate's looks: no frame, quiet grids, the page's own font."""
    return (
        chart.configure(font="system-ui, 'DejaVu Sans', sans-serif", background="white", padding=6)
        .configure_view(stroke=None)
        .configure_axis(
            gridColor="#e6e6e6",
            domainColor="#999999",
            tickColor="#999999",
            labelColor="#333333",
            titleColor="#333333",
            titleFontWeight="normal",
            labelFontSize=11,
            titleFontSize=12,
        )
        .configure_legend(labelFontSize=11.5, labelLimit=260)
        .configure_text(fontSize=11)
    )


def specifications(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures as Vega-Lite specifications: plain data, for JSON."""
    return {name: chart.to_dict() for name, chart in made.items()}


def names_of(made: Sequence[str]) -> dict[str, str]:
    """Return the heading of each figure.

    >>> names_of(["tokens"])
    {'tokens': 'Accuracy and visual tokens'}
    """
    return {name: _HEADINGS[name] for name in made}


_HEADINGS: Final = {
    "tokens": "Accuracy and visual tokens",
    "time": "Accuracy and time",
    "differences": "Differences to the dense model",
    "skills": "Differences per skill",
}
