"""A model that is saved with a spec: what is written, and who compresses after it is loaded."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText

import foveate
from foveate.errors import FoveateError, FoveateWarning, SpecError
from foveate.fingerprint import answering_fingerprint
from foveate.prompts import question_inputs

PICTURE = Path(__file__).parents[1] / "examples" / "shapes.png"


@pytest.fixture
def loaded() -> tuple[Any, Any]:
    return foveate.load()


def logits(model: Any, processor: Any) -> torch.Tensor:
    inputs = question_inputs(processor, Image.open(PICTURE).convert("RGB"), "what colour is the large star ?")
    with torch.no_grad():
        return model(**inputs, logits_to_keep=1).logits


def results(folder: Path, model: Any, processor: Any, specs: list[str]) -> Path:
    folder.mkdir()
    config = {"model": answering_fingerprint(model, processor), "specs": specs}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "table.md").write_text("**scenes**\n\n| spec | accuracy |\n|---|---|\n")
    return folder


def test_attached_until_detached(loaded: tuple[Any, Any], recwarn: pytest.WarningsRecorder) -> None:
    model, processor = loaded
    dense = logits(model, processor)
    with foveate.apply(model, "cluster:16"):
        expected = logits(model, processor)
    assert foveate.attached_spec(model) is None
    foveate.attach(model, "cluster:16")
    gc.collect()
    assert torch.equal(logits(model, processor), expected)
    with pytest.raises(FoveateError, match=r"cluster:16 is applied to this model already; .*detach\(model\)"):
        foveate.attach(model, "pool:16")
    with pytest.raises(FoveateError, match="applied to this model already"):
        foveate.apply(model, "pool:16")
    assert str(foveate.attached_spec(model)) == "cluster:16"
    foveate.detach(model)
    assert torch.equal(logits(model, processor), dense)
    with pytest.raises(FoveateError, match="nothing is attached"):
        foveate.detach(model)
    assert not [each for each in recwarn if each.category is FoveateWarning]


def test_a_handle_ends_only_its_own(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    dense = logits(model, processor)
    first = foveate.apply(model, "cluster:16")
    foveate.detach(model)
    second = foveate.attach(model, "pool:16")
    first.close()
    assert not first.is_open
    assert second.is_open
    with pytest.raises(FoveateError, match="has ended"), first:
        pass
    assert second.report().spec == "pool:16"
    with second:
        assert not torch.equal(logits(model, processor), dense)
        assert second.report().images[0].after == 16
    assert torch.equal(logits(model, processor), dense)


def test_an_attached_model_is_collected() -> None:
    model, _ = foveate.load()
    foveate.attach(model, "cluster:16")
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_saved_and_loaded(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    dense = logits(model, processor)
    measured = results(tmp_path / "measured", model, processor, ["dense", "cluster:16"])
    folder = foveate.save(model, tmp_path / "saved", "cluster : 16", processor=processor, results=measured)
    assert not hasattr(model.config, "foveate")
    assert json.loads((folder / "config.json").read_text())["foveate"] == {"spec": "cluster:16"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measured", "saved"]

    again, its_processor = foveate.from_pretrained(folder)
    with foveate.apply(model, "cluster:16"):
        torch.testing.assert_close(logits(again, its_processor), logits(model, processor))
    # The spec doesn't make another model of it.
    assert answering_fingerprint(again, its_processor) == answering_fingerprint(model, processor)
    other, _ = foveate.from_pretrained(folder, spec="pool:4")
    assert str(foveate.attached_spec(other)) == "pool:4"
    for plain in (AutoModelForImageTextToText.from_pretrained(folder), foveate.from_pretrained(folder, "dense")[0]):
        assert foveate.attached_spec(plain) is None
        torch.testing.assert_close(logits(plain.eval(), processor), dense)

    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["tags"] == ["foveate", "visual-token-compression"]
    assert "| spec | accuracy |" in card.text
    assert "a layer of the decoder reads 16 visual tokens on average instead of 576" in " ".join(card.text.split())


def test_what_is_attached_is_saved(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    foveate.attach(model, "stride:16")
    folder = foveate.save(model, tmp_path / "saved", processor=processor)
    card = (folder / "README.md").read_text()
    assert "foveate bench --model saved --data questions.jsonl --spec stride:16" in card
    assert str(foveate.attached_spec(foveate.from_pretrained(folder)[0])) == "stride:16"


def test_what_can_not_be_saved(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    measured = results(tmp_path / "measured", model, processor, ["dense", "pool:16"])
    foreign = results(tmp_path / "foreign", model, processor, ["dense", "pool:16"])
    (foreign / "config.json").write_text(json.dumps({"model": "0" * 64, "specs": ["pool:16"]}))
    given: dict[str, Any] = {"processor": processor}
    adapter = foveate.ATP.from_pretrained("shipped").write(tmp_path / "adapter")
    for words, folder, spec, options in (
        ("nothing is attached to this model; say which spec", "new", None, {}),
        ("holds files already; name a new folder", "full", "pool:16", {}),
        ("names an adapter that lies on this machine", "new", f"atp:auto:adapter={adapter}", {}),
        ("measured has no results of pool:8, but of dense, pool:16", "new", "pool:8", given | {"results": measured}),
        ("foreign holds the results of another model", "new", "pool:16", given | {"results": foreign}),
        ("give processor=", "new", "pool:16", {"results": measured}),
        ("there is no benchmark", "new", "pool:16", given | {"results": tmp_path / "nowhere"}),
    ):
        with pytest.raises(FoveateError, match=words):
            foveate.save(model, tmp_path / folder, spec, **options)
    with pytest.raises(SpecError, match='did you mean "pool"'):
        foveate.save(model, tmp_path / "new", "pol:16")
    wrapped: Any = nn.Sequential(model)
    with pytest.raises(FoveateError, match="a model of transformers; merge adapters"):
        foveate.save(wrapped, tmp_path / "new", "pool:16")
    with pytest.raises(FoveateError, match="this model was saved without a spec"):
        foveate.from_pretrained()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "foreign", "full", "measured"]
