"""What belongs to one another, by what it belongs to: tuples in a dict.

Most sessions have one stream, and there are many sessions: a set for each would take several times the memory.
"""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def add(groups: dict[K, tuple[V, ...]], key: K, member: V) -> None:
    """Put it behind those that are there."""
    groups[key] = (*groups.get(key, ()), member)


def discard(groups: dict[K, tuple[V, ...]], key: K, member: V) -> None:
    """Take it out, if it is there. A key without members is not kept."""
    others = tuple(other for other in groups.get(key, ()) if other != member)
    if others:
        groups[key] = others
    else:
        groups.pop(key, None)
