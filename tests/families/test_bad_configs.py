"""Models of a supported type that break what their family takes for granted: refused at `apply`, or right."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from rows import ROWS, Row
from rows.row import DECODER, ENCODER
from test_contract import logits
from torch import nn

from foveate.engine import apply
from foveate.errors import FoveateError, FoveateWarning
from foveate.families import family_class, family_of, generic

CHAT = "t6 A t5 B t3"
BY_NAME = {row.name: row for row in ROWS}
READ_ONE = {"aya_vision", "internvl", "llava", "llava_next", "llava_next_video", "llava_onevision", "llava_siglip",
            "mistral3", "pixtral"}  # fmt: skip
"""Families whose configuration says which layer of the encoder is read."""


def with_config(row: Row, change: Callable[[Any], None]) -> Row:
    """The row of a family whose model is made from a changed configuration."""
    model: Any = row.make()
    config = deepcopy(model.config)
    change(config)
    return replace(row, make=lambda: type(model)(deepcopy(config)))


def named(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, each in model.named_modules() if each is module)


@pytest.mark.parametrize("part", ["tower", "projected_module", "feature_module"])
def test_a_part_that_is_not_there(row: Row, part: str) -> None:
    model = deepcopy(row.model())
    holder, _, name = named(model, getattr(family_of(model), part)).rpartition(".")
    setattr(model.get_submodule(holder), name, None)
    with pytest.raises(FoveateError, match=r"this .* has None where its .* is expected, so it can't read images"):
        apply(model, "random:6")


@pytest.mark.filterwarnings("ignore::foveate.FoveateWarning")
def test_a_projector_of_another_make(row: Row) -> None:
    """Then nobody knows what it reads: what the family gives needs that, and the rest acts as on any model."""
    model = deepcopy(row.model())
    name = named(model, family_of(model).projectors[0])
    holder, _, last = name.rpartition(".")
    setattr(model.get_submodule(holder), last, Wrapped(model.get_submodule(name)))
    inputs = row.inputs(CHAT)
    try:
        dense = logits(model, inputs)
    except AttributeError:
        dense = None  # the model itself reads more of it than its output
    for spec in ("random:1.0", "cls:1.0:positions=keep@features"):
        try:
            run = apply(model, spec)
        except FoveateError:
            continue
        with run:
            if dense is not None:
                torch.testing.assert_close(logits(model, inputs), dense, atol=1e-5, rtol=1e-5)


class Wrapped(nn.Module):
    """Does what another module does, without being built like it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.filterwarnings("ignore::foveate.FoveateWarning")
@pytest.mark.parametrize("kind", ["CLIPVisionConfig", "SiglipVisionConfig"])
def test_another_encoder(row: Row, kind: str) -> None:
    other = getattr(transformers, kind)(**ENCODER, image_size=84, patch_size=14)
    if other.model_type == row.make().config.vision_config.model_type:  # pyright: ignore
        pytest.skip("it is this family's own")

    def change(config: Any) -> None:
        config.vision_config = other

    try:
        model = with_config(row, change).model()
    except Exception:
        return  # transformers itself refuses it, with errors of several kinds
    inputs = row.inputs(CHAT)
    try:
        dense = logits(model, inputs)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        dense = None
    try:
        assert family_class(model.config).name != row.name or family_of(model).name != row.name
        run = apply(model, "random:1.0")
    except FoveateError:
        return
    with run:
        if dense is not None:
            torch.testing.assert_close(logits(model, inputs), dense, atol=1e-5, rtol=1e-5)


def test_a_configuration_without_an_encoder(row: Row, model: Any) -> None:
    config = deepcopy(model.config)
    family = family_class(config)
    if not family.encoders:
        pytest.skip("its encoder has no type of its own")
    config.vision_config = None
    with pytest.raises(FoveateError, match="can't read images: its configuration has no vision_config"):
        family.of_config(config)


@pytest.mark.filterwarnings("ignore::foveate.FoveateWarning")
@pytest.mark.parametrize("layer", [-1, -3, 1, [-1, -2], -9])
@pytest.mark.parametrize("row", [row for row in ROWS if row.name in READ_ONE], ids=lambda row: row.name)
def test_feature_layers(row: Row, layer: Any) -> None:
    """Counted from either end, or several; one that isn't there is refused."""

    def change(config: Any) -> None:
        config.vision_feature_layer = layer

    model = with_config(row, change).model()
    inputs = row.inputs(CHAT)
    try:
        dense = logits(model, inputs)
    except (IndexError, RuntimeError, TypeError, ValueError):
        dense = None
    for spec in ("random:1.0", "cls:1.0:positions=keep@features", "random:1.0@1"):
        try:
            run = apply(model, spec)
        except FoveateError:
            assert dense is None or spec != "random:1.0"
            continue
        assert dense is not None or family_of(model).name != row.name
        with run:
            if dense is not None:
                torch.testing.assert_close(logits(model, inputs), dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_next_video"])
def test_an_encoder_whose_first_token_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(config: Any) -> None:
        config.vision_feature_select_strategy = "full"

    monkeypatch.setattr(generic, "_warned", type(generic._warned)())
    model = with_config(BY_NAME[name], change).model()
    with pytest.warns(FoveateWarning, match=r"keeps \[CLS\].*vision_feature_select_strategy='full'"):
        assert family_of(model).name != name


def test_windows_of_no_length() -> None:
    row = BY_NAME["qwen2_vl"]

    def change(config: Any) -> None:
        config.text_config.layer_types = ["sliding_attention"] * 3

    with pytest.raises(FoveateError, match="has no sliding_window"):
        apply(with_config(row, change).model(), "random:6@1")


@pytest.mark.parametrize("name", ["lfm2_vl", "minicpmv4_6"])
def test_a_decoder_whose_layers_are_elsewhere(name: str) -> None:
    if name not in BY_NAME:
        pytest.skip("this version of transformers has no such model")

    def change(config: Any) -> None:
        config.text_config = transformers.GPT2Config(**DECODER, pad_token_id=0)

    with pytest.raises(FoveateError, match="language model of type gpt2"):
        family_of(with_config(BY_NAME[name], change).model())


def test_a_placeholder_that_is_not_named(row: Row) -> None:
    model = row.model()
    config = family_of(model).config
    # Some configurations check their own fields when they are set, and some have another name for this one.
    name = config.attribute_map.get("image_token_id", "image_token_id")
    object.__setattr__(config, name, None)
    with pytest.raises(FoveateError, match="has no image_token_id, so nothing tells where its images stand"):
        apply(model, "random:6")
