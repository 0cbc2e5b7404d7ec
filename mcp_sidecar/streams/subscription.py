"""The upstream's side of one listening stream: the GET that is open for it, or is being opened.

There is one at a time, and it belongs to the generation that it was sent under: when a heal has brought the session
elsewhere, what is open or under way is given up for what the heal opened ahead, or for a new GET.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from mcp_sidecar.healing.position import Position
from mcp_sidecar.healing.session import Session, UpstreamSessionId
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.open_streams import OpenStreams
from mcp_sidecar.upstream.answer import Answer, is_event_stream
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.waiting.slots import HEAD_PATIENCE_S
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair

_REPLACED = frozenset({"last-event-id", "accept-encoding"})


class Subscription:
    """Opens the GETs of one listener, with the credentials that came with it."""

    __slots__ = (
        "_ahead",
        "_attached",
        "_call",
        "_may_open_ahead",
        "_position",
        "_streams",
        "_upstream",
        "_waiting",
        "_waits_under",
    )

    def __init__(self, upstream: Upstream, streams: OpenStreams, call: Call, position: Position) -> None:
        """Nothing is open yet."""
        self._upstream = upstream
        self._streams = streams
        self._call = call
        self._position = position
        self._ahead: Ahead | None = None
        self._may_open_ahead = True
        self._attached: tuple[Answer, int] | None = None
        self._waiting: asyncio.Timeout | None = None
        self._waits_under = 1

    @property
    def is_expected(self) -> bool:
        """Whether a heal has opened the next GET already."""
        return self._ahead is not None

    async def get(self, generation: int, *, comes_back: bool) -> Answer | None:
        """The head of the answer to a GET under this generation; ``None`` where a heal came in between.

        ``comes_back``: it is one of perhaps many, and takes its turn. Raises ``UpstreamFault``.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.generation != generation:
            ahead.close()
            ahead = None
        async with self.unless_moved():
            return await (ahead.answer() if ahead is not None else self._send(generation, comes_back=comes_back))
        return None

    async def _send(self, generation: int, *, comes_back: bool) -> Answer:
        async with AsyncExitStack() as stack:
            if comes_back:
                await stack.enter_async_context(self._streams.listening.returning.place())
            return await self._upstream.send(
                "GET", self._call.target, self._headers(generation), may_idle=True, owner=self._call.owner
            )

    def _headers(self, generation: int) -> list[Pair]:
        pairs = self._call.upstream_headers(without=_REPLACED)
        last = self._position.own_id(generation)
        if last is not None:
            pairs.append((headers.LAST_EVENT_ID, last))
        return [*pairs, ("Accept-Encoding", "identity")]

    def attach(self, answer: Answer, generation: int) -> None:
        """From now on, until ``detach``, the answer is what the client listens to."""
        self._attached = answer, generation
        self._streams.upstream.add(self._owner, answer)
        self._break_off_what_is_late()  # a heal may have ended while the client took the head of its stream

    def detach(self) -> None:
        """Its stream is over, if there was one."""
        if self._attached is not None:
            self._streams.upstream.discard(self._owner, self._attached[0])
            self._attached = None

    def _break_off_what_is_late(self) -> None:
        session = self._call.session
        if self._attached is not None and session is not None and self._attached[1] < session.generation:
            self._attached[0].break_off()

    @property
    def _owner(self) -> Session | None:
        return self._call.session

    # -- heals --------------------------------------------------------------------------------------------------------

    async def open_ahead(self, upstream_id: UpstreamSessionId, generation: int) -> None:
        """See ``ListenerPort``. Returns when the head is there, or after ``HEAD_PATIENCE_S``."""
        if not self._may_open_ahead:
            return
        pairs = [pair for pair in self._call.pairs if pair[0].lower() not in _REPLACED]
        pairs += [(headers.SESSION_ID, upstream_id), ("Accept-Encoding", "identity")]
        send = self._upstream.send("GET", self._call.target, pairs, may_idle=True, owner=self._call.owner)
        ahead = Ahead(asyncio.create_task(send), generation)
        self.let_go()
        self._ahead = ahead
        if not await ahead.may_become_a_stream(HEAD_PATIENCE_S) and self._ahead is ahead:
            self.let_go()

    def heal_ended(self) -> None:
        """See ``ListenerPort``. What is open for an earlier upstream session is broken off: nothing will come on it."""
        session = self._call.session
        generation = session.generation if session is not None else 1
        failed_with_it = self._ahead is not None and self._ahead.generation != generation
        self._may_open_ahead = not failed_with_it  # perhaps it was the GET that the new session could not bear
        if failed_with_it:
            self.let_go()
        self._break_off_what_is_late()
        if self._waiting is not None and self._waits_under < generation:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def unless_moved(self) -> AsyncIterator[None]:
        """Leave the block early where a heal ends that brings the session elsewhere."""
        session = self._call.session
        self._waits_under = session.generation if session is not None else 1
        try:
            async with asyncio.timeout(None) as self._waiting:
                yield
        except TimeoutError:
            pass
        finally:
            self._waiting = None

    def let_go(self) -> None:
        """What a heal has opened is not wanted any more."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def close(self) -> None:
        """The client's stream is over."""
        self._may_open_ahead = False
        self.let_go()
        self.detach()


class Ahead:
    """One GET under way, for an upstream session that is not the client's yet."""

    def __init__(self, sending: asyncio.Task[Answer], generation: int) -> None:
        """``generation`` is the one that the session will have if the heal succeeds."""
        self._sending = sending
        self.generation = generation

    async def may_become_a_stream(self, patience_s: float) -> bool:
        """Wait for the head, but not for long; false where it shows that there will be no stream."""
        await asyncio.wait({self._sending}, timeout=patience_s)
        if not self._sending.done():
            return True
        if self._sending.cancelled() or self._sending.exception() is not None:
            return False
        answer = self._sending.result()
        return answer.status == 200 and is_event_stream(answer)

    async def answer(self) -> Answer:
        """The head, whatever it says. Raises ``UpstreamFault``."""
        try:
            return await self._sending
        except asyncio.CancelledError:
            self.close()  # the head may have come just now
            raise

    def close(self) -> None:
        """Nobody wants it."""
        self._sending.cancel()
        self._sending.add_done_callback(_let_go)


def _let_go(sending: asyncio.Task[Answer]) -> None:
    if not sending.cancelled() and sending.exception() is None:
        sending.result().close()
