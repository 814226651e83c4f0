"""Training recipes as data: checked keys, exact shares, read from YAML."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from foveate.errors import FoveateError

DENSE: Final = "dense"
"""What a recipe writes where nothing is compressed."""

LAST: Final = "last"
"""What a recipe writes for the spec of its last stage, as what the model will be used under."""

CHECKPOINTING: Final = ("gradient_checkpointing", "activation_checkpointing")
"""Names that `TrainingArguments` has for keeping few activations."""

Trained = Literal["full", "projector", "lora", "embedding", "thresholds"]
Record = TypeVar("Record")


class RecipeError(FoveateError):
    """A recipe with an unknown key or an impossible value; its text names the place."""


@dataclass(frozen=True)
class Stage:
    """A part of the steps, trained under one spec."""

    share: Fraction
    """The part of all optimiser steps, exactly."""
    spec: str = DENSE
    """What is applied meanwhile, in its canonical form, or `dense`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", _fraction(self.share, "share"))
        if self.share <= 0:
            raise RecipeError(f"share: a stage's share of the steps is more than 0, not {self.share}")
        object.__setattr__(self, "spec", canonical(self.spec, "spec"))


@dataclass(frozen=True)
class Data:
    """Where the conversations come from: exactly one of `scenes`, `clips`, `jsonl` and `dataset`."""

    scenes: int | None = None
    """This many generated scenes."""
    clips: int | None = None
    """This many generated clips of four frames."""
    jsonl: str | None = None
    """A file with one JSON object a line (or one JSON list)."""
    dataset: str | None = None
    """A Hugging Face dataset: its name, or the folder that `save_to_disk` wrote."""
    split: str = "train"
    """Of a dataset."""
    images: str | None = None
    """The folder that image paths start from; without it, the folder of the file."""
    turns: int = 8
    """The most questions about one scene in one conversation."""
    first_scene: int = 0
    """The seed of the first scene or clip."""
    captions: float = 0.0
    """Share of the scenes that are described as well, at the end of their conversation."""
    features: str | None = None
    """Run the encoder once per image, keep what this spec leaves of it, and train on that: `pool2d:144@features`."""

    def __post_init__(self) -> None:
        named = [name for name in ("scenes", "clips", "jsonl", "dataset") if getattr(self, name) is not None]
        if len(named) != 1:
            given = " and ".join(named) if named else "none of them"
            raise RecipeError(f"data names one of scenes, clips, jsonl and dataset, not {given}")
        for name in ("scenes", "clips"):
            if getattr(self, name) is not None:
                at_least(getattr(self, name), 1, name)
        at_least(self.turns, 1, "turns")
        at_least(self.first_scene, 0, "first_scene")
        if not 0 <= self.captions <= 1:
            raise RecipeError(f"captions is a share of the scenes, from 0 to 1, not {self.captions}")
        if self.features is not None:
            object.__setattr__(self, "features", canonical(self.features, "features"))


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on every linear layer of the decoder, by peft."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(self.rank, 1, "rank")
        at_least(self.alpha, 1, "alpha")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout is from 0 to below 1, not {self.dropout}")


@dataclass(frozen=True)
class Voco:
    """Press every image into VoCo tokens: text sees them, and nothing else of the image."""

    tokens: int = 1
    """VoCo tokens per image."""
    elastic: tuple[int, ...] = ()
    """How many of them conversations (or questions) see, in turns; without it, all of them always."""
    shared: bool = True
    """One embedding for all VoCo tokens; without it, each has its own."""
    words: str | None = None
    """Text whose tokens' embeddings the VoCo tokens start from, where each has its own; without it, at random."""
    apart: bool = False
    """Every question of a conversation is asked by itself, behind the same image."""
    packed: bool = False
    """VoCo tokens of several images stand right behind one another, for long videos."""
    adapter: str | None = None
    """A trained adapter to go on from, such as one for images on the way to one for clips."""
    two_passes: bool = True
    """Images first, then text behind their keys and values; without it, one pass under the mask."""
    distil: float = 0.0
    """Weight of the divergence from the dense teacher; the cross-entropy has the rest."""
    temperature: float = 1.0
    """Softens student and teacher."""
    teacher: str | None = None
    """A model directory; without it, the model that training starts from."""

    def __post_init__(self) -> None:
        at_least(self.tokens, 1, "tokens")
        for count in self.elastic:
            at_least(count, 1, "elastic")
            if count > self.tokens:
                raise RecipeError(f"elastic has {count}, and there are {self.tokens} tokens")
        if not 0 <= self.distil <= 1:
            raise RecipeError(f"distil is a weight from 0 to 1, not {self.distil}")
        if not self.temperature > 0:
            raise RecipeError(f"temperature is more than 0, not {self.temperature}")
        if self.adapter is not None and self.words is not None:
            raise RecipeError("words say where new VoCo tokens start, and adapter brings trained ones; leave one out")
        if self.words is not None and self.shared:
            raise RecipeError("words give each VoCo token a start of its own, and shared gives all of them one")
        if self.apart and self.distil:
            raise RecipeError("distil compares whole conversations with a dense teacher's, so it excludes apart")
        if not self.two_passes and (self.apart or self.elastic):
            raise RecipeError("apart and elastic need two_passes: true")


@dataclass(frozen=True)
class Atp:
    """Learn thresholds that decide, per layer, image and question, which visual tokens stay."""

    target: float
    """Tokens per decoder layer that are wanted, as a share of all: on average over layers and images."""
    layers: tuple[int, ...] = ()
    """The decoder layers at whose input they act; without it, the authors' 4, 14 and 24 of 32, as deep."""
    question: bool = True
    """Whether the thresholds look at the question's hidden state, besides the scores."""
    parts: tuple[str, ...] = ("self", "cross", "spatial")
    """Which scores count."""
    grid: Literal[0, 2, 3, 4] = 0
    """One of every so many rows and columns stays at first, where layers keep more tokens than that; 0 for no grid."""
    lr: float | None = None
    """Of the thresholds, where the model learns along with them; without it, the recipe's."""
    width: int = 16
    """Of what lies between scores and thresholds."""
    temperature: float = 10.0
    """Of the soft masks, at first."""
    sharpest: float = 60.0
    """And at last."""
    hard: float = 0.25
    """The last part of the steps, under masks of 0 and 1 with the gradient of soft ones."""
    later: float = 0.05
    """Weight of what tokens cost, which is more in later layers."""
    mean: float = 2.0
    """Weight of the distance between tokens and target."""
    acts_on: Literal["keys", "values"] = "keys"
    """What of a faded token is weighed: its key, renormalised, or its value alone."""
    calibrate: int = 64
    """Conversations, the last of the data, that thresholds start from and are calibrated on."""

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise RecipeError(f"target is a share of the tokens, between 0 and 1, not {self.target}")
        at_least(self.width, 1, "width")
        at_least(self.calibrate, 2, "calibrate")
        if not 0 < self.temperature <= self.sharpest:
            raise RecipeError(f"temperature is above 0 and up to sharpest, {self.sharpest}, not {self.temperature}")
        if not 0 <= self.hard <= 1:
            raise RecipeError(f"hard is a part of the steps, from 0 to 1, not {self.hard}")
        if min(self.later, self.mean) < 0:
            raise RecipeError("later and mean are weights, and not below 0")
        if self.grid and "spatial" not in self.parts:
            raise RecipeError(f"grid: {self.grid} opens the spatial score, which parts leaves out")
        if self.lr is not None and not self.lr > 0:
            raise RecipeError(f"lr is more than 0, not {self.lr}")


@dataclass(frozen=True)
class Recipe:
    """One training run: model, data, what is trained, and under which specs."""

    data: Data
    stages: tuple[Stage, ...] | str
    """The stages in order, or the name of a published schedule."""
    model: str = "shipped"
    """A model directory; `shipped` is the embedded one."""
    test: str = DENSE
    """The spec that the trained model will be used under; `last` is the last stage's."""
    train: Trained = "full"
    """`full`: decoder and projector. `projector`: it alone. `lora`: adapters on the decoder. `embedding`: nothing but
    what VoCo tokens are, which the others train, too."""
    train_encoder: bool = False
    """Train the vision encoder too (with `full`)."""
    lora: Lora = field(default_factory=Lora)
    voco: Voco | None = None
    """Press images into VoCo tokens; there is one stage then, dense."""
    atp: Atp | None = None
    """Learn thresholds for visual tokens; there is one stage then, dense. With `train: thresholds` nothing else is."""
    steps: int | None = None
    """Optimiser steps."""
    epochs: float | None = None
    """Passes over the data, instead of `steps`."""
    batch: int = 32
    """Conversations per optimiser step, over all processes and accumulations."""
    per_device: int | None = None
    """Conversations that a process holds at a time; without it, a step is not accumulated."""
    lr: float = 2e-5
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    """The largest norm of the gradient."""
    max_length: int | None = None
    """Tokens of a conversation, dense; what is longer is cut at its end."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 1
    save_every: int = 100
    """Optimiser steps between checkpoints."""
    keep_checkpoints: int = 2
    log_every: int = 10
    workers: int = 0
    """Processes that read data, per training process."""
    trackers: tuple[str, ...] = ()
    """Trackers that transformers knows: tensorboard, wandb, mlflow and others."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Anything else that `transformers.TrainingArguments` takes: fsdp, gradient checkpointing, optimisers."""

    def __post_init__(self) -> None:
        if self.test != LAST:
            object.__setattr__(self, "test", canonical(self.test, "test"))
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError("a recipe says how long with either steps or epochs, one of them")
        for name in ("steps", "batch", "per_device", "max_length", "save_every", "keep_checkpoints", "log_every"):
            value = getattr(self, name)
            if value is not None:
                at_least(value, 1, name)
        at_least(self.workers, 0, "workers")
        at_least(self.seed, 0, "seed")
        if self.epochs is not None and self.epochs <= 0:
            raise RecipeError(f"epochs is more than 0, not {self.epochs}")
        if not self.lr > 0:
            raise RecipeError(f"lr is more than 0, not {self.lr}")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"warmup is a share of the steps, from 0 to below 1, not {self.warmup}")
        if self.train_encoder and self.train != "full":
            raise RecipeError(f"train_encoder goes with train: full, not with train: {self.train}")
        if self.train_encoder and self.data.features is not None:
            raise RecipeError("train_encoder and data.features exclude each other: features are kept of a frozen one")
        if not isinstance(self.stages, str):
            check_shares(self.stages)
        if self.voco is None and self.train == "embedding":
            raise RecipeError("train: embedding trains VoCo tokens, and the recipe has no voco")
        if self.voco is not None:
            if isinstance(self.stages, str) or [stage.spec for stage in self.stages] != [DENSE] or self.test != DENSE:
                raise RecipeError("with voco, text sees VoCo tokens alone; leave stages and test out")
            if self.voco.two_passes and any(self.trainer.get(key) for key in CHECKPOINTING):
                raise RecipeError(
                    "checkpointed activations keep no keys and values for a second pass; write two_passes: false in "
                    "voco, or leave them out"
                )

        if self.atp is None and self.train == "thresholds":
            raise RecipeError("train: thresholds trains those of atp, and the recipe has no atp")
        if self.atp is not None:
            if self.voco is not None or self.data.features is not None:
                raise RecipeError("atp goes with neither voco nor data.features: it looks at the whole images")
            if isinstance(self.stages, str) or [stage.spec for stage in self.stages] != [DENSE] or self.test != DENSE:
                raise RecipeError("with atp, thresholds say how many tokens stay; leave stages and test out")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, as it is kept beside checkpoints."""
        plain = {name: _plain(value) for name, value in dataclasses.asdict(self).items()}
        for name in ("captions", "clips"):
            if not getattr(self.data, name):
                # Features and checkpoints from before there was such a key are still what they were.
                del plain["data"][name]
        if plain["atp"] is not None:
            for name in ("grid", "lr"):
                if not plain["atp"][name]:
                    del plain["atp"][name]
        return plain


def check_shares(stages: tuple[Stage, ...]) -> None:
    """Whether the stages fill the run.

    Raises:
        RecipeError: there are none, or their shares don't add up to one.
    """
    if not stages:
        raise RecipeError("stages is empty; a run without compression is one stage: {share: 1, spec: dense}")
    total = sum((stage.share for stage in stages), Fraction(0))
    if total != 1:
        written = " + ".join(str(stage.share) for stage in stages)
        raise RecipeError(f"the shares of the stages add up to {written} = {total}, not 1; thirds are written 1/3")


def canonical(spec: Any, where: str) -> str:
    """A spec in its canonical form, or `dense`.

    Raises:
        RecipeError: it can't be read.
    """
    from foveate.spec import parse

    if spec is None or spec == DENSE:
        return DENSE
    if not isinstance(spec, str):
        raise RecipeError(f"{where} is a spec like pool:0.25@2, or dense, not {spec!r}")
    try:
        return str(parse(spec))
    except FoveateError as error:
        raise RecipeError(f"{where}:\n{error}") from None


def at_least(value: Any, least: int, name: str) -> None:
    """Whether a value is a whole number from `least` on.

    Raises:
        RecipeError: it isn't.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RecipeError(f"{name} is a whole number from {least} on, not {value!r}")


def read_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file holds.

    Raises:
        RecipeError: there is no such file, it is no YAML, or it holds no mapping.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: a recipe is a mapping, not {type(found).__name__}")
    return found


def parse_recipe(given: Any) -> Recipe:
    """Check a recipe as read from YAML.

    Raises:
        RecipeError: for unknown keys, missing ones and impossible values.

    >>> stages = [{"share": "1/3", "spec": "pool:0.25"}, {"share": "2/3", "spec": "dense"}]
    >>> recipe = parse_recipe({"data": {"scenes": 8}, "stages": stages, "steps": 30})
    >>> [str(stage.share) for stage in recipe.stages]
    ['1/3', '2/3']
    >>> parse_recipe({"data": {"scenes": 8}, "stages": stages, "stepps": 30})
    Traceback (most recent call last):
    foveate.train.recipe.RecipeError: the recipe has no key "stepps"; did you mean "steps"?
    """
    if isinstance(given, dict) and (given.get("voco") is not None or given.get("atp") is not None):
        given = {"stages": [{"share": 1}], **given}
    whole = check_keys(Recipe, given, "the recipe")
    whole["data"] = read_record(Data, whole["data"], "data")
    if "lora" in whole:
        whole["lora"] = read_record(Lora, whole["lora"], "lora")
    if whole.get("voco") is not None:
        whole["voco"] = _voco(whole["voco"])
    if whole.get("atp") is not None:
        whole["atp"] = _atp(whole["atp"])
    stages = whole["stages"]
    if isinstance(stages, list):
        whole["stages"] = tuple(read_record(Stage, one, f"stages, number {i}") for i, one in enumerate(stages, start=1))
    elif not isinstance(stages, str):
        raise RecipeError('stages is a list of {share: 1/3, spec: "pool:0.25"}, or the name of a published schedule')
    if "trackers" in whole:
        if not isinstance(whole["trackers"], list):
            raise RecipeError(f"trackers is a list of names, not {whole['trackers']!r}")
        whole["trackers"] = tuple(str(name) for name in whole["trackers"])
    check_types(Recipe, whole, "the recipe", skip=("data", "lora", "voco", "atp", "stages", "trackers"))
    return Recipe(**whole)


def _voco(given: Any) -> Voco:
    if isinstance(given, dict) and isinstance(given.get("elastic"), list):
        given = {**given, "elastic": tuple(given["elastic"])}
    return read_record(Voco, given, "voco")


def _atp(given: Any) -> Atp:
    if isinstance(given, dict):
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return read_record(Atp, given, "atp")


def read_record(kind: type[Record], given: Any, where: str) -> Record:
    """A dataclass from a mapping, with every key and type checked.

    Raises:
        RecipeError: a key is unknown or missing, or a value impossible; the text begins with `where`.
    """
    values = check_keys(kind, given, where)
    check_types(kind, values, where)
    try:
        return kind(**values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def check_keys(kind: type, given: Any, where: str) -> dict[str, Any]:
    """A copy of the mapping, if its keys are the dataclass's fields.

    Raises:
        RecipeError: a key is unknown (the nearest one is named) or missing.
    """
    if not isinstance(given, dict):
        raise RecipeError(f"{where} is a mapping, not {type(given).__name__}")
    known = {each.name: each for each in dataclasses.fields(kind)}
    for key in given:
        if key not in known:
            raise RecipeError(f'{where} has no key "{key}"; {nearest(str(key), known)}')
    for name, each in known.items():
        if name not in given and each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise RecipeError(f'{where} lacks "{name}"')
    return dict(given)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """The end of a message about an unknown name: what was meant, or what there is.

    >>> nearest("stepps", ["steps", "lr"])
    'did you mean "steps"?'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f'did you mean "{near[0]}"?' if near else f"there are {', '.join(names)}"


def check_types(kind: type, values: dict[str, Any], where: str, skip: tuple[str, ...] = ()) -> None:
    """Whether values have their fields' types; whole numbers pass for numbers, and are made so.

    Raises:
        RecipeError: one doesn't.
    """
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name in skip or hints[name] is Fraction:
            continue
        allowed, choices = _allowed(hints[name])
        if choices and value not in choices:
            raise RecipeError(f"{where}: {name} is one of {', '.join(map(str, choices))}, not {value!r}")
        if choices:
            continue
        if float in allowed and isinstance(value, str):
            # YAML takes 1e-3 for text; people mean a number.
            with contextlib.suppress(ValueError):
                values[name] = value = float(value)
        if float in allowed and isinstance(value, int) and not isinstance(value, bool):
            values[name] = value = float(value)
        if not isinstance(value, tuple(allowed)) or (isinstance(value, bool) and bool not in allowed):
            wanted = " or ".join(_WORDS.get(each, each.__name__) for each in allowed)
            raise RecipeError(f"{where}: {name} is {wanted}, not {value!r}")


_WORDS: Final[dict[type, str]] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a mapping",
    tuple: "a list",
    type(None): "nothing",
}


def _allowed(hint: Any) -> tuple[list[type], tuple[Any, ...]]:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return [], typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return [typing.get_origin(each) or each for each in typing.get_args(hint)], ()
    return [origin or hint], ()


def _fraction(value: Any, name: str) -> Fraction:
    try:
        # By its written form: 0.1 is a tenth, not the nearest binary number.
        if isinstance(value, bool):
            raise ValueError
        return value if isinstance(value, Fraction) else Fraction(str(value).replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise RecipeError(f"{name} is a part of the steps like 1/3 or 0.25, not {value!r}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
