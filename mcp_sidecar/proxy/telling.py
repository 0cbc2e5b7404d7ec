"""How a hint reaches the client: on its open GET stream, else ahead of the next answer that is a stream, else not at all.

Nobody waits for a client that reads slowly: one batch of hints may be under way to a session, and what comes meanwhile is
dropped. Whatever is dropped is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from mcp_sidecar.healing.facts import Emit, HintDropped
from mcp_sidecar.healing.hints import Hint
from mcp_sidecar.healing.session import Session
from mcp_sidecar.proxy.get_streams import GetStreams, Listener
from mcp_sidecar.wire.sse import encode_event


class Telling:
    """Tells the clients of all sessions."""

    def __init__(self, streams: GetStreams, emit: Emit) -> None:
        """``streams`` knows where clients listen."""
        self._streams = streams
        self._emit = emit
        self._under_way: dict[Session, asyncio.Task[None]] = {}

    def tell(self, session: Session, hints: Iterable[Hint], *, may_wait: bool) -> None:
        """Send hints on the client's GET stream, in the background.

        ``may_wait``: where there is none they may go ahead of the next answer that is a stream.
        """
        batch = list(hints)
        listener = self._streams.listener_of(session)
        if not batch:
            return
        if listener is None and may_wait:
            session.hints = (*session.hints, *batch)
        elif listener is None or session in self._under_way:
            self._drop(session, batch)
        else:
            task = asyncio.create_task(self._send(session, listener, batch))
            self._under_way[session] = task
            task.add_done_callback(lambda _: self._under_way.pop(session, None))

    def take_waiting(self, session: Session) -> bytes:
        """The events to send ahead of an answer that is a stream."""
        hints, session.hints = session.hints, ()
        return _events(hints)

    def give_up_waiting(self, session: Session) -> None:
        """The answer was no stream: nobody can be told."""
        hints, session.hints = session.hints, ()
        self._drop(session, hints)

    async def stop(self) -> None:
        """Tell nobody any more."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, session: Session, listener: Listener, batch: Sequence[Hint]) -> None:
        if not await listener.tell(_events(batch)):
            self._drop(session, batch)

    def _drop(self, session: Session, hints: Iterable[Hint]) -> None:
        for hint in hints:
            self._emit(HintDropped(session.label, hint.kind))


def _events(hints: Iterable[Hint]) -> bytes:
    return b"".join(encode_event(hint.body) for hint in hints)
