"""`foveate serve` up to the point where vLLM would start: what it refuses, prints and sets."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foveate.commands import app
from foveate.embedded import PATH
from foveate.errors import FoveateError
from foveate.vllm_plugin.launch import check_vllm, chosen_specs, launch, tokens_left
from foveate.vllm_plugin.served import SERVED

QWEN = {
    **{"model_type": "qwen2_5_vl", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 99},
    "vision_config": {
        **{"model_type": "qwen2_5_vl", "patch_size": 14, "spatial_merge_size": 2, "depth": 2, "hidden_size": 64},
        **{"num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64, "in_channels": 3, "temporal_patch_size": 2},
    },
}


def folder(tmp_path: Path, config: dict[str, Any]) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_what_is_served_and_how_vllm_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_SPEC", "cluster:9")
    words = ["serve", folder(tmp_path, QWEN), "--spec", "cluster:0.25", "--allow", "dense", "--port", "8123"]
    done = CliRunner().invoke(app, [*words, "--dry-run", "--json", "--", "--max-model-len", "4096"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["spec"], found["allowed"]) == ("cluster:0.25", ["cluster:0.25", "dense"])
    # 37 x 27, 23 x 17 and 69 x 39 tokens; their quarters are rounded.
    assert found["visual_tokens"] == {"dense": [391, 999, 2691], "cluster:0.25": [98, 250, 673]}
    dense, short = found["visual_kv_bytes"]
    assert short / dense == pytest.approx(250 / 999)
    assert found["environment"] == {"FOVEATE_SPEC": "cluster:0.25", "FOVEATE_SPECS": "cluster:0.25;dense"}
    command = found["command"][1:]
    assert command[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    assert command[4:] == [
        *("--host", "127.0.0.1", "--port", "8123", "--trust-request-mm-kwargs"),
        *("--served-model-name", tmp_path.name, "--max-model-len", "4096"),
    ]
    shown = CliRunner().invoke(app, [*words, "--dry-run"]).stdout
    assert "250 (25%)" in shown
    assert "allowed are cluster:0.25, dense" in shown


def test_requests_may_name_nothing_unless_specs_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = chosen_specs(str(PATH), "cluster:64")
    start = launch(str(PATH), choice, options=["--served-model-name=mine"])
    assert "--trust-request-mm-kwargs" not in start.command
    assert start.environment["FOVEATE_SPECS"] == ""
    assert start.command[-1] == "--served-model-name=mine"
    monkeypatch.setenv("FOVEATE_SPECS", "cluster:16;dense")
    start = launch(str(PATH), chosen_specs(str(PATH)))
    assert "--trust-request-mm-kwargs" in start.command
    assert start.environment == {"FOVEATE_SPEC": "dense", "FOVEATE_SPECS": "dense;cluster:16"}


def test_methods_read_the_question_only_if_the_server_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = {"model_type": "internvl_vision", "num_hidden_layers": 2, "image_size": [448, 448], "patch_size": [14, 14]}
    internvl = {"model_type": "internvl", "vision_config": vision, "downsample_ratio": 0.5, "vision_feature_layer": -1}
    with pytest.raises(FoveateError, match="can't give methods the question about an image of InternVL"):
        chosen_specs(folder(tmp_path, internvl), "cluster:64", questions=True)
    assert chosen_specs(str(tmp_path), "cluster:64").default.text == "cluster:64"
    with pytest.raises(FoveateError, match="or start it with FOVEATE_PER_QUESTION=1"):
        chosen_specs(str(PATH), "cdpruner:64")
    words = ["serve", str(PATH), "--spec", "cdpruner:64", "--per-question", "--dry-run", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["environment"]["FOVEATE_PER_QUESTION"] == "1"
    monkeypatch.setenv("FOVEATE_PER_QUESTION", "1")
    assert chosen_specs(str(PATH), "cdpruner:64").default.text == "cdpruner:64"
    monkeypatch.setenv("FOVEATE_PER_QUESTION", "yes")
    with pytest.raises(FoveateError, match="write 1 to let methods read the question, or 0"):
        chosen_specs(str(PATH), "cluster:64")


def test_a_model_that_remembers_its_spec_needs_none(tmp_path: Path) -> None:
    choice = chosen_specs(folder(tmp_path, {**QWEN, "foveate": {"spec": "cluster:16"}}))
    assert choice.default.text == "cluster:16"
    assert chosen_specs(str(tmp_path), "dense").default.is_dense


def test_a_picture_with_too_few_tokens_is_shown_as_such(tmp_path: Path) -> None:
    choice = chosen_specs(folder(tmp_path, QWEN), "cluster:500")
    assert tokens_left(choice, choice.default) == [None, 500, 500]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--spec", "clutser:64"], 'did you mean "cluster"?'),
        (["--spec", "cluster:9999"], "keep at most 576"),
        (["--spec", "stride:64"], "write stride:64:positions=pack"),
        (["--spec", "fastv:0.5@2"], "acts inside the decoder"),
        (["--spec", "cluster:64", "--allow", "cdpruner:64"], "reads the question"),
        (["--spec", "cluster:64", "--", "--port", "1"], "give --port to foveate serve"),
        (["--spec", "cluster:64", "--", "--mm_processor_kwargs={}"], "use --spec"),
        (["another"], "no option of vLLM"),
        (["--spec", "cluster:64"], "serving needs vLLM, which isn't installed; run: pip install 'foveate[vllm]'"),
    ],
)
def test_what_is_refused_before_vllm_starts(words: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.vllm_plugin.launch.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["serve", str(PATH), *words])
    assert (done.exit_code, done.stdout) == (2, "")
    assert reason in done.stderr
    assert done.stderr.count("\n") <= 2


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="paligemma is served whole by vLLM; a spec can act in llava"):
        chosen_specs(folder(tmp_path, {"model_type": "paligemma", "vision_config": {}}), "cluster:16")
    with pytest.raises(FoveateError, match="there is no"):
        chosen_specs(str(tmp_path / "no.such"))


def test_a_plugin_that_vllm_would_not_load_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.vllm_plugin.launch.find_spec", lambda name: True)
    monkeypatch.setattr("foveate.vllm_plugin.launch.entry_points", lambda group: ())
    with pytest.raises(FoveateError, match="isn't installed as a package"):
        check_vllm({})
    point = type("Point", (), {"name": "foveate"})()
    monkeypatch.setattr("foveate.vllm_plugin.launch.entry_points", lambda group: (point,))
    check_vllm({"VLLM_PLUGINS": "other,foveate"})
    with pytest.raises(FoveateError, match="VLLM_PLUGINS=other keeps foveate's plugin out"):
        check_vllm({"VLLM_PLUGINS": "other"})


def test_facts_and_classes_of_the_plugin_are_about_the_same_models() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from foveate.vllm_plugin import MODELS

    assert {MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind] for kind in SERVED} == set(MODELS)
