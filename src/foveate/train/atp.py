"""Train ATP: thresholds under soft masks, alone or along with the model, and the adapter that comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foveate.atp import ATP, budget_loss, mean_share, soft_masks
from foveate.families import family_of
from foveate.train.batches import IGNORE, Batches
from foveate.train.recipe import Atp

_AT_ONCE = 8
"""Conversations that are looked at together before and behind training."""


class ATPTrainee(nn.Module):
    """A model and its thresholds, as one thing to train: the answers' loss under soft masks, and what tokens cost.

    Args:
        model: the base model, or peft's wrapper around it.
        adapter: made for the base model.
        recipe: how they are trained.
        depth: layers of the decoder.
    """

    def __init__(self, model: nn.Module, adapter: ATP, recipe: Atp, depth: int) -> None:
        super().__init__()
        self.model, self.adapter, self.depth = model, adapter, depth
        self.part = 0.0
        """How much of the training is done, from 0 to 1."""
        self._recipe = recipe

    def temperature(self) -> float:
        """Of the masks now: it grows by the same factor in each step."""
        first, last = self._recipe.temperature, self._recipe.sharpest
        return first * (last / first) ** min(1.0, self.part / max(1e-9, 1 - self._recipe.hard))

    def forward(self, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Any) -> dict[str, Any]:
        """The loss of a batch.

        Args:
            labels: `(B, S)` int64.
            num_items_in_batch: labels in the whole step, which the loss is divided by; None for those in this batch.
            inputs: what the base model takes, without its labels.

        Returns:
            `loss`, a scalar, and for the log `numbers`: the answers' own loss, the share of tokens per layer, the
            temperature.
        """
        recipe, temperature = self._recipe, self.temperature()
        hard = self.part >= 1 - recipe.hard
        with soft_masks(self.model, self.adapter, temperature, hard=hard, acts_on=recipe.acts_on) as masks:
            logits = self.model(**inputs, labels=labels, use_cache=False).logits
        learned = labels[:, 1:] != IGNORE
        summed = nn.functional.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned], reduction="sum")
        items = learned.sum()
        loss = summed / (items if num_items_in_batch is None else num_items_in_batch)
        numbers = {"answers": float(summed.detach() / items), "temperature": temperature}
        if len(masks.shares):
            layers = self.adapter.layers
            budget = budget_loss(masks.shares, layers, self.depth, recipe.target, later=recipe.later, mean=recipe.mean)
            # What the answers' loss is divided by tells which part of a step this batch is.
            loss = loss + budget * (1.0 if num_items_in_batch is None else items / num_items_in_batch)
            numbers["tokens"] = float(mean_share(masks.shares.detach(), layers, self.depth).mean())
        return {"loss": loss, "numbers": numbers}


class Sharpening(TrainerCallback):
    """Tells a trainee how much of the training is done, which decides how hard its masks are."""

    def __init__(self, trainee: ATPTrainee) -> None:
        self._trainee = trainee

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The step alone decides, so a resumed run goes on as it would have."""
        self._trainee.part = state.global_step / max(1, state.max_steps)


def make_trainee(model: nn.Module, wrapped: nn.Module, recipe: Atp, rows: Any, collate: Any, seed: int) -> ATPTrainee:
    """Thresholds for a model, started near their target, and the model with them.

    Args:
        model: the base model.
        wrapped: the same, or peft's wrapper around it.
        recipe: which thresholds.
        rows: the conversations; the last of them are looked at, here and by `save_atp`.
        collate: makes batches of them.
        seed: of the thresholds.
    """
    layers = recipe.layers or None
    adapter = ATP(model, layers, question=recipe.question, width=recipe.width, parts=recipe.parts, seed=seed)
    adapter.prepare(model, looked_at(recipe, rows, collate), recipe.target, recipe.grid)
    return ATPTrainee(wrapped, adapter, recipe, len(family_of(model).decoder_layers))


def looked_at(recipe: Atp, rows: Any, collate: Any) -> Iterator[Mapping[str, Any]]:
    """The last conversations of a data set, in batches, without what only training needs."""
    numbers = list(range(max(0, len(rows) - recipe.calibrate), len(rows)))
    for start in range(0, len(numbers), _AT_ONCE):
        batch = collate([(number, rows[number]) for number in numbers[start : start + _AT_ONCE]])
        yield {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


def save_atp(trainee: ATPTrainee, model: nn.Module, ready: Any, out: Path) -> None:
    """Calibrate the thresholds on the model as it is now, and write them to `out/atp`.

    Args:
        trainee: of the run.
        model: what it has become, adapters merged into it.
        ready: the prepared recipe.
        out: the run's folder.

    Raises:
        FoveateError: the directory can't be written.
    """
    adapter, training, recipe = trainee.adapter, model.training, ready.recipe
    adapter.set_base_model(model)
    model.eval()
    collate = Batches(ready.processor, ready.family, recipe.max_length)
    device = next(model.parameters()).device
    batches = looked_at(recipe.atp, ready.rows, collate)
    adapter.calibrate(model, ({name: value.to(device) for name, value in batch.items()} for batch in batches))
    model.train(training)
    adapter.save_pretrained(out / "atp")
