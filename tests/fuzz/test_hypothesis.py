"""Drawn inputs end a command with code 0 or 2 and at most one line, and a function with a value or a `FoveateError`."""

import json
import os
import string

import pytest
import yaml
from cases import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.tiny import write_tiny
from typer.testing import CliRunner
from worker import one_line

from foveate.commands import app
from foveate.errors import FoveateError

DRAWN = int(os.environ.get("FOVEATE_FUZZ_EXAMPLES", "50"))
"""How many inputs each test draws; the same ones each time if there are 50."""

drawing = settings(max_examples=DRAWN, deadline=None, derandomize=DRAWN == 50)

IMAGE = str(EXAMPLES / "shapes.png")

# What a shell can pass: no NUL, and lone surrogates where bytes are not UTF-8.
WORDS = st.text(st.characters(exclude_characters="\x00"), max_size=30)

NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.integers(1, 6000).map(lambda digits: "9" * digits),
    st.sampled_from(
        ["", " ", "-0", "+1", "1_0", "0x10", "1e999999999", "1e-999999999", "1/0", "\u0661", "\u00bd", "nan", "-inf"]
    ),
    st.fractions().map(str),
)

PARTS = st.sampled_from(
    [
        *("cluster", "pool", "cls", "fastv", "tome", "resize", "prumerge", "vtw", "atp", "stride", "random", "dense"),
        *(":", ":64", ":0.25", ":auto", ":mean=64", ":300/200", ":seed=", ":start=plusplus", ":per=tile", ":layer="),
        *("@", "@2", "@input", "@encoder", "@features", "@pixels", "@2,6", "@99", "+", "++", '"', "'", " "),
    ]
)
SPECS = st.one_of(st.lists(st.one_of(PARTS, NUMBERS, st.text(max_size=3)), max_size=8).map("".join), WORDS)

PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), NUMBERS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def ended_well(*words: str) -> None:
    """Run a command, and check how it ends."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 2)
    if result.exit_code == 2:
        assert result.stdout == ""
        assert one_line(result.stderr.strip()), result.stderr


@drawing
@given(SPECS)
def test_specs_are_read_or_refused(text):
    from foveate.spec import parse

    try:
        spec = parse(text)
    except FoveateError as error:
        assert one_line(str(error))  # noqa: PT017
    else:
        assert parse(str(spec)) == spec
        assert str(parse(str(spec))) == str(spec)


@drawing
@given(SPECS)
def test_count(text):
    ended_well("count", IMAGE, f"--spec={text}")


@drawing
@given(st.sampled_from(["--text-tokens", "--new-tokens", "--batch", "--image", "--device", "--dtype"]), NUMBERS | WORDS)
def test_cost(option, value):
    ended_well("cost", f"{option}={value}")


@drawing
@given(NUMBERS | SPECS)
def test_keeps(text):
    from foveate.keep import Keep

    try:
        keep = Keep.of(text)
    except FoveateError as error:
        assert one_line(str(error))  # noqa: PT017
    else:
        assert Keep.of(str(keep)) == keep


@drawing
@given(
    st.lists(st.sampled_from(["", ".", "..", "/", "a", "x" * 300, "\n", "~", "*", "[/red]", "é", "\udcff"]), max_size=4)
)
def test_paths(parts):
    ended_well("count", "/".join(parts))


ROWS = st.fixed_dictionaries(
    {},
    optional={
        "image": st.just("shapes.png") | PLAIN,
        "question": st.just("what ?") | PLAIN,
        "answer": st.just("red") | PLAIN,
        "skill": PLAIN,
        "conversations": PLAIN,
        "messages": PLAIN,
        "moon": PLAIN,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a picture, and a tiny model in `model`."""
    made = tmp_path_factory.mktemp("drawn")
    (made / "shapes.png").write_bytes((EXAMPLES / "shapes.png").read_bytes())
    write_tiny(made / "model")
    return made


@drawing
@given(
    rows=st.lists(ROWS, max_size=3), ascii=st.booleans(), junk=st.sampled_from(["", "\n", "\ufeff", "{", "[" * 5000])
)
def test_questions_in_files(folder, rows, ascii, junk):
    from foveate.bench.tasks import jsonl

    text = junk + "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows)
    (folder / "q.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        task = jsonl(folder / "q.jsonl")
    except FoveateError as error:
        assert one_line(str(error))  # noqa: PT017
    else:
        assert 0 < task.questions <= len(rows)


RECIPES = st.fixed_dictionaries(
    {"data": st.just({"scenes": 4}) | PLAIN, "stages": st.just([{"share": 1, "spec": "pool:9"}]) | PLAIN},
    optional={
        **dict.fromkeys(("steps", "epochs", "batch", "lr", "warmup", "weight_decay", "clip", "seed"), NUMBERS | PLAIN),
        **dict.fromkeys(("test", "train", "lora", "precision", "decay", "trackers", "trainer", "revision"), PLAIN),
    },
)


@drawing
@given(RECIPES)
def test_recipes(folder, recipe):
    from foveate.train.objectives import parse_recipe
    from foveate.train.settings import read_mapping

    path = folder / "recipe.yaml"
    try:
        path.write_text(
            yaml.safe_dump({"model": str(folder / "model"), **recipe}, allow_unicode=True), encoding="utf-8"
        )
    except UnicodeEncodeError:
        return
    try:
        parsed = parse_recipe(read_mapping(path))
    except FoveateError as error:
        assert len(str(error).splitlines()) <= 3  # noqa: PT017
    else:
        assert parsed.to_dict()


@settings(drawing, max_examples=DRAWN // 5)
@given(st.text(string.printable + "[]<>{}%\\", max_size=60).filter(lambda text: "\x00" not in text) | WORDS)
def test_questions(folder, question):
    words = ("ask", IMAGE, "--max-new-tokens=1", f"--model={folder / 'model'}", "--spec=pool:9", "--", question)
    ended_well(*words)
