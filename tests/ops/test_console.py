"""Log lines at a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_sidecar.ops.console import duration, line

HEAL: dict[str, Any] = {
    "session": "1a2b3c4d",
    "outcome": "healed",
    "signature": "python-sdk-404-terminated",
    "reason": "healed",
    "generation": 12,
    "seconds": 0.012345,
    "event": "heal_ended",
    "level": "info",
}


def test_a_heal_fits_a_narrow_window() -> None:
    """The line that everybody waits for has at most 100 columns, says nothing twice, and rounds."""
    written = line(HEAL, coloured=False, clock_time="12:01:03")
    assert written == "12:01:03  heal_ended  session=1a2b3c4d outcome=healed signature=python-sdk-404-terminated 12 ms"
    assert len(written) <= 100


@pytest.mark.parametrize(
    ("event", "written"),
    [
        pytest.param(
            {"event": "upstream_lost", "level": "warning"}, "12:01:03  warning: upstream_lost", id="no fields"
        ),
        pytest.param({"event": "x", "level": "info", "admin": None, "a": ""}, "12:01:03  x", id="nothing to say"),
        pytest.param({"event": "x", "level": "debug", "status": 404}, "12:01:03  x  status=404", id="a number"),
    ],
)
def test_what_says_nothing_is_left_out(event: dict[str, Any], written: str) -> None:
    """A severity stands where it is out of the ordinary, a field where it has a value."""
    assert line(event, coloured=False, clock_time="12:01:03") == written


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0004, "0 ms"), (0.034, "34 ms"), (0.82, "0.8 s"), (61.2, "61.2 s"), (600, "10 min")]
)
def test_a_duration_is_read_at_a_glance(seconds: float, shown: str) -> None:
    """Two digits are enough."""
    assert duration(seconds) == shown
