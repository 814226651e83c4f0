"""Check a recipe against its model and its data, before any weight is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from foveate.costmodel import published_sizes
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.loading import commit_of, load_processor, model_of_type, skeleton
from foveate.numbers import MOST
from foveate.schedule import schedule
from foveate.train.features import check_features
from foveate.train.recipe import LAST, Recipe, Stage
from foveate.train.settings import DENSE, RecipeError
from foveate.train.shards import check_shards, is_sharded
from foveate.train.sources import Conversations, ExpectedRows, conversations
from foveate.train.timetable import Timetable, ending_warning, published
from foveate.train.trainer_options import check_trackers


@dataclass(frozen=True)
class Prepared:
    """A recipe whose model and data exist and fit together.

    Attributes:
        recipe: as it was read, for one commit of its model if that is on the hub.
        skeleton: of the model, without weights.
        family: of the skeleton.
        processor: the model's own; None if an estimate does without.
        rows: the conversations.
        stages: of the recipe, or those of the published schedule that it names, for this model's depth.
        timetable: the stages over the run's steps.
        test: the spec that the trained model will be used under, after the features' spec if there is one.
        warnings: what people should know before they start.
        expected: whether sizes of conversations are those that the recipe expects, for an estimate.
        stored: bytes of a weight in the model's files.
    """

    recipe: Recipe
    skeleton: Any
    family: Family
    processor: Any
    rows: Conversations
    stages: tuple[Stage, ...]
    timetable: Timetable
    test: str
    warnings: tuple[str, ...]
    expected: bool = False
    stored: int = 4

    @property
    def used_under(self) -> str:
        """The whole spec that the trained model is meant for: what its features were cut by, and then `test`."""
        parts = [spec for spec in (self.recipe.data.features, self.test) if spec not in (None, DENSE)]
        return "+".join(parts) if parts else DENSE


def prepare(recipe: Recipe, *, estimate: bool = False) -> Prepared:
    """Check a recipe against its model and data.

    Args:
        recipe: what to do.
        estimate: take published sizes of a model that isn't here, and expected ones of data that aren't.

    Raises:
        FoveateError: something is missing, broken, or can't be done on this model.
    """
    check_trackers(recipe.trackers)
    if is_sharded(recipe.shards) or recipe.shards:
        check_shards(recipe)
    warnings: list[str] = []
    shell = processor = None
    expected = recipe.data.expected if estimate else None
    sizes = published_sizes(recipe.model) if expected is not None else None
    stored = 2
    try:
        # A branch may move while the run lasts; everything comes from one commit.
        recipe = recipe.with_commit(commit_of(**recipe.source))
        shell = skeleton(**recipe.source)
        stored = 2 if str(shell.dtype).endswith(("float16", "bfloat16")) else 4
        processor = load_processor(**recipe.source)
    except FoveateError as error:
        if sizes is None:
            raise
        if shell is None:
            shell = model_of_type(sizes["model_type"], {key: sizes[key] for key in sizes if key != "model_type"})
        warnings.append(f"the sizes of {recipe.model} are those that foveate cost has: {error}")
    family = family_of(shell)
    stages = recipe.stages
    if isinstance(stages, str):
        stages = published(stages, len(family.decoder_layers))
    if recipe.data.features is not None:
        check_features(family, recipe.data.features, stages)
    for number, stage in enumerate(stages, start=1):
        _check_spec(stage.spec, family, f"stage {number}")
    test = stages[-1].spec if recipe.test == LAST else recipe.test
    _check_spec(test, family, "test")
    try:
        rows = conversations(recipe.data)
    except FoveateError as error:
        if expected is None:
            raise
        rows = None
        warnings.append(f"the data is as the recipe expects it (data: expected): {error}")
    counted = rows is None or processor is None
    if rows is None:
        assert expected is not None
        rows = ExpectedRows(expected.conversations)
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
    if warning is not None:
        warnings.append(warning)
    table = Timetable.of(stages, steps)
    ready = Prepared(recipe, shell, family, processor, rows, stages, table, test, tuple(warnings), counted, stored)
    recipe.objective.check_ready(ready)
    return ready


def _check_spec(spec: str, family: Family, where: str) -> None:
    if spec == DENSE:
        return
    try:
        schedule(spec, family)
    except FoveateError as error:
        raise RecipeError(f"{where}: {error}") from None
