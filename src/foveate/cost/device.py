"""Devices: how fast one is at arithmetic, memory and launches, and what a piece of work takes there."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from foveate.cost.ops import Op, Part
from foveate.errors import FoveateError

_BUILT_IN = Path(__file__).with_name("devices.toml")
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number of the data types that are counted."""


@dataclass(frozen=True)
class Device:
    """A device as the cost model sees it.

    Attributes:
        name: what it is called in commands.
        title: what people call it.
        rates: FLOPs per second by data type.
        bandwidth: bytes per second of memory.
        memory: bytes of memory.
        launch: seconds that one kernel takes to start, at least.
        overlap: whether arithmetic, memory and launches go on at once; else their times add up.
        cached: bytes per second of activations, where they stay in a cache; None is `bandwidth`.
        attention: FLOPs per second of attention, the masked ones counted; None is the data type's rate.
        source: where the figures are from.
        measured: whether they were measured on the device itself; else they are peaks, and times are lower bounds.
    """

    name: str
    title: str
    rates: Mapping[str, float] = field(hash=False)
    bandwidth: float
    memory: float
    launch: float = 0.0
    overlap: bool = True
    cached: float | None = None
    attention: float | None = None
    source: str = ""
    measured: bool = False

    def rate(self, dtype: str) -> float:
        """FLOPs per second in a data type.

        Raises:
            FoveateError: nobody measured it or names it.
        """
        if dtype not in self.rates:
            known = ", ".join(self.rates)
            raise FoveateError(f"{self.title} has no rate for {dtype}; it has one for {known}")
        return self.rates[dtype]

    def busy(self, op: Op, dtype: str) -> float:
        """Seconds of one operation, all its times, launches left out."""
        if op.name == "attention" and self.attention is not None:
            compute = op.flops / self.attention
        else:
            compute = op.flops * op.needed / self.rate(dtype)
        if self.overlap:
            return op.times * max(compute, (op.weights + op.moved) / self.bandwidth)
        return op.times * (compute + op.weights / self.bandwidth + op.moved / (self.cached or self.bandwidth))

    def seconds(self, part: Part, dtype: str) -> float:
        """Seconds of a part: the device's work, or the launches if those take longer."""
        busy = sum(self.busy(op, dtype) for op in part.ops)
        launching = part.launches * self.launch
        return max(busy, launching) if self.overlap else busy + launching


def user_file() -> Path:
    """Where measured devices are kept: one file in the user's configuration folder."""
    base = os.environ.get("APPDATA") if os.name == "nt" else os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "foveate" / "devices.toml"


def devices() -> dict[str, Device]:
    """Every device that can be named: the built-in ones, and those that were measured on this machine."""
    found = read_devices(_BUILT_IN)
    if user_file().is_file():
        found |= read_devices(user_file())
    return found


def device(name: str | Device) -> Device:
    """A device by its name, or by a file that holds exactly one.

    Raises:
        FoveateError: there is none of that name.
    """
    if isinstance(name, Device):
        return name
    if name.endswith(".toml"):
        found = read_devices(Path(name))
        if len(found) != 1:
            raise FoveateError(f"{name} holds {len(found)} devices; a device file that is named holds exactly one")
        return next(iter(found.values()))
    known = devices()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        meant = f'did you mean "{near[0]}"? ' if near else ""
        raise FoveateError(
            f'no device is called "{name}"; {meant}There are {", ".join(known)}; foveate calibrate adds this machine'
        )
    return known[name]


def read_devices(path: Path) -> dict[str, Device]:
    """The devices of a file.

    Raises:
        FoveateError: it isn't there, or something in it is missing or wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FoveateError(f"there is no device file {path}; foveate calibrate --out {path} makes one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise FoveateError(f"the device file {path} cannot be read ({error})") from error
    return {name: _device(name, table, path) for name, table in tables.items()}


def _device(name: str, table: Any, path: Path) -> Device:
    where = f"device {name!r} in {path}"
    if not isinstance(table, dict):
        raise FoveateError(f"{where} is no table")
    rates = {kind: _positive(table, kind, where) for kind in SIZES if kind in table}
    if not rates:
        raise FoveateError(f"{where} has no rate; give one of {', '.join(SIZES)} in FLOPs per second")
    known = {each.name for each in fields(Device)} | SIZES.keys()
    for key in table:
        if key not in known:
            raise FoveateError(
                f"{where} has a field {key!r} that means nothing; it may have {', '.join(sorted(known))}"
            )
    return Device(
        name=name,
        title=str(table.get("title", name)),
        rates=rates,
        bandwidth=_positive(table, "bandwidth", where),
        memory=_positive(table, "memory", where),
        launch=_positive(table, "launch", where) if table.get("launch") else 0.0,
        overlap=bool(table.get("overlap", True)),
        cached=_positive(table, "cached", where) if "cached" in table else None,
        attention=_positive(table, "attention", where) if "attention" in table else None,
        source=str(table.get("source", "")),
        measured=bool(table.get("measured", False)),
    )


def _positive(table: Mapping[str, Any], key: str, where: str) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise FoveateError(f"{where} needs {key} as a number above 0, not {value!r}")
    return float(value)
