"""Train the embedded model on clips: `python -m recipes.reference.clips recipes/reference-clips.yaml`, in a checkout.

It starts from the weights in the package. The encoder stays as it is, and so the frames of a clip are encoded once and
come back in later steps. The features of a frame are pooled in front of the projector, as LLaVA-NeXT-Video does it;
projector and decoder learn. A row of a batch is one clip and all its questions, as in `decoder.py`. What moves comes
with its reverse, whose answers are turned around.

The result, `OUT/model`, is a LLaVA-NeXT-Video directory.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from pydantic import BeforeValidator, Field
from recipes.reference import attention
from recipes.reference.clip_model import save_clip_directory
from recipes.reference.decoder import DecoderTrainer, Text, answer_loss, attention_mask, pack
from recipes.reference.encoder import pixel_values
from recipes.reference.optimisers import LearningRates, MuonAndAdamW
from recipes.reference.stages import Numbers, Trainee
from recipes.reference.targets import GRID
from recipes.reference.train import LAST, StageTrainer, _load, _unshared, begin
from recipes.reference.train import Recipe as ModelRecipe
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from foveate.commands.program import run_training
from foveate.commands.train import prepare_process
from foveate.files import write_json, write_tensors
from foveate.scenes import CLIP_KINDS, CLIP_SKILLS, SKILLS, Clip, Question, Scene, clip, scene
from foveate.train import checkpoint as files
from foveate.train.progress import Progress
from foveate.train.settings import Count, Number, RecipeError, Settings, each_of, read_mapping
from foveate.train.trainer import training_arguments

ALL_SKILLS: tuple[str, ...] = (*CLIP_SKILLS, *SKILLS)
OTHER_WAY = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


class Stage(Settings):
    """One stage of training on clips."""

    place = "a stage"

    name: str
    frames: Count
    """Frames of a clip; 1 is scenes, each a clip of one frame."""
    steps: Count
    lr: Number = 8e-4
    warmup: int = 20
    fall: Number = 0.3
    """The share of the steps, at the end, over which the learning rate falls to zero."""
    batch: Count = 24
    """Rows of a batch."""
    fresh: Count = 12
    """Rows of a batch whose frames are encoded for it; the others come back from earlier batches."""
    text: Count = 80
    """Tokens of packed questions of a row."""
    kinds: dict[str, float] = Field(default_factory=lambda: dict.fromkeys(CLIP_KINDS, 1.0))
    """Kinds of clips, or of scenes, and how often each is drawn."""


def _stages(given: Any) -> Any:
    return each_of(Stage, given, "stages") if isinstance(given, list) else given


class Recipe(Settings):
    """All stages, and how many patches along a side become a token."""

    place = "the recipe"
    outermost = True

    stages: Annotated[tuple[Stage, ...], BeforeValidator(_stages)]
    pool: Count = 4
    """Patches along one side of a token."""
    seed: int = 1
    save_every: Count = 20


def reverse(one: Clip) -> Clip | None:
    """The clip backwards, with the answers that are right then; None if a question has no answer backwards.

    >>> one = clip(3)
    >>> [(a.answer, b.answer) for a, b in zip(one.questions, reverse(one).questions)]
    [('right', 'left'), ('triangle', 'star'), ('2', '2')]
    """
    questions = []
    for q in one.questions:
        answer = q.answer
        if q.skill == "way":
            answer = OTHER_WAY[answer]
        elif q.skill == "first":
            words = q.text.split()
            answer = next(word for word in (words[5], words[8]) if word != answer)
        elif q.skill == "change":
            return None
        questions.append(Question(q.text, answer, q.skill))
    return Clip(f"{one.id}-reversed", one.frames[::-1], tuple(questions))


class ClipBatches:
    """Makes batches: some clips are encoded, and the others are encoded ones that come back.

    Args:
        trainee: whose encoder is used.
        stage: how many of what.
        pool: patches along one side of a token.
        seed: of the drawing.
    """

    LONGEST = 4_000
    """Rows that are kept."""

    def __init__(self, trainee: Trainee, stage: Stage, pool: int, seed: int) -> None:
        self.trainee, self.stage, self.pool, self.seed = trainee, stage, pool, seed
        self.kept: list[tuple[Tensor, Scene]] = []

    @property
    def visual(self) -> int:
        """Visual tokens of a row."""
        return self.stage.frames * (GRID // self.pool) ** 2

    @torch.no_grad()
    def encode(self, frames: Sequence[Any]) -> Tensor:
        """The pooled features of images: (images, tokens, D) bfloat16."""
        images = torch.from_numpy(np.stack([pixel_values(frame) for frame in frames]))
        every = torch.arange(GRID * GRID).expand(len(images), -1)
        with torch.autocast("cpu", torch.bfloat16):
            h = self.trainee.encoder().features(images, every)[:, 1:]
        planes = h.transpose(1, 2).unflatten(2, (GRID, GRID)).float()
        return F.avg_pool2d(planes, self.pool).flatten(2).transpose(1, 2).bfloat16()

    def draw(self, number: int) -> list[Clip]:
        """The clip of a number, and its reverse if it has one."""
        rng = random.Random(f"clips {self.seed} {number}")
        kind = rng.choices(list(self.stage.kinds), list(self.stage.kinds.values()))[0]
        seed = rng.randrange(1 << 40)
        if self.stage.frames == 1:
            one = scene(seed, kind=kind, boost=2)
            return [Clip(one.id, (one.image,), one.questions)]
        one = clip(seed, frames=self.stage.frames, kind=kind)
        other = reverse(one) if kind in ("lane", "camera") else None
        return [one] if other is None else [one, other]

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """A batch whose new clips follow from the numbers of its rows."""
        stage, rng = self.stage, random.Random(f"batch {self.seed} {numbers[0]}")
        drawn: list[Clip] = []
        for number in numbers:
            if len(drawn) >= stage.fresh:
                break
            drawn += self.draw(number)
        unique = list({id(frame): frame for one in drawn for frame in one.frames}.values())
        place = {id(frame): at for at, frame in enumerate(unique)}
        features = self.encode(unique)
        new = [
            (
                features[[place[id(frame)] for frame in one.frames]].flatten(0, 1),
                Scene(one.id, "clip", one.frames[0], (), one.questions),
            )
            for one in drawn
        ]
        again = rng.choices(self.kept or new, k=max(0, stage.batch - len(new)))
        rows = [*new, *again][: stage.batch]
        self.kept = [*self.kept, *new][-self.LONGEST :]
        text = pack([one for _, one in rows], stage.text, ALL_SKILLS, rng, captions=0.0, visual=self.visual)
        return {
            "rows": list(numbers),
            "features": torch.stack([each for each, _ in rows]),
            "text": vars(text),
            "mask": attention_mask(text.segment, self.visual, torch.bfloat16),
        }


class ClipObjective(nn.Module):
    """Right answers about clips whose frames are encoded and pooled."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.trainee = trainee

    def forward(self, features: Tensor, text: dict[str, Tensor], mask: Tensor) -> dict[str, Any]:
        """The loss of a batch of clips with their packed questions, and numbers for the log."""
        model = self.trainee.model
        places = torch.arange(features.shape[1], device=features.device).expand(len(features), -1)
        with torch.autocast(features.device.type, torch.bfloat16):
            visual = model.model.multi_modal_projector(features)
            logits = DecoderTrainer(model)(visual, places, text["ids"], text["positions"], mask)
        loss, answered = answer_loss(logits, Text(**text), ALL_SKILLS)
        return {"loss": loss, "numbers": {"answers": loss.item(), **answered}}


def run(recipe: Recipe, out: Path, *, resume: bool, compiled: bool, say: Callable[[str], None]) -> None:
    """Run a recipe to its end; the finished model goes to ``out/model``.

    Raises:
        RecipeError: `out` holds a run and `resume` is False.
    """
    if not resume and any((out / stage.name).exists() for stage in recipe.stages):
        raise RecipeError(f"{out} holds a run already; add --resume to go on with it, or name another --out")
    out.mkdir(parents=True, exist_ok=True)
    trainee = begin(ModelRecipe(stages=(), init_from="shipped", seed=recipe.seed), 12)
    attention.register()
    trainee.model.set_attn_implementation({"vision_config": "sdpa", "text_config": attention.NAME})
    trainee.requires_grad_(False)
    trainee.model.model.language_model.requires_grad_(True)
    trainee.model.model.multi_modal_projector.requires_grad_(True)
    if compiled:
        for layer in trainee.model.model.language_model.layers:
            layer.compile(dynamic=False)
    for number, stage in enumerate(recipe.stages):
        folder = out / stage.name
        if (folder / LAST).exists():
            _load(trainee, folder / LAST)
            continue
        batches = ClipBatches(trainee, stage, recipe.pool, recipe.seed * 100 + number)
        rates = LearningRates(stage.steps, stage.lr, stage.warmup, stage.fall)
        optimiser = MuonAndAdamW(trainee, stage.lr)
        trainer = StageTrainer(
            ClipObjective(trainee),
            training_arguments(
                folder,
                {},
                {
                    "max_steps": stage.steps,
                    "per_device_train_batch_size": stage.batch,
                    "seed": recipe.seed * 1000 + number * 10,
                    "save_steps": recipe.save_every,
                    "save_total_limit": 2,
                    "logging_steps": 10,
                    "max_grad_norm": 1.0,
                },
            ),
            data_collator=batches,
            train_dataset=Numbers(stage.steps * stage.batch),
            callbacks=[progress := Progress(say)],
            optimizers=(
                optimiser,
                LambdaLR(optimiser, lambda step, r=rates, s=stage: r.at(min(step, s.steps - 1)) / s.lr),
            ),
            describe=lambda numbers, name=stage.name: f"clips {numbers[0]} to {numbers[-1]} of stage {name}",
        )
        trainer.progress = progress
        say(f"stage {number + 1} of {len(recipe.stages)}, {stage.name}")
        began, kept = time.time(), files.checkpoints(folder)
        trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)
        write_json(folder / "done.json", {"steps": stage.steps, "seconds_of_this_call": round(time.time() - began)})
        write_tensors(folder / LAST, _unshared(trainee))
    save_clip_directory(trainee.model, out / "model", recipe.pool)


def main(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe, such as recipes/reference-clips.yaml.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    compiled: Annotated[bool, typer.Option(help="Compile the decoder's layers, which takes minutes.")] = True,
) -> None:
    """Train the embedded model on clips, stage by stage."""
    given = read_mapping(recipe)
    if given.pop("builds", None) != "reference-clips":
        raise RecipeError(f"{recipe} has no `builds: reference-clips`; train by it with `foveate train {recipe}`")
    prepare_process()
    run(
        Recipe.model_validate(given),
        out or Path("runs") / recipe.stem,
        resume=resume,
        compiled=compiled,
        say=typer.echo,
    )


if __name__ == "__main__":
    run_training(main, "python -m recipes.reference.clips")
