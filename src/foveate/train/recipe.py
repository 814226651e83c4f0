"""A training recipe as data: model, data, stages, what is trained, and for how long."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from foveate.errors import quoted
from foveate.numbers import MOST, read_share
from foveate.train.settings import DENSE, Count, Counts, Names, Number, RecipeError, Seed, Settings, canonical, each_of
from foveate.train.trainer_options import check_workers, trainer_options

LAST: Final = "last"
"""What a recipe writes for the spec of its last stage, as what the model will be used under."""

SHIPPED: Final = "shipped"
"""What a recipe writes for the embedded model."""

CHECKPOINTING: Final = ("gradient_checkpointing", "activation_checkpointing")
"""Names that `TrainingArguments` has for keeping few activations."""

PARTS: Final = ("full", "projector", "lora")
"""What of a model any recipe can train."""


def _share(value: Any) -> Any:
    """Read a share by its written form: 0.1 is a tenth, not the nearest binary number."""
    try:
        return read_share(value)
    except ValueError:
        raise ValueError(
            f"share is a part of the steps, above 0 and up to 1, like 1/3 or 0.25, not {quoted(value)}"
        ) from None


class Stage(Settings):
    """A part of the optimiser steps, trained under one spec."""

    place = "a stage"

    share: Annotated[Fraction, BeforeValidator(_share)]
    """The part of all optimiser steps, exactly."""
    spec: str = DENSE
    """What is applied meanwhile, in its canonical form, or `dense`."""

    @field_validator("spec", mode="before")
    @classmethod
    def _canonical(cls, spec: Any) -> str:
        return canonical(spec, "spec")


def _stages(given: Any) -> Any:
    if isinstance(given, list):
        return each_of(Stage, given, "stages")
    if not isinstance(given, str | tuple):
        raise ValueError('stages is a list of {share: 1/3, spec: "pool:0.25"}, or the name of a published schedule')
    return given


class Expected(Settings):
    """What `--dry-run` counts with where the data, or the model's processor, isn't there."""

    place = "data: expected"

    conversations: Count
    """How many there are."""
    text_tokens: Count
    """Tokens of a conversation beside the visual ones, on average."""
    image: Counts = Field((336, 336), min_length=2, max_length=2)
    """Width and height of the image of a conversation, in pixels."""


class Data(Settings):
    """Where the conversations come from: exactly one of `scenes`, `clips`, `jsonl`, `llava` and `dataset`."""

    place = "data"

    scenes: Count | None = None
    """This many generated scenes."""
    clips: Count | None = None
    """This many generated clips of four frames."""
    jsonl: str | None = None
    """A file with one JSON object a line (or one JSON list)."""
    llava: str | None = None
    """LLaVA's own list of conversations as it is published, such as llava_v1_5_mix665k.json."""
    dataset: str | None = None
    """A Hugging Face dataset: its name, or the folder that `save_to_disk` wrote."""
    split: str = "train"
    """The part of a dataset."""
    images: str | None = None
    """The folder that image paths start from; without it, the folder of the file."""
    turns: Count = 8
    """The most questions about one scene in one conversation."""
    first_scene: int = Field(0, ge=0, le=MOST)
    """The seed of the first scene or clip."""
    captions: Number = Field(0.0, ge=0, le=1, description="a share of the scenes")
    """The share of the scenes that are described as well, at the end of their conversation."""
    expected: Expected | None = None
    """What `--dry-run` counts with where the data isn't there yet."""
    features: str | None = None
    """Run the encoder once per image, keep what this spec leaves of it, and train on that: `pool2d:144@features`."""

    @field_validator("features", mode="before")
    @classmethod
    def _canonical(cls, spec: Any) -> str | None:
        return None if spec is None else canonical(spec, "features")

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        named = [name for name in ("scenes", "clips", "jsonl", "llava", "dataset") if getattr(self, name) is not None]
        if len(named) != 1:
            given = " and ".join(named) if named else "none of them"
            raise ValueError(f"needs one of scenes, clips, jsonl, llava and dataset, not {given}")
        return self


class Lora(Settings):
    """Low-rank adapters on every linear layer of the decoder, by peft."""

    place = "lora"

    rank: Count = 16
    alpha: Count = 32
    dropout: Number = Field(0.0, ge=0, lt=1)


class Recipe(Settings):
    """One training run: model, data, what is trained, and under which specs. `parse_recipe` reads it."""

    place = "the recipe"
    outermost = True

    data: Data
    stages: Annotated[tuple[Stage, ...] | str, BeforeValidator(_stages)]
    """The stages in order, or the name of a published schedule."""
    model: str = SHIPPED
    """A model directory, or a name on the Hugging Face hub; `shipped` is the embedded one."""
    revision: str | None = None
    """A branch, a tag or a commit of a model on the hub."""
    test: str = DENSE
    """The spec that the trained model will be used under; `last` is the last stage's."""
    train: str = "full"
    """`full`: decoder and projector. `projector`: nothing else. `lora`: adapters on the decoder. An objective may have
    one more word, for training its own weights alone."""
    train_encoder: bool = False
    """Train the vision encoder too (with `full`)."""
    lora: Lora = Lora()  # pyright: ignore[reportCallIssue]
    steps: Count | None = None
    """Optimiser steps."""
    epochs: Number | None = Field(None, gt=0, le=1_000_000)
    """Passes over the data, instead of `steps`."""
    batch: int = Field(32, ge=1, le=1_000_000)
    """Conversations per optimiser step, over all processes and accumulations."""
    per_device: Count | None = None
    """Conversations that a process holds at a time; without it, a step is not accumulated."""
    lr: Number = Field(2e-5, gt=0, le=100)
    """The highest learning rate."""
    warmup: Number = Field(0.03, ge=0, lt=1, description="a share of the steps")
    """The share of the steps over which the learning rate rises."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Number = Field(0.0, ge=0, le=1)
    clip: Number = Field(1.0, ge=0)
    """The largest norm of the gradient; 0: any."""
    max_length: Count | None = None
    """Tokens of a conversation, dense; what is longer is cut at its end."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    shards: bool = False
    """Share weights, gradients and the optimiser's state among the processes (FSDP2)."""
    seed: Seed = 1
    save_every: Count = 100
    """Optimiser steps between checkpoints."""
    keep_checkpoints: Count = 2
    log_every: Count = 10
    workers: int = Field(0, ge=0, le=256)
    """Processes that read data, per training process."""
    trackers: Names = ()
    """Trackers that transformers knows: tensorboard, wandb, mlflow and others."""
    trainer: Annotated[dict[str, Any], BeforeValidator(trainer_options)] = Field(default_factory=dict)
    """What is passed on to `transformers.TrainingArguments`: activation checkpointing, optimisers."""
    _objective: Any = PrivateAttr(None)
    _commit: str | None = PrivateAttr(None)

    @property
    def objective(self) -> Any:
        """What is optimised, a `foveate.train.objectives.Objective`; recipes write its settings under its name."""
        return self._objective

    def with_objective(self, objective: Any) -> Recipe:
        """Return the same recipe for an objective."""
        made = self.model_copy()
        made._objective = objective
        return made

    @field_validator("test", mode="before")
    @classmethod
    def _canonical(cls, spec: Any) -> str:
        return LAST if spec == LAST else canonical(spec, "test")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a recipe says how long with either steps or epochs, one of them")
        if self.train_encoder and self.train != "full":
            raise ValueError(f"train_encoder goes with train: full, not with train: {self.train}")
        if self.train_encoder and self.data.features is not None:
            raise ValueError("train_encoder and data.features exclude each other: features are kept of a frozen one")
        check_workers(self.trainer, self.workers)
        if not isinstance(self.stages, str):
            check_shares(self.stages)
        return self

    @property
    def commit(self) -> str | None:
        """The commit of the hub that the whole run uses; None for a model directory, or before it is known."""
        return self._commit

    def with_commit(self, commit: str | None) -> Recipe:
        """Return the same recipe for one commit of its model."""
        made = self.model_copy()
        made._commit = commit
        return made

    @property
    def source(self) -> dict[str, str | None]:
        """Where the model comes from, as arguments of the functions of `foveate.loading`."""
        return {"model": None if self.model == SHIPPED else self.model, "revision": self._commit or self.revision}

    @property
    def dense(self) -> bool:
        """Whether no stage compresses, and the model will be used without compression."""
        return not isinstance(self.stages, str) and all(spec == DENSE for spec in (*self.specs, self.test))

    @property
    def specs(self) -> tuple[str, ...]:
        """The specs of the stages; a published schedule has none before its depth is known."""
        return () if isinstance(self.stages, str) else tuple(stage.spec for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, as it is kept beside checkpoints."""
        plain = self.model_dump(mode="json")
        plain["data"].pop("expected")
        for name in ("captions", "clips", "llava"):
            if not getattr(self.data, name):
                # Kept features are found again by these values; a key that isn't used doesn't change them.
                del plain["data"][name]
        if plain["revision"] is None:
            del plain["revision"]
        if not plain["shards"]:
            del plain["shards"]
        if self._commit is not None:
            plain["commit"] = self._commit
        if self.objective is not None and self.objective.name:
            plain[self.objective.name] = self.objective.settings.model_dump(mode="json")
        return plain


def check_shares(stages: tuple[Stage, ...]) -> None:
    """Check that the stages fill the run.

    Raises:
        RecipeError: there are none, or their shares don't add up to one.
    """
    if not stages:
        raise RecipeError("stages is empty; a run without compression is one stage: {share: 1, spec: dense}")
    total = sum((stage.share for stage in stages), Fraction(0))
    if total != 1:
        written = " + ".join(str(stage.share) for stage in stages)
        raise RecipeError(f"the shares of the stages add up to {written} = {total}, not 1; thirds are written 1/3")
