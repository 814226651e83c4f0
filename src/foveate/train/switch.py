"""Apply the spec of each stage during its steps."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foveate.engine import apply
from foveate.train.settings import DENSE
from foveate.train.timetable import Timetable


class StageSwitch(TrainerCallback):
    """Applies the spec that a timetable has for the next step.

    Stages are counted in optimiser steps, so neither accumulation nor the number of processes moves them. The step
    alone decides, so checkpoints store nothing about stages.

    Args:
        model: what is trained, or the model inside it that a family takes.
        timetable: what is applied when.
    """

    def __init__(self, model: nn.Module, timetable: Timetable) -> None:
        self._model, self.timetable = model, timetable
        self._open = ExitStack()
        self.stage = -1
        """The number of the stage that is applied, counted from 0; -1 outside training."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin with the stage of the first step, which after an interruption may be any."""
        self._enter(min(state.global_step, self.timetable.steps - 1))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on to the next stage if the next step is its first."""
        if state.global_step < self.timetable.steps:
            self._enter(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the model as it was."""
        self.close()

    def close(self) -> None:
        """Remove the hooks; call it when training fails, too."""
        self._open.close()
        self.stage = -1

    def _enter(self, step: int) -> None:
        stage = self.timetable.stage(step)
        if stage == self.stage:
            return
        self.close()
        spec = self.timetable.specs[stage]
        if spec != DENSE:
            self._open.enter_context(apply(self._model, spec))
        self.stage = stage
