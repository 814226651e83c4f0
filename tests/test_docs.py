"""The pages are true: what they show runs, what is made is up to date, and their links lead somewhere."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch

import foveate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def blocks(page: str, language: str = "python") -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
    assert re.search(r"^\| \[`cls`\]\(methods/cls.md\) (\| (yes|no \(\d+\)) )+\| no \(\d+\) \|$", rows, re.MULTILINE)
    assert re.search(r"^\| \[`cluster`\]\(methods/cluster.md\) (\| yes )+\|$", rows, re.MULTILINE)


def test_a_page_says_what_its_method_is() -> None:
    page = (DOCS / "methods" / "prumerge.md").read_text()
    assert page.startswith("# prumerge\n\nKeep what stands out")
    for part in ("**Budget:** `auto` looks", "| `neighbours` | `32` | a whole number |", "```pycon\n>>> given"):
        assert part in page
    assert "| also called | `fastervlm` |" in (DOCS / "methods" / "cls.md").read_text()


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


def test_the_layers_in_the_design_are_the_checked_ones() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert "```text\n" + "\n".join(layers) + "\n```" in (DOCS / "design.md").read_text()


def test_every_file_and_folder_of_the_package_is_in_the_tree_of_the_design() -> None:
    page = (DOCS / "design.md").read_text()
    tree = page[page.index("```text\nsrc/foveate/") :].split("```")[1]
    package = ROOT / "src" / "foveate"
    names = {f"{path.name}/" if path.is_dir() else path.name for path in package.iterdir()}
    missing = {name for name in names if name not in tree} - {"__pycache__/", "__main__.py", "py.typed"}
    assert not missing


def test_the_questions_on_the_page_about_measuring_can_be_read(tmp_path: Path) -> None:
    from PIL import Image

    from foveate.bench.tasks import jsonl

    shown = blocks("measure.md", "json")[0]
    (tmp_path / "scans").mkdir()
    for name in ("photo.jpg", "scans/bill.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    (tmp_path / "questions.jsonl").write_text(shown + "\n\n")
    task = jsonl(tmp_path / "questions.jsonl")
    assert task.questions == len(shown.splitlines()) == 2
    assert task.skills == ("counting",)


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
        written_by_the_guides = {
            "src/foveate/methods/norm.py",
            "src/foveate/families/vipllava.py",
            "tests/families/rows/vipllava.py",
        }
        assert (ROOT / path).exists() or path in written_by_the_guides, path
    for name in re.findall(r"`(test_\w+)`", text):
        sources = (each.read_text() for each in (ROOT / "tests").rglob("test_*.py"))
        assert any(f"def {name}(" in source for source in sources), name
