"""Pixels as a signal, and the method that drops what equals its neighbour, inside real models."""

from typing import Any

import pytest
import torch
from rows import ROWS, Row
from test_contract import CHAT, generate, logits

from foveate.engine import apply, compress, encode
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.layout import Layout, Segment
from foveate.methods import method_class
from foveate.tokens import Pixels, VisualTokens

NAMES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")


@pytest.fixture(params=[row for row in ROWS if row.name in NAMES], ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def by_hand(inputs: dict[str, Any], layouts: Any) -> list[torch.Tensor]:
    """The pixels of each token, `(N, P)`: squares of a picture, or four patches of one that came as patches."""
    pixels = inputs.get("pixel_values", inputs.get("pixel_values_videos"))
    assert pixels is not None
    if pixels.ndim == 2:
        per_token = len(pixels) // sum(layout.content for layout in layouts)
        return [*pixels.view(-1, per_token * pixels.shape[1]).split([layout.content for layout in layouts])]
    found = []
    for picture, layout in zip(pixels, layouts, strict=True):
        (grid,) = layout.segments
        side = picture.shape[1] // grid.h
        squares = [
            picture[:, r * side : (r + 1) * side, c * side : (c + 1) * side].flatten()
            for r in range(grid.h)
            for c in range(grid.w)
        ]
        found.append(torch.stack(squares))
    return found


def test_pixels_are_those_of_each_token(row: Row, model: Any) -> None:
    for letters in (CHAT, *(["t2 V t3"] if row.clips else [])):
        source = row.with_clips() if letters != CHAT else row
        inputs = source.inputs(letters.replace("V", "A"))
        encoded = encode(model, inputs, "pixelprune")
        for found, expected in zip(encoded.signals[Pixels()], by_hand(inputs, encoded.layouts), strict=True):
            assert torch.equal(found.sort(dim=1).values, expected.sort(dim=1).values)


@torch.no_grad()
def test_equal_patches_are_kept_once(row: Row, model: Any) -> None:
    """A picture of one colour is one token; noise keeps all, and is then the untouched model."""
    inputs = row.inputs(CHAT)
    flat = inputs | {"pixel_values": torch.full_like(inputs["pixel_values"], 0.25)}
    assert [image.after for image in compress(model, flat, "pixelprune").images] == [1]
    noise = inputs | {"pixel_values": torch.randn_like(inputs["pixel_values"])}
    dense = logits(model, noise)
    with apply(model, "pixelprune") as run:
        torch.testing.assert_close(logits(model, noise), dense, atol=1e-5, rtol=1e-5)
        answer = generate(model, flat)
    assert [image.layers[-1] == image.before for image in run.report().images] == [True, False]
    assert torch.equal(generate(model, compress(model, flat, "pixelprune")), answer)
    assert compress(model, noise, "pixelprune:3+random:2").images[0].after == 2


@pytest.mark.parametrize("row", [row for row in ROWS if row.name == "qwen2_vl"], ids=lambda row: row.name)
def test_a_static_clip_keeps_its_first_frame(row: Row, model: Any) -> None:
    clips = row.with_clips()
    inputs = clips.inputs(CHAT)
    pixels = inputs["pixel_values_videos"]
    (t, h, w) = inputs["video_grid_thw"][0].tolist()
    still = torch.randn(h * w, pixels.shape[1]).repeat(t, 1)
    short = compress(model, inputs | {"pixel_values_videos": still}, "pixelprune")
    assert short.images[0].slot.tolist() == list(range(h * w // 4))


@pytest.mark.parametrize("grid", [(1, 4, 6), (3, 2, 5)])
def test_at_threshold_0_all_pixels_can_be_put_together_again(grid: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 2, (4, *grid, 1), generator=generator).float()
    layout = Layout((Segment(*grid),))
    tokens = VisualTokens.of(torch.zeros(4, layout.content, 2), layout, signals={Pixels(): pixels.flatten(1, 3)})
    plan = method_class("pixelprune")().plan(tokens)
    kept = 0
    for number in range(4):
        image = plan.image(number, None if plan.valid is None else int(plan.valid[number].sum()))
        slots = set(image.slot[0].tolist())
        kept += len(slots)
        whole = torch.full(grid, torch.nan)
        for place in range(layout.content):
            t, rest = divmod(place, grid[1] * grid[2])
            r, c = divmod(rest, grid[2])
            if place in slots:
                whole[t, r, c] = pixels[number, t, r, c, 0]
                continue
            near = [whole[t, r, c - 1]] * (c > 0) + [whole[t, r - 1, c]] * (r > 0) + [whole[t - 1, r, c]] * (t > 0)
            assert any(each == pixels[number, t, r, c, 0] for each in near)
            whole[t, r, c] = pixels[number, t, r, c, 0]
    assert kept < 3 * layout.content


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("llava", "internvl")], ids=lambda row: row.name)
def test_what_cannot_be_done_is_refused(row: Row, model: Any) -> None:
    with pytest.raises(FoveateError, match=r"threshold 1\.5 must be a share"):
        compress(model, row.inputs(CHAT), "pixelprune:threshold=1.5")
    if not family_of(model).gives_pixels:
        with pytest.raises(FoveateError, match=r"asks for Pixels\(\), which .* cannot give"):
            compress(model, row.inputs(CHAT), "pixelprune")
        return
    with pytest.raises(FoveateError, match="a step inside the encoder leaves tokens that have none of their own"):
        compress(model, row.inputs(CHAT), "tome:0.5@encoder+pixelprune")
