"""Choose a sample of the contract suite that covers every test and every family.

The suite is a cross product: tests, their parameters, families. Families share nearly all of the engine, so a change is
tested with all parameters on two families that differ most, and with one set of parameters per test on every other
one and on each model that no family describes. The whole product runs with `--every-family`, and wherever tests are
chosen by `-k` or by their name.

`--share 1/16` to `--share 16/16` part the sample: each test runs on every family in one of them. CI runs the first with
one version of transformers and the second with another: every test on an eighth of the families and on both whole ones,
of which the second then has one set of parameters per test.
"""

from collections.abc import Sequence
from zlib import crc32

import pytest

WHOLE = ("llava", "qwen3_vl")
"""Families that every test runs on with all its parameters: positions on one axis and on three, with DeepStack."""


def is_chosen_by_name(config: pytest.Config) -> bool:
    """Whether the command line asks for certain tests."""
    return bool(config.option.keyword) or any("::" in argument for argument in config.args)


def share_of(text: str) -> tuple[int, int]:
    """Read which share of how many `--share` asks for.

    >>> share_of("2/2")
    (2, 2)

    Raises:
        pytest.UsageError: it isn't one.
    """
    number, _, shares = text.partition("/")
    if not (number.isdecimal() and shares.isdecimal() and 1 <= int(number) <= int(shares)):
        raise pytest.UsageError(f"--share is {text!r}, and must be one such as 1/2 or 2/2")
    return int(number), int(shares)


def share_asked_for(config: pytest.Config) -> tuple[int, int] | None:
    """Return which share of how many runs; None for the whole product."""
    share = config.getoption("share")
    if share or not (config.getoption("every_family") or is_chosen_by_name(config)):
        return share_of(share or "1/1")
    return None


def is_in_share(family: str, test: str, share: tuple[int, int]) -> bool:
    """Whether a test runs on a family in a share of the sample."""
    number, shares = share
    if family in WHOLE:
        return WHOLE.index(family) % shares == number - 1
    return crc32(f"{family} {test}".encode()) % shares == number - 1


def sample(
    items: Sequence[pytest.Item], share: tuple[int, int] = (1, 1)
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Part tests into those of a share of the sample and the rest; a test without a family belongs to each share."""
    # Of several shares, only the first whole family's has all parameters.
    whole = {family for family in (WHOLE if share == (1, 1) else WHOLE[:1]) if is_in_share(family, "", share)}
    groups: dict[tuple[str, str, str], list[pytest.Item]] = {}
    for item in items:
        family = _family(item)
        if family is not None and family not in whole:
            name = getattr(item, "originalname", item.name)
            groups.setdefault((str(item.path), name, family), []).append(item)
    dropped: set[pytest.Item] = set()
    for (_, name, family), group in groups.items():
        # One that is not slow if there is one, so that every run has it.
        quick = [item for item in group if item.get_closest_marker("slow") is None] or group
        ours = is_in_share(family, name, share)
        kept = quick[crc32(f"{name} {family}".encode()) % len(quick)] if ours else None
        dropped.update(item for item in group if item is not kept)
    return [item for item in items if item not in dropped], [item for item in items if item in dropped]


def _family(item: pytest.Item) -> str | None:
    """Return the family, or the model without one, that a test of the contract suite runs on; None if there is none."""
    from rows import Row

    call = getattr(item, "callspec", None)
    row = None if call is None else call.params.get("row")
    return row.name if isinstance(row, Row) else None
