"""A tiny random LLaVA with the reference model's own processor: 16 visual tokens per image, answers of one word."""

from typing import Any

import pytest
import torch

from foveate.bench import Task, scenes
from tiny_llava import tiny_model, tiny_processor


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="session")
def deep_model() -> Any:
    return tiny_model(layers=4)


@pytest.fixture(scope="session")
def processor() -> Any:
    return tiny_processor()


@pytest.fixture(scope="session")
def task() -> Task:
    """Twelve pictures with two questions each: more than one chunk."""
    from dataclasses import replace

    whole = scenes(120)
    pictures = tuple(replace(picture, questions=picture.questions[:2]) for picture in whole.pictures)
    return replace(whole, pictures=pictures, floor=lambda: dict.fromkeys(whole.skills, 0.25))
