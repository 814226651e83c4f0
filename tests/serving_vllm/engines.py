"""Answers of vLLM and of transformers to the same questions about the same pictures, greedy, with their logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm import LLM, SamplingParams

import foveate

LONGEST = 4
"""Tokens of an answer, at most."""


@dataclass(frozen=True)
class Clip:
    """Frames `(T, H, W, 3)` of 8 bits, and how many are shown in a second."""

    frames: np.ndarray
    fps: float = 2.0

    @property
    def metadata(self) -> dict[str, Any]:
        """What processors want to know of it."""
        count = len(self.frames)
        return {
            **{"fps": self.fps, "total_num_frames": count, "frames_indices": list(range(count))},
            **{"duration": count / self.fps, "height": self.frames.shape[1], "width": self.frames.shape[2]},
        }


@dataclass(frozen=True)
class Question:
    """A prompt with its pictures and clips."""

    prompt: str
    images: tuple[Image.Image, ...] = ()
    clips: tuple[Clip, ...] = ()

    def for_vllm(self) -> dict[str, Any]:
        """Return the prompt as vLLM takes it."""
        data: dict[str, Any] = {}
        if self.images:
            data["image"] = list(self.images) if len(self.images) > 1 else self.images[0]
        if self.clips:
            data["video"] = [(clip.frames, {**clip.metadata, "do_sample_frames": False}) for clip in self.clips]
        return {"prompt": self.prompt, "multi_modal_data": data}

    def for_transformers(self) -> dict[str, Any]:
        """Return the prompt as a processor takes it."""
        given: dict[str, Any] = {"text": self.prompt}
        if self.images:
            given["images"] = list(self.images)
        if self.clips:
            given["videos"] = [clip.frames for clip in self.clips]
            given |= {"video_metadata": [clip.metadata for clip in self.clips], "do_sample_frames": False}
        return given


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, the last one of which may end it, and the logprob of each.

    `prompt` and `cached` count tokens of the prompt: all of them, and those that vLLM had from before.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt: int
    cached: int = 0


def engine(path: Path, **options: Any) -> LLM:
    """Load a model into an engine of this process, in float32."""
    options = {"max_model_len": 1024, "max_num_seqs": 16, "block_size": 32, **options}
    return LLM(str(path), dtype="float32", enforce_eager=True, disable_log_stats=True, **options)


def ask_vllm(llm: LLM, questions: Sequence[Question], specs: Sequence[str | None]) -> list[Answer]:
    """Ask all questions at once, each with its spec."""
    prompts: list[Any] = []
    for question, spec in zip(questions, specs, strict=True):
        prompt = question.for_vllm()
        prompts.append(prompt if spec is None else {**prompt, "mm_processor_kwargs": {"foveate": spec}})
    settings = SamplingParams(temperature=0, max_tokens=LONGEST, logprobs=0)
    answers: list[Answer] = []
    for output in llm.generate(prompts, settings, use_tqdm=False):
        (made,) = output.outputs
        tokens = tuple(made.token_ids)
        logprobs = tuple(given[token].logprob for given, token in zip(made.logprobs, tokens, strict=True))
        answers.append(Answer(tokens, logprobs, len(output.prompt_token_ids), output.num_cached_tokens or 0))
    return answers


def forget(llm: LLM) -> None:
    """Empty the engine's caches of prompts, of processed pictures and of encoded ones."""
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()


def ask_transformers(model: Any, processor: Any, question: Question, spec: str, **more: Any) -> Answer:
    """Ask a question under `foveate.apply`; "dense" asks the untouched model."""
    inputs = processor(**question.for_transformers(), return_tensors="pt", **more)

    def generated() -> Any:
        return model.generate(
            **inputs, max_new_tokens=LONGEST, do_sample=False, return_dict_in_generate=True, output_logits=True
        )

    before = inputs["input_ids"].shape[1]
    if spec == "dense":
        found, left_out = generated(), 0
    else:
        with foveate.apply(model, spec) as run:
            found = generated()
            left_out = sum(image.before - image.after for image in run.report().images)
    tokens = found.sequences[0, before:].tolist()
    logprobs = torch.stack(found.logits)[:, 0].float().log_softmax(-1)
    chosen = [float(row[token]) for row, token in zip(logprobs, tokens, strict=True)]
    return Answer(tuple(tokens), tuple(chosen), before - left_out)


def difference(ours: Answer, theirs: Answer) -> float:
    """Return the largest difference of the logprobs of two answers with the same tokens."""
    return max(abs(one - other) for one, other in zip(ours.logprobs, theirs.logprobs, strict=True))


def compared(
    llm: LLM, model: Any, processor: Any, questions: Sequence[Question], specs: Sequence[str], **more: Any
) -> list[dict[str, Any]]:
    """Ask every question with every spec: one by one, in a batch for each spec, and in one batch with all specs mixed.

    Returns:
        For each spec a row: tokens of the prompt, how many answers are those of transformers, and the largest
        difference of logprobs.
    """
    rows: list[dict[str, Any]] = []
    expected = {spec: [ask_transformers(model, processor, each, spec, **more) for each in questions] for spec in specs}
    ways: dict[str, dict[str, list[Answer]]] = {"single": {}, "batch": {}, "mixed": {}}
    for spec in specs:
        forget(llm)
        ways["single"][spec] = [ask_vllm(llm, [question], [spec])[0] for question in questions]
        forget(llm)
        ways["batch"][spec] = ask_vllm(llm, questions, [spec] * len(questions))
    forget(llm)
    pairs = [(question, spec) for question in questions for spec in specs]
    answers = ask_vllm(llm, [question for question, _ in pairs], [spec for _, spec in pairs])
    for (_, spec), answer in zip(pairs, answers, strict=True):
        ways["mixed"].setdefault(spec, []).append(answer)
    for spec in specs:
        row: dict[str, Any] = {"spec": spec, "questions": len(questions)}
        assert [answer.prompt for answer in ways["single"][spec]] == [answer.prompt for answer in expected[spec]]
        row["prompt"] = sorted({answer.prompt for answer in expected[spec]})
        row["difference"] = 0.0
        for way, found in ways.items():
            pairs_of = list(zip(found[spec], expected[spec], strict=True))
            row[way] = sum(ours.tokens == theirs.tokens for ours, theirs in pairs_of)
            same = [difference(ours, theirs) for ours, theirs in pairs_of if ours.tokens == theirs.tokens]
            row["difference"] = max(row["difference"], *same, 0.0)
        rows.append(row)
    return rows
