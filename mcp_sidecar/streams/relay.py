"""Pass an answer on: event by event where it is a stream, chunk by chunk otherwise.

Nothing is held back longer than it takes to know where an event ends, and a broken answer is never ended as if whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mcp_sidecar.config import Limits
from mcp_sidecar.downstream.response import Notes, Responder
from mcp_sidecar.healing.exchange import Exchange
from mcp_sidecar.healing.position import can_be_sent_back
from mcp_sidecar.healing.stream_watch import AfterEnd, Ending, StreamWatch, after_end
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.upstream.answer import Answer, is_event_stream, is_json
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.events import batches, event_batches
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.jsonrpc import Message, NotJson, parse
from mcp_sidecar.wire.sse import BOM, Block, EventSplitter, Fragment

RESUME_HOLDS = 4
"""How many times ``hold_timeout`` a resumed stream may be silent about the request: a minute by default, which is what
clients wait for a call."""

Learn = Callable[[Message, Answer], None]


class Taker(Protocol):
    """Whoever takes the events for the client."""

    may_comment: bool

    @property
    def notes(self) -> Notes:
        """What is remembered of the answer."""

    async def write(self, data: bytes) -> None:
        """Take a part of the stream."""


class Overhearing:
    """Learns from an answer that passes by untouched, and keeps a bounded part of it."""

    def __init__(self, answer: Answer, limit: int, learn: Learn) -> None:
        """``learn`` is shown every message as soon as it is whole, hence before the client has all of it."""
        self._answer = answer
        self._limit = limit
        self._learn = learn
        self._splitter = EventSplitter(limit) if is_event_stream(answer) else None
        self._body = bytearray() if is_json(answer) else None

    async def hear(self, chunk: bytes) -> None:
        """A part of the body has come."""
        if self._splitter is not None:
            async for batch in batches(self._splitter, chunk):
                for piece in batch:
                    self._tell((piece.event.data or "").encode() if isinstance(piece, Block) else b"")
        if self._body is not None:
            self._body += chunk
            if len(self._body) > self._limit:
                self._body = None

    def end(self) -> None:
        """That was all of it."""
        if self._body is not None:
            self._tell(bytes(self._body))

    def _tell(self, body: bytes) -> None:
        try:
            message = parse(body)
        except NotJson:
            return
        self._learn(message, self._answer)


def splitter_for(limits: Limits) -> EventSplitter:
    """Cuts a stream into events. Up to the size of a request they are held whole: half an event is of no use to a client."""
    return EventSplitter(limits.max_request_body)


async def relay_rest(answer: Answer, responder: Responder, overhearing: Overhearing | None = None) -> None:
    """Pass on a body that is nobody's business; where it breaks, so does the client's."""
    try:
        async for chunk in answer.chunks():
            if overhearing is not None:
                await overhearing.hear(chunk)
            await responder.write(chunk)
    except UpstreamFault:
        responder.cut()
        return
    if overhearing is not None:
        overhearing.end()


class EventRelay:
    """Relays the events of one POST, over a resumed stream if need be."""

    def __init__(
        self, services: Services, call: Call, watch: StreamWatch, responder: Taker, learn: Learn, *, has_begun: bool
    ) -> None:
        """``learn`` is shown every message before the client sees it; ``watch`` knows the generation of the stream.

        ``has_begun``: the client has something of its stream already.
        """
        self._services = services
        self._call = call
        self._watch = watch
        self._responder = responder
        self._learn = learn
        self._has_begun = has_begun
        self._give_up_at: float | None = None  # loop time; a resumed stream has brought nothing of ours so far

    async def run(self, answer: Answer, exchange: Exchange) -> AfterEnd:
        """Relay until the stream has ended for good, and say what is left to do; ``exchange`` knows what may be done."""
        blocks_before = -1
        resumed: Answer | None = None
        try:
            while True:
                with self._services.streams.upstream.holding(self._call.session, resumed or answer):
                    ending = await self._relay_in_time(resumed or answer)
                if self._watch.refusal is not None:
                    return AfterEnd.ASK
                if ending is Ending.BROKEN:
                    self._note_break()
                has_advanced = self._watch.blocks > blocks_before
                after = after_end(
                    self._watch,
                    ending,
                    may_resend=exchange.may_resend_stream,
                    may_resume=has_advanced and self._may_resume(),
                    may_ask=exchange.may_ask,
                )
                if after is not AfterEnd.RESUME:
                    return after
                blocks_before = self._watch.blocks
                self._watch.note_begun()
                if self._give_up_at is None:
                    self._give_up_at = asyncio.get_running_loop().time() + self._patience_s
                if resumed is not None:
                    resumed.close()
                resumed = await self._resume()
                if resumed is None:
                    return after_end(self._watch, ending, may_resend=exchange.may_resend_stream, may_resume=False)
        finally:
            if resumed is not None:
                resumed.close()

    def _note_break(self) -> None:
        """Whoever listens, too, looks after it on that stream."""
        session, services = self._call.session, self._services
        if session is not None and services.streams.listening.listener_of(session) is None:
            services.sessions.refresher.broke(session, self._watch.mark.generation, self._call.trigger)

    @property
    def _patience_s(self) -> float:
        return self._services.policy.hold_timeout_s * RESUME_HOLDS

    async def _relay_in_time(self, answer: Answer) -> Ending:
        """Servers without an event store may take a resume for a new listener, and never bring what is waited for."""
        if self._give_up_at is None:
            return await self._relay(answer, None)
        try:
            async with asyncio.timeout_at(self._give_up_at) as deadline:
                return await self._relay(answer, deadline)
        except TimeoutError:
            return Ending.BROKEN

    async def _relay(self, answer: Answer, deadline: asyncio.Timeout | None) -> Ending:
        heard_before = self._watch.heard
        splitter = splitter_for(self._services.limits)
        try:
            async for batch in event_batches(answer, splitter):
                data = b"".join([self._pass(piece, answer) for piece in batch])
                if deadline is not None and self._give_up_at is not None and self._watch.heard > heard_before:
                    self._give_up_at = None
                    deadline.reschedule(None)
                self._responder.may_comment = not self._watch.in_fragment
                await self._responder.write(data)
                self._responder.notes.is_answered = self._watch.answered
                if self._watch.refusal is not None:
                    return Ending.CLEAN
        except UpstreamFault:
            return Ending.BROKEN
        if not self._watch.unanswered:
            await self._responder.write(splitter.pending)
        return Ending.CLEAN

    def _pass(self, piece: Block | Fragment, answer: Answer) -> bytes:
        data, message = self._watch.relay(piece)
        if message is not None:
            self._learn(message, answer)
        if data == BOM and self._has_begun:
            return b""  # in the middle of a stream it would be part of a field's name, and an event be lost
        self._has_begun = True
        return data

    def _may_resume(self) -> bool:
        session = self._call.session
        if self._give_up_at is not None and asyncio.get_running_loop().time() >= self._give_up_at:
            return False
        if session is None or session.displaced or not self._services.policy.heals:
            return False
        if not can_be_sent_back(self._watch.last_event_id or ""):
            return False
        return session.generation == self._watch.mark.generation

    async def _resume(self) -> Answer | None:
        """One GET with the last event id, on the same session and with this request's credentials."""
        assert self._watch.last_event_id is not None
        pairs = self._call.upstream_headers(without={"accept", "accept-encoding", "content-type"})
        pairs += [
            ("Accept", "text/event-stream"),
            ("Accept-Encoding", "identity"),
            (headers.LAST_EVENT_ID, self._watch.last_event_id),
        ]
        try:
            async with asyncio.timeout_at(self._give_up_at):  # some send no head before their first event
                answer = await self._get(pairs)
        except (UpstreamFault, TimeoutError):
            return None
        if answer.status == 200 and is_event_stream(answer):
            return answer
        answer.close()
        return None

    async def _get(self, pairs: list[Pair]) -> Answer:
        """A server that ends a stream may close its connection right behind it, and a GET that meets that is sent again."""
        try:
            return await self._services.upstream.send("GET", self._call.target, pairs, owner=self._call.owner)
        except UpstreamFault as fault:
            if fault.fault is not Fault.BROKEN:
                raise
        return await self._services.upstream.send("GET", self._call.target, pairs, owner=self._call.owner)
