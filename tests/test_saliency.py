"""Attention maps are those that eager attention makes, on every family whose decoder steps can act in."""

from typing import Any

import numpy as np
import pytest
import torch
from commands import EXAMPLES, Commands
from PIL import Image
from rows import ROWS

from foveate.errors import FoveateError
from foveate.layout import Layout, Segment
from foveate.saliency import Saliency, attention_maps, overlap, rank_correlation, thirds
from foveate.view import HeatMap, draw_maps

LLAVA = next(row for row in ROWS if row.name == "llava")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("rows", ["last", "text"])
@torch.no_grad()
def test_maps_are_those_of_eager_attention(name: str, rows: Any) -> None:
    row = next(each for each in ROWS if each.name == name)
    model, inputs = row.model("eager"), row.inputs("t3 A t5")
    (found,) = attention_maps(model, inputs, rows)
    output = model(**inputs, output_attentions=True)
    image = row.is_image(inputs["input_ids"][0])
    behind = int(image.nonzero().max()) + 1
    for layer, attention in enumerate(output.attentions):
        seen = attention[0].mean(dim=0)[:, image]
        expected = seen[-1] if rows == "last" else seen[behind:].mean(dim=0)
        torch.testing.assert_close(found.decoder[layer], expected, atol=1e-6, rtol=1e-5)
    assert found.encoder is not None
    assert found.encoder.shape == (found.layout.content,)


def test_each_image_has_maps_of_its_own() -> None:
    found = attention_maps(LLAVA.model("eager"), LLAVA.inputs("t2 A t4 B t3"))
    assert len(found) == 2
    assert all(each.decoder.shape[1] == each.layout.content for each in found)


def test_what_is_refused() -> None:
    model = LLAVA.model("eager")
    with pytest.raises(FoveateError, match="give them one by one"):
        attention_maps(model, LLAVA.inputs("t2 A t4", "A t3"))
    with pytest.raises(FoveateError, match="has no image"):
        attention_maps(model, LLAVA.inputs("t4"))


def test_correlation_and_overlap() -> None:
    maps = torch.rand(5, 200, generator=torch.Generator().manual_seed(0))
    assert rank_correlation(maps, maps).tolist() == pytest.approx([1] * 5)
    assert rank_correlation(maps, -maps).tolist() == pytest.approx([-1] * 5)
    assert rank_correlation(torch.ones(4), torch.rand(4)) == 0
    from scipy.stats import spearmanr

    assert float(rank_correlation(maps[0], maps[1])) == pytest.approx(spearmanr(maps[0], maps[1]).statistic)
    assert overlap(maps, maps, 20).tolist() == [1] * 5
    assert overlap(maps, -maps, 20).tolist() == [0] * 5


def test_thirds_of_rows() -> None:
    values = torch.arange(6.0).repeat_interleave(2)[None]
    found = thirds(Saliency(Layout((Segment(1, 6, 2),)), values, None))
    assert found[0] == pytest.approx([1 / 15, 5 / 15, 9 / 15])
    assert thirds(Saliency(Layout((Segment(1, 2, 6),)), values, None)) == []


def test_a_map_is_brightest_where_its_value_is_highest() -> None:
    layout = Layout((Segment(1, 2, 3),))
    picture = draw_maps(
        Image.new("RGB", (90, 60), "white"), [HeatMap(layout, np.array([0.0, 0, 0, 0, 0, 1]))], side=300
    )
    pixels = np.asarray(picture.convert("L"), dtype=float)
    y, x = np.unravel_index(pixels[60:].argmax(), pixels[60:].shape)
    assert x > picture.width * 0.6
    assert y + 60 > picture.height / 2
    with pytest.raises(FoveateError, match="5 values, and its image 6 tokens"):
        draw_maps(Image.new("RGB", (90, 60)), [HeatMap(layout, np.zeros(5))])


def test_the_command(tmp_path: Any) -> None:
    command = Commands()
    picture = tmp_path / "maps.png"
    question = "what colour is the small triangle ?"
    found = command.json("saliency", EXAMPLES / "shapes.png", question, "--picture", picture)
    assert len(found["layers"]) == 12
    assert found["layers"][0]["with_previous"] is None
    assert all(0 <= each["share"] <= 1 for each in found["layers"])
    with Image.open(picture) as drawn:
        assert drawn.width > 900
    assert "--rows first is unknown" in command.refused(
        "saliency", EXAMPLES / "shapes.png", "what ?", "--rows", "first"
    )
