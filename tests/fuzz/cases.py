"""The corpus as data: one case a line, one file per kind of bad input."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = Path(__file__).parents[2] / "examples"

Expected = Literal["refused", "works", "either"]


@dataclass(frozen=True)
class Case:
    """One input, what is there before, and what is expected.

    Attributes:
        name: unique in its kind.
        run: the words of a command after `foveate`; or
        call: a Python expression over public names. A list of expressions is evaluated in order; `_` is the last value.
        make: files to make first: per path a builder of `builders.py`, or a list of it and its arguments.
        env: environment variables; None unsets one.
        expect: "refused" is exit code 2 and one line on stderr, or a `FoveateError`; "works" is exit code 0, or no
            error; "either" is one of the two.
        words: what the error, or stdout, says.
        value: a Python expression that holds after it has worked: `out` is stdout's JSON or the call's value, `text`
            stdout, `err` stderr, `read(path)` a file's text.
        process: whether it needs a process of its own; with `stdout` ("closed", "full", "narrow pipe"), `limits` and
            `plain_user` (without the rights of root) of that process.
        writes: names of files and folders in the working folder that it may write.
        late: whether a model may be loaded before it is refused.
        again: how often the same command is repeated; every time must end alike.
        fails: why it fails today; such a case must fail, and loses its mark when it passes.
        sample: whether the suite runs it every time.
    """

    name: str
    kind: str
    expect: Expected
    run: tuple[str, ...] = ()
    call: str | tuple[str, ...] = ""
    make: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str | None] = field(default_factory=dict)
    words: str = ""
    value: str = ""
    process: bool = False
    stdout: str = ""
    limits: dict[str, int] = field(default_factory=dict)
    plain_user: bool = False
    writes: tuple[str, ...] = ()
    late: bool = False
    again: int = 1
    owner: str = ""
    fails: str = ""
    sample: bool = False

    @property
    def id(self) -> str:
        """Its name in results."""
        return f"{self.kind}/{self.name}"


def read_case(line: str, kind: str) -> Case:
    """Read one line of a corpus file."""
    given = json.loads(line)
    for name in ("run", "writes"):
        if name in given:
            given[name] = tuple(_word(word) for word in given[name])
    if isinstance(given.get("call"), list):
        given["call"] = tuple(given["call"])
    return Case(kind=kind, **given)


def _word(word: Any) -> str:
    """Return a word of a command line; {"times": [text, n]} is a long one."""
    if isinstance(word, dict):
        text, times = word["times"]
        return text * times
    return str(word).replace("{examples}", str(EXAMPLES))


def cases(kinds: Iterable[str] = ()) -> list[Case]:
    """Return the corpus, or some kinds of it."""
    wanted = set(kinds)
    found = []
    for path in sorted(CORPUS.glob("*.jsonl")):
        if wanted and path.stem not in wanted:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                try:
                    found.append(read_case(line, path.stem))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{path.name}, line {number}: {error}") from error
    names = [case.id for case in found]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
    return found
