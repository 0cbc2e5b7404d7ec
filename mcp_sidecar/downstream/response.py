"""The client's side of one exchange: nothing sent yet, or an answer under way.

What is passed on is passed on as it is: aiohttp's own additions to a response (Server, Date, a default content type)
are left out. A broken answer is cut, so that nobody takes it for whole.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from http import HTTPStatus

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web

from mcp_sidecar.healing.replies import OwnAnswer
from mcp_sidecar.wire import http1
from mcp_sidecar.wire.headers import Pair, encoded_head
from mcp_sidecar.wire.sse import KEEP_ALIVE, encode_event

_LINGER_ZERO = struct.pack("ii", 1, 0)
_BODILESS = frozenset({204, 304, *range(100, 200)})
_LENGTH_OF_CONTENT_LENGTH = len("content-length")
_ADDED_BY_SERVER = (hdrs.DATE, hdrs.SERVER, hdrs.CONTENT_TYPE)

IN_ONE_PIECE_BYTES = 64 * 1024
"""What is collected at most within one turn of the loop."""

EVENT_STREAM_HEADERS: tuple[Pair, ...] = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)


class UnadornedResponse(web.Response):
    """A response that carries the headers it was given and no others."""

    async def _prepare_headers(self) -> None:
        given = {name for name in _ADDED_BY_SERVER if name in self.headers}
        await super()._prepare_headers()
        for name in _ADDED_BY_SERVER:
            if name not in given:
                self.headers.popall(name, None)


class Responder:
    """Answers one client request, once, and is what the server gets to see of the answer.

    What is written within one turn of the loop leaves in one piece: a whole answer, or the head of a stream with the
    events that were there already.
    """

    __slots__ = (
        "_clock",
        "_has_ended",
        "_has_length",
        "_is_bodiless",
        "_is_chunked",
        "_is_cut",
        "_pending",
        "_pending_bytes",
        "_protocol",
        "_request",
        "has_commented",
        "is_event_stream",
        "keep_alive",
        "last_write_at",
        "may_comment",
        "status",
    )

    def __init__(self, request: web.BaseRequest, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._request = request
        self._clock = clock
        self._protocol = request.protocol
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._is_chunked = False
        self._has_length = False
        self._is_bodiless = False
        self._is_cut = False
        self._has_ended = False
        self.status = 0
        self.keep_alive = not request._message.should_close
        self.is_event_stream = False
        self.may_comment = False
        self.has_commented = False
        self.last_write_at = 0.0

    @property
    def is_committed(self) -> bool:
        """Whether the head of the answer is given, so that no other answer can be."""
        return self.status != 0

    async def start(self, status: int, reason: str | None, pairs: Iterable[Pair]) -> None:
        """Give the head of an answer. It is sent by the end of this turn of the loop."""
        head = self._head(status, _phrase(status) if reason is None else reason, pairs)
        self.status = status
        self.last_write_at = self._clock()
        self._request.writer.output_size += len(head)
        await self._put(head)

    async def start_events(self, pairs: Iterable[Pair] = ()) -> None:
        """Give the head of an event stream of our own."""
        self.is_event_stream = True
        await self.start(HTTPStatus.OK, None, [*EVENT_STREAM_HEADERS, *pairs])

    async def write(self, data: bytes) -> None:
        """Send a part of the body. Waits where the client reads slowly."""
        if data and not self._is_bodiless:
            assert self.status, "the head comes first"
            self.last_write_at = self._clock()
            await self._put(http1.chunk(data) if self._is_chunked else data)

    async def comment(self) -> None:
        """Send an SSE comment, so that nobody takes the stream for dead."""
        self.has_commented = True
        await self.write(KEEP_ALIVE)

    async def give(self, answer: OwnAnswer, pairs: Iterable[Pair] = ()) -> None:
        """Give an answer of our own: as a whole, or as the last event of a stream under way."""
        if self.status:
            if self.is_event_stream and answer.body:
                await self.write(encode_event(answer.body))
            return
        head = [("Content-Type", answer.content_type)] if answer.content_type else []
        if answer.status != HTTPStatus.NO_CONTENT:
            head.append(("Content-Length", str(len(answer.body))))
        await self.start(answer.status, None, [*head, *answer.headers, *pairs])
        await self.write(answer.body)

    def cut(self) -> None:
        """Break off: the client must not take what it has for whole."""
        self._is_cut = True
        self._flush()
        transport = self._protocol.transport
        if transport is None:
            return
        if self._is_chunked or self._has_length:
            transport.close()
        else:
            _reset(transport)  # without a length a closed connection would be a clean end

    # -- what the server asks of a response ---------------------------------------------------------------------------

    async def prepare(self, _: web.BaseRequest) -> None:
        """The head is given by then."""
        assert self.status, "an exchange ended without an answer"

    async def write_eof(self) -> None:
        """End the answer; after ``cut`` there is no end."""
        if self._is_cut:
            raise ConnectionResetError("cut")
        if not self._has_ended:
            self._has_ended = True
            if self._is_chunked:
                self._pending.append(http1.LAST_CHUNK)
            self._flush()
            if self._protocol.writing_paused:
                await self._request.writer.drain()

    # -- how it is sent -----------------------------------------------------------------------------------------------

    def _head(self, status: int, reason: str, pairs: Iterable[Pair]) -> bytes:
        version = self._request.version
        lines = [f"HTTP/{version.major}.{version.minor} {status} {reason}"]
        self._is_bodiless = status in _BODILESS or self._request.method == hdrs.METH_HEAD
        self._is_chunked = self._has_length = False  # of a head that could not be written
        for name, value in pairs:
            if len(name) == _LENGTH_OF_CONTENT_LENGTH and name.lower() == "content-length":
                if status in _BODILESS:
                    continue  # RFC 9110 §8.6
                self._has_length = True
            lines.append(f"{name}: {value}")
        if not self._has_length and not self._is_bodiless:
            if version >= HttpVersion11:
                self._is_chunked = True
                lines.append("Transfer-Encoding: chunked")
            else:
                self.keep_alive = False
        if self.keep_alive is (version == HttpVersion10):
            lines.append("Connection: keep-alive" if self.keep_alive else "Connection: close")
        return encoded_head(lines)

    async def _put(self, data: bytes) -> None:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > IN_ONE_PIECE_BYTES or self._protocol.writing_paused:
            self._flush()
            if self._protocol.writing_paused:
                await self._request.writer.drain()

    def _flush(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        transport = self._protocol.transport
        if pending and transport is not None and not transport.is_closing():
            transport.write(b"".join(pending) if len(pending) > 1 else pending[0])


def last_response(answer: OwnAnswer) -> web.Response:
    """An answer after which the connection is closed, where there never was a request to respond to."""
    response = UnadornedResponse(status=answer.status, body=answer.body, content_type=answer.content_type)
    response.force_close()
    return response


def _reset(transport: asyncio.BaseTransport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
