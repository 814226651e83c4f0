"""Steps inside the encoder: merging is the paper's, attention weighs what was merged, and counts are exact."""

import copy
from typing import Any

import pytest
import torch
from rows import LLAVA, ROWS, Row
from torch import Tensor, nn
from versions import CHECKPOINTING_INSIDE, set_checkpointing

import foveate
from foveate.engine import apply, compress, encode, encoder_outputs
from foveate.engine.encoder import EncoderPass
from foveate.errors import FoveateError, KeepError
from foveate.families import families, families_at, family_of
from foveate.schedule import tokens_after
from foveate.tokens import EncoderAttention, EncoderKeys

DEEP = 6
READ = 4  # vision_feature_layer is -2 of 6 layers
_deep: dict[str, Any] = {}


def deep(attention: str = "sdpa") -> Any:
    """LLaVA with an encoder of six layers, so that there are four places to merge at."""
    if attention not in _deep:

        def make() -> nn.Module:
            from transformers import LlavaForConditionalGeneration

            config: Any = LLAVA.make().config
            config.vision_config.num_hidden_layers = DEEP
            return LlavaForConditionalGeneration(config)

        row = Row(**{**vars(LLAVA), "make": make})
        _deep[attention] = row.model(attention)
    return _deep[attention]


def features(model: Any, inputs: Any, spec: str) -> Tensor:
    """What is left of each image at the decoder's input, `(images, M, D)`."""
    return torch.stack([image.features for image in compress(model, inputs, spec).images])


def pairs(count: int = 2) -> tuple[Any, dict[str, Tensor]]:
    """A model without positions in its encoder, and images whose patches come in equal pairs."""
    model = LLAVA.model()
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight[1:] = 0
    inputs = LLAVA.inputs(*["t4 A t3"] * count)
    torch.manual_seed(1)
    half = torch.randn(count, 3, 6, 14, 3, 14)
    inputs["pixel_values"] = half.repeat_interleave(2, dim=4).reshape(count, 3, 84, 84)
    return model, inputs


# What merging is


def by_hand(model: Any, pixels: Tensor, left: list[int]) -> Tensor:
    """One image through the encoder, a patch at a time: `(M, D)` in front of the projector.

    Each of `left` is how many patches enter a layer, from layer 1 on.
    """
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(pixels[None]))[0]
    sizes = [1.0] * (hidden.shape[0] - 1)
    keys = torch.empty(0)
    for number, layer in enumerate(tower.encoder.layers[: READ + 1]):
        if number:
            while len(sizes) > left[number - 1]:
                go = min(len(sizes) - left[number - 1], max(1, len(sizes) // 4))
                assert go == len(sizes) - left[number - 1], "the example takes one round per layer"
                best = [
                    max(
                        (float(torch.cosine_similarity(keys[a], keys[b], dim=0)), -b, a) for b in range(1, len(keys), 2)
                    )
                    for a in range(0, len(keys), 2)
                ]
                groups = {index: [index] for index in range(len(sizes))}
                for _, b, a in sorted(best, reverse=True)[:go]:
                    groups[-b] += groups.pop(a)
                rows = []
                for members in groups.values():
                    members.sort()
                    middle = sum(members) / len(members)
                    place = min(members, key=lambda member: (abs(member - middle), member))
                    weight = sum(sizes[each] for each in members)
                    rows.append((place, sum(sizes[each] * hidden[1 + each] for each in members) / weight, weight))
                rows.sort(key=lambda row: row[0])
                hidden = torch.stack([hidden[0], *(row[1] for row in rows)])
                sizes = [row[2] for row in rows]
        attention = layer.self_attn
        normed = layer.layer_norm1(hidden)
        query, key, value = (
            project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        keys = key.mean(dim=0)[1:]
        weights = torch.tensor([1.0, *sizes])
        scores = (query @ key.transpose(1, 2) * attention.scale).exp() * weights
        mixed = (scores / scores.sum(dim=-1, keepdim=True) @ value).transpose(0, 1).flatten(1)
        hidden = hidden + attention.out_proj(mixed)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden[1:]


@torch.no_grad()
def test_merging_is_what_it_is_by_hand() -> None:
    model = deep()
    inputs = LLAVA.inputs("t4 A t3", "t2 B t5")
    expected = torch.stack([by_hand(model, pixels, [32, 27, 23, 18]) for pixels in inputs["pixel_values"]])
    found = features(model, inputs, "tome:18@encoder")
    torch.testing.assert_close(found, model.model.multi_modal_projector(expected), atol=1e-4, rtol=1e-4)
    fast = torch.stack([by_hand(model, pixels, [29, 22, 20, 20]) for pixels in inputs["pixel_values"]])
    found = features(model, inputs, "tome:20:per_round=7@encoder")
    torch.testing.assert_close(found, model.model.multi_modal_projector(fast), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_equal_patches_count_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pairs()
    dense = features(model, inputs, "cls:1.0")
    torch.testing.assert_close(dense[:, ::2], dense[:, 1::2], atol=1e-5, rtol=1e-5)
    spec = "tome:18:per_round=18@encoder"
    torch.testing.assert_close(features(model, inputs, spec), dense[:, ::2], atol=1e-5, rtol=1e-5)
    # And so for all that is said of the patches, in whatever layer.
    signals = [EncoderAttention(layer) for layer in (0, 1, 2)] + [EncoderKeys(layer) for layer in (0, 1, 2)]
    needs = ["cls:9:layer=0", "cls:9:layer=1", "cls:9:layer=2"]
    needs += [f"tome:9:metric=keys:layer={layer}" for layer in (0, 1, 2)]
    whole, merged = encode(model, inputs, needs), encode(model, inputs, [f"{spec}+{need}" for need in needs])
    for signal in signals:
        for image, (full, short) in enumerate(zip(whole.signals[signal], merged.signals[signal], strict=True)):
            twin = full[::2] + full[1::2] if isinstance(signal, EncoderAttention) else full[::2]
            slots = merged.inside[image].slot[0]
            torch.testing.assert_close(short[slots], twin, atol=1e-5, rtol=1e-5)
    # The test can see: one of each pair, looked at as if it were alone, is something else.
    monkeypatch.setattr(EncoderPass, "bias", lambda *_: None)
    assert (features(model, inputs, spec) - dense[:, ::2]).abs().max() > 1e-3


# Counts, batches, attention, gradients


@torch.no_grad()
@pytest.mark.parametrize("name", ["tome", "tome:metric=features", "cls", "cluster", "divprune", "visionzip"])
def test_counts_are_exact_and_images_are_apart(name: str) -> None:
    model = deep()
    head, _, options = name.partition(":")
    inputs = LLAVA.inputs("t6 A t5", "t2 B t9 C t3")
    family = family_of(model)
    (layout,) = set(family.layouts(inputs))
    for keep in ("1.0", "35", "0.25", "3"):
        spec = f"{head}:{keep}{':' * bool(options)}{options}@encoder"
        found = compress(model, inputs, spec)
        assert [image.after for image in found.images] == [tokens_after(spec, family, layout)] * 3
        if keep == "1.0":
            assert (features(model, inputs, spec) - features(model, inputs, "cls:1.0")).abs().max() == 0
            continue
        for image in found.images:
            assert image.plan is not None
            slot = image.plan.slot[0]
            assert (slot.diff() > 0).all()
            if head == "tome":
                assert image.plan.group is not None
                assert (image.plan.group >= 0).all()
                torch.testing.assert_close(image.plan.weights().sum(), torch.tensor(float(len(slot))))
        turned = compress(model, inputs | {"pixel_values": inputs["pixel_values"].flip(0)}, spec)
        for image, again in zip(found.images, reversed(turned.images), strict=True):
            assert image.plan is not None
            assert again.plan is not None
            assert torch.equal(image.plan.slot, again.plan.slot)
            torch.testing.assert_close(image.features, again.features, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_eager_is_sdpa_and_apply_is_compress() -> None:
    inputs = LLAVA.inputs("t6 A t5", "t2 B t9 C t3")
    spec = "resize:0.7+tome:0.5@encoder+cls:9@features+cluster:7+pool:4@1"
    logits = []
    for attention in ("sdpa", "eager"):
        model = deep(attention)
        with apply(model, spec) as run:
            logits.append(model(**inputs).logits[inputs["attention_mask"] == 1])
        assert [image.after for image in run.report().images] == [4, 4, 4]
        assert run.report().images[0].mean_over_layers == 5
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    model, spec = deep(), "tome:12@encoder+cls:9"
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    given = encoder_outputs(model, encode(model, inputs, [spec]))
    with apply(model, spec):
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:]
        beams = model.generate(**LLAVA.inputs("t6 A t5", "t3 C"), max_new_tokens=5, do_sample=False, num_beams=2)[
            :, -5:
        ]
        again = model.generate(**text, mm_encoder_outputs=given, max_new_tokens=5, do_sample=False)[:, -5:]
    short = compress(model, inputs, spec)
    assert torch.equal(model.generate(**short, max_new_tokens=5, do_sample=False)[:, -5:], ids)
    assert torch.equal(again, ids)
    assert beams.shape == ids.shape
    with apply(model, spec), pytest.raises(FoveateError, match="outside of the other"):
        encode(model, inputs, [spec])


@CHECKPOINTING_INSIDE
def test_gradients_pass_with_and_without_checkpointing() -> None:
    model = deep()
    inputs = LLAVA.inputs("t6 A t5", "t2 B t9")
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    found: list[Tensor] = []
    try:
        for checkpointing in (False, True):
            model.train()
            if checkpointing:
                set_checkpointing(model, True)
            with apply(model, "tome:9@encoder"):
                said = (model(**inputs).logits * direction).sum()
                (grad,) = torch.autograd.grad(said, [model.model.vision_tower.embeddings.patch_embedding.weight])
            found.append(grad)
    finally:
        set_checkpointing(model, False)
        model.eval()
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)
    # A step along the gradient changes what is said by as much as it tells, as long as the same patches merge.
    exact, step = copy.deepcopy(model).double(), 1e-7
    inputs |= {"pixel_values": inputs["pixel_values"].double()}
    weight = exact.model.vision_tower.embeddings.patch_embedding.weight
    way = found[0].double() / found[0].norm()
    values: list[float] = []
    with torch.no_grad(), apply(exact, "tome:9@encoder"):
        for by in (-step, 2 * step):
            weight += by * way
            values.append(float((exact(**inputs).logits * direction).sum()))
    assert (values[1] - values[0]) / (2 * step) == pytest.approx(float(found[0].norm()), rel=1e-2)


# Refusals


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("stride:9@encoder", "reads the grid alone"),
        ("prumerge:auto@encoder", "lets the content decide"),
        ("cdpruner:9@encoder", "which no encoder gives at @encoder"),
        ("tome:20@encoder+tome:9@encoder", "at most one step at @encoder"),
        ("tome:9@features+tome:5@encoder", "comes after a step that acts later"),
    ],
)
def test_what_cannot_act_there(spec: str, said: str) -> None:
    with pytest.raises(FoveateError, match=said), apply(deep(), spec):
        pass


def test_what_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = LLAVA.inputs("t6 A t5")
    with pytest.raises(KeepError, match="more than the 36"):
        compress(deep(), inputs, "tome:40@encoder")
    with pytest.raises(KeepError, match=r"leaves 28 of 36; merge 7 a round"):
        compress(deep(), inputs, "tome:9:per_round=2@encoder")
    for layer in (-4, -1, [-2, -1]):
        with pytest.raises(FoveateError, match="can't be chosen in a call"):
            compress(deep(), inputs | {"vision_feature_layer": layer}, "tome:9@encoder")
        with apply(deep(), "tome:9@encoder"), pytest.raises(FoveateError, match="can't be chosen in a call"):
            deep().generate(**inputs, vision_feature_layer=layer, max_new_tokens=1)
    same = compress(deep(), inputs | {"vision_feature_layer": DEEP - 1}, "tome:9@encoder").images[0].features
    assert torch.equal(same, compress(deep(), inputs, "tome:9@encoder").images[0].features)
    with pytest.raises(FoveateError, match="encode them again"):
        compress(deep(), inputs, "tome:9@encoder", encoded=encode(deep(), inputs, ["tome:8@encoder"]))
    model = LLAVA.model()
    model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(FoveateError, match="reads several layers of its encoder"):
        compress(model, inputs, "tome:9@encoder")
    # As for an attention that takes no mask of numbers.
    monkeypatch.setattr("foveate.engine.encoder._BIASED", ("eager",))
    with pytest.raises(FoveateError, match='sdpa takes no weights; load the model with attn_implementation="sdpa"'):
        compress(deep(), inputs, "tome:9@encoder")


INSIDE = {family.name for family in families() if "encoder" in family.places}
OUTSIDE = [row for row in ROWS if row.name not in INSIDE]


@pytest.mark.parametrize("row", OUTSIDE, ids=lambda row: row.name)
def test_families_that_cannot_say_why(row: Row, model: Any) -> None:
    title = family_of(model).title
    assert "encoder" not in family_of(model).places
    can = ", ".join(families_at("encoder"))
    with pytest.raises(FoveateError, match=f"in {title} nothing can: .*; use .* a model of {can}$"):
        foveate.compress(model, row.inputs("t6 A t5"), "tome:3@encoder")
