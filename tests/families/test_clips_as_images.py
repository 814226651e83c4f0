"""An image of several frames, which reaches further than its rows and columns, and so than the text after it.

The dense models go on after the last position in `generate`, and after the largest one in `forward` with a cache.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from rows import ROWS, Row, picture
from rows.qwen import qwen_patches
from test_contract import SELECT, dense_positions, generate, kept_columns, logits, without
from torch import Tensor
from versions import CACHE, cache_of_output

from foveate.engine import apply, compress
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.layout import Layout, Segment

FRAMES = 9


TAKES_FRAMES = [row for row in ROWS if "image_grid_thw" in row.pixels("A") and not row.one_frame]


@pytest.fixture(params=TAKES_FRAMES, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def clip(row: Row, text: int, second: bool = False) -> dict[str, Tensor]:
    """A prompt with one image of 9 frames of 2 x 2 tokens, or two of them, and `text` tokens after it."""
    frames = [qwen_patches([picture(letter, 3, 56, 56)])["pixel_values"] for letter in "ABCDEFGHI"]
    ids = row.ids("t6") + row.image_ids(Layout((Segment(FRAMES, 2, 2),))) + row.ids(f"t{text}")
    ids += row.ids("A t1") if second else []
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": torch.cat(frames)}
    inputs["image_grid_thw"] = torch.tensor([[FRAMES, 4, 4]])
    if second:
        more = row.pixels("A")
        inputs = inputs | {name: torch.cat([inputs[name], more[name]]) for name in more}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if row.token_types:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == row.image_token).int()
    return inputs


@pytest.mark.parametrize(("text", "second"), [(1, False), (12, False), (1, True)])
@pytest.mark.parametrize("spec", ["random:1.0", "pool:1.0@1"])
def test_keeping_everything_is_the_untouched_model(row: Row, model: Any, spec: str, text: int, second: bool) -> None:
    inputs = clip(row, text, second)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    dense = model.generate(**inputs, **options, output_logits=True)
    with apply(model, spec):
        mine = model.generate(**inputs, **options, output_logits=True)
    torch.testing.assert_close(torch.stack(mine.logits), torch.stack(dense.logits), atol=1e-4, rtol=1e-4)
    logits = torch.stack([after(model, inputs), after(model, inputs, spec)])
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def after(model: Any, inputs: dict[str, Tensor], spec: str | None = None) -> Tensor:
    """Logits of one more token through `forward` with a cache."""
    with nullcontext() if spec is None else apply(model, spec):
        cache = cache_of_output(model(**inputs, use_cache=True))
        return model(input_ids=torch.full((1, 1), 33), **{CACHE: cache}).logits


@torch.no_grad()
def test_dropping_is_masking(row: Row, model: Any) -> None:
    """The prompt and the token after it, whose position is one more than the largest, dropped ones included."""
    inputs, token = clip(row, 1), torch.full((1, 1), 33)
    positions = dense_positions(model, inputs)
    keep = kept_columns(row, inputs, compress(model, inputs, f"{SELECT}:positions=keep"))
    longer = row.with_text(inputs, token)
    following = torch.cat([positions, (positions.amax() + 1).expand(3, 1, 1)], dim=2)
    kept = torch.cat([keep, torch.ones(1, 1, dtype=torch.bool)], dim=1)
    expected = without(row, model, longer | {"position_ids": following}, kept)
    with apply(model, f"{SELECT}:positions=keep"):
        mine = model(**inputs, use_cache=True)
        torch.testing.assert_close(mine.logits[:, keep[0]], expected[:, :-1][:, keep[0]], atol=1e-5, rtol=1e-5)
        got = model(input_ids=token, **{CACHE: cache_of_output(mine)}).logits
    torch.testing.assert_close(got, expected[:, -1:], atol=1e-4, rtol=1e-4)


def test_packed_positions_have_no_gaps(row: Row, model: Any) -> None:
    inputs = clip(row, 1)
    short = compress(model, inputs, f"{SELECT}:positions=pack")
    expected = generate(model, short)
    with apply(model, f"{SELECT}:positions=pack"):
        assert torch.equal(generate(model, inputs), expected)


@pytest.mark.inside
def test_packing_inside_the_decoder_is_refused(row: Row, model: Any) -> None:
    if family_of(model).image_spans(Layout((Segment(FRAMES, 2, 2),)))[0] >= FRAMES:
        pytest.skip("text goes on after all frames")
    with apply(model, f"{SELECT}:positions=pack@1"), pytest.raises(FoveateError, match="more frames than rows"):
        logits(model, clip(row, 1))
