"""Look inside adapters: which tokens stay at each layer, which of them by their place alone, and pictures of that."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from atp_answers import answers, batch_of
from atp_configurations import Configuration
from PIL import Image

import foveate
from foveate.families import family_of
from foveate.methods.atp import ATPLayer
from foveate.plan import Plan
from foveate.scenes import test_set
from foveate.tokens import Layout, Segment, Text
from foveate.train.batches import Batches
from foveate.view import Panel, draw, save_picture


@dataclass(frozen=True)
class RecordingLayer(ATPLayer):
    """The method at one layer of an adapter, which records what it keeps and why; specs can't name it.

    Attributes:
        slots: per plan, the tokens that it kept, counted in the whole image.
        by_place: per image, how many tokens stay by their place alone.
    """

    slots: list[torch.Tensor] = field(default_factory=list, compare=False)
    by_place: list[int] = field(default_factory=list, compare=False)

    def plan(self, tokens: Any) -> Any:
        plan = super().plan(tokens)
        self.slots.append(plan.slot if tokens.origin is None else tokens.origin.slot.gather(1, plan.slot))
        redundancy, score_statistics = self.scores(tokens)
        theta_r, theta_s = self.predicted(score_statistics, tokens.signals[Text()][:, -1])
        self.by_place.extend(((self.spatial(tokens) > theta_s) & (redundancy <= theta_r)).sum(dim=1).tolist())
        return plan

    @classmethod
    def layers_of(cls, adapter: foveate.ATP, mean: int) -> list[RecordingLayer]:
        """Return all layers of an adapter, asked for a mean."""
        shift = adapter.shift(mean / 576)
        return [cls(adapter=adapter, number=number, shift=shift) for number in range(len(adapter.layers))]


@torch.no_grad()
def tokens_by_place(work: Path, questions: int, skip: int) -> dict[str, Any]:
    """Return per adapter and layer how often a grid is open, and how many tokens stay by their place alone.

    Args:
        work: the folder of the adapters.
        questions: how many.
        skip: the number of the first test scene.
    """
    model, processor = foveate.reference()
    collate = Batches(processor, family_of(model))
    found = {}
    for name in ("144-tokens", "open"):
        if (work / name / "atp" / "atp.json").exists():
            adapter = foveate.ATP.from_pretrained(work / name / "atp")
            layers = RecordingLayer.layers_of(adapter, 144)
            spec = foveate.Spec(tuple(foveate.Step(layer) for layer in layers))
            for scene in test_set(questions, skip):
                batch = batch_of(scene, collate)
                encoded = foveate.encode(model, {"pixel_values": batch["pixel_values"][:1]})
                outputs = foveate.engine.encoder_outputs(model, encoded.pick([0] * len(scene.questions)))
                answers(model, batch, outputs, Configuration(spec), scene)
            found[name] = [
                {
                    "layer": number,
                    "open": statistics.fmean(count > 0 for count in layer.by_place),
                    "tokens": statistics.fmean(layer.by_place),
                }
                for number, layer in zip(adapter.layers, layers, strict=True)
            ]
    return found


@torch.no_grad()
def draw_kept(work: Path, path: Path, questions: int, skip: int) -> None:
    """Draw the tokens that stay of three scenes, from the emptiest to the fullest.

    Args:
        work: the folder of the adapters.
        path: of the picture.
        questions: from how many the scenes are chosen.
        skip: the number of the first test scene.
    """
    model, processor = foveate.reference()
    collate = Batches(processor, family_of(model))
    adapter = foveate.ATP.from_pretrained(work / "144-tokens" / "atp")
    # The same kind of question about all of them.
    asked = [
        (scene, question)
        for scene in test_set(questions, skip)
        for question in scene.questions
        if question.skill == "count"
    ]
    asked.sort(key=lambda pair: len(pair[0].things))
    sheets = []
    for scene, question in (asked[0], asked[len(asked) // 2], asked[-1]):
        batch = batch_of(replace(scene, questions=(question,)), collate)
        layers = RecordingLayer.layers_of(adapter, 144)
        outputs = foveate.engine.encoder_outputs(model, foveate.encode(model, {"pixel_values": batch["pixel_values"]}))
        call = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with foveate.apply(model, foveate.Spec(tuple(foveate.Step(layer) for layer in layers))) as applied:
            model(**call, mm_encoder_outputs=outputs, use_cache=False)
        (image,) = applied.report().images
        layout = Layout((Segment(1, 24, 24),))
        ends = [*(layer - 1 for layer in adapter.layers), len(image.layers) - 1]
        panels = [Panel(layout, f"layers 0 to {ends[0]}", "all 576 tokens")]
        for begin, end, layer in zip(adapter.layers, ends[1:], layers, strict=True):
            (slot,) = layer.slots
            panels.append(Panel(layout, f"layers {begin} to {end}", f"{slot.shape[1]} tokens", Plan(slot=slot)))
        things = f"{len(scene.things)} things" if len(scene.things) > 1 else "one thing"
        heading = f"{question.text}  ({things}: {image.mean_over_layers:.0f} tokens per layer)"
        sheets.append(draw(scene.image, panels, heading, side=300))
    picture = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)))
    top = 0
    for sheet in sheets:
        picture.paste(sheet, (0, top))
        top += sheet.height
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(picture, path)
