"""Runs the corpus and prints a table of kinds: `python tests/fuzz/run.py [KIND ...] [--sample]`.

Exit code 1 if a case fails that isn't marked, or a marked one passes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import Case, cases
from worker import SECONDS, Outcome

WORKER = Path(__file__).with_name("worker.py")
GRACE = 20
"""Seconds on top of a case's own, for imports and for making its files."""


class Worker:
    """A process that runs cases; it is started again after a crash."""

    def __init__(self) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "FUZZ_HOME": self.home.name},
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def run(self, case: Case) -> Outcome:
        """Run one case; a crash or a case without end is an outcome."""
        assert self.process.stdin is not None
        begin = time.monotonic()
        self.process.stdin.write(json.dumps(asdict(case)) + "\n")
        self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=SECONDS * case.again + GRACE)
        except queue.Empty:
            self.close()
            return Outcome(case.id, "slow", False, time.monotonic() - begin, "killed")
        if not line:
            code = self.process.wait()
            return Outcome(case.id, "crash", False, time.monotonic() - begin, f"the process ended with {code}")
        return Outcome(**json.loads(line))

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.home.cleanup()


def outcomes(chosen: Sequence[Case]) -> Iterator[tuple[Case, Outcome]]:
    """Run cases one after the other."""
    worker = None
    try:
        for case in chosen:
            if worker is None or worker.process.poll() is not None:
                if worker is not None:
                    worker.close()
                worker = Worker()
            yield case, worker.run(case)
    finally:
        if worker is not None:
            worker.close()


def unexpected(case: Case, outcome: Outcome) -> bool:
    """Return whether a case fails without its mark, or passes with it."""
    return (outcome.status == "ok") == bool(case.fails)


COLUMNS = ("cases", "refused", "worked", "tracebacks", "silent", "slow", "other")


def counts(found: Sequence[tuple[Case, Outcome]]) -> dict[str, dict[str, int]]:
    """Count what became of the cases of each kind."""
    kinds: dict[str, dict[str, int]] = {}
    for case, outcome in found:
        row = kinds.setdefault(case.kind, dict.fromkeys(COLUMNS, 0))
        row["cases"] += 1
        if outcome.status == "ok":
            row["worked" if outcome.worked else "refused"] += 1
        else:
            names = {"traceback": "tracebacks", "crash": "tracebacks", "silent": "silent", "slow": "slow"}
            row[names.get(outcome.status, "other")] += 1
    return kinds


def table(kinds: dict[str, dict[str, int]]) -> str:
    """Return the counts as text."""
    total: collections.Counter[str] = collections.Counter()
    for row in kinds.values():
        total.update(row)
    lines = [f"{'kind':<14}" + "".join(f"{name:>12}" for name in COLUMNS)]
    for kind, row in [*kinds.items(), ("all", {name: total[name] for name in COLUMNS})]:
        lines.append(f"{kind:<14}" + "".join(f"{row[name]:>12}" for name in COLUMNS))
    return "\n".join(lines)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--sample", action="store_true", help="only what the suite runs every time")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--all", action="store_true", help="show every case")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--log", type=Path, help="write every outcome to this file")
    given = parser.parse_args()
    chosen = [case for case in cases(given.kinds) if given.only in case.id and (case.sample or not given.sample)]
    found: list[tuple[Case, Outcome]] = []
    log = given.log.open("w", encoding="utf-8") if given.log else None
    for case, outcome in outcomes(chosen):
        found.append((case, outcome))
        if log is not None:
            log.write(json.dumps({**asdict(outcome), "owner": case.owner, "fails": case.fails}) + "\n")
            log.flush()
        if unexpected(case, outcome) or given.all:
            passed = " passes, and is marked as failing" if outcome.status == "ok" and case.fails else ""
            print(f"{case.id}: {outcome.status}{passed} ({outcome.seconds:.1f} s)\n    {outcome.detail!r}", flush=True)
    kinds = counts(found)
    print(table(kinds))
    if given.json:
        given.json.write_text(json.dumps(kinds, indent=1) + "\n", encoding="utf-8")
    return int(any(unexpected(case, outcome) for case, outcome in found))


if __name__ == "__main__":
    sys.exit(main())
