"""The training objective of VoCo tokens: images are compressed into them, and text learns to answer from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from foveate.engine import encode
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.loading import load_model, skeleton
from foveate.tokens import Layout
from foveate.train.batches import Batches, pad
from foveate.train.objectives import Loaded, Objective
from foveate.train.parameters import choose_parameters, match_precision
from foveate.train.prepared import Prepared
from foveate.train.recipe import CHECKPOINTING, Recipe
from foveate.train.settings import DENSE, Counts, Number, RecipeError, Settings
from foveate.train.sources import Conversation
from foveate.voco import VoCo, VoCoMemory
from foveate.voco.adapter import MOST_TOKENS
from foveate.voco.lora import load_lora
from foveate.voco.losses import VoCoOutput, distillation
from foveate.voco.one_pass import one_pass_logits
from foveate.voco.prompt_rows import IGNORED, PromptRow, prompt_rows
from foveate.voco.two_pass import read_images, text_logits

TRAINED_ALONE: Final = "embedding"
"""What a recipe's `train` says for training the VoCo tokens' embeddings and nothing of the model."""


class VoCoSettings(Settings):
    """How images are compressed into VoCo tokens: text sees them, and nothing else of the image."""

    place = "voco"

    tokens: int = Field(1, ge=1, le=MOST_TOKENS)
    """VoCo tokens per image."""
    elastic: Counts = ()
    """How many of them conversations (or questions) see, in turns; without it, all of them always."""
    shared: bool = True
    """One embedding for all VoCo tokens; without it, each has its own. An adapter goes on as it was trained."""
    words: str | None = None
    """Text whose tokens' embeddings the VoCo tokens start from, where each has its own; without it, at random."""
    apart: bool = False
    """Every question of a conversation is asked by itself, after the same image."""
    packed: bool = False
    """VoCo tokens of several images have consecutive positions, for long videos."""
    adapter: str | None = None
    """A trained adapter to go on from, such as one for images on the way to one for clips."""
    two_passes: bool = True
    """Images first, then text with their keys and values as its past; without it, one pass under the mask."""
    distil: Number = Field(0.0, ge=0, le=1, description="a weight")
    """Weight of the divergence from the dense teacher; the cross-entropy has the rest."""
    temperature: Number = Field(1.0, gt=0)
    """Softens student and teacher."""
    teacher: str | None = None
    """A model directory; without it, the model that training starts from."""

    @model_validator(mode="after")
    def _consistent(self) -> VoCoSettings:
        for count in self.elastic:
            if count > self.tokens:
                raise ValueError(f"elastic has {count}, and there are {self.tokens} tokens")
        if self.adapter is not None and self.words is not None:
            raise ValueError("words say where new VoCo tokens start, and adapter brings trained ones; leave one out")
        if self.words is not None and self.shared:
            raise ValueError("words give each VoCo token a start of its own, and shared gives all of them one")
        if self.apart and self.distil:
            raise ValueError("distil compares whole conversations with a dense teacher's, so it excludes apart")
        if not self.two_passes and (self.apart or self.elastic):
            raise ValueError("apart and elastic need two_passes: true")
        return self


class VoCoObjective(Objective):
    """Train VoCo tokens: alone, with LoRA weights on the decoder, or with the model.

    Training two passes, images first and text after their keys and values, is the paper's mask without the work that
    the mask hides.
    """

    name = "voco"
    Settings = VoCoSettings
    alone = TRAINED_ALONE
    staged = False
    file = "voco/voco.json"
    uncounted = (
        "these figures are those of dense training; VoCo tokens add their own, and text is run apart from images"
    )

    def __init__(self, settings: VoCoSettings | None = None) -> None:
        super().__init__(settings)
        self.voco: VoCo | None = None

    @property
    def dense_positions(self) -> bool:
        """Visual tokens of packed images take none after the first image."""
        return not self.settings.packed

    @property
    def unsharded(self) -> str:
        """Two passes depend on a process's images and lengths of texts; a teacher of its own would be whole in each."""
        if self.settings.two_passes:
            return "its two passes are not equally many in all processes; write two_passes: false in voco"
        return "a teacher is not sharded; leave distil out of voco" if self.settings.distil else ""

    def check(self, recipe: Recipe) -> None:
        """Check the rest of the recipe.

        Raises:
            RecipeError: there are stages, or activations are checkpointed, which keep no keys and values.
        """
        if not recipe.dense:
            raise RecipeError("with voco, text sees VoCo tokens alone; leave stages and test out")
        if self.settings.two_passes and any(recipe.trainer.get(key) for key in CHECKPOINTING):
            raise RecipeError(
                "checkpointed activations keep no keys and values for a second pass; write two_passes: false in voco, "
                "or leave them out"
            )

    def check_ready(self, ready: Prepared) -> None:
        """Check what the settings name, and whether it goes with the model.

        Raises:
            FoveateError: adapter or teacher isn't there, the adapter doesn't go with model or recipe, or words hold no
                token.
        """
        if self.settings.adapter is not None:
            adapter_of(self.settings, ready.recipe).check_sizes(ready.skeleton)
        if self.settings.words is not None and ready.processor is not None:
            first_ids(self.settings.words, ready.processor)
        if self.settings.teacher is not None:
            skeleton(self.settings.teacher)

    def keeps_model(self, recipe: Recipe) -> bool:
        """LoRA weights stay in the adapter."""
        return recipe.train in (TRAINED_ALONE, "lora")

    def prepare(self, model: nn.Module, ready: Prepared) -> nn.Module:
        """Make the VoCo tokens for the whole model, and choose what else is trained."""
        self.voco = make_voco(model, ready.recipe, self.settings, ready.processor)
        return choose_parameters(model, ready.recipe)

    def collate(self, batches: Batches, rows: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Make a batch of whole conversations, or of questions asked apart."""
        return VoCoBatches(batches, self.settings)(rows)

    def wrap(self, model: nn.Module, loaded: Loaded) -> VoCoTrainee:
        """Put the VoCo tokens, and a teacher if there is one, beside the model."""
        assert self.voco is not None
        return make_trainee(model, self.voco, loaded.ready.recipe, self.settings)

    def save(self, module: nn.Module, model: nn.Module, loaded: Loaded, out: Path) -> None:
        """Write the adapter to `out/voco`."""
        assert self.voco is not None
        changed = not self.keeps_model(loaded.ready.recipe)
        save_voco(self.voco, model, model if changed else None, out)

    def use(self, ready: Prepared, out: Path) -> str:
        """Say how the adapter is loaded; VoCo tokens are no spec."""
        folder = out / "voco"
        return f'load its VoCo tokens with foveate.VoCo.from_pretrained("{folder}"), or lmms-eval\'s voco={folder}'


class VoCoTrainee(nn.Module):
    """A model and its VoCo tokens as one module: images in, loss of the text after their memories out.

    Args:
        model: the base model, or peft's wrapper around it.
        voco: made for the base model.
        settings: how they are trained.
        teacher: the dense model, which isn't trained; None for the base model without its adapters.
    """

    def __init__(self, model: nn.Module, voco: VoCo, settings: VoCoSettings, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.voco, self._settings = model, voco, settings
        # In a list, so that it isn't a submodule: it is neither trained nor saved.
        self._teacher = [teacher]

    def forward(
        self,
        labels: Tensor,
        behind: Tensor | None = None,
        counts: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """Return the loss of a batch.

        Args:
            labels: `(B, S)` int64.
            behind: `(B,)` int64, the row whose images come before each row's text; None for its own.
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
        dense = self._dense(inputs) if self._settings.distil else None
        if self._settings.two_passes:
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
                    VoCoOutput(logits, told, None), dense[group], labels[group], self._settings.temperature
                )
                far += float(away.detach())
                one = (1 - self._settings.distil) * one + self._settings.distil * away
            total, learned = total + one, learned + known
        if not learned:
            raise FoveateError("no label is left to learn from; labels must hold the answer, -100 elsewhere")
        loss = total / (learned if num_items_in_batch is None else num_items_in_batch)
        return {"loss": loss, "numbers": {"distance": far / learned} if dense is not None else {}}

    def memories(self, family: Family, features: Sequence[Tensor], layouts: Sequence[Layout]) -> list[VoCoMemory]:
        """Run the first pass: one memory per image, with gradients."""
        return read_images(family, features, layouts, self.voco.embeddings(self.voco.tokens), "", "")

    def held(self, row: PromptRow, memories: Sequence[VoCoMemory], count: int) -> VoCoMemory | None:
        """Return the memory before a row's text: `count` tokens of each of its images; None if it has none."""
        return self.voco.join([memories[image].first(count) for image in row.images]) if row.images else None

    @torch.no_grad()
    def _dense(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the teacher's logits, `(B, S, vocabulary)`."""
        teacher: Any = self._teacher[0]
        if teacher is not None:
            return teacher(**inputs).logits
        model: Any = self.model
        if hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                return model(**inputs).logits
        return model(**inputs).logits


def _summed(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the cross-entropy summed over all labels, and how many there are."""
    known = labels[:, 1:] != IGNORED
    chosen = logits[:, :-1][known].float()
    return nn.functional.cross_entropy(chosen, labels[:, 1:][known], reduction="sum"), chosen.shape[0]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Group texts of similar length, so that none is padded to more than twice its length.

    >>> alike([9, 12, 60, 10])
    [[0, 1, 3], [2]]
    """
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault(max(4, (length - 1).bit_length()), []).append(number)
    return [groups[size] for size in sorted(groups)]


class VoCoBatches:
    """Makes batches for `VoCoTrainee`.

    Args:
        batches: makes them of whole conversations.
        settings: whether questions are asked apart, and how many VoCo tokens each sees.
    """

    def __init__(self, batches: Batches, settings: VoCoSettings) -> None:
        self._batches, self._settings = batches, settings

    def __call__(self, rows: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Make one batch; see `VoCoTrainee.forward` for `behind` and `counts`.

        Raises:
            FoveateError: as `Batches`; or questions are asked apart, and a later one brings an image.
        """
        if not self._settings.apart:
            return {**self._batches(rows), **self._counts([one.place for _, one in rows])}
        parts = [questions_apart(one) for _, one in rows]
        batch = self._batches([(number, each[0]) for (number, _), each in zip(rows, parts)])
        # Rows of text are many and short: they are padded like rows with images, and training strips the padding.
        text = [name for name, value in batch.items() if isinstance(value, Tensor) and _per_token(value, batch)]
        made = [{name: batch[name][at : at + 1] for name in text} for at in range(len(rows))]
        behind, turns = list(range(len(rows))), [one.place for _, one in rows]
        for at, each in enumerate(parts):
            for turn, one in enumerate(each[1:], start=1):
                # The base class's method: subclasses put an image into every row.
                made.append(Batches.row(self._batches, one))
                behind.append(at)
                turns.append(rows[at][1].place + turn)
        padded = pad(made, self._batches.padding, self._batches.family)
        tokens = int(padded["attention_mask"].sum())
        return {**batch, **padded, "behind": torch.tensor(behind), "tokens": tokens, **self._counts(turns)}

    def _counts(self, turns: Sequence[int]) -> dict[str, Tensor]:
        elastic = self._settings.elastic
        return {"counts": torch.tensor([elastic[turn % len(elastic)] for turn in turns])} if elastic else {}


def _per_token(value: Tensor, batch: Mapping[str, Any]) -> bool:
    return value.shape == batch["input_ids"].shape


def questions_apart(one: Conversation) -> list[Conversation]:
    """Make each turn of the user, with its answer, a conversation of its own; the images go to the first one.

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


def make_voco(model: nn.Module, recipe: Recipe, given: VoCoSettings, processor: Any) -> VoCo:
    """Make the VoCo tokens of a recipe, for a model that still has its encoder.

    Raises:
        FoveateError: the adapter that they go on from belongs to another model.
    """
    if given.adapter is not None:
        voco = adapter_of(given, recipe)
        voco.check(model)
        voco.packed = given.packed
        voco.features = recipe.data.features or DENSE
        return voco
    return VoCo(
        model,
        given.tokens,
        shared=given.shared,
        seed=recipe.seed,
        start=None if given.words is None else first_ids(given.words, processor),
        features=recipe.data.features or DENSE,
        packed=given.packed,
    )


def first_ids(words: str, processor: Any) -> list[int]:
    """Return the ids of the tokens that VoCo tokens start from.

    Raises:
        RecipeError: there is none.
    """
    found = processor.tokenizer(words, add_special_tokens=False)["input_ids"]
    if not found:
        raise RecipeError("voco: words holds no token to start from; write some, or leave it out")
    return found


def adapter_of(given: VoCoSettings, recipe: Recipe) -> VoCo:
    """Load the adapter that a recipe goes on from.

    Raises:
        FoveateError: it isn't there or is damaged, or the recipe says something else of it.
    """
    assert given.adapter is not None
    voco = VoCo.from_pretrained(given.adapter)
    has = f"voco: the adapter {given.adapter} has"
    if voco.tokens != given.tokens:
        raise RecipeError(f"{has} {voco.tokens} tokens and the recipe has {given.tokens}; write tokens: {voco.tokens}")
    shared = voco.embedding.shape[0] == 1
    if voco.tokens > 1 and shared != given.shared:
        what = "one embedding for all its tokens" if shared else "an embedding for each of its tokens"
        raise RecipeError(f"{has} {what}; write shared: {str(shared).lower()}")
    if (voco.lora is not None) != (recipe.train == "lora"):
        what = "LoRA weights" if voco.lora is not None else "no LoRA weights"
        raise RecipeError(f"{has} {what}, which doesn't go with train: {recipe.train}")
    if voco.lora is not None:
        rank = max(delta.rank for delta in load_lora(voco.lora).values())
        if rank > recipe.lora.rank:
            raise RecipeError(
                f"{has} LoRA weights of rank {rank} and the recipe's lora has {recipe.lora.rank}; write rank: {rank} "
                "or more"
            )
    return voco


def make_trainee(wrapped: nn.Module, voco: VoCo, recipe: Recipe, settings: VoCoSettings) -> VoCoTrainee:
    """Put VoCo tokens, and a teacher if the settings ask for one, beside a model whose parameters are chosen."""
    if not torch.cuda.is_available():
        # On CPUs the fused kernel's backward pass takes longer than the rest of a step.
        model: Any = wrapped.get_base_model() if hasattr(wrapped, "peft_config") else wrapped  # pyright: ignore
        model.set_attn_implementation({"text_config": "eager"})
    if voco.lora is not None:
        _continue_lora(wrapped, voco.lora)
    teacher = None
    if settings.distil and (settings.teacher is not None or recipe.train in ("full", "projector")):
        named = settings.teacher
        teacher = load_model(**recipe.source) if named is None else load_model(named)
        teacher.requires_grad_(False)
        match_precision(teacher, recipe.precision)
        if recipe.data.features is not None:
            _read_features_alike(teacher, wrapped)
    return VoCoTrainee(wrapped, voco, settings, teacher)


def _continue_lora(wrapped: Any, folder: Path) -> None:
    """Start from an adapter's LoRA weights; ranks that it lacks add nothing at first.

    Raises:
        RecipeError: the recipe's LoRA weights are at other layers.
    """
    model, deltas = wrapped.get_base_model(), load_lora(folder)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    if layers.keys() != deltas.keys():
        raise RecipeError(f"voco: the LoRA weights in {folder} are at other layers than the recipe's lora")
    for name, delta in deltas.items():
        (down,), (up,) = layers[name].lora_A.values(), layers[name].lora_B.values()
        (scale,) = layers[name].scaling.values()
        with torch.no_grad():
            down.weight[: delta.rank] = delta.down
            up.weight.zero_()
            up.weight[:, : delta.rank] = delta.up / scale


def _read_features_alike(teacher: nn.Module, model: nn.Module) -> None:
    """Let the teacher read kept features as the model does."""
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
