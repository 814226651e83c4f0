"""Devices: their speed at arithmetic, memory and launches, and the time of operations on them."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from foveate.arguments import check_kind, listed
from foveate.costmodel.ops import CallPart, Op
from foveate.errors import FoveateError, nearest
from foveate.files import FileError, is_file, read_text, read_toml, shown_path, write_text
from foveate.numbers import check_real

_BUILT_IN = Path(__file__).with_name("devices.toml")
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number of the supported data types."""


WAIT = 2
"""How many launches a wait of the host takes: a copy to the host, and the way to the next kernel."""

Curve = tuple[tuple[float, float], ...]
"""Points (x, y), x ascending. Between points the curve is straight on logarithmic axes; beyond them it is constant."""
CURVES = ("products", "attention", "elementwise")
"""The fields of a device that are curves."""


@dataclass(frozen=True)
class Device:
    """A device, as the cost model describes it.

    Attributes:
        name: used in commands.
        title: used in texts.
        rates: FLOPs per second by data type.
        bandwidth: bytes of weights read per second.
        memory: bytes of memory.
        launch: seconds to start one kernel, at least.
        overlap: whether arithmetic, memory access and launches overlap; else their times add up.
        products: share of the rate that matrix products reach, by their rows; () is the full rate.
        attention: share of the rate that attention reaches, by its queries, masked FLOPs included; () is the full rate
            on the FLOPs that are not masked.
        elementwise: bytes per second of elementwise operations, by the bytes of one kernel; () is `bandwidth`.
        source: where the figures come from.
        measured: whether they were measured on the device; else they are peak figures, and times are lower bounds.

    Raises:
        FoveateError: a figure is no number, or not above zero.
    """

    name: str
    title: str
    rates: Mapping[str, float] = field(hash=False)
    bandwidth: float
    memory: float
    launch: float = 0.0
    overlap: bool = True
    products: Curve = ()
    attention: Curve = ()
    elementwise: Curve = ()
    source: str = ""
    measured: bool = False

    def __post_init__(self) -> None:
        check_kind("rates", self.rates, Mapping, 'FLOPs per second by data type, such as {"bfloat16": 3e14}')
        for name, value in (*self.rates.items(), ("bandwidth", self.bandwidth), ("memory", self.memory)):
            if check_real(name, value) <= 0:
                raise FoveateError(f"{name} of the device {self.name} is {value}; it must be more than 0")
        if check_real("launch", self.launch) < 0:
            raise FoveateError(f"launch of the device {self.name} is {self.launch}; it must be 0 seconds or more")
        for name in CURVES:
            points = listed(name, getattr(self, name), "points (x, y), x ascending")
            for point in points:
                if len(listed(name, point, "points (x, y), x ascending")) != 2:
                    raise FoveateError(f"{name} of the device {self.name} has a point {point}; write (x, y)")
                if min(check_real(name, number) for number in point) <= 0:
                    raise FoveateError(f"{name} of the device {self.name} has a point {point}; both must be above 0")
            if any(left[0] >= right[0] for left, right in pairwise(points)):
                raise FoveateError(f"{name} of the device {self.name} must have its points with x ascending")

    def rate(self, dtype: str) -> float:
        """Return the FLOPs per second in a data type.

        Raises:
            FoveateError: the device has no figure for it.
        """
        if dtype not in self.rates:
            known = ", ".join(self.rates)
            raise FoveateError(f"{self.title} has no rate for {dtype}; it has one for {known}")
        return self.rates[dtype]

    def busy(self, op: Op, dtype: str) -> float:
        """Return the seconds of one operation, all repetitions, without launches."""
        compute = op.flops / self.rate(dtype)
        if op.name == "attention":
            compute = compute / at(self.attention, op.rows) if self.attention else compute * op.needed
        elif op.rows and self.products:
            compute /= at(self.products, op.rows)
        if not op.flops and self.elementwise:
            memory = op.moved / at(self.elementwise, op.moved / max(1, op.launches))
        else:
            memory = (op.weights + op.moved) / self.bandwidth
        if self.overlap:
            return op.times * max(compute, memory)
        # Without overlap, the measured rate of a product includes reading and writing its activations.
        return op.times * (compute + (op.weights / self.bandwidth if op.flops and self.products else memory))

    def seconds(self, part: CallPart, dtype: str) -> float:
        """Return the seconds of a part: its operations, or its launches and waits if they take longer."""
        busy = sum(self.busy(op, dtype) for op in part.ops)
        launching = (part.launches + (WAIT if self.overlap else 0) * part.waits) * self.launch
        return max(busy, launching) if self.overlap else busy + launching


def at(curve: Curve, x: float) -> float:
    """Return the value of a curve at x.

    >>> round(at(((1, 10), (100, 1000)), 10)), at(((1, 10), (100, 1000)), 500)
    (100, 1000)
    """
    before = [point for point in curve if point[0] <= x]
    after = [point for point in curve if point[0] > x]
    if not before or not after:
        return (before or after)[-1 if before else 0][1]
    (left, low), (right, high) = before[-1], after[0]
    share = math.log(x / left) / math.log(right / left)
    return math.exp((1 - share) * math.log(low) + share * math.log(high))


def processor() -> str:
    """Return the name of this machine's processor, or its architecture if the system gives no name."""
    try:
        text = read_text("/proc/cpuinfo")
    except FileError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def user_file() -> Path:
    """Return the file of measured devices in the user's configuration folder."""
    base = os.environ.get("APPDATA") if os.name == "nt" else os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "foveate" / "devices.toml"


def devices() -> dict[str, Device]:
    """Return the built-in devices and those measured on this machine, by name."""
    found = read_devices(_BUILT_IN)
    if is_file(user_file()):
        found |= read_devices(user_file())
    return found


def device(name: str | Device) -> Device:
    """Return a device by its name, or from a file that holds exactly one.

    Raises:
        FoveateError: there is no such device or file.
    """
    if isinstance(name, Device):
        return name
    check_kind("device", name, str, "the name of a device, a file of one, or a Device")
    if name.endswith(".toml"):
        found = read_devices(Path(name))
        if len(found) != 1:
            raise FoveateError(f"{name} holds {len(found)} devices; a device file that is named holds exactly one")
        return next(iter(found.values()))
    known = devices()
    if name not in known:
        meant = nearest(name.lower(), known)
        raise FoveateError(f'no device is called "{name}"; {meant}; foveate calibrate adds this machine')
    return known[name]


def read_devices(path: Path) -> dict[str, Device]:
    """Read the devices of a file.

    Raises:
        FoveateError: there is no such file, or a field in it is missing or wrong.
    """
    tables = read_toml(path, "device file", f"foveate calibrate --out {shown_path(path)} makes one")
    return {name: _device(name, table, path) for name, table in tables.items()}


def _device(name: str, table: Any, path: Path) -> Device:
    where = f"device {name!r} in {shown_path(path)}"
    if not isinstance(table, dict):
        raise FoveateError(f"{where} is no table")
    rates = {kind: _positive(table, kind, where) for kind in SIZES if kind in table}
    if not rates:
        raise FoveateError(f"{where} has no rate; give one of {', '.join(SIZES)} in FLOPs per second")
    known = {field.name for field in fields(Device)} | SIZES.keys()
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
        products=_curve(table, "products", where),
        attention=_curve(table, "attention", where),
        elementwise=_curve(table, "elementwise", where),
        source=str(table.get("source", "")),
        measured=bool(table.get("measured", False)),
    )


def _positive(table: Mapping[str, Any], key: str, where: str) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise FoveateError(f"{where} needs {key} as a number above 0, not {value!r}")
    return float(value)


def _curve(table: Mapping[str, Any], key: str, where: str) -> Curve:
    points = table.get(key, [])
    try:
        curve = tuple((float(x), float(y)) for x, y in points)
    except (TypeError, ValueError):
        raise FoveateError(f"{where} needs {key} as a list of pairs of numbers, not {points!r}") from None
    if any(x <= 0 or y <= 0 for x, y in curve) or sorted(curve) != list(curve):
        raise FoveateError(f"{where} needs {key} as pairs of numbers above 0, ascending")
    return curve


def written(device: Device) -> str:
    """Return a device as a table of a device file."""
    rows: list[tuple[str, Any]] = [("title", device.title), *device.rates.items()]
    rows += [(name, getattr(device, name)) for name in ("bandwidth", "memory", "launch", "overlap")]
    rows += [(name, [list(point) for point in getattr(device, name)]) for name in ("products", "attention")]
    rows += [("elementwise", [list(point) for point in device.elementwise])]
    rows += [("source", device.source), ("measured", device.measured)]
    # TOML writes numbers, strings, booleans and lists of numbers as JSON does.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in rows if value not in ("", [])]
    return "\n".join([f"[{json.dumps(device.name)}]", *lines]) + "\n"


def save(device: Device, path: Path) -> None:
    """Add a device to a file, or replace the one of its name; written atomically.

    Raises:
        FoveateError: the existing file is no device file, or the file can't be written.
    """
    found = read_devices(path) if is_file(path) else {}
    found[device.name] = device
    text = "# Devices measured by `foveate calibrate`.\n\n" + "\n".join(written(known) for known in found.values())
    write_text(path, text)
