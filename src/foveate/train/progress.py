"""Print lines of progress: step, loss, tokens per second, FLOPs saved, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foveate.train.timetable import Timetable

_MEASURED: Final = 3
"""Forward and backward passes after which the time of the whole run is told."""

_SLOW: Final = 20.0
"""Seconds after which fewer have to do."""


class Progress(TrainerCallback):
    """Prints a line whenever the Trainer logs, from the first process only.

    Args:
        say: what prints it.
        timetable: which stage a step belongs to.
        flops: of one conversation's forward and backward pass, per stage; the share that is saved is counted against
            `dense`. Empty: that share isn't printed.
        dense: the same without compression.
        batch: conversations per optimiser step.
        advance: takes the conversations that are done, all of them, and what is done now.
    """

    def __init__(
        self,
        say: Callable[[str], None] = print,
        timetable: Timetable | None = None,
        flops: Sequence[float] = (),
        dense: float = 0.0,
        batch: int = 1,
        advance: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._say, self._timetable, self._flops, self._dense = say, timetable, flops, dense
        self._batch, self._advance = batch, advance
        self._began = self._last = 0.0
        self._parts, self._warm, self._told = 0, 0.0, False
        self._first = self._logged = self._tokens = 0
        self._shown: list[str] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._began = self._last = time.perf_counter()
        self._first = self._logged = state.global_step
        self._tokens = 0
        self._parts, self._told = 0, state.global_step >= state.max_steps
        self._show(args, state)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count a part of an accumulated step."""
        self._count(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count a step, or the last part of one."""
        self._count(args, state)

    def _count(self, args: TrainingArguments, state: TrainerState) -> None:
        self._parts += 1
        now = time.perf_counter()
        self._show(args, state)
        if self._told:
            return
        # The first part warms up; a slow one is told at once.
        if self._parts == 1:
            self._warm = now
            if now - self._began < _SLOW:
                return
        elif self._parts <= _MEASURED and now - self._warm < _SLOW:
            return
        self._told = True
        first = self._parts == 1
        each = (now - self._began) if first else (now - self._warm) / (self._parts - 1)
        done = self._parts / args.gradient_accumulation_steps
        seconds = each * args.gradient_accumulation_steps * self._steps_left(state, self._first + done)
        self._say(
            f"about {duration(seconds)} to go for {state.max_steps - self._first:,} steps of {self._batch:,} "
            f"conversations, by the first {self._parts} forward and backward passes"
        )

    def _steps_left(self, state: TrainerState, done: float) -> float:
        """Return how many steps like the present one are left: steps under other specs count by their FLOPs."""
        if not self._flops or self._timetable is None:
            return state.max_steps - done
        table = self._timetable
        here = self._flops[table.stage(min(int(done), table.steps - 1))]
        ends = [*table.starts[1:], table.steps]
        return (
            sum(max(0, end - max(start, done)) * flops for flops, start, end in zip(self._flops, table.starts, ends))
            / here
        )

    def _show(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._advance is None or not state.is_world_process_zero:
            return
        steps = self._first + self._parts / args.gradient_accumulation_steps
        step = min(int(steps) + 1, state.max_steps)
        self._advance(
            round(steps * self._batch), state.max_steps * self._batch, f"Training, step {step:,} of {state.max_steps:,}"
        )

    def measure(self, state: TrainerState, tokens: int, numbers: dict[str, float]) -> dict[str, float]:
        """Measure the steps since the last call.

        Args:
            state: of the Trainer, after a step.
            tokens: that all processes have trained on since training began.
            numbers: other numbers of the model's outputs.

        Returns:
            Seconds per step, tokens per second, the share of FLOPs saved so far, and `numbers`.
        """
        now = time.perf_counter()
        found = {"seconds_per_step": (now - self._last) / max(1, state.global_step - self._logged)}
        if tokens > self._tokens:
            found["tokens_per_second"] = (tokens - self._tokens) / (now - self._last)
        saved = self.saved(state.global_step)
        if saved is not None:
            found["flops_saved"] = saved
        self._last, self._logged, self._tokens = now, state.global_step, tokens
        self._shown = list(numbers)
        return {**found, **numbers}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Print the line."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        parts = [f"step {state.global_step}/{state.max_steps}", f"loss {logs['loss']:.4f}"]
        if self._timetable is not None and len(self._timetable.specs) > 1:
            stage = self._timetable.stage(state.global_step - 1)
            parts.append(f"stage {stage + 1}/{len(self._timetable.specs)} {self._timetable.specs[stage]}")
        parts += [f"lr {logs.get('learning_rate', 0.0):.1e}", f"{logs['seconds_per_step']:.2f} s/step"]
        if "tokens_per_second" in logs:
            parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
        if "flops_saved" in logs:
            parts.append(f"{logs['flops_saved']:.0%} of FLOPs saved")
        parts += [f"{name} {logs[name]:.3f}" for name in self._shown]
        spent = time.perf_counter() - self._began
        left = spent / max(1, state.global_step - self._first) * (state.max_steps - state.global_step)
        parts.append(f"{duration(left)} left" if state.global_step < state.max_steps else "done")
        self._say("  ".join(parts))

    def saved(self, steps: int) -> float | None:
        """Return the share of the FLOPs of the first `steps` steps that compression saved; None if it isn't known."""
        if not self._flops or self._timetable is None or not self._dense:
            return None
        starts = self._timetable.starts
        ends = [*starts[1:], self._timetable.steps]
        spent = sum(flops * max(0, min(steps, end) - start) for flops, start, end in zip(self._flops, starts, ends))
        # Rounded, so that zero isn't printed as -0 %.
        return round(1 - spent / (self._dense * steps), 9) + 0.0


def duration(seconds: float) -> str:
    """Write a time in words.

    >>> duration(8), duration(400), duration(9000)
    ('8 s', '7 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
