"""Facts that several files of the project must state alike: versions, public names, pages of the site."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import yaml

import foveate
from foveate import transformers_api

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TRANSFORMERS = PROJECT["tool"]["foveate"]["transformers"]
VLLM = PROJECT["tool"]["foveate"]["vllm"]


def script(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_one_version() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == foveate.__version__
    first = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == foveate.__version__


def test_the_tested_versions_of_transformers() -> None:
    tested = [tuple(map(int, version.split(".")[:2])) for version in TRANSFORMERS]
    assert (min(tested), max(tested)) == transformers_api.TESTED
    assert tested == [(5, minor) for minor in range(tested[0][1], tested[-1][1] + 1)]
    (need,) = (each for each in PROJECT["project"]["dependencies"] if each.startswith("transformers"))
    assert need == "transformers>=" + ".".join(map(str, transformers_api.OLDEST))


def test_a_tested_transformers_installs_beside_each_vllm() -> None:
    (need,) = PROJECT["project"]["optional-dependencies"]["vllm"]
    below = {tuple(map(int, name.split("."))): tuple(map(int, end.split("."))) for name, end in VLLM.items()}
    first, last = min(below), max(below)
    assert need == f"vllm>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"
    tested = [tuple(map(int, version.split(".")[:2])) for version in TRANSFORMERS]
    for end in below.values():
        assert max(version for version in tested if version < end) == (end[0], end[1] - 1)


def test_public_ci_has_the_same_versions() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert matrix["transformers"] == TRANSFORMERS
    named = (each.rpartition(" ")[2] for each in PROJECT["project"]["classifiers"] if "Python :: 3." in each)
    assert matrix["python"] == list(named)
    assert [step["run"] for job in ("lint", "docs") for step in jobs[job]["steps"] if "run" in step] == [
        "python3 dev.py lint",
        "python3 dev.py docs",
    ]


def test_dev_begins_with_the_pinned_transformers_and_tests_the_others() -> None:
    dev = script("dev")
    (pinned,) = re.findall(r"^transformers==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert dev.transformers_versions("every_change")[0] == pinned
    assert {*dev.transformers_versions("every_change")} <= {*TRANSFORMERS}
    assert sorted(dev.transformers_versions("transformers")) == sorted(TRANSFORMERS)


def test_every_development_package_is_pinned() -> None:
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {name.lower().replace("_", "-") for name in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    # vLLM names the versions of all that it needs itself, and Gradio takes no Pillow from 13 on, which is pinned.
    others = (extras[name] for name in extras if name not in ("vllm", "play"))
    groups = [*PROJECT["dependency-groups"].values(), *others]
    for need in (each for group in (*groups, PROJECT["project"]["dependencies"]) for each in group):
        name = re.match(r"[\w.-]+", need)
        assert name is not None
        assert name[0].lower().replace("_", "-") in pinned, need


def test_what_is_installed_alone_is_pinned_and_nobody_needs_it() -> None:
    """As a need, it would replace torch by the build for CUDA."""
    dev = script("dev")
    assert set(dev.ALONE) == {"torchvision", "timm"} <= dev.pins().keys()
    assert not any(package in (ROOT / "pyproject.toml").read_text() for package in dev.ALONE)


_OPENS = re.compile(
    r"(?<![\w.])(?<!def )open\(|\.(?:(?:read|write)_(?:text|bytes)|mkdir|unlink|touch|rmdir|symlink_to)\("
    r"|\bjson\.load\(|\b(?:yaml|tomllib)\.\w|\b(?:safe_open|load_file|save_file)\(|\bshutil\.(?!get_terminal_size)\w"
    r"|\btempfile\.\w|\btorch\.(?:load|save)\(|\bfcntl\b"
)
"""What reads, writes, makes or locks files."""


def test_one_package_opens_files() -> None:
    """It knows what systems, links, encodings and full disks do; what is opened elsewhere forgets some of it."""
    opened = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        if path.parent.name != "files" and path.name != "streams.py"  # streams that are closed become /dev/null
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        if _OPENS.search(line.partition("#")[0]) and ">>>" not in line
    ]
    assert not opened, "use a function of foveate.files"


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    missing = set(foveate.__all__) - set(re.findall(r"^::: foveate\.(?:\w+\.)*(\w+)$", text, re.MULTILINE))
    assert not missing, "add a line `::: foveate.NAME` to a page in docs/api"


def test_templates_are_forms() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= form.keys(), path
