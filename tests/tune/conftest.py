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
def processor() -> Any:
    return tiny_processor()


@pytest.fixture(scope="session")
def task() -> Task:
    """Twenty pictures with one question each."""
    from dataclasses import replace

    whole = scenes(200)
    pictures = tuple(replace(picture, questions=picture.questions[:1]) for picture in whole.pictures[:20])
    return replace(whole, pictures=pictures)
