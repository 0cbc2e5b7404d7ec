"""A client's connection: one request comes in, its answer goes out, and then perhaps the next one.

The mirror of ``upstream.connection``. ``wire.request`` reads heads; where a message ends is read here and nowhere else.
The rule of this file: what arrives before an answer has ended is not interpreted, and the connection closes behind that
answer; so it does behind everything that is not plain. In doubt the client opens another connection.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import cast

from mcp_sidecar import socket_write
from mcp_sidecar.downstream.common import Common, Passage
from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.response import Responder, last_answer
from mcp_sidecar.downstream.upload import Upload
from mcp_sidecar.wire.framing import END_OF_HEAD, BadFraming, BodyFraming
from mcp_sidecar.wire.request import Fault, Unreadable

MAX_LEFTOVER_BYTES = 1024 * 1024
"""So much of what a client sends behind its last answer is read."""

_LONGEST_END = len(END_OF_HEAD) - 1


class Phase(Enum):
    """What a connection is at."""

    IDLE = "no request has begun"
    HEAD = "a head has begun"
    PASSAGE = "the fast path has the request"
    EXCHANGE = "a request is under way"
    LINGERING = "the last answer is given, and the client still sends"
    CLOSING = "what is written is still to be taken"


class ClientConnection(asyncio.Protocol):
    """Serves one request at a time. All ordinary ones of a connection are answered in one task."""

    __slots__ = (
        "__weakref__",
        "_begun",
        "_common",
        "_descriptor",
        "_drains",
        "_framing",
        "_in_flight",
        "_is_last",
        "_leftover",
        "_passage",
        "_phase",
        "_quiet_since",
        "_request",
        "_responder",
        "_sends_on",
        "_sent",
        "_stuck_since",
        "_taken",
        "_task",
        "_upload",
        "_wake",
        "is_slow",
        "peer",
        "transport",
    )

    def __init__(self, common: Common) -> None:
        """It joins those that are looked after as soon as it is connected."""
        self._common = common
        self.transport: asyncio.Transport | None = None
        self._descriptor: int | None = None  # see ``socket_write``
        self.peer: str | None = None
        self.is_slow = False
        self._is_last = False
        self._phase = Phase.IDLE
        self._begun = b""  # of a head
        self._passage: Passage | None = None
        self._in_flight: object | None = None  # what goes with the next request
        self._request: Request | None = None  # nobody has turned to it yet
        self._upload: Upload | None = None
        self._framing: BodyFraming | None = None  # of a body that has not ended
        self._leftover = 0  # that has come behind the last answer
        self._sends_on = False  # more has come than was to be read
        self._responder: Responder | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None  # the task waits for a request
        self._drains: list[asyncio.Future[None]] = []
        self._sent = self._taken = 0
        self._quiet_since: float | None = None
        self._stuck_since = 0.0

    # -- what the transport tells -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        self._descriptor = socket_write.descriptor_of(transport)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple | list) and peer else str(peer) if peer else None
        self._common.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - whatever the reason is
        """The client has left, or was sent away."""
        self.transport = None
        self._phase = Phase.CLOSING
        self._common.lost(self)
        self._common.handler.note_gone(self)
        if self._passage is not None:
            passage, self._passage = self._passage, None
            passage.client_left()
        if self._request is not None:
            request, self._request = self._request, None
            self._common.handler.note_left(request)
        self._upload = self._framing = None
        self._wake_writers()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Read on, as far as it is the client's turn."""
        phase = self._phase
        if phase is Phase.IDLE:
            self._quiet_since = None
            self._begin(data)
        elif phase is Phase.EXCHANGE:
            self._quiet_since = None
            self._read_body(data)
        elif phase is Phase.HEAD:
            self._quiet_since = None
            self._read_head(data)
        elif phase is Phase.PASSAGE:
            self._quiet_since = None
            assert self._passage is not None
            self._passage.received(data)
        elif phase is Phase.LINGERING:
            self._read_to_nobody(data)

    def pause_writing(self) -> None:
        """The client is slow."""
        self.is_slow = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_slow = False
        self._wake_writers()

    # -- a request ----------------------------------------------------------------------------------------------------

    def _begin(self, data: bytes) -> None:
        """What comes on an idle connection."""
        door = self._common.door
        if door is not None and not (self.is_slow or self._common.is_draining):
            passage = door(self, data)
            if passage is not None:
                self._phase, self._passage = Phase.PASSAGE, passage
                return
        self._read_head(data)

    def _read_head(self, data: bytes) -> None:
        begun, self._begun = self._begun, b""
        data = begun + data if begun else data
        start = max(0, len(begun) - _LONGEST_END)
        end = data.find(END_OF_HEAD, start) + len(END_OF_HEAD)
        if end < len(END_OF_HEAD):
            self._wait_for_head(data)
            return
        try:
            if end == len(data):
                self._take(data, b"")
            else:
                self._take(data[:end], data[end:])
        except Unreadable as error:
            self._refuse(error.fault)

    def _wait_for_head(self, begun: bytes) -> None:
        self._begun = begun
        self._phase = Phase.HEAD if begun else Phase.IDLE
        fault = self._common.heads.fault_of(begun) if begun else None
        if fault is not None:
            self._refuse(fault)

    def _take(self, head: bytes, behind: bytes) -> None:
        """A head is whole: have its request served."""
        read = self._common.heads.read(head)
        request, framing = Request(read, self.peer), read.framing
        request.connection = self
        self._framing = framing
        if framing is not None:
            awaits_continue = not request.is_http10 and (read.fields.value("expect") or "").lower() == "100-continue"
            self._upload = request.upload = Upload(self, awaits_continue=awaits_continue)
        self._phase = Phase.EXCHANGE
        if behind and not self._read_body(behind):
            raise Unreadable(Fault.UNREADABLE)
        if self._framing is not None:
            self.pause_reading()  # until somebody wants the body
        request.in_flight, self._in_flight = self._in_flight, None
        self._request = request
        if self._wake is not None:
            if not self._wake.done():
                self._wake.set_result(None)
        elif self._task is None:
            self._task = self._common.loop.create_task(self._serve())

    def _read_body(self, data: bytes) -> bool:
        """A part of the body, or what nobody has asked for. False where the body is broken."""
        framing, upload = self._framing, self._upload
        if framing is None or upload is None:
            self._is_last = self._sends_on = True
            return True
        try:
            part, behind = framing.feed(data)
        except BadFraming:
            self._break_body()
            return False
        upload.feed(part)
        if framing.is_whole:
            self._framing = None
            upload.end()
            if behind:
                self._sends_on = True
            if behind or not framing.is_plain:
                self._is_last = True
        return True

    def _break_body(self) -> None:
        """What was to come of the body does not."""
        self._framing = None
        self._is_last = self._sends_on = True
        if self._upload is not None:
            self._upload.fail()

    def _read_to_nobody(self, data: bytes) -> None:
        """Behind the last answer: the rest of a body to its end, and of anything else a little."""
        framing = self._framing
        if framing is not None:
            try:
                framing.feed(data)
            except BadFraming:
                self._framing = None
            if framing.is_whole:
                self.close()
        else:
            self._leftover += len(data)
            if self._leftover > MAX_LEFTOVER_BYTES:
                self.abort()

    def _refuse(self, fault: Fault) -> None:
        """Tell the client so, once, and interpret nothing more that it sends."""
        answer = self._common.refusals[fault]
        self._common.handler.note_unread(answer)
        self.write(last_answer(answer))
        self._framing = self._upload = None
        self._begun = b""
        self._leave(lingers=True)

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            while await self._serve_next():
                pass
        finally:
            self._task = None

    async def _serve_next(self) -> bool:
        """Whether the connection may serve another request."""
        if self._request is None:
            self._wake = self._common.loop.create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        request, self._request = self._request, None
        if request is None:
            return False
        responder = self._responder = Responder(self, request, self._common.clock)
        try:
            await self._common.handler.handle(request, responder)
            del request  # so that what it holds is gone while a slow client takes the last of its answer
            await responder.end()
        except ConnectionError:
            self.close()
            return False
        except Exception as error:  # noqa: BLE001 - a bug: nobody knows what the client has got
            self._common.handler.note_failed(error)
            self.abort()
            return False
        finally:
            responder.let_go()
            self._responder = self._upload = None
        return self._may_go_on(responder)

    @property
    def is_last(self) -> bool:
        """Whether nothing is served behind the answer that is under way."""
        return self._is_last or self._common.is_draining

    def _may_go_on(self, responder: Responder) -> bool:
        if self.transport is None or self._phase is not Phase.EXCHANGE:
            return False
        is_sending = self._sends_on or self._framing is not None
        # Whoever has not been told that this answer is the last may send the next request already: it is told then.
        is_last = self._is_last or self._common.is_closing
        if is_sending or is_last or not responder.keep_alive:
            self._leave(lingers=is_sending)
            return False
        self._phase, self._quiet_since = Phase.IDLE, None
        return True

    def write(self, data: bytes) -> None:
        """Send, unless the client has left."""
        if self.transport is not None and not self.transport.is_closing():
            self._sent += len(data)
            socket_write.write(self.transport, self._descriptor, data)

    async def drained(self) -> None:
        """Wait until the client has taken most of what was sent. Raises ``ConnectionResetError`` where it leaves."""
        while self.is_slow and self.transport is not None:
            waiter = self._common.loop.create_future()
            self._drains.append(waiter)
            try:
                await waiter
            finally:
                self._drains.remove(waiter)
        if self.transport is None:
            raise ConnectionResetError("the client has left")

    def _wake_writers(self) -> None:
        for waiter in self._drains:
            if not waiter.done():
                waiter.set_result(None)

    # -- the fast path ------------------------------------------------------------------------------------------------

    def answer(self, data: bytes) -> None:
        """Give the whole answer to the request on the fast path."""
        self._passage = None
        self._phase, self._quiet_since = Phase.IDLE, None
        is_last = self._common.is_draining
        self.write(data.replace(END_OF_HEAD, b"\r\nConnection: close" + END_OF_HEAD, 1) if is_last else data)
        if is_last:
            self.close()

    def take_back(self, data: bytes, in_flight: object | None = None) -> None:
        """Have the ordinary way go on with what has come of the request on the fast path."""
        self._passage = None
        self._in_flight = in_flight
        self._phase, self._quiet_since = Phase.IDLE, None
        self._read_head(data)

    # -- flow and end -------------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Take nothing from the client for now."""
        if self.transport is not None and self.transport.is_reading():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        if self.transport is not None and not self.transport.is_closing() and not self.transport.is_reading():
            self._quiet_since = None
            self.transport.resume_reading()

    @property
    def is_idle(self) -> bool:
        """Whether no request has begun."""
        return self._phase is Phase.IDLE

    def close_idle(self) -> None:
        """Close it, unless a request is under way or has begun."""
        if self.is_idle:
            self.close()

    def close(self) -> None:
        """Close it as soon as the client has taken what is written."""
        self._phase, self._quiet_since = Phase.CLOSING, None
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close it at once."""
        self._phase = Phase.CLOSING
        if self.transport is not None:
            self.transport.abort()

    def cancel(self) -> asyncio.Task[None] | None:
        """Give up what is under way, and close it at once. The task that ends with it, if there is one."""
        task = self._task
        if task is not None:
            task.cancel()
        self.abort()
        return task

    def _leave(self, *, lingers: bool) -> None:
        """Close behind the answer; where the client ``lingers`` over its request, read on for a while."""
        if not lingers or self.transport is None or self.transport.is_closing():
            self.close()
            return
        self._phase, self._quiet_since = Phase.LINGERING, None
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume_reading()

    # -- time ---------------------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Give up a client that has been silent for too long while it was its turn, or has taken nothing."""
        transport = self.transport
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if waiting and self._has_been_stuck(waiting, now):
            self.abort()
            return
        still_takes = waiting and self._phase in (Phase.IDLE, Phase.CLOSING)
        patience_s = None if still_takes else self._patience_s()
        if patience_s is None:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        elif now - self._quiet_since >= patience_s:
            self._give_up()

    def _has_been_stuck(self, waiting: int, now: float) -> bool:
        taken = self._sent - waiting
        if taken != self._taken:
            self._taken, self._stuck_since = taken, now
            return False
        is_stream = self._responder is not None and self._responder.is_event_stream
        patience = self._common.patience
        return now - self._stuck_since >= (patience.stream_s if is_stream else patience.client_s)

    def _patience_s(self) -> float | None:
        """How long the client may be silent; ``None`` where it is not its turn."""
        patience = self._common.patience
        match self._phase:
            case Phase.IDLE:
                is_kept = self._sent > 0 and not self._common.is_crowded
                return patience.idle_of(self.peer) if is_kept else patience.idle_s
            case Phase.LINGERING:
                return patience.linger_s
            case Phase.PASSAGE:
                assert self._passage is not None
                return patience.client_s if self._passage.awaits_client else None
            case Phase.EXCHANGE:
                return patience.client_s if self._is_clients_turn() else None
            case Phase.HEAD | Phase.CLOSING:
                return patience.client_s

    def _is_clients_turn(self) -> bool:
        upload, transport = self._upload, self.transport
        if self._framing is None or upload is None or transport is None:
            return False
        return not upload.awaits_continue and transport.is_reading()

    def _give_up(self) -> None:
        match self._phase:
            case Phase.IDLE | Phase.LINGERING:
                self.close()
            case Phase.HEAD:
                self._refuse(Fault.HEAD_TOO_SLOW)
            case Phase.EXCHANGE if self._responder is None or not self._responder.is_committed:
                self._break_body()
            case _:
                self.abort()
