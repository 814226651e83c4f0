"""Objectives plug in alike: foveate's own are found by name, and so is one that another package brings."""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import recipe
from torch import nn

from foveate.errors import FoveateError
from foveate.train.batches import IGNORE, Batches
from foveate.train.estimate import estimate
from foveate.train.objectives import GROUP, Loaded, Objective, find, names, parse_recipe
from foveate.train.prepared import Prepared
from foveate.train.run import run
from foveate.train.settings import Count, Number, RecipeError, Settings
from foveate.train.sources import Conversation


class LengthSettings(Settings):
    """Settings of the objective below."""

    place = "length"

    width: Count = 4
    weight: Number = 1.0


class Length(Objective):
    """Learn to tell how many tokens a conversation has, from the embeddings of its text: a head beside the model."""

    name = "length"
    Settings = LengthSettings
    alone = "head"
    file = "length/head.safetensors"

    def prepare(self, model: Any, ready: Prepared) -> nn.Module:
        """Make the head; the recipe says what else is trained."""
        torch.manual_seed(ready.recipe.seed)
        width = model.get_input_embeddings().embedding_dim
        self.head = nn.Sequential(nn.Linear(width, self.settings.width), nn.Linear(self.settings.width, 1))
        return super().prepare(model, ready)

    def check_ready(self, ready: Prepared) -> None:
        """Refuse a head that is wider than the model, before it is loaded."""
        most = ready.family.decoder_config.hidden_size
        if self.settings.width > most:
            raise FoveateError(f"length: width is at most the model's, {most}")

    def collate(self, batches: Batches, rows: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Add the lengths."""
        batch = super().collate(batches, rows)
        return {**batch, "lengths": batch["attention_mask"].sum(1).float()}

    def wrap(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """Put the head beside the model."""
        return WithHead(model, self.head, self.settings.weight)

    def begin_step(self, module: nn.Module, step: int, steps: int) -> None:
        """Remember the steps."""
        self.steps = [*getattr(self, "steps", []), (step, steps)]

    def rates(self) -> dict[str, float]:
        """Let the head learn faster."""
        return {"head.": 0.1}

    def save(self, module: nn.Module, model: nn.Module, loaded: Loaded, out: Path) -> None:
        """Write the head."""
        (out / "length").mkdir()
        weights = {name: value.contiguous() for name, value in self.head.state_dict().items()}
        save_file(weights, out / "length" / "head.safetensors")


class WithHead(nn.Module):
    def __init__(self, model: nn.Module, head: nn.Module, weight: float) -> None:
        super().__init__()
        self.model, self.head, self.weight = model, head, weight

    def forward(
        self, lengths: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor, **inputs: Any
    ) -> dict[str, Any]:
        model: Any = self.model
        embedded = model.get_input_embeddings()(inputs["input_ids"]).mean(1)
        told = self.head(embedded)[:, 0]
        away = (told - lengths.log()).square().mean()
        own = model(**inputs, labels=labels, num_items_in_batch=num_items_in_batch, use_cache=False).loss
        share = (labels != IGNORE).sum() / num_items_in_batch
        return {"loss": own + self.weight * away * share, "numbers": {"away": away.item()}}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The objective above as an installed package has it."""
    found = importlib.metadata.entry_points
    ours = importlib.metadata.EntryPoint("length", f"{__name__}:Length", GROUP)
    monkeypatch.setattr(type(ours), "load", lambda entry: Length)

    def with_ours(**given: Any) -> Any:
        if given.get("group") == GROUP:
            return importlib.metadata.EntryPoints(
                [*found(**given), *([ours] if given.get("name", "length") == "length" else [])]
            )
        return found(**given)

    monkeypatch.setattr(importlib.metadata, "entry_points", with_ours)


@pytest.mark.usefixtures("installed")
def test_a_package_brings_its_own(tiny_model: Path, tmp_path: Path) -> None:
    """Stages apply, what it says is trained, and what it writes is written; resumed, it ends in the same weights."""
    assert names() == ["voco", "atp", "length"]
    given = recipe(tiny_model, length={"width": 3}, train="projector", steps=4)
    parsed = parse_recipe(given)
    assert run(parsed, tmp_path / "whole", say=lambda _: None) == tmp_path / "whole" / "model"
    assert parsed.objective.steps == [(0, 4), (1, 4), (2, 4), (3, 4)]
    told = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert told["recipe"]["length"] == {"width": 3, "weight": 1.0}
    logs = [each for each in told["history"] if "loss" in each]
    assert logs[-1]["away"] < logs[0]["away"]
    assert all(0 < each["flops_saved"] < 1 for each in logs)
    head = load_file(tmp_path / "whole" / "length" / "head.safetensors")
    assert head["0.weight"].shape[0] == 3
    (tmp_path / "short").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "short" / "checkpoint-2")
    run(parse_recipe(given), tmp_path / "short", resume=True, say=lambda _: None)
    again = load_file(tmp_path / "short" / "length" / "head.safetensors")
    assert all(torch.equal(again[name], value) for name, value in head.items())
    with pytest.raises(RecipeError, match="was made with length"):
        run(parse_recipe({**given, "length": {"width": 5}}), tmp_path / "short", resume=True, say=lambda _: None)


@pytest.mark.usefixtures("installed")
def test_it_may_leave_the_model_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    out = run(parse_recipe(recipe(tiny_model, length={}, train="head", steps=2)), tmp_path, say=lambda _: None)
    assert out == tmp_path / "length"
    assert not (tmp_path / "model").exists()
    said: list[str] = []
    run(parse_recipe(recipe(tiny_model, length={}, train="head", steps=2)), tmp_path, resume=True, say=said.append)
    assert "nothing is left to do" in said[-1]


@pytest.mark.usefixtures("installed")
def test_its_checks_need_no_weights(tiny_model: Path) -> None:
    wide = parse_recipe(recipe(tiny_model, length={"width": 33}, train="head"))
    with pytest.raises(FoveateError, match="length: width is at most the model's, 32"):
        estimate(wide)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lenght": {}}, 'the recipe has no key "lenght"; did you mean "length"?'),
        ({"length": {"widht": 3}}, 'length has no key "widht"; did you mean "width"?'),
        ({"length": 3}, "length is a mapping, not int"),
        ({"train": "head"}, "train: head trains what length adds to a model, and the recipe has no length"),
        ({"length": {}, "train": "embedding"}, "trains what voco adds to a model, and the recipe has no voco"),
        ({"length": {}, "train": "body"}, "train is one of full, projector, lora, head, not 'body'"),
        ({"length": {}, "voco": {}}, "voco and length are objectives, and a recipe has one"),
    ],
)
def test_errors_name_it_like_any_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe(Path("model"), **changes))
    assert str(caught.value).endswith(message) or message in str(caught.value)


def test_an_objective_that_is_not_there_or_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FoveateError, match='no objective is called "length"; there are voco, atp'):
        find("length")
    found = importlib.metadata.entry_points
    for value, message in (("nowhere:Nothing", "can't be imported"), ("json:JSONDecoder", "is no subclass")):
        entry = importlib.metadata.EntryPoint("length", value, GROUP)
        listed = importlib.metadata.EntryPoints([entry])
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda listed=listed, **given: listed if given.get("group") == GROUP else found(**given),
        )
        with pytest.raises(FoveateError, match=message):
            find("length")
        monkeypatch.undo()


def test_the_runner_names_no_objective() -> None:
    folder = Path(__file__).parents[2] / "src" / "foveate" / "train"
    for path in folder.glob("*.py"):
        if path.name != "objectives.py":
            text = path.read_text(encoding="utf-8").lower()
            assert "voco" not in text, path.name
            assert "atp" not in text.replace("atpath", ""), path.name
