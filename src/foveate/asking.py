"""Answer one question about an image or a clip, dense or compressed, and time the parts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from foveate.decoding import Decoding
from foveate.devices import devices_of
from foveate.engine import apply, timed
from foveate.engine.encode import moved
from foveate.engine.timing import now
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.families.prompt_check import prompt_layouts
from foveate.schedule import tokens_after
from foveate.spec import SpecLike, as_spec

__all__ = ["Answer", "ask", "seen_part", "token_side"]

_ENOUGH_SECONDS = 2.0
_MOST_RUNS = 5


@dataclass(frozen=True)
class Answer:
    """An answer and what it cost. Times are milliseconds, all from the run whose total is the median.

    Attributes:
        spec: the spec that was applied; "dense" for none.
        text: the answer.
        tokens_before: visual tokens of the uncompressed prompt.
        tokens_after: visual tokens after the last step.
        mean_over_layers: visual tokens per decoder layer, averaged over layers.
        encoder: time of the vision encoder.
        compressor: time of foveate, from signals to the shorter prompt.
        prefill: time of the decoder over the prompt.
        decode: time of the decoder over the answer.
        total: time of the whole `generate`, with embeddings, logits and picking tokens.
        new_tokens: tokens of the answer.
        runs: how many runs were timed, after one to warm up.
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
        """Return plain data, for JSON."""
        return asdict(self)


def seen_part(processor: Any, image: Image.Image, *, of_clip: bool = False) -> Image.Image:
    """Return the part of an image that reaches the encoder: its centre, if the processor crops.

    Args:
        processor: of the model.
        image: any size.
        of_clip: whether it is a frame of a clip, and the processor's part for clips prepares it.
    """
    rules = processor.video_processor if of_clip else processor.image_processor
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


def token_side(config: Any) -> int:
    """Return how many pixels of a model's input are along one side of a token, by its configuration."""
    vision = config.vision_config
    return int(vision.patch_size) * int(getattr(vision, "spatial_merge_size", 1))


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


@torch.inference_mode()
def ask(
    model: nn.Module,
    processor: Any,
    inputs: Mapping[str, Any],
    spec: SpecLike | None = None,
    max_new_tokens: int = 16,
) -> Answer:
    """Answer a prompt under the model's own generation configuration, without sampling, and time the parts.

    One run of at most two tokens warms up. Then up to five runs are timed, as many as fit into two seconds.

    Args:
        model: a model of a supported family.
        processor: its processor, which turns ids into text.
        inputs: from `prompts.question_inputs`, or `visual_prompts.Shown.inputs`.
        spec: how to compress, in any form that `as_spec` reads; None is dense.
        max_new_tokens: the longest answer.

    Raises:
        SpecError: the spec can't be read.
        FoveateError: the model can't do the spec on this image or clip, or prompt and answer are longer than the model
            takes, or its generation configuration can't be used.
    """
    family = family_of(model)
    inputs = moved(inputs, family.device)
    dtype = getattr(model, "dtype", torch.float32)
    # Some processors make bfloat16 of pixels, and their models take no other dtype than their own.
    inputs = {name: each.to(dtype) if _is_half(each) else each for name, each in inputs.items()}
    devices = devices_of(model)
    layouts = prompt_layouts(family, inputs)
    before = sum(layout.total for layout in layouts)
    of_frames = len(layouts) > 1 or any(layout.is_clip for layout in layouts)
    if spec is not None:
        spec = as_spec(spec)
        for layout in dict.fromkeys(layouts):
            tokens_after(spec, family, layout)
    length = int(inputs["input_ids"].shape[1])
    longest = getattr(family.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and length + max_new_tokens > longest:
        raise FoveateError(
            f"prompt and answer take {length} + {max_new_tokens} tokens and the model has room for {longest}; "
            f"{'take fewer frames, or ' if of_frames else ''}shorten the question or the "
            "answer"
        )
    decoding = Decoding(model, family.device, processor.tokenizer, max_new_tokens, beams=True).generate_arguments()
    generate: Any = model.generate
    short = {"max_new_tokens": min(2, max_new_tokens), "min_length": 0, "min_new_tokens": None}

    with apply(model, spec) if spec is not None else nullcontext():
        generate(**inputs, **decoding | short)

    runs: list[tuple[float, float, float, float, float]] = []
    began = time.perf_counter()
    while True:
        with apply(model, spec, synchronise=True) if spec is not None else nullcontext() as run, timed(model) as times:
            start = now(devices)
            ids = generate(**inputs, **decoding)
            total = (now(devices) - start) * 1e3
        report = None if run is None else run.report()
        compressor = 0.0 if report is None else report.milliseconds
        # Steps inside the decoder are counted as the compressor's time, not as prefill.
        prefill = times.prefill - (0.0 if report is None else report.inside)
        runs.append((times.encoder, compressor, prefill, times.decode, total))
        if len(runs) == _MOST_RUNS or time.perf_counter() - began > _ENOUGH_SECONDS:
            break
    # All parts are one run's, so that they add up; medians of each part need not.
    encoder, compressor, prefill, decode, total = sorted(runs, key=itemgetter(-1))[(len(runs) - 1) // 2]
    new = ids[0, length:]
    return Answer(
        spec="dense" if report is None else report.spec,
        text=processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
        tokens_before=before,
        tokens_after=before if report is None else report.after,
        mean_over_layers=float(before) if report is None else report.mean_over_layers,
        encoder=encoder,
        compressor=compressor,
        prefill=prefill,
        decode=decode,
        total=total,
        new_tokens=int(new.shape[0]),
        runs=len(runs),
    )
