"""Processes that the bench starts: each with its log, known to accept before it is used, and ended by its id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bench import procfs

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 5.0
STANDS_FOR_THE_UPSTREAM: Final = ["-m", "bench.stdio_echo"]
"""The arguments of the server that some proxies start by themselves."""


class NotStarted(Exception):
    """A program ended at once or never accepted a connection."""


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(slots=True)
class Running:
    """A running program and what it has started."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def pids(self) -> list[int]:
        """Return its processes, without the upstream if it has started that, too."""
        found = procfs.tree([self.process.pid])
        return [pid for pid in found if procfs.command_line(pid)[1:3] != STANDS_FOR_THE_UPSTREAM]

    def stop(self) -> None:
        """End it and all that it started."""
        family = {pid: procfs.command_line(pid) for pid in procfs.tree([self.process.pid])[1:]}
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid, command in family.items():
            _end(pid, command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _end(pid: int, command: list[str]) -> None:
    """End what the program left behind, unless that id is somebody else's by now."""
    if command and procfs.command_line(pid) == command:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def start(
    command: Sequence[str], url: str, log: Path, *, cwd: Path, environ: Mapping[str, str], accepting: Callable[[], bool]
) -> Running:
    """Start a program and wait until it accepts; raise ``NotStarted`` with the end of its log if it does not."""
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 - the programs of the bench
            list(command), cwd=cwd, env=dict(environ), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    running = Running(process, url, log)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if accepting():
            return running
        time.sleep(0.02)
    running.stop()
    raise NotStarted(f"{command[0]}: {log.read_text(errors='replace')[-1000:]}")
