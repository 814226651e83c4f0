"""Draw plans over their image: kept tokens are lit, dropped ones dimmed."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.arguments import check_kind, listed
from foveate.errors import FoveateError
from foveate.files import atomic_file, check_writable_file, checked_path, is_folder, shown_path
from foveate.fonts import font
from foveate.numbers import Between, check_whole
from foveate.plan import Plan
from foveate.tokens import Layout, Segment

__all__ = ["DrawnGrid", "Panel", "draw", "draw_grids", "draw_panel", "save_picture", "writable"]

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")

GROUND: Final = (15, 18, 24)
INK: Final = (240, 243, 248)
QUIET: Final = (152, 160, 174)
SLOT: Final = (255, 255, 255)
_GOLDEN: Final = 0.618033988749895
_DIM: Final = 0.16
_TINT: Final = 0.42


@dataclass(frozen=True)
class Panel:
    """One plan to draw, with its captions.

    Attributes:
        layout: the grids of the uncompressed image.
        title: the larger caption, for instance a spec.
        note: the smaller caption under it.
        plan: a batch of one image over the tokens of `seen`; None keeps everything.
        seen: the grids that the encoder saw: smaller than `layout` when the image was shrunk; None is `layout`.
        patch: pixels of the model's input along one side of a token, to show how little a shrunk image holds.
    """

    layout: Layout
    title: str = ""
    note: str = ""
    plan: Plan | None = None
    seen: Layout | None = None
    patch: int = 14


def draw_panel(image: Image.Image, panel: Panel, side: int = 672) -> Image.Image:
    """Draw one plan over its image.

    Kept tokens are lit and dropped ones dimmed. Tokens that are merged have the colour of the token that they flow
    into, whose slot is outlined. A shrunk image shows the detail it has left, under its coarser grid.

    Args:
        image: mode "RGB", what the encoder saw, any size.
        panel: what to draw; its captions are left to `draw`.
        side: about the longer side of the result, in pixels: every token gets whole pixels.

    Returns:
        Mode "RGB".

    An image of several grids is drawn once for each: the largest on top, as a rule the tiles, and the others, such as
    the whole image in fewer tokens, half as large under it. Tiles that are grids of their own are put together again.
    Newlines are not drawn: they belong to their rows.

    >>> from foveate.tokens import Segment
    >>> draw_panel(Image.new("RGB", (90, 60)), Panel(Layout((Segment(1, 4, 6),))), side=120).size
    (120, 80)
    """
    drawn = draw_grids(image, panel, side)
    largest = max(range(len(drawn)), key=lambda number: drawn[number].full)
    top, *others = [drawn[largest].picture, *(each.picture for n, each in enumerate(drawn) if n != largest)]
    if not others:
        return top
    gap = max(2, side // 40)
    width = max(top.width, sum(each.width for each in others) + gap * (len(others) - 1))
    sheet = Image.new("RGB", (width, top.height + gap + max(each.height for each in others)), GROUND)
    sheet.paste(top, (0, 0))
    left = 0
    for each in others:
        sheet.paste(each, (left, top.height + gap))
        left += each.width + gap
    return sheet


@dataclass(frozen=True, eq=False)
class DrawnGrid:
    """One grid of an image with its plan.

    Attributes:
        picture: mode "RGB".
        tokens: `(rows, columns)`, which token of the image each place of the grid is.
        full: tokens of the grid without any step.
    """

    picture: Image.Image
    tokens: np.ndarray
    full: int


def draw_grids(image: Image.Image, panel: Panel, side: int = 672) -> list[DrawnGrid]:
    """Draw one plan over its image as `draw_panel` does, each grid of the image by itself.

    Args:
        image: mode "RGB", what the encoder saw, any size.
        panel: what to draw, without its captions.
        side: the longer side of the largest grid in pixels; others are half as large.

    >>> from foveate.tokens import Segment
    >>> tiles = Layout((Segment(1, 2, 2), Segment(1, 4, 4)))
    >>> [(each.picture.size, int(each.tokens.min())) for each in draw_grids(Image.new("RGB", (8, 8)), Panel(tiles), 80)]
    [((40, 40), 0), ((80, 80), 4)]
    """
    check_kind("image", image, Image.Image, "a PIL image")
    check_kind("panel", panel, Panel, "a Panel")
    seen = panel.seen or panel.layout
    group, slots = groups_of(panel.plan, seen.content)
    alone = np.bincount(group[group >= 0], minlength=1).max(initial=0) <= 1
    colours = None if alone else palette(int(group.max()) + 1)
    grids = list(zip(over_image(panel.layout.segments), over_image(seen.segments), strict=True))
    largest = max(range(len(grids)), key=lambda number: grids[number][0].size)
    drawn: list[DrawnGrid] = []
    for number, (full, tokens) in enumerate(grids):
        place = {token: at for at, token in enumerate(tokens.flatten().tolist())}
        inside = [place[slot] for slot in slots if slot in place]
        size = side if number == largest else side // 2
        picture = draw_grid(image, full.shape, group[tokens], inside, colours, size, panel.patch)
        drawn.append(DrawnGrid(picture, tokens, full.size))
    return drawn


def over_image(segments: Sequence[Segment]) -> list[np.ndarray]:
    """Return the grids that show the whole image, the token at each of their places: `(h, w)` each.

    >>> left, right = (Segment(1, 1, 2, part=(0, column, 1, 2)) for column in (0, 1))
    >>> [grid.tolist() for grid in over_image((left, right, Segment(1, 1, 2)))]
    [[[0, 1, 2, 3]], [[4, 5]]]
    """
    grids: list[np.ndarray] = []
    tiles: list[np.ndarray] = []
    begin = 0
    for segment in segments:
        tiles.append(np.arange(begin, begin + segment.count).reshape(-1, segment.w))
        begin += segment.count
        rows, columns = segment.part[2:] or (1, 1)
        if len(tiles) == rows * columns:
            grids.append(np.block([tiles[row * columns : (row + 1) * columns] for row in range(rows)]))
            tiles = []
    return grids


def draw_grid(
    image: Image.Image,
    full: tuple[int, ...],
    owner: np.ndarray,
    slots: Sequence[int],
    colours: np.ndarray | None,
    side: int,
    patch: int,
) -> Image.Image:
    """Draw one grid of tokens over the whole image; `colours` are those of the groups, None if nothing is merged.

    Args:
        image: mode "RGB".
        full: rows and columns of the grid without any step.
        owner: `(rows, columns)`, the group of each token, -1 for none.
        slots: places in it that are kept.
        colours: `(groups, 3)`; NaN leaves the tokens of a group without one.
        side: the longer side of the result, in pixels.
        patch: pixels of the model's input along one side of a token.
    """
    rows, columns = owner.shape
    scale = side / max(image.size)
    cell = (max(2, round(image.width * scale / columns)), max(2, round(image.height * scale / rows)))
    size = (columns * cell[0], rows * cell[1])
    shrunk = owner.shape != full
    if shrunk:
        small = image.resize((columns * patch, rows * patch), Image.Resampling.BOX)
        pixels = np.asarray(small.resize(size, Image.Resampling.NEAREST), dtype=np.float32)
    else:
        pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float32)

    alone = colours is None
    shown = _wide((owner >= 0)[..., None].astype(np.float32), cell)
    dim = pixels.mean(axis=2, keepdims=True) * _DIM + np.array(GROUND, dtype=np.float32) * 0.6
    # The image stays visible under the colours of the groups.
    lit = pixels
    if colours is not None:
        tint = _wide(colours[owner.clip(0)], cell)
        lit = np.where(np.isnan(tint), pixels, (1 - _TINT) * pixels + _TINT * tint)
    picture = Image.fromarray((shown * lit + (1 - shown) * dim).clip(0, 255).astype(np.uint8), "RGB")

    if alone and len(slots) == owner.size:
        return _ruled(picture, rows, columns, cell, strength=0.45 if shrunk else 0.16)
    if not alone:
        picture = _borders(picture, owner, cell)
    return _outlined(picture, slots, columns, cell, alone)


def draw(image: Image.Image, panels: Sequence[Panel], heading: str = "", side: int | None = None) -> Image.Image:
    """Draw several plans over one image, side by side with captions.

    Args:
        image: mode "RGB", what the encoder saw.
        panels: at least one; up to four stand in a row.
        heading: a line above all, for instance the question.
        side: the longer side of one panel in pixels; None chooses by the number of panels.

    Returns:
        Mode "RGB".

    Raises:
        FoveateError: the image is no PIL image, or there is no panel.
    """
    check_kind("image", image, Image.Image, "a PIL image")
    panels = listed("panels", panels, "a list of panels")
    for panel in panels:
        check_kind("a panel", panel, Panel, "a Panel")
    if not panels:
        raise FoveateError("there is no panel to draw; give at least one")
    check_kind("heading", heading, str, "text")
    if side is not None:
        check_whole("side", side, Between(16, 10_000))
    side = side or {1: 672, 2: 672, 3: 528}.get(_across(len(panels)), 408)
    drawn = [draw_panel(image, panel, side) for panel in panels]
    return draw_sheet(drawn, [(panel.title, panel.note) for panel in panels], heading, side)


def draw_sheet(
    drawn: Sequence[Image.Image], captions: Sequence[tuple[str, str]], heading: str, side: int
) -> Image.Image:
    """Put pictures side by side under a heading, each with a larger and a smaller line above it.

    Args:
        drawn: the pictures, mode "RGB"; up to four stand in a row.
        captions: of each, the two lines.
        heading: a line above all; "" for none.
        side: the longer side of a picture in pixels, which the letters fit.
    """
    across = _across(len(drawn))
    # Captions need a minimal width, even over tall images.
    width = max(round(side * 0.72), *(each.width for each in drawn))
    height = max(each.height for each in drawn)
    margin, gap = round(side * 0.05), round(side * 0.045)
    large, small, top = round(side * 0.052), round(side * 0.04), round(side * 0.06)
    caption = round(large * 1.35 + small * 1.5)
    down = -(-len(drawn) // across)
    head = round(top * 1.75) if heading else 0
    sheet = Image.new(
        "RGB",
        (
            2 * margin + across * width + (across - 1) * gap,
            2 * margin + head + down * (height + caption) + (down - 1) * gap,
        ),
        GROUND,
    )
    pen = ImageDraw.Draw(sheet)
    if heading:
        write(pen, (margin, margin), heading, sheet.width - 2 * margin, top, INK, bold=True)
    for number, ((title, note), one) in enumerate(zip(captions, drawn, strict=True)):
        x = margin + (number % across) * (width + gap)
        y = margin + head + (number // across) * (height + caption + gap)
        write(pen, (x, y), title, width, large, INK, bold=True)
        write(pen, (x, y + round(large * 1.35)), note, width, small, QUIET)
        sheet.paste(one, (x, y + caption), _rounded(one.size, round(side * 0.012)))
    return sheet


def _across(count: int) -> int:
    """Return how many of `count` pictures stand in a row."""
    return count if count <= 4 else -(-count // (-(-count // 4)))


def writable(path: str | Path) -> Path:
    """Return the path if a picture can be written to it.

    Raises:
        FoveateError: its name doesn't end like that of a picture, its folder is missing, or it can't be written.
    """
    path = checked_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise FoveateError(f"{shown_path(path)} has no suffix of a picture; use {', '.join(SUFFIXES)}")
    check_writable_file(path)
    if not is_folder(path.parent):
        raise FoveateError(f"there is no folder {shown_path(path.parent)} for {shown_path(path.name)}; make it first")
    return path


def save_picture(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture atomically.

    Raises:
        FoveateError: the name has no suffix of a picture, or the file can't be written.
    """
    check_kind("picture", picture, Image.Image, "a PIL image")
    path = writable(path)
    with atomic_file(path) as new:
        picture.save(new, format=Image.registered_extensions()[path.suffix.lower()], optimize=True, quality=92)
    return path


def groups_of(plan: Plan | None, count: int) -> tuple[np.ndarray, list[int]]:
    """Return per token the kept token that gets most of it, -1 if it is dropped; and the slots."""
    if plan is None:
        return np.arange(count), list(range(count))
    slots = plan.slot[0].tolist()
    if plan.mix is not None:
        share, into = plan.mix[0].abs().max(dim=0)
        group = into.masked_fill(share == 0, -1)
    else:
        group = plan.grouped(count).group[0]  # pyright: ignore[reportOptionalSubscript]
    return group.cpu().numpy(), slots


def palette(count: int) -> np.ndarray:
    """Return colours in which consecutive numbers differ clearly: `(count, 3)` float32, 0 to 255."""
    colours = [
        colorsys.hsv_to_rgb((number * _GOLDEN) % 1.0, (0.62, 0.85, 0.5)[number % 3], (0.95, 0.8, 1.0)[number % 3])
        for number in range(count)
    ]
    return np.array(colours, dtype=np.float32) * 255


def _wide(values: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """Enlarge `(rows, columns, C)` to one value per pixel."""
    return values.repeat(cell[1], axis=0).repeat(cell[0], axis=1)


def _ruled(picture: Image.Image, rows: int, columns: int, cell: tuple[int, int], strength: float) -> Image.Image:
    """Draw the lines of the grid."""
    lines = Image.new("L", picture.size, 0)
    pen = ImageDraw.Draw(lines)
    for column in range(1, columns):
        pen.line([(column * cell[0], 0), (column * cell[0], picture.height)], fill=round(255 * strength))
    for row in range(1, rows):
        pen.line([(0, row * cell[1]), (picture.width, row * cell[1])], fill=round(255 * strength))
    return Image.composite(Image.new("RGB", picture.size, GROUND), picture, lines)


def _borders(picture: Image.Image, owner: np.ndarray, cell: tuple[int, int]) -> Image.Image:
    """Draw dark lines between groups."""
    lines = Image.new("L", picture.size, 0)
    pen = ImageDraw.Draw(lines)
    thick = 2 if min(cell) >= 12 else 1
    for row, column in zip(*np.nonzero(owner[:, 1:] != owner[:, :-1])):
        x, y = (column + 1) * cell[0], row * cell[1]
        pen.rectangle([x - thick // 2, y, x + thick // 2 - (thick > 1), y + cell[1]], fill=190)
    for row, column in zip(*np.nonzero(owner[1:] != owner[:-1])):
        x, y = column * cell[0], (row + 1) * cell[1]
        pen.rectangle([x, y - thick // 2, x + cell[0], y + thick // 2 - (thick > 1)], fill=190)
    return Image.composite(Image.new("RGB", picture.size, GROUND), picture, lines)


def _outlined(
    picture: Image.Image, slots: Sequence[int], columns: int, cell: tuple[int, int], alone: bool
) -> Image.Image:
    """Draw a frame around each slot; a thin one around tokens that are not merged."""
    pen = ImageDraw.Draw(picture)
    thick = 1 if alone or min(cell) < 14 else 2
    # Tokens of a very thin image are two pixels wide, which leaves no room inside.
    inset = 0 if alone else min(max(1, min(cell) // 7), (min(cell) - 1) // 2)
    for slot in slots:
        x, y = slot % columns * cell[0], slot // columns * cell[1]
        box = [x + inset, y + inset, x + cell[0] - 1 - inset, y + cell[1] - 1 - inset]
        if not alone and inset > 1:
            # A dark rim, so that white shows on light colours too.
            pen.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline=GROUND, width=thick + 2)
        pen.rectangle(box, outline=SLOT, width=thick)
    return picture


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    mask = Image.new("L", (size[0] * 4, size[1] * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle([0, 0, size[0] * 4 - 1, size[1] * 4 - 1], radius * 4, fill=255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    width: int,
    size: int,
    colour: tuple[int, int, int],
    bold: bool = False,
    right: bool = False,
) -> int:
    """Write as much of a text as fits into `width` pixels, and return how many it takes.

    Args:
        pen: draws on the picture.
        place: the upper left corner; with `right`, the upper right one.
        text: one line.
        width: the most pixels.
        size: of the letters, in pixels.
        colour: of the letters.
        bold: whether they are bold.
        right: whether the text ends at the place.
    """
    text = " ".join(text.split())
    letters = _font(size, bold, text.isascii())
    shown = text
    while shown and letters.getlength(shown) > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    taken = round(letters.getlength(shown))
    pen.text((place[0] - taken, place[1]) if right else place, shown, colour, letters)
    return taken


@cache
def _font(size: int, bold: bool, plain: bool) -> ImageFont.FreeTypeFont:
    """Return foveate's own font for ASCII, and Pillow's for texts with the letters of other European languages."""
    if not plain:
        return ImageFont.load_default(size)  # pyright: ignore[reportReturnType]
    return font("DejaVuSans-Bold" if bold else "DejaVuSans", size)
