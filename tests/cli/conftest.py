import shutil

import pytest
import torch
from commands import Commands

from foveate.embedded import PATH
from foveate.loading import load


@pytest.fixture(scope="session")
def reference_model():
    return load()


@pytest.fixture
def run(monkeypatch, reference_model):
    """Commands on the embedded model, which is loaded once for all tests."""
    import foveate.loading as module

    model, processor = reference_model
    whole, processors = module.load_model, module.load_processor

    def load_model(name=None, **options):
        return model if name is None else whole(name, **options)

    def load_processor(name=None, **options):
        return processor if name is None else processors(name, **options)

    monkeypatch.setattr(module, "load_model", load_model)
    monkeypatch.setattr(module, "load_processor", load_processor)
    threads = torch.get_num_threads()
    yield Commands()
    torch.set_num_threads(threads)


@pytest.fixture
def refuse(monkeypatch):
    """Commands that must refuse before any weight is read."""
    import foveate.loading as module

    def loaded(name=None, **options):
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr(module, "load_model", loaded)
    return Commands().refused


@pytest.fixture
def directory(tmp_path):
    """A copy of the embedded model without its weights."""
    target = tmp_path / "model"
    shutil.copytree(PATH, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target
