"""The words that scenes are made of: colours, shapes, sizes, places and the words that are drawn as text."""

from __future__ import annotations

from typing import Final

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 220, 50),
    "green": (30, 150, 50),
    "teal": (20, 175, 175),
    "blue": (35, 75, 215),
    "purple": (140, 60, 190),
    "brown": (125, 75, 35),
    "gray": (128, 128, 128),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
"""Colour names and the RGB value in the middle of each."""

SHAPES: Final[tuple[str, ...]] = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
"""The shapes that scenes draw."""

SIZES: Final[dict[str, tuple[float, float]]] = {"small": (10.0, 16.0), "medium": (22.0, 32.0), "large": (44.0, 62.0)}
"""Size names and their range in pixels (the longer side); the gaps between them keep the names unambiguous."""

WORDS: Final[tuple[str, ...]] = (
    "cat", "dog", "sun", "map", "key", "cup", "hat", "bus", "tea", "egg",
    "box", "pen", "lamp", "tree", "fish", "bird", "moon", "rain", "snow", "milk",
    "rice", "salt", "door", "wolf", "bear", "frog", "ship", "boat", "road", "hill",
    "king", "gold", "wind", "fire", "leaf", "bell",
)  # fmt: skip
"""The words that scenes draw as text: short, and each one a single token of the reference tokenizer."""

PLACES: Final[tuple[str, ...]] = (
    "top-left", "top", "top-right",
    "left", "middle", "right",
    "bottom-left", "bottom", "bottom-right",
)  # fmt: skip
"""The nine places of an image, row by row."""

SKILLS: Final[tuple[str, ...]] = (
    "exist", "count", "attribute", "where", "relation", "read_text", "read_value", "find_small",
)  # fmt: skip
"""What a question asks for; every question of a scene has one."""
