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
    assert "is a directory" in _line(tmp_path)


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
