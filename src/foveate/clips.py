"""Open clips: video files, animations and folders of frames, as frames with their times."""

from __future__ import annotations

import os
import re
import struct
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final

from PIL import Image

from foveate.errors import FoveateError, first_line, shown
from foveate.files import DamagedFile, files_in, is_file, is_folder, open_file, shown_path
from foveate.images import LIMIT, on_white, open_image
from foveate.numbers import Between, check_real, check_whole

__all__ = ["DEFAULT_FRAMES", "MOST_FRAMES", "Clip", "check_sampling", "is_clip", "open_clip"]

DEFAULT_FRAMES: Final = 8
"""How many frames are taken of a clip if nobody says."""
MOST_FRAMES: Final = 1_024
"""The most frames that are taken of a clip."""
MOST_PIXELS: Final = 1_000_000_000
"""The most pixels of all frames that are taken: 3 GB decoded."""
LARGEST_FILE: Final = 64 * 2**30
"""In bytes; what isn't needed of a file is read past, but not decoded."""

_MOST_PACKETS: Final = 4_000_000
"""Coded frames and pieces of sound in a file: a day and a half of a film."""
_LONGEST_ANIMATION: Final = 10_000
"""Frames of a GIF or WebP animation, which is decoded from the beginning."""
_ANIMATION_PIXELS: Final = 8_000_000_000
"""Pixels of all frames of such an animation."""
_UNTIMED: Final = 0.1
"""Seconds that a frame of an animation lasts which states no time, as browsers have it."""

_CLOCK: Final = 1e-6
"""Seconds by which two times may differ that are the same, computed in two ways."""

_SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
_ANIMATIONS: Final = ("GIF", "WEBP", "PNG", "AVIF")
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2")
"""Suffixes of the files in a folder that are frames."""
_STILLS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
"""Brands of files that look like MP4 and hold pictures."""
_OTHERS: Final = {
    b"\x30\x26\xb2\x75": "a Windows Media file",
    b"FLV": "a Flash video",
    b"\x00\x00\x01\xba": "an MPEG programme stream",
    b"OggS": "an Ogg file",
}
_USE: Final = "use an MP4, MOV, MKV, WebM or AVI file, an animation, or a folder of frames"
_MATRIX: Final = "DISPLAYMATRIX"


@dataclass(frozen=True)
class Clip:
    """Frames that were chosen of a clip.

    Attributes:
        frames: all of one size, mode "RGB".
        times: when each frame is shown, in seconds from the beginning of the clip, ascending.
        duration: of the whole clip, in seconds.
        count: how many frames the whole clip has.
    """

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    duration: float
    count: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of each frame, in pixels."""
        return self.frames[0].size


def is_clip(path: str | Path) -> bool:
    """Return whether a path is to be opened as a clip: a folder, a video file, or an animation of several frames.

    What isn't there is a clip by its name.

    Raises:
        FileError: the path can't be reached.

    >>> is_clip("holiday.mp4"), is_clip("holiday.png")
    (True, False)
    """
    if is_folder(path):
        return True
    if Path(path).suffix.lower() in _SUFFIXES:
        return True
    if not is_file(path):
        return False
    with open_file(path, "image") as file:
        return _container_format(file) is not None or _frames_of_animation(file) > 1


def open_clip(path: str | Path, frames: int | None = None, fps: float | None = None) -> Clip:
    """Open a clip and take some of its frames, chosen by time.

    With `frames`, the duration is cut into that many equal parts, and what is shown in the middle of each part is
    taken; a clip of fewer frames gives as many as it has. With `fps`, the parts last `1 / fps` seconds. Frames are
    turned and mirrored as the file says, pixels become squares, and only what is needed is decoded.

    Args:
        path: a video file (MP4, MOV, MKV, WebM, AVI: needs the extra `foveate[video]`), an animation (GIF, WebP, PNG,
            AVIF), or a folder of images, in the order of the numbers in their names, a second apart.
        frames: how many frames; 8 if neither is given.
        fps: how many frames of each second.

    Raises:
        MissingFile: there is nothing at the path.
        DamagedFile: the file is cut off or broken.
        FoveateError: it holds no frames, too many frames are asked for, or PyAV is missing.

    >>> open_clip("holiday.mp4")
    Traceback (most recent call last):
    foveate.files.paths.MissingFile: there is no clip holiday.mp4; check the path
    """
    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FoveateError(f"a clip is named by its path, not by {shown(path)}")
    check_sampling(frames, fps)
    if is_folder(path):
        return _folder(Path(path), frames, fps)
    name = shown_path(path)
    with open_file(path, "clip") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_FILE:
            raise FoveateError(
                f"{name} is too large for a clip: {size:,} bytes, and the limit is {LARGEST_FILE:,}; cut out a part"
            )
        if size == 0:
            raise DamagedFile(f"{name} is empty; get the file again")
        kind = _container_format(file)
        if kind is not None:
            return _video(file, kind, name, frames, fps)
        if _frames_of_animation(file):
            return _animation(file, name, frames, fps)
        kind_of_file = _kind_of(file)
        if kind_of_file is None:
            raise DamagedFile(f"{name} is cut off or damaged; get the file again")
        raise FoveateError(f"{name} is {kind_of_file}; {_USE}")


def check_sampling(frames: int | None, fps: float | None) -> None:
    """Check what frames of a clip are asked for.

    Raises:
        FoveateError: both are given, or one is no such number.

    >>> check_sampling(100_000, None)
    Traceback (most recent call last):
    foveate.errors.FoveateError: frames must be a whole number from 1 to 1,024, not 100000
    """
    if frames is not None and fps is not None:
        raise FoveateError(
            f"{frames} frames and {fps:g} frames per second exclude each other: give one of frames and fps"
        )
    if frames is not None:
        check_whole("frames", frames, Between(1, MOST_FRAMES))
    if fps is not None:
        check_real("fps", fps, Between(1e-6, 1000))


# Which frames


def _moments(
    name: str, duration: float, count: int, size: tuple[int, int], frames: int | None, fps: float | None
) -> list[float]:
    """Return when the frames that are asked for are shown, in seconds from the beginning.

    Args:
        name: of the clip, for errors.
        duration: of the clip, in seconds.
        count: frames that it has.
        size: width and height of a frame.
        frames: as for `open_clip`.
        fps: as for `open_clip`.

    Raises:
        FoveateError: these are too many.
    """
    least = max(1, int(min(MOST_FRAMES, MOST_PIXELS // (size[0] * size[1]))))
    if fps is None:
        asked = min(frames or DEFAULT_FRAMES, count)
        moments = [(number + 0.5) * duration / asked for number in range(asked)]
    else:
        asked = max(1, int(duration * fps + 0.5))
        # A clip shorter than one part has its middle.
        step = 1 / fps if duration * fps >= 0.5 else duration
        moments = [(number + 0.5) * step for number in range(min(asked, least + 1))]
    if asked > least:
        why = "the most" if least == MOST_FRAMES else f"the most of {size[0]} x {size[1]} pixels"
        rate = f" or --fps {_rounded_down(least / duration)}" if duration > 0 else ""
        raise FoveateError(
            f"{asked:,} frames of {name} are asked for, and {why} is {least:,}; give --frames {least}{rate}"
        )
    return [min(moment, duration) for moment in moments]


def _rounded_down(value: float) -> str:
    """Write a number in two digits, never a larger one.

    >>> _rounded_down(0.2876), _rounded_down(102.4)
    ('0.28', '100')
    """
    exponent = int(f"{value:e}".partition("e")[2])
    digits = 1 - exponent
    scale = Fraction(10) ** digits
    return f"{float(int(Fraction(value) * scale) / scale):g}"


def _shown_at(starts: Sequence[float], moments: Sequence[float]) -> list[int]:
    """Return the number of the frame that is shown at each moment, from when frames begin, ascending."""
    return [max(0, bisect_right(starts, moment + _CLOCK) - 1) for moment in moments]


# Folders


def _folder(path: Path, frames: int | None, fps: float | None) -> Clip:
    """Open a folder of frames."""
    name = shown_path(path)
    found = (file.name for file in files_in(path))
    files = sorted((each for each in found if each.lower().endswith(_PICTURES) and each[0] != "."), key=_by_numbers)
    if not files:
        raise FoveateError(f"the folder {name} holds no frames; put images there, for instance 0001.png, 0002.png")
    first = open_image(path / files[0])
    moments = _moments(name, float(len(files)), len(files), first.size, frames, fps)
    chosen: list[Image.Image] = []
    for number in _shown_at(range(len(files)), moments):
        frame = first if number == 0 else open_image(path / files[number])
        if frame.size != first.size:
            raise FoveateError(
                f"frames of {name} differ in size: {shown_path(files[0])} has {first.width} x {first.height} "
                f"pixels and {shown_path(files[number])} {frame.width} x {frame.height}; make them equal"
            )
        chosen.append(frame)
    return Clip(tuple(chosen), tuple(moments), float(len(files)), len(files))


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names by the numbers in them.

    >>> sorted(["10.png", "9.png"], key=_by_numbers)
    ['9.png', '10.png']
    """
    parts = re.split(r"([0-9]{1,300})", name.lower())
    return [(int(part), part) if place % 2 else (-1, part) for place, part in enumerate(parts)]


# Animations


def _frames_of_animation(file: BinaryIO) -> int:
    """Return how many frames a file has that Pillow opens and that may be an animation; 0 for any other file."""
    file.seek(0)
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Image.open(file, formats=[each for each in _ANIMATIONS if each in Image.OPEN])
            return int(getattr(opened, "n_frames", 1))
    except Exception:  # On broken bytes, decoders raise all kinds of errors; opening it as an image says which.
        return 0
    finally:
        file.seek(0)


def _animation(file: BinaryIO, name: str, frames: int | None, fps: float | None) -> Clip:
    """Open an animation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened: Any = Image.open(file, formats=[each for each in _ANIMATIONS if each in Image.OPEN])
            count, pixels = int(getattr(opened, "n_frames", 1)), opened.width * opened.height
            if pixels > LIMIT:
                raise FoveateError(f"{name} has frames of {pixels:,} pixels, and the limit is {LIMIT:,}")
            if count > _LONGEST_ANIMATION or count * pixels > _ANIMATION_PIXELS:
                most = min(_LONGEST_ANIMATION, _ANIMATION_PIXELS // pixels)
                raise FoveateError(
                    f"{name} has {count:,} frames, and an animation of {opened.width} x {opened.height} pixels may "
                    f"have {most:,}; turn it into an MP4 file, of which only what is needed is decoded"
                )
            starts, lasts = [0.0], 0.0
            for number in range(count):
                opened.seek(number)
                # Some formats know how long a frame lasts only when it is decoded.
                opened.load()
                lasts = (opened.info.get("duration") or 0) / 1000 or _UNTIMED
                starts.append(starts[-1] + lasts)
            duration = starts.pop()
            moments = _moments(name, duration, count, opened.size, frames, fps)
            wanted = _shown_at(starts, moments)
            decoded: dict[int, Image.Image] = {}
            for number in sorted(set(wanted)):
                opened.seek(number)
                decoded[number] = on_white(opened)
    except FoveateError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error
    return Clip(tuple(decoded[number] for number in wanted), tuple(moments), duration, count)


# Video files


def _container_format(file: BinaryIO) -> str | None:
    """Return what FFmpeg calls the container format of a video file, by its first bytes; None for other files."""
    file.seek(0)
    head = file.read(16)
    file.seek(0)
    if head[4:8] == b"ftyp":
        return None if head[8:12] in _STILLS else "mov"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    return "avi" if head.startswith(b"RIFF") and head[8:12] == b"AVI " else None


def _kind_of(file: BinaryIO) -> str | None:
    """Say what a file is that is no clip; None for an animation that can't be read."""
    file.seek(0)
    head = file.read(189)
    if head.startswith((b"GIF8", b"\x89PNG")) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return None
    if head.startswith(b"\xff\xd8\xff"):
        return "a JPEG image, not a clip"
    if len(head) == 189 and head[0] == head[188] == 0x47:
        return "an MPEG transport stream, which foveate does not open"
    kinds = (f"{kind}, which foveate does not open" for mark, kind in _OTHERS.items() if head.startswith(mark))
    return next(kinds, "not a clip, whatever its name says")


def _pyav() -> Any:
    """Import PyAV.

    Raises:
        FoveateError: it isn't installed.
    """
    try:
        import av
    except ImportError as error:
        raise FoveateError(
            "video files need PyAV, which can't be imported "
            f"({first_line(error)}); install it: pip install 'foveate[video]'. Animations and folders of frames need "
            "nothing else"
        ) from None
    return av


@dataclass(frozen=True)
class _Coded:
    """What a file says of its coded frames, before any is decoded; times in units of the stream.

    Attributes:
        starts: when each frame is shown, ascending.
        keys: of the frames that can be decoded alone, ascending.
        end: when the last frame ends.
        counted: whether the file doesn't say which frame is shown when, so that they are counted as they are decoded:
            AVI, where a codec such as H.264 decodes them in another order.
    """

    starts: list[int]
    keys: list[int]
    end: int
    counted: bool = False


def _video(file: BinaryIO, kind: str, name: str, frames: int | None, fps: float | None) -> Clip:
    """Open a video file."""
    av = _pyav()
    # FFmpeg writes to stderr what it finds; errors tell it.
    av.logging.set_level(None)
    try:
        with av.open(file, format=kind, io_open=_refuse_other_files, buffer_size=2**18) as container:
            stream = _picture_stream(container, name)
            coded = _coded(container, stream, name)
            unit, begin = float(stream.time_base), coded.starts[0]
            duration = (coded.end - begin) * unit
            size = _square_size(stream)
            moments = _moments(name, duration, len(coded.starts), size, frames, fps)
            starts = [(start - begin) * unit for start in coded.starts]
            wanted = [coded.starts[number] for number in _shown_at(starts, moments)]
            decoded = _decode(container, stream, coded, sorted(set(wanted)), name)
    except FoveateError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Of FFmpeg, and of PyAV where a file says nonsense.
        raise _damaged(name, error) from error
    first = decoded[wanted[0]]
    chosen = [decoded[start] for start in wanted]
    # Where the size changes, players go on in the first one.
    chosen = [frame if frame.size == first.size else frame.resize(first.size) for frame in chosen]
    return Clip(tuple(chosen), tuple(moments), duration, len(coded.starts))


def _refuse_other_files(url: str, *_: object) -> Any:
    """Refuse to open what a video file names, such as parts of a list: it may be anything."""
    raise FoveateError(f"the file refers to another one, {shown_path(url)}, which foveate does not open; join them")


def _picture_stream(container: Any, name: str) -> Any:
    """Return the first stream of a file that holds a video, and not the cover of a song.

    Raises:
        FoveateError: there is none, it can't be decoded, or its frames are too large.
    """
    streams = [each for each in container.streams.video if not _is_cover(each)]
    if not streams:
        there = sorted({each.type for each in container.streams})
        found = f"only {', '.join(there)}" if there else "nothing"
        raise FoveateError(f"{name} has no video stream, {found}; {_USE}")
    stream = streams[0]
    coder = stream.codec_context
    if coder is None:
        raise FoveateError(f"{name} is coded in a way that this PyAV can't decode; save it as H.264 in an MP4 file")
    if coder.width * coder.height > LIMIT:
        raise FoveateError(
            f"{name} is too large: {coder.width:,} x {coder.height:,} pixels, and the limit is {LIMIT:,}; make it "
            "smaller first"
        )
    if not coder.width * coder.height:
        raise DamagedFile(f"{name} states no size of its frames; get the file again")
    coder.thread_type = "AUTO"
    return stream


def _is_cover(stream: Any) -> bool:
    """Return whether a stream is one attached picture."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _coded(container: Any, stream: Any, name: str) -> _Coded:
    """Read a file to its end, without decoding, and return its frames.

    Raises:
        DamagedFile: it is cut off, or has no frame.
        FoveateError: it has too many.
    """
    starts: list[int] = []
    decoded: list[int] = []
    keys: list[int] = []
    last, lasts, reached, found = None, 0, 0.0, 0
    for number, packet in enumerate(container.demux()):
        if number > _MOST_PACKETS:
            raise FoveateError(f"{name} has more than {_MOST_PACKETS:,} packets of video and sound; cut out a part")
        start = packet.dts if packet.pts is None else packet.pts
        if start is None or packet.is_discard:
            continue
        reached = max(reached, float((start + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        found += 1
        # An empty one in an AVI file says that the frame before stays in sight.
        if not packet.size:
            continue
        starts.append(start)
        decoded.append(start if packet.dts is None else packet.dts)
        if packet.is_keyframe:
            keys.append(start)
        if last is None or start >= last:
            last, lasts = start, packet.duration or 0
    if not starts:
        raise DamagedFile(f"{name} has no frame, whatever it says; get the file again")
    avi = container.format.name == "avi"
    # FFmpeg takes how long an AVI file lasts from what is there.
    if avi and found < 0.95 * stream.frames:
        raise DamagedFile(f"{name} is cut off: it should have {stream.frames:,} frames and has {found:,}; get it again")
    # An AVI file says when frames are decoded; where they are shown in another order, FFmpeg guesses when.
    reordered = avi and bool(stream.codec_context.has_b_frames)
    starts = sorted(decoded if reordered else starts)
    if not lasts:
        lasts = max(1, (starts[-1] - starts[0]) // max(1, len(starts) - 1))
    stated = (container.duration or 0) / 1e6
    begin = (container.start_time or 0) / 1e6
    if reached - begin < stated - max(0.5, stated / 20):
        raise DamagedFile(
            f"{name} is cut off: it should last {stated:.1f} s and ends after {max(0.0, reached - begin):.1f} s; get "
            "the file again"
        )
    # To be counted, frames are decoded from the beginning.
    return _Coded(starts, starts[:1] if reordered else sorted(keys), starts[-1] + lasts, reordered)


def _decode(container: Any, stream: Any, coded: _Coded, wanted: Sequence[int], name: str) -> dict[int, Image.Image]:
    """Decode frames of a file, and of the others only those that they need.

    Args:
        container: that was read to its end.
        stream: of the frames.
        coded: what the file says of its frames.
        wanted: when the frames begin, ascending.
        name: of the file, for errors.

    Raises:
        DamagedFile: a frame isn't there.
    """
    decoded: dict[int, Image.Image] = {}
    keys = coded.keys
    container.seek(_seek_place(keys, wanted[0]), stream=stream)
    coming = _frames(container, stream, coded)
    at: int | None = None
    # Of a frame that is missing, the one before it stays in sight, and the next one is kept for later.
    shown: tuple[int, Any] | None = None
    ahead: tuple[int, Any] | None = None
    for start in wanted:
        place = _seek_place(keys, start)
        if at is not None and place > at:
            container.seek(place, stream=stream)
            coming, shown, ahead = _frames(container, stream, coded), None, None
        if ahead is not None and ahead[0] <= start:
            shown, ahead = ahead, None
        while ahead is None and (shown is None or shown[0] < start):
            if (frame := next(coming, None)) is None:
                break
            at = frame[0]
            shown, ahead = (shown, frame) if at > start else (frame, None)
        found = shown or ahead
        if found is None:
            unit = float(stream.time_base)
            raise DamagedFile(f"{name} has no frame at {start * unit:.2f} s that can be decoded; get the file again")
        decoded[start] = _upright(found[1], stream)
    return decoded


def _seek_place(keys: Sequence[int], start: int) -> int:
    """Return when the last frame begins that can be decoded alone and from which on a frame can be reached."""
    number = bisect_right(keys, start) - 1
    return keys[number] if number >= 0 else min(start, 0)


def _frames(container: Any, stream: Any, coded: _Coded) -> Iterator[tuple[int, Any]]:
    """Yield decoded frames with when they begin."""
    if coded.counted:
        yield from zip(coded.starts, container.decode(stream), strict=False)
        return
    for frame in container.decode(stream):
        start = frame.dts if frame.pts is None else frame.pts
        if start is not None:
            yield start, frame


def _upright(frame: Any, stream: Any) -> Image.Image:
    """Return a frame as players show it: with square pixels, turned and mirrored."""
    image: Image.Image = frame.to_image()
    size = _square_size(stream)
    if image.size == (stream.codec_context.width, stream.codec_context.height) != size:
        image = image.resize(size)
    # A list by number: the container finds its members by kinds of its own.
    matrices = [part for part in list(frame.side_data) if part.type.name == _MATRIX]
    return _turned(image, struct.unpack("=9i", bytes(matrices[0])[:36])) if matrices else image


def _square_size(stream: Any) -> tuple[int, int]:
    """Return width and height of a frame whose pixels are squares, before it is turned."""
    coder = stream.codec_context
    aspect = stream.sample_aspect_ratio
    # Files also state nonsense there.
    if not aspect or not 0.1 < aspect < 10:
        return coder.width, coder.height
    return max(1, round(coder.width * float(aspect))), coder.height


def _turned(image: Image.Image, matrix: Sequence[int]) -> Image.Image:
    """Turn and mirror an image as the matrix of its file says, by right angles.

    Args:
        image: as it is stored.
        matrix: a, b, u, c, d, v, x, y, w: a point (p, q) is shown at (a p + c q, b p + d q).

    >>> picture = Image.new("RGB", (2, 1), "white")
    >>> picture.putpixel((0, 0), (255, 0, 0))
    >>> turned = _turned(picture, (0, 1, 0, -1, 0, 0, 0, 0, 1))  # a quarter to the right
    >>> turned.size, turned.getpixel((0, 0))
    ((1, 2), (255, 0, 0))
    """
    a, b, _, c, d = matrix[:5]
    across, down = (a, d)
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, across, down = image.transpose(Image.Transpose.TRANSPOSE), c, b
    if across < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if down < 0 else image


def _damaged(name: str, error: Exception) -> FoveateError:
    reason = getattr(error, "strerror", None) or first_line(error)
    return DamagedFile(f"{name} is cut off or damaged ({reason.rstrip('.')}); get the file again, or save it again")
