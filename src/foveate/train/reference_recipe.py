"""The recipe of the reference VLM as data: from nothing to a model, each stage with its own objective and optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from foveate.scenes import KINDS
from foveate.train.recipe import RecipeError, at_least, check_keys, check_types, read_record

Objective = Literal["encoder", "answers"]
Visual = Literal["symbols", "features"]


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str
    objective: Objective
    """``encoder``: dense targets at every patch and presence on [CLS]. ``answers``: the right answers, and captions."""
    steps: int
    lr: float = 2e-3
    warmup: int = 50
    fall: float = 0.3
    """The share of the steps, at the end, over which the learning rate falls to zero."""
    batch: int = 32
    """Images (windows, for a windowed encoder stage) per step, over all processes."""
    real: float = 0.2
    """Share of the scenes that are real pixels, where there is a data folder."""
    kinds: dict[str, float] = field(default_factory=dict)
    """Kinds of scenes and how often each is drawn; empty: as the scenes have it."""
    side: int = 24
    """Encoder stages: patches along the side of a window; 24 is the whole image."""
    per_scene: int = 1
    """Encoder stages: windows cut from one scene."""
    align: float = 0.0
    """Weight of the distance between the projector's output and the symbols of the patches."""
    visual: Visual = "features"
    """Answer stages: what the decoder sees, symbols of the patches or what encoder and projector make of the pixels."""
    patches: int = 576
    """Answer stages: visual tokens per image; fewer than 576 are those with centres of things, then random ones."""
    layers: int = 12
    """Answer stages: decoder layers; a stage with more than the one before starts from the deepened decoder."""
    train_symbols: bool = True
    """Answer stages on symbols: learn the symbols too, not only what to make of them."""
    train_encoder: bool = False
    """Answer stages: go on training the encoder too, with its own objective beside the answers."""
    text: int = 144
    """Answer stages: tokens of packed questions per image."""
    boost: int = 1
    """Answer stages: how many times ten questions to ask about a scene, as far as they fit."""
    captions: float = 0.5
    """Answer stages: share of the images that are also described."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "side", "per_scene", "patches", "layers", "text"):
            at_least(getattr(self, name), 1, name)
        unknown = [k for k in self.kinds if k not in KINDS]
        if unknown:
            raise RecipeError(f"no scenes of kind {unknown[0]!r}; there are {', '.join(KINDS)}")
        if self.batch % self.per_scene:
            raise RecipeError(f"batch {self.batch} does not divide by per_scene {self.per_scene}")


@dataclass(frozen=True)
class Recipe:
    """All stages, the seed and where the real pixels are."""

    stages: tuple[Stage, ...]
    seed: int = 1
    data: str | None = None
    """Folder of real pictures; without it training goes on with scenes alone, and says so."""
    init_from: str | None = None
    """``shipped``: start from the weights in the package; or a model directory."""
    width: int = 192
    heads: int = 3
    encoder_layers: int = 6
    save_every: int = 100


def parse_reference(given: Any) -> Recipe:
    """Check a recipe as read from YAML, without its key `builds`.

    Raises:
        RecipeError: for unknown keys, missing ones and impossible values.

    >>> parse_reference({"stages": [{"name": "a", "objective": "encoder", "steps": 3}]}).stages[0].batch
    32
    >>> parse_reference({"stages": [], "sead": 1})
    Traceback (most recent call last):
    foveate.train.recipe.RecipeError: the recipe has no key "sead"; did you mean "seed"?
    """
    whole = check_keys(Recipe, given, "the recipe")
    listed = whole.pop("stages")
    if not isinstance(listed, list):
        raise RecipeError(f"stages is a list, not {type(listed).__name__}")
    check_types(Recipe, whole, "the recipe")
    stages = tuple(read_record(Stage, one, f"stages, number {i}") for i, one in enumerate(listed, start=1))
    if len({s.name for s in stages}) < len(stages):
        raise RecipeError("two stages have the same name")
    return Recipe(stages=stages, **whole)
