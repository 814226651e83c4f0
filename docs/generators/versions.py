"""docs/versions.md, from docs/measured/versions.json, which holds what came of runs of the contract suite."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from foveate.bench.environment import environment
from foveate.files import write_json
from generators.folders import MEASURED

MEASUREMENTS = MEASURED / "versions.json"
REFUSED = "refused: "
"""How the reason of a test begins that expects foveate to refuse something."""

HEAD = """\
# Versions of transformers

foveate runs with transformers 5.19 and later. In 5.18 models began to take image features in place of pixels, but mixed
up the images of a prompt for beams. A family that needs a later version than 5.19 says so on [its page](families.md).
foveate warns once about a version that is newer than those in this table.

The contract suite, which compares each model with itself uncompressed, ran with each of them on tiny random models:
every test on every family, on two of them with all its parameters and on the others with one set. `nox -s full` runs
all sets on all families, with one version, and everything that isn't about models. "1 of 12" tests is a share: every
test on a twelfth of the families, and every family in a twelfth of the tests.

"Refused" counts tests of something that this version of transformers can't do right: there foveate must raise an error
that says so and what to do, and the test checks that it does.
"""

TAIL = """\
## Also without foveate

Up to 5.22, chunked prefill (`prefill_chunk_size`) loses images.

## How the table is made

```text
python3 dev.py versions                  all versions, one after another
python3 dev.py versions 5.20.2 -n 4      one of them, with four processes
python3 dev.py versions --share 3/12      a twelfth of the tests
```

Each run enters its row. `nox -l` lists the same versions for every Python.
"""


def pages() -> dict[str, str]:
    """Return the page."""
    return {"versions.md": page()}


def page() -> str:
    """Return the text of docs/versions.md."""
    rows = _rows()
    lines = [
        "| transformers | tests | passed | refused | failed | Python | torch | date |",
        "|:--|:--|--:|--:|--:|:--|:--|:--|",
    ]
    for row in rows:
        ran, packages = row["environment"], row["environment"]["packages"]
        cells = (
            *(packages["transformers"], _share(row), row["passed"], sum(row["refused"].values()), row["failed"]),
            *(ran["python"], packages["torch"], ran["finished"][:10]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    processors = sorted({row["environment"]["processor"] for row in rows})
    where = f"On {' and '.join(processors)}, without a GPU." if rows else "No run has been entered yet."
    if mended := sum(row.get("mended", 0) for row in rows):
        where += f" {mended} tests failed at first, and passed when they ran again after a mend."
    return "\n".join([HEAD, *lines, "", where, "", *_refusals(rows), TAIL])


def _share(row: dict[str, Any]) -> str:
    share = row.get("share", "1/1")
    number = share.partition("/")[2]
    return "`nox -s full`" if share == "full" else "all" if number == "1" else f"1 of {number}"


def _rows() -> list[dict[str, Any]]:
    return json.loads(MEASUREMENTS.read_text(encoding="utf-8"))["rows"] if MEASUREMENTS.exists() else []


def _refusals(rows: list[dict[str, Any]]) -> list[str]:
    """Return what is refused, and with which versions, as a list."""
    reasons = sorted({reason for row in rows for reason in row["refused"]})
    if not reasons:
        return []
    lines = ["## What is refused", ""]
    for reason in reasons:
        versions = [row["environment"]["packages"]["transformers"] for row in rows if reason in row["refused"]]
        lines.append(f"* {reason[0].upper()}{reason[1:]}: {', '.join(versions)}.")
    return [*lines, ""]


def take(report: Path, version: str) -> Path:
    """Enter what came of one run in docs/measured/versions.json, in place of an earlier run of the same versions.

    Args:
        report: JUnit XML of pytest, or a folder of them: a run, and tests of it that ran again.
        version: of transformers, with which it ran and which is installed now; after a colon the share of the suite,
            or "full" for all tests on all families.
    """
    ran, (version, _, share) = environment("cpu"), version.partition(":")
    assert ran["packages"]["transformers"] == version, f"this is transformers {ran['packages']['transformers']}"
    row = {"environment": ran, "share": share or "1/1", **counts(report)}
    rows = [other for other in _rows() if _key(other) != _key(row)] + [row]
    write_json(MEASUREMENTS, {"rows": sorted(rows, key=_key)})
    return MEASUREMENTS


def counts(report: Path) -> dict[str, Any]:
    """Count in a JUnit report the tests that passed, failed, were skipped, and that expect a refusal, by what it is.

    Of a folder of reports, sorted by name, the last result of each test counts; "mended" are those that failed before.
    """
    results: dict[tuple[str, str], ElementTree.Element] = {}
    before: set[tuple[str, str]] = set()
    for one in sorted(report.glob("*.xml")) if report.is_dir() else [report]:
        for case in ElementTree.parse(one).iter("testcase"):
            name = case.get("classname", ""), case.get("name", "")
            before |= {name} if name in results and _failed(results[name]) else set()
            results[name] = case
    cases = [*results.values()]
    failed = sum(map(_failed, cases))
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    reasons = [skip.get("message", "") for skip in skips if skip.get("type") == "pytest.xfail"]
    refused = Counter(reason.removeprefix(REFUSED) for reason in reasons if reason.startswith(REFUSED))
    return {
        "passed": len(cases) - failed - len(skips),
        "refused": dict(sorted(refused.items())),
        "failed": failed,
        "mended": sum(not _failed(results[name]) for name in before),
        "skipped": len(skips) - sum(refused.values()),
    }


def _failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    ran = row["environment"]
    versions = (ran["packages"]["transformers"], ran["python"], ran["packages"]["torch"])
    whole = (row.get("share") == "full",)
    return (*(tuple(int(part) for part in each.partition("+")[0].split(".")) for each in versions), whole)
