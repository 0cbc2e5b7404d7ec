"""The open GET streams, so that a drain can end all of them cleanly at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


class GetStreams:
    """Knows whose task serves an open stream."""

    def __init__(self) -> None:
        """No streams yet."""
        self._serving: set[asyncio.Task[object]] = set()
        self._ending: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        """How many streams are open."""
        return len(self._serving)

    async def serve(self, work: Awaitable[None]) -> bool:
        """Do the work of one stream in this task; false if it was ended from here and not by itself."""
        task = asyncio.current_task()
        assert task is not None, "an exchange runs in a task"
        self._serving.add(task)
        try:
            await work
        except asyncio.CancelledError:
            if task not in self._ending:
                raise
            task.uncancel()
            return False
        finally:
            self._serving.discard(task)
            self._ending.discard(task)
        return True

    def end_all(self) -> None:
        """End every open stream cleanly."""
        for task in self._serving - self._ending:
            self._ending.add(task)
            task.cancel()
