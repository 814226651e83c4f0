"""The commands on clips: with the embedded models, one of which gets frames, and with another that takes videos."""

from importlib.util import find_spec

import numpy as np
import pytest
from directories import save
from rows import ROWS

from clip_files import animation, cut, folder, sound_alone, video
from foveate.embedded import PATH
from foveate.images import open_image
from foveate.scenes import clip as scene_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return video(tmp_path_factory.mktemp("clips") / "clip.mp4", 20)


@pytest.fixture(scope="module")
def takes_videos(tmp_path_factory):
    """A directory of a tiny model that takes a clip as a video, with random weights and its real processor."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    row = next(row for row in ROWS if row.name == "qwen2_5_vl")
    return save(row, tmp_path_factory.mktemp("videos"))


def test_count_of_a_video(run, clip, takes_videos):
    words = ("count", clip, "--model", takes_videos, "--spec", "evs:0.5", "--spec", "pool2d:2:per=frame")
    found = run.json(*words, "--frames", 6)
    ((t, h, w),) = found["grids"]
    assert (t, found["total"]) == (3, 3 * h * w)
    assert [each["tokens"] for each in found["after"]] == [round(1.5 * h * w), 6]
    assert found["clip"]["taken_as"] == "video"
    assert found["clip"]["frames"] == 20
    assert found["clip"]["times"] == pytest.approx([(number + 0.5) / 3 for number in range(6)], abs=1e-5)
    assert f"a grid of 3 x {h} x {w}," in run(*words, "--frames", 6)
    assert run.json(*words, "--fps", 2)["grids"] == [[2, h, w]]
    assert run.json("count", clip, "--model", takes_videos)["grids"] == [[4, h, w]]


def test_count_of_frames(run, clip):
    found = run.json("count", clip, "--model", PATH, "--frames", 5, "--spec", "cluster:64")
    assert (found["grids"], found["total"]) == ([[1, 24, 24]] * 5, 5 * 576)
    assert found["after"][0]["tokens"] == 5 * 64
    assert "5 times a grid of 24 x 24, 2880 tokens of content" in run("count", clip, "--model", PATH, "--frames", 5)


def test_ask_about_a_video(run, clip, takes_videos, tmp_path, monkeypatch):
    monkeypatch.setattr("foveate.asking._ENOUGH_SECONDS", 0)
    picture = tmp_path / "strip.png"
    words = ("ask", clip, "what is it ?", "--model", takes_videos, "--spec", "evs:0.5", "--spec", "pool3d:0.25")
    words += ("--max-new-tokens", 2, "--frames", 8, "--picture", picture)
    found = run.json(*words)
    before, *after = (each["tokens_after"] for each in found["answers"])
    assert after[0] == before // 2
    assert after[1] <= before // 4
    assert found["clip"]["taken_as"] == "video"
    drawn = np.asarray(open_image(picture)).astype(int)
    assert drawn.shape[1] > 4 * 300
    # The red corner of frames is lit, where it is drawn.
    assert (np.abs(drawn - (254, 0, 0)).sum(axis=2) < 40).any()
    assert f"{clip}: 8 of 20 frames, at 0.1, 0.4, ... and 1.9 s, given to Qwen2.5-VL as a video." in run(*words)


def test_ask_about_frames(run, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("foveate.asking._ENOUGH_SECONDS", 0)
    words = ("ask", clip, "what is it ?", "--model", PATH, "--spec", "cluster:16", "--max-new-tokens", 2)
    said = run(*words, "--picture", tmp_path / "strip.png")
    # The embedded model for images has room for three frames.
    assert f"{clip}: 3 of 20 frames, at 0.3, 1.0 and 1.7 s, given to LLaVA as 3 images: each has the tokens" in said
    found = run.json(*words, "--frames", 2)
    assert [each["tokens_after"] for each in found["answers"]] == [2 * 576, 2 * 16]
    refused = run.refused(*words, "--frames", 4)
    assert "take 2311 + 2 tokens and the model has room for 2048; take fewer frames, or shorten" in refused


def test_without_a_model_clips_go_to_the_embedded_one_for_clips(run, tmp_path, monkeypatch):
    monkeypatch.setattr("foveate.asking._ENOUGH_SECONDS", 0)
    one = scene_clip(0, split="test", frames=8, kind="glimpse")
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(one.frames):
        frame.save(tmp_path / "frames" / f"{number}.png")
    words = (tmp_path / "frames", one.questions[0].text, "--spec", "evs:72", "--picture", tmp_path / "strip.png")
    found = run.json("ask", *words)
    assert found["model"] == "the embedded model for clips"
    assert [(each["tokens_after"], each["text"]) for each in found["answers"]] == [
        (288, one.questions[0].answer),
        (72, one.questions[0].answer),
    ]
    assert (tmp_path / "strip.png").exists()
    found = run.json("cost", "--clip", "8x64x48", "--spec", "evs:72")
    assert [each["kept_tokens"] for each in found["costs"]] == [288, 72]
    said = run.refused("count", tmp_path / "frames", "--revision", "x")
    assert said == "only models on the hub have revisions, and the embedded model has none; leave out the revision 'x'"


def test_animations_and_folders(run, tmp_path):
    for path in (animation(tmp_path / "clip.gif"), folder(tmp_path / "frames", 6)):
        assert run.json("count", path, "--frames", 3)["grids"] == [[3, 6, 6]]


def test_methods_for_clips_refuse_frames(run, clip):
    said = run.refused("ask", clip, "what is it ?", "--model", PATH, "--spec", "evs:0.5")
    assert "evs works on the frames of a clip, and LLaVA is not given clips yet" in said


BAD = {
    "zero.mp4": lambda path: path.write_bytes(b""),
    "text.mp4": lambda path: path.write_text("what"),
    "cut.mp4": lambda path: cut(video(path), 0.5),
    "sound.mp4": sound_alone,
    "none.mkv": lambda path: None,
    "empty": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", [("ask", "what ?"), ("count",)])
def test_bad_clips_are_one_line(refuse, tmp_path, command, name):
    BAD[name](path := tmp_path / name)
    said = refuse(command[0], path, *command[1:])
    assert name in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--frames", 0), "frames must be a whole number from 1 to 1,024, not 0"),
        (("--frames", 100_000), "frames must be a whole number from 1 to 1,024, not 100000"),
        (("--fps", "nan"), "fps must be"),
        (("--fps", 2, "--frames", 2), "exclude each other"),
        (("--fps", 1000), "give --frames 1024 or --fps 510"),
    ],
)
def test_bad_frames_are_one_line(refuse, clip, words, said):
    assert said in refuse("count", clip, *words)
    assert said in refuse("ask", clip, "what ?", *words)


def test_an_image_has_no_frames_to_choose(refuse, tmp_path):
    path = animation(tmp_path / "still.png", 1)
    assert "--fps 2 chooses frames of a clip, and" in refuse("count", path, "--fps", 2)
