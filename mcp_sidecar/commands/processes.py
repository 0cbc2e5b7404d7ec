"""The demo's child processes: started without a shell, told apart by process id, always ended.

The rule of this file: whatever happens in the body of ``child``, the process is gone when the block is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

READY_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 5.0
SHOWN_LINES: Final = 20
# What a user has exported for the sidecar or for a server of their own would make this another demo.
FOREIGN_VARIABLES: Final = ("MCP_SIDECAR_", "FASTMCP_")

SidecarCommand = Callable[[str, str, str], Sequence[str]]
"""From the upstream's URL, the address to listen on and the store to the command that runs a sidecar."""

Found = TypeVar("Found")


class ChildFailed(Exception):
    """A child process ended or kept silent instead of saying what was expected; holds the end of its output."""


@dataclass(slots=True, kw_only=True)
class Child:
    """A running child process and what it has written so far."""

    name: str
    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    silent: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def said(self, wanted: Callable[[str], Found | None], timeout_s: float) -> Found:
        """Wait for the first line that ``wanted`` makes something of. Raises ``ChildFailed`` where none comes."""
        try:
            async with asyncio.timeout(timeout_s), self.changed:
                while (found := next(filter(None, map(wanted, self.lines)), None)) is None and not self.silent:
                    await self.changed.wait()
        except TimeoutError:
            found = None
        if found is None:
            shown = "\n".join(f"    {line}" for line in self.lines[-SHOWN_LINES:])
            raise ChildFailed(f"the {self.name} did not come up; its last output:\n{shown or '    (none)'}")
        return found

    async def listen(self) -> None:
        """Collect the child's output until it ends; runs beside everything else."""
        stream = self.process.stdout
        while stream is not None and (line := await stream.readline()):
            await self._note(line.decode(errors="replace").rstrip())
        await self._note(None)

    async def _note(self, line: str | None) -> None:
        async with self.changed:
            if line is None:
                self.silent = True
            else:
                self.lines.append(line)
            self.changed.notify_all()


@contextlib.asynccontextmanager
async def child(name: str, command: Sequence[str]) -> AsyncGenerator[Child]:
    """Run a command for as long as the block lasts.

    It gets a session of its own, so that Ctrl-C reaches only the demo, which then ends its children in order.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=_environment(), start_new_session=True
    )
    running = Child(name=name, process=process)
    listening = asyncio.create_task(running.listen())
    try:
        yield running
    finally:
        await _end(process)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN_VARIABLES)}
    return kept | {"PYTHONUNBUFFERED": "1"}


class _Restartable:
    """A process on one port, to be killed and started again. Use as an async context manager."""

    def __init__(self) -> None:
        self._processes = contextlib.AsyncExitStack()
        self._current: Child | None = None

    async def __aenter__(self) -> Self:
        """Start it on a free port."""
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End whatever still runs."""
        await self._processes.aclose()

    @property
    def child(self) -> Child:
        """The process that runs now."""
        assert self._current is not None, "it was started"
        return self._current

    async def kill(self) -> None:
        """SIGKILL it, and wait until it is gone."""
        self.child.process.kill()
        await self.child.process.wait()

    async def start_again(self) -> None:
        """A new process on the same port; wait until it serves."""
        await self._start()

    async def _start(self) -> None:
        raise NotImplementedError

    async def _run(self, name: str, command: Sequence[str], wanted: Callable[[str], Found | None]) -> Found:
        """Start it, and wait until it has said what is ``wanted``."""
        try:
            self._current = await self._processes.enter_async_context(child(name, command))
            return await self._current.said(wanted, READY_TIMEOUT_S)
        except BaseException:
            await self._processes.aclose()
            raise


class CartServer(_Restartable):
    """The demo's server."""

    def __init__(self) -> None:
        """Start nothing yet."""
        super().__init__()
        self.port = 0

    @property
    def url(self) -> str:
        """The URL that a client uses without a sidecar."""
        return f"http://127.0.0.1:{self.port}/mcp"

    async def restart(self) -> None:
        """SIGKILL it, wait until it is gone, start it again on the same port and wait until it answers."""
        if self._current is not None:
            await self.kill()
        await self._start()

    async def _start(self) -> None:
        command = (sys.executable, "-m", "mcp_sidecar.commands.demo.server", str(self.port))
        self.port = await self._run("demo server", command, announced_port)


class Front(_Restartable):
    """A sidecar in front of one server."""

    def __init__(self, command: SidecarCommand, upstream_url: str, store: str) -> None:
        """Start nothing yet."""
        super().__init__()
        self._command = command
        self._upstream_url = upstream_url
        self._store = store
        self._address = "127.0.0.1:0"

    @property
    def url(self) -> str:
        """The URL that a client uses in the server's place."""
        return f"http://{self._address}/mcp"

    async def _start(self) -> None:
        command = self._command(self._upstream_url, self._address, self._store)
        self._address = await self._run("sidecar", command, bound_address)


def sidecar_command(upstream_url: str, listen: str, store: str) -> Sequence[str]:
    """Name the command a user would type, with logs that can be read."""
    options = ("--upstream", upstream_url, "--listen", listen, "--store", store, "--admin", "off")
    return (sys.executable, "-m", "mcp_sidecar", *options, "--log-format", "json", "--log-level", "info")


def announced_port(line: str) -> int | None:
    """Read the demo server's one line."""
    return int(line) if line.isdecimal() else None


def bound_address(line: str) -> str | None:
    """Read ``host:port`` from the sidecar's log line ``listening``."""
    entry = _log_entry(line)
    return str(entry["address"]) if entry.get("event") == "listening" and "address" in entry else None


def heal_seconds(line: str) -> float | None:
    """Read how long a heal took from the log line of one that succeeded."""
    entry = _log_entry(line)
    seconds = entry.get("seconds")
    return float(seconds) if entry.get("outcome") == "healed" and isinstance(seconds, int | float) else None


def _log_entry(line: str) -> dict[str, object]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
