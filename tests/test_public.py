"""The package's face: lazy names, and nothing heavy behind `import foveate`."""

import importlib
import subprocess
import sys

import pytest

import foveate
from foveate import renamed


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_is_light():
    heavy = "{'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)"
    assert _run(f"import sys, foveate; print(sorted({heavy}))") == "[]"


def test_families_layouts_and_plans_need_no_transformers():
    code = (
        "import sys\nsys.modules['transformers'] = None\n"
        "import torch, foveate, foveate.engine\nfrom foveate.families import families\n"
        "tokens = foveate.VisualTokens.of(torch.rand(1, 16, 4), (4, 4))\n"
        "print(len(families()) > 20, foveate.methods.Cluster(keep=4).plan(tokens).slot.shape[1])"
    )
    assert _run(code) == "True 4"


def test_help_does_not_load_a_framework():
    code = (
        "import sys\nfrom foveate.commands import main\nsys.argv = ['foveate', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert _run(code).splitlines()[-1] == "[]"


def test_every_public_name_is_there():
    for name in foveate.__all__:
        assert getattr(foveate, name) is not None, name
    assert set(foveate.__all__) <= set(dir(foveate))


def test_cost_and_reference_stay_functions():
    code = "import foveate, foveate.costmodel, foveate.embedded; import foveate.commands.cost; "
    assert _run(code + "print(type(foveate.cost).__name__, type(foveate.reference).__name__)") == "function function"


@pytest.mark.parametrize(("old", "new"), renamed.NEW_NAMES.items())
def test_old_module_names_say_the_new_one(old: str, new: str):
    with pytest.raises(ImportError, match=rf"{old} was renamed; import {new} instead"):
        importlib.import_module(old)
    assert importlib.import_module(new)
    if old.count(".") == 1 and old not in ("foveate.cost", "foveate.reference"):
        with pytest.raises(AttributeError, match=rf"renamed to {new}"):
            getattr(foveate, old.removeprefix("foveate."))


@pytest.mark.parametrize(("old", "new"), renamed.NEW_HOMES.items())
def test_old_names_say_the_new_one(old: str, new: str):
    module, _, name = old.rpartition(".")
    with pytest.raises(ImportError, match=rf"{old} was renamed; use {new} instead"):
        exec(f"from {module} import {name}")
    module, _, name = new.rpartition(".")
    assert getattr(importlib.import_module(module), name)
