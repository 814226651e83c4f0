"""Any file a person may name: a picture, or one clear line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from foveate.errors import FoveateError
from foveate.images import LIMIT, open_image


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(path, width, height):
    """A file of some hundred bytes that claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def _line(path) -> str:
    with pytest.raises(FoveateError) as caught:
        open_image(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_a_picture(photo):
    image = open_image(photo)
    assert (image.mode, image.size) == ("RGB", (60, 40))


def test_missing(tmp_path):
    assert "there is no image" in _line(tmp_path / "none.png")


def test_a_directory(tmp_path):
    assert "is a folder; name a file" in _line(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated(photo, tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    open_image(photo).save(whole)
    data = whole.read_bytes()
    part = tmp_path / f"part.{suffix}"
    part.write_bytes(data[: len(data) // 2])
    assert "cannot be read" in _line(part) or "is not an image" in _line(part)


def test_damaged_inside(photo, tmp_path):
    data = bytearray(photo.read_bytes())
    data[len(data) // 2] ^= 0xFF
    photo.write_bytes(bytes(data))
    assert "cannot be read" in _line(photo)


def test_text_named_png(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("hello, world\n" * 10)
    assert "is not an image, whatever its name says" in _line(path)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert "is not an image" in _line(path)


def test_fifty_thousand_squared(tmp_path):
    text = _line(png_header(tmp_path / "bomb.png", 50_000, 50_000))
    assert "too large" in text
    assert f"{LIMIT:,}" in text


def test_a_little_over_the_limit_is_refused_by_its_header(tmp_path):
    text = _line(png_header(tmp_path / "bomb.png", 10_001, 10_000))
    assert "10,001 x 10,000" in text


def test_programs_are_never_started_for_a_format(tmp_path):
    path = tmp_path / "page.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert "is not an image" in _line(path)


def test_phones_turn_pictures(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(path, exif=exif)
    assert open_image(path).size == (40, 60)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_modes(tmp_path, mode):
    path = tmp_path / f"mode.{'tiff' if mode == 'CMYK' else 'png'}"
    if mode == "I;16":
        Image.fromarray(np.full((40, 60), 32896, dtype=np.uint16)).save(path)
    else:
        Image.new("L", (60, 40), 128).convert(mode.replace("LA", "L").replace("P", "L")).convert(mode).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (60, 40))
    if mode != "1":
        assert abs(image.getpixel((30, 20))[1] - 128) <= 2


def test_what_is_transparent_is_white(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(path)
    assert open_image(path).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_give_their_first_frame(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert open_image(path).getpixel((8, 8))[0] > 200


RAMP = np.linspace(0, 1, 48 * 48).reshape(48, 48)


def levels(path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    grey = np.asarray(image).astype(int)
    assert (grey == grey[..., :1]).all()
    return grey[..., 0]


@pytest.mark.parametrize(
    "numbers",
    [
        RAMP.astype(np.float32),
        (RAMP * 255).round().astype(np.float32),
        (RAMP * 2 - 1).astype(np.float32),
        (RAMP * 1000).astype(np.float32),
        (RAMP * 3e38).astype(np.float32),
        (RAMP * 255).round().astype(np.int32),
        (RAMP * 65535).astype(np.int32),
        (RAMP * 100_000).astype(np.int32),
        ((RAMP * 2 - 1) * 2e9).astype(np.int32),
        (RAMP * 65535).astype(np.uint16),
    ],
    ids=lambda numbers: f"{numbers.dtype} to {numbers.max():.3g}",
)
def test_deep_images_are_scaled(tmp_path, numbers):
    path = tmp_path / "deep.tiff"
    Image.fromarray(numbers).save(path)
    assert abs(levels(path) - RAMP * 255).max() <= 1


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_what_resampling_adds_changes_no_range(tmp_path, white):
    path = tmp_path / "overshoot.tiff"
    middle = 0.6 + RAMP * 0.2
    numbers = (middle * white).astype(np.float32)
    numbers[0, 0], numbers[-1, -1] = -0.03 * white, 1.04 * white
    Image.fromarray(numbers).save(path)
    found = levels(path)
    assert (found[0, 0], found[-1, -1]) == (0, 255)
    inner = np.ones_like(found, bool)
    inner[0, 0] = inner[-1, -1] = False
    assert abs(found - middle * 255)[inner].max() <= 1


def tiff(path, numbers, bits, kind, order="<", photometric=1):
    """A TIFF that Pillow reads and doesn't write; `kind` is 1 for unsigned, 2 for signed, 3 for floats."""
    data = numbers.tobytes()
    height, width = numbers.shape
    entries = {
        256: (4, width), 257: (4, height), 258: (3, bits), 259: (3, 1), 262: (3, photometric), 273: (4, 8), 277: (3, 1),
        278: (4, height), 279: (4, len(data)), 339: (3, kind),
    }  # fmt: skip
    file = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data)) + data
    file += struct.pack(f"{order}H", len(entries))
    for tag, (size, value) in entries.items():
        file += struct.pack(f"{order}HHI", tag, size, 1)
        file += struct.pack(f"{order}I", value) if size == 4 else struct.pack(f"{order}HH", value, 0)
    path.write_bytes(file + struct.pack(f"{order}I", 0))
    return path


@pytest.mark.parametrize(
    ("numbers", "bits", "kind", "order"),
    [
        ((RAMP * 65535).astype(">u2"), 16, 1, ">"),
        ((RAMP * 65535 - 32768).astype("<i2"), 16, 2, "<"),
        ((RAMP * 65535 - 32768).astype(">i2"), 16, 2, ">"),
        ((RAMP * 4294967295).astype("<u4"), 32, 1, "<"),
        ((RAMP * 4294967295 - 2147483648).astype(">i4"), 32, 2, ">"),
        ((RAMP * 255 - 128).astype("i1"), 8, 2, "<"),
        (RAMP.astype(">f4"), 32, 3, ">"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_deep_images_of_other_programs(tmp_path, numbers, bits, kind, order):
    assert abs(levels(tiff(tmp_path / "deep.tiff", numbers, bits, kind, order)) - RAMP * 255).max() <= 1


@pytest.mark.parametrize(("dtype", "bits", "kind", "white"), [("<u2", 16, 1, 65535), ("<f4", 32, 3, 1)])
def test_deep_images_whose_zero_is_white(tmp_path, dtype, bits, kind, white):
    path = tiff(tmp_path / "deep.tiff", (RAMP * white).astype(dtype), bits, kind, photometric=0)
    assert abs(levels(path) - (1 - RAMP) * 255).max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_no_numbers(tmp_path, value):
    path = tmp_path / "deep.tiff"
    numbers = RAMP.astype(np.float32)
    numbers[3, 4] = value
    Image.fromarray(numbers).save(path)
    assert "NaN or infinite" in _line(path)


@pytest.mark.parametrize(("number", "level"), [(0.5, 128), (7, 7), (1e6, 128), (0, 0)])
def test_a_deep_image_of_one_number(tmp_path, number, level):
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.full((4, 6), number, dtype=np.float32)).save(path)
    assert (levels(path) == level).all()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.4", "not an image, but a PDF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "not an image, but an SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photo"),
        (b"II*\0\x08\0\0\0", "a TIFF file of a kind"),
    ],
)
def test_what_is_not_opened_has_a_name(tmp_path, data, kind):
    path = tmp_path / "drawing.png"
    path.write_bytes(data)
    assert f"is {kind}" in _line(path)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "photo.png/more", "nul\0"])
def test_names_that_no_file_can_have(photo, name):
    with pytest.raises(FoveateError, match=r"there is no image|can't be read|holds a NUL character"):
        open_image(photo.parent / name)


@pytest.mark.parametrize("thing", [None, 5, b"photo.png", Image.new("RGB", (2, 2)), np.zeros((2, 2)), []])
def test_what_is_no_path(thing):
    with pytest.raises(FoveateError, match="named by its path"):
        open_image(thing)
