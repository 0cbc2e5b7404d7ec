"""Comments on streams that are silent for long, so that nobody on the way takes them for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from mcp_sidecar.downstream.response import Responder


class Keepalive:
    """Comments on streams that have been silent for too long. One for all of them: a task each would cost memory."""

    def __init__(self, interval_s: float, clock: Callable[[], float]) -> None:
        """``interval_s`` is how long a stream may be silent."""
        self._interval_s = interval_s
        self._clock = clock
        self._streams: set[Responder] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, stream: Responder) -> None:
        """Look after a stream."""
        self._streams.add(stream)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def discard(self, stream: Responder) -> None:
        """The stream is over."""
        self._streams.discard(stream)

    async def stop(self) -> None:
        """Look after nobody any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(self._interval_s / 4, 1.0))
            now = self._clock()
            for stream in self._streams:
                if stream.may_comment and now - stream.last_write_at >= self._interval_s:
                    with suppress(Exception):  # the client is leaving; others are not concerned
                        stream.comment()
