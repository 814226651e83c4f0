"""Rules that act inside the decoder, on every family: what they read there is theirs, whatever stands beside it."""

import re
from typing import Any

import pytest
import torch
from rows import Row
from test_contract import BATCH, CHAT, dense_positions, logits
from test_depth import masked_inside
from torch import Tensor

from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.listing import listing

pytestmark = pytest.mark.inside

SCENARIOS = (
    "fastv:6@1",
    "fastv:0.3:rows=text@2",
    "pyramiddrop:0.5@1,2",
    "sparsevlm:8@1",
    "sparsevlm:0.5:recycle=beside@1,2",
    "sparsevlm-plus:6:heads=2@2",
    "dart:9@1",
    "atp:theta_s=0.7@1,2",
    "atp:5@2",
    "sparsevlm-rank:scale=1.5@1,2",
    "fastv:3:per=tile@1",
    "atp:theta_s=0.9:per=tile@2",
    "vtw@2",
    "visionzip:8+fastv:0.5@1+vtw@2",
)
SPECS = (
    *SCENARIOS,
    *(
        f"{method.spec.replace(':1.0', ':0.5')}@1"
        for method in listing()
        if method.place == "decoder" and not any(re.search(rf"(^|\+){method.name}[:@]", spec) for spec in SCENARIOS)
    ),
)
"""With every other method that acts inside the decoder."""


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_a_batch_is_its_samples_alone(row: Row, any_model: Any, spec: str) -> None:
    """Prompts of different length, images of different size, padding, and a prompt without any image."""
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with apply(any_model, spec):
        batch = any_model.generate(**row.inputs(*BATCH), **options)
        for number, prompt in enumerate(BATCH):
            alone = any_model.generate(**row.inputs(prompt), **options)
            for step, (both, one) in enumerate(zip(batch.logits, alone.logits)):
                torch.testing.assert_close(both[number], one[0], atol=1e-4, rtol=1e-4, msg=f"{prompt}, step {step}")


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_decoding_with_a_cache_is_forward_without(row: Row, any_model: Any, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    with apply(any_model, spec):
        out = any_model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        whole = row.with_text(inputs, out.sequences[:, -4:])
        # The prompt ends where the first prediction is asked for: rules must not read the answer.
        # A rule may look at keys that are turned, which tell where positions begin.
        positions = dense_positions(any_model, whole) + family_of(any_model).first_position
        given = {**whole, "position_ids": positions, "logits_to_keep": 5}
        at_once = any_model(**given, use_cache=False).logits
    torch.testing.assert_close(torch.stack(out.logits, dim=1), at_once[:, -5:-1].float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_they_do_something(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs(CHAT)
    dense = logits(model, inputs)[:, -1]
    with apply(model, spec) as run:
        assert (logits(model, inputs)[:, -1] - dense).abs().max() > 1e-3
    (image,) = run.report().images
    assert image.after < image.before
    assert list(image.layers) == sorted(image.layers, reverse=True)


@pytest.mark.parametrize(
    "spec",
    [
        "fastv@1",
        "pyramiddrop:positions=keep@1,2",
        "sparsevlm:positions=keep@1",
        "sparsevlm-plus:heads=2@2",
        "dart@1",
        "atp:1.0@2",
    ],
)
def test_keeping_everything_is_the_untouched_model(row: Row, any_model: Any, spec: str) -> None:
    inputs = row.inputs(*BATCH)
    dense = logits(any_model, inputs)
    real = inputs["attention_mask"].bool()
    with apply(any_model, spec):
        torch.testing.assert_close(logits(any_model, inputs)[real], dense[real], atol=1e-6, rtol=0)


# Against the attention maps that eager attention really makes.


def eager_maps(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Attention of each layer, mean over heads: `(S, S)` of one prompt without padding."""
    given = {**inputs, "position_ids": dense_positions(model, inputs)}
    return [each[0].mean(dim=0) for each in model(**given, output_attentions=True, use_cache=False).attentions]


def content_columns(row: Row, prompt: str) -> list[Tensor]:
    """The columns of each image's content tokens."""
    letters = [piece for piece in prompt.split() if piece[0] != "t"]
    return [own[row.pictures[letter].places] for letter, own in zip(letters, row.image_columns(prompt))]


def visible(row: Row, inputs: dict[str, Tensor], prompt: str, kept: list[Tensor]) -> Tensor:
    """`(1, S)` bool: text, what is kept of each image, and the structural tokens that stay with it."""
    keep = ~row.is_image(inputs["input_ids"])
    letters = [piece for piece in prompt.split() if piece[0] != "t"]
    for letter, own, slots in zip(letters, row.image_columns(prompt), kept):
        run, _ = row.pictures[letter].placed(slots)
        keep[0, own[run]] = True
    return keep


@pytest.mark.parametrize(
    ("spec", "layer", "read"),
    [("fastv:7@1", 1, 0), ("fastv:7@2", 2, 1), ("fastv:7:rows=text@2", 2, 1), ("pyramiddrop:7:positions=keep@1", 1, 1)],
)
@pytest.mark.parametrize("prompt", [CHAT, "t2 B t9 C t3"])
@torch.no_grad()
def test_what_text_looks_at_stays(row: Row, spec: str, layer: int, read: int, prompt: str) -> None:
    model = row.model("eager")
    inputs = row.inputs(prompt)
    maps = eager_maps(model, inputs)
    text = (~row.is_image(inputs["input_ids"][0])).nonzero().squeeze(1)
    kept: list[Tensor] = []
    for places in content_columns(row, prompt):
        rows = text if "rows=text" in spec else torch.tensor([maps[read].shape[0] - 1])
        score = maps[read][rows][:, places].mean(dim=0)
        kept.append(score.topk(7).indices.sort().values)
    oracle = masked_inside(model, inputs, {layer: visible(row, inputs, prompt, kept)}).logits
    with apply(model, spec):
        mine = model(**inputs, position_ids=dense_positions(model, inputs)).logits
    torch.testing.assert_close(mine[:, -1], oracle[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [1, 2])
@torch.no_grad()
def test_no_visual_token_passes(row: Row, any_model: Any, layer: int) -> None:
    inputs = row.inputs(*BATCH)
    text = ~row.is_image(inputs["input_ids"])
    oracle = masked_inside(any_model, inputs, {layer: text}).logits
    with apply(any_model, f"vtw@{layer}") as run:
        mine = any_model(**inputs, position_ids=dense_positions(any_model, inputs)).logits
    real = text & inputs["attention_mask"].bool()
    torch.testing.assert_close(mine[real], oracle[real], atol=1e-5, rtol=1e-5)
    layers = len(family_of(any_model).decoder_layers)
    for image in run.report().images:
        assert list(image.layers) == [image.before] * layer + [0] * (layers - layer)


@pytest.mark.parametrize(
    ("spec", "example"),
    [
        ("fastv:0.5", "fastv:0.5@1"),
        ("fastv:0.5@input", "fastv:0.5@1"),
        ("vtw@0", "vtw@1"),
        ("sparsevlm:8@features", "sparsevlm:8@1,2"),
    ],
)
def test_they_must_be_told_a_layer(row: Row, model: Any, spec: str, example: str) -> None:
    with (
        pytest.raises(FoveateError, match=f"acts inside the decoder.*; .* for instance {example}$"),
        apply(model, spec),
    ):
        pass


@pytest.mark.parametrize("spec", ["fastv:6@1", "pyramiddrop:0.5@1,2", "sparsevlm:8@1", "atp:theta_s=0.7@2"])
@torch.no_grad()
def test_the_answer_that_is_learnt_from_is_not_read(row: Row, model: Any, spec: str) -> None:
    """With labels the prompt ends before the first of them, as it does when the answer is still to be generated."""
    answer = torch.randint(20, 120, (len(BATCH), 3), generator=torch.Generator().manual_seed(0))
    inputs = row.with_text(row.inputs(*BATCH), answer)
    inputs["position_ids"] = dense_positions(model, inputs)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with apply(model, spec):
        taught = model(**inputs, labels=labels)
        asked = model(**inputs, logits_to_keep=4)
    torch.testing.assert_close(taught.logits[:, -4:], asked.logits[:, -4:], atol=1e-5, rtol=1e-5)
    assert taught.loss.isfinite()
