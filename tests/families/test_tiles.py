"""Images in tiles: which tiles are one image, and what becomes of a prompt that doesn't say."""

from functools import cache
from typing import Any

import pytest
import torch
from rows import ROWS, Row, grid
from rows.tiles import tiles_of
from test_contract import by_hand, dense_positions, generate, kept_columns, logits, masked
from torch import Tensor
from torch.nn.functional import pad
from versions import BEAMS_OF_SEVERAL_IMAGES

from foveate.engine import apply, compress, encode
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import family_class, family_of

BY_NAME = {row.name: row for row in ROWS}
WITH_LABELS = [BY_NAME[name] for name in ("idefics3", "smolvlm") if name in BY_NAME]
ONE_RUN = BY_NAME["internvl"]
ARRANGED = [BY_NAME[name] for name in ("internvl", "cohere2_vision", "aya_vision")]


@cache
def model_of(name: str) -> Any:
    return BY_NAME[name].model()


def one_row(row: Row, letters: str) -> dict[str, Tensor]:
    """A prompt whose pictures are in one row of tiles, as the processor returns them."""
    inputs = row.inputs("t4 " + " t3 ".join(letters) + " t5")
    inputs["pixel_values"] = torch.cat([tiles_of(letter) for letter in letters])[None]
    inputs.pop("pixel_attention_mask")
    return inputs


@BEAMS_OF_SEVERAL_IMAGES
@pytest.mark.parametrize("row", WITH_LABELS, ids=lambda row: row.name)
def test_several_images_in_one_row_of_tiles(row: Row) -> None:
    model, inputs = model_of(row.name), one_row(row, "ACB")
    assert list(family_of(model).layouts(inputs)) == [row.pictures[letter] for letter in "ACB"]
    assert encode(model, inputs).layouts == family_of(model).layouts(inputs)
    dense = logits(model, inputs)
    with apply(model, "random:1.0"):
        torch.testing.assert_close(logits(model, inputs), dense, atol=1e-6, rtol=0)
    given = inputs | {"position_ids": torch.arange(inputs["input_ids"].shape[1])[None]}
    for options in ({}, {"num_beams": 2}):
        with apply(model, "random:6") as run:
            found = generate(model, inputs, 4, **options)
        assert [image.after for image in run.report().images] == [6, 6, 6]
        assert torch.equal(generate(model, compress(model, given, "random:6"), 4, **options), found)


@pytest.mark.parametrize("row", WITH_LABELS, ids=lambda row: row.name)
def test_tiles_without_labels_are_images(row: Row) -> None:
    model, inputs = model_of(row.name), row.inputs("t4 A t5")
    inputs["input_ids"] = torch.tensor([row.ids("t4") + row.bare(row.pictures["A"]) + row.ids("t5")])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert list(family_of(model).layouts(inputs)) == [grid(3, 3)] * 5
    dense = logits(model, inputs)
    with apply(model, "random:1.0"):
        torch.testing.assert_close(logits(model, inputs), dense, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "row", [BY_NAME[name] for name in ("internvl", "cohere2_vision", "aya_vision")], ids=lambda row: row.name
)
def test_tiles_that_make_no_picture_are_images(row: Row) -> None:
    model: Any = model_of(row.name)
    inputs = row.inputs("t4 A t5")
    assert family_of(model).layouts(inputs) == (row.pictures["A"],)
    inputs["pixel_values"] = torch.cat([inputs["pixel_values"][:-1], tiles_of("C")])
    assert family_of(model).layouts(inputs) == (grid(3, 3),) * 5
    with apply(model, "random:4") as run:
        logits(model, inputs)
    assert [image.after for image in run.report().images] == [4] * 5


@pytest.mark.parametrize("row", [ONE_RUN, *WITH_LABELS], ids=lambda row: row.name)
def test_a_number_of_tokens_for_several_tiles_is_no_size(row: Row) -> None:
    model = model_of(row.name)
    if row is ONE_RUN:
        with pytest.raises(FoveateError, match="crops of one size come from a fraction"):
            compress(model, row.inputs("t4 A t5"), "resize:8")
    assert compress(model, row.inputs("t4 C t5"), "resize:8").images[0].after == 4
    assert compress(model, row.inputs("t4 A t5"), "resize:8:per=tile").images[0].after == 20


@pytest.mark.parametrize(
    ("name", "part", "field", "value", "words"),
    [
        ("internvl", None, "vision_feature_select_strategy", "full", "keeps .CLS."),
        ("internvl", None, "vision_feature_layer", [-1, -2], "one of its 3 layers is"),
        ("internvl", None, "vision_feature_layer", -5, "one of its 3 layers is"),
        ("internvl", None, "downsample_ratio", 0.4, "1 divided by a whole number"),
        ("internvl", "vision_config", "patch_size", [14, 16], "only squares"),
        ("internvl", "vision_config", "model_type", "siglip_vision_model", "siglip_vision_model encoder"),
        ("idefics3", "vision_config", "model_type", "clip_vision_model", "clip_vision_model encoder"),
        ("cohere2_vision", "vision_config", "model_type", "clip_vision_model", "clip_vision_model encoder"),
        ("aya_vision", None, "vision_feature_select_strategy", "default", "'full' is"),
        ("aya_vision", None, "vision_feature_layer", [-1, -2], "one of its 3 layers is"),
        ("lfm2_vl", "vision_config", "num_patches", 15, "only squares"),
        ("lfm2_vl", "vision_config", "model_type", "clip_vision_model", "clip_vision_model encoder"),
        ("minicpmv4_6", "vision_config", "model_type", "clip_vision_model", "clip_vision_model encoder"),
        ("minicpmv4_6", None, "downsample_mode", "8x", "'16x' and '4x' are"),
        ("minicpmv4_6", None, "merger_times", 2, "merger_times 2 is not supported; 1 is"),
        ("minicpmv4_6", "vision_config", "window_kernel_size", [2, 4], r"\[2, 2\] is"),
        ("minicpmv4_6", "vision_config", "insert_layer_id", 3, "one of its 3 layers"),
        ("llama4", "vision_config", "model_type", "siglip_vision_model", "siglip_vision_model encoder"),
        ("llama4", "vision_config", "pixel_shuffle_ratio", 0.4, "1 divided by a whole number"),
        ("llama4", "vision_config", "intermediate_size", 64, "intermediate_size .* has to be 128"),
        ("llama4", "vision_config", "vision_output_dim", 64, "vision_output_dim .* has to be 48"),
        ("llama4", "vision_config", "vision_feature_select_strategy", "full", "keeps .CLS."),
        ("llama4", "text_config", "model_type", "llama", "a decoder of type llama is not supported"),
        ("llama4", "text_config", "attention_chunk_size", None, "sets no attention_chunk_size"),
    ],
)
def test_configurations_that_are_refused(name: str, part: str | None, field: str, value: Any, words: str) -> None:
    if name not in BY_NAME:
        pytest.skip(f"the installed transformers can't run {name}")
    config = BY_NAME[name].model().config
    holder = config if part is None else getattr(config, part)
    object.__setattr__(holder, field, value)
    with pytest.raises(UnsupportedFamily, match=words):
        family_class(config).of_config(config).image_layout(100, 100)


def test_pixels_of_another_form_are_refused() -> None:
    for name, shape in (("internvl", (1, 5, 3, 84, 84)), ("idefics3", (5, 3, 84, 84)), ("idefics3", (1, 5, 3, 84, 56))):
        if name not in BY_NAME:
            continue
        row = BY_NAME[name]
        inputs = row.inputs("t4 A t5") | {"pixel_values": torch.ones(shape)}
        with pytest.raises(FoveateError, match="pass what its processor returned"):
            compress(model_of(row.name), inputs, "random:6")


def test_a_window_counts_the_columns_that_are_left() -> None:
    """What is right is the decoder fed the kept embeddings and positions by hand: it sees as many of them."""
    row = BY_NAME["cohere2_vision"]
    model = row.model()
    for layer in model.model.language_model.layers:
        if layer.self_attn.sliding_window:
            layer.self_attn.sliding_window = 8
    model.config.text_config.sliding_window = 8
    inputs = row.inputs("t6 A t5", "t2 B t9 C t3")
    given = inputs | {"position_ids": dense_positions(model, inputs)}
    short = compress(model, given, "random:6:positions=keep")
    keep = kept_columns(row, inputs, short)
    with torch.no_grad():
        expected = by_hand(model, given, keep)
    real = keep & inputs["attention_mask"].bool()
    with apply(model, "random:6:positions=keep"):
        torch.testing.assert_close(logits(model, given)[real], expected[real], atol=1e-5, rtol=1e-5)
    masked_logits = logits(model, masked(model, given, keep))
    assert (masked_logits[real] - expected[real]).abs().max() > 1e-3


def test_tiles_without_names_are_one_image() -> None:
    """LFM2-VL's processor may be told to write placeholders alone."""
    row = BY_NAME["lfm2_vl"]
    model = model_of("lfm2_vl")
    inputs = row.inputs("t4 A t5")
    inputs["input_ids"] = torch.tensor([row.ids("t4") + row.bare(row.pictures["A"]) + row.ids("t5")])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    (layout,) = family_of(model).layouts(inputs)
    assert layout.segments == row.pictures["A"].segments
    dense = logits(model, inputs)
    with apply(model, "random:1.0"):
        torch.testing.assert_close(logits(model, inputs), dense, atol=2e-6, rtol=0)
    with apply(model, "random:6") as run:
        found = generate(model, inputs, 4)
    assert [image.after for image in run.report().images] == [6]
    assert torch.equal(generate(model, compress(model, inputs, "random:6"), 4), found)


def test_an_image_alone_behind_tiles_shrinks_by_itself() -> None:
    """The whole of A has the size of its tiles, so only the pictures tell that C isn't the whole of five."""
    row, model = BY_NAME["lfm2_vl"], model_of("lfm2_vl")
    for prompt, seen in (("t4 A t2 C t5", [20, 8]), ("t4 A t2 B t2 C t5", [20, 12, 8]), ("t4 C t2 A t5", [8, 20])):
        short = compress(model, row.inputs(prompt), "resize:0.5")
        assert [image.after for image in short.images] == seen
    alone = compress(model, row.inputs("t4 C t5"), "resize:0.5").images[0].features
    torch.testing.assert_close(short.images[0].features, alone, atol=1e-5, rtol=1e-5)
    blank = row.inputs("t4 A t2 C t5")
    blank["pixel_values"] = torch.zeros_like(blank["pixel_values"])
    with pytest.raises(FoveateError, match="before the prompt tells how many"):
        compress(model, blank, "resize:0.5")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"spatial_shapes": torch.tensor([[5, 6]] * 5)}, "multiples of 2 patches"),
        ({"spatial_shapes": torch.tensor([[90, 90]] * 5)}, "at most 64 of them"),
        ({"spatial_shapes": torch.tensor([[8, 8]])}, r"pixel_values \(tiles, patches, values\)"),
        ({"pixel_attention_mask": None}, "needs pixel_values, spatial_shapes, pixel_attention_mask"),
    ],
)
def test_grids_that_do_not_fit_their_patches_are_refused(changed: dict[str, Any], words: str) -> None:
    row = BY_NAME["lfm2_vl"]
    with pytest.raises(FoveateError, match=words):
        compress(model_of("lfm2_vl"), row.inputs("t4 A t5") | changed, "random:6")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target_sizes": torch.tensor([[6, 8]] * 5)}, "multiples of 4 patches"),
        ({"target_sizes": torch.tensor([[16, 16]] * 4)}, "1024 patches, and pixel_values are 5120 pixels wide"),
        ({"target_sizes": torch.tensor([16, 16])}, r"target_sizes \(slices, 2\)"),
        ({"target_sizes": None}, "needs pixel_values, target_sizes"),
        ({"downsample_mode": "4x"}, "write '4x' into model.config.downsample_mode"),
    ],
)
def test_slices_that_do_not_fit_their_sizes_are_refused(changed: dict[str, Any], words: str) -> None:
    row = BY_NAME["minicpmv4_6"]
    with pytest.raises(FoveateError, match=words):
        compress(model_of("minicpmv4_6"), row.inputs("t4 A t5") | changed, "random:6")


def test_windows_that_stay_apart_are_four_times_as_many_tokens() -> None:
    row = BY_NAME["minicpmv4_6"]
    model = row.model("eager")
    model.config.downsample_mode = "4x"
    inputs = row.inputs("t4 A t5")
    family = family_of(model)
    times = 1 + 3 * (inputs["input_ids"][0] == row.image_token)
    inputs["input_ids"] = inputs["input_ids"].repeat_interleave(times, dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    (layout,) = family.layouts(inputs)
    assert [(tile.h, tile.w) for tile in layout.segments] == [(8, 8)] * 5
    dense = logits(model, inputs)
    for spec in ("random:1.0", "cls:1.0:positions=keep@features"):
        with apply(model, spec):
            torch.testing.assert_close(logits(model, inputs), dense, atol=2e-6, rtol=0)
    with apply(model, "resize:0.25+cls:9") as run:
        generate(model, inputs, 2)
    assert [image.after for image in run.report().images] == [9]


def test_slices_without_marks_are_images() -> None:
    row, model = BY_NAME["minicpmv4_6"], model_of("minicpmv4_6")
    inputs = row.inputs("t4 B t5")
    inputs["input_ids"] = torch.tensor([row.ids("t4") + row.bare(row.pictures["B"]) + row.ids("t5")])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert family_of(model).layouts(inputs) == (grid(2, 4), grid(4, 2), grid(4, 2))
    dense = logits(model, inputs)
    with apply(model, "random:1.0"):
        torch.testing.assert_close(logits(model, inputs), dense, atol=2e-6, rtol=0)


@pytest.mark.skipif("llama4" not in BY_NAME, reason="the installed transformers can't run it")
def test_tiles_without_separators_are_images() -> None:
    row, model = BY_NAME["llama4"], model_of("llama4")
    marks = row.written(row.pictures["A"])  # pyright: ignore
    other = [12 if token == 11 else token for token in marks]
    other[other.index(12)] = 13  # two rows of tiles that end in different ways
    for ids in (row.bare(row.pictures["A"]), other):
        inputs = row.inputs("t4 A t5")
        spread = [token for place, token in enumerate(ids) for token in ([14] * (place % 9 == 0 < place) + [token])]
        inputs["input_ids"] = torch.tensor([row.ids("t4") + (spread if ids is not other else ids) + row.ids("t5")])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        assert family_of(model).layouts(inputs) == (grid(3, 3),) * 5
        dense = logits(model, inputs)
        with apply(model, "random:1.0"):
            torch.testing.assert_close(logits(model, inputs), dense, atol=2e-6, rtol=0)


def test_what_fills_up_a_tile_changes_nothing() -> None:
    row, model = BY_NAME["lfm2_vl"], BY_NAME["lfm2_vl"].model("eager")
    inputs = row.inputs("t4 B t5")
    pixels, mask = inputs["pixel_values"], inputs["pixel_attention_mask"]
    longer = inputs | {"pixel_values": pad(pixels, (0, 0, 0, 16)), "pixel_attention_mask": pad(mask, (0, 16))}
    torch.testing.assert_close(logits(model, longer), logits(model, inputs), atol=1e-4, rtol=1e-4)
    for spec in ("cls:6", "cluster:6@features"):
        one, other = (compress(model, each, spec).images[0] for each in (inputs, longer))
        assert torch.equal(one.slot, other.slot)
        torch.testing.assert_close(one.features, other.features, atol=1e-4, rtol=1e-4)
