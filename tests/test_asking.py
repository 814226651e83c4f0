"""Which part of an image reaches the encoder."""

from types import SimpleNamespace

import pytest
from PIL import Image

from foveate.asking import seen_part


@pytest.mark.parametrize(
    ("size", "expected"), [({"shortest_edge": 336}, (480, 480)), ({"height": 336, "width": 672}, (320, 480))]
)
def test_processors_that_crop_show_the_middle(size, expected):
    rules = SimpleNamespace(do_center_crop=True, size=size, crop_size={"height": 336, "width": 336})
    image = Image.new("RGB", (640, 480), "red")
    image.paste("blue", (319, 0, 321, 480))
    part = seen_part(SimpleNamespace(image_processor=rules), image)
    assert part.size == expected
    assert part.getpixel((part.width // 2, part.height // 2)) == (0, 0, 255)


def test_processors_that_cut_tiles_show_all():
    rules = SimpleNamespace(
        do_center_crop=True,
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[[336, 672]],
    )
    image = Image.new("RGB", (640, 480))
    assert seen_part(SimpleNamespace(image_processor=rules), image) is image


def test_processors_that_do_not_crop_show_all():
    image = Image.new("RGB", (640, 480))
    assert seen_part(SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=False)), image) is image
