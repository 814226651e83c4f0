"""Ask one question about one image, dense and compressed, and time the parts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import torch
from PIL import Image
from torch import nn

from foveate.engine import apply, timed
from foveate.engine.timing import now
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.schedule import tokens_after
from foveate.spec import Spec
from foveate.tokens import Layout

__all__ = ["Answer", "ask", "check_question", "image_layout", "prompt", "seen_part"]

_ENOUGH_SECONDS = 2.0
_MOST_RUNS = 5


@dataclass(frozen=True)
class Answer:
    """What a model said, and what it cost. Times are those of the middle one of `runs` by its total, in milliseconds.

    Attributes:
        spec: what was applied; "dense" for nothing.
        text: the answer.
        tokens_before: visual tokens of the uncompressed prompt.
        tokens_after: visual tokens behind the last step.
        mean_over_layers: visual tokens per decoder layer, averaged over layers.
        encoder: time of the vision encoder.
        compressor: our own time, from signals to the shorter prompt.
        prefill: time of the decoder over the prompt.
        decode: time of the decoder over the answer.
        total: time of the whole `generate`, which also embeds, makes logits and picks tokens.
        new_tokens: tokens of the answer.
        runs: how often it was timed, after one run to warm up.
    """

    spec: str
    text: str
    tokens_before: int
    tokens_after: int
    mean_over_layers: float
    encoder: float
    compressor: float
    prefill: float
    decode: float
    total: float
    new_tokens: int
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return asdict(self)


def check_question(question: str) -> str:
    """The question without blanks around it.

    Raises:
        FoveateError: it is empty.
    """
    if not question.strip():
        raise FoveateError('the question is empty; ask something, for instance "what colour is the circle ?"')
    return question.strip()


def prompt(processor: Any, image: Image.Image, question: str) -> dict[str, Any]:
    """Turn an image and a question into the inputs of a model, by its own chat template.

    Args:
        processor: the model's processor.
        image: mode "RGB".
        question: text, not empty.

    Returns:
        What the processor returns for a batch of one: input_ids `(1, S)` int64, attention_mask, pixel_values, ...

    Raises:
        FoveateError: the question is empty or holds the model's image placeholder, the processor has no chat template,
            or it refuses the image.
    """
    question = check_question(question)
    placeholder = getattr(processor, "image_token", None)
    if isinstance(placeholder, str) and placeholder in question:
        raise FoveateError(f"the question holds {placeholder}, which stands for the image in prompts; leave it out")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    try:
        text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    except ValueError as error:
        raise FoveateError(f"the model's processor has no usable chat template ({_line(error)})") from error
    try:
        return dict(processor(images=[image], text=[text], return_tensors="pt"))
    except ValueError as error:
        raise FoveateError(f"the model's processor refuses this image ({_line(error)})") from error


def image_layout(model: nn.Module, inputs: Mapping[str, Any]) -> Layout:
    """The layout of the one image of a prompt; the model may be a `skeleton`.

    Raises:
        FoveateError: of a model that no family describes, the image comes in several parts.
        UnsupportedFamily: the model is of no supported family.
    """
    family = family_of(model)
    layouts = family.layouts(inputs)
    if len(layouts) != 1:
        raise FoveateError(
            f"this image is {len(layouts)} runs of visual tokens to {family.title}, which no family describes, and the "
            "commands are for images of one; foveate.apply takes it"
        )
    return layouts[0]


def seen_part(processor: Any, image: Image.Image) -> Image.Image:
    """The part of an image that reaches the encoder: its middle, where the processor crops."""
    rules = processor.image_processor
    if not getattr(rules, "do_center_crop", False) or not getattr(rules, "crop_size", None):
        return image
    if getattr(rules, "image_grid_pinpoints", None):
        # It crops tiles, which have that size already.
        return image
    size, crop = dict(rules.size), dict(rules.crop_size)
    edge = size.get("shortest_edge")
    if edge is None:
        across, down = image.width / size["width"], image.height / size["height"]
    else:
        across = down = min(image.size) / edge
    width, height = crop["width"] * across, crop["height"] * down
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.crop((round(left), round(top), round(left + width), round(top + height)))


@torch.inference_mode()
def ask(
    model: nn.Module,
    processor: Any,
    inputs: Mapping[str, Any],
    spec: str | Spec | None = None,
    max_new_tokens: int = 16,
) -> Answer:
    """Answer one prompt, greedily, and time the parts.

    A short run warms up first. Fast models are then timed several times.

    Args:
        model: a model of a supported family.
        processor: its processor, which turns ids back into text.
        inputs: from `prompt`.
        spec: what to apply; None is dense.
        max_new_tokens: the longest answer.

    Raises:
        FoveateError: the spec can't be done on this model and image, or the prompt is longer than the model takes.
    """
    family = family_of(model)
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    layout = image_layout(model, inputs)
    if spec is not None:
        tokens_after(spec, family, layout)
    length = int(inputs["input_ids"].shape[1])
    longest = getattr(family.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and length + max_new_tokens > longest:
        raise FoveateError(
            f"prompt and answer take {length} + {max_new_tokens} tokens and the model has room for {longest}; "
            "shorten the question or the answer"
        )
    mark = getattr(processor.tokenizer, "pad_token_id", None)
    plain: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if mark is not None:
        plain["pad_token_id"] = mark
    generate: Any = model.generate

    with apply(model, spec) if spec is not None else nullcontext():
        generate(**inputs, **plain, max_new_tokens=min(2, max_new_tokens))

    runs: list[tuple[float, float, float, float, float]] = []
    began = time.perf_counter()
    while True:
        with apply(model, spec, synchronise=True) if spec is not None else nullcontext() as run, timed(model) as times:
            start = now(device)
            ids = generate(**inputs, **plain, max_new_tokens=max_new_tokens)
            total = (now(device) - start) * 1e3
        report = None if run is None else run.report()
        compressor = 0.0 if report is None else report.milliseconds
        # What steps inside the decoder take is measured as the compressor's, so it is not the prefill's.
        prefill = times.prefill - (0.0 if report is None else report.inside)
        runs.append((times.encoder, compressor, prefill, times.decode, total))
        if len(runs) == _MOST_RUNS or time.perf_counter() - began > _ENOUGH_SECONDS:
            break
    # Parts of one run, so that they add up; medians of their own need not.
    encoder, compressor, prefill, decode, total = sorted(runs, key=itemgetter(-1))[(len(runs) - 1) // 2]
    new = ids[0, length:]
    return Answer(
        spec="dense" if report is None else report.spec,
        text=processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
        tokens_before=layout.total,
        tokens_after=layout.total if report is None else report.after,
        mean_over_layers=float(layout.total) if report is None else report.images[0].mean_over_layers,
        encoder=encoder,
        compressor=compressor,
        prefill=prefill,
        decode=decode,
        total=total,
        new_tokens=int(new.shape[0]),
        runs=len(runs),
    )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
