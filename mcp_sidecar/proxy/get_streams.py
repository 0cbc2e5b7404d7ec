"""The open GET streams, so that a drain can end all of them cleanly at once, and a DELETE those of its session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

from mcp_sidecar.healing.session import Session


class GetStreams:
    """Knows whose task serves an open stream."""

    def __init__(self) -> None:
        """No streams yet."""
        self._serving: dict[asyncio.Task[object], Session | None] = {}
        self._ending: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        """How many streams are open."""
        return len(self._serving)

    async def serve(self, work: Awaitable[None], session: Session | None = None) -> bool:
        """Do the work of one stream in this task; false if it was ended from here and not by itself."""
        task = asyncio.current_task()
        assert task is not None, "an exchange runs in a task"
        self._serving[task] = session
        try:
            await work
        except asyncio.CancelledError:
            if task not in self._ending:
                raise
            task.uncancel()
            return False
        finally:
            del self._serving[task]
            self._ending.discard(task)
        return True

    def end_all(self) -> None:
        """End every open stream cleanly."""
        self._end(list(self._serving))

    def end_of(self, session: Session) -> None:
        """End the streams of a session that is over: nothing will ever come on them."""
        self._end([task for task, owner in self._serving.items() if owner is session])

    def _end(self, tasks: Iterable[asyncio.Task[object]]) -> None:
        for task in tasks:
            if task not in self._ending:
                self._ending.add(task)
                task.cancel()
