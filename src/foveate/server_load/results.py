"""What a sweep says: a row for each spec and concurrency, a file with every request, and a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foveate import plots
from foveate.files import check_writable_folder, make_folder, write_json
from foveate.server_load.waves import Sweep, Wave

JSON, PICTURE = "load.json", "load.png"


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return a row for each concurrency and spec that has answers.

    Each has the requests that were answered and that failed, tokens of a prompt (median), answered requests per second
    (median of its waves), the median and the 95th percentile of seconds to the first token; and compared with the first
    spec, round by round: the ratio of throughputs and of medians of the time to the first token, each as median, least
    and greatest.
    """
    found: list[dict[str, Any]] = []
    for number in sweep.load.concurrency:
        base = _of(sweep, number, sweep.load.specs[0])
        for spec in sweep.load.specs:
            waves = _of(sweep, number, spec)
            done = [each for wave in waves.values() for each in wave.done]
            if not done:
                continue
            first = [each.first for each in done if each.first is not None]
            pairs = [(waves[turn], base[turn]) for turn in waves.keys() & base.keys()]
            found.append(
                {
                    "concurrency": number,
                    "spec": spec,
                    "requests": len(done),
                    "failed": sum(len(wave.requests) for wave in waves.values()) - len(done),
                    "prompt_tokens": float(np.median([each.prompt for each in done])),
                    "throughput": float(np.median([wave.throughput for wave in waves.values()])),
                    "first_p50": float(np.percentile(first, 50)) if first else None,
                    "first_p95": float(np.percentile(first, 95)) if first else None,
                    "throughput_ratio": _spread([_ratio(own.throughput, other.throughput) for own, other in pairs]),
                    "first_ratio": _spread([_ratio(_first(own), _first(other)) for own, other in pairs]),
                }
            )
    return found


def _of(sweep: Sweep, concurrency: int, spec: str | None) -> dict[int, Wave]:
    """Return the waves of a spec by their rounds."""
    return {wave.round: wave for wave in sweep.waves if wave.concurrency == concurrency and wave.spec == spec}


def _first(wave: Wave) -> float | None:
    """Return the median of a wave's seconds to the first token."""
    found = [each.first for each in wave.done if each.first is not None]
    return float(np.median(found)) if found else None


def _ratio(own: float | None, other: float | None) -> float | None:
    return own / other if own is not None and other else None


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    found = [value for value in values if value is not None]
    if not found:
        return None
    return {"median": float(np.median(found)), "least": min(found), "greatest": max(found)}


def write(sweep: Sweep, folder: str | Path, where: dict[str, Any]) -> list[Path]:
    """Write load.json, with every request, and load.png, if matplotlib is there.

    Args:
        sweep: what was measured.
        folder: is made if need be.
        where: the machine and the versions.

    Returns:
        The files.

    Raises:
        FoveateError: the folder can't be written.
    """
    target = make_folder(check_writable_folder(folder))
    measured = {
        **{"model": sweep.model, "environment": where, "load": asdict(sweep.load), "died": sweep.died},
        **{"stopped": sweep.stopped, "rows": rows(sweep)},
        "waves": [
            {**asdict(wave), "requests": [_short(asdict(each)) for each in wave.requests]} for wave in sweep.waves
        ],
    }
    write_json(target / JSON, measured)
    if importlib.util.find_spec("matplotlib") is None or not measured["rows"]:
        return [target / JSON]
    plot(measured, target / PICTURE)
    return [target / JSON, target / PICTURE]


def _short(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request without its text, times in tenths of a millisecond."""
    del request["text"]
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in request.items()}


def plot(measured: dict[str, Any], path: Path) -> None:
    """Draw throughput and time to the first token over concurrency, one line for each spec.

    Args:
        measured: what load.json holds.
        path: of the PNG.

    Raises:
        FoveateError: matplotlib is missing, or the file can't be written.
    """
    found = measured["rows"]
    specs = list(dict.fromkeys(row["spec"] for row in found))
    numbers = sorted({row["concurrency"] for row in found})
    with plots.style():
        figure = plots.figure(10, 4.2, dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, spec in enumerate(specs):
            own = [row for row in found if row["spec"] == spec]
            colour = plots.DENSE if place == 0 else plots.COLOURS[(place - 1) % len(plots.COLOURS)]
            x = [row["concurrency"] for row in own]
            left.plot(x, [row["throughput"] for row in own], "o-", color=colour, label=spec or "the server's spec")
            if all(row["first_p50"] is not None for row in own):
                right.plot(x, [row["first_p50"] for row in own], "o-", color=colour)
                right.plot(x, [row["first_p95"] for row in own], "o", color=colour, linestyle=(0, (4, 2)), alpha=0.5)
        for axes, name in ((left, "answers per second"), (right, "seconds to the first token")):
            plots.plain(axes, grid=True)
            if len(numbers) > 1:
                plots.log2_axis(axes, numbers)
            axes.set_xlabel("requests at once")
            axes.set_title(name, loc="left", fontsize=11)
            axes.set_ylim(bottom=0)
        right.annotate("solid: median, dashed: 95th percentile", (0.02, 0.94), xycoords="axes fraction", fontsize=9)
        left.legend(frameon=False, fontsize=9)
        plots.save(figure, path)
