"""Train the reference VLM: ``python -m foveate.train.reference RECIPE [--data DIR] [--out runs/reference]``.

The same command goes on after an interruption, at the latest complete checkpoint. Under ``torchrun --nproc-per-node 2``
two processes of one thread each share every batch.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from foveate.reference import PATH
from foveate.scenes import SKILLS
from foveate.train import attention
from foveate.train.build import build_config, deepen, initialise_decoder, save_directory
from foveate.train.decoder import DecoderTrainer, SymbolTable, answer_loss, attention_mask, pack, pick_patches
from foveate.train.encoder import EncoderTrainer, Mixture, encoder_loss, initialise, pixel_values, windows
from foveate.train.loop import Schedule, latest_checkpoint, start_world, train, world
from foveate.train.pixels import Pixels
from foveate.train.stages import Recipe, RecipeError, Stage, read_recipe
from foveate.train.targets import GRID, dense_targets, letter_targets, presence

ALL_SKILLS: tuple[str, ...] = (*SKILLS, "digits", "photos", "easy_open", "easy_yes_no")


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


class _EncoderStage(nn.Module):
    """Forward of an encoder stage: logits of the dense targets, of presence, and the projector's output."""

    def __init__(self, trainee: Trainee, align: bool) -> None:
        super().__init__()
        self.parts, self.projector, self.align = trainee.encoder(), trainee.model.model.multi_modal_projector, align

    def forward(self, images: Tensor, rows: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        h = self.parts.features(images, rows)
        # The projector follows the encoder here; it does not steer it.
        return self.parts.told(h), self.projector(h[:, 1:].detach()) if self.align else None


def _distance(visual: Tensor, symbols: Tensor, dense: Tensor) -> Tensor:
    """Mean squared distance in units of the symbols' own spread; centres count four times."""
    weight = 1.0 + 3.0 * (dense[..., 1] == 1).float()
    each = (visual.float() - symbols).square().mean(-1) / symbols.var().clamp(min=1e-6)
    return (each * weight).sum() / weight.sum()


def _encoder_loss(trainee: Trainee, stage: Stage, draw: Mixture, compiled: bool):  # noqa: ANN202
    net = _EncoderStage(trainee, stage.align > 0)
    forward = torch.compile(net, dynamic=False) if compiled else net
    rank, size = world()
    local = stage.batch // size

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        start = (step * size + rank) * (local // stage.per_scene)
        w = windows(draw, start, local, stage.side, stage.per_scene)
        with torch.autocast("cpu", torch.bfloat16):
            told, visual = forward(w.images, w.rows)
        loss, numbers = encoder_loss(told, w.dense, w.letters, w.present)
        if visual is not None:
            far = _distance(visual, trainee.symbols(w.dense).detach(), w.dense)
            numbers["far"] = far.item()
            loss = loss + stage.align * far
        return loss, numbers

    return loss_of


class _AnswerStage(nn.Module):
    """Forward of an answer stage on features: encoder (with or without gradients), projector, decoder."""

    def __init__(self, trainee: Trainee, stage: Stage) -> None:
        super().__init__()
        self.parts, self.projector = trainee.encoder(), trainee.model.model.multi_modal_projector
        self.decoder, self.train_encoder = DecoderTrainer(trainee.model), stage.train_encoder

    def see(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.parts.features(images, rows)

    def forward(
        self, patches: Tensor, places: Tensor, ids: Tensor, positions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        visual = self.projector(patches)
        return self.decoder(visual, places, ids, positions, mask), visual


def _answer_loss(trainee: Trainee, stage: Stage, draw: Mixture, compiled: bool):  # noqa: ANN202
    rank, size = world()
    local = stage.batch // size
    net = _AnswerStage(trainee, stage)
    if compiled:
        # Layer by layer: one compilation serves them all, and twelve layers at once take minutes.
        for layer in (*trainee.model.model.language_model.layers, *trainee.model.model.vision_tower.encoder.layers):
            layer.compile(dynamic=False)
    all_rows = torch.arange(GRID * GRID)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        start = (step * size + rank) * local
        scenes = [draw(start + i) for i in range(local)]
        rng, noise = random.Random(start), np.random.default_rng(start)
        text = pack(scenes, stage.text, ALL_SKILLS, rng, captions=stage.captions)
        whole = [dense_targets(s.things) for s in scenes]
        flat = np.stack([w.reshape(GRID * GRID, -1) for w in whole])
        if stage.patches < GRID * GRID:
            chosen = np.stack([pick_patches(f, stage.patches, noise) for f in flat])
        else:
            chosen = np.broadcast_to(np.arange(GRID * GRID), flat.shape[:2]).copy()
        places, dense = torch.from_numpy(chosen), torch.from_numpy(np.take_along_axis(flat, chosen[..., None], 1))
        mask = attention_mask(text.segment, stage.patches, torch.bfloat16)
        extra = 0.0
        numbers: dict[str, float] = {}
        with torch.autocast("cpu", torch.bfloat16):
            if stage.visual == "symbols":
                # A real encoder is unsure of things at times: some values are unknown, and all tokens are noisy.
                unsure = torch.from_numpy(noise.random(dense.shape) < 0.02)
                unsure[..., -2:] = False
                visual = trainee.symbols(dense.masked_fill(unsure, -100))
                shake = torch.randn(visual.shape, generator=torch.Generator().manual_seed(start))
                visual = visual + 0.03 * shake
                logits = net.decoder(visual, places, text.ids, text.positions, mask)
            else:
                images = torch.from_numpy(np.stack([pixel_values(s.image) for s in scenes]))
                rows = all_rows.expand(local, -1)
                with torch.set_grad_enabled(stage.train_encoder):
                    h = net.see(images, rows)
                patches = h[:, 1:].gather(1, places[..., None].expand(-1, -1, h.shape[-1]))
                logits, visual = net(patches, places, text.ids, text.positions, mask)
                if stage.train_encoder:
                    letters = torch.from_numpy(np.stack([letter_targets(s.things).reshape(-1) for s in scenes]))
                    present = torch.from_numpy(np.stack([presence(w) for w in whole]))
                    told, found = encoder_loss(net.parts.told(h), torch.from_numpy(flat), letters, present)
                    numbers.update({k: found[k] for k in ("shape", "word", "units", "photo", "cls")})
                    numbers["dense"] = told.item()
                    extra = 0.15 * told
        loss, answered = answer_loss(logits, text, ALL_SKILLS)
        numbers["answers"] = loss.item()
        if stage.visual == "features" and stage.align:
            far = _distance(visual, trainee.symbols(dense).detach(), dense)
            numbers["far"] = far.item()
            extra = extra + stage.align * far
        return loss + extra, {**numbers, **answered}

    return loss_of


def _select(trainee: Trainee, stage: Stage) -> None:
    """Let a stage train its own parts and nothing else."""
    trainee.requires_grad_(False)
    m = trainee.model.model
    if stage.objective == "encoder":
        for part in (m.vision_tower, *trainee.heads()):
            part.requires_grad_(True)
        m.multi_modal_projector.requires_grad_(stage.align > 0)
        return
    m.language_model.requires_grad_(True)
    if stage.visual == "symbols":
        trainee.symbols.requires_grad_(stage.train_symbols)
        return
    m.multi_modal_projector.requires_grad_(True)
    if stage.train_encoder:
        for part in (m.vision_tower, *trainee.heads()):
            part.requires_grad_(True)


def _load(trainee: Trainee, path: Path) -> None:
    """Load what a checkpoint has and this trainee knows."""
    _, unexpected = trainee.load_state_dict(load_file(path), strict=False)
    wrong = [k for k in unexpected if "lm_head" not in k]
    if wrong:
        raise RecipeError(f"{path} holds weights of another model ({wrong[0]})")


def _written_out(trainee: Trainee) -> None:
    """Train with attention written out: 1.7 times as fast on a CPU as the fused kernel, whose backward pass is slow."""
    attention.register()
    trainee.model.set_attn_implementation({"vision_config": "eager", "text_config": attention.NAME})


def begin(recipe: Recipe, layers: int) -> Trainee:
    """Make the trainee of a recipe's first stage: fresh, or from a model directory."""
    torch.manual_seed(recipe.seed)
    if recipe.init_from:
        folder = PATH if recipe.init_from == "shipped" else Path(recipe.init_from)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        trainee = Trainee(model)
        rest = folder.parent / "training.safetensors"
        if rest.exists():
            trainee.load_state_dict({k: v.float() for k, v in load_file(rest).items()}, strict=False)
        return trainee
    config = build_config(
        width=recipe.width, heads=recipe.heads, encoder_layers=recipe.encoder_layers, decoder_layers=layers
    )
    model = LlavaForConditionalGeneration(config)
    initialise(model.model.vision_tower)
    initialise_decoder(model)
    return Trainee(model)


def run(recipe: Recipe, out: Path, data: Path | None = None, *, compiled: bool = True) -> LlavaForConditionalGeneration:
    """Run a recipe to its end, from wherever the last run was stopped; returns the trained model.

    Every stage keeps its checkpoints in ``out/<stage>``; the finished model goes to ``out/model``.
    """
    rank, size = world()
    out.mkdir(parents=True, exist_ok=True)
    pixels = Pixels(data)
    if not pixels.kinds and rank == 0:
        print("no real pictures: training on scenes alone (--data DIR names the folder that holds them)", flush=True)
    layers = next((s.layers for s in recipe.stages if s.objective == "answers"), 12)
    trainee = begin(recipe, layers)
    for number, stage in enumerate(recipe.stages):
        _written_out(trainee)
        if stage.batch % (size * stage.per_scene):
            raise RecipeError(f"stage {stage.name}: batch {stage.batch} does not divide by {size} processes")
        if stage.objective == "answers" and stage.layers > len(trainee.model.model.language_model.layers):
            deeper = Trainee(deepen(trainee.model, stage.layers))
            keep = {k: v for k, v in trainee.state_dict().items() if not k.startswith("model.")}
            deeper.load_state_dict(keep, strict=False)
            trainee = deeper
            _written_out(trainee)
        folder = out / stage.name
        done = folder / "done.json"
        if done.exists():
            found = latest_checkpoint(folder)
            if found:
                _load(trainee, found / "model.safetensors")
            continue
        _select(trainee, stage)
        torch.manual_seed(recipe.seed * 1000 + number * 10 + rank)
        draw = Mixture(pixels, stage.real, recipe.seed * 100 + number, tuple(stage.kinds.items()), stage.boost)
        make = _encoder_loss if stage.objective == "encoder" else _answer_loss
        schedule = Schedule(stage.steps, stage.lr, stage.warmup, stage.fall)
        seconds = train(
            stage.name, trainee, make(trainee, stage, draw, compiled), schedule, folder, save_every=recipe.save_every
        )
        if rank == 0:
            partial = done.with_suffix(".partial")
            partial.write_text(json.dumps({"steps": stage.steps, "seconds": round(seconds), "time": time.time()}))
            partial.rename(done)
    if rank == 0:
        save_directory(trainee.model, out / "model")
        # What only training needs, beside the model: a later run with ``init_from`` finds it there.
        rest = {k: v.to(torch.bfloat16).contiguous() for k, v in trainee.state_dict().items() if k[:6] != "model."}
        save_file(rest, out / "training.partial")
        (out / "training.partial").rename(out / "training.safetensors")
    return trainee.model


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m foveate.train.reference", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, help="folder of real pictures (mnist, cifar10, easy_vqa)")
    parser.add_argument("--out", type=Path, default=Path("runs/reference"))
    given = parser.parse_args(arguments)
    start_world()
    try:
        recipe = read_recipe(given.recipe)
        run(recipe, given.out, given.data or (Path(recipe.data) if recipe.data else None))
    except (RecipeError, FileNotFoundError) as error:
        raise SystemExit(f"{error}") from None


if __name__ == "__main__":
    main()
