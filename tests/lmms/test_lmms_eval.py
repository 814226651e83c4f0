"""lmms-eval asks the model through foveate's entry point, and gets what `foveate bench` gets."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("lmms_eval")

from foveate.bench import Benchmark, jsonl, scenes
from foveate.embedded import PATH
from foveate.loading import load_model, load_processor
from foveate.voco import VoCo

HERE = Path(__file__).parent
LAUNCH = str(HERE / "launch.py")
ACCELERATE = (
    f"import sys; sys.path.insert(0, {str(HERE)!r}); import operators; "
    "from accelerate.commands.accelerate_cli import main; main()"
)
"""The program `accelerate`, which imports torchvision as well."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The local task, with 24 questions about two scenes."""
    made = tmp_path_factory.mktemp("task")
    lines = []
    for number, picture in enumerate(scenes(24).pictures):
        file = made / f"{number}.png"
        picture.load().save(file)
        lines += [{"image": str(file), "question": each.text, "answer": each.answer} for each in picture.questions]
    (made / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for each in (HERE / "task").iterdir():
        shutil.copy(each, made)
    return made


def ask(
    folder: Path, arguments: str, *before: str, out: str = "out", more: tuple[str, ...] = ()
) -> tuple[Any, Any, str]:
    """Run lmms-eval on the task; return its results, its samples, and what it printed."""
    given = f"pretrained={PATH},device=cpu,dtype=float32,{arguments}"
    command = [*(before or (sys.executable,)), LAUNCH, "--model", "foveate", "--model_args", given, "--batch_size", "4"]
    command += ["--tasks", "foveate_shapes", "--include_path", str(folder), "--output_path", str(folder / out)]
    done = subprocess.run(
        [*command, "--log_samples", *more], cwd=folder, env={**os.environ, **OFFLINE}, capture_output=True, text=True
    )
    printed = done.stdout + done.stderr
    # lmms-eval prints what went wrong, and ends with 0 all the same.
    if done.returncode or not list((folder / out).rglob("*_results.json")):
        return None, None, printed
    (results,) = (folder / out).rglob("*_results.json")
    (samples,) = (folder / out).rglob("*_samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text()), sorted(lines, key=lambda line: line["doc_id"]), printed


def test_scores_and_answers_are_those_of_bench(folder: Path) -> None:
    found, samples, printed = ask(folder, "spec=cluster:64,loyalty=True")
    assert found is not None, printed
    model = load_model(PATH, device="cpu", dtype="float32")
    made = Benchmark(
        model, load_processor(PATH), jsonl(folder / "rows.jsonl"), ["cluster:64"], folder / "bench", 6, score="plain"
    )
    rows = {row["spec"]: row for row in made.run()["configurations"]}
    assert found["results"]["foveate_shapes"]["exact_match,none"] == rows["cluster:64"]["accuracy"]["value"]
    assert rows["cluster:64"]["accuracy"]["value"] != rows["dense"]["accuracy"]["value"]
    ours = [each for each in made.folder.predictions() if each.spec == "cluster:64"]
    assert [line["filtered_resps"].strip() for line in samples] == [each.prediction for each in ours]
    told = dict(re.findall(r"(\w+) ([\w:.]+)", printed.split("foveate: ")[1].splitlines()[0]))
    assert told["spec"] == "cluster:64"
    assert (float(told["visual_tokens_dense"]), float(told["visual_tokens"])) == (576, 64)
    assert float(told["loyalty"]) == pytest.approx(rows["cluster:64"]["loyalty"])
    assert json.dumps(found).count("cluster:64")


def test_two_processes_and_a_spec_with_commas(folder: Path) -> None:
    spec = 'spec="pyramiddrop:0.5@2,4"'
    alone, samples, printed = ask(folder, spec, out="one", more=("--limit", "4"))
    assert alone is not None, printed
    launch = (sys.executable, "-c", ACCELERATE, "launch", "--cpu", "--num_processes", "2")
    both, shared, printed = ask(folder, spec, *launch, out="two", more=("--limit", "4"))
    assert both is not None, printed
    assert (
        both["results"]["foveate_shapes"]["exact_match,none"] == alone["results"]["foveate_shapes"]["exact_match,none"]
    )
    assert [line["filtered_resps"] for line in shared] == [line["filtered_resps"] for line in samples]
    assert "pyramiddrop:0.5@2,4" in printed


def test_answers_from_voco_tokens_are_those_of_the_adapter(folder: Path) -> None:
    found, samples, printed = ask(folder, "voco=shipped,voco_tokens=8", out="voco", more=("--limit", "6"))
    assert found is not None, printed
    model, processor = load_model(PATH, device="cpu", dtype="float32"), load_processor(PATH)
    voco = VoCo.from_pretrained("shipped")
    for line, row in zip(samples, (folder / "rows.jsonl").read_text().splitlines()[:6], strict=True):
        asked = json.loads(row)
        text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
        inputs = processor(images=[Image.open(asked["image"])], text=text, return_tensors="pt")
        memories = voco.encode(model, inputs, 8)
        assert line["filtered_resps"].strip() == voco.generate(
            model, memories, asked["question"], processor, max_new_tokens=6
        )
    assert "spec voco:8" in printed
    assert re.search(r"visual_tokens_dense 576\.0, visual_tokens 8\.0", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("voco=shipped,spec=cluster:64", "leave spec, loyalty and system out"),
        ("voco=shipped,voco_tokens=33", "33"),
        ("voco_tokens=8", "voco_tokens and no voco"),
    ],
)
def test_voco_tokens_that_cannot_be_used_are_refused(folder: Path, arguments: str, message: str) -> None:
    found, _, printed = ask(folder, arguments, out="no-voco", more=("--limit", "2"))
    assert found is None
    assert message in printed


def test_the_names_of_tasks_and_metrics_on_the_page_of_claims_are_those_of_lmms_eval() -> None:
    names = json.loads((HERE.parent / "claims" / "lmms-eval-0.7.3-tasks.json").read_text())
    assert version("lmms_eval") == names["version"]
    tasks = Path(str(find_spec("lmms_eval").origin)).parent / "tasks"  # pyright: ignore
    texts = [file.read_text() for file in tasks.rglob("*.yaml")]
    templates = {file.name: file.read_text() for file in tasks.rglob("*_template_*yaml")}
    for task, metric in names["tasks"].items():
        own = [text for text in texts if re.search(rf"^task: *[\"']?{task}[\"']?\s*$", text, re.MULTILINE)]
        assert len(own) == 1, task
        included = re.findall(r"^include: *(\S+)", own[0], re.MULTILINE)
        assert f"metric: {metric}" in own[0] + "".join(templates.get(name, "") for name in included), task


def test_a_log_becomes_a_file_of_the_community(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in (("log-dense", "dense"), ("log-cluster", "cluster:64")):
        found, _, printed = ask(folder, f"spec={spec}", out=name, more=("--limit", "4"))
        assert found is not None, printed
    monkeypatch.syspath_prepend(HERE.parents[1] / "benchmarks")
    script = importlib.import_module("community")
    logs = [str(folder / name) for name in ("log-dense", "log-cluster")]
    given = ["community.py", "make", *logs, "--model", "embedded", "--out", str(folder / "sent")]
    monkeypatch.setattr(sys, "argv", given)
    assert script.main() == 0
    (file,) = (folder / "sent").glob("*.json")
    run = json.loads(file.read_text())
    assert run["questions"] == {"foveate_shapes": 4}
    assert [row["spec"] for row in run["rows"]] == ["dense", "cluster:64"]
    assert run["rows"][1]["tokens"] == {"before": 576, "after": 64, "over_layers": 64}
    assert run["rows"][0]["scores"]["foveate_shapes"].keys() == {"exact_match"}


def test_a_bad_spec_is_refused_with_its_own_words(folder: Path) -> None:
    found, _, printed = ask(folder, "spec=clustre:64", out="bad")
    assert found is None
    assert 'did you mean "cluster"?' in printed
