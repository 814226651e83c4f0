"""Predict the time of the calls that a task asks for, under any spec, before any of them is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Final

from foveate.bench.tasks import Task
from foveate.clips import Clip
from foveate.costmodel import Device, Model, cost_of_layouts, read_model
from foveate.costmodel.device import device as device_of
from foveate.devices import Placement
from foveate.layout import Layout
from foveate.schedule import count_tokens, schedule
from foveate.spec import Spec

__all__ = ["Calls", "answer_length", "at_hand", "calls_of", "device_like"]

_SIZES: Final = 16
"""Different pictures whose time is predicted; of more, the most frequent ones."""


@dataclass(frozen=True)
class Calls:
    """One question about each picture of a task.

    Attributes:
        model: the sizes of the model.
        layouts: what the pictures are to the model, and how many are alike.
        text_tokens: of a prompt, beside the visual ones.
        new_tokens: of an answer.
        batch: prompts at once.
        device: that times are predicted for.
        dtype: of weights and activations; None is the device's own.
    """

    model: Model
    layouts: Counter[tuple[Layout, ...]]
    text_tokens: int
    new_tokens: int
    batch: int
    device: Device
    dtype: str | None = None
    _known: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def seconds(self, spec: Spec | None) -> float:
        """Return the mean time of a call in seconds.

        Args:
            spec: what is applied; None is dense.

        Raises:
            FoveateError: the spec can't act on this model, or on one of the pictures.
            KeepError: one of the pictures has fewer tokens than a step keeps.
        """
        name = "" if spec is None else str(spec)
        if name not in self._known:
            if spec is not None:
                steps = schedule(spec, self.model.family)
                for layouts in self.layouts:
                    steps.check_clips(layouts)
                    for layout in dict.fromkeys(layouts):
                        count_tokens(steps, self.model.family, layout)
            common = self.layouts.most_common(_SIZES)
            call = (self.text_tokens, self.new_tokens, self.batch, self.device, self.dtype)
            times = [(cost_of_layouts(self.model, spec, layouts, *call).seconds, often) for layouts, often in common]
            self._known[name] = sum(time * often for time, often in times) / sum(often for _, often in times)
        return self._known[name]


def calls_of(
    task: Task,
    config: Any,
    device: str | Device,
    text_tokens: int,
    new_tokens: int,
    batch: int | None = None,
    dtype: str | None = None,
) -> Calls:
    """Return the calls that a task asks for.

    Args:
        task: whose pictures are looked at.
        config: of the model, in any form that `foveate.cost` takes.
        device: in any form that `foveate.cost` takes.
        text_tokens: of a prompt, beside the visual ones.
        new_tokens: of an answer.
        batch: prompts at once; None is one.
        dtype: of weights and activations; where the device has no rate for it, its own.

    Raises:
        FoveateError: the cost model doesn't know the model or the device, or a picture can't be read.

    >>> from foveate.bench import scenes
    >>> calls = calls_of(scenes(20), "llava-1.5-7b", "h100", 60, 4)
    >>> calls.seconds(Spec(())) == calls.seconds(None)
    True
    """
    model = read_model(config)
    found: Counter[tuple[Layout, ...]] = Counter()
    for picture in task.pictures:
        what = picture.load()
        width, height = what.size
        if not isinstance(what, Clip):
            found[(model.family.image_layout(height, width),)] += 1
        elif model.family.clip_places:
            found[(model.family.clip_layout(len(what.frames), height, width),)] += 1
        else:
            found[(model.family.frame_layout(height, width),) * len(what.frames)] += 1
    where = device_of(device)
    dtype = dtype if dtype in where.rates else None
    return Calls(model, found, text_tokens, new_tokens, batch or 1, where, dtype)


def answer_length(task: Task, processor: Any, longest: int) -> int:
    """Return how many tokens an answer has: the median of the right ones, and one for its end; at most the longest.

    >>> import foveate
    >>> from foveate.bench import scenes
    >>> answer_length(scenes(20), foveate.reference()[1], 16)
    2
    """
    right = [asked.answers[0] for picture in task.pictures for asked in picture.questions]
    lengths = {text: len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in set(right)}
    return max(1, min(longest, round(median(lengths[text] for text in right)) + 1))


def device_like(placement: Placement, known: Iterable[str]) -> str:
    """Return the name of the device that is most like the one that a model is on.

    This machine's own figures come first, then those of a card of its name; else those of a large GPU, or of a laptop.

    >>> device_like(Placement("cuda:0", "NVIDIA A100-SXM4-80GB", "bfloat16"), ["h100", "a100", "laptop"])
    'a100'
    >>> device_like(Placement("cpu", None, "float32"), ["h100", "a100", "laptop"])
    'laptop'
    """
    names = list(known)
    if THIS in names:
        return THIS
    named = [name for name in names if placement.card is not None and _names(name, placement.card)]
    return named[0] if named else "laptop" if placement.card is None else "h100"


THIS: Final = "this-machine"
"""What `foveate calibrate` calls the machine that it measures."""


def at_hand(name: str, placement: Placement) -> bool:
    """Return whether a model is on the device of this name, so that measured times are its times.

    >>> at_hand("h100", Placement("cuda:0", "NVIDIA H100 80GB HBM3", "bfloat16"))
    True
    >>> at_hand("h100", Placement("cpu", None, "float32"))
    False
    """
    return name == THIS or (placement.card is not None and _names(name, placement.card))


def _names(name: str, card: str) -> bool:
    """Return whether a card's words hold the name of a device: "rtx4090" in "NVIDIA GeForce RTX 4090"."""
    words = card.lower().replace("-", " ").split()
    return name in words or any("".join(pair) == name for pair in pairwise(words))
