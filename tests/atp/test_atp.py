"""Soft masks approach the hard rule, gradients reach thresholds and model, and means can be asked for."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from rows import ROWS, Row
from versions import set_checkpointing

import foveate
from foveate.atp import ATP, budget_loss, soft_masks
from foveate.errors import FoveateError, KeepError, UnsupportedFamily
from foveate.families import family_of
from foveate.methods.arithmetic.thresholds import PARTS

FAMILIES = [row for row in ROWS if row.name in ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl")]
BATCH = ("t6 A t5", "t2 B t9 A t3", "t3 C t4")
_made: dict[str, Any] = {}


@pytest.fixture(params=FAMILIES, ids=lambda row: row.name)
def row(request) -> Row:
    return request.param


@pytest.fixture
def model(row):
    if row.name not in _made:
        _made[row.name] = row.model("sdpa")
    return _made[row.name]


def adapter_of(model: Any, theta: tuple[float, float] = (0.45, 0.7), **options: Any) -> ATP:
    """Return an adapter whose thresholds are near `theta` and differ by image."""
    adapter = ATP(model, layers=(1, 2), **options)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for predictor in adapter.predictors:
            for head, start in zip((predictor.redundancy, predictor.spatial), theta, strict=True):
                head.weight.normal_(0, 0.2, generator=generator)
                head.bias.fill_(float(torch.tensor(start).logit()))
    return adapter


def text_logits(model: Any, inputs: dict[str, Any], row: Row) -> torch.Tensor:
    logits = model(**inputs, use_cache=False).logits
    return logits[(~row.is_image(inputs["input_ids"])) & inputs["attention_mask"].bool()]


@pytest.mark.parametrize("parts", [PARTS, ("self", "cross"), ("cross", "spatial")], ids="+".join)
def test_hard_equals_soft_as_the_temperature_grows(row, model, parts):
    """Compare the text's logits, and the tokens left of each image after each layer."""
    if parts != PARTS and row.name != "llava":
        pytest.skip("one family is enough for that")
    adapter, inputs = adapter_of(model, parts=parts), row.inputs(*BATCH)
    with torch.no_grad():
        with foveate.apply(model, adapter.spec()) as run:
            gone = text_logits(model, inputs, row)
        whole = text_logits(model, inputs, row)
        apart = []
        for temperature in (10, 1e3, 1e7):
            with soft_masks(model, adapter, temperature) as masks:
                apart.append((text_logits(model, inputs, row) - gone).abs().max())
        with soft_masks(model, adapter, 10, hard=True) as straight:
            assert (text_logits(model, inputs, row) - gone).abs().max() < 1e-4
    images = run.report().images
    left = torch.tensor([image.layers[1:3] for image in images])
    full = torch.tensor([[family_of(model).layouts(inputs)[n].content] for n in range(len(images))])
    assert (left < full).any(), "nothing was dropped"
    assert len({tuple(each.tolist()) for each in left}) > 1
    if row.name != "llava_next":  # Newlines are in the report.
        for each in (masks, straight):
            torch.testing.assert_close(each.shares * full, left.float(), atol=1e-3, rtol=0)
    assert (whole - gone).abs().max() > 0.01, "dropping changes nothing"
    assert apart[2] < 1e-4
    assert apart[2] < apart[1] < apart[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradient_reaches_both_heads_and_the_backbone(attention):
    row = FAMILIES[0]
    model = row.model(attention)
    inputs = row.inputs(*BATCH)
    labels = inputs["input_ids"].masked_fill(row.is_image(inputs["input_ids"]), -100)
    labels[:, :-3] = -100
    adapter = adapter_of(model)
    for hard in (False, True):
        model.zero_grad()
        adapter.zero_grad()
        with soft_masks(model, adapter, 10, hard=hard) as masks:
            loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        for predictor in adapter.predictors:
            for head in (predictor.redundancy, predictor.spatial):
                assert head.weight.grad.abs().max() > 1e-7, "the answer's loss alone must reach it"
            assert predictor.question.weight.grad.abs().max() > 1e-9
        # A layer that only the scores read: its weight in the loss comes through the thresholds.
        assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 1e-7
        assert masks.shares.requires_grad


def test_one_token_left_is_no_reason_for_a_loss_that_is_no_number():
    """Scores of a single token have no spread, whatever the dropped tokens score."""
    row = FAMILIES[0]
    model, inputs = row.model("sdpa"), row.inputs("t6 A t5")
    adapter = adapter_of(model, theta=(0.9, 0.9999))
    with torch.no_grad():
        adapter.predictors[0].redundancy.bias.fill_(50.0)
        adapter.predictors[0].spatial.bias.fill_(50.0)
    for hard in (False, True):
        with soft_masks(model, adapter, 60, hard=hard) as masks:
            loss = model(**inputs, use_cache=False).logits[:, -1].square().sum() + masks.shares.sum()
        loss.backward()
        assert torch.isfinite(loss)
    weights = (*adapter.parameters(), *model.model.language_model.parameters())
    assert all(torch.isfinite(weight.grad).all() for weight in weights)


def test_the_budget_loss_moves_the_mean_to_its_target():
    row = FAMILIES[0]
    model = row.model("sdpa").requires_grad_(False)
    inputs = row.inputs("t6 A t5", "t3 B t4", "t3 C t9")
    adapter = adapter_of(model, theta=(0.2, 0.5))
    optimiser = torch.optim.Adam(adapter.parameters(), lr=0.03)

    def left() -> float:
        with torch.no_grad(), foveate.apply(model, adapter.spec()) as run:
            model(**inputs, use_cache=False)
        images = run.report().images
        return sum(image.mean_over_layers / image.before for image in images) / len(images)

    before = left()
    for step in range(40):
        with soft_masks(model, adapter, 10 + step, hard=step >= 30) as masks:
            model(**inputs, use_cache=False)
        loss = budget_loss(masks.shares, adapter.layers, 3, 0.5, later=0.01, mean=1.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before > 0.65
    assert abs(left() - 0.5) < 0.04


def test_later_layers_cost_more():
    early, late = (torch.tensor([[a, b]], requires_grad=True) for a, b in ((0.5, 0.25), (0.5, 0.25)))
    budget_loss(early, (2, 8), 12, 0.5, later=1.0, mean=0.0).backward()
    assert early.grad[0, 1] > early.grad[0, 0] > 0
    budget_loss(late, (2, 8), 12, 1.0, later=0.0, mean=1.0).backward()
    assert (late.grad < 0).all()


def test_fewer_stay_as_thresholds_rise(row, model):
    """At one layer: at a second one, scores are stretched over other tokens."""
    adapter, inputs = adapter_of(model), row.inputs(*BATCH)
    counts = []
    for shift in (-4.0, -1.0, -0.3, 0.0, 0.3, 1.0, 4.0, 40.0):
        one = foveate.Spec((foveate.Step(_at(adapter, shift)),))
        with torch.no_grad(), foveate.apply(model, one) as run:
            model(**inputs, use_cache=False)
        counts.append([image.after for image in run.report().images])
    for more, fewer in pairwise(counts):
        assert all(a >= b for a, b in zip(more, fewer))
    assert counts[0] != counts[3] != counts[-1]
    content = [layout.structural for layout in family_of(model).layouts(inputs)]
    assert all(1 <= left <= 1 + bool(marks) for left, marks in zip(counts[-1], content)), "the floor is one token"


def _at(adapter: ATP, shift: float) -> Any:
    from foveate.methods.atp import ATPLayer

    return ATPLayer.of(adapter, 0, shift)


def test_a_batch_of_three_is_three_of_one(row, model):
    prompts = ("t6 A t5", "t3 B t9", "t3 C t4")
    adapter = adapter_of(model)

    def counts(*chosen: str) -> tuple[list[tuple[int, ...]], list[torch.Tensor], torch.Tensor]:
        inputs = row.inputs(*chosen)
        with torch.no_grad():
            with foveate.apply(model, adapter.spec()) as run:
                last = model(**inputs, use_cache=False).logits[:, -1]
            with soft_masks(model, adapter, 20) as masks:
                soft = model(**inputs, use_cache=False).logits[:, -1]
        return [image.layers for image in run.report().images], [last, soft], masks.shares

    together, logits, shares = counts(*prompts)
    alone = [counts(prompt) for prompt in prompts]
    assert together == [one for each in alone for one in each[0]]
    assert len(set(together)) > 1
    for number in range(2):
        apart = torch.cat([each[1][number] for each in alone])
        torch.testing.assert_close(logits[number], apart, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shares, torch.cat([each[2] for each in alone]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("row", [FAMILIES[0], FAMILIES[2]], ids=lambda row: row.name)
def test_means_can_be_asked_for_and_saved(row, tmp_path):
    model = row.model()
    inputs = [row.inputs(*(f"t{n} {letter} t5" for letter in "AB")) for n in (3, 6, 8)]
    adapter = ATP(model, layers=(1, 2))
    adapter.prepare(model, inputs, 0.6)
    with pytest.raises(KeepError, match="never calibrated"):
        adapter.spec(mean=20)
    curve = adapter.calibrate(model, inputs, shifts=[shift / 3 for shift in range(-6, 7)])
    assert all(a[1] >= b[1] for a, b in pairwise(curve))
    near = dict(curve)[0.0]
    assert abs(near - 0.6) < 0.15, "prepare starts near the target"
    for shift, share in adapter.calibrate(model, inputs, shifts=[0.4]):
        assert adapter.shift(share) == shift == 0.4
    adapter.curve = curve
    adapter.save_pretrained(tmp_path / "atp")
    again = ATP.from_pretrained(tmp_path / "atp")
    assert again.settings() == adapter.settings()
    every = [layout.total for each in inputs for layout in family_of(model).layouts(each)]
    most = min(every)
    wanted = round(most * (curve[0][1] + curve[-1][1]) / 2)
    written = f"atp:mean={wanted}:adapter={tmp_path}/atp"
    assert str(foveate.parse(written)) == written == str(again.spec(mean=wanted))
    assert foveate.parse(written) == foveate.parse(written)
    found = []
    for spec in (written, adapter.spec(mean=wanted)):
        with torch.no_grad(), foveate.apply(model, spec) as run:
            for each in inputs:
                model(**each, use_cache=False)
        found.append(run.report().mean_over_layers / len(every))
    assert found[0] == found[1]
    assert abs(found[0] - wanted) < 0.1 * most
    with pytest.raises(KeepError, match=r"ask for .* to "), foveate.apply(model, f"atp:mean=1:adapter={tmp_path}/atp"):
        model(**inputs[0], use_cache=False)


def test_a_grid_stays_at_first():
    """If the budget has room for the grid; the rest of the budget stays by redundancy."""
    row = FAMILIES[0]
    model = row.model()
    inputs = [row.inputs(*(f"t{n} {letter} t5" for letter in "AB")) for n in (3, 6, 8)]

    def started(grid: int) -> tuple[list[int], list[float], list[float]]:
        """Return per layer the tokens that pass by their place, the redundancy threshold, and the share left."""
        adapter = ATP(model, layers=(1, 2))
        adapter.prepare(model, inputs, 0.45, grid)
        with torch.no_grad(), soft_masks(model, adapter, 1e7) as masks:
            model(**inputs[0], use_cache=False)
            shares = masks.shares.mean(dim=0).tolist()
            masks.scores_only = True
            model(**inputs[0], use_cache=False)
        looks = [masks.scores[layer][0] for layer in adapter.layers]
        pairs = [*zip(looks, adapter.predictors, strict=True)]
        pass_by = [int((look.spatial > each.spatial.bias.sigmoid()).sum()) for look, each in pairs]
        return pass_by, [each.redundancy.bias.item() for each in adapter.predictors], shares

    closed, low, left = started(0)
    opened, high, behind = started(3)
    assert closed == [0, 0]
    assert opened == [5, 0], "of 36 tokens: 4 of every third row and column, 1 of every fourth; layer 2 keeps 3 in all"
    assert high[0] > low[0], "what a grid takes, redundancy has to leave"
    assert high[1] == low[1]
    assert behind[0] == pytest.approx(left[0], abs=0.1)
    with pytest.raises(KeepError, match="no room for one of every 2 rows and columns at layers 1, 2"):
        ATP(model, layers=(1, 2)).prepare(model, inputs, 0.45, 2)


def test_what_is_refused(tmp_path):
    row, other = FAMILIES[0], next(each for each in FAMILIES if each.name == "qwen2_5_vl")
    model = row.model()
    path = ATP(model, layers=(1, 2)).save_pretrained(tmp_path / "atp")
    spec = f"atp:adapter={path}"
    with pytest.raises(FoveateError, match="another base model"), foveate.apply(other.model(), spec):
        pass
    with pytest.raises(FoveateError, match="acts at layers 1,2, not at 2"), foveate.apply(model, f"{spec}@2"):
        pass
    with pytest.raises(FoveateError, match="write auto, or a mean"):
        foveate.parse(f"atp:16:adapter={path}")
    with pytest.raises(FoveateError, match="leave them out"):
        foveate.parse(f"atp:auto:theta_r=0.3:adapter={path}")
    (step,) = foveate.parse(f"atp:auto:positions=pack:adapter={path}").steps
    assert {each.positions for each in step.method.at_layers(step.places, 0, 3)} == {"pack"}
    with pytest.raises(FoveateError, match="has 3 layers; name some from 1 to 2"):
        ATP(model, layers=(1, 7))
    with pytest.raises(FoveateError, match="from 1 on"):
        ATP(model, layers=(0, 1))
    with pytest.raises(FoveateError, match="name some of self, cross, spatial"):
        ATP(model, layers=(1,), parts=("self", "colour"))
    with pytest.raises(FoveateError, match="no ATP adapter"):
        foveate.parse(f"atp:adapter={tmp_path / 'nowhere'}")
    (path / "atp.safetensors").write_bytes(b"no weights")
    with pytest.raises(FoveateError, match="no complete ATP adapter"):
        foveate.parse(spec)
    with pytest.raises(FoveateError, match="no ATP adapter"):
        ATP.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FoveateError, match="another base model"):
        ATP(model, layers=(1, 2)).prepare(other.model(), [other.inputs("t3 A t5")], 0.6)
    set_checkpointing(model.train(), True)
    with (
        pytest.raises(FoveateError, match=r"activation checkpointing|5\.23 or later"),
        soft_masks(model, ATP(model, layers=(1,)), 10, acts_on="values"),
    ):
        pass
    model.config.text_config._attn_implementation = "flex_attention"
    with pytest.raises(FoveateError, match="takes no soft masks"), soft_masks(model, ATP(model, layers=(1,)), 10):
        pass


def test_what_it_takes():
    """Thresholds have few weights, and their scores cost only the queries of three layers."""
    from foveate.costmodel import cost

    adapter, (model, _) = ATP.from_pretrained(), foveate.reference()
    weights = sum(weight.numel() for weight in adapter.parameters())
    small = cost(None, None, images=[(192, 192)]).part("prefill").flops
    assert 2 * weights < 1e-4 * small
    with foveate.apply(model, "atp:mean=144:adapter=shipped"):  # It is this model's.
        pass
    with pytest.raises(KeepError, match=r"ask for 1[0-9]\.[0-9]% to 9[0-9]\.[0-9]%"):
        adapter.shift(86 / 576)
    large = cost("llava-1.5-7b", "atp:160/100/60@4,14,24").part("compressor").flops
    assert large < 0.005 * cost("llava-1.5-7b", None).part("prefill").flops


def test_attention_that_is_no_plain_one_is_refused():
    class Blind(torch.nn.Module):
        pass

    with pytest.raises(UnsupportedFamily):
        ATP(Blind())
