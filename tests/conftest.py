"""Shapes and dtypes in signatures are checked in tests; drawn cases are the same each time; torchvision is at hand.

Without `--every-family`, the contract suite is a sample: see sample_families.py.
"""

import builtins
import os
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

# Tests run side by side, one to a core, and so do the commands that they start. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from PIL import Image, ImageOps
from torch import Tensor
from torch.library import Library

# Before anything imports foveate. Modules whose annotations say what a tensor holds. They import the classes in these
# for type checkers alone, so that commands that need no tensor start without torch; here annotations are looked up.
vars(builtins).update(Tensor=Tensor, npt=numpy.typing)
CHECKED = ("foveate.keep", "foveate.plan", "foveate.tokens", "foveate.method", "foveate.methods")
install_import_hook(list(CHECKED), "beartype.beartype")

# --doctest-modules would import each conftest again, under one name for all.
# And what `nox -s lmms` runs needs lmms-eval.
collect_ignore_glob = ["conftest.py", "*/conftest.py", "lmms/*"]

# A change is not refused for a case that somebody else's change would have met. To look for new ones:
# pytest --hypothesis-profile=explore
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")

# Processors of Qwen and of video need torchvision's Python, not its operators. Beside a torch for CPUs the wheel can't
# load these, and its import fails. So dev.py and nox put it into a folder of its own, which only tests look into.
# Encoders of timm need torchvision in turn, so it has such a folder, too.
ALONE = ("torchvision", "timm")


def offer(package: str) -> None:
    """Make a package importable that lies in a folder of its own."""
    folder = Path(sys.prefix) / package
    if find_spec(package) is None and folder.exists():
        sys.path.append(str(folder))


def offer_torchvision() -> Library | None:
    """Declare the two operators that the import of torchvision names, if its own don't load."""
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    try:
        torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
    except OSError:
        operators = Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision.io

        torchvision.io.decode_image = decode_image
        return operators
    return None


def decode_image(source: str | Tensor, mode: object = None, apply_exif_orientation: bool = False) -> Tensor:
    """Decode a picture as `torchvision.io.decode_image` does in its mode RGB, by Pillow: `(3, H, W)` uint8."""
    image = Image.open(source if isinstance(source, str) else BytesIO(bytes(source.tolist())))
    image = ImageOps.exif_transpose(image) if apply_exif_orientation else image
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


for alone in ALONE:
    offer(alone)
operators = offer_torchvision()  # which live as long as this name

# Programs that run tests may set the width of their own terminal; commands have theirs.
os.environ.pop("COLUMNS", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-family",
        action="store_true",
        help="run each test of the contract suite on every family, and long tests in full (nightly)",
    )
    parser.addoption("--share", help="run only this share of the sample of the contract suite: 1/2 or 2/2")


@pytest.fixture(scope="session")
def in_full(pytestconfig: pytest.Config) -> bool:
    """Whether long tests run in full; otherwise they are shorter, because every change waits for them."""
    return bool(pytestconfig.getoption("every_family"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from sample_families import sample, share_asked_for
    from steps_that_act import can_act

    items[:], dropped = can_act(items)
    config.hook.pytest_deselected(items=dropped)
    share = share_asked_for(config)
    if share is not None:
        items[:], dropped = sample(items, share)
        config.hook.pytest_deselected(items=dropped)
