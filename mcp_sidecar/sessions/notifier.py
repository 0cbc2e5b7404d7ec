"""How a hint reaches the client: on its open GET stream, else ahead of the next answer that is a stream, else not at all.

What waits is said once, however many heals would say it. Nobody waits for a client that reads slowly: one batch of hints
may be under way to a session, and what comes meanwhile waits, up to a bound. Whatever is dropped is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from mcp_sidecar.facts import Emit, HintDropped
from mcp_sidecar.healing.hints import Hint
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.open_streams import GetStreams, ListenerPort
from mcp_sidecar.wire.sse import encode_event

MAX_WAITING = 3_000
"""How many hints wait for an answer that can carry them, per session."""


class Notifier:
    """Tells the clients of all sessions."""

    def __init__(self, streams: GetStreams, emit: Emit) -> None:
        """``streams`` knows where clients listen."""
        self._streams = streams
        self._emit = emit
        self._under_way: dict[Session, asyncio.Task[bool]] = {}

    def tell(self, session: Session, hints: Iterable[Hint], *, may_wait: bool) -> None:
        """Send hints on the client's GET stream, in the background.

        ``may_wait``: where it cannot carry them now they may go on it later, or ahead of the next answer that is a stream.
        """
        batch = list(hints)
        if may_wait:
            self._keep(session, batch)
            self.tell_waiting(session)
        elif not self._begin(session, batch, may_wait=False):
            self._drop(session, batch)

    def tell_waiting(self, session: Session) -> None:
        """Perhaps the client listens by now."""
        if session.hints and self._begin(session, session.hints, may_wait=True):
            session.take_hints()

    def take_waiting(self, session: Session) -> bytes:
        """The events to send ahead of an answer that is a stream."""
        return _events(session.take_hints())

    def give_up_waiting(self, session: Session) -> None:
        """The answer was no stream: nobody can be told, unless a batch is under way to one that they will follow."""
        if session in self._under_way:
            return
        self._drop(session, session.take_hints())

    async def stop(self) -> None:
        """Tell nobody any more."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, session: Session, batch: Sequence[Hint], *, may_wait: bool) -> bool:
        """Send a batch; false where nobody listens, or another one is under way."""
        listener = self._streams.listener_of(session)
        if not batch or listener is None or session in self._under_way:
            return False
        task = asyncio.create_task(self._send(session, listener, batch, may_wait=may_wait))
        self._under_way[session] = task
        task.add_done_callback(lambda done: self._ended(session, listener, done))
        return True

    async def _send(self, session: Session, listener: ListenerPort, batch: Sequence[Hint], *, may_wait: bool) -> bool:
        was_told = await listener.tell(_events(batch))
        if not was_told:
            self._keep(session, batch) if may_wait else self._drop(session, batch)
        return was_told

    def _ended(self, session: Session, listener: ListenerPort, done: asyncio.Task[bool]) -> None:
        self._under_way.pop(session, None)
        if done.cancelled() or done.exception() is not None:
            return
        if done.result() or self._streams.listener_of(session) is not listener:
            self.tell_waiting(session)  # what came meanwhile, or was left for who listens by now

    def _keep(self, session: Session, batch: Sequence[Hint]) -> None:
        waiting = tuple(dict.fromkeys((*session.hints, *batch)))
        session.keep_hints(waiting[-MAX_WAITING:])
        self._drop(session, waiting[:-MAX_WAITING])

    def _drop(self, session: Session, hints: Iterable[Hint]) -> None:
        for hint in hints:
            self._emit(HintDropped(session.label, hint.kind))


def _events(hints: Iterable[Hint]) -> bytes:
    return b"".join(encode_event(hint.body) for hint in hints)
