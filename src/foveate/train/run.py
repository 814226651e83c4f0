"""Run a recipe: load model and data, train its stages on the Trainer, write what training made."""

from __future__ import annotations

import functools
import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foveate.arguments import check_kind
from foveate.errors import FoveateError, FoveateWarning, first_line
from foveate.families import family_of
from foveate.files import (
    FileError,
    FolderLock,
    check_writable_folder,
    is_file,
    kind_of,
    make_folder,
    others_write,
    read_json_object,
    remove_empty_folder,
    remove_folder,
    replace_folder,
    shown_path,
    write_json,
)
from foveate.loading import load_model
from foveate.train import checkpoint as files
from foveate.train.batches import Batches
from foveate.train.estimate import sampled, stage_flops
from foveate.train.features import train_on_features, with_encoder
from foveate.train.objectives import Loaded, Objective
from foveate.train.prepared import Prepared, prepare
from foveate.train.processes import process_variable
from foveate.train.progress import Progress, duration
from foveate.train.recipe import CHECKPOINTING, Recipe
from foveate.train.settings import RecipeError
from foveate.train.shards import align_backward, ask_accelerate, is_sharded
from foveate.train.sources import Conversations
from foveate.train.switch import StageSwitch
from foveate.train.trainer import Passes, Reader, SafeTrainer, accumulation, training_arguments

FREE: Final = ("per_device", "shards", "save_every", "keep_checkpoints", "log_every", "workers", "trackers")
"""Keys of a recipe that may change between an interruption and its `--resume`; `per_device` only of a loss that is
divisible."""
FINGERPRINT: Final = "fingerprint"
"""What a checkpoint has beside the recipe that made it: the fingerprint of the data."""
HISTORY: Final = "run.json"
"""What a run writes about itself before its result: the recipe, the stages in steps, the losses."""


@dataclass(frozen=True)
class Training:
    """A recipe that is ready to train.

    Attributes:
        trainer: the Trainer.
        switch: the callback that applies the stages' specs; close it when training ends, however it ends.
        loaded: model and data.
        model: what the objective's `prepare` returned: the model, or a wrapper of it such as peft's.
        module: what its `wrap` returned.
    """

    trainer: SafeTrainer
    switch: StageSwitch
    loaded: Loaded
    model: nn.Module
    module: nn.Module


def finished(recipe: Recipe, out: Path) -> Path:
    """Return the file that exists when a run is finished: of the model, or of what the objective writes."""
    return out / (recipe.objective.file if recipe.objective.keeps_model(recipe) else "model/config.json")


def run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
    flops: bool = True,
    advance: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Train by a recipe, from the beginning or from the latest checkpoint.

    Under `accelerate launch` or `torchrun` every process calls this.

    Args:
        recipe: what to do.
        out: the run's folder: checkpoints in it, the trained model in `out/model`.
        resume: go on from the latest checkpoint in `out`; from the beginning if there is none yet.
        say: prints progress and warnings, in the first process; without it progress is not reported, and warnings are
            Python's.
        flops: count what compression saves, which takes the cost model a moment.
        advance: takes how many conversations are done, how many there are, and what is done now; for a bar.

    Returns:
        The directory of the trained model, with its processor: what every command takes as `--model`; or that of an
        adapter, if training left the model as it was.

    Raises:
        FoveateError: the recipe can't be done, `out` holds another run, the loss is NaN or infinite, or the disk is
            full.
    """
    check_kind("recipe", recipe, Recipe, "what parse_recipe returns")
    check_kind("out", out, Path, "the path of a folder")
    first = process_variable("RANK") == 0
    tell = say if first and say is not None else _silent
    lock = FolderLock(out, "wait for it, or name another --out")
    if first:
        check_training_folder(recipe, out)
        lock.check_free()
    kept = files.checkpoints(out)
    done = finished(recipe, out)
    data: Any = None
    if not resume and (kept or is_file(done)):
        raise FoveateError(
            f"{shown_path(out)} holds a run already; add --resume to go on with it, or name another --out"
        )
    if resume and (kept or is_file(done)):
        where = kept[-1] if kept else out / HISTORY
        before = files.made_by(where) if kept else _made_by(where)
        commit, data = before.pop("commit", None), before.pop(FINGERPRINT, None)
        same_recipe(before, recipe, where)
        # A branch of the hub may have moved since.
        recipe = recipe.with_commit(commit)
    if resume and is_file(done):
        tell(f"{out} is finished; nothing is left to do")
        return done.parent
    ready = prepare(recipe)
    told = list(ready.warnings)
    if first and resume and kept:
        told += same_data(data, ready.rows, kept[-1])
    # A row that can't be trained on is best found before the model is loaded.
    sampled(ready)
    for warning in told if first else ():
        if say is None:
            warnings.warn(warning, FoveateWarning, stacklevel=2)
        else:
            say(f"warning: {warning}")
    try:
        with lock if first else nullcontext():
            if first and files.checkpoints(out) != kept:
                raise FoveateError(
                    f"another process has trained in {shown_path(out)} meanwhile; run the same command again"
                )
            return _train(ready, out, kept[-1] if resume and kept else None, resume, tell, flops, advance)
    finally:
        # A run that failed before its first checkpoint leaves no empty folder.
        if first:
            remove_empty_folder(out)


def _train(
    ready: Prepared,
    out: Path,
    checkpoint: Path | None,
    resume: bool,
    tell: Callable[[str], None],
    flops: bool,
    advance: Callable[[int, int, str], None] | None,
) -> Path:
    recipe, done = ready.recipe, finished(ready.recipe, out)
    training = make_trainer(ready, out, tell, flops=flops, advance=advance)
    trainer = training.trainer
    if resume:
        none = "no checkpoint has been written yet; starting anew"
        tell(f"going on at {checkpoint.name}" if checkpoint is not None else none)
    began = time.time()
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        training.switch.close()
    trainer.accelerator.wait_for_everyone()
    trainer.check_weights()
    weights = trainer.trained_weights() if trainer.sharded else {}
    if trainer.args.should_save:
        # The result is written last: it tells that the run is finished.
        _save_history(training, out, time.time() - began)
        save_result(whole_training(training, weights) if trainer.sharded else training, out)
    trainer.accelerator.wait_for_everyone()
    tell(f"{done.parent}: trained in {duration(time.time() - began)}; {recipe.objective.use(ready, out)}")
    return done.parent


def check_training_folder(recipe: Recipe, out: Path) -> None:
    """Check that a run can be written to a folder, before anything is loaded.

    Raises:
        FoveateError: it can't be written, or holds something in the result's place that no run has written.
    """
    folder = check_writable_folder(out)
    if folder.is_mount() and folder == folder.parent:
        raise FoveateError(f"{shown_path(out)} is the root of the disk; name another --out")
    if recipe.objective.keeps_model(recipe) or kind_of(out / "model") == "missing":
        return
    if not (is_file(out / "model" / "config.json") and is_file(out / HISTORY)):
        raise FoveateError(
            f"{shown_path(out / 'model')} is where the trained model goes, and holds something that no run has "
            "written; name another --out"
        )


def _made_by(history: Path) -> dict[str, Any]:
    """Return the recipe of a finished run whose checkpoints are gone."""
    found = read_json_object(history, strict=False).get("recipe")
    if not isinstance(found, dict):
        raise FoveateError(f"{shown_path(history)} holds no recipe, so it is damaged; name another --out")
    return found


def same_recipe(before: dict[str, Any], recipe: Recipe, where: Path) -> None:
    """Check that a checkpoint was made by this recipe, or one that differs in nothing that changes weights.

    Raises:
        RecipeError: it wasn't; the text names a key and both values.
    """
    now = json.loads(json.dumps(_note(recipe)))
    for name in dict.fromkeys([*now, *before]):
        if name not in FREE and before.get(name) != now.get(name):
            raise RecipeError(
                f"{shown_path(where)} was made with {name}: {before.get(name)!r}, and the recipe says "
                f"{now.get(name)!r}; put it back, or name another --out"
            )
    held = before.get("per_device")
    if not recipe.objective.divisible and held != now["per_device"]:
        raise RecipeError(
            f"{shown_path(where)} was made with {held} conversations at a time (per_device), and now a process takes "
            f"{now['per_device']}, which gives {recipe.objective.name} another loss; write per_device: {held}, start "
            "as many processes as before, or name another --out"
        )


def _note(recipe: Recipe) -> dict[str, Any]:
    """Return what is kept of a recipe beside its weights: all that they depend on."""
    plain = recipe.to_dict()
    if not recipe.objective.divisible:
        plain["per_device"], _ = _accumulation(recipe)
    return plain


def _accumulation(recipe: Recipe) -> tuple[int, int]:
    """Return how many conversations this process takes at a time, and how often in a step."""
    return accumulation(recipe.batch, recipe.per_device, process_variable("WORLD_SIZE"))


def same_data(before: Any, rows: Conversations, where: Path) -> list[str]:
    """Check that a checkpoint was made with the conversations and images that its recipe finds now.

    Args:
        before: the fingerprint of the data that the checkpoint has; None if it has none.
        rows: what the recipe finds.
        where: the checkpoint.

    Returns:
        A warning if the checkpoint doesn't tell.

    Raises:
        RecipeError: they have changed; the text says what has.
    """
    now = rows.fingerprint
    if not now:
        return []
    if not isinstance(before, dict):
        return [
            f"{shown_path(where)} is of an earlier version of foveate, which didn't note what was in the data; if they "
            "have changed since, start anew in another --out"
        ]
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise RecipeError(
            f"{shown_path(where)} was made with other data: the {' and the '.join(changed)} have changed since "
            "(images are known by size and time of change); put them back as they were, or name another --out"
        )
    return []


def _silent(text: str) -> None:
    pass


def make_trainer(
    ready: Prepared,
    out: Path,
    say: Callable[[str], None],
    *,
    flops: bool = True,
    advance: Callable[[int, int, str], None] | None = None,
) -> Training:
    """Load the model, let the recipe's objective choose what is trained, and put the Trainer together.

    Args:
        ready: the recipe, checked.
        out: the run's folder.
        say: prints progress.
        flops: count what compression saves.
        advance: takes how far the work is.
    """
    recipe, timetable, objective = ready.recipe, ready.timetable, ready.recipe.objective
    sharded = is_sharded(recipe.shards)
    if sharded:
        ask_accelerate(ready.family)
    arguments = _arguments(ready, out)
    base: nn.Module = load_model(**recipe.source)
    model = objective.prepare(base, ready)
    loaded = _loaded(ready, base, out, say, arguments)
    module = objective.wrap(model, loaded)
    if sharded:
        align_backward(base)
    for name in CHECKPOINTING:
        # The Trainer asks what it trains, and an objective's module doesn't know.
        enable = getattr(model, f"{name}_enable", None)
        if enable is not None and not hasattr(module, f"{name}_enable"):
            setattr(module, f"{name}_enable", enable)
    switch = StageSwitch(base, timetable)
    spent, dense = _flops(ready, say) if flops and not objective.uncounted else ((), 0.0)
    progress = Progress(say, timetable, spent, dense, recipe.batch, advance)
    trainer = SafeTrainer(
        module,
        arguments,
        data_collator=Reader(loaded.rows, functools.partial(objective.collate, loaded.batches)),
        train_dataset=Passes(len(loaded.rows), timetable.steps * recipe.batch, recipe.seed),
        callbacks=[switch, _Steps(objective, module), progress],
        note={**_note(recipe), FINGERPRINT: dict(loaded.rows.fingerprint)},
        describe=lambda numbers: ", ".join(loaded.rows.name(number) for number in numbers),
        rates=objective.rates(),
        sharded=sharded,
    )
    trainer.progress = progress
    return Training(trainer, switch, loaded, model, module)


def whole_training(training: Training, weights: Mapping[str, Tensor]) -> Training:
    """Load the model again, in this process alone, with the weights that a sharded run has trained.

    Args:
        training: of the run.
        weights: all that is trained, by the names that the module of the objective has for them.
    """
    before = training.loaded
    base: nn.Module = load_model(**before.ready.recipe.source)
    objective = before.ready.recipe.objective
    model = objective.prepare(base, before.ready)
    loaded = replace(before, base=base)
    module = objective.wrap(model, loaded)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.requires_grad:
                weight.copy_(weights[name])
    return replace(training, loaded=loaded, model=model, module=module)


class _Steps(TrainerCallback):
    """Calls an objective before each step."""

    def __init__(self, objective: Objective, module: nn.Module) -> None:
        self._objective, self._module = objective, module

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._objective.begin_step(self._module, state.global_step, state.max_steps)


def _arguments(ready: Prepared, out: Path) -> TrainingArguments:
    """Write a recipe as transformers' own arguments."""
    recipe, steps = ready.recipe, ready.timetable.steps
    at_once, times = _accumulation(recipe)
    return training_arguments(
        out,
        recipe.trainer,
        {
            "max_steps": steps,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": times,
            "learning_rate": recipe.lr,
            "warmup_steps": round(recipe.warmup * steps),
            "lr_scheduler_type": recipe.decay,
            "weight_decay": recipe.weight_decay,
            "max_grad_norm": recipe.clip,
            "seed": recipe.seed,
            "save_steps": recipe.save_every,
            "save_total_limit": recipe.keep_checkpoints,
            "logging_steps": recipe.log_every,
            "dataloader_num_workers": recipe.workers,
            "report_to": list(recipe.trackers),
            "bf16": recipe.precision == "bf16",
            "fp16": recipe.precision == "fp16",
        },
        # A batch of text alone leaves the projector without gradients, in one process and not in the others.
        {"ddp_find_unused_parameters": recipe.data.scenes is None},
        sharded=is_sharded(recipe.shards),
    )


def _loaded(
    ready: Prepared, base: nn.Module, out: Path, say: Callable[[str], None], arguments: TrainingArguments
) -> Loaded:
    """Put the conversations beside the model: as they are, or as features, which replace the model's encoder."""
    recipe = ready.recipe
    if recipe.data.features is None:
        positions = recipe.objective.dense_positions
        batches = Batches(ready.processor, family_of(base), recipe.max_length, positions=positions)
        return Loaded(ready, base, ready.rows, batches)
    rows, batches = train_on_features(base, ready.processor, ready.rows, recipe, out / "features", say, arguments)
    return Loaded(ready, base, rows, batches)


def _flops(ready: Prepared, say: Callable[[str], None]) -> tuple[tuple[float, ...], float]:
    """Count FLOPs per stage and without compression; nothing if this model's can't be counted."""
    try:
        return stage_flops(ready)
    except FoveateError as error:
        say(f"the share of FLOPs that is saved can't be counted: {error}")
        return (), 0.0


def save_result(training: Training, out: Path) -> None:
    """Write what the objective has trained; and, unless it left the model as it was, the model with its processor.

    LoRA adapters go to `out/adapter` and are merged into the model. The model is written to another folder and renamed.

    Raises:
        FoveateError: a weight is NaN or infinite, or the disk is full.
    """
    loaded, trained, module = training.loaded, training.model, training.module
    ready, objective = loaded.ready, loaded.ready.recipe.objective
    if objective.keeps_model(ready.recipe):
        objective.save(module, trained, loaded, out)
        return
    aside = out / files.WRITING / "model"
    adapter = out / files.WRITING / "adapter"
    remove_folder(out / files.WRITING)
    try:
        make_folder(aside)
        model: Any = trained
        if hasattr(model, "merge_and_unload"):
            with others_write(out):
                model.save_pretrained(adapter)
            replace_folder(adapter, out / "adapter")
            model = model.merge_and_unload()
        if ready.recipe.data.features is not None:
            model = with_encoder(model, ready.recipe)
        objective.save(module, model, loaded, out)
        model.config.use_cache = True
        with others_write(out):
            model.save_pretrained(aside)
            ready.processor.save_pretrained(aside)
        replace_folder(aside, out / "model")
    except FileError as error:
        raise FoveateError(
            f"the trained model could not be written to {shown_path(out)} ({first_line(error)}); its last "
            "checkpoint is whole: make room and run the same command with --resume"
        ) from error
    remove_folder(out / files.WRITING)


def _save_history(training: Training, out: Path, seconds: float) -> None:
    """Write `run.json`: the recipe, the stages in steps, the losses."""
    ready, trainer = training.loaded.ready, training.trainer
    table = ready.timetable
    write_json(
        out / HISTORY,
        {
            "recipe": _note(ready.recipe),
            "stages": [
                {"spec": spec, "first_step": start, "steps": table.length(number)}
                for number, (spec, start) in enumerate(zip(table.specs, table.starts))
            ],
            "use_under": ready.used_under,
            "history": trainer.state.log_history,
            "processes": trainer.args.world_size,
            "seconds_of_this_call": round(seconds, 1),
        },
    )
