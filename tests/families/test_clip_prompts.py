"""Clips before a question, in the way that each family takes them, with its real processor."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from directories import make_processor
from rows import ROWS, Row

from clip_files import frame
from foveate.clips import Clip
from foveate.engine import compress
from foveate.families import family_of
from foveate.visual_prompts import visual_prompt, way_of

TIMES = (0.75, 2.25, 3.75, 5.25, 6.75)
WAYS = {
    "internvl": "written",
    "llava": "images",
    "llava_next_video": "video",
    "llava_onevision": "video",
    "qwen2_5_vl": "video",
    "qwen3_vl": "video",
    "smolvlm": "written",
}

pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")


@pytest.fixture(params=[row for row in ROWS if row.name in WAYS], ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def test_a_clip_in_the_way_of_its_family(row: Row, model: Any) -> None:
    processor, family = make_processor(row, model.config, "torchvision"), family_of(model)
    clip = Clip(tuple(frame(number, (120, 100)) for number in range(5)), TIMES, 7.5, 150)
    assert way_of(family, processor) == WAYS[row.name]
    found = visual_prompt(family, processor, clip, "what is it ?")
    if found.way == "video":
        (layout,) = found.layouts
        assert layout.is_clip
        (short,) = compress(model, found.inputs, "evs:0.5").images
        assert short.before == layout.total > short.after
    else:
        assert found.layouts == (family.frame_layout(100, 120),) * 5
        assert len(compress(model, found.inputs, "random:4").images) == 5
    assert found.fitting(None) == found.fitting(100_000) == found.frames == 5
    length = found.inputs["input_ids"].shape[1]
    assert found.fitting(length - 1) == 4


def test_processors_are_told_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(tuple(frame(number, (120, 100)) for number in range(5)), TIMES, 7.5, 150)
    rows = {row.name: row for row in ROWS}
    model = rows["qwen2_5_vl"].model()
    inputs = visual_prompt(
        family_of(model), make_processor(rows["qwen2_5_vl"], model.config, "torchvision"), clip, "what is it ?"
    ).inputs
    # Two frames make a grid.
    torch.testing.assert_close(torch.as_tensor(inputs["second_per_grid_ts"]), torch.tensor([2 * 1.5]))
    model = rows["qwen3_vl"].model()
    processor = make_processor(rows["qwen3_vl"], model.config, "torchvision")
    inner, made = processor._calculate_timestamps, []
    monkeypatch.setattr(processor, "_calculate_timestamps", lambda *given: made.append(inner(*given)) or made[-1])
    visual_prompt(family_of(model), processor, clip, "what is it ?")
    assert made == [[1.5, 4.5, 6.75]]
