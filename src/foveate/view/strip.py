"""Draw plans over a clip: a strip of its frames, with what is kept of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from foveate.arguments import check_kind, listed
from foveate.errors import FoveateError
from foveate.numbers import Between, check_real, check_whole
from foveate.plan import Plan
from foveate.tokens import Layout
from foveate.view.overlay import (
    GROUND,
    INK,
    QUIET,
    SLOT,
    Panel,
    draw_grid,
    draw_grids,
    draw_panel,
    groups_of,
    palette,
    write,
)

__all__ = ["DrawnFrame", "Strip", "draw_frames", "draw_strips"]

_WIDTH: Final = 1760
"""Pixels of a whole row of frames."""
_LARGEST: Final = 480
_ACROSS: Final = 8
"""The most frames in a row."""
_UNLIT: Final = (44, 50, 62)


@dataclass(frozen=True)
class Strip:
    """What becomes of the tokens of a clip, with captions.

    Attributes:
        layouts: of the clip, or of each of its frames where they are images.
        title: the larger caption, for instance a spec.
        note: the smaller caption behind it.
        plans: for each layout a batch of one; None keeps everything; () keeps everything of all.
        seen: the grids that the encoder saw, for each layout; None, and (), are the layouts themselves.
        patch: pixels of the model's input along one side of a token.
    """

    layouts: tuple[Layout, ...]
    title: str = ""
    note: str = ""
    plans: tuple[Plan | None, ...] = ()
    seen: tuple[Layout | None, ...] = ()
    patch: int = 14


def draw_strips(
    frames: Sequence[Image.Image],
    times: Sequence[float],
    strips: Sequence[Strip],
    heading: str = "",
    side: int | None = None,
) -> Image.Image:
    """Draw several plans over the frames of one clip, one below the other.

    Kept tokens are lit and dropped ones dimmed. Tokens that are merged have the colour of the token that they flow
    into, the same in all frames; kept tokens are outlined. Under each frame stand when it is shown and how many tokens
    it keeps, with a bar for their share. Where the model makes one grid of several frames, the first of them is drawn.

    Args:
        frames: of one size, mode "RGB": what the encoder saw of each.
        times: when each is shown, in seconds.
        strips: at least one.
        heading: a line above all, for instance the question.
        side: the longer side of a frame in pixels; None chooses by their number, up to 8 in a row.

    Returns:
        Mode "RGB".

    Raises:
        FoveateError: there is no frame or no strip, or layouts, times and frames differ in number.

    >>> from foveate.tokens import Segment
    >>> grey = [Image.new("RGB", (40, 30), "grey")] * 4
    >>> draw_strips(grey, [0.0, 1.0, 2.0, 3.0], [Strip((Layout((Segment(4, 3, 4),)),))], side=60).width
    276
    """
    frames, strips = listed("frames", frames, "a list of PIL images"), listed("strips", strips, "a list of strips")
    for frame in frames:
        check_kind("a frame", frame, Image.Image, "a PIL image")
    for strip in strips:
        check_kind("a strip", strip, Strip, "a Strip")
        if not strip.layouts:
            raise FoveateError("a strip has no layout; give that of the clip, or one for each frame")
    if not frames or not strips:
        raise FoveateError("there is nothing to draw; give at least one frame and one strip")
    times = [check_real("a time", time, Between(0)) for time in listed("times", times, "a list of seconds")]
    if len(times) != len(frames):
        raise FoveateError(f"{len(frames)} frames have {len(times)} times; give one for each")
    check_kind("heading", heading, str, "text")
    if side is not None:
        check_whole("side", side, Between(16, 10_000))

    shown = [_grids(strip) for strip in strips]
    most = max(shown)
    across = most if most <= _ACROSS else -(-most // -(-most // _ACROSS))
    size = side or _side(frames[0], across)
    drawn = [list(draw_frames(frames, strip, size)) for strip in strips]
    width, height = (max(getattr(each.picture, name) for row in drawn for each in row) for name in ("width", "height"))
    gap, small = max(4, width // 36), max(11, min(20, round(width * 0.062)))
    cell = height + round(small * 1.9) + gap
    margin, large = 2 * gap + 4, round(small * 1.5)
    title, top = round(large * 2.0), round(large * 2.4) if heading else 0
    rows = [-(-number // across) for number in shown]
    sheet = Image.new(
        "RGB",
        (
            2 * margin + across * width + (across - 1) * gap,
            2 * margin + top + sum(title + number * cell for number in rows) + (len(rows) - 1) * gap - gap,
        ),
        GROUND,
    )
    pen = ImageDraw.Draw(sheet)
    inside, y = sheet.width - 2 * margin, margin
    if heading:
        write(pen, (margin, y), heading, inside, round(large * 1.25), INK, bold=True)
        y += top
    for strip, pictures, down in zip(strips, drawn, rows, strict=True):
        begin = write(pen, (margin, y), strip.title, inside, large, INK, bold=True)
        if strip.note and inside - begin > 8 * large:
            place = (margin + begin + large, y + large - small)
            write(pen, place, strip.note, inside - begin - large, round(small * 1.1), QUIET)
        for number, each in enumerate(pictures):
            corner = (margin + number % across * (width + gap), y + title + number // across * cell)
            sheet.paste(each.picture, corner)
            below = (corner[0], corner[1] + each.picture.height)
            _caption(pen, below, each, _clock(times[each.frame], times[-1]), small)
        y += title + down * cell + gap
    return sheet


@dataclass(frozen=True, eq=False)
class DrawnFrame:
    """A frame with its plan.

    Attributes:
        frame: its number.
        picture: mode "RGB".
        kept: tokens that are kept of it.
        count: tokens that it has without any step.
        tokens: `(rows, columns)`, which token of the clip each place is; None where the frame is an image of its own
            with several grids.
    """

    frame: int
    picture: Image.Image
    kept: int
    count: int
    tokens: np.ndarray | None = None


def _grids(strip: Strip) -> int:
    """Return how many pictures a strip has."""
    return sum(segment.t for segment in strip.layouts[0].segments) if len(strip.layouts) == 1 else len(strip.layouts)


def _side(frame: Image.Image, across: int) -> int:
    """Return the longer side of each frame if so many stand in a row."""
    width = min(_LARGEST, _WIDTH // across)
    return round(width * max(1.0, min(frame.height / frame.width, 1.6)))


def draw_frames(frames: Sequence[Image.Image], strip: Strip, side: int) -> Iterator[DrawnFrame]:
    """Draw the frames of a strip, each by itself.

    Args:
        frames: of one size, mode "RGB": what the encoder saw of each.
        strip: what to draw, without its captions.
        side: the longer side of a frame in pixels.

    Raises:
        FoveateError: there are more layouts than frames.
    """
    plans: tuple[Plan | None, ...] = strip.plans or (None,) * len(strip.layouts)
    seen: tuple[Layout | None, ...] = strip.seen or strip.layouts
    if _grids(strip) > len(frames) or len(plans) != len(strip.layouts) or len(seen) != len(strip.layouts):
        raise FoveateError(
            f"{len(frames)} frames, {len(strip.layouts)} layouts, {len(plans)} plans and {len(seen)} layouts that the "
            "encoder saw don't fit together"
        )
    if len(strip.layouts) > 1:
        for number, (layout, plan, grid) in enumerate(zip(strip.layouts, plans, seen, strict=True)):
            panel = Panel(layout, plan=plan, seen=grid, patch=strip.patch)
            kept = (grid or layout).content if plan is None else plan.slot.shape[1]
            begin = sum((each or full).content for full, each in zip(strip.layouts[:number], seen))
            grids = draw_grids(frames[number], panel, side)
            if len(grids) == 1:
                yield DrawnFrame(number, grids[0].picture, kept, layout.content, grids[0].tokens + begin)
            else:
                yield DrawnFrame(number, draw_panel(frames[number], panel, side), kept, layout.content)
        return
    layout = next(iter(strip.layouts))
    plan, grid = next(iter(plans)), next(iter(seen)) or layout
    group, slots = groups_of(plan, grid.content)
    sizes = np.bincount(group[group >= 0], minlength=1)
    colours = None if sizes.max(initial=0) <= 1 else palette(len(sizes))
    if colours is not None:
        # Among so many, those that stay as they are are told apart by having no colour.
        colours[sizes == 1] = np.nan
    kept_tokens = np.array(slots)
    whole = [(segment.h, segment.w) for segment in layout.segments for _ in range(segment.t)]
    parts = [(segment.h, segment.w) for segment in grid.segments for _ in range(segment.t)]
    per_grid, begin = -(-len(frames) // len(parts)), 0
    for number, (full, (rows, columns)) in enumerate(zip(whole, parts, strict=True)):
        end = begin + rows * columns
        inside = (kept_tokens[(kept_tokens >= begin) & (kept_tokens < end)] - begin).tolist()
        owner = group[begin:end].reshape(rows, columns)
        frame = min(number * per_grid, len(frames) - 1)
        picture = draw_grid(frames[frame], full, owner, inside, colours, side, strip.patch)
        tokens = np.arange(begin, end).reshape(rows, columns)
        yield DrawnFrame(frame, picture, len(inside), full[0] * full[1], tokens)
        begin = end


def _caption(pen: ImageDraw.ImageDraw, place: tuple[int, int], drawn: DrawnFrame, time: str, size: int) -> None:
    """Write under a frame when it is shown and what is kept of it, and draw a bar for the share that is kept."""
    (x, y), width = place, drawn.picture.width
    thick = max(3, size // 4)
    pen.rectangle([x, y + 2, x + width - 1, y + 1 + thick], fill=_UNLIT)
    if drawn.kept:
        lit = max(2, round(width * min(1.0, drawn.kept / drawn.count)))
        pen.rectangle([x, y + 2, x + lit - 1, y + 1 + thick], fill=SLOT)
    line = y + thick + round(size * 0.25)
    end = write(pen, (x, line), time, width // 2, size, QUIET)
    kept = f"{drawn.kept} of {drawn.count}" if end + size * 6 < width else f"{drawn.kept}"
    write(pen, (x + width, line), kept, width - end - size // 2, size, INK if drawn.kept else QUIET, right=True)


def _clock(seconds: float, longest: float) -> str:
    """Write a time: in seconds for a short clip, in minutes for a long one.

    >>> _clock(6.25, 10.0), _clock(75.2, 100.0), _clock(3725.0, 4000.0)
    ('6.2 s', '1:15', '1:02:05')
    """
    if longest < 60:
        return f"{seconds:.1f} s" if longest >= 2 else f"{seconds:.2f} s"
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
