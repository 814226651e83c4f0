"""One line now and then: step, loss, tokens per second, what is saved, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foveate.train.timetable import Timetable
from foveate.train.trainer import SafeTrainer


class Progress(TrainerCallback):
    """Prints a line whenever the Trainer logs, from the first process only.

    Args:
        say: what prints it.
        timetable: which stage a step belongs to.
        flops: of one conversation's forward and backward pass, per stage; the share that is saved is counted against
            `dense`. Empty: that share is not told.
        dense: the same without compression.
    """

    def __init__(
        self,
        say: Callable[[str], None] = print,
        timetable: Timetable | None = None,
        flops: Sequence[float] = (),
        dense: float = 0.0,
    ) -> None:
        self._say, self._timetable, self._flops, self._dense = say, timetable, flops, dense
        self.trainer: SafeTrainer | None = None
        """Set when the trainer is there: it counts tokens."""
        self._began = self._last = 0.0
        self._first = self._logged = self._tokens = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._began = self._last = time.perf_counter()
        self._first = self._logged = state.global_step
        self._tokens = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Print the line; what it says beside the loss goes to the trackers too."""
        logs = logs if logs is not None else {}
        if "loss" not in logs or not state.is_world_process_zero or state.global_step == self._logged:
            return
        now = time.perf_counter()
        steps = state.global_step - self._logged
        per_step = (now - self._last) / steps
        told = [f"step {state.global_step}/{state.max_steps}", f"loss {logs['loss']:.4f}"]
        if self._timetable is not None and len(self._timetable.specs) > 1:
            stage = self._timetable.stage(state.global_step - 1)
            told.append(f"stage {stage + 1}/{len(self._timetable.specs)} {self._timetable.specs[stage]}")
        told += [f"lr {logs.get('learning_rate', 0.0):.1e}", f"{per_step:.2f} s/step"]
        trainer = self.trainer
        if trainer is not None and trainer.tokens > self._tokens:
            speed = (trainer.tokens - self._tokens) * args.world_size / (now - self._last)
            logs["tokens_per_second"] = speed
            told.append(f"{speed:,.0f} tokens/s")
            self._tokens = trainer.tokens
        saved = self.saved(state.global_step)
        if saved is not None:
            logs["flops_saved"] = saved
            told.append(f"{saved:.0%} of FLOPs saved")
        if trainer is not None:
            for name, value in shares(trainer.numbers, trainer.counted).items():
                logs[name] = value
                told.append(f"{name} {value:.3f}")
            trainer.numbers, trainer.counted = {}, 0
        left = (now - self._began) / (state.global_step - self._first) * (state.max_steps - state.global_step)
        told.append(f"{duration(left)} left" if state.global_step < state.max_steps else "done")
        self._say("  ".join(told))
        self._last, self._logged = now, state.global_step

    def saved(self, steps: int) -> float | None:
        """The share of the FLOPs of the first `steps` steps that compression saved; None if it isn't known."""
        if not self._flops or self._timetable is None or not self._dense:
            return None
        spent = sum(self._flops[self._timetable.stage(step)] for step in range(steps))
        return 1 - spent / (self._dense * steps)


def shares(sums: dict[str, float], count: int) -> dict[str, float]:
    """Means of what was summed `count` times, and the shares of pairs `name:right` and `name:asked`.

    >>> shares({"near": 3.0, "where:right": 2.0, "where:asked": 8.0}, 2)
    {'near': 1.5, 'where': 0.25}
    """
    out: dict[str, float] = {}
    for key, value in sums.items():
        name, _, part = key.partition(":")
        if part == "right":
            out[name] = value / sums[f"{name}:asked"]
        elif not part:
            out[name] = value / count
    return out


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(8), duration(400), duration(9000)
    ('8 s', '7 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
