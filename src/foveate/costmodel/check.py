"""Compare predicted with measured times of prefills on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from foveate import plots
from foveate.costmodel.calibrate import Calibration, Probe, measure
from foveate.costmodel.decoder_shape import DecoderShape, read_decoder
from foveate.costmodel.device import CURVES, SIZES, Device
from foveate.errors import FoveateError
from foveate.files import read_json, shown_path

COUNTS = (16, 64, 128, 256, 576, 1024)
"""Numbers of tokens of the prefills."""


@dataclass(frozen=True)
class Point:
    """One prefill.

    Attributes:
        decoder: name of the decoder.
        tokens: tokens of the prompt.
        predicted: seconds by the cost model.
        measured: seconds, the shortest of all repetitions.
    """

    decoder: str
    tokens: int
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured

    def to_dict(self) -> dict[str, Any]:
        """Return the point as plain data, for JSON."""
        return asdict(self) | {"ratio": self.ratio}


def decoders() -> dict[str, Any]:
    """Return the configurations of the decoders that are measured, by name; their weights are random."""
    from transformers import AutoConfig, Qwen2Config

    from foveate.embedded import PATH

    half = Qwen2Config(
        vocab_size=1024,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=4,
        num_attention_heads=14,
        num_key_value_heads=2,
    )
    reference = AutoConfig.from_pretrained(PATH, local_files_only=True).text_config
    return {"the embedded model": reference, "4 layers of Qwen2-0.5B's size": half}


def check(
    name: str = "this-machine",
    place: str = "cpu",
    dtype: str | None = None,
    budget: float = 40.0,
    counts: Sequence[int] = COUNTS,
) -> tuple[Device, list[Point]]:
    """Calibrate and measure prefills in the same rounds, then predict the prefills from the calibration.

    Args:
        name: of the device.
        place: a torch device.
        dtype: the data type; None is float32 on a CPU and bfloat16 elsewhere.
        budget: about how many seconds to measure; everything is measured at least three times.
        counts: tokens of the prefills.

    Raises:
        FoveateError: this machine has no such device.
    """
    from transformers import AutoModel

    calibration = Calibration(place, dtype)
    size = SIZES[calibration.dtype]
    asked: list[tuple[str, int, DecoderShape, Probe]] = []
    for title, config in decoders().items():
        model: Any = AutoModel.from_config(config).to(calibration.place, getattr(torch, calibration.dtype)).eval()
        shapes = read_decoder(config)
        for tokens in counts:
            asked.append((title, tokens, shapes, _prefill(model, calibration, tokens, shapes.hidden)))
    measure([*calibration.probes, *(probe for *_, probe in asked)], calibration.place, budget)
    device = calibration.device(name)
    points = []
    for title, tokens, shapes, probe in asked:
        part = shapes.prefill([tokens] * len(shapes.layers), 1, size)
        points.append(Point(title, tokens, device.seconds(part, calibration.dtype), probe.seconds))
    return device, points


def _prefill(model: Any, calibration: Calibration, tokens: int, hidden: int) -> Probe:
    prompt = torch.randn(1, tokens, hidden, device=calibration.place).to(getattr(torch, calibration.dtype))
    return Probe(f"prefill of {tokens}", lambda: model(inputs_embeds=prompt, use_cache=True))


def read(path: Path) -> tuple[Device, list[Point]]:
    """Read what `foveate calibrate --check --json` printed into a file.

    Raises:
        FoveateError: there is no such file, or it holds something else.
    """
    data = read_json(path, advice="foveate calibrate --check --json > FILE makes one")
    try:
        curves = {name: tuple((x, y) for x, y in data["device"][name]) for name in CURVES}
        points = [Point(**{field.name: point[field.name] for field in fields(Point)}) for point in data["check"]]
        return Device(**data["device"] | curves), points
    except (ValueError, TypeError, KeyError) as error:
        raise FoveateError(
            f"{shown_path(path)} is not what foveate calibrate --check --json prints ({error})"
        ) from error


def draw(device: Device, points: Sequence[Point], path: Path) -> None:
    """Draw predicted and measured times over token counts, as a PNG.

    Raises:
        FoveateError: matplotlib is missing, or the file can't be written.
    """
    lines: dict[str, list[Point]] = {}
    for point in points:
        lines.setdefault(point.decoder, []).append(point)
    with plots.style():
        figure = plots.figure(8, 6)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        ticks = sorted({point.tokens for point in points})
        for number, (title, line) in enumerate(lines.items()):
            colour, marker = plots.COLOURS[number % 2], "os"[number % 2]
            x = [point.tokens for point in line]
            above.plot(x, [point.predicted * 1e3 for point in line], color=colour, linewidth=1.8)
            above.plot(x, [point.measured * 1e3 for point in line], marker, color=colour, label=title)
            below.plot(x, [point.ratio for point in line], marker=marker, color=colour, linewidth=1.2)
        above.set_yscale("log")
        above.set_ylabel("prefill, ms")
        above.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        above.legend(frameon=False, title="points measured, lines predicted", loc="upper left", alignment="left")
        below.axhspan(0.85, 1.15, color="black", alpha=0.07, linewidth=0)
        below.axhline(1, color="black", linewidth=0.8)
        below.set_ylim(0.5, 1.5)
        below.set_ylabel("predicted / measured")
        plots.log2_axis(below, ticks)
        below.set_xlabel("tokens of the prompt (logarithmic)")
        for axes in (above, below):
            plots.plain(axes, grid=True)
        above.set_title(device.title, loc="left", fontsize=11)
        figure.tight_layout()
        plots.save(figure, path)
