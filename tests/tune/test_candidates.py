"""What is searched, and what is left out."""

import pytest

from foveate.bench import scenes
from foveate.devices import Placement
from foveate.errors import FoveateError
from foveate.spec import parse
from foveate.tune.calls import at_hand, calls_of, device_like
from foveate.tune.candidates import CANT, SLOW, SMALL, possible, proposed
from foveate.tune.parts import part_of, parts_of


def names(*given: object, **named: object) -> list[str]:
    return [str(spec) for spec in proposed(12, *given, **named)[0]]  # type: ignore[arg-type]


def test_every_method_without_weights_is_proposed() -> None:
    found = names()
    methods = {name.partition(":")[0].partition("@")[0] for name in found}
    assert {"cluster", "cls", "random", "stride", "pool2d", "resize", "fastv", "visionzip"} <= methods
    assert not methods & {"evs", "frames", "stride3d", "pool3d"}
    assert {"evs", "frames", "stride3d"} <= {name.partition(":")[0] for name in names(clips=True)}
    assert "cluster:0.25" in found
    assert {"fastv:0.5@1", "fastv:0.5@6"} <= set(found)
    assert "vtw@6" in found
    assert len(found) == len(set(found))


def test_places() -> None:
    assert names("cluster,fastv", "input,features,3,1/4", "64") == [
        "cluster:64",
        "cluster:64@features",
        "cluster:64@3",
        "fastv:64@3",
    ]
    assert names("pyramiddrop", "own", "0.5") == ["pyramiddrop:0.5@3,6,9"]


def test_further_specs_come_once() -> None:
    assert names("cluster", None, "64", ["cluster:64", "cls", "resize:0.5+cluster:16"]) == [
        "cluster:64",
        "cls:64",
        "resize:0.5+cluster:16",
    ]
    assert names("none", None, "64", ["cls"]) == ["cls:64"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("clustre",), 'no method is called "clustre"; did you mean "cluster"'),
        (("cluster", "inptu"), "--places 'inptu' names no place; there are own, pixels"),
        (("cluster", "0"), "--places '0' names no place"),
        (("cluster", "own", "0.5,,"), "names no budget at one place"),
        (("none",), "nothing is left to search"),
    ],
)
def test_what_cant_be_read(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(FoveateError, match=said):
        proposed(12, *given)


def test_what_the_model_cant_do_is_left_out_with_its_reason() -> None:
    calls = calls_of(scenes(20), "llava-1.5-7b", "h100", 60, 4)
    given = [parse(text) for text in ("cluster:64", "cluster:600", "pool:0.5@40", "cluster:1.0")]
    kept, left_out = possible(given, calls)
    assert [str(spec) for spec in kept] == ["cluster:64"]
    assert [(each.name, each.kind) for each in left_out] == [
        ("cluster:600", SMALL),
        ("pool:0.5@40", CANT),
        ("cluster:1.0", SLOW),
    ]
    assert "600" in left_out[0].why
    assert "times the time of dense on NVIDIA H100" in left_out[2].why
    kept, _ = possible(given, calls, {"cluster:1.0"})
    assert [str(spec) for spec in kept] == ["cluster:64", "cluster:1.0"]


def test_predicted_times_are_those_of_the_cost_model() -> None:
    import foveate

    calls = calls_of(scenes(20), "llava-1.5-7b", "h100", 60, 4)
    expected = foveate.cost("llava-1.5-7b", "cluster:64", images=[(192, 192)], text_tokens=60, new_tokens=4)
    assert calls.seconds(parse("cluster:64")) == pytest.approx(expected.seconds)


def test_where_a_model_is() -> None:
    card = Placement("cuda:0", "NVIDIA H100 80GB HBM3", "bfloat16")
    assert at_hand("h100", card)
    assert not at_hand("a100", card)
    assert not at_hand("h100", Placement("cpu", None, "float32"))
    assert at_hand("rtx4090", Placement("cuda:0", "NVIDIA GeForce RTX 4090", "bfloat16"))
    assert not at_hand("l4", Placement("cuda:0", "NVIDIA L40S", "bfloat16"))
    assert device_like(Placement("cpu", None, "float32"), ["h100", "this-machine", "laptop"]) == "this-machine"
    assert device_like(Placement("cuda:0", "Some Card", "float32"), ["h100", "laptop"]) == "h100"


def test_parts_share_no_image_and_are_drawn() -> None:
    task = scenes(300)
    parts = parts_of(task, 0.4, seed=1)
    search, held_out = ({picture.name for picture in part.pictures} for part in (parts.search, parts.held_out))
    assert not search & held_out
    assert search | held_out == {picture.name for picture in task.pictures}
    assert len(held_out) == round(0.4 * len(task.pictures))
    assert parts_of(task, 0.4, seed=2).held_out.digest != parts.held_out.digest
    assert {picture.name for picture in parts_of(task, 0.4, seed=2).held_out.pictures} != held_out
    assert part_of(parts.search, 0, 2).digest != part_of(parts.search, 2, 4).digest


@pytest.mark.parametrize(
    ("questions", "share", "said"),
    [
        (300, 0.0, "the held-out share is 0; give the share of the images"),
        (300, 1.0, "the held-out share is 1; give the share of the images"),
        (300, 0.01, "of which 0 would be held out, and 3 are needed"),
        (300, 0.95, "would be to search on, and 4 are needed"),
        (40, 0.5, "of which 2 would be held out, and 3 are needed"),
    ],
)
def test_a_part_that_is_empty_or_too_small(questions: int, share: float, said: str) -> None:
    with pytest.raises(FoveateError, match=said):
        parts_of(scenes(questions), share)
