"""Leave out steps that a family's row says can't act; test_memory.py and test_support.py have the refusals."""

from collections.abc import Sequence

import pytest


def can_act(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Part tests into those whose steps can act and the rest, by the specs of parameters and the marks."""
    dropped = {item for item in items if not _can_act(item)}
    return [item for item in items if item not in dropped], [item for item in items if item in dropped]


def _can_act(item: pytest.Item) -> bool:
    from rows import Row

    call = getattr(item, "callspec", None)
    row = None if call is None else call.params.get("row")
    if call is None or not isinstance(row, Row):
        return True
    if not row.plain and item.get_closest_marker("inside") is not None:
        return False
    if row.keys is None and item.get_closest_marker("encoder_signals") is not None:
        return False
    return all(row.takes(value) for value in call.params.values() if isinstance(value, str))
