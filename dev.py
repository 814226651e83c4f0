#!/usr/bin/env python3
"""Set up foveate's own virtual environment and run something in it.

    python3 dev.py demo     ask the embedded model about a picture, then measure accuracy with fewer tokens
    python3 dev.py test     run the tests; what follows goes to pytest
    python3 dev.py lint     check style, types and the direction of imports
    python3 dev.py docs     build the documentation site into site/
    python3 dev.py check    lint, docs, then the tests with the newest versions of transformers (what CI runs)
    python3 dev.py versions run the contract suite with every supported transformers and make docs/versions.md;
                            versions that follow choose some; --share 3/12 is a twelfth of the suite; other words go to
                            pytest, and leave the page as it is unless they are -n and a number of processes
    python3 dev.py fuzz     run the corpus of bad input and thousands of drawn inputs; kinds that follow choose some
    python3 dev.py setup    only set up

Needs Python 3.11 or later with pip and venv, and nothing else. Packages are installed in the versions of
constraints.txt into .venv (FOVEATE_VENV names another place), once: a stamp file records what is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

try:
    import tomllib
except ImportError:
    sys.exit(f"foveate needs Python 3.11 or later; this is {sys.version.split()[0]}")

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("FOVEATE_VENV", ROOT / ".venv")).resolve()
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ALONE = ("torchvision", "timm")
"""Packages that only tests use, each installed without what it needs: their own needs would bring torch for CUDA."""

Command = tuple[str, ...]

QUESTION = "what colour is the large star ?"
DEMO: tuple[Command, ...] = (
    ("foveate", "ask", "examples/shapes.png", QUESTION, "--spec", "cluster:64", "--picture", "results/kept.png"),
    ("foveate", "bench", "--questions", "200", "--keep", "144,64,16", "--out", "results/demo"),
)
TEST: Command = ("pytest", "-q", "-n", "2", "--dist", "worksteal")
LINT: tuple[Command, ...] = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("pyright", "--pythonpath", str(PYTHON)),
    ("lint-imports",),
)
SITE: Command = ("mkdocs", "build", "--strict")
DEPENDENT: Command = (
    *("-m", "not slow", "--ignore-glob", "*_methods.py"),
    *("tests/families", "tests/engine", "tests/schedule", "tests/cost", "tests/voco", "tests/atp", "tests/embedded"),
    "tests/test_transformers_api.py",
)
"""Everything that depends on transformers, without what takes long or only repeats it for another method."""
CONTRACT: Command = (*TEST, *DEPENDENT)


def main() -> int:
    """Run what the command line asks for; return the exit code of the first command that fails."""
    wanted, more = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if wanted not in ("setup", "demo", "test", "lint", "docs", "check", "versions", "fuzz"):
        print((__doc__ or "").strip())
        return 0 if wanted in ("", "-h", "--help") else 2
    extras, groups = (("bench",), ()) if wanted == "demo" else (("bench", "report", "train"), ("test", "lint", "docs"))
    set_up(extras, groups)
    if wanted == "demo":
        (ROOT / "results").mkdir(exist_ok=True)
        return run_all(*DEMO)
    if wanted == "test":
        return run_all((*TEST, *more))
    if wanted == "lint":
        return run_all(*LINT)
    if wanted == "docs":
        return run_all(SITE)
    if wanted == "versions":
        every = transformers_versions("transformers")
        return versions([word for word in more if word in every] or every, [word for word in more if word not in every])
    if wanted == "fuzz":
        os.environ["FOVEATE_FUZZ_EXAMPLES"] = "500"
        return run_all(("python", "tests/fuzz/run.py", *more), ("pytest", "-q", "tests/fuzz/test_hypothesis.py"))
    return check() if wanted == "check" else 0


def check() -> int:
    """Run everything that must pass before a change lands.

    Each version of transformers gets a sixteenth of the contract suite's sample, another one: together, every test
    runs on an eighth of the families, and every family in an eighth of the tests. `dev.py test` runs the whole sample.
    What is not in DEPENDENT runs once, with the pinned version; `nox -s tests` runs everything with every version.
    """
    pinned, *others = every = transformers_versions("every_change")
    shares = 8 * len(every)
    if code := run_all(*LINT, SITE, (*TEST, "--share", f"1/{shares}")):
        return code
    for number, version in enumerate(others, start=2):
        print(f"\nwhat depends on transformers and is not slow, with {version} instead of {pinned}", flush=True)
        share = ("--share", f"{number}/{shares}", *DEPENDENT)
        if code := run_all((*TEST, *share), first_on_path=overlay(version)):
            return code
    return 0


def versions(chosen: Sequence[str], more: Sequence[str]) -> int:
    """Run the contract suite with some versions of transformers, and enter what came out in docs/versions.md.

    Args:
        chosen: versions of transformers.
        more: further arguments for pytest. With others than `-n` and `--share`, the page stays as it is.

    Returns:
        1 if a test failed, else 0.
    """
    failed = 0
    share = more[more.index("--share") + 1] if "--share" in more[:-1] else "1/1"
    for version in chosen:
        print(f"\nthe contract suite with transformers {version}", flush=True)
        folder, report = overlay(version), VENV / f"tests-{version}.xml"
        report.unlink(missing_ok=True)
        failed |= run_all((*CONTRACT, "--junitxml", str(report), *more), first_on_path=folder)
        if not report.exists():
            return 1
        if any(word not in ("-n", "--share", share) and not word.isdigit() for word in more):
            print("tests were chosen, so docs/versions.md stays as it is", flush=True)
            continue
        enter = ("python", "docs/make.py", "versions", "--take", str(report), f"{version}:{share}")
        if code := run_all(enter, first_on_path=folder):
            return code
    return int(bool(failed))


def run_all(*commands: Command, first_on_path: Path | None = None) -> int:
    """Run commands inside the environment until one fails; return its exit code, or 0."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(VENV)}
    environment["NO_MKDOCS_2_WARNING"] = "1"
    if first_on_path is not None:
        paths = [str(first_on_path), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    for command in commands:
        print("\n$ " + " ".join(command), flush=True)
        start = time.monotonic()
        program = shutil.which(command[0], path=environment["PATH"]) or command[0]
        code = subprocess.run([program, *command[1:]], cwd=ROOT, env=environment).returncode
        print(f"({command[0]}: {time.monotonic() - start:.0f} s)", flush=True)
        if code:
            return code
    return 0


def transformers_versions(which: str) -> list[str]:
    """Return the versions of transformers in pyproject.toml; the one of constraints.txt comes first.

    Args:
        which: "transformers" for all that are supported, "every_change" for those that each change is tested with.
    """
    return sorted(PROJECT["tool"]["foveate"][which], key=lambda version: version != pins()["transformers"])


def pins() -> dict[str, str]:
    """Return the versions of constraints.txt by package."""
    return dict(line.split("==") for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if "==" in line)


def overlay(version: str) -> Path:
    """Return a folder that holds one version of transformers and nothing else, to put in front of PYTHONPATH."""
    folder = VENV / f"transformers-{version}"
    if not folder.exists():
        install_alone(PYTHON, "transformers", version, folder)
    return folder


def install_alone(python: Path, package: str, version: str, folder: Path) -> None:
    """Install one package without what it needs into a folder of its own, in place of what the folder held."""
    unfinished = folder.with_name(folder.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [*pip(python), "install", "--quiet", "--no-deps", "--target", str(unfinished), f"{package}=={version}"]
    if subprocess.run(command).returncode:
        sys.exit(f"pip could not install {package} {version}; its message above says why")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def pip(python: Path) -> list[str]:
    """Return an environment's pip as the beginning of a command."""
    return [str(python), "-m", "pip", "--disable-pip-version-check"]


def set_up(extras: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Create the virtual environment and install what is missing."""
    needs = [need for group in groups for need in PROJECT["dependency-groups"][group]]
    stamp = VENV / "foveate.json"
    state = {
        "files": hashlib.sha256(CONSTRAINTS.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest(),
        "root": str(ROOT),
    }
    have = json.loads(stamp.read_text()) if stamp.exists() else {}
    wanted = sorted({*extras, *groups} | (set(have.get("parts", ())) if have.get("files") == state["files"] else set()))
    if have == {**state, "parts": wanted}:
        return
    print(f"setting up {VENV}", flush=True)
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    install = [*pip(PYTHON), "install", "--quiet", "--constraint", str(CONSTRAINTS)]
    refuse_cuda_packages(PYTHON)
    optional = PROJECT["project"]["optional-dependencies"]
    editable = f"{ROOT}[{','.join(extra for extra in wanted if extra in optional)}]"
    for arguments in (["torch"], ["--editable", editable, *needs]):
        if subprocess.run([*install, *arguments]).returncode:
            sys.exit("pip could not install the packages; its message above says why")
    if "test" in wanted:
        # Only tests look into these folders: see tests/conftest.py.
        for package in ALONE:
            install_alone(PYTHON, package, pins()[package], VENV / package)
    unfinished = stamp.with_name(stamp.name + ".partial")
    unfinished.write_text(json.dumps({**state, "parts": wanted}))
    unfinished.replace(stamp)


def refuse_cuda_packages(python: Path) -> None:
    """Stop before pip downloads gigabytes of CUDA packages that a machine without an NVIDIA GPU doesn't need."""
    if shutil.which("nvidia-smi") or os.environ.get("FOVEATE_ANY_TORCH"):
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [*pip(python), "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        if subprocess.run([*command, "--constraint", str(CONSTRAINTS), "torch"]).returncode:
            sys.exit("pip found no torch of the version in constraints.txt; its message above says why")
        names = [each["metadata"]["name"] for each in json.loads(report.read_text())["install"]]
    if any(name.lower().startswith(("nvidia", "cuda")) for name in names):
        sys.exit(
            "This machine has no NVIDIA GPU, but pip would download torch for CUDA: several gigabytes.\n"
            "To get the small build for CPUs instead, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds\n"
            '(PyTorch\'s page "Get Started" shows its address: choose Pip and CPU), then run this command again.\n'
            "To install the large build anyway, set FOVEATE_ANY_TORCH=1."
        )


if __name__ == "__main__":
    sys.exit(main())
