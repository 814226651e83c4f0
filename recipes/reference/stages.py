"""What the stages of the reference model learn: batches made from numbers alone, and the loss of each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recipes.reference.decoder import DecoderTrainer, SymbolTable, Text, answer_loss, attention_mask, pack, pick_patches
from recipes.reference.encoder import EncoderTrainer, Mixture, encoder_loss, pixel_values, windows
from recipes.reference.recipe import Stage
from recipes.reference.targets import GRID, dense_targets, letter_targets, presence
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration

from foveate.scenes import SKILLS

ALL_SKILLS: tuple[str, ...] = (*SKILLS, "digits", "photos", "easy_open", "easy_yes_no")


class Numbers(Dataset[int]):
    """The whole numbers below a length: scenes are drawn from their numbers."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class Trainee(nn.Module):
    """The model and what only training needs: the encoder's heads and the table of symbols."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        heads = EncoderTrainer(model.model.vision_tower)
        self.norm, self.head, self.presence, self.letters = heads.norm, heads.head, heads.presence, heads.letters
        self.symbols = SymbolTable(model.model.language_model.embed_tokens.embedding_dim)

    def heads(self) -> list[nn.Module]:
        """The parts that only the encoder's objective needs."""
        return [self.norm, self.head, self.presence, self.letters]

    def encoder(self) -> EncoderTrainer:
        """The encoder's trainer over this trainee's own parts."""
        out = EncoderTrainer.__new__(EncoderTrainer)
        nn.Module.__init__(out)
        out.encoder, out.norm, out.head = self.model.model.vision_tower, self.norm, self.head
        out.presence, out.letters = self.presence, self.letters
        return out


def distance(visual: Tensor, symbols: Tensor, dense: Tensor) -> Tensor:
    """Mean squared distance in units of the symbols' own spread; centres count four times."""
    weight = 1.0 + 3.0 * (dense[..., 1] == 1).float()
    each = (visual.float() - symbols).square().mean(-1) / symbols.var().clamp(min=1e-6)
    return (each * weight).sum() / weight.sum()


class EncoderObjective(nn.Module):
    """An encoder stage: dense targets, letters and presence; with `align`, the projector learns the symbols."""

    def __init__(self, trainee: Trainee, stage: Stage) -> None:
        super().__init__()
        self.trainee, self.align = trainee, stage.align

    def forward(
        self, images: Tensor, patches: Tensor, dense: Tensor, letters: Tensor, present: Tensor
    ) -> dict[str, Any]:
        """The loss of a batch of windows, and numbers for the log."""
        parts = self.trainee.encoder()
        with torch.autocast(images.device.type, torch.bfloat16):
            h = parts.features(images, patches)
            told = parts.told(h)
            # The projector follows the encoder here; it does not steer it.
            visual = self.trainee.model.model.multi_modal_projector(h[:, 1:].detach()) if self.align else None
        loss, numbers = encoder_loss(told, dense, letters, present)
        if visual is not None:
            far = distance(visual, self.trainee.symbols(dense).detach(), dense)
            numbers["far"] = far.item()
            loss = loss + self.align * far
        return {"loss": loss, "numbers": numbers}


class EncoderBatches:
    """Makes the batches of an encoder stage from the numbers of its scenes."""

    def __init__(self, stage: Stage, draw: Mixture) -> None:
        self.stage, self.draw = stage, draw

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The windows of these scenes, which follow each other."""
        count = len(numbers) * self.stage.per_scene
        w = windows(self.draw, numbers[0], count, self.stage.side, self.stage.per_scene)
        tensors = {"images": w.images, "patches": w.rows, "dense": w.dense, "letters": w.letters, "present": w.present}
        return {"rows": list(numbers), **tensors}


class AnswerObjective(nn.Module):
    """An answer stage: right answers and captions, on symbols or on what encoder and projector make of pixels."""

    def __init__(self, trainee: Trainee, stage: Stage) -> None:
        super().__init__()
        self.trainee, self.stage = trainee, stage

    def forward(
        self, places: Tensor, dense: Tensor, text: dict[str, Tensor], mask: Tensor, **more: Tensor
    ) -> dict[str, Any]:
        """The loss of a batch of images with their packed questions, and numbers for the log."""
        stage, trainee = self.stage, self.trainee
        model = trainee.model
        decoder = DecoderTrainer(model)
        extra: Tensor | float = 0.0
        numbers: dict[str, float] = {}
        with torch.autocast(places.device.type, torch.bfloat16):
            if stage.visual == "symbols":
                visual = trainee.symbols(dense.masked_fill(more["unsure"], -100)) + 0.03 * more["shake"]
            else:
                parts, images = trainee.encoder(), more["images"]
                every = torch.arange(GRID * GRID, device=images.device).expand(len(images), -1)
                with torch.set_grad_enabled(stage.train_encoder):
                    h = parts.features(images, every)
                patches = h[:, 1:].gather(1, places[..., None].expand(-1, -1, h.shape[-1]))
                visual = model.model.multi_modal_projector(patches)
                if stage.train_encoder:
                    told, found = encoder_loss(parts.told(h), more["whole"], more["letters"], more["present"])
                    numbers.update({k: found[k] for k in ("shape", "word", "units", "photo", "cls")})
                    numbers["dense"] = told.item()
                    extra = 0.15 * told
            logits = decoder(visual, places, text["ids"], text["positions"], mask)
        loss, answered = answer_loss(logits, Text(**text), ALL_SKILLS)
        numbers["answers"] = loss.item()
        if stage.visual == "features" and stage.align:
            far = distance(visual, trainee.symbols(dense).detach(), dense)
            numbers["far"] = far.item()
            extra = extra + stage.align * far
        return {"loss": loss + extra, "numbers": {**numbers, **answered}}


class AnswerBatches:
    """Makes the batches of an answer stage from the numbers of its scenes."""

    def __init__(self, stage: Stage, draw: Mixture, width: int) -> None:
        self.stage, self.draw, self.width = stage, draw, width

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """These scenes, their questions packed, and which patches the decoder sees."""
        stage, first = self.stage, numbers[0]
        scenes = [self.draw(number) for number in numbers]
        rng, noise = random.Random(first), np.random.default_rng(first)
        text = pack(scenes, stage.text, ALL_SKILLS, rng, captions=stage.captions)
        whole = [dense_targets(s.things) for s in scenes]
        flat = np.stack([w.reshape(GRID * GRID, -1) for w in whole])
        if stage.patches < GRID * GRID:
            chosen = np.stack([pick_patches(f, stage.patches, noise) for f in flat])
        else:
            chosen = np.broadcast_to(np.arange(GRID * GRID), flat.shape[:2]).copy()
        dense = torch.from_numpy(np.take_along_axis(flat, chosen[..., None], 1))
        batch: dict[str, Any] = {
            "rows": list(numbers),
            "places": torch.from_numpy(chosen),
            "dense": dense,
            "text": vars(text),
            "mask": attention_mask(text.segment, stage.patches, torch.bfloat16),
        }
        if stage.visual == "symbols":
            # A real encoder is unsure of things at times: some values are unknown, and all tokens are noisy.
            unsure = torch.from_numpy(noise.random(dense.shape) < 0.02)
            unsure[..., -2:] = False
            shake = torch.randn(*dense.shape[:2], self.width, generator=torch.Generator().manual_seed(first))
            return {**batch, "unsure": unsure, "shake": shake}
        batch["images"] = torch.from_numpy(np.stack([pixel_values(s.image) for s in scenes]))
        if stage.train_encoder:
            batch["whole"] = torch.from_numpy(flat)
            batch["letters"] = torch.from_numpy(np.stack([letter_targets(s.things).reshape(-1) for s in scenes]))
            batch["present"] = torch.from_numpy(np.stack([presence(w) for w in whole]))
        return batch
