"""The pages are true: what they show runs, what is made is up to date, and their links lead somewhere."""

import ast
import doctest
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import foveate
from foveate import families, methods, registry, spec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def blocks(page: str, language: str = "python") -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def module_of(path: Path, name: str) -> ModuleType:
    loader = importlib.util.spec_from_file_location(name, path)
    assert loader is not None
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    loader.loader.exec_module(module)
    return module


def run(page: str, folder: Path) -> Any:
    """All code of a page as one module."""
    future = "from __future__ import annotations\n"
    name = "page_" + page.removesuffix(".md").replace("-", "_")
    path = folder / f"{name}.py"
    path.write_text(future + "\n\n".join(block.replace(future, "") for block in blocks(page)))
    return module_of(path, name)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page registers is forgotten after its test."""
    methods.method_names()
    families.supported()
    for folder in ("families", "methods"):
        monkeypatch.syspath_prepend(str(ROOT / "tests" / folder))
    registered = [(names, dict(names)) for names in (registry.METHODS, registry.ALIASES, families.registry.FAMILIES)]
    yield
    for names, before in registered:
        names.clear()
        names.update(before)


def test_a_page_says_what_its_family_is() -> None:
    page = (DOCS / "families" / "qwen3_vl.md").read_text()
    assert page.startswith("# Qwen3-VL\n\nQwen3-VL: full attention")
    for part in (
        "DeepStack adds features of earlier encoder layers",
        "There is no [CLS]",
        "| shrinking an image | `exact`, `enlarge`. Join",
    ):
        assert part in page
    rows = (DOCS / "support.md").read_text()
    assert re.search(r"^\| \[`cls`\]\(methods/cls.md\) (\| yes ){6}(\| no \(\d+\) ){2}\|$", rows, re.MULTILINE)
    assert re.search(r"^\| \[`cluster`\]\(methods/cluster.md\) (\| yes ){8}\|$", rows, re.MULTILINE)


def test_a_page_says_what_its_method_is() -> None:
    page = (DOCS / "methods" / "prumerge.md").read_text()
    assert page.startswith("# prumerge\n\nKeep what stands out")
    for part in ("**Budget:** `auto` looks", "| `neighbours` | `32` | a whole number |", "```pycon\n>>> given"):
        assert part in page
    assert "| also called | `fastervlm` |" in (DOCS / "methods" / "cls.md").read_text()


@pytest.mark.usefixtures("forgotten")
def test_add_a_method(tmp_path: Path) -> None:
    page = run("add-a-method.md", tmp_path)
    results = doctest.testmod(page, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted >= 8
    assert results.failed == 0
    assert str(spec.parse("norm:64:end=shortest")) == "norm:64:end=shortest"

    import rows
    import test_contract
    import test_methods

    for name in ("norm", "norm_merge"):
        for keep in (5, 1.0):
            test_methods.test_a_plan_is_what_it_says((6, 10), name + ":{k}", keep)
        test_methods.test_half_precision(name + ":{k}", torch.float16)
    row = rows.ROWS[0]
    model = row.model()
    for text in ("norm:6", "norm_merge:6@features", "plain:6"):
        test_contract.test_counts(row, model, text)
    test_contract.test_compress_is_apply(row, model, "plain:6")


@pytest.mark.usefixtures("forgotten")
def test_a_method_in_a_package_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (point,) = blocks("add-a-method.md", "toml")
    section, line = point.strip().splitlines()
    assert section == '[project.entry-points."foveate.methods"]'
    assert line == 'norm = "my_package.norm"'
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "norm.py").write_text(blocks("add-a-method.md")[0])
    (tmp_path / "my_package-1.dist-info").mkdir()
    (tmp_path / "my_package-1.dist-info" / "METADATA").write_text("Name: my_package\nVersion: 1\n")
    (tmp_path / "my_package-1.dist-info" / "entry_points.txt").write_text("[foveate.methods]\nnorm = my_package.norm\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(methods.DISCOVERY, "loaded", False)
    assert methods.method_class("norm").__module__ == "my_package.norm"


@pytest.mark.usefixtures("forgotten")
def test_add_a_family(tmp_path: Path) -> None:
    import test_contract
    import test_resize
    import test_signals

    page = run("add-a-family.md", tmp_path)
    families.register_family(page.VipLlava)
    row = page.ROW
    model = row.model()
    test_contract.test_swapping_the_image_changes_the_logits(row, model)
    test_contract.test_keeping_everything_is_the_untouched_model(row, model, "cls:1.0:positions=keep@features")
    test_contract.test_dropping_is_masking(row, model, "cls:6")
    test_contract.test_positions_made_here_are_the_models_own(row, model)
    test_contract.test_a_batch_is_its_samples_alone(row, model, "cluster:6")
    test_contract.test_compress_is_apply(row, model, "cluster:6@features")
    test_signals.test_attention_is_the_eager_models(row, -2)
    test_signals.test_keys_are_the_layers_own(row, "mean")
    test_resize.test_features_are_those_of_the_shrunk_picture(row, model)
    test_contract.test_beams(row, model, test_contract.BATCH)


@pytest.mark.usefixtures("forgotten")
def test_a_family_in_a_package_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (point,) = blocks("add-a-family.md", "toml")
    section, line = point.strip().splitlines()
    assert section == '[project.entry-points."foveate.families"]'
    assert line == 'vipllava = "my_package.vipllava"'
    code = blocks("add-a-family.md")[0]
    code = code.replace("class VipLlava", "@register_family\nclass VipLlava")
    code = code.replace("import Family\n", "import Family\nfrom foveate.families import register_family\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "vipllava.py").write_text(code)
    (tmp_path / "my_package-1.dist-info").mkdir()
    (tmp_path / "my_package-1.dist-info" / "METADATA").write_text("Name: my_package\nVersion: 1\n")
    (tmp_path / "my_package-1.dist-info" / "entry_points.txt").write_text(
        "[foveate.families]\nvipllava = my_package.vipllava\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(families.DISCOVERY, "loaded", False)
    assert "vipllava" in families.supported()
    config = type("Config", (), {"model_type": "vipllava"})
    assert families.family_class(config).__module__ == "my_package.vipllava"


def test_the_signatures_in_the_design_are_the_real_ones() -> None:
    """Every field and every argument that the page shows, in its order; the page may leave out whole members."""
    shown = 0
    for block in blocks("design.md"):
        for node in ast.parse(block).body:
            if not isinstance(node, ast.ClassDef):
                continue
            real = getattr(foveate, node.name)
            members = {name for each in real.__mro__ for name in (*vars(each), *inspect.get_annotations(each))}
            for member in node.body:
                if isinstance(member, ast.AnnAssign):
                    assert isinstance(member.target, ast.Name)
                    assert member.target.id in members, f"{node.name}.{member.target.id}"
                    shown += 1
                elif isinstance(member, ast.FunctionDef):
                    assert member.name in members, f"{node.name}.{member.name}"
                    written = [each.arg for each in (*member.args.args, *member.args.kwonlyargs)]
                    value = inspect.getattr_static(real, member.name)
                    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                    assert written == list(inspect.signature(value).parameters), f"{node.name}.{member.name}"
                    shown += 1
    assert shown > 30


def test_the_code_in_the_design_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in blocks("design.md") if "foveate.apply(" in block)
    exec(compile(code, "design.md", "exec"), {"__name__": "page"})
    assert "576 -> 64 visual tokens" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:src|tests|docs|examples|recipes)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or path in {
            "src/foveate/methods/norm.py",
            "src/foveate/families/vipllava.py",
        }, path
    for name in re.findall(r"`(test_\w+)`", text):
        sources = (each.read_text() for each in (ROOT / "tests").rglob("test_*.py"))
        assert any(f"def {name}(" in source for source in sources), name
