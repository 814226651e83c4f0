"""A stream of frames: each is encoded once, and tokens of the whole past stay under a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from foveate.arguments import check_kind
from foveate.decoding import Decoding
from foveate.engine.compress import ShortInputs, short_inputs
from foveate.engine.encode import Encoded, encode_for
from foveate.engine.images import KeptTokens, keep_tokens, place_tokens
from foveate.engine.modalities import brings_clips
from foveate.engine.past import Past
from foveate.engine.prompt import PER_COLUMN, CompressedImage
from foveate.engine.sharding import refuse_sharded
from foveate.errors import FoveateError, first_line, shown
from foveate.families import Family, family_of
from foveate.layout import Layout
from foveate.methods import Method
from foveate.methods.cluster import Cluster
from foveate.numbers import Between, check_whole
from foveate.prompts import chat_text, check_question, special_tokens
from foveate.schedule import Schedule, schedule
from foveate.spec import SpecLike, as_spec

__all__ = ["HeldFrame", "Stream"]

_QUESTION = "what is it ?"
_SMALL = 64


@dataclass(frozen=True)
class HeldFrame:
    """A frame of a stream of which tokens are held.

    Attributes:
        number: of the frame, from 0.
        span: how many frames of the stream it stands for: itself, and those after it that are no longer held.
        tokens: how many of its visual tokens are held.
    """

    number: int
    span: int
    tokens: int


class Stream:
    """Visual tokens of frames that come one by one, under a budget; questions are asked at any time.

    Each frame is encoded once, when it comes, and compressed by `spec` as an image of its own: `cluster:64` leaves 64
    tokens of each. While all of them fit into the budget, a prompt is the same as that of the whole clip under
    `cluster:64:per=frame`. Then the past is thinned, the oldest most. The density of a place in time is its tokens per
    frame of the stream; the place whose density times age would still be the largest afterwards loses half of its
    tokens, or, if a frame would have fewer than `least`, that frame. So the density halves with each doubling of age,
    and memory is bounded however long the stream is. The first frame always stays. The last method of `spec` chooses
    among the tokens that a frame has left; where `spec` has none after the encoder, `cluster` does.

    Models that take clips get the frames that are held as one clip, whose frames follow each other; models that write
    the time of each frame get the true times. Other models get each frame as an image.

    Args:
        model: a model of a supported family. It isn't changed.
        spec: what is done to each frame, all of it before the decoder and without reading the question.
        processor: of the model.
        budget: the most visual tokens that are held, without newlines and separators.
        least: the fewest tokens of a frame; by default an eighth of what `spec` leaves of the first one.
        fps: frames per second of the stream, for models that are told of time.

    Raises:
        FoveateError: the spec acts inside the decoder, reads the question, was trained, or compares frames; or the
            budget is too small.
        SpecError: the spec is malformed.
        UnsupportedFamily: the model is of no supported family.

    >>> import foveate
    >>> from foveate.scenes import clip
    >>> model, processor = foveate.reference()
    >>> stream = foveate.Stream(model, "cluster:32", processor, budget=96)
    >>> stream.extend(clip(3, frames=5).frames)
    >>> [(frame.number, frame.span, frame.tokens) for frame in stream.held]
    [(0, 1, 8), (1, 1, 8), (2, 1, 16), (3, 1, 32), (4, 1, 32)]
    >>> answer = stream.ask("which is first , the star or the ring ?")
    """

    def __init__(
        self,
        model: nn.Module,
        spec: SpecLike,
        processor: Any,
        *,
        budget: int,
        least: int | None = None,
        fps: float = 1.0,
    ) -> None:
        self._model, self._processor = model, processor
        self._family = family_of(model)
        refuse_sharded(model, self._family.core)
        self._schedule = schedule(as_spec(spec), self._family)
        methods = _checked_methods(self._schedule)
        self._method: Method = methods[-1] if methods else Cluster()
        self._budget = check_whole("budget", budget, Between(2))
        self._least = None if least is None else check_whole("least", least, Between(1, budget // 2))
        if not isinstance(fps, int | float) or not 0 < fps < float("inf"):
            raise FoveateError(f"fps must be a number above 0, such as 2.0, not {shown(fps)}")
        self._fps = float(fps)
        self._past: Past | None = None
        self._stacked: frozenset[str] = frozenset()
        self._as_clip: bool | None = None
        self._size: tuple[int, int] | None = None
        self._waiting: list[Image.Image] = []
        self._frames = 0

    @property
    def frames(self) -> int:
        """How many frames have come."""
        return self._frames

    @property
    def tokens(self) -> int:
        """How many visual tokens are held, without newlines and separators."""
        return 0 if self._past is None else self._past.tokens

    @property
    def held(self) -> tuple[HeldFrame, ...]:
        """The frames that are held, the oldest first; of frames that the encoder takes together, the first.

        Frames that wait for others to be encoded with aren't among them.
        """
        frames = () if self._past is None else self._past.frames
        return tuple(HeldFrame(frame.number, frame.span, len(frame.kept)) for frame in frames)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held: tokens, what methods read about them, and pixels of waiting frames."""
        frames = () if self._past is None else self._past.frames
        held = sum(frame.kept.nbytes for frame in frames)
        return held + sum(3 * image.width * image.height for image in self._waiting)

    def append(self, frame: Image.Image | np.ndarray[Any, Any] | Tensor) -> None:
        """Add the newest frame.

        Models such as Qwen2-VL encode two frames together: the first of them waits for the second, and a question that
        is asked in between sees it twice, as the processor would have it at the end of a clip.

        Args:
            frame: a picture, or an array or tensor `(height, width, 3)` of whole numbers from 0 to 255.

        Raises:
            FoveateError: it is something else, the model can't take it, or the budget holds no more than one frame.
        """
        image = _picture(frame)
        if self._as_clip is None:
            self._as_clip = self._takes_clips(image)
        if self._size is not None and self._size != image.size:
            raise FoveateError(
                f"frame {self._frames} has {image.width} x {image.height} pixels, and those before it "
                f"{self._size[0]} x {self._size[1]}; the frames of a stream have one size: resize it"
            )
        together = self._family.frames_per_patch if self._as_clip else 1
        waiting = [*self._waiting, image]
        if len(waiting) == together:
            self._keep(self._encoded(waiting), self._frames + 1 - together)
            waiting = []
        self._waiting, self._size = waiting, image.size
        self._frames += 1

    def extend(self, frames: Iterable[Any]) -> None:
        """Add frames, one after the other, as `append` does: those of a file, for instance.

        Raises:
            FoveateError: it is no iterable of frames.
        """
        if isinstance(frames, str | bytes | Mapping | Image.Image) or not isinstance(frames, Iterable):
            raise FoveateError(f"frames must be pictures or arrays, one after another, not {shown(frames)}")
        for frame in frames:
            self.append(frame)

    def inputs(self, question: str) -> ShortInputs:
        """Return the inputs of a question about everything that is held, for `generate` or the model itself.

        They are like those of `foveate.compress`: pass them whole, and leave the cache on.

        Args:
            question: text, without a placeholder of the model.

        Raises:
            FoveateError: no frame has come, the question is empty, or the processor has no usable chat template.
        """
        past = [] if self._past is None else [(frame.number, frame.kept) for frame in self._past.frames]
        family = self._family
        if self._waiting:
            missing = [self._waiting[-1]] * (family.frames_per_patch - len(self._waiting))
            past.append((self._frames - len(self._waiting), self._encoded(self._waiting + missing)))
        if not past:
            raise FoveateError("no frame has come yet; append one, then ask")
        question = check_question(question)
        if self._as_clip:
            together = family.frames_per_patch
            numbers = [number + each for number, _ in past for each in range(together)]
            # The rows and columns of a clip are known, so any small frames show how its prompt is written.
            size = (_SMALL, _SMALL) if family.clip_places else self._size
            prompt = self._processed([_blank(size)] * len(numbers), question, numbers)
            if family.clip_places:
                return self._short(*self._clip(prompt, [kept for _, kept in past]))
        else:
            prompt = self._processed([_blank(self._size)] * len(past), question, None)
        return self._short(prompt, [place_tokens(family, self._schedule, kept) for _, kept in past])

    @torch.no_grad()
    def ask(self, question: str, max_new_tokens: int = 16) -> str:
        """Answer a question about everything that is held, under the model's own configuration, without sampling.

        Args:
            question: text, without a placeholder of the model.
            max_new_tokens: the longest answer.

        Raises:
            FoveateError: no frame has come, the question is empty, or prompt and answer are too long for the model.
        """
        short = self.inputs(question)
        length = int(short["input_ids"].shape[1])
        longest = self._family.longest_prompt
        if longest is not None and length + max_new_tokens > longest:
            raise FoveateError(
                f"prompt and answer take {length} + {max_new_tokens} tokens and the model has room for {longest}; give "
                "the stream a smaller budget"
            )
        tokenizer = self._processor.tokenizer
        decoding = Decoding(self._model, self._family.device, tokenizer, max_new_tokens, beams=True)
        generate: Any = self._model.generate
        ids = generate(**short, **decoding.generate_arguments())
        return tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()

    # Frames

    def _takes_clips(self, image: Image.Image) -> bool:
        """Return whether the processor takes clips, and the model what it makes of them."""
        family = self._family
        if getattr(self._processor, "video_processor", None) is None:
            return False
        numbers = range(family.frames_per_patch)
        try:
            inputs = self._processed([image] * len(numbers), _QUESTION, list(numbers))
        except FoveateError:
            # Its chat template, or what it does with clips, may know images alone.
            return False
        # A processor may write a clip as images.
        as_images = inputs.get("pixel_values") is not None and not brings_clips(family, inputs)
        return (bool(family.clip_places) or as_images) and bool(family.placeholders(inputs["input_ids"]).any())

    @torch.no_grad()
    def _encoded(self, images: list[Image.Image]) -> KeptTokens:
        """Encode frames that are one frame of visual tokens, and run the steps on it.

        Raises:
            FoveateError: the model makes several images of a frame.
        """
        numbers = [self._frames + number for number in range(len(images))] if self._as_clip else None
        inputs = self._processed(images, _QUESTION, numbers)
        encoded: Encoded = encode_for(self._family, inputs, [self._schedule])
        if len(encoded) != 1:
            raise FoveateError(f"the processor makes {len(encoded)} images of a frame, and a stream takes one")
        self._stacked = encoded.stacked
        (kept,) = keep_tokens(self._family, self._schedule, encoded)
        return kept

    def _keep(self, kept: KeptTokens, number: int) -> None:
        """Add a frame to the past.

        Raises:
            FoveateError: the budget holds no more than one such frame.
        """
        if self._past is None:
            least = self._least or max(1, len(kept) // 8)
            if len(kept) + least > self._budget:
                raise FoveateError(
                    f"{self._schedule.spec} leaves {len(kept)} tokens of a frame, and a budget of {self._budget} has "
                    f"to hold one frame and {least} tokens of an older one; give a larger budget, or keep fewer"
                )
            self._past = Past(self._method, self._budget, least)
        self._past.add(number, kept, self._family.frames_per_patch if self._as_clip else 1)

    # Prompts

    def _short(self, prompt: Mapping[str, Any], images: list[CompressedImage]) -> ShortInputs:
        """Cut a prompt down to what is held."""
        device = self._family.device
        columns = {
            name: value.to(device)
            for name, value in prompt.items()
            if name in ("input_ids", "attention_mask", *PER_COLUMN) and value is not None
        }
        return short_inputs(self._family, self._schedule.spec, columns, images, self._stacked)

    def _clip(
        self, prompt: Mapping[str, Any], frames: list[KeptTokens]
    ) -> tuple[dict[str, Tensor], list[CompressedImage]]:
        """Put frames together as one clip, in a prompt that was made for as many blank frames of any size."""
        family, first = self._family, frames[0]
        (blank,) = family.clip_layouts(prompt)
        layout, seen = (_with_grid(family, blank, each) for each in (first.layout, first.seen))
        offsets = torch.arange(len(frames)) * first.seen.content
        each_structural = len(layout.structural) == len(frames) * len(first.layout.structural)
        clip = replace(
            first,
            layout=layout,
            seen=seen,
            slot=torch.cat([frame.slot + offset for frame, offset in zip(frames, offsets.tolist(), strict=True)]),
            features=torch.cat([frame.features for frame in frames]),
            companions=tuple(torch.cat(level) for level in zip(*(frame.companions for frame in frames), strict=True)),
            signals={},
            structural=torch.cat([frame.structural for frame in frames]) if each_structural else first.structural,
        )
        columns = _with_runs(prompt, family.video_token, layout)
        return columns, [place_tokens(family, self._schedule, clip)]

    def _processed(self, images: list[Image.Image], question: str, numbers: list[int] | None) -> dict[str, Any]:
        """Return what the processor makes of a question about frames.

        Args:
            images: the frames.
            question: asked about them.
            numbers: of the frames in the stream, to be given as a clip; None gives them as images.

        Raises:
            FoveateError: the processor refuses them.
        """
        visual = [{"type": "image"}] * len(images) if numbers is None else [{"type": "video"}]
        content = [*visual, {"type": "text", "text": question}]
        text = chat_text(self._processor, [{"role": "user", "content": content}])
        given: dict[str, Any] = {"images": images}
        if numbers is not None:
            times = {"fps": self._fps, "total_num_frames": numbers[-1] + 1, "frames_indices": numbers}
            given = {"videos": [np.stack([np.asarray(image) for image in images])]}
            given |= {"do_sample_frames": False, "video_metadata": [times]}
        try:
            options = special_tokens(self._processor, text)
            return dict(self._processor(text=[text], return_tensors="pt", **given, **options))
        except MemoryError:
            raise
        except Exception as error:  # A processor computes with the numbers in its files, with whatever library.
            raise FoveateError(f"the model's processor refuses this frame ({first_line(error)})") from error


def _checked_methods(plan: Schedule) -> tuple[Method, ...]:
    """Return the methods after the encoder, if a stream can run all steps.

    Raises:
        FoveateError: it can't.
    """
    if plan.layers:
        raise FoveateError(
            f"{plan.spec} acts inside the decoder, which reads the tokens again for each question; a stream takes "
            "steps up to @input"
        )
    for method in plan.before_decoder:
        reason = ""
        if method.query_aware:
            reason = "reads the question, which comes after the frames"
        elif method.trained:
            reason = "was trained on whole prompts"
        elif method.temporal:
            reason = "compares the frames of a whole clip"
        if reason:
            raise FoveateError(
                f"{method.name} {reason}, and a stream compresses each frame when it comes; use a method for images, "
                "such as cluster"
            )
    return (*plan.features, *plan.inputs)


def _blank(size: tuple[int, int] | None) -> Image.Image:
    """Return a picture without content, of this width and height."""
    assert size is not None
    return Image.new("RGB", size)


def _picture(frame: Any) -> Image.Image:
    """Return a frame as a picture.

    Raises:
        FoveateError: it is none.
    """
    if isinstance(frame, Image.Image):
        return frame.convert("RGB")
    if isinstance(frame, Tensor):
        frame = frame.cpu().numpy()
    check_kind("a frame", frame, np.ndarray, "a picture, or an array (height, width, 3)")
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise FoveateError(
            f"a frame is {frame.shape} {frame.dtype}; it must be (height, width, 3) uint8, red, green and blue from 0 "
            "to 255"
        )
    return Image.fromarray(frame)


def _with_grid(family: Family, blank: Layout, frame: Layout) -> Layout:
    """Return the layout of a clip of blank frames, with the rows and columns of a frame."""
    (clip,), (grid,) = blank.segments, frame.segments
    return blank if (clip.h, clip.w) == (grid.h, grid.w) else family.shrunk(blank, (grid.h, grid.w))


def _with_runs(prompt: Mapping[str, Any], token: int, layout: Layout) -> dict[str, Tensor]:
    """Give each run of placeholders of a prompt the length that a layout says.

    Args:
        prompt: with `input_ids` `(1, S)`.
        token: the placeholder.
        layout: of the only clip in it.
    """
    ids: Tensor = prompt["input_ids"]
    marks = ids[0] == token
    begins = marks & ~torch.nn.functional.pad(marks, (1, 0))[:-1]
    times = (~marks).long()
    times[begins] = torch.tensor(layout.run_lengths)
    names = ("input_ids", "attention_mask", *PER_COLUMN)
    return {name: prompt[name].repeat_interleave(times, dim=1) for name in names if prompt.get(name) is not None}
