"""How the process sets itself up, before anything listens."""

from __future__ import annotations

import asyncio
import io
import json
import resource
from collections.abc import Iterator

import pytest

from mcp_sidecar import app
from mcp_sidecar.ops import logs

UVLOOP_OR_ASYNCIO = ("uvloop", "asyncio.unix_events")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines."""
    stream = io.StringIO()
    logs.configure("json", "info", stream=stream)
    yield stream
    logs.configure("json", "info")


@pytest.fixture
def limit() -> Iterator[tuple[int, int]]:
    """The soft limit halved, the hard one as it is; put right afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = max(256, min(soft, 4096) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    yield low, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_all_descriptors_are_taken(limit: tuple[int, int]) -> None:
    """The soft limit is meant for programs that use select; it becomes the hard one."""
    taken = app._raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limit[1], limit[1])
    assert taken == (limit[1] if limit[1] != resource.RLIM_INFINITY else None)


@pytest.mark.parametrize("limit", [None, 264])
def test_enough_descriptors_are_not_told(log: io.StringIO, limit: int | None) -> None:
    """Two for every session's stream, and some for everything else."""
    app._tell_low_limit(limit, max_sessions=100)
    assert log.getvalue() == ""


def test_too_few_descriptors_are_told(log: io.StringIO) -> None:
    """Where not every session can have its stream, the log says how many can."""
    app._tell_low_limit(263, max_sessions=100)
    line = json.loads(log.getvalue())
    assert (line["event"], line["level"]) == ("descriptor_limit_low", "warning")
    assert {name: line[name] for name in ("limit", "needed", "streams", "max_sessions")} == {
        "limit": 263,
        "needed": 264,
        "streams": 99,
        "max_sessions": 100,
    }


def test_the_loop_is_uvloop_where_there_is_one() -> None:
    """Without it asyncio's own loop does."""
    with asyncio.Runner(loop_factory=app._loop_factory()) as runner:
        assert type(runner.get_loop()).__module__.startswith(UVLOOP_OR_ASYNCIO)
