"""What training optimises: one interface for the model's own loss, foveate's learned methods, and other packages'.

An objective decides what is trained (`prepare`), makes batches (`collate`), puts a module around the model that gives
the loss (`wrap`), and writes what training made (`save`). A recipe names one by a key: `voco: {tokens: 4}` has the
objective `voco` with these settings. A recipe without such a key trains on the model's own loss.

Packages add objectives under the entry point group `foveate.objectives`; the entry's name is the recipe's key:

    [project.entry-points."foveate.objectives"]
    mine = "my_package.objective:MyObjective"
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from torch import nn

from foveate.errors import FoveateError, nearest
from foveate.train.batches import Batches
from foveate.train.parameters import choose_parameters
from foveate.train.prepared import Prepared
from foveate.train.recipe import PARTS, Recipe
from foveate.train.settings import DENSE, RecipeError, Settings
from foveate.train.sources import Conversation, Conversations

GROUP: Final = "foveate.objectives"
"""The entry point group of objectives in other packages."""

OWN: Final[dict[str, str]] = {
    "voco": "foveate.voco.objective:VoCoObjective",
    "atp": "foveate.atp.objective:ATPObjective",
}
"""foveate's own objectives, imported when a recipe names them: they lie above this module."""


class NoSettings(Settings):
    """The settings of an objective that has none."""


@dataclass(frozen=True)
class Loaded:
    """What a run has loaded when its objective wraps and saves the model.

    Attributes:
        ready: the recipe, checked, with processor and stages.
        base: the model, without any wrapper.
        rows: the conversations that are trained on.
        batches: makes batches of them for the model's own loss.
    """

    ready: Prepared
    base: nn.Module
    rows: Conversations
    batches: Batches


class Objective:
    """Train on the model's own loss; the base class of all objectives.

    A subclass overrides what differs. Methods are called in this order: `check`, `check_ready`, then `prepare`, `wrap`
    and `rates`, then `begin_step` for each step and `collate` for each batch, then `save`. A dry run ends before
    `prepare`. It and every run also call `collate` for the first conversations then, one by one: what can't be trained
    on is found before the model is loaded.

    Args:
        settings: what the recipe says under the objective's name.
    """

    name: ClassVar[str] = ""
    """The recipe's key."""
    Settings: ClassVar[type[Settings]] = NoSettings
    """What that key holds."""
    alone: ClassVar[str] = ""
    """What the recipe's `train` says for training the objective's own weights and nothing of the model."""
    staged: ClassVar[bool] = True
    """Whether stages' specs can be applied while it trains; without them the recipe has one stage, dense."""
    file: ClassVar[str] = ""
    """The last file that `save` writes, in the run's folder; a run that leaves the model as it was is finished then."""
    divisible: ClassVar[bool] = True
    """Whether a step's loss is the same, but for rounding, however many of its conversations are taken at a time."""
    uncounted: ClassVar[str] = ""
    """What the cost model doesn't count, as a warning for estimates; if any, logs have no share of FLOPs saved."""

    def __init__(self, settings: Any = None) -> None:
        self.settings: Any = self.Settings() if settings is None else settings

    @property
    def dense_positions(self) -> bool:
        """Whether each token of a row takes a position of the decoder, as for the dense model."""
        return True

    @property
    def unsharded(self) -> str:
        """Why it can't be trained in shards, and what to do; nothing if it can.

        Each process has to run each decoder layer equally often in a batch, whatever its rows are.
        """
        return ""

    def check(self, recipe: Recipe) -> None:
        """Check the rest of the recipe.

        Raises:
            RecipeError: it doesn't go with this objective.
        """
        if not self.staged and not recipe.dense:
            raise RecipeError(f"{self.name} goes with no other compression; leave stages and test out")

    def check_ready(self, ready: Prepared) -> None:
        """Check the settings against the model, whose weights aren't loaded yet, and look for what they name.

        Args:
            ready: the recipe with its data and a model without weights; an estimate may have no processor.

        Raises:
            FoveateError: something is missing, or can't be done on this model.
        """

    def keeps_model(self, recipe: Recipe) -> bool:
        """Whether training leaves the model as it was, so that only `save` writes something."""
        return recipe.train not in PARTS

    def prepare(self, model: nn.Module, ready: Prepared) -> nn.Module:
        """Choose what is trained and freeze the rest; return the model, or a wrapper of it such as peft's.

        The model is whole here, on the CPU: an objective's own weights are made now, too.
        """
        return choose_parameters(model, ready.recipe)

    def collate(self, batches: Batches, rows: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Make a batch: what the module of `wrap` takes by name, with `rows`, their numbers, and `tokens`, a count.

        It uses nothing that `prepare` and `wrap` make, since it is called before them, too.

        Args:
            batches: makes batches for the model's own loss.
            rows: conversations with their numbers.
        """
        return batches(rows)

    def wrap(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """Return what is trained: a module that takes a batch and returns `loss`, and for the log `numbers`.

        A module whose forward takes `**kwargs` gets `num_items_in_batch` with the batch: the labels of the whole step,
        over its accumulated parts and all processes. The Trainer adds the parts up as they are, so each term of the
        loss is divided by this number; or it is a mean over the batch, times the batch's share of the labels.
        Without `**kwargs`, its loss is taken for a mean over the labels of its batch.

        Args:
            model: what `prepare` returned.
            loaded: what the run has loaded.
        """
        return model

    def rates(self) -> Mapping[str, float]:
        """Return learning rates for parameters of the module whose names begin so; the recipe's holds for the rest."""
        return {}

    def begin_step(self, module: nn.Module, step: int, steps: int) -> None:
        """Do what has to be done before an optimiser step; it is called after an interruption as it was before.

        Args:
            module: what `wrap` returned.
            step: the number of the step, counted from 0.
            steps: how many the run has.
        """

    def save(self, module: nn.Module, model: nn.Module, loaded: Loaded, out: Path) -> None:
        """Write what training made beside the model.

        Args:
            module: what `wrap` returned, as it was trained.
            model: what `prepare` returned; or, if training changed the model, the whole model with adapters merged.
            loaded: what the run has loaded.
            out: the run's folder.

        Raises:
            FoveateError: it can't be written.
        """

    def use(self, ready: Prepared, out: Path) -> str:
        """Say in half a sentence how the result is used."""
        return f"use it under {ready.used_under}"


def names() -> list[str]:
    """List the names of all objectives: foveate's own, then those of installed packages."""
    return list(dict.fromkeys([*OWN, *(entry.name for entry in importlib.metadata.entry_points(group=GROUP))]))


def find(name: str) -> type[Objective]:
    """Import the objective of a name.

    Raises:
        FoveateError: there is none, or its package doesn't have what its entry point says.
    """
    if name in OWN:
        module, _, attribute = OWN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    entries = [*importlib.metadata.entry_points(group=GROUP, name=name)]
    if not entries:
        raise FoveateError(f'no objective is called "{name}"; there are {", ".join(names())}')
    try:
        found = entries[0].load()
    except (ImportError, AttributeError) as error:
        raise FoveateError(f"the objective {name} ({entries[0].value}) can't be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise FoveateError(f"the objective {name} ({entries[0].value}) is no subclass of {__name__}.Objective")
    return found


def parse_recipe(given: Any) -> Recipe:
    """Read a recipe from plain data, such as YAML's.

    Raises:
        RecipeError: for unknown keys, missing ones and impossible values.

    >>> stages = [{"share": "1/3", "spec": "pool:0.25"}, {"share": "2/3", "spec": "dense"}]
    >>> recipe = parse_recipe({"data": {"scenes": 8}, "stages": stages, "steps": 30})
    >>> [str(stage.share) for stage in recipe.stages]
    ['1/3', '2/3']
    >>> parse_recipe({"data": {"scenes": 8}, "stages": stages, "stepps": 30})
    Traceback (most recent call last):
    foveate.train.settings.RecipeError: the recipe has no key "stepps"; did you mean "steps"?
    """
    if not isinstance(given, dict):
        return Recipe.model_validate(given)
    listed = names()
    named = [name for name in listed if given.get(name) is not None]
    if len(named) > 1:
        raise RecipeError(f"{' and '.join(named)} are objectives, and a recipe has one; leave the others out")
    objective = Objective()
    if named:
        kind = find(named[0])
        objective = kind(kind.Settings.model_validate(given[named[0]]))
    rest = {key: value for key, value in given.items() if key not in listed}
    for key in rest:
        if key not in Recipe.model_fields:
            known = [*Recipe.model_fields, *listed]
            raise RecipeError(f'the recipe has no key "{key}"; {nearest(str(key), known)}')
    if not objective.staged:
        rest = {"stages": [{"share": 1, "spec": DENSE}], **rest}
    recipe = Recipe.model_validate(rest).with_objective(objective)
    _check_trained(recipe, objective)
    _check_noise(recipe, objective)
    objective.check(recipe)
    if objective.keeps_model(recipe) and not objective.file:
        raise FoveateError(
            f"the objective {objective.name} leaves the model as it was and has no `file` that it writes"
        )
    return recipe


def _check_trained(recipe: Recipe, objective: Objective) -> None:
    """Check what the recipe says that it trains.

    Raises:
        RecipeError: no objective trains that, or only another one does.
    """
    if recipe.train in PARTS or (objective.alone and recipe.train == objective.alone):
        return
    owner = next((name for name in names() if find(name).alone == recipe.train), None)
    if owner is not None:
        raise RecipeError(f"train: {recipe.train} trains what {owner} adds to a model, and the recipe has no {owner}")
    known = [*PARTS, *([objective.alone] if objective.alone else [])]
    raise RecipeError(f"train is one of {', '.join(known)}, not {recipe.train!r}")


def _check_noise(recipe: Recipe, objective: Objective) -> None:
    """Check that noise, if the recipe wants some, finds the embeddings that it is added to.

    Raises:
        RecipeError: the objective puts a module around the model, in which the Trainer finds none.
    """
    if "neftune_noise_alpha" in recipe.trainer and type(objective).wrap is not Objective.wrap:
        raise RecipeError(
            f"trainer: neftune_noise_alpha goes with the model's own loss alone: {objective.name} has a module of its "
            "own, in which the Trainer finds no embeddings to add noise to; leave one of them out"
        )
