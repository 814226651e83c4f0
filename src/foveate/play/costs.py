"""What specs cost on a device, for a published configuration, and what they took here: bars side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from foveate import costmodel
from foveate.errors import FoveateError
from foveate.play.player import Reply

__all__ = ["PARTS", "Bars", "Call", "Row", "measured", "models", "predicted"]

PARTS: Final = ("encoder", "compressor", "prefill", "decode")
"""The parts of a call, in order; the projector is with the encoder, and the head with the decoding."""
EMBEDDED: Final = "the embedded model"


@dataclass(frozen=True)
class Call:
    """A call whose cost is asked for.

    Attributes:
        model: the name of a published configuration, or "the embedded model".
        device: a name of the table of devices.
        width: of the image, in pixels.
        height: of the image, in pixels.
        text_tokens: of the prompt beside the image.
        new_tokens: of the answer.
        batch: equal prompts at once.
    """

    model: str = "qwen2.5-vl-7b"
    device: str = "h100"
    width: int = 1344
    height: int = 1008
    text_tokens: int = 60
    new_tokens: int = 64
    batch: int = 1


@dataclass(frozen=True)
class Row:
    """The cost of one spec.

    Attributes:
        spec: in its written form; "dense" for none.
        tokens: visual tokens after the last step.
        parts: milliseconds, by the names of `PARTS`.
        cache: bytes of keys and values after the answer.
        first: milliseconds until the first token; 0 where it isn't known.
        note: what to know besides, such as that it doesn't fit.
        error: why there are no figures; "" if there are.
    """

    spec: str
    tokens: int = 0
    parts: tuple[tuple[str, float], ...] = ()
    cache: int = 0
    first: float = 0.0
    note: str = ""
    error: str = ""

    @property
    def total(self) -> float:
        """Milliseconds of all parts."""
        return sum(milliseconds for _, milliseconds in self.parts)


@dataclass(frozen=True)
class Bars:
    """Rows to compare, and what they are.

    Attributes:
        title: what was measured or predicted.
        rows: dense first.
        source: where the figures come from.
    """

    title: str
    rows: tuple[Row, ...]
    source: str

    @property
    def longest(self) -> float:
        """The most milliseconds of a row."""
        return max((row.total for row in self.rows), default=0.0) or 1.0

    @property
    def largest(self) -> int:
        """The largest cache of a row."""
        return max((row.cache for row in self.rows), default=0) or 1


def models() -> tuple[str, ...]:
    """Return the configurations that can be named."""
    return (*costmodel.published(), EMBEDDED)


@lru_cache(16)
def _model(name: str) -> Any:
    return costmodel.read_model(None if name == EMBEDDED else name)


def predicted(call: Call, specs: Sequence[str]) -> Bars:
    """Predict what a call costs, dense and under each spec; nothing is run.

    >>> bars = predicted(Call("llava-1.5-7b", "a100", 336, 336), ["cluster:64", "clustre:64"])
    >>> [(row.spec, row.tokens, bool(row.error)) for row in bars.rows]
    [('dense', 576, False), ('cluster:64', 64, False), ('clustre:64', 0, True)]

    Raises:
        FoveateError: there is no such model or device, or dense can't be counted.
    """
    if call.model not in models():
        raise FoveateError(f"no configuration is called {call.model!r}; there are {', '.join(models())}")
    device = costmodel.device(call.device)
    rows = [_predicted(call, device, None)]
    for spec in specs:
        try:
            rows.append(_predicted(call, device, spec))
        except FoveateError as error:
            rows.append(Row(spec, error=str(error)))
    origin = "from measurements" if device.measured else "lower bounds from peak figures"
    return Bars(
        f"{call.model}, image {call.width} x {call.height}, {call.text_tokens} text and {call.new_tokens} new tokens, "
        f"batch {call.batch}, on {device.title}",
        tuple(rows),
        f"Predicted by the cost model; times are {origin} ({device.source}).",
    )


def _predicted(call: Call, device: costmodel.Device, spec: str | None) -> Row:
    found = costmodel.cost(
        _model(call.model),
        spec,
        images=[(call.width, call.height)],
        text_tokens=call.text_tokens,
        new_tokens=call.new_tokens,
        batch=call.batch,
        device=device,
    )
    seconds = {name: found.part(name).seconds for name in ("encoder", "projector", "compressor", "prefill")}
    parts = {
        "encoder": seconds["encoder"] + seconds["projector"],
        "compressor": seconds["compressor"],
        "prefill": seconds["prefill"],
        "decode": found.part("head").seconds + found.part("decode").seconds,
    }
    notes = ["at most, since the content decides"] if found.adaptive else []
    if not found.fits:
        notes.append(f"does not fit: {found.peak_bytes / 1e9:.0f} GB of {found.memory / 1e9:.0f}")
    return Row(
        found.spec,
        found.kept_tokens,
        tuple((name, parts[name] * 1e3) for name in PARTS),
        found.kv_bytes,
        found.first_token * 1e3,
        "; ".join(notes),
    )


def measured(title: str, where: str, replies: Sequence[Reply | Row]) -> Bars:
    """Return what answers took on this machine.

    Args:
        title: of the model.
        where: the device and the dtype.
        replies: dense first; a `Row` stands for a spec that was refused.
    """
    rows = [
        each
        if isinstance(each, Row)
        else Row(
            each.spec,
            each.after,
            (
                ("encoder", each.encoder),
                ("compressor", each.compressor),
                ("prefill", each.prefill),
                ("decode", each.decode),
            ),
            each.cache,
            each.encoder + each.compressor + each.prefill,
        )
        for each in replies
    ]
    return Bars(
        f"{title}, {where}",
        tuple(rows),
        "Measured here: one run of each answer; the picture was encoded once for all of them.",
    )
