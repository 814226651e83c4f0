"""Choose a sample of the contract suite that covers every test and every family.

The suite is a cross product: tests, their parameters, families. Families share nearly all of the engine, so a change is
tested with all parameters on two families that differ most, and with one set of parameters per test on every other
one. The whole product runs with `--every-family`, and wherever tests are chosen by `-k` or by their name.
"""

from collections.abc import Sequence
from zlib import crc32

import pytest

WHOLE = frozenset({"llava", "qwen3_vl"})
"""Families that every test runs on with all its parameters: positions on one axis and on three, with DeepStack."""


def is_chosen_by_name(config: pytest.Config) -> bool:
    """Whether the command line asks for certain tests."""
    return bool(config.option.keyword) or any("::" in argument for argument in config.args)


def sample(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Part tests into those of the sample and the rest; a test without a family belongs to the sample."""
    groups: dict[tuple[str, str, str], list[pytest.Item]] = {}
    for item in items:
        family = _family(item)
        if family is not None and family not in WHOLE:
            name = getattr(item, "originalname", item.name)
            groups.setdefault((str(item.path), name, family), []).append(item)
    dropped: set[pytest.Item] = set()
    for (_, name, family), group in groups.items():
        # One that is not slow if there is one, so that every run has it.
        quick = [item for item in group if item.get_closest_marker("slow") is None] or group
        kept = quick[crc32(f"{name} {family}".encode()) % len(quick)]
        dropped.update(item for item in group if item is not kept)
    return [item for item in items if item not in dropped], [item for item in items if item in dropped]


def _family(item: pytest.Item) -> str | None:
    """Return the family of the contract suite that a test runs on; None if there is none."""
    from rows import Row

    call = getattr(item, "callspec", None)
    row = None if call is None else call.params.get("row")
    return row.name if type(row) is Row else None
