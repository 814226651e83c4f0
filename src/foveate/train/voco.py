"""Train VoCo tokens: a model that presses images into them, batches for it, and the adapter that comes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.engine import encode
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.loading import load_model
from foveate.tokens import Layout
from foveate.train.batches import Batches, pad
from foveate.train.recipe import DENSE, Recipe, RecipeError, Voco
from foveate.train.sources import Conversation
from foveate.voco import VoCo, VoCoMemory
from foveate.voco.lora import LORA_WEIGHTS
from foveate.voco.losses import VoCoOutput, distillation
from foveate.voco.one_pass import one_pass_logits
from foveate.voco.prompt_rows import IGNORED, PromptRow, prompt_rows
from foveate.voco.two_pass import read_images, text_logits


class VoCoTrainee(nn.Module):
    """A model and its VoCo tokens, as one thing to train: images in, loss of the text behind their memories out.

    Args:
        model: the base model, or peft's wrapper around it.
        voco: made for the base model.
        recipe: how they are trained.
        teacher: what is dense, and stays as it is; None for the base model without its adapters.
    """

    def __init__(self, model: nn.Module, voco: VoCo, recipe: Voco, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.voco, self._recipe = model, voco, recipe
        # In a list: it is no part of what is trained or moved about with it.
        self._teacher = [teacher]

    def forward(
        self,
        labels: Tensor,
        behind: Tensor | None = None,
        counts: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """The loss of a batch.

        Args:
            labels: `(B, S)` int64.
            behind: `(B,)` int64, the row whose images each row is asked behind; None for its own.
            counts: `(B,)` int64, how many VoCo tokens per image each row sees; None for all.
            num_items_in_batch: labels in the whole step, which the loss is divided by; None for those in this batch.
            inputs: what the base model takes, without its labels.

        Returns:
            `loss`, a scalar, and for the log `numbers`.

        Raises:
            FoveateError: no label is left to learn from.
        """
        family = family_of(self.model)
        encoded = encode(self.model, inputs) if inputs.get("pixel_values") is not None else None
        features = () if encoded is None else encoded.projected
        layouts = () if encoded is None else encoded.layouts
        rows = prompt_rows(family, {**inputs, "labels": labels}, layouts)
        if behind is not None:
            rows = [replace(row, images=rows[at].images) for row, at in zip(rows, behind.tolist(), strict=True)]
        seen = [self.voco.tokens] * len(rows) if counts is None else counts.tolist()
        dense = self._dense(inputs) if self._recipe.distil else None
        if self._recipe.two_passes:
            memories = self.memories(family, features, layouts) if layouts else []
            held = [self.held(row, memories, count) for row, count in zip(rows, seen, strict=True)]
            parts = [
                (group, *text_logits(self.model, family, [rows[i] for i in group], [held[i] for i in group]))
                for group in alike([row.text.shape[0] for row in rows])
            ]
        else:
            rows_of_voco = self.voco.embeddings(self.voco.tokens)
            logits, told = one_pass_logits(self.model, family, rows, features, layouts, rows_of_voco, self.voco.packed)
            parts = [(list(range(len(rows))), logits, told)]
        total, learned, far = labels.new_zeros((), dtype=torch.float32), 0, 0.0
        for group, logits, told in parts:
            assert told is not None
            one, known = _summed(logits, told)
            if dense is not None and known:
                away = known * distillation(
                    VoCoOutput(logits, told, None), dense[group], labels[group], self._recipe.temperature
                )
                far += float(away.detach())
                one = (1 - self._recipe.distil) * one + self._recipe.distil * away
            total, learned = total + one, learned + known
        if not learned:
            raise FoveateError("no label is left to learn from; labels must hold the answer, -100 elsewhere")
        loss = total / (learned if num_items_in_batch is None else num_items_in_batch)
        return {"loss": loss, "numbers": {"distance": far / learned} if dense is not None else {}}

    def memories(self, family: Family, features: Sequence[Tensor], layouts: Sequence[Layout]) -> list[VoCoMemory]:
        """The first pass: one memory per image, with gradients."""
        return read_images(family, features, layouts, self.voco.embeddings(self.voco.tokens), "", "")

    def held(self, row: PromptRow, memories: Sequence[VoCoMemory], count: int) -> VoCoMemory | None:
        """What a row is asked behind: `count` tokens of each of its images; None if it has none."""
        return self.voco.join([memories[image].first(count) for image in row.images]) if row.images else None

    @torch.no_grad()
    def _dense(self, inputs: Mapping[str, Any]) -> Tensor:
        """The teacher's logits, `(B, S, vocabulary)`."""
        teacher: Any = self._teacher[0]
        if teacher is not None:
            return teacher(**inputs).logits
        model: Any = self.model
        if hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                return model(**inputs).logits
        return model(**inputs).logits


def _summed(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """The cross-entropy summed over all labels, and how many there are."""
    known = labels[:, 1:] != IGNORED
    chosen = logits[:, :-1][known].float()
    return nn.functional.cross_entropy(chosen, labels[:, 1:][known], reduction="sum"), chosen.shape[0]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Which texts go together, so that none is padded to more than twice its length.

    >>> alike([9, 12, 60, 10])
    [[0, 1, 3], [2]]
    """
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault(max(4, (length - 1).bit_length()), []).append(number)
    return [groups[size] for size in sorted(groups)]


class VoCoBatches:
    """Makes batches for `VoCoTrainee`: a collator for data loaders.

    Args:
        batches: makes them of whole conversations.
        recipe: whether questions are asked apart, and how many VoCo tokens each sees.
        padding: the tokenizer's padding id.
    """

    def __init__(self, batches: Batches, recipe: Voco, padding: int) -> None:
        self._batches, self._recipe, self._padding = batches, recipe, padding

    def __call__(self, rows: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Make one batch; see `VoCoTrainee.forward` for `behind` and `counts`.

        Raises:
            FoveateError: as `Batches`; or questions are asked apart, and a later one brings an image.
        """
        if not self._recipe.apart:
            return {**self._batches(rows), **self._counts([number for number, _ in rows])}
        parts = [questions_apart(one) for _, one in rows]
        batch = self._batches([(number, each[0]) for (number, _), each in zip(rows, parts)])
        # Rows of text are many and short: they get the padding of the rows with images, which training strips.
        text = [name for name, value in batch.items() if isinstance(value, Tensor) and _per_token(value, batch)]
        made = [{name: batch[name][at : at + 1] for name in text} for at in range(len(rows))]
        behind, turns = list(range(len(rows))), [number for number, _ in rows]
        for at, each in enumerate(parts):
            for turn, one in enumerate(each[1:], start=1):
                # By the base class: subclasses put an image into every row.
                made.append(Batches.row(self._batches, one))
                behind.append(at)
                turns.append(rows[at][0] + turn)
        padded = pad(made, self._padding)
        tokens = int(padded["attention_mask"].sum())
        return {**batch, **padded, "behind": torch.tensor(behind), "tokens": tokens, **self._counts(turns)}

    def _counts(self, turns: Sequence[int]) -> dict[str, Tensor]:
        elastic = self._recipe.elastic
        return {"counts": torch.tensor([elastic[turn % len(elastic)] for turn in turns])} if elastic else {}


def _per_token(value: Tensor, batch: Mapping[str, Any]) -> bool:
    return value.shape == batch["input_ids"].shape


def questions_apart(one: Conversation) -> list[Conversation]:
    """Each turn of the user with its answer as a conversation of its own; the images are the first one's.

    Raises:
        FoveateError: a later turn of the user brings an image.
    """
    system = [message for message in one.messages if message["role"] == "system"]
    found: list[Conversation] = []
    turns: list[Any] = []
    for message in one.messages:
        if message["role"] == "system":
            continue
        if message["role"] == "user" and found and any(part["type"] == "image" for part in message["content"]):
            raise FoveateError(f"{one.name}: a later question brings an image, so it can't be asked apart")
        turns.append(message)
        if message["role"] == "assistant":
            found.append(Conversation(one.name, () if found else one.images, (*system, *turns)))
            turns = []
    return found


def make_voco(model: nn.Module, recipe: Recipe, processor: Any) -> VoCo:
    """The VoCo tokens of a recipe, for a model that is still whole.

    Raises:
        FoveateError: the recipe's words hold no token, or the family can't be read so.
    """
    given = recipe.voco
    assert given is not None
    if given.adapter is not None:
        voco = VoCo.from_pretrained(given.adapter)
        voco.check(model)
        if voco.tokens != given.tokens or voco.features != (recipe.data.features or DENSE):
            raise RecipeError(
                f"voco: the adapter {given.adapter} has {voco.tokens} tokens and reads {voco.features}; the recipe has "
                f"{given.tokens} and {recipe.data.features or DENSE}"
            )
        if (voco.lora is not None) != (recipe.train == "lora"):
            has = "LoRA weights" if voco.lora is not None else "no LoRA weights"
            raise RecipeError(
                f"voco: the adapter {given.adapter} has {has}, which doesn't go with train: {recipe.train}"
            )
        voco.packed = given.packed
        return voco
    start = None
    if given.words is not None:
        start = processor.tokenizer(given.words, add_special_tokens=False)["input_ids"]
        if not start:
            raise RecipeError("voco: words holds no token to start from; write some, or leave it out")
    return VoCo(
        model,
        given.tokens,
        shared=given.shared,
        seed=recipe.seed,
        start=start,
        features=recipe.data.features or DENSE,
        packed=given.packed,
    )


def make_trainee(wrapped: nn.Module, voco: VoCo, recipe: Recipe, directory: Path | None) -> VoCoTrainee:
    """What the trainer trains: the model as the recipe chose its parameters, with VoCo tokens."""
    assert recipe.voco is not None
    if not torch.cuda.is_available():
        # The backward pass of the fused kernel for CPUs takes longer than all the rest of a step.
        model: Any = wrapped.get_base_model() if hasattr(wrapped, "peft_config") else wrapped  # pyright: ignore
        model.set_attn_implementation({"text_config": "eager"})
    if voco.lora is not None:
        _continue_lora(wrapped, voco.lora)
    teacher = None
    if recipe.voco.distil and (recipe.voco.teacher is not None or recipe.train in ("full", "projector")):
        named = recipe.voco.teacher
        teacher = load_model(directory if named is None else Path(named)).eval()
        teacher.requires_grad_(False)
        if recipe.data.features is not None:
            _read_features_alike(teacher, wrapped)
    return VoCoTrainee(wrapped, voco, recipe.voco, teacher)


def _continue_lora(wrapped: nn.Module, folder: Path) -> None:
    """Begin with an adapter's LoRA weights.

    Raises:
        RecipeError: the recipe's have another rank, or stand at other layers.
    """
    from peft import set_peft_model_state_dict

    stored = load_file(folder / LORA_WEIGHTS)
    mine = {n.replace(".default", ""): w.shape for n, w in wrapped.named_parameters() if ".lora_" in n}
    if mine != {name: value.shape for name, value in stored.items()}:
        raise RecipeError(
            f"voco: the LoRA weights in {folder} have another rank or other layers than the recipe's lora"
        )
    set_peft_model_state_dict(wrapped, stored)


def _read_features_alike(teacher: nn.Module, model: nn.Module) -> None:
    """Make the teacher read kept features as the model does."""
    family_of(teacher).read_feature_maps(1, family_of(model).config.image_seq_length)


def save_voco(voco: VoCo, trained: Any, base: nn.Module | None, out: Path) -> Path:
    """Write the adapter to `out/voco`.

    Args:
        voco: as it was trained.
        trained: the model as it was trained, with peft's wrapper if there is one.
        base: the model that the adapter now belongs to, if training has changed it; None if it hasn't.
        out: the run's folder.

    Raises:
        FoveateError: it can't be written.
    """
    if base is not None:
        voco.set_base_model(base)
    adapted = hasattr(trained, "peft_config")
    if adapted:
        # By their whole names: peft shortens them to what tells them apart in the model that it has, which may lack an
        # encoder whose layers have the same names.
        modules = trained.get_base_model().named_modules()
        names = sorted({name.split(".lora_A.")[0] for name, _ in modules if ".lora_A." in name})
        for config in trained.peft_config.values():
            config.target_modules = "|".join(re.escape(name) for name in names)
    return voco.save_pretrained(out / "voco", lora=trained if adapted else None)
