#!/usr/bin/env python3
"""Set foveate up in a virtual environment of its own and run something in it.

    python3 dev.py demo     ask the embedded model about a picture, then measure what fewer tokens cost
    python3 dev.py test     run the tests
    python3 dev.py check    lint, types, import contract, then the tests (what CI runs)
    python3 dev.py setup    only set up

Needs Python 3.11 or later with pip and venv, and nothing else. Versions are those of constraints.txt. The environment
is made in .venv (another place: FOVEATE_VENV), and made once: a stamp tells when it is up to date.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
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


def main() -> int:
    """Run what was asked for; the exit code is that of the first part that fails."""
    parts = {"setup": (), "demo": DEMO, "test": TEST, "check": CHECK + TEST}
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    if wanted not in parts:
        print(__doc__.strip())
        return 0 if wanted in ("", "-h", "--help") else 2
    extras, groups = (("bench",), ()) if wanted == "demo" else (("bench", "train"), ("test", "lint"))
    set_up(extras, groups)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(VENV)}
    if wanted == "demo":
        (ROOT / "results").mkdir(exist_ok=True)
    for command in parts[wanted]:
        print("\n$ " + " ".join(command), flush=True)
        program = shutil.which(command[0], path=environment["PATH"]) or command[0]
        code = subprocess.run([program, *command[1:], *sys.argv[2:]], cwd=ROOT, env=environment).returncode
        if code:
            return code
    return 0


def set_up(extras: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Make the virtual environment, unless it is there and up to date."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = [need for group in groups for need in project["dependency-groups"][group]]
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
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--constraint", str(CONSTRAINTS)]
    refuse_cuda_packages(pip)
    editable = f"{ROOT}[{','.join(extra for extra in wanted if extra in project['project']['optional-dependencies'])}]"
    for arguments in (["torch"], ["--editable", editable, *needs]):
        if subprocess.run([*install, *arguments]).returncode:
            sys.exit("the set-up failed; pip's message above tells why")
    stamp.write_text(json.dumps({**state, "parts": wanted}))


def refuse_cuda_packages(pip: list[str]) -> None:
    """Stop before gigabytes of CUDA packages come to a machine that has no use for them."""
    if shutil.which("nvidia-smi") or os.environ.get("FOVEATE_ANY_TORCH"):
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        if subprocess.run([*command, "--constraint", str(CONSTRAINTS), "torch"]).returncode:
            sys.exit("pip finds no torch of the version in constraints.txt; its message above tells why")
        names = [each["metadata"]["name"] for each in json.loads(report.read_text())["install"]]
    if any(name.lower().startswith(("nvidia", "cuda")) for name in names):
        sys.exit(
            "This machine has no NVIDIA GPU, and pip would fetch the CUDA build of torch: several gigabytes.\n"
            'Point pip at the CPU builds first (the command for pip is on PyTorch\'s own page "Get Started"; put its\n'
            "index into PIP_EXTRA_INDEX_URL) and run this again, or take the large build with FOVEATE_ANY_TORCH=1."
        )


QUESTION = "what colour is the large star ?"
DEMO = (
    ("foveate", "ask", "examples/shapes.png", QUESTION, "--spec", "cluster:64", "--picture", "results/kept.png"),
    ("foveate", "bench", "--questions", "200", "--keep", "144,64,16", "--out", "results/demo"),
)
TEST = (("pytest", "-q", "-n", "2"),)
CHECK = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("pyright", "--pythonpath", str(PYTHON)),
    ("lint-imports",),
)

if __name__ == "__main__":
    sys.exit(main())
