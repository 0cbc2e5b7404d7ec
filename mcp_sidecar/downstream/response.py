"""The client's side of one exchange: nothing sent yet, or an answer under way.

What is passed on is passed on as it is; no Server, Date or content type is added. A broken answer is cut, so that nobody
takes it for whole.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from mcp_sidecar.downstream.request import Request
from mcp_sidecar.wire import framing
from mcp_sidecar.wire.headers import Pair, encoded_head
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.sse import KEEP_ALIVE, encode_event

_LINGER_ZERO = struct.pack("ii", 1, 0)
_BODILESS = frozenset({204, 304, *range(100, 200)})
_LENGTH_OF_CONTENT_LENGTH = len("content-length")

IN_ONE_PIECE_BYTES = 64 * 1024
"""What is collected at most within one turn of the loop."""

SAID_BYTES = 512

EVENT_STREAM_HEADERS: tuple[Pair, ...] = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)


class Client(Protocol):
    """The connection that an answer goes to."""

    transport: asyncio.Transport | None
    is_slow: bool
    """Whether it has not taken what was sent before."""

    @property
    def is_last(self) -> bool:
        """Whether nothing is served behind this answer."""

    def write(self, data: bytes) -> None:
        """Send."""

    async def drained(self) -> None:
        """Wait until it has taken most of what was sent."""

    def go_on(self, context: Context | None) -> None:
        """Have a task carry out what is left of the exchange that is parked."""


class Parked(Protocol):
    """An exchange that is open while no task works on it, since nothing is to be done.

    It is over by one of the two, each called once at most.
    """

    async def go_on(self) -> None:
        """Something is to be done now: do it, to the end or until it is parked again."""

    def left(self) -> None:
        """The client has left."""


@dataclass(slots=True)
class Notes:
    """What is remembered of an answer that has gone out.

    ``said`` is the beginning of an error's body, ``told`` the reason that an answer of our own gives; ``is_answered`` is set
    as soon as what the client waits for has gone out, whatever is still to come.
    """

    said: bytes = b""
    told: str = ""
    is_answered: bool = False


class Page(Protocol):
    """The web page that an answer goes to, if it goes to one."""

    def passed(self, status: int, pairs: Iterable[Pair]) -> None:
        """The upstream's answer goes to it."""

    def own(self) -> tuple[Pair, ...]:
        """The headers that an answer of our own has for it."""


class Responder:
    """Answers one client request, once.

    What is written within one turn of the loop leaves in one piece: a whole answer, or the head of a stream with the
    events that were there already.
    """

    __slots__ = (
        "_client",
        "_clock",
        "_has_length",
        "_is_bodiless",
        "_is_chunked",
        "_is_cut",
        "_is_head",
        "_is_http10",
        "_pending",
        "_pending_bytes",
        "has_commented",
        "is_event_stream",
        "keep_alive",
        "last_write_at",
        "may_comment",
        "notes",
        "page",
        "parked",
        "status",
        "tap",
    )

    def __init__(self, client: Client, request: Request, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._client: Client | None = client
        self._clock = clock
        self._is_head = request.method == "HEAD"
        self._is_http10 = request.is_http10
        self._pending: list[bytes] | None = None
        self._pending_bytes = 0
        self._is_chunked = False
        self._has_length = False
        self._is_bodiless = False
        self._is_cut = False
        self.status = 0
        self.notes = Notes()
        self.page: Page | None = None
        self.parked: Parked | None = None
        """Set by whoever answers, who then returns without having ended."""
        self.keep_alive = request.keep_alive
        self.is_event_stream = False
        self.may_comment = False
        self.has_commented = False
        self.last_write_at = 0.0
        self.tap: Callable[[bytes], None] | None = None
        """Is shown the body as it goes to the client."""

    @property
    def is_cut(self) -> bool:
        """Whether the client knows that it has not got all of its answer."""
        return self._is_cut

    @property
    def is_committed(self) -> bool:
        """Whether the head of the answer is given, so that no other answer can be."""
        return self.status != 0

    async def start(self, status: int, reason: str | None, pairs: Iterable[Pair]) -> None:
        """Give the head of the upstream's answer. It is sent by the end of this turn of the loop."""
        if self.page is not None:
            pairs = list(pairs)
            self.page.passed(status, pairs)
        await self._start(status, reason, pairs)

    async def _start(self, status: int, reason: str | None, pairs: Iterable[Pair]) -> None:
        head = self._head(status, _phrase(status) if reason is None else reason, pairs)
        self.status = status
        self.last_write_at = self._clock()
        await self._put(head)

    async def start_events(self, pairs: Iterable[Pair] = ()) -> None:
        """Give the head of an event stream of our own."""
        self.is_event_stream = True
        await self._start(HTTPStatus.OK, None, [*EVENT_STREAM_HEADERS, *pairs, *self._said_to_page])

    async def write(self, data: bytes) -> None:
        """Send a part of the body. Waits where the client reads slowly."""
        if data and not self._is_bodiless:
            self._note_written(data)
            await self._put(framing.chunk(data) if self._is_chunked else data)

    def _note_written(self, data: bytes) -> None:
        assert self.status, "the head comes first"
        if self.status >= 400 and not self.notes.said:
            self.notes.said = data[:SAID_BYTES]
        self.last_write_at = self._clock()
        if self.tap is not None:
            self.tap(data)

    def send(self, data: bytes) -> bool:
        """Send a part of the body at once, behind what was written before; whether the client is fast enough for more.

        Nothing is said of a client that is leaving: its connection will.
        """
        client = self._client
        if client is None:
            return False
        self._note_written(data)
        piece = framing.chunk(data) if self._is_chunked else data
        if self._pending is None:
            client.write(piece)
        else:
            self._pending.append(piece)
            self._flush()
        return not client.is_slow

    async def drained(self) -> None:
        """Wait until the client has taken most of what was sent."""
        if self._client is not None and self._client.is_slow:
            await self._client.drained()

    def go_on(self, context: Context | None) -> None:
        """Something is to be done about an exchange that was parked; a task does it, in this context if it is given."""
        if self._client is not None:
            self._client.go_on(context)

    def comment(self) -> None:
        """Send an SSE comment at once, so that nobody takes the stream for dead."""
        self.has_commented = True
        self.send(KEEP_ALIVE)

    async def give(self, answer: OwnAnswer, pairs: Iterable[Pair] = ()) -> None:
        """Give an answer of our own: as a whole, or as the last event of a stream under way."""
        if self.status:
            if self.is_event_stream and answer.body:
                self.notes.told = answer.tells
                await self.write(encode_event(answer.body))
            return
        self.notes.told = answer.tells
        head = [("Content-Type", answer.content_type)] if answer.content_type else []
        if answer.status != HTTPStatus.NO_CONTENT:
            head.append(("Content-Length", str(len(answer.body))))
        own = () if _speaks_of_access(answer.headers) else self._said_to_page
        await self._start(answer.status, None, [*head, *answer.headers, *pairs, *own])
        await self.write(answer.body)

    @property
    def _said_to_page(self) -> tuple[Pair, ...]:
        return self.page.own() if self.page is not None else ()

    def close_behind(self) -> None:
        """Serve nothing more on this connection."""
        self.keep_alive = False

    def cut(self) -> None:
        """Break off: the client must not take what it has for whole."""
        self._is_cut = True
        self._flush()
        transport = self._client.transport if self._client is not None else None
        if transport is None:
            return
        if self._is_chunked or self._has_length:
            transport.close()
        else:
            _reset(transport)  # without a length a closed connection would be a clean end

    # -- what the connection asks -------------------------------------------------------------------------------------

    async def end(self) -> None:
        """End the answer; after ``cut`` there is no end. Whoever still holds this afterwards can send nothing."""
        if self._is_cut:
            raise ConnectionResetError("cut")
        assert self.status, "an exchange ended without an answer"
        self._flush(framing.LAST_CHUNK if self._is_chunked else b"")
        await self.drained()

    def let_go(self) -> None:
        """The exchange is over."""
        self._client = self._pending = None

    # -- how it is sent -----------------------------------------------------------------------------------------------

    def _head(self, status: int, reason: str, pairs: Iterable[Pair]) -> bytes:
        lines = [f"HTTP/1.{0 if self._is_http10 else 1} {status} {reason}"]
        self._is_bodiless = status in _BODILESS or self._is_head
        self._is_chunked = self._has_length = False  # of a head that could not be written
        for name, value in pairs:
            if len(name) == _LENGTH_OF_CONTENT_LENGTH and name.lower() == "content-length":
                if status in _BODILESS:
                    continue  # RFC 9110 §8.6
                self._has_length = True
            lines.append(f"{name}: {value}")
        if not self._has_length and not self._is_bodiless:
            if self._is_http10:
                self.keep_alive = False
            else:
                self._is_chunked = True
                lines.append("Transfer-Encoding: chunked")
        if self._client is not None and self._client.is_last:
            self.keep_alive = False
        if self.keep_alive is self._is_http10:
            lines.append("Connection: keep-alive" if self.keep_alive else "Connection: close")
        return encoded_head(lines)

    async def _put(self, data: bytes) -> None:
        client = self._client
        if client is None or client.transport is None or client.transport.is_closing():
            raise ConnectionResetError("the client has left")
        if self._pending is None:
            self._pending = []
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > IN_ONE_PIECE_BYTES or client.is_slow:
            self._flush()
            if client.is_slow:
                await client.drained()

    def _flush(self, end: bytes = b"") -> None:
        pending, self._pending, self._pending_bytes = self._pending or [], None, 0
        if end:
            pending.append(end)
        if pending and self._client is not None:
            self._client.write(b"".join(pending) if len(pending) > 1 else pending[0])


def _speaks_of_access(pairs: Iterable[Pair]) -> bool:
    """Whether the upstream's word to a page is in it already: browsers refuse what is said twice."""
    return any(name.lower().startswith("access-control-") for name, _ in pairs)


def last_answer(answer: OwnAnswer) -> bytes:
    """A whole answer after which the connection is closed, where there never was a request to respond to."""
    lines = [f"HTTP/1.1 {int(answer.status)} {_phrase(answer.status)}"]
    lines += [f"Content-Type: {answer.content_type}"] if answer.content_type else []
    lines += [f"Content-Length: {len(answer.body)}", "Connection: close"]
    return encoded_head(lines) + answer.body


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
