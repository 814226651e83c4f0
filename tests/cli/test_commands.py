"""What the commands print, and that programs can read it."""

import json
import subprocess
import sys

import pytest
from commands import EXAMPLES, Commands

import foveate
from foveate.bench.configurations import BUDGETS, CLIP_BUDGETS
from foveate.embedded import PATH
from foveate.families import supported
from foveate.images import open_image
from foveate.methods import method_class, method_names
from foveate.tune import sentences

IMAGE = EXAMPLES / "shapes.png"
QUESTION = "what colour is the large ring ?"


def test_ask_side_by_side(run, tmp_path):
    picture = tmp_path / "kept.png"
    answers = ("--spec", "stride:64", "--spec", "resize:16", "--spec", "cls:0.25+cluster:16")
    found = run.json("ask", IMAGE, QUESTION, *answers, "--max-new-tokens", "3", "--picture", picture)
    assert [each["spec"] for each in found["answers"]] == ["dense", "stride:64", "resize:16", "cls:0.25+cluster:16"]
    assert [each["tokens_after"] for each in found["answers"]] == [576, 64, 16, 16]
    for each in found["answers"]:
        assert each["tokens_before"] == 576
        assert each["mean_over_layers"] == each["tokens_after"]
        assert each["text"]
        assert 0 < each["encoder"] + each["compressor"] + each["prefill"] + each["decode"] <= each["total"]
        assert 1 <= each["new_tokens"] <= 3
    assert found["answers"][0]["compressor"] == 0 < found["answers"][1]["compressor"]
    assert found["picture"] == str(picture)
    assert open_image(picture).width > 4 * 400
    assert [each.name for each in tmp_path.iterdir()] == ["kept.png"]


def test_ask_prints_a_table(run):
    text = run("ask", IMAGE, QUESTION, "--max-new-tokens", "2")
    for word in ("dense", "cluster:64", "576", "64", "11.1%", "prefill", "decode", "float32", "--json"):
        assert word in text, text


def test_ask_answers_like_the_model_itself(run, reference_model):
    model, processor = reference_model
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(images=[open_image(IMAGE)], text=text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    own = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    found = run.json("ask", IMAGE, QUESTION, "--spec", "stride:1.0", "--max-new-tokens", "4")
    assert [each["text"] for each in found["answers"]] == [own, own]


def test_methods(run):
    rows = run.json("methods")
    assert tuple(row["name"] for row in rows) == method_names()
    cluster = next(row for row in rows if row["name"] == "cluster")
    assert cluster["options"]["start"] == {"default": "stride", "choices": ["stride", "plusplus"]}
    assert cluster["options"]["keep"] == {"default": "1.0"}
    cls = next(row for row in rows if row["name"] == "cls")
    assert (cls["aliases"], cls["adaptive"], cls["spec"]) == (["fastervlm"], False, "cls:1.0")
    assert "This is FasterVLM" in cls["card"]
    assert cls["example"].startswith(">>> import torch")
    for row in rows:
        assert row["what"].endswith(".")
        assert len(row["what"]) < 120
    text = run("methods")
    assert all(name in text for name in method_names())
    assert "foveate methods --json" in text


def test_families(run):
    rows = run.json("families")
    assert {row["name"] for row in rows} == set(supported())
    text = run("families")
    assert all(row["title"] in text and all(name in text for name in row["checkpoints"]) for row in rows)
    named = run.json("families", "qwen/qwen3-vl-8b-instruct")
    assert (named["title"], named["model_type"], named["note"]) == ("Qwen3-VL", "qwen3_vl", "")
    assert all(method_class(name).temporal for name in named["refused"])
    assert "methods: " in run("families", "Qwen/Qwen3-VL-8B-Instruct")
    text = run("families", PATH)
    assert "places: @pixels, @encoder, @features, @input, @1 to @11" in text


def test_families_of_a_model_without_one(run, refuse):
    found = run.json("families", "idefics2")
    assert (found["name"], found["places"], found["grids"]) == ("generic", ["input", "decoder"], False)
    assert "no family describes models of type 'idefics2'" in found["note"]
    assert found["refused"]["resize"] == (
        "It acts at @pixels, and all that steps can reach in this model is @input and the decoder's layers"
    )
    assert found["refused"].keys() > {"cls", "visionzip"}
    assert not {"cluster", "fastv"} & found["refused"].keys()
    text = " ".join(run("families", "idefics2").split())
    count = len(method_names())
    assert f"methods: {count - len(found['refused'])} of {count} refused: " in text
    assert "it has no module with get_image_features" in refuse("families", "blip")
    assert "there is no model directory t6" in refuse("families", "t6")


def test_count(run):
    found = run.json("count", IMAGE, "--spec", "stride:288", "--spec", "resize:0.5+cluster:64", "--spec", "resize:64")
    assert (found["total"], found["content"], found["structural"], found["grids"]) == (576, 576, 0, [[1, 24, 24]])
    assert [each["tokens"] for each in found["after"]] == [272, 64, 64]
    assert "24 x 24" in run("count", IMAGE)


def test_count_of_what_the_content_decides(run):
    found = run.json(
        "count", IMAGE, "--spec", "prumerge", "--spec", "prumerge:64", "--spec", "prumerge+cls:0.5@features"
    )
    assert [(each["spec"], each["fewest"], each["tokens"]) for each in found["after"]] == [
        ("prumerge:auto", 2, 145),
        ("prumerge:64", 64, 64),
        ("prumerge:auto+cls:0.5@features", 1, 73),
    ]
    assert "2 to 145" in run("count", IMAGE, "--spec", "prumerge")


def test_count_needs_no_weights(run, directory):
    assert run.json("count", IMAGE, "--model", directory)["total"] == 576


def test_help_and_version_are_quick(run):
    assert "ask" in run("--help")
    assert run("--version") == f"foveate {foveate.__version__}\n"
    version = subprocess.run([sys.executable, "-m", "foveate", "--version"], check=True, capture_output=True, text=True)
    assert version.stdout == run("--version")
    program = "import sys, foveate.commands; sys.argv = ['foveate', '--help']\n"
    program += "try: foveate.commands.main()\nexcept SystemExit: pass\n"
    program += "assert not {'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_bench_help_errors_and_interruptions(monkeypatch):
    run = Commands()
    assert "--skills" in run("bench", "--help")
    assert "--nothing" in run.refused("bench", "--nothing")
    assert "keep 0 leaves nothing" in run.refused("bench", "--spec", "cluster:0")

    described = " ".join(run("bench", "--help").replace("│", " ").split())
    assert f"{BUDGETS}; of clips {CLIP_BUDGETS}" in described

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["foveate.bench.configurations"], "configurations", interrupted)
    assert run.refused("bench", "--keep", "3", code=130) == "interrupted; run the same command again to continue"


def test_bench_against_any_row(run, tmp_path):
    words = ("--questions", "4", "--spec", "pool:9", "--spec", "random:4", "--seed", "3", "--out", tmp_path / "out")
    text = run("bench", *words, "--against", "random:keep=4")
    assert "paired with random:4:seed=3" in " ".join(text.split())
    for kind in ("png", "svg", "pdf"):
        assert (tmp_path / "out" / f"accuracy.{kind}").stat().st_size > 1000
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {name: list(own) for name, own in metrics["pairs"].items()} == {
        "pool:9": ["dense"],
        "random:4:seed=3": ["dense", "pool:9"],
    }
    again = run("bench", *words, "--against", "pool:9")
    assert "paired with pool:9" in " ".join(again.split())


def test_bench_against_no_row(refuse):
    words = ("--questions", "4", "--spec", "pool:9", "--spec", "random:4")
    assert 'did you mean "pool:9"?' in refuse("bench", *words, "--against", "pool:8")
    for name in ("", "[/]", "nothing" * 1000, "pool"):
        assert "--against: no configuration is called" in refuse("bench", *words, "--against", name)
    assert "no configuration is called" in refuse("bench", *words, "--match", "mean", "--against", "cls:4")


def test_bench_at_equal_terms(run, tmp_path):
    words = ("--questions", "12", "--spec", "stride", "--spec", "stride@3", "--keep", "288", "--match", "flops")
    found = run.json("bench", *words, "--out", tmp_path / "out")
    rows = found["configurations"]
    assert [row["budget"] for row in rows] == [576, 288, 288]
    assert rows[2]["spec"].endswith("@3")
    assert found["config"]["budgets"][rows[2]["spec"]] == 288
    assert "match mean" in run.refused("bench", *words[:-1], "size")


def test_tune(run, tmp_path):
    """A search on the embedded model, from end to end and again."""
    words = ("--questions", "75", "--max-drop", "0.9", "--methods", "none", "--spec", "stride:36", "--spec", "stride:4")
    words = (*words, "--finalists", "1", "--device", "laptop", "--out", tmp_path / "out")
    text = " ".join(run("tune", *words).split())
    assert "The search, on 33 questions about 4 images" in text
    assert "Verified on 42 held-out questions about 4 images" in text
    assert "Predicted times decide, for AMD Ryzen 7 7840U, 8 cores, 32 GB DDR5-5600 (a lower bound" in text
    assert f"foveate report {tmp_path / 'out'}" in text
    found = run.json("tune", *words)
    assert found["folder"] == str(tmp_path / "out")
    assert [row["spec"] for row in found["rounds"][0]["candidates"] if row["stays"]] == [found["chosen"]["spec"]]
    rows = {row["spec"]: row for row in found["rows"]}
    keep = found["chosen"]["spec"].removeprefix("stride:")
    assert rows.keys() == {"dense", *(f"{name}:{keep}" for name in ("stride", "random", "pool2d", "resize"))}
    assert rows["dense"]["ratios"]["predicted"] == 1.0
    page = " ".join(run("report", tmp_path / "out", "--pictures", "1").split())
    assert all(" ".join(sentence.split()) in page for sentence in sentences(found))
    assert "Report:" in page
    said = run.refused("tune", *words, "--seed", "1")
    assert "holds another search" in said
    assert "seed" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-drop", "5"), "--max-drop is 5; give a share of the accuracy above 0 and below 1: 0.01 is one point"),
        (("--max-drop", "0"), "--max-drop is 0; give a share"),
        (("--max-drop", "nan"), "--max-drop must be a number, not nan"),
        (("--held-out", "1"), "the held-out share is 1; give the share of the images"),
        (("--questions", "0"), "--questions is 0; it must be at least 1"),
        (
            ("--questions", "20"),
            "of which 1 would be held out, and 3 are needed; give more questions about other images",
        ),
        (("--methods", "clustre"), '--methods: no method is called "clustre"; did you mean "cluster"?'),
        (("--places", "inputs"), "--places 'inputs' names no place; there are own, pixels"),
        (("--methods", "none"), "nothing is left to search: name methods, or candidates by --spec"),
        (("--keep", "0"), "keep 0 leaves nothing"),
        (("--device", "h1000"), 'no device is called "h1000"; did you mean "h100"?'),
        (("--data", "nothing.jsonl"), "there is no"),
    ],
)
def test_tune_refuses_before_a_weight_is_read(refuse, words, said):
    assert said in refuse("tune", *words)


def test_tune_refuses_a_folder_of_something_else(refuse, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "holds something that is no search; name another folder with --out" in refuse("tune", "--out", tmp_path)
