"""PerceptionLM: images without text between them, an encoder without [CLS], frames, and what is refused."""

from typing import Any

import pytest
import torch
from rows import ROWS
from rows.tiles import of_tokens, tiles_of
from test_signals import captured, weights_of

from foveate.engine import apply, compress
from foveate.errors import FoveateError
from foveate.families import family_class, family_of
from foveate.tokens import EncoderAttention

pytest.importorskip("timm")
pytest.importorskip("torchvision")
(ROW,) = (row for row in ROWS if row.name == "perception_lm")


def prompt(model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Images with nothing between them, as the chat template writes them."""
    ids = torch.tensor([[20, 21, *[5] * (9 * pixels.shape[:2].numel()), 22, 23]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def test_images_without_text_between_them_are_told_apart_by_their_tiles() -> None:
    model = ROW.model()
    two = torch.stack([torch.cat([tiles_of("A")[-1:], tiles_of("A")[:-1]])] * 2)
    inputs = prompt(model, two)
    assert family_of(model).layouts(inputs) == (ROW.pictures["A"],) * 2
    dense = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with apply(model, "random:1.0") as run:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), dense)
    assert [image.before for image in run.report().images] == [45, 45]
    assert [image.after for image in compress(model, inputs, "cls:6").images] == [6, 6]


def test_frames_are_one_image_whose_tiles_lie_nowhere() -> None:
    model = ROW.model()
    frames = torch.stack([tiles_of(letter)[-1] for letter in "ABCD"[:3]])[None]
    (layout,) = family_of(model).layouts(prompt(model, frames))
    assert [segment.part for segment in layout.segments] == [()] * 3
    assert compress(model, prompt(model, frames), "cluster:6").images[0].after == 6
    assert compress(model, prompt(model, frames), "cluster:2:per=tile").images[0].after == 6


def without_cls() -> Any:
    """As the 8B model is."""
    from transformers import AutoModelForImageTextToText

    config: Any = ROW.make().config
    config.vision_use_cls_token, config.vision_config.architecture = False, "vit_pe_core_gigantic_patch14_448"
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(3.0 if weight.ndim >= 2 and "embed" not in name else 1.0)
    return model


def test_an_encoder_without_cls_gives_the_attention_that_patches_receive() -> None:
    model, inputs = without_cls(), ROW.inputs("t2 A t3 B")
    family, capture = captured(model, inputs, -1)
    (maps,) = weights_of(model, inputs, -1)
    tiles = of_tokens(maps.mean(1).sum(1)).sum(2) / 36
    for found, expected in zip(family.encoder_signal(EncoderAttention(layer=-1), capture), tiles.split([5, 3])):
        torch.testing.assert_close(found, expected.flatten(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("part", "name", "value", "reason"),
    [
        ("vision", "architecture", "resnet50", "the encoder resnet50 of timm is not supported; .* with vit_pe_core"),
        ("arguments", "qkv_fused", False, "qkv_fused among vision_config.model_args"),
        ("arguments", "embed_dim", None, "embed_dim in vision_config.model_args of PerceptionLM is None"),
        ("arguments", "img_size", [84, 56], r"img_size .* is \[84, 56\]; only squares"),
        ("arguments", "num_heads", 5, "embed_dim 32 of PerceptionLM is no multiple of num_heads 5"),
        ("model", "vision_use_cls_token", False, r"has a \[CLS\]; write True"),
        ("model", "projector_pooling_ratio", 4, "tiles of 84 pixels are no multiple of the 56 pixels"),
    ],
)
def test_configurations_that_break_an_assumption_are_refused(part: str, name: str, value: Any, reason: str) -> None:
    config: Any = ROW.make().config
    if part == "arguments":
        config.vision_config.model_args = {**config.vision_config.model_args, name: value}
    else:
        setattr(config.vision_config if part == "vision" else config, name, value)
    with pytest.raises(FoveateError, match=reason):
        family_class(config).of_config(config)
