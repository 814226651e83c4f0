import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from foveate.cli import app
from foveate.reference import PATH
from foveate.reference.load import load

EXAMPLES = Path(__file__).parents[2] / "examples"


class Commands:
    """Runs commands in this process, with the reference model loaded once."""

    def __init__(self) -> None:
        self.runner = CliRunner()

    def __call__(self, *words: object, code: int = 0) -> str:
        """What a command prints on stdout."""
        result = self.runner.invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.stdout

    def json(self, *words: object):
        return json.loads(self(*words, "--json"))

    def refused(self, *words: object) -> str:
        """What a command says on stderr when it refuses, having printed nothing else."""
        result = self.runner.invoke(app, [str(word) for word in words])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr.strip()


@pytest.fixture(scope="session")
def reference_model():
    return load()


@pytest.fixture
def run(monkeypatch, reference_model):
    """Commands on the embedded model; its parts are handed out instead of loaded again."""
    import foveate.reference.load as module

    model, processor = reference_model
    whole, processors = module.load_model, module.load_processor
    monkeypatch.setattr(module, "load_model", lambda path=None: model if path is None else whole(path))
    monkeypatch.setattr(module, "load_processor", lambda path=None: processor if path is None else processors(path))
    threads = torch.get_num_threads()
    yield Commands()
    torch.set_num_threads(threads)


@pytest.fixture
def refuse(monkeypatch):
    """Commands that must refuse before any weight is read."""
    import foveate.reference.load as module

    def loaded(path=None):
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr(module, "load_model", loaded)
    return Commands().refused


@pytest.fixture
def directory(tmp_path):
    """A copy of the embedded model without its weights."""
    target = tmp_path / "model"
    shutil.copytree(PATH, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target
