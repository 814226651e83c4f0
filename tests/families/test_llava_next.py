"""LLaVA-NeXT's tiles: where its tokens stand, against transformers' own code."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rows import ROWS
from transformers import LlavaNextConfig, LlavaNextProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

from foveate import layout as layouts
from foveate.engine import apply, compress
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import family_of, llava_next
from foveate.families.llava_next import LlavaNext
from foveate.methods import method_class, method_names
from foveate.schedule import tokens_between, tokens_per_layer
from foveate.spec import parse
from foveate.tokens import Layout, Pixels

TILES = next(row for row in ROWS if row.name == "llava_next")
RELEASED = LlavaNextConfig()
WIDE = LlavaNextConfig(image_grid_pinpoints=[[336 * h, 336 * w] for h in range(1, 5) for w in range(1, 5)])
"""A resolution of one tile is among these too."""


def family(config: LlavaNextConfig) -> LlavaNext:
    """The family without a model: layouts need the configuration alone."""
    bound = object.__new__(LlavaNext)
    bound.config = config
    return bound


def processor_count(config: LlavaNextConfig, height: int, width: int) -> int:
    """Placeholders that the processor writes for an image."""
    known = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints),
        patch_size=14,
        num_additional_image_tokens=1,
        _get_unpadded_features=lambda *sizes: LlavaNextProcessor._get_unpadded_features(None, *sizes),
    )
    return LlavaNextProcessor._get_number_of_features(known, height, width, 336, 336) - 1


sizes = st.tuples(st.integers(1, 2000), st.integers(1, 2000)) | st.tuples(st.integers(300, 700), st.integers(300, 700))


@given(sizes, st.sampled_from([RELEASED, WIDE]))
@settings(deadline=None, max_examples=150)
def test_tokens_stand_where_the_model_puts_them(size: tuple[int, int], config: LlavaNextConfig) -> None:
    try:
        layout = family(config).image_layout(*size)
    except FoveateError:
        best = select_best_resolution(size, config.image_grid_pinpoints)
        tiles = [side // 336 for side in best]
        assert LlavaNextProcessor._get_unpadded_features(None, *size, 24, 24, *tiles)[0] == 0
        assume(False)
        raise
    assert layout.total == processor_count(config, *size)
    assert layout.segments[0].count == 576
    crops = image_size_to_num_patches(size, config.image_grid_pinpoints, 336)
    # Patches that know their number, packed by the model's own code; newlines are -1.
    numbers = torch.arange(float(crops * 576)).view(crops, 576, 1)
    (packed,), _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [numbers], [size], "default", torch.tensor([-1.0])
    )
    capture: Any = SimpleNamespace(layouts=(layout,), seen=(layout,))
    (mine,) = family(config).in_token_order(numbers, capture)
    place, source = layout.placed(torch.arange(layout.content))
    whole = torch.cat([mine, torch.full((len(layout.structural), 1), -1.0)])[source]
    assert torch.equal(place, torch.arange(layout.total))
    assert torch.equal(whole, packed)
    # Tiles are what was encoded apart: their patches come from one crop each.
    for segment, index in layout.tiles:
        assert len((mine[index] // 576).unique()) == 1
        assert segment.h <= 24
        assert segment.w <= 24


@given(sizes, st.sampled_from([(1, 1), (3, 5), (8, 8), (12, 12), (17, 24), (24, 24)]))
@settings(deadline=None, max_examples=100)
def test_shrunk_images_stay_within_their_share(size: tuple[int, int], crop: tuple[int, int]) -> None:
    bound = family(RELEASED)
    try:
        layout = bound.image_layout(*size)
    except FoveateError:
        assume(False)
        raise
    small = bound.shrunk(layout, crop)
    assert (small.segments[0].h, small.segments[0].w) == crop
    assert len(small.structural) == small.segments[1].h <= layout.segments[1].h
    assert len(bound.in_token_order(torch.zeros(_crops(layout), crop[0] * crop[1]), _capture(layout, small))[0]) == (
        small.content
    )
    if crop == (24, 24):
        assert small == layout
    if min(small.segments[1].h, small.segments[1].w) > 1:
        assert small.content * 576 <= layout.content * crop[0] * crop[1]


def _crops(layout: Layout) -> int:
    return 1 + len(layout.segments[1].rows) * len(layout.segments[1].columns)


def _capture(layout: Layout, seen: Layout) -> Any:
    return SimpleNamespace(layouts=(layout,), seen=(seen,))


def test_an_image_of_which_only_padding_is_left() -> None:
    with pytest.raises(FoveateError, match="2000 x 1 pixels is too narrow"):
        family(RELEASED).image_layout(1, 2000)


def test_image_sizes_are_needed() -> None:
    inputs = TILES.inputs("t6 A t5")
    del inputs["image_sizes"]
    with pytest.raises(FoveateError, match="needs image_sizes beside pixel_values"):
        family_of(TILES.model()).layouts(inputs)


def test_other_encoders_are_refused_by_name() -> None:
    model = TILES.model()
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(UnsupportedFamily, match=r"LLaVA-NeXT that keeps \[CLS\]"):
        LlavaNext(model)


def test_newlines_go_with_their_rows() -> None:
    """Two tokens of one row leave one newline, whose embedding is the model's own."""
    model = TILES.model()
    inputs = TILES.inputs("t6 A t5")
    short = compress(model, inputs, "cls:2")
    (image,) = short.images
    layout = image.layout
    content = image.plan.slot[0]
    rows = {int(token - 16) // 8 for token in content if token >= 16}
    newlines = [place for place in image.slot.tolist() if place not in layout.places.tolist()]
    assert newlines == [16 + row * 9 + 8 for row in sorted(rows)]
    for place, value in zip(image.slot.tolist(), image.features):
        assert torch.equal(value, model.model.image_newline) == (place in newlines)


def test_positions_of_a_shrunk_image() -> None:
    """Kept: those of the full-size tokens and newlines whose place they take. Packed: those of the smaller image."""
    model = TILES.model()
    inputs = TILES.inputs("t6 A t5")
    kept = compress(model, inputs, "resize:0.25:positions=keep")
    (image,) = kept.images
    assert kept["position_ids"][0].tolist() == [*range(6), *(6 + image.slot).tolist(), *range(76, 81)]
    # Base 2 x 2 and tiles 3 x 4 of 4 x 4 and 6 x 8: under the middle of each new token, and three of six newlines.
    assert image.slot.tolist() == [
        5, 7, 13, 15,
        *(16 + 9 * 1 + column for column in (1, 3, 5, 7, 8)),
        *(16 + 9 * 3 + column for column in (1, 3, 5, 7, 8)),
        *(16 + 9 * 5 + column for column in (1, 3, 5, 7, 8)),
    ]  # fmt: skip
    packed = compress(model, inputs, "resize:0.25")
    assert packed["position_ids"][0].tolist() == list(range(6 + 4 + 3 * 5 + 5))
    # What a later step drops of the smaller image leaves gaps in its positions.
    fewer = compress(model, inputs, "resize:0.25+stride:4:positions=keep").images[0]
    seen = fewer.seen
    assert fewer.plan is not None
    assert fewer.positions[0].tolist() == seen.placed(fewer.plan.slot[0])[0].tolist()


def test_the_loss_reaches_the_newline() -> None:
    model = TILES.model()
    inputs = TILES.inputs("t6 A t5")
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == TILES.image_token, -100)
    with apply(model, "stride:12"):
        model(**inputs, use_cache=False).loss.backward()
    assert model.model.image_newline.grad.abs().max() > 0
    model.zero_grad()
    with apply(model, "pool2d:12@features"):
        model(**inputs, use_cache=False).loss.backward()
    assert model.model.image_newline.grad.abs().max() > 0
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


def test_training_after_inference() -> None:
    """What was first made in inference mode, for a layout never seen before, serves a backward pass too."""
    model = TILES.model()
    inputs = TILES.inputs("t6 A t5")
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == TILES.image_token, -100)
    for remembered in (llava_next._patches, layouts._places, layouts._groups, layouts._tiles):
        remembered.cache_clear()
    with torch.inference_mode():
        compress(model, inputs, "cls:4:per=tile")
    with apply(model, "cls:4:per=tile"):
        model(**inputs, use_cache=False).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "spec", ["cluster:4:per=tile", "cls:0.25:per=tile@features", "resize:6:per=tile+cls:2:per=tile"]
)
@torch.no_grad()
def test_each_tile_has_its_budget(spec: str) -> None:
    model = TILES.model()
    inputs = TILES.inputs("t6 A t5 B t2", "t3 C t4")
    short = compress(model, inputs, spec)
    with apply(model, spec) as run:
        model(**inputs)
    for image, count in zip(short.images, run.report().images):
        assert count.after == image.after
        fewest, most = tokens_between(spec, family_of(model), image.layout)
        assert fewest <= image.after <= most
        for segment, index in image.seen.tiles:
            kept = int(torch.isin(image.plan.slot[0], index).sum())
            budget = 2 if "cls:2" in spec else 4 if "cluster" in spec else max(1, (segment.count + 2) // 4)
            assert kept == min(budget, segment.count)


@pytest.mark.parametrize(
    "spec", ["cls:6:per=tile+stride:2:per=tile@2", "cluster:4:per=tile@1,2", "pool:0.5:per=tile@1"]
)
def test_tiles_inside_the_decoder(spec: str) -> None:
    """A step inside the decoder finds the tokens of each tile; a batch is its samples alone."""
    model = TILES.model()
    prompts = ("t6 A t5", "t2 B t9 C t3", "t11")
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with apply(model, spec) as run:
        batch = model.generate(**TILES.inputs(*prompts), **options)
        for number, prompt in enumerate(prompts):
            alone = model.generate(**TILES.inputs(prompt), **options)
            for both, one in zip(batch.logits, alone.logits):
                torch.testing.assert_close(both[number], one[0], atol=1e-4, rtol=1e-4)
    bound = family_of(model)
    for image, layout in zip(run.report().images, bound.layouts(TILES.inputs(*prompts))):
        most = tokens_per_layer(spec, bound, layout)
        least = tokens_between(spec, bound, layout)[0]
        assert all(mine <= told for mine, told in zip(image.layers, most))
        assert least <= image.layers[-1] < image.layers[0]


@pytest.mark.parametrize("per", ["image", "tile"])
@pytest.mark.parametrize("name", [name for name in method_names() if not method_class(name).temporal])
@torch.no_grad()
def test_every_method_counts_its_newlines(name: str, per: str) -> None:
    """What remains is between what the layout tells, wherever a method acts."""
    model = TILES.model()
    method = method_class(name)
    spec = f"{name}:6:per={per}" if method.takes_keep else f"{name}:per={per}"
    if method.place == "decoder":
        spec += "@1"
    if name == "resize":
        spec = f"resize:0.25:per={per}"
    if Pixels() in parse(spec).steps[0].method.needs:
        pytest.skip("tiles give no pixels of a token")
    inputs = TILES.inputs("t6 A t5", "t2 B t9 C t3", "t11")
    bound = family_of(model)
    with apply(model, spec) as run:
        assert model(**inputs).logits[inputs["attention_mask"].bool()].isfinite().all()
    for image, layout in zip(run.report().images, bound.layouts(inputs)):
        fewest, most = tokens_between(spec, bound, layout)
        assert fewest <= image.after <= most
        assert fewest == most or not method.fixed


def test_a_processor_made_of_pillow_alone() -> None:
    """The sizes that it returns tell the layout that the model makes."""
    import numpy as np
    from PIL import Image

    rules = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=TILES.model().config.image_grid_pinpoints,
    )
    model = TILES.model()
    for height, width in ((60, 90), (30, 110), (165, 30), (57, 56)):
        pixels = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
        inputs = dict(rules([Image.fromarray(pixels)], return_tensors="pt"))
        (layout,) = family_of(model).layouts(inputs)
        output = model.model.get_image_features(**inputs, return_dict=True)
        assert [len(each) for each in output.pooler_output] == [layout.total]
