"""How the process sets itself up, before anything listens."""

from __future__ import annotations

import asyncio
import io
import json
import resource
from collections.abc import Iterator

import pytest

from mcp_sidecar import process
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
    taken = process.raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limit[1], limit[1])
    assert taken == (limit[1] if limit[1] != resource.RLIM_INFINITY else None)


@pytest.mark.parametrize("limit", [None, 264])
def test_enough_descriptors_are_not_told(log: io.StringIO, limit: int | None) -> None:
    """Two for every session's stream, and some for everything else."""
    descriptors = process.DescriptorLimit(limit)
    descriptors.compare(max_sessions=100)
    descriptors.look(open_streams=79)
    assert log.getvalue() == ""


def test_too_few_descriptors_for_the_sessions_asked_for_are_told(log: io.StringIO) -> None:
    """Where not every session can have its stream, the log says how many can."""
    process.DescriptorLimit(263).compare(max_sessions=100)
    assert _told(log) == {"limit": 263, "needed": 264, "streams": 99, "max_sessions": 100}


def test_a_limit_that_comes_near_is_told_once(log: io.StringIO) -> None:
    """Four fifths of the streams that there can be are open: somebody should know before connections fail."""
    descriptors = process.DescriptorLimit(264)
    for open_streams in (79, 80, 81):
        descriptors.look(open_streams)
    assert _told(log) == {"limit": 264, "streams": 100, "open_streams": 80}


def _told(log: io.StringIO) -> dict[str, int]:
    """The numbers of the one warning."""
    line = json.loads(log.getvalue())
    assert (line.pop("event"), line.pop("level")) == ("descriptor_limit_low", "warning")
    del line["timestamp"]
    return dict(line)


def test_the_loop_is_uvloop_where_there_is_one() -> None:
    """Without it asyncio's own loop does."""
    with asyncio.Runner(loop_factory=process.loop_factory()) as runner:
        assert type(runner.get_loop()).__module__.startswith(UVLOOP_OR_ASYNCIO)
