"""The developer's server as a process: its own process group, its output in lines, its end.

The rule of this file: nothing that was started here outlives the sidecar. Whoever ends a server ends its whole group and its
descendants in other groups; what has left its parents, too, is found among the orphans that the kernel gives to us, by a mark
in the environment; and a guard does the same where the sidecar itself is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mcp_sidecar.commands.dev.guard import adopt_orphans

STOP_PATIENCE_S = 5.0
LOOK_EVERY_S = 0.02
MAX_LINE_BYTES = 4096
MAX_LINES_AT_ONCE = 200
LAST_OUTPUT_S = 0.1
KEPT_LINES = 20
MARK = "_MCP_SIDECAR_DEV"
"""The variable by which everything that a server has started is told from what others have."""

OnLine = Callable[[str, int], None]
"""Gets a line, and how many have been left out since the one before."""


class Lines:
    """Cuts output into lines, the longest of which are cut off."""

    def __init__(self) -> None:
        """Nothing has come yet. ``left_out`` counts the lines in the middle of what came at once, beyond a bound."""
        self.left_out = 0
        self._begun = b""
        self._is_skipping = False

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that are whole by now."""
        *whole, rest = (self._begun + chunk).split(b"\n")
        if len(whole) > 2 * MAX_LINES_AT_ONCE:  # who floods us keeps nobody else waiting
            self.left_out += len(whole) - 2 * MAX_LINES_AT_ONCE
            whole[MAX_LINES_AT_ONCE:-MAX_LINES_AT_ONCE] = []
        lines = []
        for line in whole:
            if self._is_skipping:
                self._is_skipping = False
            else:
                lines.append(_text(line))
        if len(rest) > MAX_LINE_BYTES:
            if not self._is_skipping:
                lines.append(_text(rest))
            self._is_skipping, rest = True, b""
        self._begun = rest
        return lines

    def rest(self) -> list[str]:
        """What stands behind the last line's end."""
        return [_text(self._begun)] if self._begun and not self._is_skipping else []


def _text(line: bytes) -> str:
    text = line[:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r")
    return text + " …" if len(line) > MAX_LINE_BYTES else text


class Hurry:
    """Whether nothing is given time to end any more, and the number of the signal that said so; 0 before."""

    def __init__(self) -> None:
        """There is none yet."""
        self.begun = asyncio.Event()
        self.number = 0

    def begin(self, number: int) -> None:
        """From now on."""
        self.number = self.number or number
        self.begun.set()


class Guard:
    """The process that ends groups where the sidecar cannot. Use as an async context manager."""

    def __init__(self, hurry: Hurry | None = None) -> None:
        """Nothing is guarded yet. ``hurry`` counts for whatever is taken into its care."""
        self.hurry = hurry or Hurry()
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Start it, and have orphans of ours given to us."""
        adopt_orphans()
        script = Path(__file__).with_name("guard.py")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(script)),
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it do what is left to do, and wait for it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id; 0 before it runs."""
        return self._process.pid if self._process is not None else 0

    def take(self, group: int) -> None:
        """From now on this group must not outlive us."""
        self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        """This group is gone."""
        self._tell(f"-{group}\n")

    def open(self, url: str) -> None:
        """Show this page in a browser that nobody here ends."""
        self._tell(f"o{url}\n")

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(line.encode())


RUNNING: set[Server] = set()
"""All servers whose group may still be there."""
_MARKS: set[str] = set()
"""Theirs, and that of a server that is being started."""
_numbers = itertools.count(1)


class Server(asyncio.SubprocessProtocol):
    """One run of the developer's command. ``pid`` is its process group, too.

    A protocol rather than asyncio's streams, whose ``wait`` waits for the end of the output as well (3.11.7): children may
    hold that open for ever.
    """

    pid: int
    exited: asyncio.Task[int]
    """Done with the exit status once the process has ended and its last output was read; signals count as in a shell."""
    _transport: asyncio.SubprocessTransport

    def __init__(self, guard: Guard, on_line: OnLine) -> None:
        """``on_line`` gets each line that it writes. Made by ``start``."""
        self._guard = guard
        self._on_line = on_line
        self._lines = Lines()
        self._has_exited, self._has_said_all = asyncio.Event(), asyncio.Event()
        self._strays: set[psutil.Process] = set()
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._transport.get_returncode() is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It runs."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport
        self.pid = transport.get_pid()
        self.exited = asyncio.create_task(self._exit())
        self._guard.take(self.pid)
        RUNNING.add(self)

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - both outputs are one pipe
        """It has written something."""
        self._take(self._lines.feed(data))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - see above
        """Nobody of its group can write any more."""
        self._take(self._lines.rest())
        self._has_said_all.set()

    def process_exited(self) -> None:
        """It has ended; its children may not have."""
        self._has_exited.set()

    def _take(self, lines: Sequence[str]) -> None:
        self.last_lines.extend(line for line in lines if line.strip())
        for line in lines:
            left_out, self._lines.left_out = self._lines.left_out, 0
            self._on_line(line, left_out)

    async def _exit(self) -> int:
        await self._has_exited.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_OUTPUT_S):
                await self._has_said_all.wait()
        status = self._transport.get_returncode() or 0
        return 128 - status if status < 0 else status

    def signal(self, number: int) -> None:
        """To all of its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def end(self) -> None:
        """SIGTERM to all of its family, SIGKILL to what is left after five seconds, or in a hurry; then nothing is left."""
        self._find_strays()
        try:
            self._tell_all(signal.SIGTERM)
            async with asyncio.timeout(STOP_PATIENCE_S):
                while self._is_left() and not self._guard.hurry.number:  # noqa: ASYNC110 - nobody tells of a group
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            pass
        finally:
            if self._is_left():
                self._tell_all(signal.SIGKILL)
            await asyncio.shield(self._gone())

    async def _gone(self) -> None:
        await self.exited
        while self._is_left():
            self._tell_all(signal.SIGKILL)
            await asyncio.sleep(LOOK_EVERY_S)
        self._transport.close()
        self._guard.release(self.pid)
        RUNNING.discard(self)
        _MARKS.discard(self.mark)

    def _tell_all(self, number: int) -> None:
        self.signal(number)
        for stray in self._strays:
            with contextlib.suppress(psutil.Error):
                stray.send_signal(number)

    def _find_strays(self) -> None:
        """Descendants in groups of their own, such as browsers, and what its parent has left, if it bears the mark."""
        with contextlib.suppress(psutil.Error):
            roots = self.orphans if self.has_ended else [psutil.Process(self.pid), *self.orphans]
            for root in roots:
                with contextlib.suppress(psutil.Error):
                    family = {root, *root.children(recursive=True)}
                    self._strays |= {each for each in family if _group_of(each.pid) != self.pid}

    @property
    def orphans(self) -> list[psutil.Process]:
        """What it has started, in another group, and its parent has left."""
        ours = psutil.Process().children()
        return [each for each in ours if _group_of(each.pid) != self.pid and _mark_of(each) == self.mark]

    def _is_left(self) -> bool:
        """Whether anybody of the family still runs."""
        if not self.has_ended:
            return True
        _reap(-self.pid)
        self._strays = {stray for stray in self._strays if _is_alive(stray)}
        try:
            os.killpg(self.pid, 0)
        except OSError:
            return bool(self._strays)
        return True


async def start(command: Sequence[str], environment: Mapping[str, str], guard: Guard, on_line: OnLine) -> Server:
    """Run the command without a shell. Raises OSError where there is no such program."""
    server = Server(guard, on_line)
    _MARKS.add(server.mark)
    try:
        await asyncio.get_running_loop().subprocess_exec(
            lambda: server,
            *command,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env={**environment, MARK: server.mark},
            start_new_session=True,
        )
    except BaseException:  # where it is cancelled asyncio has ended the process; the group may still be in care
        await server.end() if server in RUNNING else _MARKS.discard(server.mark)
        raise
    return server


def _group_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getpgid(pid)
    return None


def _mark_of(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        mark: str | None = process.environ().get(MARK)
        return mark
    return None


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs; an orphan of ours that has ended is taken from the list of processes."""
    with contextlib.suppress(psutil.Error):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return True
        _reap(process.pid)
    return False


def _reap(who: int) -> None:
    with contextlib.suppress(OSError):
        while os.waitpid(who, os.WNOHANG)[0]:
            pass


def shown(process: psutil.Process) -> str:
    """Its name and process id."""
    with contextlib.suppress(psutil.Error):
        return f"{process.name()} ({process.pid})"
    return str(process.pid)


def kill_orphans(known: set[int]) -> list[str]:
    """End what a server has left behind in another group than its own, and say what it was.

    ``known`` are the processes that we have started ourselves. What is still in the group of one of them, or bears the mark
    of a server that runs, is left to it.
    """
    ended = []
    for orphan in psutil.Process().children():
        if orphan.pid in known or _group_of(orphan.pid) in known or _mark_of(orphan) in _MARKS:
            continue
        with contextlib.suppress(psutil.Error):
            family = [orphan, *orphan.children(recursive=True)]
            if orphan.status() != psutil.STATUS_ZOMBIE:
                ended.append(shown(orphan))
            for each in family:
                each.kill()
        _reap(orphan.pid)
    return ended
