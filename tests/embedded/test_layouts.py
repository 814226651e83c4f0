"""What is counted without a processor is what the processors of the embedded models make."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip_files import frame
from foveate.clips import Clip
from foveate.embedded import PATH
from foveate.embedded.clips import CLIP_PATH
from foveate.loading import embedded_family, family_without_weights, load_processor
from foveate.visual_prompts import expected_layouts, visual_prompt

SIZES = ((192, 192), (640, 480), (33, 900), (7, 7))


def image(size: tuple[int, int]) -> Image.Image:
    return frame(1, size)


def clip(size: tuple[int, int]) -> Clip:
    return Clip(tuple(frame(number, size) for number in range(3)), (0.5, 1.5, 2.5), 3.0, 90)


@pytest.mark.parametrize(
    ("folder", "shown"), [(PATH, image), (PATH, clip), (CLIP_PATH, clip)], ids=["image", "frames", "clip"]
)
def test_layouts_need_no_processor(folder: Path, shown: Callable[[tuple[int, int]], Any]) -> None:
    family, processor = family_without_weights(folder), load_processor(folder)
    for size in SIZES:
        found = visual_prompt(family, processor, shown(size), "?")
        assert expected_layouts(embedded_family(folder), shown(size)) == (found.layouts, found.way)
