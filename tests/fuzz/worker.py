"""Runs cases in one process: reads them as JSON lines, and writes what became of each.

Commands run in this process on models that are loaded once, but for cases that need a process of their own.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import hashlib
import inspect
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import builders  # noqa: E402
from cases import Case  # noqa: E402

SECONDS = 60
"""How long a case may take."""
READ_WHOLE = 2**30
"""Bytes of a file that is compared by its content; of a larger one, sparse ones among them, size and time are."""

MEMORY = 12 * 2**30
"""Bytes of addresses that this process and those that it starts may use."""


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        id: of the case.
        status: "ok", or what is wrong: "traceback", "silent" (bad input was taken, or a value is wrong), "refused"
            (good input was refused), "slow", "crash", "files" (left behind or changed), "lines" (the error is not one
            line, or stdout isn't empty), "words" (the error doesn't say what is expected), "late".
        worked: whether the command ended with code 0.
        seconds: how long it took.
        detail: for people.
    """

    id: str
    status: str
    worked: bool
    seconds: float
    detail: str = ""


@dataclass
class Done:
    """What a command or a call left."""

    code: int | None
    stdout: str = ""
    stderr: str = ""
    error: BaseException | None = None
    value: Any = None
    loaded: bool = False


def main() -> None:
    """Serve cases until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    home = Path(os.environ["FUZZ_HOME"])
    os.environ.update(HOME=str(home), HF_HUB_OFFLINE="1", TERM="dumb", XDG_CONFIG_HOME=str(home / ".config"))
    os.environ.pop("COLUMNS", None)
    builders.HOME = home
    for line in sys.stdin:
        answers.write(json.dumps(asdict(outcome(Case(**json.loads(line))))) + "\n")
        answers.flush()


def outcome(case: Case) -> Outcome:
    """Run one case in a new folder."""
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=builders.HOME)).resolve()
    back = Path.cwd()
    begin = time.monotonic()
    try:
        os.chdir(folder)
        for path, made in case.make.items():
            _make(Path(path), made)
        before = _state(folder)
        begin = time.monotonic()
        for _ in range(case.again):
            done = _done(case)
        seconds = time.monotonic() - begin
        status, detail = _judged(case, done, folder, before)
        if status == "ok" and seconds > SECONDS:
            status = "slow"
        return Outcome(case.id, status, done.code == 0, seconds, detail[:2000])
    except Exception:
        return Outcome(case.id, "harness", False, time.monotonic() - begin, traceback.format_exc()[-2000:])
    finally:
        os.chdir(back)
        _make_removable(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _make(path: Path, made: Any) -> None:
    """Call a builder; a last mapping is its keywords, unless the builder takes any number of values."""
    name, *arguments = made if isinstance(made, list) else [made]
    builder = getattr(builders, name)
    any_number = any(each.kind is each.VAR_POSITIONAL for each in inspect.signature(builder).parameters.values())
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) and not any_number else {}
    builder(path, *arguments, **keywords)


def _make_removable(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.chmod(0o777)


def _done(case: Case) -> Done:
    with _environment(case.env):
        if case.process:
            return _process(case)
        return _call(case) if case.call else _command(case)


@contextlib.contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    before = dict(os.environ)
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value.replace("{tmp}", str(Path.cwd()))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# Commands


LOADED: list[str] = []
"""The models that were loaded since the case began."""


@cache
def _embedded() -> tuple[Any, Any]:
    from foveate.embedded import reference

    return reference()


@cache
def _runner() -> Any:
    """Load commands; the embedded model is loaded once for all cases."""
    import foveate.loading as module

    whole, processors = module.load_model, module.load_processor

    def load_model(model: Any = None, **options: Any) -> Any:
        LOADED.append(str(model))
        # What a command or a call asks for beyond the model is checked where it is loaded.
        plain = model is None and all(value is None for value in options.values())
        return _embedded()[0] if plain else whole(model, **options)

    def load_processor(model: Any = None, **options: Any) -> Any:
        return _embedded()[1] if model is None else processors(model, **options)

    module.load_model, module.load_processor = load_model, load_processor
    from typer.testing import CliRunner

    return CliRunner()


def _command(case: Case) -> Done:
    import torch

    from foveate.commands import app

    runner = _runner()
    LOADED.clear()
    threads, seed = torch.get_num_threads(), torch.random.get_rng_state()
    words = [word.replace("{tmp}", str(Path.cwd())) for word in case.run]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = runner.invoke(app, words)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.random.set_rng_state(seed)
    error = None if isinstance(result.exception, SystemExit | None) else result.exception
    return Done(result.exit_code, result.stdout, result.stderr, error, loaded=bool(LOADED))


_DROP = 24
"""PR_CAPBSET_DROP of prctl."""


def _process(case: Case) -> Done:
    command = [sys.executable, "-m", "foveate", *(word.replace("{tmp}", str(Path.cwd())) for word in case.run)]
    if case.call:
        command[1:3] = ["-c", f"import foveate, torch; print({case.call})"]

    libc = ctypes.CDLL(None)

    def prepare() -> None:
        for name, most in case.limits.items():
            kind = getattr(resource, f"RLIMIT_{name.upper()}")
            resource.setrlimit(kind, (most, most))
        if case.plain_user:
            # Access rights count for root, too, without these two capabilities (override, and read and search).
            for capability in (1, 2):
                libc.prctl(_DROP, capability, 0, 0, 0)
        if case.stdout == "closed":
            os.close(1)

    out: Any = subprocess.PIPE
    if case.stdout == "full":
        out = Path("/dev/full").open("wb")  # noqa: SIM115
    if case.stdout == "broken pipe":
        reading, writing = os.pipe()
        os.close(reading)
        out = writing
    try:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=SECONDS, preexec_fn=prepare
        )
    except subprocess.TimeoutExpired:
        return Done(None, stderr=f"more than {SECONDS} seconds")
    finally:
        if case.stdout == "broken pipe":
            os.close(out)
    stdout, stderr = (part.decode("utf-8", "replace") for part in (done.stdout or b"", done.stderr))
    error = RuntimeError(stderr) if "Traceback" in stderr or done.returncode not in (0, 2) else None
    return Done(done.returncode, stdout, stderr, error)


# Calls of public functions


class _Names(dict[str, Any]):
    """What a call may use; models are loaded when they are named."""

    def __missing__(self, name: str) -> Any:
        import torch

        import foveate

        if name in ("model", "processor"):
            self["model"], self["processor"] = _embedded()
            return self[name]
        if name == "inputs":
            return _inputs()
        if name == "torch":
            return torch
        if name == "tmp":
            return Path.cwd()
        if name == "Path":
            return Path
        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name in foveate.__all__:
            return getattr(foveate, name)
        import importlib

        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
        if hasattr(builders, name):
            return getattr(builders, name)
        raise NameError(name)


def _inputs() -> dict[str, Any]:
    from foveate.scenes import scene

    processor = _embedded()[1]
    shown = scene(3)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": shown.questions[0].text}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    return dict(processor(images=[shown.image], text=prompt, return_tensors="pt"))


def _call(case: Case) -> Done:
    from foveate.errors import FoveateError

    names = _Names()
    stdout = io.StringIO()
    steps = (case.call,) if isinstance(case.call, str) else case.call
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(stdout):
            warnings.simplefilter("ignore")
            value = None
            for step in steps:
                value = eval(step, names)
                names["_"] = value
    except FoveateError as error:
        return Done(2, stderr=str(error))
    except Exception as error:
        return Done(1, error=error)
    finally:
        _clean_model()
    return Done(0, stdout.getvalue(), value=value)


def _clean_model() -> None:
    """Close what a failed call left on the embedded model."""
    if _embedded.cache_info().currsize:
        import gc

        gc.collect()


# Judging


def _judged(case: Case, done: Done, folder: Path, before: dict[str, str]) -> tuple[str, str]:
    shown = f"exit {done.code}\nstdout: {done.stdout[-500:]}\nstderr: {done.stderr[-900:]}"
    if done.code is None:
        return "slow", shown
    if done.error is not None:
        lines = traceback.format_exception_only(done.error)
        where = traceback.extract_tb(done.error.__traceback__)
        ours = [each for each in where if "/foveate/" in each.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        return "traceback", f"{''.join(lines).strip()[-900:]}  [{place}]"
    if "Traceback" in done.stderr:
        return "traceback", shown
    if done.code not in (0, 2):
        return "traceback", shown
    if done.code == 0 and case.expect == "refused":
        return "silent", shown + f"\nvalue: {done.value!r}"[:300]
    if done.code == 2 and case.expect == "works":
        return "refused", shown
    after = _state(folder)
    left = _left(case, done, before, after)
    if left:
        return "files", f"{left}\n{shown}"
    if done.code == 2:
        text = done.stderr.strip()
        if not case.call and done.stdout:
            return "lines", shown
        if not one_line(text):
            return "lines", shown
        if case.expect == "refused" and case.words and case.words not in " ".join(text.split()):
            return "words", shown
        if done.loaded and not case.late and case.expect == "refused":
            return "late", shown
        return "ok", text
    if case.words and case.words not in done.stdout:
        return "silent", f"stdout does not hold {case.words!r}\n{shown}"
    if case.value:
        return _checked(case, done, shown)
    return "ok", done.stdout[-200:]


_PROGRESS = re.compile(r"^Loading |^Failed to load |^warning: |^step \d+/|\d:\d\d:\d\d (so far|left)")
"""Lines that are no error: warnings, signs of life, and what a package prints when it is imported."""


def one_line(text: str) -> bool:
    """One line; two where the second marks a place in the first; or typer's box under a line of usage."""
    if not text:
        return False
    lines = [line for line in text.split("\n") if not _PROGRESS.search(line)]
    if len(lines) == 1:
        return True
    if lines[0].lower().startswith("usage:"):
        return len(lines) <= 12
    return len(lines) <= 3 and "^" in lines[-1]


def _checked(case: Case, done: Done, shown: str) -> tuple[str, str]:
    value = done.value
    if not case.call:
        with contextlib.suppress(ValueError):
            value = json.loads(done.stdout)
    names = {"out": value, "text": done.stdout, "err": done.stderr, "read": lambda path: Path(path).read_text("utf-8")}
    names |= {"Path": Path, "json": json, "builders": builders, "SimpleNamespace": SimpleNamespace}
    try:
        right = eval(case.value, names)
    except Exception as error:
        return "silent", f"{case.value}: {error!r}\n{shown}"
    return ("ok", "") if right else ("silent", f"{case.value} is false\n{shown}\nvalue: {value!r}"[:2000])


def _state(folder: Path) -> dict[str, str]:
    """Return what a folder holds: per path, what would change if it were written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link {path.readlink()}"
        elif path.is_dir():
            found[name] = "folder"
        elif path.is_file():
            status = path.stat()
            if status.st_size > READ_WHOLE:
                found[name] = f"{status.st_size} bytes, of {status.st_mtime_ns}"
                continue
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            found[name] = "special"
    return found


def _left(case: Case, done: Done, before: dict[str, str], after: dict[str, str]) -> str:
    """Say which files were left or changed that should not be."""
    new = [name for name in after if after[name] != before.get(name)]
    gone = [name for name in before if name not in after]
    allowed = [name for name in new if not any(name == own or name.startswith(own + "/") for own in case.writes)]
    if done.code == 2 and (allowed or gone):
        return f"left: {allowed[:5]}, gone: {gone[:5]}"
    partial = [name for name in new if ".partial" in name and name in allowed]
    return f"half written: {partial[:5]}" if done.code == 0 and partial else ""


if __name__ == "__main__":
    main()
