"""The layout of an image of any size, worked out from the configuration, against what the real processors make."""

from importlib.util import find_spec
from typing import Any

import pytest
from directories import make_processor
from PIL import Image
from rows import Row
from test_contract import CHAT
from test_processors import needs_torchvision

from foveate.errors import FoveateError
from foveate.families import family_class, family_of
from foveate.families.prompt_check import prompt_layouts

SIZES = (
    (1, 1), (1, 4000), (3000, 1), (2, 3), (3, 2), (7, 900), (900, 7), (30, 40), (37, 1000), (1000, 37), (64, 64),
    (90, 90), (100, 160), (170, 60), (224, 224), (240, 320), (300, 700), (333, 334), (334, 333), (336, 336), (336, 672),
    (364, 364), (364, 728), (384, 1536), (448, 448), (450, 900), (480, 640), (499, 501), (512, 512), (600, 200),
    (640, 480), (672, 1008), (720, 1280), (800, 801), (1000, 1000), (1080, 1920), (1200, 300), (1366, 768),
    (2000, 1500), (3000, 4000), (4000, 3000),
)  # fmt: skip
"""Height and width in pixels."""


def layout_in_prompt(family: Any, processor: Any, height: int, width: int) -> Any:
    """What a prompt with one blank picture of this size holds; None if that is nothing, or the processor refuses it."""
    image = Image.new("RGB", (width, height), (120, 60, 20))
    message = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "is it ?"}]}]
    # As released models have it; a row may ask for small pictures.
    if (limits := getattr(family, "pixel_limits", None)) is not None:
        processor.image_processor.size = {"shortest_edge": limits[0], "longest_edge": limits[1]}
    try:
        inputs = processor.apply_chat_template(message, tokenize=True, return_dict=True, return_tensors="pt")
        (layout,) = family.layouts(dict(inputs))
    except (ValueError, RuntimeError):  # the second is torch's own, in a processor
        return None
    assert int((inputs["input_ids"] == family.image_token).sum()) == layout.placeholders
    return layout if layout.total else None


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_layouts_are_the_processors_own(row: Row, model: Any, backend: str) -> None:
    if row.processor is None:
        pytest.skip(f"{row.name} names no processor")
    if needs_torchvision(row, backend) and find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    processor = make_processor(row, model.config, backend)
    alone, family = family_class(model.config).of_config(model.config), family_of(model)
    for height, width in SIZES:
        try:
            told = alone.image_layout(height, width)
        except FoveateError:
            told = None
        found = layout_in_prompt(family, processor, height, width)
        if told is None or found is None:
            # What leaves no token, or is too long, is refused by both.
            assert told is found, (height, width)
            continue
        assert told.total == found.total, (height, width)
        assert told.run_lengths == found.run_lengths, (height, width)
        if len({tuple(each.part) for each in found.segments}) == 1:
            assert told == found, (height, width)


def test_a_configuration_is_enough_to_read_a_prompt(row: Row, model: Any) -> None:
    alone, family = family_class(model.config).of_config(model.config), family_of(model)
    inputs = row.inputs(CHAT)
    assert prompt_layouts(alone, inputs) == prompt_layouts(family, inputs)
