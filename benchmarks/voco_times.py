"""Measure the time to the first token of an answer and the size of an image, dense and with one VoCo token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from voco_answers import COUNTS, embedded_model, processor
from voco_rivals import prefix_memories

from foveate.engine import encode
from foveate.families import Family, family_of
from foveate.prompts import question_inputs
from foveate.scenes import test_set
from foveate.transformers_api import cache_argument
from foveate.voco import VoCo, VoCoMemory
from foveate.voco.embeddings import embedding_table
from foveate.voco.prompt_rows import PromptRow, padded_text, prompt_rows
from foveate.voco.two_pass import memory_cache

QUESTION = "what colour is the large star ?"


def times(threads: int, turns: int = 15) -> dict[str, Any]:
    """Return medians of processor time in milliseconds, ratios of them, and bytes.

    Args:
        threads: as torch was told, for the record.
        turns: how often each is run, one after the other in turns.
    """
    model = embedded_model()
    family = family_of(model)
    (scene,) = test_set(1)
    inputs = question_inputs(processor(), scene.image, QUESTION)
    voco = VoCo(model, 1)
    (row,) = prompt_rows(family, inputs, family.layouts(inputs))
    ids, mask, _ = padded_text([PromptRow((), row.text, None)])
    with torch.inference_mode():
        encoded = encode(model, inputs)
        (memory,) = voco.encode(model, inputs, encoded=encoded)
        begin = processor().tokenizer("<bos>USER:", return_tensors="pt")["input_ids"]
        prefix = torch.cat([embedding_table(family)(begin)[0], encoded.projected[0]])[None]
        (cached,) = prefix_memories(family, prefix)
        runs: dict[str, Callable[[], Any]] = {
            "dense": lambda: model(**inputs),
            "voco_first": lambda: question_after(model, family, voco.encode(model, inputs)[0], ids, mask)(),
            "voco": question_after(model, family, memory, ids, mask),
            # Its prefix has the first token of the question.
            "cached": question_after(model, family, cached, ids[:, 1:], mask[:, 1:]),
        }
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(turns):
            for name, run in runs.items():
                began = time.process_time()
                run()
                found[name].append((time.process_time() - began) * 1e3)
    return {
        "milliseconds": {name: round(statistics.median(values), 3) for name, values in found.items()},
        "second_question_over_dense": ratio(found, "voco", "dense"),
        "second_question_over_cached": ratio(found, "voco", "cached"),
        "first_question_over_dense": ratio(found, "voco_first", "dense"),
        "question_tokens": ids.shape[1],
        "bytes": {
            "dense": 2 * len(family.decoder_layers) * 576 * memory.keys[0, :, 0].numel() * 4,
            **{str(count): count * memory.nbytes for count in COUNTS},
        },
        "turns": turns,
        "threads": threads,
    }


def ratio(found: Mapping[str, list[float]], one: str, other: str) -> float:
    """Return the median of each turn's own ratio: other work on the machine hits both alike."""
    return round(statistics.median(a / b for a, b in zip(found[one], found[other], strict=True)), 4)


def question_after(model: Any, family: Family, memory: VoCoMemory, ids: Tensor, mask: Tensor) -> Callable[[], Any]:
    """Return a function that asks a question after a filled cache, and crops the cache again."""
    cache, memory_mask, positions = memory_cache(family, [memory], mask, ids.device)
    attention_mask = torch.cat([memory_mask, mask], dim=1)

    def run() -> None:
        model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions,
            logits_to_keep=1,
            **cache_argument(model.forward, cache),
        )
        cache.crop(-ids.shape[1])

    return run
