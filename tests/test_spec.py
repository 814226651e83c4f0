"""The written form of a configuration: everything that can be said goes round, everything else gets one clear line."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jaxtyping
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate.methods
import foveate.registry
from foveate.adapters import shipped
from foveate.errors import FoveateError, SpecError
from foveate.methods import Cluster, FastV, Method, Pool, Random, method_class, register
from foveate.methods.arithmetic.thresholds import LearnedThresholds
from foveate.methods.atp import ATPMethod
from foveate.plan import Plan
from foveate.spec import Spec, Step, as_spec, parse
from foveate.tokens import Keep, VisualTokens

# Types are checked in tests, and of a tuple the checker looks at one item by chance.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

FIRST = ("random", "stride", "pool", "pool2d", "resize", "cluster", "cls")
quick = settings(deadline=None, max_examples=60)

plain = st.one_of(
    st.integers(1, 10_000).map(Keep.of),
    st.sampled_from(["0.0625", "1.0", "0.5", "0.25", "0.1", "0.333", "0.000001"]).map(Keep.of),
    st.floats(0, 1, exclude_min=True).map(Keep.of),
)
keeps = st.one_of(plain, st.integers(1, 999).map(lambda mean: Keep(mean=mean)))
values: dict[str, st.SearchStrategy[Any]] = {
    "keep": keeps,
    "positions": st.sampled_from(["keep", "pack"]),
    "per": st.sampled_from(["image", "tile", "frame"]),
    "seed": st.integers(0, 2**31),
    "start": st.sampled_from(["stride", "plusplus"]),
    "iterations": st.integers(0, 100),
    "layer": st.integers(-30, 30),
    "mode": st.sampled_from(["auto", "exact", "interpolate", "enlarge"]),
    "remainder": st.sampled_from(["spread", "drop"]),
}
places = st.one_of(st.sampled_from(["pixels", "encoder", "features", "input"]), st.integers(0, 80))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    name = draw(st.sampled_from(FIRST))
    names = [field.name for field in dataclasses.fields(method_class(name))]
    options = draw(st.fixed_dictionaries({}, optional={option: values[option] for option in names if option in values}))
    where = tuple(draw(st.lists(places, max_size=3)))
    inside = tuple(sorted(draw(st.sets(st.integers(1, 80), min_size=2, max_size=3))))
    if "keep" in options and options["keep"].mean:
        where = inside
        options.pop("per", None)
    if draw(st.booleans()):
        shares = draw(st.lists(st.sampled_from(["0.5", "1.0", "0.25"]), min_size=len(inside), max_size=len(inside)))
        options["keep"] = Keep(layers=tuple(map(Keep.of, shares)))
        where = inside
    return Step(method_class(name)(**options), where)


specs = st.lists(steps(), min_size=1, max_size=3).map(lambda some: Spec(tuple(some)))


@quick
@given(specs)
def test_every_spec_goes_round(spec: Spec) -> None:
    text = str(spec)
    assert parse(text) == spec
    assert str(parse(text)) == text


@quick
@given(specs, st.data())
def test_spaces_change_nothing(spec: Spec, data: st.DataObject) -> None:
    spaced = "".join(
        f"{data.draw(st.sampled_from(['', ' ']))}{c}{data.draw(st.sampled_from(['', ' ']))}" if c in ":+@,=" else c
        for c in str(spec)
    )
    assert parse(spaced) == spec


@quick
@given(st.text(alphabet="clsuterpool:=+@,./0123456789-eE ²٣\n\tnaif", max_size=30))
def test_any_text_is_a_spec_or_gets_a_line(text: str) -> None:
    try:
        spec = parse(text)
    except SpecError:
        return
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("pool:0.0625", "pool:0.0625"),
        ("pool:0.06250", "pool:0.0625"),
        ("pool:.5@16", "pool:0.5@16"),
        ("cls:1", "cls:1"),
        ("cls:1.0", "cls:1.0"),
        ("cls:1.00:layer=-2", "cls:1.0"),
        ("cluster:64@input", "cluster:64"),
        ("cluster:64@features,input", "cluster:64@features,input"),
        ("cluster:start=plusplus", "cluster:1.0:start=plusplus"),
        ("cluster:keep=64", "cluster:64"),
        ("cluster:64:seed=3:positions=pack", "cluster:64:seed=3"),
        ("cluster:64:seed=3:positions=keep", "cluster:64:positions=keep:seed=3"),
        ("resize:0.25@pixels", "resize:0.25"),
        ("pool:1e-2", "pool:0.01"),
        ("pool: 300 / 200/.5 @2,6,15", "pool:300/200/0.5@2,6,15"),
        ("pool:mean = 64@2,6", "pool:mean=64@2,6"),
    ],
)
def test_canonical(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "marked", "words"),
    [
        ("cls:0.5+clustre:64@2", "clustre", 'no method is called "clustre"; did you mean "cluster"'),
        ("cluster:64:seeed=3", "seeed", 'did you mean "seed"'),
        ("cluster:64:seed=3:start=far", "start=far", "start must be stride or plusplus, not 'far'"),
        ("cluster:64:seed=0.5", "seed=0.5", "seed must be a whole number"),
        ("cluster:64:seed=1:seed=2", "seed=2", "seed is given twice"),
        ("cluster:64:keep=2", "keep=2", "keep is given twice"),
        ("cluster:64:32", "32", "a keep comes first, once"),
        ("cluster:seed=3:64", "64", "a keep comes first, once"),
        ("cls:0.5+cluster:0", "0", "leaves nothing"),
        ("cluster:1.5", "1.5", "no fraction above 0 and up to 1.0"),
        ("cluster:nan", "nan", "nan"),
        ("cluster:-inf", "-inf", "inf"),
        ("cluster:many", "many", "invalid keep"),
        ("cluster:300/200/110", "cluster:300/200/110", "say which ones, for instance cluster:300/200/110@8,16"),
        ("cls:0.5+cluster:0.5/0.25@2,8,9", "cluster:0.5/0.25", "is for 2 layers and the step names 3"),
        ("cluster:300/400@2,8", "300/400", "grows with depth"),
        ("cluster:300/many@2,8", "300/many", "invalid keep"),
        ("cluster:mean=64", "cluster:mean=64", "say which ones, for instance cluster:mean=64@8,16"),
        ("cluster:mean=64@2,input", "cluster:mean=64", "say which ones"),
        ("cluster:mean=0@2", "mean=0", "leaves nothing"),
        ("cluster:mean=0.5@2", "mean=0.5", "invalid keep"),
        ("cluster:64:mean=64", "mean=64", "a keep comes first, once"),
        ("cluster:64@2,inptu", "inptu", 'no place is called "inptu"; did you mean "input"'),
        ("cluster:64@-1", "-1", "no place"),
        ("cluster:64@²", "²", "no place"),
        ("cluster:64@2@3", "2@3", "no place"),
        ("cluster:64@", "", "no place"),
        ("+cluster:64", "", "no method"),
    ],
)
def test_an_error_shows_its_place(text: str, marked: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text)
    first, second = str(caught.value).split("\n")
    assert first == text
    place = text.rindex(marked) if marked else (0 if text[0] == "+" else len(text))
    assert second[:place] == " " * place
    assert second[place:].startswith("^" * max(1, len(marked)) + " ")
    assert words in second


@pytest.fixture
def own_methods() -> Iterator[None]:
    foveate.methods.method_names()
    before = dict(foveate.registry.METHODS)
    yield
    foveate.registry.METHODS.clear()
    foveate.registry.METHODS.update(before)


@dataclass(frozen=True)
class Odd(Method):
    """A method with an option of every kind."""

    share: float = 0.5
    depth: int | None = 4
    exact: bool = False
    order: Literal[1, 2] = 1

    def plan(self, tokens: VisualTokens) -> Plan:
        """Everything."""
        return Random(keep=self.keep).plan(tokens)


@quick
@given(
    st.floats(allow_nan=False, allow_infinity=False), st.none() | st.integers(-5, 5), st.booleans(),
    st.sampled_from([1, 2]),
)  # fmt: skip
def test_every_kind_of_option_goes_round(share: float, depth: int | None, exact: bool, order: Literal[1, 2]) -> None:
    foveate.methods.method_names()
    register("odd")(Odd)
    try:
        spec = Spec((Step(Odd(share=share, depth=depth, exact=exact, order=order)),))
        assert parse(str(spec)) == spec
    finally:
        del foveate.registry.METHODS["odd"]


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("share=x", "a number"),
        ("depth=x", "a whole number or none"),
        ("exact=yes", "true or false"),
        ("order=3", "1 or 2"),
    ],
)
def test_what_an_option_must_be(option: str, words: str) -> None:
    register("odd")(Odd)
    with pytest.raises(SpecError, match=words):
        parse(f"odd:64:{option}")


@pytest.mark.usefixtures("own_methods")
def test_two_methods_of_one_name() -> None:
    register("cluster")(Cluster)
    with pytest.raises(FoveateError, match="two methods want to be called 'cluster'"):
        register("cluster")(Pool)


def test_an_option_from_python_is_checked_too() -> None:
    with pytest.raises(FoveateError, match="order must be 1 or 2, not 3"):
        Odd(order=3)  # type: ignore[arg-type]
    with pytest.raises(FoveateError, match="positions must be keep or pack, not 'packed'"):
        Odd(positions="packed")  # type: ignore[arg-type]


def test_two_threads_may_be_the_first_to_ask() -> None:
    """The second must not find the registry half filled while the first imports the methods."""
    code = (
        "import threading, foveate.methods as methods\n"
        "seen = []\n"
        "def ask():\n"
        "    start.wait(); seen.append(methods.method_names())\n"
        "start = threading.Barrier(4)\n"
        "threads = [threading.Thread(target=ask) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert len(set(seen)) == 1 and 'cluster' in seen[0], seen\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_papers_name_for_the_same_rule_is_read_and_never_written() -> None:
    assert str(parse("fastervlm:64:layer=-3@features")) == "cls:64:layer=-3@features"
    assert method_class("fastervlm") is method_class("cls")
    assert "fastervlm" not in foveate.methods.method_names()
    assert foveate.methods.aliases_of("cls") == ("fastervlm",)
    with pytest.raises(FoveateError, match="fastervlm"):

        @register("fastervlm")
        class Other(Random):
            pass


def test_only_a_method_that_looks_can_be_left_to_decide() -> None:
    assert Keep.of("auto") == Keep(auto=True) != Keep.of(1.0)
    with pytest.raises(SpecError, match="told how much to keep"):
        parse("cluster:auto")
    with pytest.raises(FoveateError, match="bounds"):
        Keep.of("auto").count(576)
    with pytest.raises(FoveateError, match="give one of the two"):
        Keep(tokens=3, auto=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cluster:64", "cluster:64"),
        (Cluster(keep=64), "cluster:64"),
        (Step(Cluster(keep=64)), "cluster:64"),
        (Step(Cluster(keep=64), ("features",)), "cluster:64@features"),
        (Spec((Step(Cluster(keep=64)),)), "cluster:64"),
        (FastV(keep=0.5), "fastv:0.5"),
        (FastV(keep=0.5).at(2), "fastv:0.5@2"),
        (Step(FastV(keep=0.5), (2, 8)), "fastv:0.5@2,8"),
        ([Cluster(keep=64), "fastv:0.5@2"], "cluster:64+fastv:0.5@2"),
        (("cls:0.5+cluster:32", [FastV(keep=0.5).at(2)]), "cls:0.5+cluster:32+fastv:0.5@2"),
    ],
)
def test_a_spec_in_any_form(value: Any, text: str) -> None:
    assert as_spec(value) == parse(text)
    assert str(as_spec(value)) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "a method object such as Cluster\\(keep=64\\), .* not None \\(NoneType\\)"),
        (64, "not 64 \\(int\\)"),
        (Cluster, "not the class Cluster"),
        ([Cluster(keep=64), None], "not None"),
        ([], "an empty spec"),
        ("", "an empty spec"),
        ("clustre:64", "did you mean"),
        ({"cluster": 64}, "not {'cluster': 64} \\(dict\\)"),
    ],
)
def test_what_is_not_a_spec(value: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        as_spec(value)


def test_a_step_takes_a_method_and_places() -> None:
    assert Cluster(keep=64).at() == Step(Cluster(keep=64))
    with pytest.raises(SpecError, match="no place is called 'inptu'"):
        Cluster(keep=64).at("inptu")
    with pytest.raises(SpecError, match="no place is called -1"):
        FastV(keep=0.5).at(-1)
    with pytest.raises(FoveateError, match="is for 2 layers and the step names 1"):
        Pool(keep="0.5/0.25").at(8)


def test_a_step_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests check types, which others don't.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(SpecError, match="not 'cluster:64' \\(str\\)"):
        Step("cluster:64")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["plain", "two words", "a+b", "a:b", "a@b", "a=b", "a,b", 'a "b"', "it's", "both \" and '", '"', "tab\there"],
)
def test_a_path_may_hold_what_separates_options(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(shipped("atp"), folder)
    spec = as_spec([Cluster(keep=64), ATPMethod(keep=Keep.of("mean=144"), adapter=LearnedThresholds.read(str(folder)))])
    assert parse(str(spec)) == spec
    double, single = f'"{str(folder).replace(chr(34), chr(34) * 2)}"', "'" + str(folder).replace("'", "''") + "'"
    for quoted in (double, single):
        written = parse(f"cluster:64 + atp:mean=144: adapter = {quoted} @ 2,4,8")
        assert written == spec
        assert str(written) == str(spec)


@pytest.mark.parametrize(
    ("text", "marked", "words"),
    [
        ('atp:adapter="my runs', '"my runs', 'add a " at its end'),
        ("atp:adapter='a+b", "'a+b", "add a ' at its end"),
        ('atp:adapter="a:b@c"', 'adapter="a:b@c"', "no ATP adapter at a:b@c"),
        ('cluster:64+atp:adapter="a+b":nosuch=1@2', 'adapter="a+b"', "no ATP adapter at a+b"),
        ('atp:nosuch="a+b@c":theta_r=0.5', "nosuch", "no option of atp"),
        ('cluster:64:start="a+b"+cls:2', 'start="a+b"', "start must be"),
        ('cluster:64:start="stride"+clss:2', "clss", "no method is called"),
        ('"cluster":64', '"cluster"', "no method is called"),
    ],
)
def test_errors_show_their_place_behind_quotes(text: str, marked: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text)
    first, second = str(caught.value).split("\n")
    begin = len(second) - len(second.lstrip())
    end = begin + len(second.strip().split(" ")[0])
    assert first[begin:end] == marked
    assert words in second


@pytest.mark.parametrize("value", [None, b"cluster:64", 5, ["cluster:64"]])
def test_parse_reads_text_alone(value: Any) -> None:
    with pytest.raises(SpecError, match="parse reads text"):
        parse(value)
