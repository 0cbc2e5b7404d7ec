"""Closed, full and unread standard streams, as the process meets them: they change nothing but the log."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from mcp_sidecar.commands.dev.ports import free_port
from tests.support.client import McpClient
from tests.support.fake_upstream import FakeUpstream
from tests.support.waiting import HANG_S

COMMAND = f"exec {sys.executable} -m mcp_sidecar"


@asynccontextmanager
async def started(
    upstream: FakeUpstream, redirection: str, stderr: int | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    """A sidecar whose shell redirects its standard streams: the process, the URL for clients, the origin of its admin pages."""
    port, admin = free_port(), free_port()
    options = f"--upstream {upstream.url} --listen 127.0.0.1:{port} --admin 127.0.0.1:{admin} --log-level debug"
    process = await asyncio.create_subprocess_shell(f"{COMMAND} {options} {redirection}", stderr=stderr)
    try:
        yield process, f"http://127.0.0.1:{port}/mcp", f"http://127.0.0.1:{admin}"
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def ready(admin: str, timeout_s: float = HANG_S) -> None:
    """Wait until ``/readyz`` says that it accepts clients, which it does later than it answers its probes."""
    async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as http:
        while True:
            with suppress(aiohttp.ClientConnectionError):
                async with http.get(f"{admin}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.02)


async def heals_and_stops(upstream: FakeUpstream, process: asyncio.subprocess.Process, url: str, admin: str) -> None:
    """The sidecar serves a call across a restart, answers its probe, outlives a hang-up, and stops with status 0."""
    await ready(admin)
    async with McpClient(url) as client:
        await client.initialize()
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
    process.send_signal(signal.SIGHUP)
    await ready(admin)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(HANG_S):
        assert await process.wait() == 0


@pytest.mark.parametrize(
    "redirection",
    [
        pytest.param("<&-", id="stdin-closed"),
        pytest.param(">&-", id="stdout-closed"),
        pytest.param("2>&-", id="stderr-closed"),
        pytest.param("<&- >&- 2>&-", id="all-closed"),
        pytest.param(">/dev/full 2>/dev/full", id="full"),
    ],
)
async def test_streams_that_take_nothing_change_nothing(redirection: str) -> None:
    """It serves, heals and ends with 0, whatever has become of stdin, stdout and stderr."""
    async with FakeUpstream() as upstream, started(upstream, redirection) as (process, url, admin):
        await heals_and_stops(upstream, process, url, admin)


@pytest.mark.parametrize("is_blocking", [True, False], ids=["blocking", "non-blocking"])
async def test_a_log_that_nobody_reads_stops_nothing(is_blocking: bool) -> None:
    """The pipe is full before the first line: clients and probes are served, and the end is not later for it."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while os.write(writer, b"x" * 1024):
                pass
        os.set_blocking(writer, is_blocking)
        async with FakeUpstream() as upstream, started(upstream, "", stderr=writer) as (process, url, admin):
            await heals_and_stops(upstream, process, url, admin)
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_reader_that_left_stops_nothing() -> None:
    """Whoever read the log has gone: every line is a broken pipe, and nothing else is."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        async with FakeUpstream() as upstream, started(upstream, "", stderr=writer) as (process, url, admin):
            await heals_and_stops(upstream, process, url, admin)
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        pytest.param("--version >/dev/full", 0, id="version-full"),
        pytest.param("--help >&-", 0, id="help-closed"),
        pytest.param("--mode x 2>/dev/full", 2, id="mistakes-full"),
        pytest.param("--mode x 2>&-", 2, id="mistakes-closed"),
        pytest.param("check-config --upstream http://h >&- 2>/dev/full", 0, id="settings-closed"),
        pytest.param("check-config --upstream http://h >/dev/full", 1, id="settings-full"),
    ],
)
def test_the_exit_status_says_what_was_done(arguments: str, status: int) -> None:
    """Python's own 120 for a line that could not be written says nothing; settings that are asked for and lost do."""
    done = subprocess.run(f"{COMMAND} {arguments}", shell=True, stderr=subprocess.PIPE, timeout=HANG_S, check=False)  # noqa: S602
    assert done.returncode == status
    told = done.stderr.decode().splitlines()
    assert told == (["check-config: stdout cannot be written: No space left on device"] if status == 1 else [])
