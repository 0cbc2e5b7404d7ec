"""The client's side of one exchange: nothing sent yet, or an answer under way.

What is passed on is passed on as it is: aiohttp's own additions to a response (Server, Date, a default content type)
are left out. A broken answer is cut, so that nobody takes it for whole.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus

from aiohttp import hdrs, web

from mcp_sidecar.healing.own_answers import OwnAnswer
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.sse import KEEP_ALIVE, encode_event

_LINGER_ZERO = struct.pack("ii", 1, 0)
_ADDED_BY_SERVER = (hdrs.DATE, hdrs.SERVER, hdrs.CONTENT_TYPE)

EVENT_STREAM_HEADERS: tuple[Pair, ...] = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)


class UnadornedResponse(web.StreamResponse):
    """A response that carries the headers it was given and no others."""

    async def _prepare_headers(self) -> None:
        given = {name for name in _ADDED_BY_SERVER if name in self.headers}
        await super()._prepare_headers()
        for name in _ADDED_BY_SERVER:
            if name not in given:
                self.headers.popall(name, None)


class WholeResponse(UnadornedResponse, web.Response):
    """One that is known as a whole."""


class PlainResponse(UnadornedResponse):
    """One that is sent as it comes, and that can be cut."""

    is_cut = False

    async def write_eof(self, data: bytes = b"") -> None:
        """End the response; after ``cut`` there is no end."""
        if self.is_cut:
            raise ConnectionResetError("cut")
        await super().write_eof(data)


class Responder:
    """Answers one client request, once."""

    def __init__(self, request: web.BaseRequest, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._request = request
        self._clock = clock
        self._response: PlainResponse | None = None
        self.is_event_stream = False
        self.may_comment = False
        self.last_write_at = 0.0

    @property
    def response(self) -> web.StreamResponse:
        """What the server needs in the end."""
        assert self._response is not None, "an exchange ended without an answer"
        return self._response

    @property
    def status(self) -> int:
        """The status that the client got, 0 while it has none."""
        return self._response.status if self._response is not None else 0

    @property
    def is_committed(self) -> bool:
        """Whether the head of the answer is sent, so that no other answer can be given."""
        return self._response is not None

    async def start(self, status: int, reason: str | None, pairs: Iterable[Pair]) -> None:
        """Send the head of an answer."""
        response = PlainResponse(status=status, reason=_phrase(status) if reason is None else reason)
        for name, value in pairs:
            response.headers.add(name, value)
        self._response = response
        self.last_write_at = self._clock()
        await response.prepare(self._request)

    async def start_events(self, pairs: Iterable[Pair] = ()) -> None:
        """Send the head of an event stream of our own."""
        self.is_event_stream = True
        await self.start(HTTPStatus.OK, None, [*EVENT_STREAM_HEADERS, *pairs])

    async def write(self, data: bytes) -> None:
        """Send a part of the body. Waits where the client reads slowly."""
        if data:
            assert self._response is not None
            self.last_write_at = self._clock()
            await self._response.write(data)

    async def comment(self) -> None:
        """Send an SSE comment, so that nobody takes the stream for dead."""
        await self.write(KEEP_ALIVE)

    async def give(self, answer: OwnAnswer, pairs: Iterable[Pair] = ()) -> None:
        """Give an answer of our own: as a whole, or as the last event of a stream under way."""
        if self._response is not None:
            if self.is_event_stream and answer.body:
                await self.write(encode_event(answer.body))
            return
        head = [("Content-Type", answer.content_type)] if answer.content_type else []
        if answer.status != HTTPStatus.NO_CONTENT:
            head.append(("Content-Length", str(len(answer.body))))
        await self.start(answer.status, None, [*head, *answer.headers, *pairs])
        if self._request.method != hdrs.METH_HEAD:
            await self.write(answer.body)

    def cut(self) -> None:
        """Break off: the client must not take what it has for whole."""
        assert self._response is not None
        self._response.is_cut = True
        transport = self._request.transport
        if transport is None:
            return
        if self._response.chunked or self._response.content_length is not None or _is_chunked(self._response):
            transport.close()
        else:
            _reset(transport)  # without a length a closed connection would be a clean end


def last_response(answer: OwnAnswer) -> WholeResponse:
    """An answer after which the connection is closed, where there never was a request to respond to."""
    response = WholeResponse(status=answer.status, body=answer.body, content_type=answer.content_type)
    response.force_close()
    return response


class Keeper:
    """Comments on streams that have been silent for too long. One for all of them: a task each would cost memory."""

    def __init__(self, interval_s: float, clock: Callable[[], float]) -> None:
        """``interval_s`` is how long a stream may be silent."""
        self._interval_s = interval_s
        self._clock = clock
        self._streams: set[Responder] = set()
        self._task: asyncio.Task[None] | None = None
        self._comments: set[asyncio.Task[None]] = set()

    def add(self, stream: Responder) -> None:
        """Look after a stream."""
        self._streams.add(stream)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def discard(self, stream: Responder) -> None:
        """The stream is over."""
        self._streams.discard(stream)

    async def stop(self) -> None:
        """Look after nobody any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(self._interval_s / 4, 1.0))
            now = self._clock()
            for stream in self._streams:
                if stream.may_comment and now - stream.last_write_at >= self._interval_s:
                    self._comment(stream)

    def _comment(self, stream: Responder) -> None:
        stream.last_write_at = self._clock()
        task = asyncio.create_task(_quietly(stream))
        self._comments.add(task)
        task.add_done_callback(self._comments.discard)


async def _quietly(stream: Responder) -> None:
    with suppress(ConnectionError, RuntimeError):  # the client is leaving; its own task learns it
        if stream.may_comment:  # still: since the look at it a large event may have begun
            await stream.comment()


def _reset(transport: asyncio.BaseTransport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


def _is_chunked(response: web.StreamResponse) -> bool:
    return "chunked" in response.headers.get(hdrs.TRANSFER_ENCODING, "").lower()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
