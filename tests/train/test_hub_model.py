"""Recipes whose model is named by the hub."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import recipe, write_tiny

from foveate.errors import FoveateError
from foveate.loading import load_model
from foveate.train.objectives import parse_recipe
from foveate.train.run import run

COMMITS = ("1" * 40, "2" * 40)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two commits of org/tiny, of different weights, and no network. Returns the file of its branch."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--tiny"
    for commit in COMMITS:
        write_tiny(repository / "snapshots" / commit)
    model = load_model(repository / "snapshots" / COMMITS[1])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    model.save_pretrained(repository / "snapshots" / COMMITS[1])
    main = repository / "refs" / "main"
    main.parent.mkdir()
    main.write_text(COMMITS[0])
    return main


def test_a_run_stays_with_the_commit_that_it_began_with(hub: Path, tmp_path: Path) -> None:
    given = recipe(Path("org/tiny"), steps=4, train="projector")
    whole = run(parse_recipe(given), tmp_path / "whole", say=lambda text: None)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "model")
    shutil.rmtree(tmp_path / "broken" / "checkpoint-4")
    hub.write_text(COMMITS[1])
    again = run(parse_recipe(given), tmp_path / "broken", resume=True, say=lambda text: None)
    other = run(parse_recipe(given), tmp_path / "other", say=lambda text: None)
    pinned = run(parse_recipe(given | {"revision": COMMITS[0]}), tmp_path / "pinned", say=lambda text: None)
    found = [load_file(folder / "model.safetensors") for folder in (whole, again, other, pinned)]
    equal = [all(torch.equal(tensor, weights[name]) for name, tensor in found[0].items()) for weights in found]
    assert equal == [True, True, False, True]


def test_what_the_hub_lacks_is_one_line(hub: Path, tmp_path: Path) -> None:
    for changes in ({"model": "org/absent"}, {"revision": "v9"}):
        with pytest.raises(FoveateError, match="is not in the cache") as caught:
            run(parse_recipe(recipe(Path("org/tiny"), **changes)), tmp_path / "run", say=lambda text: None)
        assert "\n" not in str(caught.value)
    given = recipe(hub.parents[1] / "snapshots" / COMMITS[0], revision="main")
    with pytest.raises(FoveateError, match="only models on the hub have revisions"):
        run(parse_recipe(given), tmp_path / "run", say=lambda text: None)
