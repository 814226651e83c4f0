"""Show the pictures that changed questions are about, and what each spec keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from foveate.errors import FoveateError
from foveate.images import data_url

if TYPE_CHECKING:
    from PIL import Image

    from foveate.bench import Task
    from foveate.report.measured import Measured

__all__ = ["Examples", "checked_task", "examples"]

SIDE: Final = 320
"""The longer side of a picture on the page, in pixels."""
_QUALITY: Final = 82


@dataclass(frozen=True)
class Examples:
    """Pictures for a page, each a `data:` address of a JPEG.

    Attributes:
        pictures: per image, by name.
        kept: per image and spec: the picture with what is kept lit, and the number of tokens.
        lines: what can't be shown, and why.
    """

    pictures: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Mapping[str, tuple[str, int]]] = field(default_factory=dict)
    lines: Sequence[str] = ()


def checked_task(run: Measured, task: Task) -> Task:
    """Return a task if it is the one that a run answered.

    Raises:
        FoveateError: it has other images, questions or answers.
    """
    if task.digest != run.config["data"]:
        raise FoveateError(
            f"{run.name} answered other questions than {task.name} holds now (or other images, or another part of "
            "them); give the file that foveate bench read, unchanged, and its --questions and --skip"
        )
    return task


def examples(
    run: Measured, task: Task, most: int, model: Any = None, processor: Any = None, specs: Sequence[str] | None = None
) -> Examples:
    """Make the pictures of the first images that a changed question is about.

    Args:
        run: what was measured.
        task: that it answered; `checked_task` tells.
        most: at most so many images.
        model: draws what is kept; None shows the pictures alone.
        processor: of the model.
        specs: which of the run's are drawn; None is all that act before the decoder.

    Raises:
        FoveateError: an image can't be read, or the model isn't the run's.
    """
    from PIL import Image

    wanted = list(dict.fromkeys(each.image for each in run.changes()))
    by_name = {picture.name: picture for picture in task.pictures}
    pictures: dict[str, str] = {}
    kept: dict[str, dict[str, tuple[str, int]]] = {}
    lines = []
    if len(wanted) > most:
        lines.append(f"Pictures are shown of {most} of the {len(wanted)} images that changed questions are about.")
    if model is not None:
        _check_model(run, model, processor)
    left_out: dict[str, str] = {}
    for name in wanted[:most]:
        opened = by_name[name].load()
        image = opened if isinstance(opened, Image.Image) else opened.frames[0]
        pictures[name] = _address(image)
        if model is None or not isinstance(opened, Image.Image):
            continue
        kept[name] = {}
        for spec in run.specs if specs is None else specs:
            if spec in left_out:
                continue
            try:
                kept[name][spec] = _kept(model, processor, image, by_name[name].questions[0].text, spec)
            except FoveateError as error:
                left_out[spec] = str(error)
    lines += [f"What {spec} keeps isn't drawn: {why}." for spec, why in left_out.items()]
    return Examples(pictures, kept, lines)


def _check_model(run: Measured, model: Any, processor: Any) -> None:
    from foveate.fingerprint import answering_fingerprint

    if answering_fingerprint(model, processor) != run.config["model"]:
        raise FoveateError(
            f"{run.name} was measured with another model, other weights or another processor; give the one that "
            "foveate bench was given"
        )


def _kept(model: Any, processor: Any, image: Image.Image, question: str, spec: str) -> tuple[str, int]:
    """Return a picture of what a spec keeps of an image, and how many tokens."""
    import torch

    from foveate.asking import seen_part, token_side
    from foveate.engine import compress
    from foveate.engine.encode import moved
    from foveate.families import family_of
    from foveate.view import Panel
    from foveate.view.overlay import draw_panel
    from foveate.visual_prompts import visual_prompt

    family = family_of(model)
    prompt = visual_prompt(family, processor, image, question)
    with torch.inference_mode():
        (one,) = compress(model, moved(prompt.inputs, family.device), spec).images
    panel = Panel(prompt.layouts[0], plan=one.plan, seen=one.seen, patch=token_side(model.config))
    return _address(draw_panel(seen_part(processor, image), panel, SIDE)), one.after


def _address(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return data_url(small, "jpeg", quality=_QUALITY)
