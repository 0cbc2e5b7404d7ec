"""The open GET streams: who serves them, and on which of them a session's client listens.

A drain ends all of them cleanly at once, a DELETE those of its session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Protocol

from mcp_sidecar.healing.session import Session


class Listener(Protocol):
    """The stream on which a client listens, as far as others need to know it."""

    async def tell(self, events: bytes) -> bool:
        """Send whole events of our own; false where the stream cannot carry them now."""


class GetStreams:
    """Knows whose task serves an open stream, and who listens for a session."""

    def __init__(self) -> None:
        """No streams yet."""
        self._serving: dict[asyncio.Task[object], Session | None] = {}
        self._of_session: dict[Session, set[asyncio.Task[object]]] = {}
        self._listeners: dict[Session, Listener] = {}
        self._ending: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        """How many streams are open."""
        return len(self._serving)

    async def serve(self, work: Awaitable[None], session: Session | None = None) -> bool:
        """Do the work of one stream in this task; false if it was ended from here and not by itself."""
        task = asyncio.current_task()
        assert task is not None, "an exchange runs in a task"
        self._serving[task] = session
        if session is not None:
            self._of_session.setdefault(session, set()).add(task)
        try:
            await work
        except asyncio.CancelledError:
            if task not in self._ending:
                raise
            task.uncancel()
            return False
        finally:
            self._forget(task)
        return True

    def _forget(self, task: asyncio.Task[object]) -> None:
        session = self._serving.pop(task)
        self._ending.discard(task)
        if session is not None:
            self._of_session[session].discard(task)
            if not self._of_session[session]:
                del self._of_session[session]

    def listens(self, session: Session, listener: Listener) -> None:
        """From now on this stream is where the client of the session listens."""
        self._listeners[session] = listener

    def leaves(self, session: Session, listener: Listener) -> None:
        """This stream is over."""
        if self._listeners.get(session) is listener:
            del self._listeners[session]

    def listener_of(self, session: Session) -> Listener | None:
        """Where the client of the session listens, if it does."""
        return self._listeners.get(session)

    def end_all(self) -> None:
        """End every open stream cleanly."""
        self._end(list(self._serving))

    def end_of(self, session: Session) -> None:
        """End the streams of a session that is over: nothing will ever come on them."""
        self._end(list(self._of_session.get(session, ())))

    def _end(self, tasks: Iterable[asyncio.Task[object]]) -> None:
        for task in tasks:
            if task not in self._ending:
                self._ending.add(task)
                task.cancel()
