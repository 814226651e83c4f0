"""Memories can be moved if and only if the decoder's own code rotates keys as foveate does."""

from typing import Any

import pytest
import torch
from others import HEADLESS, OTHERS, Other, maker, other
from rows import ROWS

from foveate.errors import UnsupportedFamily
from foveate.families import family_of
from foveate.families.turning import frequencies
from foveate.voco import VoCo, VoCoMemory

BY_NAME = {row.name: row for row in OTHERS}
GEMMA = next(row for row in ROWS if row.name == "gemma3")


def with_decoder(name: str, config: str, **text: Any) -> Other:
    """LLaVA with SigLIP and a decoder of another architecture."""
    make = maker(
        "Llava",
        "SiglipVisionConfig",
        config,
        HEADLESS | {"text": text},
        image_token_id=5,
        vision_feature_select_strategy="full",
    )
    return other(name, make, 36)


HALF = with_decoder("half_turned", "PhiConfig", partial_rotary_factor=0.5)
COHERE = with_decoder("cohere2", "Cohere2Config")
CONVOLUTION = with_decoder("lfm2", "Lfm2Config", layer_types=["conv", "full_attention", "conv"])
pytestmark = pytest.mark.filterwarnings("ignore:.*Each run of its image placeholders")


def apart(row: Any, prompt: str) -> float:
    """Return the largest difference between the logits of two passes and of the masked pass."""
    model, inputs = row.model("eager"), row.inputs(prompt)
    voco = VoCo(model, 3, shared=False)
    with torch.no_grad():
        return (voco(model, inputs).logits - voco(model, inputs, in_two_passes=False).logits).abs().max().item()


def test_heads_that_are_turned_in_part_are_moved():
    assert 0 < frequencies(family_of(HALF.model())).shape[0] * 2 < 16
    assert apart(HALF, "t2 A t9 B t3") < 1e-4


@pytest.mark.parametrize("row", [COHERE, GEMMA], ids=lambda row: row.name)
def test_one_image_is_right_and_two_are_refused(row):
    """One rotates other pairs and not all layers; the other has frequencies that differ by layer."""
    assert apart(row, "t2 A t9") < 1e-4
    model = row.model()
    voco = VoCo(model, 3)
    a, b = voco.encode(model, row.inputs("t3 A t2 B"))
    with pytest.raises(UnsupportedFamily, match="one image at a time"):
        voco.join([a, b])
    with pytest.raises(UnsupportedFamily, match="one image at a time"):
        VoCoMemory.moved(a, 7)


def test_frequencies_that_follow_the_length_are_refused():
    model = BY_NAME["janus"].model()
    assert frequencies(family_of(model)).shape[0]
    rotary = family_of(model).decoder.rotary_emb
    for name in ("dynamic", "longrope"):
        rotary.rope_type = name
        assert not frequencies(family_of(model)).shape[0]


def test_layers_that_remember_no_keys_are_refused():
    model = CONVOLUTION.model()
    with pytest.raises(UnsupportedFamily, match="something else than keys"):
        VoCo(model, 3).encode(model, CONVOLUTION.inputs("A t2"))


def test_asking_leaves_a_model_in_training_as_it_is():
    """The check works in half precision and with dropout, and changes neither modes nor the random state."""
    model = BY_NAME["janus"].model(dtype=torch.bfloat16).train()
    family = family_of(model)
    for layer in family.decoder_layers:
        layer.self_attn.k_proj = torch.nn.Sequential(torch.nn.Dropout(0.5), layer.self_attn.k_proj)
    family.decoder.norm.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = torch.random.get_rng_state()
    assert frequencies(family).shape[0] == 8
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.random.get_rng_state(), before)
