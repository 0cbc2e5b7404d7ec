"""`mcp-sidecar dev` as a process, and a folder with a server that the tests edit."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.support.pulse import Pulse
from tests.support.waiting import HANG_S, eventually

SMALL_SERVER: Final = Path(__file__).with_name("small_server.py")
PYTHON: Final = (sys.executable, "server.py")
IGNORES_SIGTERM: Final = """\
import signal
really, signal.signal = signal.signal, lambda *_: None
really(signal.SIGTERM, signal.SIG_IGN)"""
"""What a server does that does not end when it is told to."""
AT_TERMINAL: Final = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


class Folder:
    """A developer's project with one file, ``server.py``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = path / "server.py"
        shutil.copy(SMALL_SERVER, self.server)

    def has_tools(self, *names: str, lists_gate: str = "", does: str = "") -> None:
        """Save the server with these tools; its lists wait for the file ``lists_gate``, and it ``does`` something else first."""
        text = SMALL_SERVER.read_text(encoding="utf-8").replace('TOOLS = ["echo"]', f"TOOLS = {list(names)!r}")
        text = text.replace('LISTS_GATE = ""', f"LISTS_GATE = {lists_gate!r}")
        self.server.write_text(f"{does}\n{text}", encoding="utf-8")

    def is_broken(self) -> None:
        """Save what is no Python."""
        self.server.write_text("def broken(:\n", encoding="utf-8")

    def does(self, code: str) -> None:
        """Save a server that does something else first."""
        self.has_tools("echo", does=code)


class DevProcess:
    """A running ``dev``; its lines are read as they come, without their time of day."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._pulse = Pulse()
        self._has_ended = False
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.lines.append(re.sub(r"^\d\d:\d\d:\d\d  ", "", line.rstrip()))
            self._pulse.fire()
        self._has_ended = True
        self._pulse.fire()

    async def line(self, pattern: str, *, behind: int = 0) -> str:
        """The first line behind so many in which the pattern is found; waits for it."""

        def found() -> list[str]:
            return [line for line in self.lines[behind:] if re.search(pattern, line)]

        await self._pulse.until(lambda: self._has_ended or bool(found()), HANG_S)
        assert found(), f"it ended without a line {pattern}: {self.lines}"
        return found()[0]

    async def url(self) -> str:
        """Where clients connect."""
        return (await self.line("for clients")).split()[-1]

    def press(self, key: str) -> None:
        """Press a key at its terminal."""
        assert self.process.stdin is not None
        self.process.stdin.write(key.encode())

    async def exit_status(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(HANG_S):
            status = await self.process.wait()
            await self._reading
        return status

    async def stop(self) -> None:
        """Whatever it does, it ends here."""
        if self.process.returncode is None:
            self.process.terminate()
        await self.exit_status()


@asynccontextmanager
async def developing(
    folder: Path,
    *options: str,
    command: tuple[str, ...] = PYTHON,
    admin: str = "off",
    at_terminal: bool = False,
    shell: tuple[str, ...] = (),
    **environment: str,
) -> AsyncIterator[DevProcess]:
    """Run ``dev`` in the folder, on a free port; with a terminal of its own, below a ``shell`` or not, or with none."""
    process = await asyncio.create_subprocess_exec(
        *((sys.executable, "-c", AT_TERMINAL) if at_terminal else ()),
        *shell,
        *(sys.executable, "-m", "mcp_sidecar", "dev", "--listen", "0", "--admin", admin, *options, "--", *command),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MCP_SIDECAR_")} | environment,
    )
    running = DevProcess(process)
    try:
        yield running
    finally:
        await running.stop()


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is more than an entry that nobody has collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def gone(*pids: int) -> None:
    """Wait until none of them runs."""
    await eventually(lambda: not any(map(is_running, pids)))
