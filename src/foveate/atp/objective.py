"""The training objective of ATP: thresholds under soft masks, alone or along with the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from foveate.atp import ATP, budget_loss, mean_share, soft_masks
from foveate.atp.adapter import layers_of
from foveate.atp.initial import starting_shares
from foveate.atp.soft_masks import VALUES_REPEATED
from foveate.errors import FoveateError, KeepError
from foveate.families import Family, family_of
from foveate.methods.arithmetic.thresholds import check_thresholds
from foveate.precision import with_autocast
from foveate.train.batches import IGNORE, inputs_of
from foveate.train.objectives import Loaded, Objective
from foveate.train.prepared import Prepared
from foveate.train.recipe import CHECKPOINTING, Recipe
from foveate.train.settings import Count, Names, Number, RecipeError, Settings

TRAINED_ALONE: Final = "thresholds"
"""What a recipe's `train` says for training thresholds and nothing of the model."""

"""Conversations that are run together before and after training."""


class ATPSettings(Settings):
    """How thresholds are trained that decide, per layer, image and question, which visual tokens stay."""

    place = "atp"

    target: Number = Field(gt=0, lt=1, description="a share of the tokens")
    """Tokens per decoder layer that are wanted, as a share of all: on average over layers and images."""
    layers: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """The decoder layers at whose input they act; without it, the authors' 4, 14 and 24 of 32, scaled to the depth."""
    question: bool = True
    """Whether the thresholds read the question's hidden state, besides the scores."""
    parts: Names = ("self", "cross", "spatial")
    """Which scores count."""
    grid: Literal[0, 2, 3, 4] = 0
    """One of every so many rows and columns stays at first, where layers keep more tokens than that; 0 for no grid."""
    lr: Number | None = Field(None, gt=0)
    """The thresholds' learning rate, where the model is trained too; without it, the recipe's."""
    width: Count = 16
    """The width of the layer between scores and thresholds."""
    temperature: Number = Field(10.0, gt=0)
    """The soft masks' temperature at first."""
    sharpest: Number = Field(60.0, gt=0)
    """The soft masks' temperature at the end."""
    hard: Number = Field(0.25, ge=0, le=1, description="a part of the steps")
    """The last part of the steps, under masks of 0 and 1 with the gradient of soft ones."""
    later: Number = Field(0.05, ge=0, description="a weight")
    """Weight of what tokens cost, which is more in later layers."""
    mean: Number = Field(2.0, ge=0, description="a weight")
    """Weight of the distance between tokens and target."""
    acts_on: Literal["keys", "values"] = "keys"
    """What of a faded token is weighed: its key, renormalised, or its value alone."""
    calibrate: int = Field(64, ge=2)
    """Conversations, the last of the data, that thresholds start from and are calibrated on."""

    @model_validator(mode="after")
    def _consistent(self) -> ATPSettings:
        if self.temperature > self.sharpest:
            raise ValueError(f"temperature is above 0 and up to sharpest, {self.sharpest}, not {self.temperature}")
        if self.grid and "spatial" not in self.parts:
            raise ValueError(f"grid: {self.grid} opens the spatial score, which parts leaves out")
        return self


class ATPObjective(Objective):
    """Train thresholds, alone or along with the model.

    Thresholds weigh the keys of all later attention while they are soft, so their gradient goes through every later
    layer.
    """

    name = "atp"
    Settings = ATPSettings
    alone = TRAINED_ALONE
    staged = False
    file = "atp/atp.json"
    # The distance to the target is that of the images that are there at a time, and distances don't add up.
    divisible = False
    uncounted = "these figures are those of dense training: soft masks keep all tokens, and thresholds add their own"

    @property
    def unsharded(self) -> str:
        """Scores of an image read weights of a layer before its own forward gathers them."""
        return "its scores read weights of layers outside their forward; train lora on each card, or all on one"

    def check(self, recipe: Recipe) -> None:
        """Check the rest of the recipe.

        Raises:
            RecipeError: there are stages, or kept features, or checkpointing would lose the masks.
        """
        if self.settings.acts_on == "values" and any(recipe.trainer.get(name) for name in CHECKPOINTING):
            raise RecipeError(f"atp: {VALUES_REPEATED}")
        if recipe.data.features is not None:
            raise RecipeError("atp goes with neither voco nor data.features: it reads the whole images")
        if not recipe.dense:
            raise RecipeError("with atp, thresholds say how many tokens stay; leave stages and test out")

    def check_model(self, family: Family) -> None:
        """Check which thresholds are asked for, and that the model's layers can meet their target.

        Raises:
            RecipeError: the decoder lacks such layers or a signal, or a setting is impossible.
        """
        settings = self.settings
        try:
            layers = layers_of(family, settings.layers or None)
            check_thresholds(layers, settings.width, settings.parts)
        except FoveateError as error:
            raise RecipeError(f"atp: {error}") from None
        try:
            starting_shares(layers, len(family.decoder_layers), settings.target)
        except KeepError as error:
            raise RecipeError(f"atp: target: {error}") from None

    def wrap(self, model: nn.Module, loaded: Loaded) -> ATPTrainee:
        """Put thresholds, started near their target, beside the model."""
        recipe = loaded.ready.recipe
        with with_autocast(family_of(loaded.base).device, recipe.precision):
            return make_trainee(loaded.base, model, self.settings, loaded.rows, loaded.batches, recipe.seed)

    def rates(self) -> Mapping[str, float]:
        """Return the thresholds' own learning rate, if they have one."""
        return {} if self.settings.lr is None else {"adapter.": self.settings.lr}

    def begin_step(self, module: nn.Module, step: int, steps: int) -> None:
        """Let the masks get harder from step to step."""
        assert isinstance(module, ATPTrainee)
        module.part = step / max(1, steps)

    def save(self, module: nn.Module, model: nn.Module, loaded: Loaded, out: Path) -> None:
        """Calibrate the thresholds on the model as it is now, and write them to `out/atp`."""
        assert isinstance(module, ATPTrainee)
        save_atp(module, model, self.settings, loaded, out)

    def use(self, ready: Prepared, out: Path) -> str:
        """Write the spec that uses the thresholds."""
        return f"use it under atp:adapter={out / 'atp'}"


class ATPTrainee(nn.Module):
    """A model and its thresholds as one module: the answers' loss under soft masks, and what tokens cost.

    Args:
        model: the base model, or peft's wrapper around it.
        adapter: made for the base model.
        settings: how they are trained.
        depth: the number of decoder layers.
    """

    def __init__(self, model: nn.Module, adapter: ATP, settings: ATPSettings, depth: int) -> None:
        super().__init__()
        self.model, self.adapter, self.depth = model, adapter, depth
        self.part = 0.0
        """The part of the steps that is done, from 0 to 1."""
        self._settings = settings

    def temperature(self) -> float:
        """Return the current mask temperature, which grows by the same factor in each step."""
        first, last = self._settings.temperature, self._settings.sharpest
        return first * (last / first) ** min(1.0, self.part / max(1e-9, 1 - self._settings.hard))

    def forward(self, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Any) -> dict[str, Any]:
        """Return the loss of a batch.

        Args:
            labels: `(B, S)` int64.
            num_items_in_batch: labels in the whole step, which the loss is divided by; None for those in this batch.
            inputs: what the base model takes, without its labels.

        Returns:
            `loss`, a scalar, and for the log `numbers`: the answers' own loss, the share of tokens per layer, the
            temperature.
        """
        settings, temperature = self._settings, self.temperature()
        hard = self.part >= 1 - settings.hard
        with soft_masks(self.model, self.adapter, temperature, hard=hard, acts_on=settings.acts_on) as masks:
            logits = self.model(**inputs, labels=labels, use_cache=False).logits
        learned = labels[:, 1:] != IGNORE
        summed = nn.functional.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned], reduction="sum")
        items = learned.sum()
        loss = summed / (items if num_items_in_batch is None else num_items_in_batch)
        numbers = {"answers": float(summed.detach() / items), "temperature": temperature}
        if len(masks.shares):
            layers = self.adapter.layers
            budget = budget_loss(
                masks.shares, layers, self.depth, settings.target, later=settings.later, mean=settings.mean
            )
            # The budget's loss is weighted by the part of a step's labels that this batch has.
            loss = loss + budget * (1.0 if num_items_in_batch is None else items / num_items_in_batch)
            numbers["tokens"] = float(mean_share(masks.shares.detach(), layers, self.depth).mean())
        return {"loss": loss, "numbers": numbers}


def make_trainee(
    model: nn.Module, wrapped: nn.Module, settings: ATPSettings, rows: Any, collate: Any, seed: int
) -> ATPTrainee:
    """Make thresholds for a model, start them near their target, and put them beside the model.

    Args:
        model: the base model.
        wrapped: the same, or peft's wrapper around it.
        settings: which thresholds, and how they are trained.
        rows: the conversations; the last of them are used here and by `save_atp`.
        collate: makes batches of them.
        seed: of the thresholds.
    """
    layers = settings.layers or None
    adapter = ATP(model, layers, question=settings.question, width=settings.width, parts=settings.parts, seed=seed)
    adapter.prepare(model, calibration_batches(settings, rows, collate), settings.target, settings.grid)
    return ATPTrainee(wrapped, adapter, settings, len(family_of(model).decoder_layers))


def calibration_batches(settings: ATPSettings, rows: Any, collate: Any) -> Iterator[Mapping[str, Any]]:
    """Make batches of the last conversations, without what only training needs."""
    return inputs_of(collate, rows, range(max(0, len(rows) - settings.calibrate), len(rows)))


def save_atp(trainee: ATPTrainee, model: nn.Module, settings: ATPSettings, loaded: Loaded, out: Path) -> None:
    """Calibrate the thresholds on the model as it is now, and write them to `out/atp`.

    Args:
        trainee: of the run.
        model: what it has become, adapters merged into it.
        settings: how they were trained.
        loaded: with the conversations.
        out: the run's folder.

    Raises:
        FoveateError: the directory can't be written.
    """
    adapter, training = trainee.adapter, model.training
    adapter.set_base_model(model)
    model.eval()
    device = family_of(model).device
    batches = calibration_batches(settings, loaded.rows, loaded.batches)
    with with_autocast(device, loaded.ready.recipe.precision):
        adapter.calibrate(model, ({name: value.to(device) for name, value in batch.items()} for batch in batches))
    model.train(training)
    adapter.save_pretrained(out / "atp")
