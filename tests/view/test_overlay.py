"""Pictures of plans: sizes, light where tokens are kept, files whole or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.errors import FoveateError
from foveate.images import open_image
from foveate.methods import Cluster, Pool2d, Stride
from foveate.plan import Plan
from foveate.tokens import Keep, Layout, Segment, VisualTokens
from foveate.view import Panel, Strip, draw, draw_panel, draw_strips, save_picture, writable

LAYOUT = Layout((Segment(1, 8, 12),))
IMAGE = Image.new("RGB", (300, 200), (250, 240, 230))


def _tokens(layout=LAYOUT):
    return VisualTokens.of(torch.randn(1, layout.content, 4, generator=torch.Generator().manual_seed(0)), layout)


def _middles(picture, rows, columns):
    """The brightness in the middle of each token."""
    pixels = np.asarray(picture).astype(int).sum(axis=2)
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    return pixels[height // 2 :: height, width // 2 :: width]


def test_kept_tokens_are_lit_and_dropped_ones_dimmed():
    plan = Stride(keep=Keep.of(24)).plan(_tokens())
    picture = draw_panel(IMAGE, Panel(LAYOUT, plan=plan), side=240)
    assert picture.size == (240, 160)
    lit = np.zeros(96, dtype=bool)
    lit[plan.slot[0].numpy()] = True
    light = _middles(picture, 8, 12).ravel()
    assert light[lit].min() > 600
    assert light[~lit].max() < 250


def test_tokens_of_a_group_share_a_colour_and_groups_differ():
    plan = Pool2d(keep=Keep.of(6)).plan(_tokens())
    pixels = np.asarray(draw_panel(IMAGE, Panel(LAYOUT, plan=plan), side=480))
    corners = pixels[2::40, 2::40].reshape(-1, 3)  # beside borders and slots
    inner = pixels[6::40, 6::40].reshape(-1, 3)
    assert len({tuple(colour) for colour in inner}) >= 6
    assert corners.shape == inner.shape


def test_every_kind_of_plan_can_be_drawn():
    tokens = _tokens()
    plans = [
        None,
        Cluster(keep=Keep.of(9)).plan(tokens),
        Plan(torch.tensor([[0]])),
        Plan(torch.tensor([[0, 5]]), mix=torch.rand(1, 2, 96)),
        Plan(torch.tensor([[3, 90]]), group=torch.tensor([[-1] * 40 + [0] * 30 + [1] * 26])),
    ]
    for plan in plans:
        assert draw_panel(IMAGE, Panel(LAYOUT, plan=plan), side=120).size == (120, 80)


def test_a_shrunk_image_shows_its_coarser_grid():
    seen = Layout((Segment(1, 2, 3),))
    striped = Image.fromarray(np.tile(np.array([[0], [255]], dtype=np.uint8), (100, 300))).convert("RGB")
    pixels = np.asarray(draw_panel(striped, Panel(LAYOUT, seen=seen, patch=2), side=240)).astype(int)
    assert abs(pixels[20:60, 10:70] - 127).max() <= 3  # the stripes are gone


def test_every_grid_of_a_tiled_image_is_drawn():
    """The tiles on top, the whole image half as large under them; a group has one colour in both."""
    layout = Layout((Segment(1, 4, 4), Segment(1, 8, 12, rows=(4, 4), columns=(4, 4, 4))))
    plan = Stride(keep=Keep.of(28)).plan(_tokens(layout))
    picture = draw_panel(IMAGE, Panel(layout, plan=plan), side=240)
    assert picture.size == (240, 160 + 6 + 80)
    lit = np.zeros(112, dtype=bool)
    lit[plan.slot[0].numpy()] = True
    tiles = _middles(picture.crop((0, 0, 240, 160)), 8, 12).ravel()
    base = _middles(picture.crop((0, 166, 120, 246)), 4, 4).ravel()
    for light, kept in ((base, lit[:16]), (tiles, lit[16:])):
        assert 0 < kept.sum() < len(kept)
        assert light[kept].min() > 600
        assert light[~kept].max() < 250
    merged = Plan(torch.tensor([[0, 20]]), group=torch.tensor([[0] * 15 + [1] * 50 + [0] * 47]))
    pixels = np.asarray(draw_panel(IMAGE, Panel(layout, plan=merged), side=240)).astype(int)
    assert abs(pixels[176, 45] - pixels[150, 230]).max() <= 2
    assert abs(pixels[176, 45] - pixels[10, 150]).max() > 20


def test_a_shrunk_image_of_several_grids():
    full = Layout((Segment(1, 4, 4), Segment(1, 6, 8, rows=(3, 3), columns=(4, 4))))
    seen = Layout((Segment(1, 2, 2), Segment(1, 3, 4, rows=(2, 1), columns=(2, 2))))
    assert draw_panel(IMAGE, Panel(full, seen=seen), side=240).size == (240, 159 + 6 + 80)


@pytest.mark.parametrize("size", [(1000, 20), (20, 1000), (1, 1), (333, 777)])
def test_any_shape_of_image(size):
    layout = Layout((Segment(1, max(1, size[1] // 28), max(1, size[0] // 28)),))
    picture = draw_panel(Image.new("RGB", size), Panel(layout), side=336)
    assert max(picture.size) <= 336 * 1.2


def test_a_sheet_of_panels_with_captions():
    panels = [Panel(LAYOUT, f"panel {number}", "note") for number in range(6)]
    one, sheet = draw(IMAGE, panels[:1], side=120), draw(IMAGE, panels, "a question ? " * 20, side=120)
    assert sheet.width > 3 * 120 > one.width
    assert sheet.height > 2 * one.height - 40
    draw(IMAGE, [Panel(LAYOUT, "Größe?", "線 \n\ttext")], "où ?", side=120)


def test_a_picture_is_written_whole(tmp_path):
    for suffix in ("png", "jpg", "webp"):
        path = save_picture(IMAGE, tmp_path / f"out.{suffix}")
        assert open_image(path).size == IMAGE.size
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = save_picture(IMAGE, tmp_path / "out.png")
    before = path.read_bytes()

    def fail(self, name, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(FoveateError, match="No space left"):
        save_picture(IMAGE, path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["out.png"]


def test_places_that_cannot_hold_a_picture(tmp_path):
    with pytest.raises(FoveateError, match="there is no folder"):
        writable(tmp_path / "none" / "out.png")
    with pytest.raises(FoveateError, match="has no suffix of a picture"):
        writable(tmp_path / "out.txt")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FoveateError, match="is a folder"):
        writable(tmp_path / "folder.png")


def test_a_very_thin_image() -> None:
    """Its tokens are two pixels wide or high."""
    layout = Layout((Segment(1, 24, 24),))
    plan = Cluster(keep=16).plan(VisualTokens.of(torch.rand(1, 576, 8), (24, 24)))
    for size in ((5000, 1), (1, 5000), (1, 1)):
        drawn = draw_panel(Image.new("RGB", size), Panel(layout, plan=plan))
        assert min(drawn.size) >= 48


def test_a_strip_has_one_picture_per_grid_of_the_model():
    layout = Layout((Segment(2, 4, 6),), times=(0, 1))
    kept = Plan(torch.tensor([[0, 1, 47]]))
    frames = [Image.new("RGB", (120, 80), (250, 240, 230))] * 4
    strip = Strip((layout,), "three", "note", (kept,))
    drawn = draw_strips(frames, [0.0, 1.0, 2.0, 3.0], [Strip((layout,)), strip], "what ?", side=120)
    bright = (np.asarray(drawn).astype(int).sum(axis=2) > 650).sum()
    # All of the first strip, and 3 of 48 tokens of the second one.
    assert 2 * 120 * 80 * (1 + 3 / 48) * 0.9 < bright < 2 * 120 * 80 * (1 + 3 / 48) * 1.3


@pytest.mark.parametrize("count", [1, 4, 7, 9, 32])
def test_strips_of_many_frames_stay_legible(count):
    frames = [Image.new("RGB", (160, 90), "white")] * count
    layout = Layout((Segment(count, 3, 4),), times=tuple(range(count)))
    drawn = draw_strips(frames, [float(number) for number in range(count)], [Strip((layout,))])
    assert drawn.width <= 2000
    rows = [line for line in (np.asarray(drawn).astype(int).sum(axis=2) > 650).mean(axis=1) if line > 0.3]
    assert len(rows) >= 90 * -(-count // 8)


def test_strips_need_what_fits_together():
    grey, layout = Image.new("RGB", (8, 8)), Layout((Segment(2, 1, 1),), times=(0, 1))
    for frames, times, strips, words in (
        ([], [], [Strip((layout,))], "there is nothing to draw"),
        ([grey], [0.0], [], "there is nothing to draw"),
        ([grey] * 2, [0.0], [Strip((layout,))], "2 frames have 1 times"),
        ([grey], [0.0], [Strip((layout,))], "1 frames, 1 layouts"),
        ([grey] * 2, [0.0, 1.0], [Strip(())], "has no layout"),
    ):
        with pytest.raises(FoveateError, match=words):
            draw_strips(frames, times, strips)
