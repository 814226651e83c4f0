"""Check a recipe against its model and its data, before any weight is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.loading import commit_of, load_processor, skeleton
from foveate.numbers import MOST
from foveate.schedule import schedule
from foveate.train.features import check_features
from foveate.train.recipe import LAST, Recipe, Stage
from foveate.train.settings import DENSE, RecipeError
from foveate.train.sources import Conversations, conversations
from foveate.train.timetable import Timetable, ending_warning, published
from foveate.train.trainer_options import check_trackers, check_unsharded


@dataclass(frozen=True)
class Prepared:
    """A recipe whose model and data exist and fit together.

    Attributes:
        recipe: as it was read, for one commit of its model if that is on the hub.
        family: of the model's skeleton.
        processor: the model's own.
        rows: the conversations.
        stages: of the recipe, or those of the published schedule that it names, for this model's depth.
        timetable: the stages over the run's steps.
        test: the spec that the trained model will be used under, after the features' spec if there is one.
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


def prepare(recipe: Recipe) -> Prepared:
    """Check a recipe against its model and data.

    Raises:
        FoveateError: something is missing, broken, or can't be done on this model.
    """
    check_trackers(recipe.trackers)
    check_unsharded()
    # A branch may move while the run lasts; everything comes from one commit.
    recipe = recipe.with_commit(commit_of(**recipe.source))
    family = family_of(skeleton(**recipe.source))
    processor = load_processor(**recipe.source)
    stages = recipe.stages
    if isinstance(stages, str):
        stages = published(stages, len(family.decoder_layers))
    if recipe.data.features is not None:
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
        if steps > MOST:
            raise RecipeError(
                f"{recipe.epochs:g} epochs of {len(rows):,} conversations are {steps:,} optimiser steps; the most is "
                f"{MOST:,}: train for fewer epochs"
            )
    warning = ending_warning(stages, test)
    warnings = () if warning is None else (warning,)
    return Prepared(recipe, family, processor, rows, stages, Timetable.of(stages, steps), test, warnings)


def _check_spec(spec: str, family: Family, where: str) -> None:
    if spec == DENSE:
        return
    try:
        schedule(spec, family)
    except FoveateError as error:
        raise RecipeError(f"{where}: {error}") from None
