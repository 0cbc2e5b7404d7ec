"""A process that is asked by lines of JSON on its stdin and answers by lines of JSON on its stdout, and its other end."""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

Handler = Callable[..., Awaitable[dict[str, Any]]]
STOP_TIMEOUT_S = 5.0


def run_on_fast_loop(main: Callable[[], Awaitable[None]]) -> None:
    """Run on uvloop where the environment has it."""

    async def wrapped() -> None:
        await main()

    try:
        import uvloop  # noqa: PLC0415 - only the environment of the tools has it
    except ImportError:
        asyncio.run(wrapped())
    else:
        uvloop.run(wrapped())


async def answer_lines(handlers: dict[str, Handler]) -> None:
    """Answer ``{"do": name, …}`` until stdin ends; what a handler raises is answered as ``{"error": …}``."""
    reader = asyncio.StreamReader(limit=2**26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        question = json.loads(line)
        number = question.pop("number")
        try:
            answer = await handlers[question.pop("do")](**question)
        except Exception as trouble:  # noqa: BLE001 - the asker has to hear of it
            answer = {"error": f"{type(trouble).__name__}: {trouble}"}
        print(json.dumps({"number": number, **answer}), flush=True)


class NoAnswer(Exception):
    """The process ended, took too long, or could not do what it was asked."""


class Asked:
    """The asking end: one process, one question at a time."""

    def __init__(self, command: list[str], folder: Path, log: Path) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        self._log = log
        self._asked = 0

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, do: str, *, timeout_s: float = 30.0, **arguments: object) -> dict[str, Any]:
        """Return the answer; raise ``NoAnswer`` if there is none within ``timeout_s``."""
        assert self._process.stdin is not None
        self._asked += 1
        self._process.stdin.write(json.dumps({"number": self._asked, "do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        answer: dict[str, Any] = {}
        while answer.get("number") != self._asked:  # an earlier one may come late
            answer = self._next_line(do, deadline)
        if "error" in answer:
            raise NoAnswer(f"{do}: {answer['error']}")
        return answer

    def _next_line(self, do: str, deadline: float) -> dict[str, Any]:
        # One line at a time is asked for: nothing but an answer that came too late is ever left in the reader's buffer.
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise NoAnswer(f"{do}: no answer; see {self._log}")
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> None:
        """End the process."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
