"""Child processes and the lines that they write."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import pytest

pytest.importorskip("mcp", reason="the extra `demo` is not installed")

from mcp_sidecar.commands.processes import ChildFailed, announced_port, bound_address, child, heal_seconds
from tests.support.waiting import HANG_S

HEALED = '{"event": "heal_ended", "outcome": "healed", "seconds": 0.012, "session": "ab12"}'
REFUSED = '{"event": "heal_ended", "outcome": "refused", "seconds": 0.012}'


@pytest.mark.parametrize(
    ("reads", "line", "value"),
    [
        pytest.param(announced_port, "43117", 43117, id="port"),
        pytest.param(announced_port, "warning: 43117", None, id="no port"),
        pytest.param(
            bound_address, '{"event": "listening", "address": "127.0.0.1:8080"}', "127.0.0.1:8080", id="address"
        ),
        pytest.param(bound_address, '{"event": "listening"}', None, id="no address"),
        pytest.param(bound_address, '{"event": "draining", "address": "127.0.0.1:8080"}', None, id="other event"),
        pytest.param(bound_address, "Traceback (most recent call last):", None, id="no JSON"),
        pytest.param(bound_address, "[1, 2]", None, id="no object"),
        pytest.param(heal_seconds, HEALED, 0.012, id="healed"),
        pytest.param(heal_seconds, REFUSED, None, id="not healed"),
    ],
)
def test_a_line_says_one_thing_or_nothing(reads: Callable[[str], object], line: str, value: object) -> None:
    """Only the expected line is taken for what it says; everything else a process writes is passed over."""
    assert reads(line) == value


async def test_a_child_ends_with_its_block() -> None:
    """However the block is left, the process is gone."""
    pids: list[int] = []

    async def fail_inside() -> None:
        async with child("sleeper", (sys.executable, "-c", "import time; time.sleep(600)")) as sleeper:
            pids.append(sleeper.process.pid)
            raise ValueError("as it happens")

    with pytest.raises(ValueError, match="as it happens"):
        await fail_inside()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_a_stubborn_child_ends_too() -> None:
    """A child that ignores SIGTERM when the demo is cancelled is killed at once."""
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    ready, pids = asyncio.Event(), list[int]()

    async def run() -> None:
        async with child("stubborn", (sys.executable, "-c", stubborn)) as running:
            await running.said(announced_port, HANG_S)
            pids.append(running.process.pid)
            ready.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await ready.wait()
    running.cancel()
    await asyncio.wait({running}, timeout=HANG_S)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_a_child_that_ends_early_is_told_with_its_output() -> None:
    """Nobody waits for a line that cannot come any more."""
    async with child("quitter", (sys.executable, "-c", "print('no luck')")) as quitter:
        with pytest.raises(ChildFailed, match="no luck"):
            await quitter.said(announced_port, HANG_S)


async def test_a_silent_child_is_not_waited_for_for_ever() -> None:
    """The wait for a line is bounded."""
    async with child("silent", (sys.executable, "-c", "import time; time.sleep(600)")) as silent:
        with pytest.raises(ChildFailed, match="did not come up"):
            await silent.said(announced_port, 0.05)
