"""Equal terms: what is matched is equal, and what can't be is told."""

import pytest

from foveate.bench.configurations import name_of
from foveate.bench.match import matched
from foveate.costmodel import cost, read_model

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
