"""Numbers that users give: one rule for specs, recipes and arguments, and nothing that Python alone would read."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from foveate.errors import FoveateError, KeepError
from foveate.families import family_of
from foveate.keep import Keep
from foveate.loading import skeleton
from foveate.methods.cluster import Cluster
from foveate.methods.holov import HoloV
from foveate.methods.random import Random
from foveate.numbers import LARGEST_SEED, SEED, Between, check_real, check_whole, read_real, read_share, read_whole
from foveate.scenes import clip, scene
from foveate.schedule import schedule
from foveate.spec import parse

HUGE = pytest.param(10**5000, id="huge")

WRONG = [
    "", " ", "ten",
    "1_000", "\uff11\uff12", "\u0663", "0x10", "0b1", "1e", "e1", "nan", "inf", "-inf", "infinity", "1/3", "1 0",
    "1,5", "--1", "9" * 5000, "1.2.3",
]  # fmt: skip


@pytest.mark.parametrize("text", [*WRONG, "1.0", ".5", "5.", "1e3"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError):
        read_whole(text)
    with pytest.raises(FoveateError):
        parse(f"random:4:seed={text}")


@pytest.mark.parametrize("text", [*WRONG, "1e-400", "1e400", "1e999999999", "0." + "0" * 399 + "1"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError):
        read_real(text)
    with pytest.raises(FoveateError):
        parse(f"hired:0.5:alpha={text}")


def test_numbers() -> None:
    assert [read_whole(text) for text in ("0", "-0", "+5", "007")] == [0, 0, 5, 7]
    assert [read_real(text) for text in ("0", ".5", "5.", "-1e-3", "1E3", "0e0", "5e-324")] == [
        0, 0.5, 5, -1e-3, 1e3, 0, 5e-324,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    ["1e999999999", "1e-999999999", 1e300, float("nan"), float("inf"), True, None, [1], "1/0", "0", "-1/3", "4/3", 2,
     "0x1", "1/1e3", "\uff11", "1/", "1/2/3", "", "1" + "0" * 5000 + "/1" + "0" * 5000, HUGE, "1_0/20"],
)  # fmt: skip
def test_what_is_no_share(value: object) -> None:
    with pytest.raises(ValueError):
        read_share(value)


def test_shares() -> None:
    assert [read_share(value) for value in (1, 1.0, 0.1, "1/3", " 2 / 3", ".5", "5e-1", Fraction(1, 7))] == [
        1, 1, Fraction(1, 10), Fraction(1, 3), Fraction(2, 3), Fraction(1, 2), Fraction(1, 2), Fraction(1, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value", ["1e999999999", "1e-999999999", "1e-400" + "0" * 90, 10**30, HUGE, "9" * 5000, "\uff11"]
)
def test_no_keep_takes_long_or_much(value: str | int) -> None:
    with pytest.raises(KeepError):
        Keep.of(value).count(576)


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1, 10**30, HUGE, 1.0, "1", True, None, [1], float("nan")])
def test_one_range_for_all_seeds(seed: object) -> None:
    with pytest.raises(FoveateError, match=r"seed must be a whole number from 0 to 4,294,967,295, not "):
        check_whole("seed", seed, SEED)
    if type(seed) is int:  # the tests' own check of annotations refuses other types
        for make in (Random, Cluster):
            with pytest.raises(FoveateError, match="seed must be a whole number from 0 to 4,294,967,295, not "):
                make(keep=4, seed=seed)
        for draw in (scene, clip):
            with pytest.raises(FoveateError, match="seed must be"):
                draw(seed if seed != LARGEST_SEED + 1 else -1)


def test_options_hold_what_they_declare() -> None:
    assert Random(keep=4, seed=LARGEST_SEED).seed == LARGEST_SEED
    for options in ({"iterations": -1}, {"layer": 10**12}, {"layer": True}):
        with pytest.raises(FoveateError, match=f"{next(iter(options))} must be a whole number"):
            Cluster(keep=4, **options)
    for alpha in (float("nan"), float("inf"), -1.0, 1e308):
        with pytest.raises(FoveateError, match="alpha must be a number from 0 to 1,000, not"):
            HoloV(keep=4, alpha=alpha)
    for alpha in ("0.1", True, [0.1], None):
        with pytest.raises(FoveateError, match="alpha must be a number, not"):
            check_real("alpha", alpha)
    for layer in (2.0, "2", None, np.ones(2)):
        with pytest.raises(FoveateError, match="layer must be a whole number, not"):
            check_whole("layer", layer)
    assert check_whole("layer", np.int64(3)) == 3


def test_encoder_layers_that_a_model_lacks() -> None:
    """Found from the configuration alone, and where nothing reads the layer, too."""
    family = family_of(skeleton())
    for spec in ("cls:4:layer=99", "cluster:4:layer=-99", "hired:4:early=6"):
        with pytest.raises(FoveateError, match="encoder has 6 layers; name one from -6 to 5"):
            schedule(spec, family)
    schedule("cls:4:layer=-6+cluster:2:layer=5", family)


def test_ranges() -> None:
    assert (str(Between(1)), str(Between(0, 1000))) == ("from 1 on", "from 0 to 1,000")
    assert check_real("alpha", np.float32(0.5)) == 0.5
    with pytest.raises(FoveateError, match=r"^alpha must be a number, not array"):
        check_real("alpha", np.ones(2))


def test_no_module_reads_numbers_by_itself() -> None:
    """`int` and `float` of a text take `1_000`, full-width digits, NaN: only `numbers` decides."""
    root = Path(__file__).parents[1] / "src" / "foveate"
    assert "float(" not in (root / "options.py").read_text()
    assert "float(" not in (root / "train" / "settings.py").read_text().replace('float("inf")', "")
