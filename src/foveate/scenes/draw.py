"""Draw scenes: textured backgrounds, anti-aliased shapes at fractional positions, text in four fonts."""

from __future__ import annotations

import functools
import math
import random
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from foveate.fonts import font

RGB = tuple[int, int, int]

FONT_SHARES: Final[tuple[int, ...]] = (9, 5, 3, 3)
"""How often each of `fonts.FONTS` is drawn."""

_OVERSAMPLE: Final = 4


def contrast(a: RGB, b: RGB) -> float:
    """Return the contrast of two colours: Euclidean distance with the usual weights of the eye, 0 to about 255.

    >>> contrast((0, 0, 0), (255, 255, 255))
    255.0
    """
    return math.sqrt(sum(w * (x - y) ** 2 for w, x, y in zip((0.3, 0.5, 0.2), a, b)))


_PALE: Final[tuple[RGB, ...]] = (
    (236, 228, 210), (214, 226, 238), (222, 236, 218), (238, 218, 224), (226, 222, 238), (202, 204, 206),
)  # fmt: skip
_DARK: Final[tuple[RGB, ...]] = ((34, 40, 62), (30, 56, 48), (62, 36, 46), (52, 52, 56), (44, 34, 66))


def background(rng: random.Random, canvas: int) -> tuple[Image.Image, RGB]:
    """Draw a textured background, pale or dark; returns the image and its base colour.

    >>> picture, base = background(random.Random(0), 192)
    >>> picture.size
    (192, 192)
    """
    base = rng.choice(_PALE if rng.random() < 0.8 else _DARK)
    strength = rng.uniform(2, 10)
    style = rng.choice(("flat", "gradient", "stripes", "clouds", "checks"))
    noise = np.random.default_rng(rng.getrandbits(32))
    y, x = np.mgrid[0:canvas, 0:canvas].astype(np.float32)
    if style == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        field = (math.cos(angle) * x + math.sin(angle) * y) / canvas * 2 - 1
    elif style == "stripes":
        angle, period = rng.uniform(0, math.pi), rng.uniform(5, 30)
        field = np.sin((math.cos(angle) * x + math.sin(angle) * y) * (2 * math.pi / period))
    elif style == "clouds":
        n = rng.choice((3, 6, 12, 24))
        coarse = noise.standard_normal((n, n)).astype(np.float32)
        field = np.asarray(Image.fromarray(coarse).resize((canvas, canvas), Image.Resampling.BICUBIC))
    elif style == "checks":
        period = rng.choice((6, 9, 14, 22))
        field = ((x // period + y // period) % 2) * 2 - 1
    else:
        field = np.zeros((canvas, canvas), np.float32)
    grain = noise.standard_normal((canvas, canvas), dtype=np.float32) * rng.uniform(0, 3)
    pixels = np.asarray(base, np.float32) + (field * strength + grain)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), base


@functools.lru_cache(maxsize=512)
def _outline(shape: str, turn: int) -> tuple[tuple[float, float], ...]:
    """Return the corners of a shape in the unit circle; ``turn`` in degrees."""
    if shape == "triangle":
        points = [(math.sin(a), -math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    elif shape == "star":
        points = [
            (
                (1 if i % 2 == 0 else 0.42) * math.sin(i * math.pi / 5),
                -(1 if i % 2 == 0 else 0.42) * math.cos(i * math.pi / 5),
            )
            for i in range(10)
        ]
    elif shape == "cross":
        a, b = 0.32, 0.95
        points = [
            (-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a),
        ]  # fmt: skip
    elif shape == "diamond":
        points = [(0, -1), (0.66, 0), (0, 1), (-0.66, 0)]
    elif shape == "heart":
        ts = [i * 2 * math.pi / 40 for i in range(40)]
        points = [
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in ts
        ]
    else:  # square
        points = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return tuple((c * x - s * y, s * x + c * y) for x, y in points)


def draw_shape(picture: Image.Image, shape: str, centre: tuple[float, float], size: float, rgb: RGB, turn: int) -> None:
    """Draw one filled shape in place, anti-aliased, its longest side ``size`` pixels, turned by ``turn`` degrees.

    >>> picture = Image.new("RGB", (32, 32))
    >>> draw_shape(picture, "circle", (16.5, 16.0), 20.0, (255, 0, 0), 0)
    >>> picture.getpixel((16, 16))
    (255, 0, 0)
    """
    half = size / 2
    left, top = math.floor(centre[0] - half) - 1, math.floor(centre[1] - half) - 1
    side = math.ceil(size) + 3
    tile = Image.new("L", (side * _OVERSAMPLE, side * _OVERSAMPLE))
    pen = ImageDraw.Draw(tile)
    cx, cy, r = (centre[0] - left) * _OVERSAMPLE, (centre[1] - top) * _OVERSAMPLE, half * _OVERSAMPLE
    if shape == "circle":
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
    elif shape == "ring":
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
        q = r * 0.55
        pen.ellipse((cx - q, cy - q, cx + q, cy + q), fill=0)
    elif shape == "rectangle":
        pen.rectangle((cx - r, cy - r * 0.55, cx + r, cy + r * 0.55), fill=255)
    else:
        pen.polygon([(cx + r * x, cy + r * y) for x, y in _outline(shape, turn)], fill=255)
    picture.paste(rgb, (left, top), tile.reduce(_OVERSAMPLE))


def text_size(text: str, name: str, size: int) -> tuple[int, int]:
    """Return the width and height of the ink of a text, in pixels.

    >>> width, height = text_size("cat", "DejaVuSans", 12)
    >>> width > height > 0
    True
    """
    x0, y0, x1, y1 = font(name, size).getbbox(text)
    return int(x1 - x0), int(y1 - y0)


def draw_text(picture: Image.Image, text: str, corner: tuple[int, int], name: str, size: int, rgb: RGB) -> None:
    """Draw a text in place so that the upper left corner of its ink is at ``corner``.

    >>> picture = Image.new("RGB", (32, 32))
    >>> draw_text(picture, "tea", (2, 2), "DejaVuSans", 12, (255, 255, 255))
    """
    x0, y0, _, _ = font(name, size).getbbox(text)
    ImageDraw.Draw(picture).text((corner[0] - x0, corner[1] - y0), text, font=font(name, size), fill=rgb)


def draw_line(picture: Image.Image, text: str, start: tuple[int, int], name: str, size: int, rgb: RGB) -> None:
    """Draw a text in place so that it starts at ``start`` on the base line.

    >>> picture = Image.new("RGB", (32, 32))
    >>> draw_line(picture, "tea", (2, 20), "DejaVuSans", 12, (255, 255, 255))
    """
    ImageDraw.Draw(picture).text(start, text, font=font(name, size), fill=rgb, anchor="ls")
