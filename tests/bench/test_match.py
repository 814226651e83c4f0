"""Equal terms: what is matched is equal, and what can't be is told."""

import pytest

from foveate.bench.configurations import configurations, name_of, unused
from foveate.bench.match import matched
from foveate.costmodel import cost, read_model
from foveate.errors import FoveateError

SIZE = (192, 192)
LAYERS, WHOLE = 12, 576


def counted(spec):
    return cost(read_model(None), spec, images=[SIZE], text_tokens=20, new_tokens=1)


@pytest.mark.parametrize("measure", ["mean", "flops"])
def test_all_specs_of_a_budget_are_equal(measure):
    asked = ["cls", "random@2", "pool@2,6", "cluster:16", "vtw@5", "vtw@6"]
    specs, budgets, lacking = matched(asked, "288,144", measure, None, SIZE)
    assert not lacking
    names = [name_of(spec) for spec in specs]
    assert names[0] == "dense"
    assert {"cls:288", "cls:144", "cluster:16"} <= set(names)
    assert len(names) == 10
    # What takes no keep belongs to a budget if it happens to cost as much.
    assert ("vtw@5" in budgets, "vtw@6" in budgets) == ((False, True) if measure == "mean" else (True, False))

    def value(name):
        found = counted(name)
        return found.mean_over_layers if measure == "mean" else found.part("prefill").flops

    for name, budget in budgets.items():
        assert value(name) == pytest.approx(value(f"pool:{int(budget)}"), rel=0.01), name


def test_tokens_over_layers_are_the_sum_that_anybody_can_do():
    specs, _, _ = matched(["stride@3"], "288", "mean", None, SIZE)
    after = counted(specs[1]).layers[-1]
    assert (3 * WHOLE + 9 * after) / LAYERS == pytest.approx(288, abs=9)


def test_layers_before_the_step_may_cost_too_much_alone():
    specs, budgets, lacking = matched(["stride@6"], "144,0.75", "mean", None, SIZE)
    assert [name_of(spec) for spec in specs[1:]] == list(budgets)
    assert len(specs) == 2
    (line,) = lacking
    assert line.startswith("stride@6 at 144: its mean tokens over layers is 288.5 or more")


def test_nothing_to_measure_is_refused():
    with pytest.raises(FoveateError, match=r"leaves nothing to measure: fastv@2 at 4: .* 96\.8 or more"):
        matched(["fastv@2"], "4", "mean", None, SIZE)


def test_a_spec_that_works_nowhere_is_refused_with_the_budget_that_was_given():
    with pytest.raises(FoveateError, match="fastv:144 acts inside the decoder"):
        matched(["fastv"], "144", "mean", None, SIZE)
    with pytest.raises(FoveateError, match="keep 144: an adapter decides"):
        matched(["atp:adapter=shipped"], "144", "mean", None, SIZE)


@pytest.mark.parametrize("measure", ["size", "", None])
def test_other_measures_are_refused(measure):
    with pytest.raises(FoveateError, match="match mean"):
        matched(["pool"], "144", measure, None, SIZE)


@pytest.mark.parametrize("measure", ["mean", "flops"])
def test_one_token_is_a_budget(measure):
    specs, budgets, lacking = matched(["pool", "resize", "fastv@2"], "1,0.0001", measure, None, SIZE)
    assert [name_of(spec) for spec in specs] == ["dense", "pool:1", "pool:0.0001", "resize:1", "resize:0.0001"]
    assert set(budgets.values()) == {1.0}
    assert len(lacking) == 2


@pytest.mark.parametrize(
    "keep",
    [
        *("", ",", "0", "-1", "nan", "inf", "1e999", "1e999999999", "9" * 5000, "0." + "0" * 5000 + "1", "577", "1.5"),
        *("auto", "64;4", "1/0", "mean=144", "x", "64,x", "\u0663", "0x10", None, 64, True, [64]),
    ],
)
def test_budgets_that_are_none_are_one_clear_line(keep):
    with pytest.raises(FoveateError) as found:
        matched(["pool"], keep, "mean", None, SIZE)
    assert len(str(found.value)) < 200
    assert "\n" not in str(found.value)
    if keep not in ("577",):
        with pytest.raises(FoveateError):
            configurations(["pool"], keep)


def test_options_that_change_nothing_are_named() -> None:
    assert unused(["cluster"], "64", 3, "mean") == []
    assert unused(["stride:4", "vtw@1"], "8", 3, "mean") == [
        "--keep 8 changes nothing: each --spec names its keep, or takes none",
        "--match mean changes nothing: each --spec names its keep, or takes none",
        "--seed 3 changes nothing: no method of --spec has a seed, or each spec sets it",
    ]
    assert unused(["random:4:seed=1", "cluster:4"], None, 3) == []
    assert unused(["pool:4", "pool:4"], None, None) == ["pool:4 is given twice and measured once"]
    assert unused([], "8", 3) == []
