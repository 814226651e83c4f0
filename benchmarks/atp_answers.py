"""Answer test questions under every configuration of benchmarks/atp.py, and count tokens per layer.

An answer is right if the model's most likely token is right at each step up to the end of the answer. Prompt and answer
go through the model at once, and the plan sees the prompt alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from atp_configurations import Configuration, file_stem

import foveate
from foveate.engine import signals
from foveate.families import family_of
from foveate.files import write_text
from foveate.loading import load
from foveate.prompts import question_messages
from foveate.scenes import Scene, test_set
from foveate.train.batches import IGNORE, Batches
from foveate.train.sources import Conversation


@torch.no_grad()
def measure(chosen: Mapping[str, Configuration], folder: Path, questions: int, skip: int) -> None:
    """Append answers to one file per configuration, scene by scene; what is there is skipped.

    Args:
        chosen: configurations by name.
        folder: of the files.
        questions: how many.
        skip: the number of the first test scene.
    """
    model, processor = foveate.reference()
    trained = {each.model: load(each.model)[0] for each in chosen.values() if each.model is not None}
    collate = Batches(processor, family_of(model))
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{file_stem(name)}.jsonl" for name in chosen}
    done = {name: Counter(line["scene"] for line in lines_of(path)) for name, path in files.items()}
    for number, scene in enumerate(test_set(questions, skip)):
        missing = [name for name in chosen if done[name][scene.id] < len(scene.questions)]
        for name in missing:
            if done[name][scene.id]:
                # An earlier run asked fewer questions, and stopped in this scene.
                kept = [line for line in files[name].read_text().splitlines() if json.loads(line)["scene"] != scene.id]
                write_text(files[name], "".join(f"{line}\n" for line in kept))
        if not missing:
            continue
        batch = batch_of(scene, collate)
        # All models have the same vision encoder: LoRA trains the decoder alone.
        encoded = foveate.encode(model, {"pixel_values": batch["pixel_values"][:1]})
        rows = len(batch["labels"])
        for name in missing:
            configuration = chosen[name]
            used = model if configuration.model is None else trained[configuration.model]
            outputs = foveate.engine.encoder_outputs(used, encoded.pick([0] * rows))
            lines = answers(used, batch, outputs, configuration, scene)
            with files[name].open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{number} {scene.id} {len(missing)} configurations", flush=True)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read a file of answers; a missing one has none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def batch_of(scene: Scene, collate: Batches) -> dict[str, Any]:
    """Return all questions about a scene with their answers, one per row."""
    rows = []
    for question in scene.questions:
        messages = (
            *question_messages(question.text),
            {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
        )
        rows.append((0, Conversation(scene.id, (scene.image,), messages)))
    return collate(rows)


def answers(
    model: Any, batch: dict[str, Any], outputs: Any, configuration: Configuration, scene: Scene
) -> list[dict[str, Any]]:
    """Return per question whether the answer is right, and the tokens in each layer.

    Args:
        model: is asked.
        batch: of all questions about the scene.
        outputs: of the vision encoder, for each row.
        configuration: what is applied.
        scene: is asked about.
    """
    call = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    call |= {"mm_encoder_outputs": outputs, "use_cache": False}
    received = signals.logits_received
    signals.logits_received = logits_given if configuration.logits_given else received
    try:
        if configuration.spec is None:
            logits, layers = model(**call).logits, [(576,) * 12] * len(batch["labels"])
        else:
            with foveate.apply(model, configuration.spec) as applied:
                logits = model(**call).logits
            layers = [image.layers for image in applied.report().images]
    finally:
        signals.logits_received = received
    labels = batch["labels"][:, 1:]
    right = ((logits[:, :-1].argmax(dim=-1) == labels) | (labels == IGNORE)).all(dim=1).tolist()
    return [
        {
            "scene": scene.id,
            "things": len(scene.things),
            "kind": scene.kind,
            "skill": question.skill,
            "right": bool(is_right),
            "layers": list(tokens),
        }
        for question, is_right, tokens in zip(scene.questions, right, layers, strict=True)
    ]


def logits_given(query: Any, key: Any, scale: float, weight: Any = None) -> Any:
    """Return the mean pre-softmax logit that each token gives to those at or before it: the other reading of Eq. 3."""
    before = key.float().cumsum(dim=1) / torch.arange(1, key.shape[1] + 1)[:, None, None]
    before = before.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    return (query.float() * before).sum(dim=(2, 3)) * (scale / query.shape[2])
