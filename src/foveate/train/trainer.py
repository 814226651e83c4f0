"""transformers' Trainer with three additions: checkpoints that are whole, a stop at NaN or infinite losses, and data in
an order that depends on the seed alone.

Processes, accumulation, mixed precision, sharding, optimisers and trackers are the Trainer's own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from foveate.errors import FoveateError, first_line, nearest
from foveate.files import (
    FileError,
    make_folder,
    others_write,
    read_tensors,
    remove_folder,
    shown_path,
    write_json,
    write_tensors,
    write_torch_file,
)
from foveate.train import checkpoint as files
from foveate.train import shards
from foveate.train.batches import IGNORE
from foveate.train.progress import Progress
from foveate.train.settings import RecipeError
from foveate.train.sources import Conversation, Conversations
from foveate.train.trainer_options import TrainerOptions, trainer_options

_LESS = "look at these rows, or lower lr, lengthen warmup, or train in bf16 or fp32 instead of fp16"

_OPTIONS = tuple(TrainerOptions.model_fields)

_WRONG = "wrong"


class Passes(Dataset[tuple[int, int]]):
    """As many passes over some rows as a run needs, each in an order of its own, as one long sequence.

    Item i is i and the number of a row, the same whatever the number of processes and accumulations, so runs can be
    compared, and resumed.

    >>> order = Passes(3, 5, seed=1)
    >>> len(order), sorted(order[i][1] for i in range(3)), order[4][0]
    (5, [0, 1, 2], 4)
    """

    def __init__(self, rows: int, length: int, seed: int) -> None:
        self.rows, self.length, self.seed = rows, length, seed
        self._pass = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, int]:
        number, at = divmod(index, self.rows)
        if number != self._pass:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._order = torch.randperm(self.rows, generator=generator).tolist()
            self._pass = number
        return index, self._order[at]


class Reader:
    """Reads rows and makes batches of them, as a collator, in this process or in one that reads data.

    What is wrong with a row becomes a batch of its own, `{"wrong": text}`: of an error that a process raises, torch's
    data loader brings back the traceback as text, and nothing else.

    Args:
        rows: all of them.
        collate: makes a batch of conversations with their rows' numbers; each knows its place in the run.

    >>> from foveate.train.sources import Scenes
    >>> Reader(Scenes(3), lambda rows: {"rows": [(row, one.name, one.place) for row, one in rows]})([(5, 2), (6, 0)])
    {'rows': [(2, 'scene 2', 5), (0, 'scene 0', 6)]}
    """

    def __init__(
        self, rows: Conversations, collate: Callable[[list[tuple[int, Conversation]]], dict[str, Any]]
    ) -> None:
        self._rows, self._collate = rows, collate

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Read rows by their places in the run and their numbers, and make a batch of them."""
        try:
            return self._collate([(row, dataclasses.replace(self._rows[row], place=place)) for place, row in items])
        except FoveateError as error:
            return {_WRONG: str(error)}


class SafeTrainer(Trainer):
    """The one Trainer of foveate: whole checkpoints of what is trained, and a stop at NaN or infinite losses.

    Four private methods of transformers are overridden; docs/training.md says why.

    Args:
        sharded: whether weights, gradients and the optimiser's state are shared among the processes.
        note: goes beside every checkpoint as `recipe.json`: what made it.
        describe: names the rows of a batch, for the error about a loss.
        rates: learning rates of their own, for parameters whose names begin so.
        kwargs: as for `transformers.Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        note: Mapping[str, Any] | None = None,
        describe: Callable[[list[int]], str] | None = None,
        rates: Mapping[str, float] | None = None,
        sharded: bool = False,
        **kwargs: Any,
    ) -> None:
        self.sharded = sharded
        self.note = dict(note or {})
        self.rates = dict(rates or {})
        self.describe = describe
        self.numbers: dict[str, float] = {}
        """Sums of what the model's outputs name in `numbers`, since the last log line."""
        self.counted = 0
        """How many outputs are in these sums."""
        self.tokens = 0
        """Tokens of the whole prompts that this process has trained on in this call."""
        self.learned = False
        """Whether any gradient was more than zero; taken for granted behind a checkpoint."""
        self.progress: Progress | None = None
        """What measures speed and savings for the log, and prints them."""
        super().__init__(*args, **kwargs)
        if sharded:
            shards.prepare_accelerator(self.accelerator, "bf16" if self.args.bf16 else "fp32")
            self.is_fsdp_enabled = True
        # `Progress` prints.
        self.remove_callback(PrinterCallback)
        self.add_callback(_FiniteGradients(self))

    @property
    def folder(self) -> Path:
        """Where checkpoints go."""
        return Path(str(self.args.output_dir))

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train, from the beginning or from a checkpoint.

        Raises:
            FoveateError: the checkpoint holds something else than tensors and plain data, or is incomplete.
        """
        if resume_from_checkpoint is not None:
            files.check_complete(Path(resume_from_checkpoint))
        self.learned = resume_from_checkpoint is not None
        module: Any = self.model
        hook = module.register_forward_hook(_with_gradient, with_kwargs=True)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except UnpicklingError as error:
            raise FoveateError(
                f"{resume_from_checkpoint} holds something else than tensors and plain data, which could run code, so "
                f"it was not opened ({first_line(error)}); go on from a checkpoint that foveate wrote"
            ) from error
        finally:
            hook.remove()

    # Learning rates

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make transformers' optimiser, with one more group for each learning rate of its own."""
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

    # Batches

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Take the batches of a step, and count the labels in all of them, over all processes.

        Raises:
            FoveateError: a row of one is wrong.
        """
        batches, labels = super().get_batch_samples(map(_checked, epoch_iterator), num_batches, device)
        if labels is None and batches and all("labels" in batch for batch in batches):
            # The Trainer counts them only for models that divide by them.
            labels = torch.stack([_learned(batch["labels"]) for batch in batches]).sum().to(device)
            if self.args.world_size > 1:
                gathered: Any = self.accelerator.gather(labels)
                labels = gathered.sum()
        return batches, labels

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return a part's loss, if it is finite: its sum over labels, divided by the labels of the whole step.

        Raises:
            FoveateError: it isn't; the text names step and rows, and the last checkpoint.
        """
        inputs = dict(inputs)
        rows = inputs.pop("rows", None)
        self.tokens += int(inputs.pop("tokens", 0))
        try:
            # accelerate puts autocast around a model that it doesn't shard.
            with self.accelerator.autocast() if self.sharded else nullcontext():
                loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        except FoveateError as error:
            raise self.stopped(str(error), rows) from error
        if not math.isfinite(loss.item()):
            raise self.stopped(f"the loss is {loss.item()}; {_LESS}", rows)
        if not self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            # Some models average over their part alone; the Trainer divides that by the number of parts, and the
            # processes take the mean: a part with few labels would count as much as one with many.
            parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            loss = loss * (_learned(inputs["labels"]) / num_items_in_batch * parts)
        numbers = outputs.get("numbers") if isinstance(outputs, dict) else None
        for name, value in (numbers or {}).items():
            self.numbers[name] = self.numbers.get(name, 0.0) + value
        self.counted += 1
        return (loss, outputs) if return_outputs else loss

    def stopped(self, why: str, rows: list[int] | None = None, step: int | None = None) -> FoveateError:
        """Write the error that stops a run: where it stopped, why, and which checkpoint is from before.

        Args:
            why: the reason.
            rows: numbers of the rows of the batch.
            step: counted from 1; the one that runs now if None.
        """
        where = f"step {self.state.global_step + 1 if step is None else step} of {self.state.max_steps}"
        if rows is not None:
            where += f", {self.describe(rows) if self.describe else f'rows {rows}'}"
        kept = files.checkpoints(self.folder)
        last = f"the last checkpoint, {kept[-1]}, is from before" if kept else "no checkpoint has been written yet"
        return FoveateError(f"{where}: {why}. Training stops here; {last}")

    def averages(self) -> dict[str, float]:
        """Return what the log has of `numbers`: their means since the last line."""
        return {name: value / self.counted for name, value in self.numbers.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss together with what `Progress` measures, so that trackers get both."""
        if "loss" in logs and self.progress is not None:
            tokens = self.tokens * self.args.world_size
            logs |= self.progress.measure(self.state, tokens, self.averages())
            self.numbers, self.counted = {}, 0
        super().log(logs, start_time)

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let transformers write a checkpoint into another folder, then flush and rename it.

        Raises:
            FoveateError: a weight is NaN or infinite, nothing was learned, or the checkpoint can't be written.
        """
        self.check_weights()
        self._check_learned()
        out = self.folder
        aside = out / files.WRITING
        name = f"checkpoint-{self.state.global_step}"
        self.args.output_dir = str(aside)
        try:
            if self.args.should_save:
                remove_folder(aside)
                make_folder(aside)
            self.accelerator.wait_for_everyone()
            with others_write(aside):
                super()._save_checkpoint(model, trial)
            if self.args.should_save:
                write_json(aside / name / "recipe.json", self.note)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                files.publish(aside / name, out / name, self.args.save_total_limit or 2)
                remove_folder(aside)
            self.accelerator.wait_for_everyone()
        except FileError as error:
            remove_folder(aside)
            kept = files.checkpoints(out)
            last = f"{kept[-1]} is whole" if kept else "no earlier one exists"
            raise FoveateError(
                f"{name} could not be written to {shown_path(out)} ({first_line(error)}); {last}. Make room "
                "there and run the same command with --resume"
            ) from error
        finally:
            self.args.output_dir = str(out)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights by the module's own names; frozen weights stay where they came from.

        `save_pretrained` gives the weights of many vision-language models other names.
        """
        weights = self.trained_weights()
        if self.args.should_save:
            write_tensors(Path(output_dir or self.folder, files.WEIGHTS), weights)

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """Return the trained weights by the module's own names, whole; in the first process alone if sharded.

        All processes have to call this.
        """
        weights: dict[str, torch.Tensor] = {}
        for name, weight in self._trained():
            value = shards.whole(weight) if self.sharded else weight.detach()
            if self.args.should_save:
                weights[name] = value.contiguous()
        return weights

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write the optimiser's state as one process does; for shards, transformers writes all weights once more."""
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = shards.optimiser_state(self.optimizer)
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            write_torch_file(Path(output_dir, OPTIMIZER_NAME), state)
            write_torch_file(Path(output_dir, SCHEDULER_NAME), scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load what `_save_optimizer_and_scheduler` wrote."""
        if not self.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            scheduler: Any = self.lr_scheduler
            read = functools.partial(torch.load, map_location="cpu", weights_only=True)
            shards.load_optimiser_state(self.optimizer, read(Path(checkpoint, OPTIMIZER_NAME), mmap=True))
            scheduler.load_state_dict(read(Path(checkpoint, SCHEDULER_NAME)))

    def check_weights(self) -> None:
        """Check that all trained weights are finite: the last step's loss is finite even if its update wasn't.

        All processes have to call this.

        Raises:
            FoveateError: one isn't; the text names it, the step, and the last checkpoint.
        """
        trained = self._trained()
        if not trained:
            return
        counts = torch.stack([(~torch.isfinite(shards.local(weight))).sum() for _, weight in trained])
        if self.sharded:
            summed: Any = self.accelerator.reduce(counts, "sum")
            counts = summed
        for (name, weight), wrong in zip(trained, counts.tolist(), strict=True):
            if wrong:
                raise self.stopped(
                    f"{wrong:,} of the {weight.numel():,} weights of {name} are NaN or infinite; {_LESS}",
                    step=self.state.global_step,
                )

    def _check_learned(self) -> None:
        """Check that a gradient was more than zero, once all rows have been seen, or all that the run will see.

        Raises:
            FoveateError: none was, as for text alone where only parts for images are trained.
        """
        data: Any = self.train_dataset
        seen = self.state.global_step * len(data) // self.state.max_steps
        if not self.learned and seen >= min(data.rows, len(data)):
            raise self.stopped(
                "all gradients have been zero, as for text alone if only parts for images are trained; add rows with "
                "images, or train more of the model",
                step=self.state.global_step,
            )

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load what `save_model` wrote, every weight of it; transformers would skip names that it doesn't find."""
        path = Path(resume_from_checkpoint, files.WEIGHTS)
        stored, trained = read_tensors(path), dict(self._trained())
        if stored.keys() != trained.keys():
            other = sorted(stored.keys() ^ trained.keys())[0]
            raise RecipeError(f"{path} holds the weights of another model, or of other parts of it ({other})")
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(shards.like(stored[name], weight))


def _learned(labels: Tensor) -> Tensor:
    """Count the labels that a loss is over; the first token of a row has none before it that could predict it."""
    return labels[..., 1:].ne(IGNORE).sum()


def _checked(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of `Reader`, if nothing is wrong with its rows."""
    if _WRONG in batch:
        raise FoveateError(batch[_WRONG])
    return batch


def _with_gradient(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """Give the loss of text alone a gradient of zero, where what is trained takes part in images alone.

    A hook of the module itself: DistributedDataParallel looks for what is used at the end of its own forward pass.

    Raises:
        FoveateError: the batch has images.
    """
    if not torch.is_grad_enabled() or output["loss"].requires_grad:
        return
    if kwargs.get("pixel_values") is not None:
        raise FoveateError("nothing that is trained takes part in the loss")
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    output["loss"] = output["loss"] + 0 * torch.stack([weight.sum() for weight in trained]).sum()


class _FiniteGradients(TrainerCallback):
    """Stops a run before a step with NaN or infinite gradients, which a finite loss can have.

    Under fp16 they are expected now and then: the scaler leaves the step out.
    """

    def __init__(self, trainer: SafeTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._trainer.sharded:
            model: Any = self._trainer.model
            shards.reduce_unused(model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        model: Any = self._trainer.model
        total = get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
        norm = float(shards.whole(total))
        self._trainer.learned |= norm != 0
        scaled = getattr(self._trainer.accelerator, "scaler", None) is not None
        if not (scaled or math.isfinite(norm)):
            raise self._trainer.stopped(f"the norm of the gradient is {norm}; {_LESS}")


def training_arguments(
    folder: Path,
    given: Mapping[str, Any],
    owned: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    *,
    sharded: bool = False,
) -> TrainingArguments:
    """`TrainingArguments` from what a recipe owns and what it passes on.

    Args:
        folder: where checkpoints go.
        given: what the recipe's `trainer` holds.
        owned: what other keys of the recipe decide.
        defaults: what holds unless `given` says otherwise.
        sharded: whether gradients are summed over processes in each part of a step.

    Raises:
        RecipeError: `given` has a name that isn't passed on, or a value that `TrainingArguments` refuses.
    """
    given = trainer_options(dict(given))
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
        # Between the parts of a step, whole gradients would take the memory that shards save.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": sharded}},
        **(defaults or {}),
        **owned,
    }
    known = {each.name for each in dataclasses.fields(TrainingArguments)}
    for name in given:
        if name not in known:
            raise RecipeError(
                f"trainer: the installed transformers has no {name}; {nearest(name, known & {*_OPTIONS})}"
            )
    try:
        return TrainingArguments(**{**fixed, **given})
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"trainer: {first_line(error)}") from None


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
