"""Leave out steps inside the decoder where a family's row says that none can act; test_memory.py has the refusals."""

from collections.abc import Sequence

import pytest


def can_act(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Part tests into those whose steps can act and the rest, by the specs of parameters or the mark `inside`."""
    dropped = {item for item in items if not _can_act(item)}
    return [item for item in items if item not in dropped], [item for item in items if item in dropped]


def _can_act(item: pytest.Item) -> bool:
    from rows import Row

    call = getattr(item, "callspec", None)
    row = None if call is None else call.params.get("row")
    if call is None or not isinstance(row, Row) or row.plain:
        return True
    specs = [value for value in call.params.values() if isinstance(value, str)]
    return item.get_closest_marker("inside") is None and all(row.takes(spec) for spec in specs)
