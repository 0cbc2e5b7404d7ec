"""One connection to the upstream: a request goes out, its answer comes in, and then perhaps the next one.

Where an answer begins and ends is for ``wire.response`` to say; what stands here is what lies between: whom an answer is
for, when silence has lasted too long, and whether the connection is fit for another request.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, cast

from mcp_sidecar import socket_write
from mcp_sidecar.config import Limits
from mcp_sidecar.upstream.content import CHUNK_BYTES, NO_CONTENT, Content, UpstreamFault
from mcp_sidecar.upstream.idle_timer import IdleTimer
from mcp_sidecar.upstream.upload import Body, Flow, Upload
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.response import ResponseHead, ResponseReader

__all__ = ["CHUNK_BYTES", "Body", "Connection", "Received", "UpstreamFault", "Watcher"]

Received = tuple[ResponseHead, Content]
"""The head of an answer and where its body arrives."""


class Watcher(Protocol):
    """Who looks at the bytes of an answer before any reader does."""

    def arrived(self, data: bytes) -> None:
        """A part of the answer."""

    def broke(self) -> None:
        """There will be no more. The connection is to be handed to the reader now, which tells the rest."""


@dataclass(slots=True)
class Turn:
    """One request and its answer, which is read. ``waiter`` waits for the head."""

    reader: ResponseReader
    content: Content = NO_CONTENT
    waiter: asyncio.Future[Received] | None = None
    has_come: bool = False
    """Some byte of the answer."""


class Connection(asyncio.Protocol):
    """A protocol that asks one thing at a time.

    ``idle_time_s`` is for how long the server keeps the connection without a request, where it has said so.
    ``bound_to`` is the only client's connection that it may serve; see ``pool``.
    """

    def __init__(self, limits: Limits, on_lost: Callable[[Connection], None]) -> None:
        """``on_lost`` is called when it is closed."""
        self.transport: asyncio.Transport | None = None
        self.idle_time_s: float | None = None
        self.bound_to: Hashable | None = None
        self._max_head_bytes = limits.max_header_bytes
        self._on_lost = on_lost
        self._turn: Turn | None = None
        self._watcher: Watcher | None = None  # while nobody reads
        self._upload: Upload | None = None
        self._has_served = False
        self._is_spoilt = False
        self._has_eof = False  # it was the server that has ended it
        self._ear: select.poll | None = None
        self._descriptor: int | None = None  # see ``socket_write``
        self._flow = Flow()
        self._unsent = 0  # bytes, when the upstream was last looked at for taking nothing
        self._silence = IdleTimer(asyncio.get_running_loop(), self._stalled)

    # -- what the owner asks ------------------------------------------------------------------------------------------

    async def request(
        self, head: bytes, body: Body, *, is_head: bool, is_chunked: bool, patience_s: float | None
    ) -> Received:
        """Send a request and wait for the head of its answer, for as long as not ``patience_s`` pass in silence.

        ``body`` is sent as it comes, also while the answer is on its way. Raises ``UpstreamFault``. Whatever goes wrong,
        a cancellation included, leaves the connection closed.
        """
        self._silence.set_patience(patience_s)
        self._begin(is_head=is_head)
        try:
            self._send(head, body, is_chunked=is_chunked)
        except BaseException:
            self.abort()
            raise
        return await self.received()

    async def received(self) -> Received:
        """Wait for the head of the answer, as ``request`` does."""
        turn = self._turn
        assert turn is not None, "a request is under way"
        assert turn.waiter is not None, "and its answer is read"
        try:
            return await turn.waiter
        except BaseException:
            self.abort()
            raise
        finally:
            turn.waiter = None

    def ask(self, request: bytes, patience_s: float, watcher: Watcher) -> None:
        """Send a whole request, whose answer goes to ``watcher`` as it comes."""
        assert self.transport is not None
        self._watcher = watcher
        self._silence.set_patience(patience_s)
        socket_write.write(self.transport, self._descriptor, request)
        self._silence.start()

    def note_life(self) -> None:
        """A part of an answer has come that is watched."""
        self._silence.start()

    def parse(self, *arrived: bytes) -> None:
        """From now on the answer is read, what has ``arrived`` of it included: ``received`` tells its head."""
        self._watcher = None
        self._begin(is_head=False)
        for piece in filter(None, arrived):
            self.data_received(piece)

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        turn, self._watcher = self._turn, None
        if turn is not None and turn.waiter is not None and not turn.waiter.cancel():
            turn.waiter.exception()  # told to nobody
        self.abort()

    def _begin(self, *, is_head: bool) -> None:
        """The answer to a request is to be read."""
        self._turn = turn = Turn(ResponseReader(to_head=is_head, max_head_bytes=self._max_head_bytes))
        turn.waiter = asyncio.get_running_loop().create_future()

    def bear_silence(self, patience_s: float | None) -> None:
        """Let the rest of the answer be silent for so many seconds at a time, or for ever."""
        self._silence.set_patience(patience_s)
        if self._turn is not None and not self._turn.content.is_over:
            self._silence.start()

    @property
    def is_listening(self) -> bool:
        """Whether this is a stream on which nothing in particular is waited for."""
        return self._silence.is_endless

    @property
    def unanswered_s(self) -> float:
        """How long a request has been here without the first byte of an answer."""
        return 0.0 if self._turn is not None and self._turn.has_come else self._silence.silent_s

    def finish(self) -> bool:
        """The answer is of no more interest: whether the connection can take the next request. Else it is to be closed."""
        turn, self._turn, self._watcher = self._turn, None, None
        self._silence.rest()
        self._has_served = True
        is_plain = turn is None or turn.reader.may_be_followed
        return is_plain and self._upload is None and not self._is_spoilt and self.is_connected()

    def is_connected(self) -> bool:
        """Whether neither side has closed it yet, as far as is known."""
        return self.transport is not None and not self.transport.is_closing()

    def is_quiet(self) -> bool:
        """Whether nothing has come on a free connection, not even its end, that the loop did not get to see yet."""
        return not self._is_spoilt and self.is_connected() and not (self._ear is not None and self._ear.poll(0))

    def close(self) -> None:
        """Close it; at once where a request is still being sent."""
        if self._upload is not None:
            self.abort()
            return
        self._silence.stop()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close it without sending what is still to be sent."""
        self._let_go()
        if self.transport is not None:
            self.transport.abort()

    def break_off(self) -> None:
        """Close it under the eyes of whoever reads the answer."""
        if self._turn is not None:
            self._turn.content.fail(Fault.BROKEN)
        self.abort()

    # -- what the transport tells -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there, for https with its handshake."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by name
        sock = transport.get_extra_info("socket")
        self._descriptor = socket_write.descriptor_of(transport)
        if sock is not None:
            self._ear = select.poll()
            self._ear.register(sock.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        turn = self._turn
        if self._watcher is not None:
            self._watcher.arrived(data)
        elif turn is None:  # nobody has asked for anything
            self._is_spoilt = True
            self.close()
        else:
            turn.has_come = True
            self._silence.start()
            self._receive(turn, turn.reader.feed(data))
            if turn.reader.is_broken:
                self._fail(Fault.GARBLED)

    def eof_received(self) -> None:
        """Nothing more will come. The transport closes itself."""
        self._is_spoilt = True
        self._has_eof = self.transport is not None and _is_meant(self.transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The end of an answer that ends with its connection; a break for every other one that is under way."""
        if self._watcher is not None:
            self._watcher.broke()
        turn = self._turn
        self._let_go()
        if turn is not None:
            if exc is None and self._has_eof and turn.reader.ends_with_connection:
                turn.content.end()
            turn.content.fail(Fault.BROKEN)
            self._refuse(turn, Fault.BROKEN)
        self.transport = None
        self._on_lost(self)

    def pause_reading(self) -> None:
        """Whoever reads is slow; that is not the upstream's silence."""
        self._silence.rest()
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
            if self._turn is not None and not self._turn.content.is_over:
                self._silence.start()

    def pause_writing(self) -> None:
        """The upstream is slow, and it is its turn as long as it takes nothing."""
        self._flow.pause()
        self._unsent = self._size_of_unsent()
        self._silence.start()

    def resume_writing(self) -> None:
        """Go on. What is still to be sent is nobody's silence but the client's, unless an answer is on its way."""
        self._flow.resume()
        if self._upload is not None and self._turn is not None and not self._turn.has_come:
            self._silence.rest()

    # -- the answer ---------------------------------------------------------------------------------------------------

    def _receive(self, turn: Turn, data: bytes) -> None:
        """A part of the answer was read; ``data`` is what it brought of the body."""
        reader, head = turn.reader, turn.reader.head
        if head is None:
            return
        if turn.content is NO_CONTENT:
            if turn.waiter is None or turn.waiter.done():  # nobody waits any more
                return
            self.idle_time_s = head.idle_time_s
            turn.content = Content(self)
            turn.waiter.set_result((head, turn.content))
        if data:
            turn.content.feed(data)
        if reader.has_ended and not turn.content.is_over:
            turn.content.end()
            self._note_end()

    def _note_end(self) -> None:
        """All of the answer has come. An upstream that has said everything need not hear the rest of the request."""
        self._silence.rest()
        self._drop_upload()

    def _stalled(self) -> None:
        before, self._unsent = self._unsent, self._size_of_unsent()
        if self._flow.is_paused and self._unsent < before:  # it has taken a little
            self._silence.start()
        else:
            self._fail(Fault.STALLED)

    def _size_of_unsent(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def _fail(self, fault: Fault) -> None:
        """Nothing more is to be expected here. A body that has begun is broken, whatever is wrong with it."""
        self._is_spoilt = True
        if self._watcher is not None:
            self._watcher.broke()
        turn = self._turn
        if turn is not None:
            self._refuse(turn, fault)
            turn.content.fail(Fault.BROKEN if fault is Fault.GARBLED else fault)
        self.abort()

    def _refuse(self, turn: Turn, fault: Fault) -> None:
        """There will be no head, if one is waited for."""
        if turn.waiter is not None and not turn.waiter.done():
            was_stale = fault is Fault.BROKEN and self._has_served and not turn.has_come
            turn.waiter.set_exception(UpstreamFault(fault, was_stale=was_stale))

    # -- the request --------------------------------------------------------------------------------------------------

    def _send(self, head: bytes, body: Body, *, is_chunked: bool) -> None:
        assert self.transport is not None
        if body is None or (isinstance(body, bytes) and len(body) <= CHUNK_BYTES):
            socket_write.write(self.transport, self._descriptor, head + body if body else head)
            self._silence.start()
            return
        self.transport.write(head)
        self._upload = Upload(self.transport, self._flow, self._note_sent)
        self._upload.start(body, is_chunked=is_chunked)

    def _note_sent(self, is_whole: bool) -> None:
        """An answer to half a request may be read to its end where it has begun; else it is not waited for."""
        self._upload = None
        turn = self._turn
        if not is_whole:
            self._is_spoilt = True
            if turn is not None:
                self._refuse(turn, Fault.BROKEN)
        elif turn is not None and not turn.reader.has_ended:
            self._silence.start()

    def _drop_upload(self) -> None:
        if self._upload is not None:
            self._is_spoilt = True
            self._upload.cancel()

    def _let_go(self) -> None:
        self._silence.stop()
        self._drop_upload()
        self._flow.resume()


def _is_meant(transport: asyncio.BaseTransport) -> bool:
    """Whether it is the server that has ended a connection. Over TLS a close_notify says so: anybody can send a FIN."""
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    try:
        tls.read(1)
    except ssl.SSLWantReadError:  # it waits for more
        return False
    except ssl.SSLError:
        pass
    return True
