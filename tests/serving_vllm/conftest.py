"""Tests of the plugin in vLLM: they run where vLLM is installed, by `nox -s vllm`, and are not part of the suite.

What they measure goes to the file that FOVEATE_SERVING_JSON names, from which docs/serving.md is made.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["*.py"]
else:
    # Servers that tests start import `sitecustomize` by themselves; this process began before it was on the path.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    sys.path.insert(0, str(HERE))
    found = importlib.util.spec_from_file_location("offered_torchvision", HERE / "sitecustomize.py")
    if found is not None and found.loader is not None and "torchvision" not in sys.modules:
        found.loader.exec_module(importlib.util.module_from_spec(found))
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def measured() -> Iterator[dict[str, list[Any]]]:
    """Tables that tests fill; in the end they take the place of the same tables, or of rows of the same models."""
    tables: dict[str, list[Any]] = {}
    yield tables
    target = os.environ.get("FOVEATE_SERVING_JSON")
    if not target or not tables:
        return
    from vllm import __version__

    from foveate.bench.environment import environment
    from foveate.files import write_json

    path = Path(target)
    before = json.loads(path.read_text(encoding="utf-8"))["tables"] if path.exists() else {}
    for name in ("equality", "ranks"):
        models = {row["model"] for row in tables.get(name, [])}
        others = [row for row in before.get(name, []) if row["model"] not in models]
        if rows := sorted([*others, *tables.get(name, [])], key=lambda row: row["model"]):
            tables[name] = rows
    write_json(path, {"vllm": __version__, "environment": environment(), "tables": {**before, **tables}})
