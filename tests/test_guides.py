"""The two guides are true: what they say to write is all that a new method or a new family takes."""

import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from foveate import families, methods, registry, spec

ROOT = Path(__file__).parents[1]
METHOD, FAMILY = "add-a-method.md", "add-a-family.md"


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page registers is forgotten after its test."""
    methods.method_names()
    families.supported()
    registered = [(names, dict(names)) for names in (registry.METHODS, registry.ALIASES, families.registry.FAMILIES)]
    yield
    for names, before in registered:
        names.clear()
        names.update(before)


def blocks(page: str, language: str = "python") -> list[str]:
    """The code blocks of a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def files_of(page: str) -> dict[str, str]:
    """What a guide says to save, by its path."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"^Save this as `([^`]+)`.*?^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return dict(found)


class Tree:
    """A copy of the source tree.

    Attributes:
        folder: where it lies.
        touched: the files that a guide writes into it; none of them was there before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.touched = folder, 0
        skipped = shutil.ignore_patterns("__pycache__", "*.png", "*.safetensors")
        for name in ("src", "tests", "docs", "benchmarks"):
            shutil.copytree(ROOT / name, folder / name, ignore=skipped)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def follow(self, page: str) -> None:
        """Write what a guide says to write, and nothing else."""
        for path, text in files_of(page).items():
            assert not (self.folder / path).exists()
            (self.folder / path).write_text(text)
            self.touched += 1

    def python(self, *arguments: str) -> str:
        """The output of Python in this tree, which must succeed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder / "src")},
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stdout

    def run(self, *arguments: str) -> int:
        """Run tests of this tree, all of which must pass; returns how many there were."""
        out = self.python("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments)
        numbers = re.findall(r"(\d+) (?:passed|skipped)", out.splitlines()[-1])
        assert "failed" not in out.splitlines()[-1]
        return sum(map(int, numbers))

    def collected(self, *arguments: str) -> list[str]:
        """The tests of this tree that there are."""
        out = self.python(
            "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--collect-only", "--every-family", *arguments
        )
        return [line for line in out.splitlines() if "::" in line]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "foveate")


@pytest.mark.slow
def test_a_method_is_one_file(tree: Tree, capsys: pytest.CaptureFixture[str], in_full: bool) -> None:
    tests = ("tests/methods", "tests/families/test_support.py") if in_full else ("tests/methods/test_methods.py",)
    tree.follow(METHOD)
    assert tree.touched == 1
    shown = tree.python("-c", "from foveate.methods import Norm; import foveate; print(foveate.parse('norm:64').steps)")
    assert "Norm(" in shown
    # `pool`, too, has one option of two choices.
    ours, others = (
        [test for test in tree.collected(*tests) if re.search(rf"[\[-]{name}(\]|-options|:{{k}})", test)]
        for name in ("norm", "pool")
    )
    assert len(ours) == len(others) > 60
    passed = tree.run(*tests, "src/foveate/methods/norm.py", "-k", "norm and not renorm and not normal")
    assert passed > len(ours)
    with capsys.disabled():
        print(f"\na method: {tree.touched} file, {passed} tests")


@pytest.mark.slow
def test_a_family_is_two_files_and_passes_the_whole_contract(
    tree: Tree, capsys: pytest.CaptureFixture[str], in_full: bool
) -> None:
    every = ("tests/families", "tests/cost/test_flops.py")
    tests = (*(every if in_full else ("tests/families/test_contract.py",)), "-m", "not slow")
    tree.follow(FAMILY)
    assert tree.touched == 2
    assert "'vipllava'" in tree.python("-c", "from foveate.families import supported; print(supported())")
    collected = tree.collected(*tests)

    def tests_of(family: str) -> set[str]:
        marked = re.compile(rf"(?<=[\[-]){family}(?=[\]-])")
        return {marked.sub("FAMILY", test) for test in collected if marked.search(test)}

    # Families with companions or exact resizing have more; what all others have is the contract.
    contract = set.intersection(*(tests_of(name) for name in families.supported()))
    ours = tests_of("vipllava")
    assert ours >= contract
    assert len(contract) > (300 if in_full else 80)
    passed = tree.run(*tests, "-k", "vipllava", *([] if in_full else ["--share", "1/1"]))
    assert passed == len(ours) if in_full else passed > 40
    with capsys.disabled():
        print(f"\na family: {tree.touched} files, {passed} tests")


@pytest.mark.usefixtures("forgotten")
def test_all_code_of_the_guide_to_methods_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    future = "from __future__ import annotations\n"
    (tmp_path / "page_add_a_method.py").write_text(
        future + "\n\n".join(block.replace(future, "") for block in blocks(METHOD))
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    page = importlib.import_module("page_add_a_method")
    results = doctest.testmod(page, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted >= 8
    assert results.failed == 0
    assert str(spec.parse("norm:64:end=shortest")) == "norm:64:end=shortest"
    assert str(page.Unseen(keep=0.5).at(8, 16)) == "unseen:0.5@8,16"

    import test_contract
    import test_methods
    from rows import LLAVA

    for keep in (5, 1.0):
        test_methods.test_a_plan_is_what_it_says((6, 10), "norm_merge:{k}", keep)
    test_methods.test_half_precision("norm_merge:{k}", torch.float16)
    row = LLAVA
    model = row.model()
    for text in ("norm:6", "norm_merge:6@features", "plain:6"):
        test_contract.test_counts(row, model, text)
    test_contract.test_compress_is_apply(row, model, "plain:6")


def install(folder: Path, group: str, name: str, code: str) -> None:
    """Lay out an installed package that has an entry point."""
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / f"{name}.py").write_text(code)
    info = folder / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: my_package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = my_package.{name}\n")


@pytest.mark.parametrize(
    ("page", "group", "name"),
    [(METHOD, "foveate.methods", "norm"), (FAMILY, "foveate.families", "vipllava")],
    ids=["method", "family"],
)
@pytest.mark.usefixtures("forgotten")
def test_a_package_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, group: str, name: str
) -> None:
    (point,) = blocks(page, "toml")
    section, line = point.strip().splitlines()
    assert section == f'[project.entry-points."{group}"]'
    assert line == f'{name} = "my_package.{name}"'
    install(tmp_path, group, name, blocks(page)[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [module for module in sys.modules if module.split(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, module)
    for discovery in (methods.DISCOVERY, families.DISCOVERY):
        monkeypatch.setattr(discovery, "loaded", False)
    if group == "foveate.methods":
        assert methods.method_class("norm").__module__ == "my_package.norm"
        return
    assert "vipllava" in families.supported()
    config = type("Config", (), {"model_type": "vipllava"})
    assert families.family_class(config).__module__ == "my_package.vipllava"
