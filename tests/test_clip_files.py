"""Clip files: which frames are taken and when, how they are turned, and one line for what can't be read."""

import builtins
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip_files import animation, cut, folder, frame, number_of, sound_alone, video
from foveate import clips
from foveate.clips import is_clip, open_clip
from foveate.errors import FoveateError


def numbers(path: Path, **options: Any) -> list[int]:
    return [number_of(each) for each in open_clip(path, **options).frames]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov", "clip.webm", "clip.avi"])
def test_frames_are_in_the_middle_of_equal_parts(tmp_path, name):
    codec = {"clip.webm": "libvpx-vp9", "clip.avi": "mpeg4"}.get(name, "libx264")
    path = video(tmp_path / name, codec=codec, options={"g": "6"} if codec == "libx264" else None)
    clip = open_clip(path, frames=5)
    assert [number_of(each) for each in clip.frames] == [2, 6, 10, 14, 18]
    assert clip.times == pytest.approx([0.2, 0.6, 1.0, 1.4, 1.8])
    assert (clip.size, clip.count, clip.duration) == ((64, 48), 20, pytest.approx(2.0))
    assert numbers(path, frames=20) == numbers(path, frames=1000) == list(range(20))
    assert numbers(path, fps=2) == [2, 7, 12, 17]
    assert numbers(path, frames=1) == numbers(path, fps=0.1) == [10]
    assert len(numbers(path)) == 8


@pytest.mark.parametrize("options", [None, {"bf": "0"}, {"g": "6"}, {"g": "6", "x264-params": "open-gop=1"}])
def test_h264_in_avi_is_in_the_order_of_what_is_shown(tmp_path, options):
    path = video(tmp_path / "clip.avi", options=options)
    assert numbers(path, frames=20) == list(range(20))
    assert numbers(path, frames=5) == [2, 6, 10, 14, 18]
    assert numbers(path, fps=2) == [2, 7, 12, 17]


def test_a_changing_frame_rate_is_sampled_by_time(tmp_path):
    path = video(tmp_path / "slow.mp4", 10, starts=[0, *range(10, 19)])
    assert numbers(path, frames=4) == [0, 0, 2, 7]
    assert numbers(animation(tmp_path / "slow.gif", 4, [1000, 100, 100, 100]), frames=4) == [0, 0, 0, 2]


def test_only_what_is_needed_is_decoded(tmp_path, monkeypatch):
    path = video(tmp_path / "long.mp4", 200, options={"g": "10"})
    seen: list[int] = []
    inner = clips._frames

    def counted(*given: Any) -> Any:
        for start, each in inner(*given):
            seen.append(start)
            yield start, each

    monkeypatch.setattr(clips, "_frames", counted)
    assert len(open_clip(path, frames=4).frames) == 4
    assert len(seen) <= 40


@pytest.mark.parametrize(
    ("turn", "size", "corner"), [(90, (48, 64), (2, 61)), (180, (64, 48), (61, 45)), (-90, (48, 64), (45, 2))]
)
def test_clips_of_phones_are_turned(tmp_path, turn, size, corner):
    clip = open_clip(video(tmp_path / "turned.mp4", 4, turn=turn), frames=1)
    assert clip.size == size
    red, green, _ = clip.frames[0].getpixel(corner)  # pyright: ignore
    assert red > 200
    assert green < 50


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.png"])
def test_animations_need_pillow_alone(tmp_path, monkeypatch, name):
    monkeypatch.setattr(clips, "_pyav", None)
    path = animation(tmp_path / name)
    assert is_clip(path)
    assert numbers(path, frames=3) == [1, 3, 5]
    assert open_clip(path).duration == pytest.approx(0.6)
    still = animation(tmp_path / f"still-{name}", 1)
    assert not is_clip(still)
    assert numbers(still) == [0]


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "_pyav", None)
    path = folder(tmp_path / "frames")
    (path / "notes.txt").write_text("not a frame")
    (path / ".hidden.png").write_text("not a frame")
    clip = open_clip(path, frames=4)
    assert [number_of(each) for each in clip.frames] == [1, 4, 7, 10]
    assert clip.times == (1.5, 4.5, 7.5, 10.5)


def test_sound_and_one_frame(tmp_path):
    assert numbers(video(tmp_path / "sound.mp4", sound=True), frames=4) == [2, 7, 12, 17]
    assert numbers(video(tmp_path / "one.mp4", 1)) == [0]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def mixed(path: Path) -> Path:
    frame(3, (10, 12)).save(folder(path) / "3.png")
    return path


def of_text(path: Path) -> Path:
    folder(path, 1)
    return written(path / "0.png", b"text").parent


def empty(path: Path) -> Path:
    return folder(path, 0)


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "none.mp4": (lambda path: path, "there is no clip"),
    "zero.mp4": (lambda path: written(path, b""), "is empty; get the file again"),
    "text.mp4": (
        lambda path: written(path, b"#EXTM3U\nhttp://localhost/film.ts"),
        "is not a clip, whatever its name says",
    ),
    "sound.mp4": (sound_alone, "has no video stream, only audio"),
    "sound.m4a": (sound_alone, "has no video stream, only audio"),
    "cut.mp4": (lambda path: cut(video(path), 0.5), "is cut off or damaged"),
    "begun.mp4": (lambda path: cut(video(path, 200, index_first=True), 0.5), "is cut off: it should last 20.0 s and"),
    "begun.mkv": (lambda path: cut(video(path, 200, options={"g": "5"}), 0.5), "is cut off: it should last 20.0 s"),
    "cut.gif": (lambda path: cut(animation(path, 20), 0.5), "is cut off or damaged"),
    "cut.webp": (lambda path: cut(animation(path, 20), 0.5), "is cut off or damaged"),
    "head.mp4": (lambda path: written(path, b"\0\0\0\x20ftypisom" + bytes(90)), "is cut off or damaged"),
    "head.mkv": (lambda path: written(path, b"\x1aE\xdf\xa3" + bytes(90)), "is cut off or damaged"),
    "stream.ts": (lambda path: written(path, (b"G" + bytes(187)) * 2), "an MPEG transport stream"),
    "still.jpg": (lambda path: (frame(0).save(path), path)[1], "a JPEG image, not a clip"),
    "mixed": (mixed, "0.png has 64 x 48 pixels and 3.png 10 x 12; make them equal"),
    "text": (of_text, "0.png is not an image, whatever its name says"),
    "empty": (empty, "holds no frames; put images there"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(tmp_path, name):
    make, words = BAD[name]
    with pytest.raises(FoveateError) as caught:
        open_clip(make(tmp_path / name))
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "frames must be a whole number from 1 to 1,024, not 0"),
        ({"frames": 100_000}, "frames must be a whole number from 1 to 1,024, not 100000"),
        ({"fps": 0}, "fps must be"),
        ({"fps": float("nan")}, "fps must be"),
        ({"frames": 2, "fps": 2}, "exclude each other"),
        ({"fps": 900}, "1,800 frames of .* are asked for, and the most is 1,024; give --frames 1024 or --fps 510"),
    ],
)
def test_which_frames_are_asked_for(tmp_path, options, words):
    with pytest.raises(FoveateError, match=words):
        open_clip(video(tmp_path / "clip.mp4"), **options)


def test_a_hundred_thousand_frames(tmp_path, monkeypatch):
    path = animation(tmp_path / "clip.gif", 12)
    monkeypatch.setattr(clips, "_LONGEST_ANIMATION", 10)
    with pytest.raises(
        FoveateError, match="has 12 frames, and an animation of 64 x 48 pixels may have 10; turn it into"
    ):
        open_clip(path)
    film = ("film.mp4", 100_000 / 30, 100_000, (64, 48))
    assert len(clips._moments(*film, frames=None, fps=None)) == 8
    with pytest.raises(FoveateError, match=r"100,000 frames .* the most is 1,024; give --frames 1024 or --fps 0.3"):
        clips._moments(*film, frames=None, fps=30)


def test_all_frames_have_a_limit_in_pixels(tmp_path, monkeypatch):
    path = video(tmp_path / "clip.mp4")
    monkeypatch.setattr(clips, "MOST_PIXELS", 64 * 48 * 5)
    assert len(numbers(path, frames=5)) == 5
    with pytest.raises(
        FoveateError, match=r"8 frames .* the most of 64 x 48 pixels is 5; give --frames 5 or --fps 2.5"
    ):
        open_clip(path)
    monkeypatch.setattr(clips, "LIMIT", 1000)
    with pytest.raises(FoveateError, match="64 x 48 pixels, and the limit is 1,000"):
        open_clip(path, frames=1)


def test_without_pyav_one_line_names_the_extra(tmp_path, monkeypatch):
    path = video(tmp_path / "clip.mp4")
    inner = builtins.__import__

    def lacking(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ImportError("No module named 'av'")
        return inner(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(FoveateError, match=r"pip install 'foveate\[video\]'"):
        open_clip(path)


def test_importing_foveate_imports_no_video_library():
    code = "import sys, foveate, foveate.clips; assert 'av' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_a_clip(tmp_path):
    assert is_clip(tmp_path)
    assert is_clip(tmp_path / "none.MP4")
    assert not is_clip(tmp_path / "none.gif")
    named_otherwise = video(tmp_path / "clip.mp4").rename(tmp_path / "clip.bin")
    assert is_clip(named_otherwise)
    Image.new("RGB", (8, 8)).save(tmp_path / "still.avif") if "AVIF" in Image.SAVE else None
    assert not is_clip(tmp_path / "still.avif")
