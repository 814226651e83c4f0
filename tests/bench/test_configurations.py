"""Which configurations a list of specs and a list of budgets mean."""

from foveate.bench.configurations import configurations, name_of, unused


def test_an_adapter_that_decides_how_much_remains_takes_no_budget() -> None:
    found = [name_of(spec) for spec in configurations(["atp:adapter=shipped", "random"], "64,16")]
    assert found == ["dense", "atp:auto:adapter=shipped", "random:64", "random:16"]
    assert unused(["atp:adapter=shipped"], "16", None) == [
        "--keep 16 changes nothing: each --spec names its keep, or takes none"
    ]
