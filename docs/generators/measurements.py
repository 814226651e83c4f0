"""Which files of docs/measured depend on the embedded models, what makes them, and for which models they were made."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from foveate.files import write_json
from generators.folders import MEASURED

ROOT: Final = Path(__file__).parents[2]
EMBEDDED: Final = ROOT / "src" / "foveate" / "embedded"
MADE_FOR: Final = MEASURED / "models.json"
"""For each file the fingerprints of the models that it was made for."""
DIGITS: Final = 16


@dataclass(frozen=True)
class Measurement:
    """What makes one file of docs/measured.

    Attributes:
        file: its name.
        models: folders of src/foveate/embedded that it measures.
        pages: the generators that read it.
        commands: with {work} for the folder that they work in.
        take: the generator that takes it from a results folder of `foveate bench`, and what that calls it.
        ships: folders of what was trained, and which folders of src/foveate/embedded take it.
    """

    file: str
    models: tuple[str, ...]
    pages: tuple[str, ...]
    commands: tuple[str, ...] = ()
    take: tuple[str, ...] = ()
    ships: Mapping[str, str] = field(default_factory=dict)

    def lines(self, work: str) -> list[str]:
        """Return the commands, which write what they keep to a folder `work`."""
        if not self.take:
            return [command.replace("{work}", work) for command in self.commands]
        words = shlex.split(json.loads((MEASURED / self.file).read_text(encoding="utf-8"))["command"])
        results = f"{work}/{Path(self.file).stem}"
        words[words.index("--out") + 1] = results
        generator, name = self.take
        return [shlex.join(words), f"python docs/make.py {generator} --take {results} {name}"]

    @property
    def now(self) -> dict[str, str]:
        """The fingerprints of its models as they are."""
        return {model: fingerprint(EMBEDDED / model) for model in self.models}

    @property
    def current(self) -> bool:
        """Whether it was made for the models as they are."""
        return _made_for().get(self.file) == self.now


def measurements(pages: Iterable[str] = ()) -> list[Measurement]:
    """Return what depends on the embedded models, in an order in which it can be made; for some pages or for all."""
    given = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["measurement"]
    lists = ("models", "pages", "commands", "take")
    every = [Measurement(**{key: tuple(each[key]) if key in lists else each[key] for key in each}) for each in given]
    chosen = {*pages}
    return [each for each in every if not chosen or chosen & {*each.pages}]


def fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits of the weights in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:DIGITS]


def stale(pages: Iterable[str] = ()) -> list[str]:
    """Return the files that were made for other models than the embedded ones."""
    return [each.file for each in measurements(pages) if not each.current]


def measure(pages: Sequence[str] = (), dry: bool = False) -> int:
    """Run the commands of all that is stale; what is interrupted goes on where it was.

    Args:
        pages: names of generators; all by default.
        dry: print the commands only.

    Returns:
        The exit code of the command that failed; 0.
    """
    for each in measurements(pages):
        if each.current and not dry:
            print(f"{each.file}: made for these models", flush=True)
            continue
        key = hashlib.sha256(json.dumps(each.now, sort_keys=True).encode()).hexdigest()[:DIGITS]
        work = f"runs/measure/{key}"
        print(f"{each.file}:{' made for these models' if each.current else ''}", flush=True)
        for line in each.lines(work):
            print(f"  $ {line}", flush=True)
            if not dry and (code := _run(line)):
                return code
        if dry:
            continue
        if (ROOT / work / each.file).is_file():
            shutil.copyfile(ROOT / work / each.file, MEASURED / each.file)
        for trained, folder in each.ships.items():
            shutil.copytree(trained.replace("{work}", str(ROOT / work)), EMBEDDED / folder, dirs_exist_ok=True)
        record(each)
    return 0


def record(made: Measurement) -> None:
    """Note that a file was made for the embedded models as they are."""
    write_json(MADE_FOR, dict(sorted({**_made_for(), made.file: made.now}.items())))


def _made_for() -> dict[str, dict[str, str]]:
    return json.loads(MADE_FOR.read_text(encoding="utf-8")) if MADE_FOR.exists() else {}


def _run(line: str) -> int:
    program, *words = shlex.split(line)
    # The Python that runs this, and the commands that lie beside it.
    beside = Path(sys.executable).parent
    program = sys.executable if program == "python" else shutil.which(program, path=str(beside)) or program
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run([program, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}).returncode
