"""The recipe of the reference VLM as data: from nothing to a model, each stage with its own objective and optimiser."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from foveate.scenes import KINDS
from foveate.train.settings import Count, Number, Settings, each_of, nearest

Objective = Literal["encoder", "answers"]
Visual = Literal["symbols", "features"]


class Stage(Settings):
    """One stage of training."""

    place = "a stage"

    name: str
    objective: Objective
    """``encoder``: dense targets at every patch and presence on [CLS]. ``answers``: the right answers, and captions."""
    steps: Count
    lr: Number = 2e-3
    warmup: int = 50
    fall: Number = 0.3
    """The share of the steps, at the end, over which the learning rate falls to zero."""
    batch: Count = 32
    """Images (windows, for a windowed encoder stage) per step, over all processes."""
    real: Number = 0.2
    """Share of the scenes that are real pixels, where there is a data folder."""
    kinds: dict[str, float] = Field(default_factory=dict)
    """Kinds of scenes and how often each is drawn; empty: as the scenes have it."""
    side: Count = 24
    """Encoder stages: patches along the side of a window; 24 is the whole image."""
    per_scene: Count = 1
    """Encoder stages: windows cut from one scene."""
    align: Number = 0.0
    """Weight of the distance between the projector's output and the symbols of the patches."""
    visual: Visual = "features"
    """Answer stages: what the decoder sees, symbols of the patches or what encoder and projector make of the pixels."""
    patches: Count = 576
    """Answer stages: visual tokens per image; fewer than 576 are those with centres of things, then random ones."""
    layers: Count = 12
    """Answer stages: decoder layers; a stage with more than the one before starts from the deepened decoder."""
    train_symbols: bool = True
    """Answer stages on symbols: learn the symbols too, not only what to make of them."""
    train_encoder: bool = False
    """Answer stages: go on training the encoder too, with its own objective beside the answers."""
    text: Count = 144
    """Answer stages: tokens of packed questions per image."""
    boost: int = 1
    """Answer stages: how many times ten questions to ask about a scene, as far as they fit."""
    captions: Number = 0.5
    """Answer stages: share of the images that are also described."""

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"no scenes are of kind {unknown[0]!r}; {nearest(unknown[0], KINDS)}")
        if self.batch % self.per_scene:
            raise ValueError(f"batch {self.batch} does not divide by per_scene {self.per_scene}")
        return self


def _stages(given: Any) -> Any:
    return each_of(Stage, given, "stages") if isinstance(given, list) else given


class Recipe(Settings):
    """All stages, the seed and where the real pixels are."""

    place = "the recipe"
    outermost = True

    stages: Annotated[tuple[Stage, ...], BeforeValidator(_stages)]
    seed: int = 1
    data: str | None = None
    """Folder of real pictures; without it training goes on with scenes alone, and says so."""
    init_from: str | None = None
    """``shipped``: start from the weights in the package; or a model directory."""
    width: Count = 192
    heads: Count = 3
    encoder_layers: Count = 6
    save_every: Count = 100

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError("two stages have the same name")
        return self


def parse_reference(given: Any) -> Recipe:
    """Read a recipe as YAML gives it, without its key `builds`.

    Raises:
        RecipeError: for unknown keys, missing ones and impossible values.

    >>> parse_reference({"stages": [{"name": "a", "objective": "encoder", "steps": 3}]}).stages[0].batch
    32
    >>> parse_reference({"stages": [], "sead": 1})
    Traceback (most recent call last):
    foveate.train.settings.RecipeError: the recipe has no key "sead"; did you mean "seed"?
    """
    return Recipe.model_validate(given)
