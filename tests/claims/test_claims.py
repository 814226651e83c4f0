"""The page of claims: every headline has its row, and every command for the real model could run."""

import ast
import copy
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate.costmodel import published_sizes, read_model
from foveate.files import make_folder
from foveate.lmms_plugin.arguments import read_count, read_spec
from foveate.schedule import schedule, tokens_per_layer
from foveate.voco import VoCo
from generators import claim_measures
from generators.claim_measures import AGREES, MEASURES, NOT_SHOWN, VERDICTS, lost_nothing, ordered, reached, saved
from generators.claims import claims_of, page, read, real_command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
TASKS = json.loads((Path(__file__).parent / "lmms-eval-0.7.3-tasks.json").read_text())["tasks"]
FOUR = {"2406.20092": 10, "2406.12275": 8, "2412.00447": 8, "2504.17892": 6}
"""The papers that must be on the page, and the fewest claims of each."""

community = importlib.import_module("generators.benchmarks").benchmark("community")


def commands() -> list[str]:
    """Every command of the page that runs lmms-eval."""
    return re.findall(r"^lmms_eval .*$", PAGE, re.MULTILINE)


def words_of(command: str) -> dict[str, str]:
    """The options of a command, as a shell gives them."""
    program, *words = shlex.split(command)
    assert program == "lmms_eval"
    return dict(zip(words[::2], words[1::2], strict=True))


def plugin_arguments() -> set[str]:
    """The names that foveate's model for lmms-eval takes; read, since lmms-eval isn't installed here."""
    tree = ast.parse((ROOT / "src/foveate/lmms_plugin/model.py").read_text(encoding="utf-8"))
    (made,) = [
        node
        for each in tree.body
        if isinstance(each, ast.ClassDef) and each.name == "Foveate"
        for node in each.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    return {each.arg for each in made.args.args} - {"self"}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with adapters where the page's recipes write them; those of the embedded model."""
    monkeypatch.chdir(tmp_path)
    foveate.ATP.from_pretrained("shipped").save_pretrained(make_folder(tmp_path / "runs/atp/atp"))
    for run in ("voco", "voco-32"):
        VoCo.from_pretrained("shipped").save_pretrained(make_folder(tmp_path / f"runs/{run}/voco"))
    return tmp_path


def test_there_is_a_command_for_every_published_row() -> None:
    runs = [run for table in read("real_runs.toml")["tables"] for run in table["runs"]]
    assert len(commands()) == len(runs) > 20
    published = {
        paper for table in read("real_runs.toml")["tables"] for paper in re.findall(r"\d{4}\.\d{5}", table["source"])
    }
    assert published >= {"2406.20092", "2406.12275"}


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
@pytest.mark.usefixtures("trained")
def test_a_command_for_the_real_model_could_run(command: str) -> None:
    options = words_of(command)
    assert options.keys() == {"--model", "--model_args", "--tasks", "--batch_size"}
    assert options["--model"] == "foveate"
    assert set(options["--tasks"].split(",")) <= TASKS.keys() == read("real_runs.toml")["tasks"].keys()
    given = community.arguments(options["--model_args"])
    assert given.keys() <= plugin_arguments()
    model = given["pretrained"]
    if "voco" in given:
        tokens = read_count("voco_tokens", given["voco_tokens"])
        assert tokens is not None
        assert VoCo.from_pretrained(given["voco"]).tokens >= tokens
        assert (ROOT / "recipes/llava-1.5-7b/voco.yaml").is_file()
        return
    spec = read_spec(given["spec"])
    if spec is None:
        assert published_sizes(model) is not None
        return
    # Thresholds know the model that they were made for, and here these are the embedded model's.
    family = read_model(None if "adapter=" in given["spec"] else "llava-1.5-7b").family
    assert schedule(spec, family).spec == spec
    assert max(tokens_per_layer(spec, family, family.image_layout(336, 336))) <= 576


def test_quotes_keep_the_commas_of_a_spec() -> None:
    command = real_command({"model": "a/b", "spec": "fastv:0.5@2,8"}, ["gqa"])
    given = community.arguments(words_of(command)["--model_args"])
    assert str(read_spec(given["spec"])) == "fastv:0.5@2,8"


def test_every_headline_has_a_row() -> None:
    papers = {paper.get("arxiv"): paper for paper in read("claims.toml")["paper"]}
    assert papers.keys() >= FOUR.keys()
    for arxiv, fewest in FOUR.items():
        assert len(papers[arxiv]["claims"]) >= fewest
        assert f"https://arxiv.org/abs/{arxiv}" in PAGE
    for paper in papers.values():
        for claim in claims_of(paper):
            assert claim.found.verdict in VERDICTS
            assert claim.found.verdict == AGREES or claim.why, f"{claim.short}: say why it isn't shown or doesn't agree"
            assert claim.found.text or claim.found.verdict == NOT_SHOWN
            assert bool(claim.found.text) == bool(claim.found.made_by), claim.short
            assert claim.text in PAGE


def test_methods_with_golden_cases_have_a_row() -> None:
    index = json.loads((ROOT / "tests/golden/index.json").read_text())
    text = " ".join(claim["claim"] for paper in read("claims.toml")["paper"] for claim in paper["claims"]).lower()
    # EVS has no published accuracy, DPC-KNN is a part of PruneVid, and the others are named by their papers.
    known = {
        "evs": None,
        "prunevid_dpcknn": "prunevid",
        "llavolta_avgpool1d": "averag",
        "llavolta_schedule": "schedule",
        "voco_mask": "token",
    }
    for method in {case["file"].rpartition("-")[0] for case in index["cases"]}:
        name = known.get(method, method.partition("_")[0])
        assert name is None or name in text, method


def test_ours_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another measurement is another text, and may be another verdict: neither is typed by hand."""
    before = MEASURES["order"](first="cluster:0.125@1", other="pool:0.125@1")
    found = copy.deepcopy(claim_measures.measured("claims.json"))
    pairs = found["metrics"]["pairs"]
    first, other = ("cluster:0.125@1", "pool:0.125@1")
    (pairs[first] if other in pairs.get(first, {}) else pairs[other])[
        other if other in pairs.get(first, {}) else first
    ] = [
        *(0.0, -0.02, 0.02),
        7,
    ]
    monkeypatch.setattr(claim_measures, "measured", lambda name: found)
    after = MEASURES["order"](first="cluster:0.125@1", other="pool:0.125@1")
    assert (after.text, after.verdict) == (
        "`cluster:0.125@1` less `pool:0.125@1`: 0.0 points (-2.0 to +2.0)",
        NOT_SHOWN,
    )
    assert (before.text, before.verdict) != (after.text, after.verdict)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (ordered({"value": 0.05, "low": 0.011, "high": 0.09}), "agrees"),
        (ordered({"value": 0.05, "low": 0.011, "high": 0.09}, -1), "does not agree"),
        (ordered({"value": 0.05, "low": 0.0, "high": 0.1}), "not shown here"),
        (ordered({"value": 0.1, "low": 0.06, "high": 0.14}, margin=0.05), "agrees"),
        (ordered({"value": 0.08, "low": 0.04, "high": 0.12}, margin=0.05), "not shown here"),
        (ordered({"value": -0.1, "low": -0.14, "high": -0.06}, -1, margin=0.05), "agrees"),
        (lost_nothing({"value": 0.0, "low": -0.049, "high": 0.05}), "agrees"),
        (lost_nothing({"value": -0.01, "low": -0.06, "high": 0.04}), "not shown here"),
        (lost_nothing({"value": -0.03, "low": -0.05, "high": -0.01}), "does not agree"),
        (lost_nothing({"value": 0.03, "low": 0.01, "high": 0.05}), "agrees"),
        (reached({"value": 0.9, "low": 0.85, "high": 0.95}, 0.94), "agrees"),
        (reached({"value": 0.9, "low": 0.85, "high": 0.93}, 0.94), "does not agree"),
        (saved(0.15, 0.16), "agrees"),
        (saved(0.14, 0.16), "does not agree"),
    ],
)
def test_rules(verdict: str, expected: str) -> None:
    assert verdict == expected


def numbers(value: Any) -> Iterator[float]:
    """All numbers inside a value."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)


def test_the_page_shows_each_published_score() -> None:
    for table in read("real_runs.toml")["tables"]:
        for run in table["runs"]:
            for score in numbers(run.get("scores", {})):
                assert f"| {score} |" in PAGE


def test_a_page_without_runs_of_others_says_so() -> None:
    assert "Nobody has sent a run yet" in page() or "sent by" in page()
