"""Steps inside decoders whose layers don't see all earlier columns: windows, chunks, and images that see each other."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import test_contract as contract
import test_depth as depth
import test_depth_signals as signals
import torch
from rows import ROWS, Row
from rows.aya_vision import make_aya_vision
from rows.gemma3 import make_gemma3
from rows.gemma4 import make_gemma4
from rows.llama4 import make_llama4
from rows.paligemma import make_paligemma
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from foveate.engine import apply, compress
from foveate.engine.visibility import Visibility
from foveate.errors import FoveateError
from foveate.families import family_of

BY_NAME = {row.name: row for row in ROWS}


def make_llava(window: int) -> nn.Module:
    """Every layer of the decoder has a window."""
    from transformers import LlavaForConditionalGeneration, MistralConfig

    config: Any = BY_NAME["llava"].make().config
    config.text_config = MistralConfig(**{**depth_sizes(config.text_config), "sliding_window": window})
    return LlavaForConditionalGeneration(config)


def depth_sizes(text: Any) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(text, name) for name in (*names, "num_key_value_heads", "max_position_embeddings")}


WINDOW = 16
"""Shorter than every prompt with an image."""
WINDOWS = (
    replace(BY_NAME["gemma3"], name="gemma3, window", make=partial(make_gemma3, WINDOW)),
    replace(BY_NAME["gemma4"], name="gemma 4, window", make=partial(make_gemma4, WINDOW)),
    replace(BY_NAME["paligemma"], name="paligemma 2, window", make=partial(make_paligemma, WINDOW)),
    replace(BY_NAME["llava"], name="llava, window", make=partial(make_llava, WINDOW)),
    replace(BY_NAME["aya_vision"], name="aya_vision, window", make=partial(make_aya_vision, WINDOW)),
)
CHUNKS = tuple(
    replace(BY_NAME[name], name=f"{name}, chunk", make=partial(make_llama4, WINDOW))
    for name in ("llama4",)
    if name in BY_NAME
)
"""Decoders whose layers see chunks; none where the installed transformers can't run them."""
_models: dict[tuple[str, str], Any] = {}


@pytest.fixture(params=(*WINDOWS, *CHUNKS), ids=lambda row: row.name)
def narrow(request: pytest.FixtureRequest) -> Row:
    return request.param


def shared(row: Row, attention: str = "eager") -> Any:
    # Gemma 2 has no other attention than the eager one.
    if (row.name, attention) not in _models:
        _models[row.name, attention] = row.model(attention)
    return _models[row.name, attention]


POINTS: dict[str, Callable[[Row, Any], None]] = {
    "keeping everything": lambda row, model: depth.test_keeping_everything_is_the_untouched_model(
        row, model, "pool:1.0@1,2"
    ),
    "dropping at 1": lambda row, model: depth.test_dropping_is_masking(row, model, 1),
    "dropping at 2": lambda row, model: depth.test_dropping_is_masking(row, model, 2),
    "decoding": lambda row, model: depth.test_decoding_is_masking(row, model, "random:6@1"),
    "by hand, kept positions": lambda row, model: depth.test_merging_and_packing_are_the_layers_run_by_hand(
        row, model, "pool:0.5@1,2"
    ),
    "by hand, packed": lambda row, model: depth.test_merging_and_packing_are_the_layers_run_by_hand(
        row, model, "random:7:positions=pack@1+pool:3:positions=pack@2"
    ),
    "batch": lambda row, model: depth.test_a_batch_is_its_samples_alone(row, model, "cluster:6+pool:0.5@2"),
    "long conversation": depth.test_a_long_conversation,
    "beams": lambda row, model: depth.test_beams(row, model, (contract.CHAT,)),
}


@pytest.mark.parametrize("point", POINTS)
def test_windows_shorter_than_the_conversation(narrow: Row, point: str) -> None:
    POINTS[point](narrow, shared(narrow))


@pytest.mark.parametrize("point", ["keeping everything", "dropping at 1", "decoding", "by hand, packed"])
def test_windows_under_sdpa(point: str) -> None:
    POINTS[point](WINDOWS[0], shared(WINDOWS[0], "sdpa"))


@torch.no_grad()
def test_the_window_is_seen_to_act(narrow: Row) -> None:
    inputs = narrow.with_text(narrow.inputs(contract.CHAT), torch.arange(30, 60)[None])
    wide = replace(narrow, name=f"{narrow.name} that is wide", make=partial(narrow.make.func, 500))  # pyright: ignore
    spec = "random:0.8@1"
    with apply(shared(narrow), spec):
        short = contract.logits(shared(narrow), inputs)
    with apply(shared(wide), spec):
        assert (contract.logits(shared(wide), inputs) - short)[:, -1].abs().max() > 1e-3


@pytest.mark.parametrize("row", CHUNKS, ids=lambda row: row.name)
@torch.no_grad()
def test_queries_of_late_columns_are_larger(row: Row) -> None:
    """Layers without positions count the columns that they hold: those that are left, wherever they stood."""
    late = replace(row, make=partial(make_llama4, WINDOW, 8))
    signals.test_attention_is_what_eager_attention_does(late, "")
    model, inputs = late.model(), late.inputs("t6 A t5")
    assert (contract.logits(model, inputs) - contract.logits(shared(row, "sdpa"), inputs)).abs().max() > 1e-2
    given = inputs | {"position_ids": contract.dense_positions(model, inputs)}
    keep = contract.kept_columns(row, inputs, compress(model, given, "random:6:positions=keep"))
    with apply(model, "random:6:positions=keep"):
        found = contract.logits(model, given)
    # Row by row: padding counts as columns, in the dense model too.
    torch.testing.assert_close(found[keep], contract.by_hand(model, given, keep)[keep], atol=1e-5, rtol=1e-5)
    contract.test_decoding_with_a_cache_is_forward_without(late, model, contract.BATCH)
    for spec in ("pool:0.5@1,2", "random:7:positions=pack@1+pool:3:positions=pack@2"):
        depth.test_merging_and_packing_are_the_layers_run_by_hand(late, model, spec)


def test_masks_that_attention_does_not_take(plain_backend: str) -> None:
    model = BY_NAME["gemma3"].model()
    model.set_attn_implementation(plain_backend)
    with pytest.raises(FoveateError, match="look in both directions, and plain attention takes no mask"):
        apply(model, "random:6@1")
    row = WINDOWS[3]
    model = row.model()
    model.set_attn_implementation(plain_backend)
    with apply(model, "random:6@1"), pytest.raises(FoveateError, match="47 tokens and this decoder's layers see 16"):
        model(**row.inputs(contract.CHAT))


plain_backend = contract.plain_backend


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("ends", [True, False])
def test_what_is_told_of_rows_is_what_masks_say(window: int | None, chunk: int | None, ends: bool) -> None:
    family = family_of(BY_NAME["llava"].model("eager"))
    places = torch.tensor([[0, 1, 4, 5, 6, 9], [2, 3, 5, 6, 7, 8]])
    blocks = torch.tensor([[-1, 1, 1, -1, 2, 2], [-1, -1, -1, 3, 3, 3]])
    seen = Visibility(places, window, chunk, torch.tensor([0, 2]), blocks, ends)
    mask: Any = create_causal_mask(
        family.decoder_config,
        torch.zeros(2, 6, 4),
        torch.ones(2, 6),
        None,
        or_mask_function=seen.beyond,
        and_mask_function=seen.within,
    )
    every = torch.arange(6).expand(2, -1)
    assert torch.equal(seen.seen_by(torch.arange(2), every), by_loops(seen))
    assert torch.equal(mask[:, 0] == 0, by_loops(seen))


def by_loops(seen: Visibility) -> Tensor:
    rows, width = seen.places.shape
    expected = torch.zeros(rows, width, width, dtype=torch.bool)
    assert seen.blocks is not None
    assert seen.starts is not None
    for row in range(rows):
        for query in range(width):
            for key in range(width):
                at, to = int(seen.places[row, query]), int(seen.places[row, key])
                start = int(seen.starts[row])
                near = seen.window is None or to > at - seen.window
                near = near and (seen.chunk is None or (to - start) // seen.chunk == (at - start) // seen.chunk)
                together = bool(seen.blocks[row, query] == seen.blocks[row, key] >= 0)
                if seen.blocks_end_at_windows:
                    expected[row, query, key] = (key <= query or together) and near
                else:
                    expected[row, query, key] = (key <= query and near) or together
    return expected
