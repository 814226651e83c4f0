"""Run a recipe: model and data from their directories, stages on the Trainer, the trained model to a directory."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.loading import load_model, load_processor, skeleton
from foveate.schedule import schedule
from foveate.train import checkpoint as files
from foveate.train.batches import Batches
from foveate.train.progress import Progress, duration
from foveate.train.recipe import DENSE, LAST, Recipe, RecipeError, Stage
from foveate.train.sources import Conversations, conversations
from foveate.train.switch import StageSwitch
from foveate.train.timetable import Timetable, ending_warning, published
from foveate.train.trainer import Passes, SafeTrainer, accumulation, training_arguments

SHIPPED: Final = "shipped"

FREE: Final = ("per_device", "save_every", "keep_checkpoints", "log_every", "workers", "trackers")
"""Keys of a recipe that may change between an interruption and its `--resume`."""


@dataclass(frozen=True)
class Prepared:
    """A recipe whose every part is known to be there and to fit, before any weight is loaded.

    Attributes:
        recipe: as it was read.
        family: of the model's skeleton.
        processor: the model's own.
        rows: the conversations.
        stages: of the recipe, or those of the published schedule that it names, for this model's depth.
        timetable: the stages over the run's steps.
        test: the spec that the trained model will be used under, behind its features' one if there is that.
        warnings: what people should know before they start.
    """

    recipe: Recipe
    family: Family
    processor: Any
    rows: Conversations
    stages: tuple[Stage, ...]
    timetable: Timetable
    test: str
    warnings: tuple[str, ...]

    @property
    def used_under(self) -> str:
        """The whole spec that the trained model is meant for: what its features were cut by, and then `test`."""
        parts = [spec for spec in (self.recipe.data.features, self.test) if spec not in (None, DENSE)]
        return "+".join(parts) if parts else DENSE


def directory(recipe: Recipe) -> Path | None:
    """Where the model is; None is the embedded one."""
    return None if recipe.model == SHIPPED else Path(recipe.model)


def finished(recipe: Recipe, out: Path) -> Path:
    """The file that is there, whole, when a run is finished: of the model that it ends in, or of an adapter."""
    if _changes_model(recipe):
        return out / "model" / "config.json"
    return out / "voco" / "voco.json" if recipe.voco is not None else out / "atp" / "atp.json"


def _changes_model(recipe: Recipe) -> bool:
    """Whether the model that training began with is another one at its end; adapters for VoCo tokens stay beside it."""
    if recipe.atp is not None:
        return recipe.train != "thresholds"
    return recipe.voco is None or recipe.train in ("full", "projector")


def prepare(recipe: Recipe) -> Prepared:
    """Check a recipe against its model and data.

    Raises:
        FoveateError: something is missing, broken, or can't be done on this model.
    """
    shell = skeleton(directory(recipe))
    family = family_of(shell)
    processor = load_processor(directory(recipe))
    stages = recipe.stages
    if isinstance(stages, str):
        stages = published(stages, len(family.decoder_layers))
    if recipe.data.features is not None:
        from foveate.train.features import check_features

        check_features(family, recipe.data.features, stages)
    for number, stage in enumerate(stages, start=1):
        _check_spec(stage.spec, family, f"stage {number}")
    test = stages[-1].spec if recipe.test == LAST else recipe.test
    _check_spec(test, family, "test")
    rows = conversations(recipe.data)
    steps = recipe.steps
    if steps is None:
        assert recipe.epochs is not None
        steps = max(1, math.ceil(recipe.epochs * len(rows) / recipe.batch))
    warning = ending_warning(stages, test)
    warnings = () if warning is None else (warning,)
    return Prepared(recipe, family, processor, rows, stages, Timetable.of(stages, steps), test, warnings)


def _check_spec(spec: str, family: Family, where: str) -> None:
    if spec == DENSE:
        return
    try:
        schedule(spec, family)
    except FoveateError as error:
        raise RecipeError(f"{where}:\n{error}") from None


def run(
    recipe: Recipe, out: Path, *, resume: bool = False, say: Callable[[str], None] = print, flops: bool = True
) -> Path:
    """Train by a recipe, from the beginning or from the latest checkpoint.

    Under `accelerate launch` or `torchrun` every process calls this.

    Args:
        recipe: what to do.
        out: the run's folder: checkpoints in it, the trained model in `out/model`.
        resume: go on from the latest checkpoint in `out`; from the beginning if there is none yet.
        say: what prints progress, in the first process.
        flops: count what compression saves, which takes the cost model a moment.

    Returns:
        The directory of the trained model, with its processor: what every command takes as `--model`; or that of a VoCo
        adapter, if training left the model as it was.

    Raises:
        FoveateError: the recipe can't be done, `out` holds another run, the loss is no number, or the disk is full.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    tell = say if first else _silent
    kept = files.checkpoints(out)
    done = finished(recipe, out)
    if not resume and (kept or done.exists()):
        raise FoveateError(f"{out} holds a run already; add --resume to go on with it, or name another --out")
    if resume and kept:
        same_recipe(json.loads((kept[-1] / "recipe.json").read_text(encoding="utf-8")), recipe, kept[-1])
    if resume and done.exists():
        tell(f"{out} is finished; nothing is left to do")
        return done.parent
    ready = prepare(recipe)
    for warning in ready.warnings:
        tell(f"warning: {warning}")
    trainer, switch, model = make_trainer(ready, out, tell, flops=flops)
    if resume:
        tell(f"going on at {kept[-1].name}" if kept else "no checkpoint has been written yet; starting anew")
    began = time.time()
    try:
        trainer.train(resume_from_checkpoint=str(kept[-1]) if resume and kept else None)
    finally:
        switch.close()
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        save_model(ready, model, trainer, out)
        files.write_json(
            {
                "recipe": recipe.to_dict(),
                "stages": [
                    {"spec": spec, "first_step": start, "steps": ready.timetable.length(i)}
                    for i, (spec, start) in enumerate(zip(ready.timetable.specs, ready.timetable.starts))
                ],
                "use_under": ready.used_under,
                "history": trainer.state.log_history,
                "processes": trainer.args.world_size,
                "seconds_of_this_call": round(time.time() - began, 1),
            },
            out / "run.json",
        )
    trainer.accelerator.wait_for_everyone()
    how = f"use it under {ready.used_under}" if recipe.voco is None else f"its VoCo tokens are in {out / 'voco'}"
    how = how if recipe.atp is None else f"use it under atp:adapter={out / 'atp'}"
    tell(f"{done.parent}: trained in {duration(time.time() - began)}; {how}")
    return done.parent


def same_recipe(before: dict[str, Any], recipe: Recipe, where: Path) -> None:
    """Whether a checkpoint was made by this recipe, or one that differs in nothing that changes weights.

    Raises:
        RecipeError: it wasn't; the text names a key and both values.
    """
    now = json.loads(json.dumps(recipe.to_dict()))
    for name, value in now.items():
        if name not in FREE and before.get(name) != value:
            raise RecipeError(
                f"{where} was made with {name}: {before.get(name)!r}, and the recipe says {value!r}; put it back, or "
                "name another --out"
            )


def _silent(text: str) -> None:
    pass


def make_trainer(
    ready: Prepared, out: Path, say: Callable[[str], None], *, flops: bool = True
) -> tuple[SafeTrainer, StageSwitch, nn.Module]:
    """Load the model, choose what is trained, and put the Trainer together.

    Returns:
        The Trainer, the callback that applies the stages' specs (close it when training ends, however it ends), and
        the model without wrappers.
    """
    recipe, timetable = ready.recipe, ready.timetable
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    at_once, times = accumulation(recipe.batch, recipe.per_device, processes)
    arguments = training_arguments(
        out,
        recipe.trainer,
        {
            "max_steps": timetable.steps,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": times,
            "learning_rate": recipe.lr,
            "warmup_steps": round(recipe.warmup * timetable.steps),
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
    )
    model: nn.Module = load_model(directory(recipe))
    voco = None
    if recipe.voco is not None:
        from foveate.train.voco import VoCoBatches, make_trainee, make_voco

        voco = make_voco(model, recipe, ready.processor)
    collator: Any = Batches(ready.processor, family_of(model), recipe.max_length)
    rows: Any = ready.rows
    if recipe.data.features is not None:
        from foveate.train.features import train_on_features

        rows, collator = train_on_features(model, ready.processor, ready.rows, recipe, out / "features", say, arguments)
    wrapped = choose_parameters(model, recipe)
    if voco is not None:
        assert recipe.voco is not None
        collator = VoCoBatches(collator, recipe.voco, ready.processor.tokenizer.pad_token_id)
        wrapped = make_trainee(wrapped, voco, recipe, directory(recipe))
    clock: list[Any] = []
    rates: dict[str, float] = {}
    if recipe.atp is not None:
        from foveate.train.atp import Sharpening
        from foveate.train.atp import make_trainee as make_atp

        wrapped = make_atp(model, wrapped, recipe.atp, rows, collator, recipe.seed)
        clock = [Sharpening(wrapped)]
        rates = {} if recipe.atp.lr is None else {"adapter.": recipe.atp.lr}
    switch = StageSwitch(model, timetable)
    spent, dense = (), 0.0
    if flops and voco is None and recipe.atp is None:
        from foveate.train.estimate import stage_flops

        try:
            spent, dense = stage_flops(ready)
        except FoveateError as error:
            say(f"the share of FLOPs that is saved can't be told: {error}")
    progress = Progress(say, timetable, spent, dense)
    trainer = SafeTrainer(
        wrapped,
        arguments,
        data_collator=collator,
        train_dataset=Passes(rows, timetable.steps * recipe.batch, recipe.seed),
        callbacks=[switch, *clock, progress],
        note=recipe.to_dict(),
        describe=lambda numbers: ", ".join(rows.name(number) for number in numbers),
        rates=rates,
    )
    trainer.progress = progress
    return trainer, switch, model


def choose_parameters(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Let a recipe train its own parts and nothing else; returns the model, or peft's wrapper around it.

    What is trained is float32, whatever precision the products have; frozen parts keep theirs under bf16 and fp16.
    """
    family = family_of(model)
    model.requires_grad_(False)
    if recipe.precision == "fp32":
        model.float()
    if recipe.train == "lora":
        return _with_lora(model, family, recipe)
    if recipe.train in ("embedding", "thresholds"):
        return model
    parts: list[nn.Module] = list(family.projectors)
    if recipe.train == "full":
        parts.append(family.decoder)
        head = getattr(model, "lm_head", None)
        if head is not None:
            parts.append(head)
        if recipe.train_encoder:
            parts.append(family.tower)
    if not recipe.train_encoder:
        for weight in family.tower.parameters():
            weight.requires_grad_(False)
    for part in parts:
        part.float()
        part.requires_grad_(True)
    return model


def _with_lora(model: nn.Module, family: Family, recipe: Recipe) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise RecipeError('train: lora needs peft: pip install "foveate[train]"') from None
    inside = {id(module) for module in family.decoder.modules()}
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside]
    if not names:
        raise RecipeError("train: lora found no linear layer in the decoder of this model")
    config = LoraConfig(
        r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, lora_dropout=recipe.lora.dropout, target_modules=names
    )
    with torch.random.fork_rng(devices=[]):
        # Adapters begin at random, and the Trainer sets its seed later.
        torch.manual_seed(recipe.seed)
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]


def save_model(ready: Prepared, model: nn.Module, trainer: SafeTrainer, out: Path) -> None:
    """Write the trained model with its processor, whole or not at all; adapters beside it, merged into it.

    VoCo tokens go beside the model, before it. Where the model stayed as it was, they go alone, with their adapters.
    """
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    voco = None
    if ready.recipe.voco is not None:
        from foveate.train.voco import save_voco

        voco, trained = trained.voco, trained.model
        if not _changes_model(ready.recipe):
            save_voco(voco, trained, None, out)
            return
    trainee = None
    if ready.recipe.atp is not None:
        from foveate.train.atp import save_atp

        trainee, trained = trained, trained.model
        if not _changes_model(ready.recipe):
            save_atp(trainee, trained, ready, out)
            return
    aside = out / files.WRITING / "model"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if hasattr(trained, "merge_and_unload"):
            trained.save_pretrained(out / "adapter")
            trained = trained.merge_and_unload()
        if ready.recipe.data.features is not None:
            from foveate.train.features import with_encoder

            trained = with_encoder(trained, directory(ready.recipe))
        if trainee is not None:
            save_atp(trainee, trained, ready, out)
        if voco is not None:
            save_voco(voco, trained, trained, out)
        trained.config.use_cache = True
        trained.save_pretrained(aside)
        ready.processor.save_pretrained(aside)
        shutil.rmtree(out / "model", ignore_errors=True)
        aside.rename(out / "model")
    except OSError as error:
        raise FoveateError(
            f"the trained model could not be written to {out} ({error}); its last checkpoint is whole: make room and "
            "run the same command with --resume"
        ) from error
    shutil.rmtree(out / files.WRITING, ignore_errors=True)
