"""The upstream's stream of one GET, on its way to the client while both are there.

What comes is relayed as it comes, in the very call that brings it: no task works on a stream on which nothing is to be done,
since there may be thousands of them. It is *parked*. Only what cannot be done at once (a slow client, many events in one
read, the end) has a task go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextvars import Context, copy_context
from typing import Final, TypeVar

from mcp_sidecar import spans
from mcp_sidecar.healing.session import Session
from mcp_sidecar.healing.stream_watch import Ending, StreamWatch
from mcp_sidecar.streams.client_stream import ClientStream
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.events import BATCH_PIECES, SLICE_BYTES, Batch, batches, in_batches
from mcp_sidecar.wire.news import is_news
from mcp_sidecar.wire.sse import EventSplitter

P = TypeVar("P")
R = TypeVar("R")


class LiveStream:
    """Relays one answer; an ``upstream.content.Taker`` while it is parked."""

    __slots__ = ("_answer", "_client", "_context", "_rest", "_session", "_splitter", "began_at", "is_parked", "watch")

    def __init__(
        self,
        answer: Answer,
        client: ClientStream,
        session: Session | None,
        watch: StreamWatch,
        splitter: EventSplitter,
        began_at: float,
    ) -> None:
        """``watch`` sees all that passes; ``began_at`` is kept for whoever asks for it."""
        self._answer: Final = answer
        self._client: Final = client
        self._session: Final = session
        self._splitter: Final = splitter
        self.watch: Final = watch
        self.began_at: Final = began_at
        self.is_parked = False
        self._rest: Batch | Exception | None = None  # what could not be relayed as it came, or why nothing can
        self._context: Context | None = None  # of the request, while it is parked and somebody traces it

    async def relay(self) -> Ending | None:
        """Relay what is there, to the end of the stream; ``None`` where it is parked before that."""
        answer, rest, self._rest = self._answer, self._rest, None
        if isinstance(rest, Exception):
            raise rest
        try:
            await self._relay_batches(in_batches(rest or []))
            while not answer.whole:
                if self._park():
                    return None
                await self._relay_batches(batches(self._splitter, answer.take()))
        except UpstreamFault:
            return Ending.BROKEN
        return Ending.CLEAN

    async def _relay_batches(self, found: AsyncIterator[Batch]) -> None:
        await self._client.drained()
        async for batch in found:
            if not self._relay_now(batch):
                await self._client.drained()
        await self._answer.hold_beside(self._splitter.held_bytes)

    def _relay_now(self, pieces: Batch) -> bool:
        """Whether the client is fast enough for more."""
        watch, session, passed = self.watch, self._session, []
        for piece in pieces:
            data, message = watch.relay(piece)
            if message is not None and session is not None:
                session.heard(message, watch.mark)
                session.progress.note_elsewhere(message)
            passed.append(self._client.fit(data))
        return self._client.relay(passed[0] if len(passed) == 1 else b"".join(passed), in_event=watch.in_fragment)

    # -- while it is parked -------------------------------------------------------------------------------------------

    def _park(self) -> bool:
        """Have what comes relayed as it comes, unless something is there already."""
        self._context = copy_context() if spans.CURRENT.get() is not None else None
        self.is_parked = self._answer.divert(self)
        return self.is_parked

    def resume(self) -> None:
        """There is something that only a task can do, if it is parked."""
        if self.is_parked:
            self.is_parked = False
            self._answer.divert(None)
            self._client.go_on(self._context)

    def within(self, work: Callable[[P], R], argument: P) -> R:
        """Do what a callback brings as the request would do it."""
        return work(argument) if self._context is None else self._context.run(work, argument)

    def over(self) -> None:
        """See ``Taker``."""
        self.resume()

    def arrived(self, data: bytes) -> bool:
        """See ``Taker``. Whatever goes wrong concerns this stream, and not the connection that it comes on."""
        if len(data) > SLICE_BYTES:
            self.resume()
            return False
        try:
            is_done = self._take(data) if self._context is None else self._context.run(self._take, data)
        except Exception as error:  # noqa: BLE001 - raised in the task
            self._rest, is_done = error, False
        if not is_done:
            self.resume()
        return True

    def _take(self, data: bytes) -> bool:
        """Relay a little at once; whether that was all, and more may come."""
        splitter = self._splitter
        if is_news(data) and splitter.lets_pass(data):
            return self._client.relay(data, in_event=False)
        pieces = splitter.feed(data)
        if len(pieces) > BATCH_PIECES:
            pieces, self._rest = pieces[:BATCH_PIECES], pieces[BATCH_PIECES:]
        is_fast = self._relay_now(pieces)
        return self._answer.holds_beside(splitter.held_bytes) and is_fast and self._rest is None
