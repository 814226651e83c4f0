"""Open the image or the clip that a command is given, and say how a model takes a clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from PIL import Image

    from foveate.clips import Clip
    from foveate.families import Family
    from foveate.visual_prompts import VisualPrompt, Way


def open_visual(path: Path, frames: int | None, fps: float | None) -> Image.Image | Clip:
    """Open an image or a clip.

    Raises:
        FoveateError: it can't be read, or frames of an image are asked for.
    """
    from foveate import clips, images
    from foveate.files import shown_path

    clips.check_sampling(frames, fps)
    if clips.is_clip(path):
        return clips.open_clip(path, frames, fps)
    if frames is not None or fps is not None:
        option = f"--frames {frames}" if fps is None else f"--fps {fps:g}"
        images.open_image(path)
        raise FoveateError(f"{option} chooses frames of a clip, and {shown_path(path)} is an image; leave it out")
    return images.open_image(path)


def fitting_prompt(
    family: Family,
    processor: Any,
    path: Path,
    opened: Image.Image | Clip,
    question: str,
    room: int | None,
) -> tuple[Image.Image | Clip, VisualPrompt]:
    """Return what is shown before a question, and the prompt: of a clip at most as many frames as there is room for.

    Args:
        family: of the model.
        processor: of the model.
        path: of the image or clip.
        opened: what is there.
        question: the text.
        room: the most tokens of the prompt; None takes the frames as they are.

    Raises:
        FoveateError: `visual_prompts.visual_prompt` tells when.
    """
    from PIL import Image

    from foveate.clips import open_clip
    from foveate.visual_prompts import visual_prompt

    found = visual_prompt(family, processor, opened, question)
    if isinstance(opened, Image.Image) or not 0 < found.fitting(room) < found.frames:
        return opened, found
    opened = open_clip(path, found.fitting(room))
    return opened, visual_prompt(family, processor, opened, question)


def clip_line(path: Path, clip: Clip, way: Way, title: str) -> str:
    """Say which frames of a clip a model gets, and how.

    >>> from PIL import Image
    >>> from foveate.clips import Clip
    >>> clip = Clip((Image.new("RGB", (64, 48)),) * 2, (0.5, 1.5), 2.0, 50)
    >>> print(clip_line(Path("clip.mp4"), clip, "images", "LLaVA"))
    clip.mp4: 2 of 50 frames, at 0.5 and 1.5 s, given to LLaVA as 2 images: each has the tokens that a spec keeps.
    """
    times = [f"{time:.1f}" for time in clip.times]
    if len(times) > 4:
        times = [times[0], times[1], "...", times[-1]]
    moments = times[0] if len(times) == 1 else f"{', '.join(times[:-1])} and {times[-1]}"
    count = len(clip.frames)
    how = "a video" if way == "video" else f"{count} images: each has the tokens that a spec keeps"
    return f"{path}: {count} of {clip.count:,} frames, at {moments} s, given to {title} as {how}."


def clip_json(opened: Image.Image | Clip, way: Way | None) -> dict[str, Any]:
    """Return what JSON tells of a clip; nothing of an image."""
    from foveate.clips import Clip

    if not isinstance(opened, Clip):
        return {}
    times = [round(time, 6) for time in opened.times]
    return {"clip": {"frames": opened.count, "duration": opened.duration, "times": times, "taken_as": way}}
