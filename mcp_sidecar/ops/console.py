"""Log lines for a person at a terminal: local time, short, the event's name first.

The rule of this file: it leaves out and rounds, and adds nothing; who wants everything reads JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

_PAINT = {"warning": "33", "error": "31", "critical": "31", "debug": "2"}
_SAID_OTHERWISE = frozenset({"event", "level", "timestamp"})
_UNITS = {"seconds": "", "away_seconds": "away "}
_QUIET = frozenset({"generation", "kept_back", "held_bytes"})
"""Of interest to whoever counts."""


def local_time() -> str:
    """The time of day where the reader is."""
    return time.strftime("%H:%M:%S")


def line(event: Mapping[str, Any], *, coloured: bool, clock_time: str) -> str:
    """One event in one line."""
    level = str(event.get("level", "info"))
    name = str(event.get("event", ""))
    if coloured and level in _PAINT:
        name = f"\x1b[{_PAINT[level]}m{name}\x1b[0m"
    elif level not in ("info", "debug"):
        name = f"{level}: {name}"
    return "  ".join((clock_time, name, *_fields(event)))


def _fields(event: Mapping[str, Any]) -> Iterator[str]:
    told: set[object] = set()
    shown = []
    for key, value in event.items():
        if key in _SAID_OTHERWISE or key in _QUIET or value is None or value == "" or value in told:
            continue
        if isinstance(value, str):
            told.add(value)
        shown.append(f"{_UNITS[key]}{duration(value)}" if key in _UNITS else f"{key}={value}")
    if shown:
        yield " ".join(shown)


def duration(seconds: float) -> str:
    """Seconds as one reads them: `3 ms`, `0.8 s`, `2 min`."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
