"""The sidecar as a process of its own, as a user starts it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from tests.support.pulse import Pulse
from tests.support.waiting import HANG_S

_PATIENT: Final = {
    f"MCP_SIDECAR_{name}": str(HANG_S)
    for name in ("HEALING__HOLD_TIMEOUT", "HEALING__CONNECT_HOLD_TIMEOUT", "LISTEN__DRAIN_TIMEOUT")
}
"""The time of another process cannot be made to stand still: nothing in it runs out unless a test says so."""


class SidecarProcess:
    """A running `python -m mcp_sidecar`; what it wrote to stderr is read as it comes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._written = bytearray()
        self._pulse = Pulse()
        self._has_ended = False
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(65536):
            self._written += chunk
            self._pulse.fire()
        self._has_ended = True
        self._pulse.fire()

    @property
    def id(self) -> int:
        return self._process.pid

    @property
    def stderr(self) -> str:
        return self._written.decode()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The whole log lines so far."""
        return [json.loads(line) for line in self.stderr.rpartition("\n")[0].splitlines() if line.startswith("{")]

    async def line(self, event: str, timeout_s: float = HANG_S) -> dict[str, Any]:
        """The first log line of this event; waits for it."""
        await self._pulse.until(lambda: self._has_ended or bool(self._of(event)), timeout_s)
        assert self._of(event), f"it ended without a line {event}: {self.stderr}"
        return self._of(event)[0]

    async def text(self, part: str, timeout_s: float = HANG_S) -> None:
        """Wait until it has written this."""
        await self._pulse.until(lambda: self._has_ended or part in self.stderr, timeout_s)
        assert part in self.stderr

    def _of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def exit_status(self, timeout_s: float = HANG_S) -> int:
        """Wait for its end; ``TimeoutError`` if it goes on."""
        async with asyncio.timeout(timeout_s):
            status = await self._process.wait()
            await self._reading
        return status

    async def stop(self) -> None:
        """Whatever it does, it ends here."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading


@asynccontextmanager
async def sidecar_process(*arguments: str, log_format: str = "json") -> AsyncIterator[SidecarProcess]:
    """Start a sidecar with these options."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_sidecar", "--log-format", log_format, *arguments),
        stderr=asyncio.subprocess.PIPE,
        env=_PATIENT | os.environ,
    )
    started = SidecarProcess(process)
    try:
        yield started
    finally:
        await started.stop()
