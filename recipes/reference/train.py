"""Train the embedded model: `python -m recipes.reference.train recipes/reference.yaml [--data DIR]`, in a checkout.

Each stage is a run of foveate's Trainer, with an objective, an optimiser and a batch size of its own; its checkpoints
are in `OUT/<stage>`. Under `torchrun --nproc-per-node 2 -m recipes.reference.train ...` two processes share every
batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from recipes.reference import attention
from recipes.reference.build import build_config, deepen, initialise_decoder, save_directory
from recipes.reference.encoder import Mixture, initialise
from recipes.reference.optimisers import LearningRates, MuonAndAdamW
from recipes.reference.pixels import Pixels
from recipes.reference.recipe import Recipe, Stage, parse_reference
from recipes.reference.stages import AnswerBatches, AnswerObjective, EncoderBatches, EncoderObjective, Numbers, Trainee
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from foveate.commands.program import run_training
from foveate.commands.train import prepare_process
from foveate.embedded import PATH
from foveate.files import write_json, write_tensors
from foveate.train import checkpoint as files
from foveate.train.progress import Progress
from foveate.train.settings import RecipeError, read_mapping
from foveate.train.trainer import SafeTrainer, training_arguments

LAST = "trainee.safetensors"
"""All weights behind a stage, the encoder's heads and the symbols among them."""


def _select(trainee: Trainee, stage: Stage) -> None:
    """Let a stage train its own parts and nothing else."""
    trainee.requires_grad_(False)
    m = trainee.model.model
    if stage.objective == "encoder":
        for part in (m.vision_tower, *trainee.heads()):
            part.requires_grad_(True)
        m.multi_modal_projector.requires_grad_(stage.align > 0)
        return
    m.language_model.requires_grad_(True)
    if stage.visual == "symbols":
        trainee.symbols.requires_grad_(stage.train_symbols)
        return
    m.multi_modal_projector.requires_grad_(True)
    if stage.train_encoder:
        for part in (m.vision_tower, *trainee.heads()):
            part.requires_grad_(True)


def _unshared(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with tied tensors once: safetensors stores no shared memory."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if value.numel() == 0 or value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            out[name] = value.contiguous()
    return out


def _load(trainee: Trainee, path: Path) -> None:
    """Load what a file has and this trainee knows."""
    _, unexpected = trainee.load_state_dict(load_file(path), strict=False)
    wrong = [k for k in unexpected if "lm_head" not in k]
    if wrong:
        raise RecipeError(f"{path} holds weights of another model ({wrong[0]})")


def _written_out(trainee: Trainee) -> None:
    """Train with attention written out: 1.7 times as fast on a CPU as the fused kernel, whose backward pass is slow."""
    attention.register()
    trainee.model.set_attn_implementation({"vision_config": "eager", "text_config": attention.NAME})


def begin(recipe: Recipe, layers: int) -> Trainee:
    """Make the trainee of a recipe's first stage: fresh, or from a model directory."""
    torch.manual_seed(recipe.seed)
    if recipe.init_from:
        folder = PATH if recipe.init_from == "shipped" else Path(recipe.init_from)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        trainee = Trainee(model)
        rest = folder.parent / "training.safetensors"
        if rest.exists():
            trainee.load_state_dict({k: v.float() for k, v in load_file(rest).items()}, strict=False)
        return trainee
    config = build_config(
        width=recipe.width, heads=recipe.heads, encoder_layers=recipe.encoder_layers, decoder_layers=layers
    )
    model = LlavaForConditionalGeneration(config)
    initialise(model.model.vision_tower)
    initialise_decoder(model)
    return Trainee(model)


def run(
    recipe: Recipe,
    out: Path,
    data: Path | None = None,
    *,
    resume: bool = False,
    compiled: bool = True,
    say: Callable[[str], None] = print,
) -> LlavaForConditionalGeneration:
    """Run a recipe to its end; the finished model goes to ``out/model``.

    Args:
        recipe: what to do.
        out: every stage keeps its checkpoints in ``out/<stage>``.
        data: folder of real pictures.
        resume: go on from wherever an earlier run was stopped.
        compiled: compile layers, which takes minutes and pays for itself in any real run.
        say: prints progress, in the first process.

    Raises:
        RecipeError: `out` holds a run and `resume` is False, or a batch doesn't divide by the processes.
    """
    first, size = int(os.environ.get("RANK", "0")) == 0, int(os.environ.get("WORLD_SIZE", "1"))
    tell = say if first else _silent
    if not resume and any((out / stage.name).exists() for stage in recipe.stages):
        raise RecipeError(f"{out} holds a run already; add --resume to go on with it, or name another --out")
    out.mkdir(parents=True, exist_ok=True)
    pixels = Pixels(data)
    if not pixels.kinds:
        tell("no real pictures: training on scenes alone (--data DIR names the folder that holds them)")
    layers = next((s.layers for s in recipe.stages if s.objective == "answers"), 12)
    trainee = begin(recipe, layers)
    for number, stage in enumerate(recipe.stages):
        _written_out(trainee)
        if stage.batch % (size * stage.per_scene):
            raise RecipeError(f"stage {stage.name}: batch {stage.batch} does not divide by {size} processes")
        if stage.objective == "answers" and stage.layers > len(trainee.model.model.language_model.layers):
            deeper = Trainee(deepen(trainee.model, stage.layers))
            keep = {k: v for k, v in trainee.state_dict().items() if not k.startswith("model.")}
            deeper.load_state_dict(keep, strict=False)
            trainee = deeper
            _written_out(trainee)
        folder = out / stage.name
        if (folder / LAST).exists():
            _load(trainee, folder / LAST)
            continue
        _select(trainee, stage)
        draw = Mixture(pixels, stage.real, recipe.seed * 100 + number, tuple(stage.kinds.items()), stage.boost)
        began = time.time()
        trainer = stage_trainer(trainee, stage, draw, recipe, number, folder, compiled, tell)
        tell(f"stage {number + 1} of {len(recipe.stages)}, {stage.name}")
        kept = files.checkpoints(folder)
        trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)
        if first:
            write_json(folder / "done.json", {"steps": stage.steps, "seconds_of_this_call": round(time.time() - began)})
            write_tensors(folder / LAST, _unshared(trainee))
        trainer.accelerator.wait_for_everyone()
    if first:
        save_directory(trainee.model, out / "model")
        # What only training needs, beside the model: a later run with ``init_from`` finds it there.
        rest = {k: v.to(torch.bfloat16).contiguous() for k, v in trainee.state_dict().items() if k[:6] != "model."}
        write_tensors(out / "training.safetensors", rest)
    return trainee.model


class StageTrainer(SafeTrainer):
    """foveate's Trainer, whose log has the share of right answers per skill."""

    def averages(self) -> dict[str, float]:
        """Return means, and the shares of pairs `name:right` and `name:asked`."""
        return shares(self.numbers, self.counted)


def shares(sums: dict[str, float], count: int) -> dict[str, float]:
    """Return means of what was summed `count` times, and the shares of pairs `name:right` and `name:asked`.

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


def stage_trainer(
    trainee: Trainee,
    stage: Stage,
    draw: Mixture,
    recipe: Recipe,
    number: int,
    folder: Path,
    compiled: bool,
    say: Callable[[str], None],
) -> StageTrainer:
    """The Trainer of one stage, with its objective, batches and optimiser."""
    scenes = stage.batch // stage.per_scene
    if stage.objective == "encoder":
        objective: nn.Module = EncoderObjective(trainee, stage)
        batches: Any = EncoderBatches(stage, draw)
    else:
        objective = AnswerObjective(trainee, stage)
        batches = AnswerBatches(stage, draw, trainee.symbols.table.embedding_dim)
    if compiled:
        # Layer by layer: one compilation serves them all, and a whole model at once takes minutes.
        for layer in (*trainee.model.model.language_model.layers, *trainee.model.model.vision_tower.encoder.layers):
            layer.compile(dynamic=False)
    schedule = LearningRates(stage.steps, stage.lr, stage.warmup, stage.fall)
    optimiser = MuonAndAdamW(trainee, stage.lr)
    rates = LambdaLR(optimiser, lambda step: schedule.at(min(step, stage.steps - 1)) / stage.lr)
    arguments = training_arguments(
        folder,
        {},
        {
            "max_steps": stage.steps,
            "per_device_train_batch_size": scenes // int(os.environ.get("WORLD_SIZE", "1")),
            "seed": recipe.seed * 1000 + number * 10,
            "save_steps": recipe.save_every,
            "save_total_limit": 2,
            "logging_steps": 20,
            "max_grad_norm": 1.0,
        },
    )
    progress = Progress(say)
    trainer = StageTrainer(
        objective,
        arguments,
        data_collator=batches,
        train_dataset=Numbers(stage.steps * scenes),
        callbacks=[progress],
        optimizers=(optimiser, rates),
        describe=lambda numbers: f"scenes {numbers[0]} to {numbers[-1]} of stage {stage.name}",
    )
    trainer.progress = progress
    return trainer


def _silent(text: str) -> None:
    pass


def main(
    recipe: Annotated[Path, typer.Argument(help="The recipe, such as recipes/reference.yaml.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder.")] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Real pictures.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the stages and stop.")] = False,
) -> None:
    """Train the embedded model from nothing, stage by stage."""
    given = read_mapping(recipe)
    if given.pop("builds", None) != "reference":
        raise RecipeError(f"{recipe} has no `builds: reference`; train by it with `foveate train {recipe}`")
    parsed = parse_reference(given)
    if dry_run:
        for stage in parsed.stages:
            windows = f"windows of {stage.side} x {stage.side} patches"
            what = windows if stage.objective == "encoder" else f"answers from {stage.patches} {stage.visual}"
            typer.echo(f"{stage.name}: {stage.steps} steps of {stage.batch}, {what}")
        return
    prepare_process()
    folder = data or (Path(parsed.data) if parsed.data else None)
    run(parsed, out or Path("runs") / recipe.stem, folder, resume=resume, say=typer.echo)


if __name__ == "__main__":
    run_training(main, "python -m recipes.reference.train")
