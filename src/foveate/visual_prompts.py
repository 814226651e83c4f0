"""Put an image or a clip before a question, in the way that a model takes it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from foveate.clips import Clip
from foveate.families import Family
from foveate.families.prompt_check import layout_of_prompt, prompt_layouts
from foveate.layout import Layout
from foveate.prompts import processor_inputs, question_text

__all__ = ["Shown", "VisualPrompt", "Way", "expected_layouts", "shown_to", "visual_prompt", "way_of"]

Way = Literal["video", "written", "images"]
"""How a model takes a clip: as a video; as a video that its processor writes as images; as several images."""

_TICKS = 1000
"""In a second: how fine the times are that a processor is told."""


@dataclass(frozen=True)
class Shown:
    """An image or a clip, as a processor takes it.

    Attributes:
        images: placeholders of images in a prompt.
        clips: placeholders of clips in a prompt.
        pictures: what the processor takes as `images`.
        others: what it takes besides.
        noun: what errors call it.
    """

    images: int
    clips: int
    pictures: Sequence[Image.Image]
    others: dict[str, Any] = field(default_factory=dict)
    noun: str = "image"

    def text(self, processor: Any, question: str, system: str = "") -> str:
        """Write a question after it, by the model's chat template; `prompts.question_text` tells the errors."""
        return question_text(processor, question, self.images, self.clips, system)

    def inputs(self, processor: Any, text: str, name: str = "") -> dict[str, Any]:
        """Return the inputs of a model for a prompt.

        Args:
            processor: of the model.
            text: from `text`.
            name: what an error calls it; "" for "this image" or "this clip".

        Raises:
            FoveateError: the processor refuses it.
        """
        refusal = f"the model's processor refuses {name or f'this {self.noun}'}"
        return processor_inputs(processor, text, self.pictures, refusal, **self.others)


def way_of(family: Family, processor: Any) -> Way:
    """Return how a model takes clips."""
    parameters = inspect.signature(type(processor).__call__).parameters
    if "videos" not in parameters or getattr(processor, "video_processor", processor) is None:
        return "images"
    if family.clip_places:
        return "video"
    return "written" if family.clips_are_images else "images"


def shown_to(family: Family, processor: Any, what: Image.Image | Clip) -> Shown:
    """Prepare an image or a clip for a model.

    The processor is told when each frame is shown, and doesn't choose among the frames again.

    Args:
        family: of the model; that of `loading.family_without_weights` is enough.
        processor: of the model.
        what: the image, mode "RGB", or the clip.
    """
    if isinstance(what, Image.Image):
        return Shown(1, 0, [what])
    if way_of(family, processor) == "images":
        return Shown(len(what.frames), 0, list(what.frames), noun="clip")
    # How many frames a second the processor gets follows from how long the clip is and how many they are.
    metadata = {
        "fps": float(_TICKS),
        "total_num_frames": max(len(what.frames), round(what.duration * _TICKS)),
        "frames_indices": [round(time * _TICKS) for time in what.times],
        "duration": what.duration,
        "width": what.size[0],
        "height": what.size[1],
    }
    frames = np.stack([np.asarray(frame) for frame in what.frames])
    # A list for each prompt: from transformers 5.20 to 5.22, SmolVLM's processor takes a clip alone for a list of them.
    others = {"videos": [[frames]], "video_metadata": [metadata], "do_sample_frames": False}
    parameters = inspect.signature(type(processor).__call__).parameters
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        others = {name: value for name, value in others.items() if name in parameters}
    return Shown(0, 1, (), others, "clip")


@dataclass(frozen=True)
class VisualPrompt:
    """One question about an image or a clip, as a model takes it.

    Attributes:
        inputs: what the processor returned.
        layouts: of the image, of the clip, or of each frame where frames are images.
        way: how the model takes the clip; None for an image.
        frames: of the clip; 1 for an image.
    """

    inputs: dict[str, Any]
    layouts: tuple[Layout, ...]
    way: Way | None
    frames: int

    def fitting(self, room: int | None) -> int:
        """Return how many frames fit into a prompt of at most `room` tokens: all, if that is None."""
        length = int(self.inputs["input_ids"].shape[1])
        if room is None or length <= room:
            return self.frames
        visual = sum(layout.total for layout in self.layouts)
        return max(0, (room - (length - visual)) * self.frames // visual)


def visual_prompt(family: Family, processor: Any, what: Image.Image | Clip, question: str) -> VisualPrompt:
    """Put an image or a clip before a question, and check that prompt and model belong together.

    Args:
        family: of the model; that of `loading.family_without_weights` is enough.
        processor: of the model.
        what: the image, mode "RGB", or the clip.
        question: text, not empty, without a placeholder of the model.

    Raises:
        FoveateError: the question can't be asked, the processor refuses the image or the clip, or processor and model
            don't belong together.
    """
    shown = shown_to(family, processor, what)
    inputs = shown.inputs(processor, shown.text(processor, question))
    if isinstance(what, Image.Image):
        return VisualPrompt(inputs, (layout_of_prompt(family, inputs),), None, 1)
    return VisualPrompt(inputs, prompt_layouts(family, inputs), way_of(family, processor), len(what.frames))


def expected_layouts(family: Family, what: Image.Image | Clip) -> tuple[tuple[Layout, ...], Way | None]:
    """Return what `VisualPrompt.layouts` and `way` are with the family's own processor, without one.

    The settings of a model's processor may ask for something else. Those of the models that come with foveate don't.

    Args:
        family: of the model; that of `loading.family_without_weights` is enough.
        what: the image or the clip.

    Raises:
        FoveateError: an image of this size leaves no token.
    """
    width, height = what.size
    if isinstance(what, Image.Image):
        return (family.image_layout(height, width),), None
    if family.clip_places:
        return (family.clip_layout(len(what.frames), height, width),), "video"
    return (family.frame_layout(height, width),) * len(what.frames), "images"
