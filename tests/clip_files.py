"""Clips for tests: each frame tells its number by its grey level."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEP = 12
"""Grey levels between two frames."""


def frame(number: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A grey frame with a red corner at the top left."""
    picture = Image.new("RGB", size, (number * STEP % 240,) * 3)
    picture.paste((255, 0, 0), (0, 0, size[0] // 4, size[1] // 4))
    return picture


def number_of(picture: Image.Image) -> int:
    """Which frame a picture is, by its middle."""
    return round(np.asarray(picture)[picture.height // 2, picture.width // 2].mean() / STEP)


def video(
    path: Path,
    frames: int = 20,
    *,
    starts: Sequence[int] | None = None,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    turn: int = 0,
    sound: bool = False,
    options: dict[str, str] | None = None,
    index_first: bool = False,
) -> Path:
    """Write a video file; `starts` are when frames begin, in tenths of a second."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, rate)
        if turn:
            stream.set_display_rotation(turn)
        tone: Any = container.add_stream("aac", rate=16_000) if sound else None
        for number, start in enumerate(starts or range(frames)):
            picture = av.VideoFrame.from_image(frame(number, size))
            picture.pts, picture.time_base = start, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if tone is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000 * frames // rate), np.float32), "fltp", "mono")
            silence.sample_rate = 16_000
            container.mux([*tone.encode(silence), *tone.encode()])
    return path


def sound_alone(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        tone: Any = container.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        silence.sample_rate = 16_000
        container.mux([*tone.encode(silence), *tone.encode()])
    return path


def animation(path: Path, frames: int = 6, milliseconds: int | list[int] = 100) -> Path:
    pictures = [frame(number) for number in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, lossless=True)
    return path


def folder(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48)) -> Path:
    path.mkdir()
    for number in range(frames):
        frame(number, size).save(path / f"{number}.png")
    return path


def cut(path: Path, share: float) -> Path:
    """Leave only the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
