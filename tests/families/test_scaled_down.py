"""LLaVA-OneVision: grids of tiles that are scaled down, and prompts of several images, which aren't tiled."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from directories import make_processor
from PIL import Image
from rows import ROWS, picture
from rows.llava_next import LLAVA_NEXT_SIZES
from test_contract import dense_positions, generate, kept_columns, logits, masked
from test_signals import captured, weights_of
from torch import Tensor
from torch.nn.functional import interpolate
from versions import BEAMS_OF_SEVERAL_IMAGES

from foveate.engine import apply, compress
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import family_class, family_of
from foveate.layout import Layout, Segment, Structural
from foveate.tokens import EncoderAttention

FULL = next(row for row in ROWS if row.name == "llava_onevision")

GRIDS = {
    "A": Segment(1, 3, 4, (1, 2), (2, 2)),
    "B": Segment(1, 2, 8, (2,), (4, 4)),
    "C": Segment(1, 9, 1, (3, 3, 3), (1,)),
}
"""The grids of tiles if they may hold as many tokens as one tile; that of B is not scaled."""


def with_newlines(grid: Segment) -> Layout:
    newlines = [Structural(16 + (row + 1) * grid.w + row, 16 + row * grid.w, 16 + (row + 1) * grid.w)
                for row in range(grid.h)]  # fmt: skip
    return Layout((Segment(1, 4, 4), grid), tuple(newlines))


def make_scaled() -> Any:
    model: Any = FULL.make()
    model.config.vision_aspect_ratio = model.model.config.vision_aspect_ratio = "anyres_max_1"
    return model


ROW = replace(FULL, make=make_scaled, pictures={letter: with_newlines(grid) for letter, grid in GRIDS.items()})
BATCH = ("t6 A t5", "t2 B t9 C t3", "t11", "t3 C t4")


@pytest.fixture(scope="module")
def model() -> Any:
    return ROW.model()


def test_layouts(model: Any) -> None:
    layouts = family_of(model).layouts(ROW.inputs("A B C"))
    assert list(layouts) == [ROW.pictures[letter] for letter in "ABC"]
    for layout, letter in zip(layouts, "ABC"):
        assert family_of(model).image_layout(*LLAVA_NEXT_SIZES[letter]) == layout


@pytest.mark.parametrize("spec", ["random:1.0", "cls:1.0:positions=keep", "pool:1.0"])
def test_keeping_everything_is_the_untouched_model(model: Any, spec: str) -> None:
    inputs = ROW.inputs(*BATCH)
    dense, ids = logits(model, inputs), generate(model, inputs)
    with apply(model, spec):
        assert torch.equal(generate(model, inputs), ids)
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(logits(model, inputs)[real], dense[real], atol=1e-6, rtol=0)


@pytest.mark.parametrize("spec", ["random:6", "cls:6"])
def test_dropping_is_masking(model: Any, spec: str) -> None:
    inputs = ROW.inputs(*BATCH)
    given = {**inputs, "position_ids": dense_positions(model, inputs)}
    short = compress(model, given, f"{spec}:positions=keep")
    keep = kept_columns(ROW, inputs, short)
    oracle = logits(model, masked(model, inputs, keep))
    real = keep & inputs["attention_mask"].bool()
    cut = logits(model, short)
    torch.testing.assert_close(cut[short["attention_mask"].bool()], oracle[real], atol=1e-5, rtol=1e-5)


def test_signals_are_scaled_as_features() -> None:
    model = ROW.model("eager")
    family, capture = captured(model, ROW.inputs("A"), -1)
    (got,) = family.encoder_signal(EncoderAttention(layer=-1), capture)
    crops = weights_of(model, ROW.inputs("A"), -1)[0].mean(1).sum(1) / 16
    rows = [torch.cat([crops[1 + 2 * down + right].view(4, 4) for right in (0, 1)], dim=1) for down in (0, 1)]
    tiles = torch.cat(rows)[1:-1]  # a row of padding above and below
    scaled = interpolate(tiles[None, None], size=(3, 4), mode="bilinear").flatten()
    torch.testing.assert_close(got, torch.cat([crops[0], scaled]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", ["resize:0.25", "resize:0.3:mode=enlarge"])
def test_smaller_crops_are_scaled_in_proportion(model: Any, spec: str) -> None:
    inputs = ROW.inputs("t6 A t5", "t2 B t9 C t3")
    short = compress(model, inputs, spec)
    assert all(image.after < image.before or "enlarge" in spec for image in short.images)
    with apply(model, spec) as run:
        found = logits(model, inputs)
    assert [image.after for image in run.report().images] == [image.after for image in short.images]
    assert found.isfinite().all()
    family: Any = family_of(model)
    small = family.shrunk(ROW.pictures["A"], (2, 2))
    assert small.segments == (Segment(1, 2, 2), Segment(1, 1, 2, (0, 1), (1, 1)))


def test_what_the_projector_reads_is_no_token(model: Any) -> None:
    with pytest.raises(FoveateError, match=r"more than 1 tile.*use @input"):
        compress(model, ROW.inputs("t6 A t5"), "cluster:6@features")
    assert compress(model, ROW.inputs("t6 B t5"), "cluster:6@features").images[0].after < 16


def many(prompts: tuple[str, ...], counts: list[int]) -> dict[str, Tensor]:
    """A batch in which the pictures of a prompt with several are given whole."""
    inputs = FULL.inputs(*prompts)
    rows = []
    letters = iter("".join(piece for prompt in prompts for piece in prompt.split() if piece[0] != "t"))
    for number, prompt in zip(counts, prompts):
        ids: list[int] = []
        for piece in prompt.split():
            tiled = piece[0] == "t" or number == 1
            ids += FULL.ids(piece) if tiled else [FULL.image_token] * 17
        rows.append(ids)
    longest = max(map(len, rows))
    inputs["input_ids"] = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    inputs["attention_mask"] = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    whole = [picture(letter, 3, 56, 56) for letter in letters]
    alone = [number == 1 for number in counts for _ in range(number)]
    for place, tiled in enumerate(alone):
        if not tiled:
            inputs["pixel_values"][place] = 0
            inputs["pixel_values"][place, 0] = whole[place]
    return inputs | {"batch_num_images": torch.tensor(counts)}


WHOLE = Layout((Segment(1, 4, 4),), (Structural(16, 0, 16),))


@BEAMS_OF_SEVERAL_IMAGES
def test_several_images_of_a_prompt_are_not_tiled() -> None:
    model: Any = FULL.model()
    inputs = many(("t6 A t5", "t2 B t9 C t3"), [1, 2])
    assert list(family_of(model).layouts(inputs)) == [FULL.pictures["A"], WHOLE, WHOLE]
    dense, ids = logits(model, inputs), generate(model, inputs)
    real = inputs["attention_mask"].bool()
    for spec in ("random:1.0", "cls:1.0@features"):
        with apply(model, spec):
            torch.testing.assert_close(logits(model, inputs)[real], dense[real], atol=1e-6, rtol=0)
            assert torch.equal(generate(model, inputs), ids)
    given = inputs | {"position_ids": dense_positions(model, inputs)}
    for options in ({}, {"num_beams": 2}):
        with apply(model, "cls:6") as run:
            found = generate(model, inputs, 4, **options)
        assert [image.after for image in run.report().images[-2:]] == [7, 7]
        assert torch.equal(generate(model, compress(model, given, "cls:6"), 4, **options), found)
    (_, *small) = compress(model, given, "resize:0.25").images
    assert [image.after for image in small] == [5, 5]


def test_the_processor_counts_images_of_a_prompt() -> None:
    pytest.importorskip("torchvision")
    model: Any = FULL.model()
    processor = make_processor(FULL, model.config)
    images = [Image.new("RGB", size, (9, 99, 200)) for size in ((60, 90), (150, 40), (1, 900))]
    inputs = processor(
        text=["<image> is it ?", "<image> <image> is it ?"], images=[images[:1], images[1:]], padding=True,
        return_tensors="pt",
    )  # fmt: skip
    layouts = family_of(model).layouts(dict(inputs))
    assert [len(layout.segments) for layout in layouts] == [2, 1, 1]
    assert int((inputs["input_ids"] == 5).sum()) == sum(layout.total for layout in layouts)


def test_images_are_counted_twice() -> None:
    model: Any = FULL.model()
    inputs = FULL.inputs("t6 A t5") | {"batch_num_images": torch.tensor([1, 2])}
    with pytest.raises(FoveateError, match="batch_num_images counts 3 images"):
        compress(model, inputs, "random:6")


@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        (None, "vision_feature_select_strategy", "default", "'full' is"),
        (None, "vision_aspect_ratio", "pad", "'anyres_max_' and a number is"),
        ("vision_config", "model_type", "clip_vision_model", "clip_vision_model encoder"),
    ],
)
def test_configurations_that_are_refused(part: str | None, field: str, value: Any, words: str) -> None:
    config = FULL.model().config
    object.__setattr__(config if part is None else getattr(config, part), field, value)
    with pytest.raises(UnsupportedFamily, match=words):
        family_class(config).of_config(config)
