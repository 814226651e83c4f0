"""Ask VoCo memories of streams: order of frames, one moment among many, bytes and time beside all visual tokens."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import say
from PIL import Image
from torch import Tensor
from voco_answers import embedded_model, processor
from voco_rivals import prefix_memories
from voco_times import QUESTION, question_after, ratio

import foveate
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.engine import compress, encode
from foveate.families import Family, family_of
from foveate.files import write_json
from foveate.prompts import question_inputs
from foveate.scenes import clip, test_set
from foveate.scenes.clips import Clip
from foveate.transformers_api import cache_argument
from foveate.voco import VoCo, VoCoMemory
from foveate.voco.embeddings import embedding_table
from foveate.voco.prompt_rows import PromptRow, padded_text, prompt_rows
from foveate.voco.two_pass import memory_cache

LENGTHS = (4, 16, 64)
"""Segments of a stream; each is one frame."""
COUNTS = (1, 8)
"""VoCo tokens per segment."""
KINDS = {"lane": (("way", "first"), 16), "change": (("change",), 64), "glimpse": (("glimpse",), 64)}
"""Kinds of clips: the skills that are asked for, and the most segments, since in a lane all frames differ."""
SKILLS = tuple(skill for skills, _ in KINDS.values() for skill in skills)
"""All but the last need the order; the last is one moment among all."""
VISUAL = 512
"""Visual tokens of a whole stream that the model itself is given, for comparison."""


def answers(clips: int, folder: Path) -> list[dict[str, Any]]:
    """Return one row per length and skill: shares of exact answers with intervals, in order and shuffled.

    Args:
        clips: of each kind and length.
        folder: takes one file per clip, so that an interrupted run goes on.
    """
    made: list[dict[str, Any]] = []
    model, voco = embedded_model(), VoCo.from_pretrained("shipped")
    for seed in range(clips):
        target = folder / f"stream-clip-{seed}.json"
        if not target.exists():
            write_json(target, _asked(model, voco, seed))
            say(f"asked about clip {seed + 1} of {clips}, of every kind and length")
        made.append(json.loads(target.read_text(encoding="utf-8")))
    return [_row(length, skill, made) for length in LENGTHS for skill in SKILLS if f"{length} {skill}" in made[0]]


def _asked(model: Any, voco: VoCo, seed: int) -> dict[str, Any]:
    """Return whether each question about the clips of one seed is answered exactly, and what the answers are."""
    found: dict[str, Any] = {}
    for length in LENGTHS:
        for kind, (skills, longest) in KINDS.items():
            if length > longest:
                continue
            one = clip(seed, split="test", frames=length, kind=kind)
            questions = [question for question in one.questions if question.skill in skills]
            for question in questions:
                found[f"{length} {question.skill}"] = {"answer": question.answer}
            for name, given in _clip_answers(model, voco, one, [question.text for question in questions]):
                for question, answer in zip(questions, given, strict=True):
                    found[f"{length} {question.skill}"][name] = int(answer == question.answer)
    return found


def _clip_answers(model: Any, voco: VoCo, one: Clip, questions: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the answers from each kind of memory of a clip, in order and shuffled. Each frame is encoded once."""
    shown = list({id(frame): frame for frame in one.frames}.values())
    number = {id(frame): place for place, frame in enumerate(shown)}
    memories, encoded = _read(model, voco, shown)
    for order, frames in (("in order", one.frames), ("shuffled", one.shuffled().frames)):
        places = [number[id(frame)] for frame in frames]
        for count in COUNTS:
            first, *rest = (memories[place].first(count) for place in places)
            memory = first
            for segment in rest:
                memory = memory.append(segment, packed=True)
            yield (
                f"{order} {count}",
                voco.generate(model, [memory] * len(questions), questions, processor(), max_new_tokens=4),
            )
        spec = f"cluster:{VISUAL // len(places)}:positions=pack"
        found = []
        for question in questions:
            blank = [Image.new("RGB", (16, 16))] * len(places)
            inputs = question_inputs(processor(), blank, question)
            short = compress(model, inputs, spec, encoded=encoded.pick(places))
            ids = model.generate(**short, max_new_tokens=4, do_sample=False)[0, short["input_ids"].shape[1] :]
            found.append(processor().tokenizer.decode(ids, skip_special_tokens=True).strip())
        yield f"{order} visual", found


def _read(model: Any, voco: VoCo, frames: Sequence[Image.Image]) -> tuple[list[VoCoMemory], foveate.Encoded]:
    """Return the memory of each frame, and the frames as they were encoded."""
    inputs = dict(processor().image_processor(images=list(frames), return_tensors="pt"))
    inputs["input_ids"] = torch.full((1, 576 * len(frames)), family_of(model).image_token)
    with torch.no_grad():
        encoded = encode(model, inputs, (voco.features,))
        return voco.encode(model, inputs, encoded=encoded), encoded


def _row(length: int, skill: str, made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return shares and intervals of one skill; clips are resampled."""
    cells = [each[f"{length} {skill}"] for each in made]
    texts = [cell["answer"] for cell in cells]
    owners = [str(number) for number in range(len(cells))]
    row: dict[str, Any] = {"segments": length, "skill": skill}
    for count in (*map(str, COUNTS), "visual"):
        ordered, shuffled = ([cell[f"{order} {count}"] for cell in cells] for order in ("in order", "shuffled"))
        row[count] = {
            "in_order": _plain(mean_interval(ordered, owners)),
            "shuffled": _plain(mean_interval(shuffled, owners)),
            "difference": _plain(difference_interval(ordered, shuffled, owners)),
        }
    row["commonest_answer"] = round(max(texts.count(text) for text in texts) / len(texts), 4)
    return row


def _plain(interval: Any) -> dict[str, Any]:
    return {name: None if value is None else round(value, 4) for name, value in interval.to_dict().items()}


# Time and bytes


def stream_bytes() -> list[dict[str, int]]:
    """Return bytes of keys and values of streams: memories that grew by `append`, and all visual tokens."""
    model, voco = embedded_model(), VoCo.from_pretrained("shipped")
    (scene,) = test_set(1)
    (memory,) = voco.encode(model, question_inputs(processor(), scene.image, QUESTION))
    rows = []
    streams = {count: memory.first(count) for count in COUNTS}
    for segments in range(1, max(LENGTHS) + 1):
        if segments > 1:
            streams = {count: each.append(memory.first(count), packed=True) for count, each in streams.items()}
        sizes = {str(count): each.nbytes for count, each in streams.items()}
        # One token's keys and values are those of one VoCo token.
        rows.append({"segments": segments, "dense": 576 * segments * memory.first(1).nbytes, **sizes})
    for count in map(str, COUNTS):
        assert all(row[count] == row["segments"] * rows[0][count] for row in rows), (
            "a segment takes more than the first"
        )
    return [row for row in rows if row["segments"] in (1, *LENGTHS)]


def stream_times(threads: int, lengths: Sequence[int] = LENGTHS, turns: int = 5) -> dict[str, Any]:
    """Return bytes, and ratios of processor time: medians of each turn's own ratio, all runs in turn.

    `question` is the first token of an answer after so many segments, beside all keys and values of their visual tokens
    in the cache. `segment` is reading one more segment after so many.
    """
    model = embedded_model()
    family = family_of(model)
    (scene,) = test_set(1)
    inputs = question_inputs(processor(), scene.image, QUESTION)
    voco = VoCo.from_pretrained("shipped")
    (row,) = prompt_rows(family, inputs, family.layouts(inputs))
    ids, mask, _ = padded_text([PromptRow((), row.text, None)])
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        encoded = encode(model, inputs, (voco.features,))
        (memory,) = voco.encode(model, inputs, encoded=encoded)
        features = encoded.projected[0][None]
        begin = embedding_table(family)(processor().tokenizer("<bos>", return_tensors="pt")["input_ids"])
        (dense,) = prefix_memories(family, torch.cat([begin, features], dim=1))
        for length in lengths:
            whole = VoCoMemory.joined([dense] * length)
            runs: dict[str, Callable[[], Any]] = {
                "dense": question_after(model, family, whole, ids, mask),
                "dense_segment": _segment_after(model, family, whole, features),
                "segment": lambda: voco.encode(model, inputs, 8, encoded=encoded),
            }
            for count in COUNTS:
                joined = VoCoMemory.joined([memory.first(count)] * length, packed=True)
                runs[str(count)] = question_after(model, family, joined, ids, mask)
            found: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(turns):
                for name, run in runs.items():
                    began = time.process_time()
                    run()
                    found[name].append((time.process_time() - began) * 1e3)
            rows.append(
                {
                    "segments": length,
                    "bytes": {"dense": whole.nbytes}
                    | {str(count): length * memory.first(count).nbytes for count in COUNTS},
                    "question": {str(count): ratio(found, str(count), "dense") for count in COUNTS},
                    "segment": ratio(found, "segment", "dense_segment"),
                    "milliseconds": {name: round(statistics.median(values), 1) for name, values in found.items()},
                }
            )
            del whole, runs
            say(f"timed {length} segments")
    return {"rows": rows, "turns": turns, "threads": threads}


def _segment_after(model: Any, family: Family, memory: VoCoMemory, features: Tensor) -> Callable[[], Any]:
    """Return a function that reads all visual tokens of one more segment after a filled cache, and crops it again."""
    mask = torch.ones(1, features.shape[1], dtype=torch.int64)
    cache, memory_mask, positions = memory_cache(family, [memory], mask, features.device)
    attention_mask = torch.cat([memory_mask, mask], dim=1)

    def run() -> None:
        model(
            inputs_embeds=features,
            attention_mask=attention_mask,
            position_ids=positions,
            logits_to_keep=1,
            **cache_argument(model.forward, cache),
        )
        cache.crop(-features.shape[1])

    return run
