"""Choose times that may be compared: the sessions of an interrupted run are not equally fast."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from foveate.bench.results import Part


def comparable_parts(parts: Sequence[Part], specs: Collection[str]) -> list[Part]:
    """Return the parts whose times stand in tables.

    A chunk of images counts if one session of the run measured all configurations on it. Of the sessions that have such
    chunks, the one with the most images is taken; of equal ones the latest.

    Args:
        parts: of a run, each configuration and chunk once.
        specs: names of all configurations.

    Returns:
        Parts of one session, the same chunks for every configuration; none if each chunk was interrupted.

    >>> parts = [Part("dense", 0, 1, 1, session=1), Part("pool:4", 0, 1, 1, session=2)]
    >>> comparable_parts(parts, ["dense", "pool:4"])
    []
    >>> len(comparable_parts([*parts, Part("dense", 0, 1, 1, session=2)][1:], ["dense", "pool:4"]))
    2
    """
    found: dict[tuple[int, int], list[Part]] = {}
    for part in parts:
        found.setdefault((part.session, part.chunk), []).append(part)
    sessions: dict[int, list[Part]] = {}
    for (session, _), own in found.items():
        if {part.spec for part in own} >= set(specs):
            sessions.setdefault(session, []).extend(own)
    if not sessions:
        return []
    best = max(sessions, key=lambda session: (sum(part.spent.images for part in sessions[session]), session))
    return sessions[best]
