"""transformers' Trainer with three things of ours: pickle-free whole checkpoints, a stop at a loss that is no number,
and data in an order that depends on the seed alone.

Processes, accumulation, mixed precision, sharding, optimisers and trackers are the Trainer's own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from foveate.errors import FoveateError
from foveate.train import checkpoint as files
from foveate.train.progress import Progress, shares
from foveate.train.recipe import RecipeError

_LESS = "look at these rows, or lower lr, lengthen warmup, or train in bf16 or fp32 instead of fp16"


class Passes(Dataset[Any]):
    """As many passes over a dataset as a run needs, each in an order of its own, as one long sequence.

    Item i is the same whatever the number of processes and accumulations, so runs can be compared, and resumed.

    >>> rows = Passes(["a", "b", "c"], 5, seed=1)
    >>> len(rows), sorted(rows[i][1] for i in range(3)), rows[4][0] == rows.row(4)
    (5, ['a', 'b', 'c'], True)
    """

    def __init__(self, rows: Any, length: int, seed: int) -> None:
        self.rows, self.length, self.seed = rows, length, seed
        self._pass = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> int:
        """The row of the dataset at place `index` of the run."""
        number, at = divmod(index, len(self.rows))
        if number != self._pass:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._order = torch.randperm(len(self.rows), generator=generator).tolist()
            self._pass = number
        return self._order[at]

    def __getitem__(self, index: int) -> tuple[int, Any]:
        row = self.row(index)
        return row, self.rows[row]


class SafeTrainer(Trainer):
    """The one Trainer of foveate.

    Args:
        note: goes beside every checkpoint as `recipe.json`: what made it.
        describe: names the rows of a batch, for the message about a loss that is no number.
        rates: learning rates of their own, for parameters whose names begin so.
        kwargs: as for `transformers.Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        note: Mapping[str, Any] | None = None,
        describe: Callable[[list[int]], str] | None = None,
        rates: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.note = dict(note or {})
        self.rates = dict(rates or {})
        self.describe = describe
        self.numbers: dict[str, float] = {}
        """Sums of what the model's outputs name in `numbers`, since the last log line."""
        self.counted = 0
        self.tokens = 0
        """Tokens of the whole prompts that this process has trained on in this call."""
        self.progress: Progress | None = None
        """What measures speed and savings for the log, and says them."""
        self._aside: Path | None = None
        super().__init__(*args, **kwargs)
        # `Progress` does the talking.
        self.remove_callback(PrinterCallback)

    @property
    def folder(self) -> Path:
        """Where checkpoints go."""
        return Path(str(self.args.output_dir))

    # Learning rates

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Transformers' own, with a group of its own for each learning rate of its own."""
        made = self.optimizer is not None
        optimiser = super().create_optimizer(model)
        if made or not self.rates:
            return optimiser
        named = {id(weight): name for name, weight in self._trained()}
        for group in [*optimiser.param_groups]:
            for beginning, rate in self.rates.items():
                apart = [weight for weight in group["params"] if named[id(weight)].startswith(beginning)]
                known = {id(weight) for weight in apart}
                group["params"] = [weight for weight in group["params"] if id(weight) not in known]
                if apart:
                    optimiser.add_param_group({**group, "params": apart, "lr": rate})
        return optimiser

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's loss, if it is a number.

        Raises:
            FoveateError: it isn't; the text names step and rows, and the last checkpoint.
        """
        inputs = dict(inputs)
        rows = inputs.pop("rows", None)
        self.tokens += int(inputs.pop("tokens", 0))
        try:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        except FoveateError as error:
            raise self._stopped(str(error), rows) from error
        if not math.isfinite(loss.item()):
            raise self._stopped(f"the loss is {loss.item()}; {_LESS}", rows)
        numbers = outputs.get("numbers") if isinstance(outputs, dict) else None
        for name, value in (numbers or {}).items():
            self.numbers[name] = self.numbers.get(name, 0.0) + value
        self.counted += 1
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # A finite loss can have gradients that aren't; weights would be lost before the next loss tells. Under fp16
        # that is expected now and then, and the scaler leaves the step out.
        value = float(norm)  # pyright: ignore[reportArgumentType]
        if not math.isfinite(value) and getattr(self.accelerator, "scaler", None) is None:
            raise self._stopped(f"the norm of the gradient is {value}; {_LESS}", None)
        return norm

    def _stopped(self, why: str, rows: list[int] | None) -> FoveateError:
        where = f"step {self.state.global_step + 1} of {self.state.max_steps}"
        if rows is not None:
            where += f", {self.describe(rows) if self.describe else f'rows {rows}'}"
        kept = files.checkpoints(self.folder)
        last = f"the last checkpoint, {kept[-1]}, is from before" if kept else "no checkpoint has been written yet"
        return FoveateError(f"{where}: {why}. Training stops here; {last}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss together with what `Progress` measures, so that trackers get both."""
        if "loss" in logs and self.progress is not None:
            tokens = self.tokens * self.args.world_size
            logs |= self.progress.measure(self.state, tokens, shares(self.numbers, self.counted))
            self.numbers, self.counted = {}, 0
        super().log(logs, start_time)

    # Checkpoints: Trainer decides when, `_save_checkpoint` is what it calls

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside) if self._aside is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        aside = self.folder / files.WRITING
        name = f"checkpoint-{self.state.global_step}"
        self._aside = aside
        try:
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                files.write_json(self.note, aside / name / "recipe.json")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                files.publish(aside / name, self.folder / name, self.args.save_total_limit or 2)
                shutil.rmtree(aside, ignore_errors=True)
            self.accelerator.wait_for_everyone()
        except (OSError, safetensors.SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            kept = files.checkpoints(self.folder)
            last = f"{kept[-1]} is whole" if kept else "no earlier one exists"
            raise FoveateError(
                f"{name} could not be written to {self.folder} ({str(error).splitlines()[0]}); {last}. Make room there "
                "and run the same command with --resume"
            ) from error
        finally:
            self._aside = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The trained weights; frozen ones come from where they came from before.

        Not `save_pretrained`: that gives many weights other names, and Trainer, when it resumes, looks for the model's
        own names and goes on with whatever was there when it finds none.
        """
        if self.args.should_save:
            folder = Path(output_dir or self.folder)
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: weight.detach().contiguous() for name, weight in self._trained()}, folder / files.WEIGHTS)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if self.args.should_save:
            optimiser: Any = self.optimizer
            schedule: Any = self.lr_scheduler
            files.save_optimiser(optimiser.state_dict(), folder / files.OPTIMISER)
            files.write_json(schedule.state_dict(), folder / files.SCHEDULER)

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self.args.should_save:
            files.write_json(scaler.state_dict(), Path(output_dir) / files.SCALER)

    def _save_rng_state(self, output_dir: str) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        files.save_random(folder / f"random-{self.args.process_index}.safetensors")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        optimiser: Any = self.optimizer
        schedule: Any = self.lr_scheduler
        optimiser.load_state_dict(files.load_optimiser(Path(checkpoint) / files.OPTIMISER))
        schedule.load_state_dict(json.loads((Path(checkpoint) / files.SCHEDULER).read_text(encoding="utf-8")))

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        path = Path(checkpoint or "", files.SCALER)
        if checkpoint is not None and scaler is not None and path.exists():
            scaler.load_state_dict(json.loads(path.read_text(encoding="utf-8")))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        path = Path(checkpoint or "", f"random-{self.args.process_index}.safetensors")
        if checkpoint is not None and path.exists():
            files.load_random(path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint, files.WEIGHTS)
        stored, trained = load_file(path), dict(self._trained())
        if stored.keys() != trained.keys():
            other = sorted(stored.keys() ^ trained.keys())[0]
            raise RecipeError(f"{path} holds the weights of another model, or of other parts of it ({other})")
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(stored[name])


def training_arguments(
    folder: Path, given: Mapping[str, Any], owned: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> TrainingArguments:
    """`TrainingArguments` from what a recipe owns and what it passes on.

    Args:
        folder: where checkpoints go.
        given: what the recipe's `trainer` holds.
        owned: what other keys of the recipe decide.
        defaults: what holds unless `given` says otherwise.

    Raises:
        RecipeError: `given` has a name that `TrainingArguments` lacks, or one that the recipe has a key of its own for.
    """
    import dataclasses

    from foveate.train.recipe import nearest

    known = {each.name for each in dataclasses.fields(TrainingArguments)}
    fixed: dict[str, Any] = {
        "output_dir": str(folder),
        "save_strategy": "steps",
        "logging_strategy": "steps",
        # The run is one long epoch in a fixed order; `Passes` shuffles.
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": [],
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
        "do_train": True,
        **(defaults or {}),
        **owned,
    }
    for name in given:
        if name not in known:
            raise RecipeError(f'trainer: TrainingArguments has no "{name}"; {nearest(name, known)}')
        if name in owned or name in ("output_dir", "train_sampling_strategy", "num_train_epochs", "max_steps"):
            raise RecipeError(f"trainer: {name} is decided by other keys of the recipe; leave it out")
    sharded = [
        name
        for name in ("fsdp", "deepspeed")
        if given.get(name) or os.environ.get(f"ACCELERATE_USE_{name.upper()}") == "true"
    ]
    if sharded:
        raise RecipeError(
            f"{sharded[0]} shards weights and optimiser over processes, and our checkpoints have not been tried with "
            "that; train with plain data parallelism (accelerate launch --multi_gpu), LoRA and activation checkpointing"
        )
    try:
        return TrainingArguments(**{**fixed, **given})
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"trainer: {str(error).strip().splitlines()[0]}") from None


def accumulation(batch: int, per_device: int | None, processes: int) -> tuple[int, int]:
    """Conversations at a time in one process, and how often they are accumulated to a step.

    Raises:
        RecipeError: a step can't be divided so.

    >>> accumulation(32, 4, 2)
    (4, 4)
    """
    if batch % processes:
        raise RecipeError(f"a step of {batch} (batch) can't be shared by {processes} processes")
    share = batch // processes
    at_once = min(per_device or share, share)
    if share % at_once:
        raise RecipeError(
            f"{share} conversations per process and step can't be taken {at_once} (per_device) at a time; "
            f"{batch} (batch) must be a multiple of per_device x {processes} processes"
        )
    return at_once, share // at_once
