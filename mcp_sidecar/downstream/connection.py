"""aiohttp's server, low down: one protocol per client connection, which hands every request to a handler.

What differs from aiohttp's own protocol is what becomes of requests that cannot be read, and a bound on their heads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from aiohttp import StreamReader, http_exceptions, web
from aiohttp.http import HttpRequestParser, RawRequestMessage, StreamWriter
from aiohttp.web_protocol import ERROR, PayloadAccessError, RequestHandler, _ErrInfo

from mcp_sidecar.aiohttp_internals import Few
from mcp_sidecar.downstream.response import last_response
from mcp_sidecar.endpoint import refusals
from mcp_sidecar.endpoint.refusals import Refusal
from mcp_sidecar.endpoint.router import Router
from mcp_sidecar.fastpath.lane import Express, Trip
from mcp_sidecar.healing.replies import OwnAnswer
from mcp_sidecar.sessions.in_flight import BEGUN, InFlight
from mcp_sidecar.wire import http1
from mcp_sidecar.wire.framing import Extent

MAX_HEADERS = 256
"""What ``limits.max_header_bytes`` of headers may be split into, on both sides."""

_NOT_READ_ANY_MORE = PayloadAccessError()
TOO_MUCH = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class ClientProtocol(RequestHandler):
    """aiohttp's own protocol, but for what it does with requests that cannot be read."""

    _head_bytes = 0
    _ends_with_head = False
    _express: Express | None = None
    _trip: Trip | None = None  # of the request that is on the lane
    _begun: InFlight | None = None  # was on the lane; nobody has turned to it yet
    _beginning: list[bytes] | None = None  # of a request for the lane, while ``_missing`` bytes are not here
    _missing = 0
    _is_clean = True  # aiohttp's parser holds nothing of a request that is not whole
    _unparsed = 0  # so many bytes until that is so
    _chunks: StreamReader | None = None  # the body in chunks that has not ended
    _extent: Extent | None = None  # of what has come since it began
    peer: str | None = None

    async def start(self) -> None:
        """Answer one request after the other, all in the connection's own task; aiohttp's own loop makes one for each."""
        try:
            while not self._force_close and await self._serve_next():
                pass
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as error:  # noqa: BLE001 - a bug: nobody knows what the client has got
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve_next(self) -> bool:
        """Whether the connection may serve another request."""
        message, payload = await self._next_message()
        handler = self._request_handler
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        factory, task = self._request_factory, self._task_handler or asyncio.current_task()
        if handler is None or factory is None or task is None:
            return False
        request = factory(message, payload, self, StreamWriter(self, self._loop), task)
        del message  # so that an open stream's can be forgotten
        if self._begun is not None:
            request[BEGUN], self._begun = self._begun, None
        try:
            response, is_cut = await self._handle_request(request, None, handler)
        except ConnectionError:
            return False
        finally:
            request._task = None  # type: ignore[assignment] # it would keep itself alive
        if is_cut:
            return False
        self._keepalive = bool(response.keep_alive)
        if not payload.is_eof():
            await self._pass_over(payload)
        payload.set_exception(_NOT_READ_ANY_MORE)
        if not self._keepalive or self._close or self._force_close:
            return False
        self._begin_idling()
        return True

    async def _next_message(self) -> tuple[RawRequestMessage | _ErrInfo, StreamReader]:
        if not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return taken

    async def _pass_over(self, payload: StreamReader) -> None:
        """Read on for a while what nobody wanted: a client that is still sending would not see its answer else."""
        if self._lingering_time and not self._force_close:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
        if not payload.is_eof() and not self._force_close:
            self.close()

    def _begin_idling(self) -> None:
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def lighten(self) -> None:
        """Let go of what an open stream does not need: the timer and queue for further requests, and of what was parsed.

        aiohttp's parser remembers the headers of the last request until the next one comes. It is exchanged for a new one
        where it surely has read nothing of that: a head that was read whole is a message, and there is none.
        """
        if self._keepalive_handle is not None:  # begins anew behind the answer
            self._keepalive_handle.cancel()
            self._keepalive_handle = None
        if self._stands_between_requests():
            self._parser = self._new_parser()
        self._messages = Few(self._messages)  # type: ignore[assignment]

    def _stands_between_requests(self) -> bool:
        request = self._current_request
        is_read = self._parser is not None and request is not None and request.content.is_eof()
        return is_read and self._ends_with_head and not self._messages

    def _new_parser(self) -> HttpRequestParser:
        """As aiohttp makes it."""
        return HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )

    def close(self) -> None:
        """Take no more requests. aiohttp would leave an idle connection open, and never read what comes on it."""
        if self._trip is not None or self._beginning is not None:  # closed behind its answer
            self._close = True
            return
        is_idle = not self._request_count or (self._waiter is not None and not self._waiter.done())
        super().close()
        if is_idle and self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        super().connection_made(transport)
        if isinstance(self._manager, ClientServer) and self._manager.express.is_open:
            self._express = self._manager.express
        peer = self.peername
        self.peer = str(peer[0]) if isinstance(peer, tuple | list) else str(peer) if peer is not None else None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has left, or was sent away."""
        if self._trip is not None:
            trip, self._trip = self._trip, None
            trip.client_left()
        elif self._begun is not None:
            begun, self._begun = self._begun, None
            begun.drop()
            self._tell_left()
        elif self._beginning is not None and self._express is not None:
            self._beginning = None
            self._express.gate.leave()
            self._tell_left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on: on the lane what it takes, with aiohttp's parser everything else.

        Without data it is the parser itself that asks to go on.
        """
        if not data:
            self._feed(data)
        elif self._trip is not None:
            self._trip.hand_over()  # whoever sends on before the answer is served in the ordinary way
            self._parse(data)
        elif self._beginning is not None:
            self._collect(data)
        elif self._express is None or not self._is_idle:
            self._parse(data)
        else:
            self._begin(self._express, data)

    # -- the express lane ---------------------------------------------------------------------------------------------

    @property
    def _is_idle(self) -> bool:
        """Whether no request is under way and none is waiting."""
        if self._messages or self._close or self._force_close:
            return False
        waiter = self._waiter
        return not waiter.done() if waiter is not None else not self._request_count

    def _begin(self, express: Express, data: bytes) -> None:
        """Look at what comes on an idle connection."""
        request = express.read(data)
        if request is None:
            self._parse(data)
        elif not self._is_clean or self.is_slow or not express.takes(request):
            self._parse_request(request, data)
        elif request.size > len(data):
            self._beginning, self._missing = [data], request.size - len(data)
            express.gate.enter()
        elif (trip := express.send(self, request, data)) is not None:
            self._trip = trip
        else:
            self._parse_request(request, data)

    def _collect(self, data: bytes) -> None:
        """The rest of a body, or a part of it."""
        assert self._express is not None
        assert self._beginning is not None
        self._beginning.append(data)
        self._missing -= len(data)
        if self._missing <= 0:
            whole, self._beginning = b"".join(self._beginning), None
            is_closing, self._close = self._close, False
            self._begin(self._express, whole)
            self._close = is_closing
            self._loop.call_soon(self._express.gate.leave)  # by then it counts where it is now

    @property
    def is_slow(self) -> bool:
        """Whether the client has not taken what was sent before."""
        return self._paused

    def answer(self, data: bytes) -> None:
        """Give the whole answer to the request on the lane."""
        self._trip = None
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        transport = self.transport
        if transport is None:
            return
        transport.write(data)
        if self._close:
            self.close()

    def take_back(self, request: bytes, begun: InFlight) -> None:
        """Have the ordinary way go on with the request on the lane."""
        self._trip, self._begun = None, begun
        is_closing, self._close = self._close, False
        self._parse(request)
        self._is_clean = True
        self._close = is_closing

    def _tell_left(self) -> None:
        if isinstance(self._manager, ClientServer):
            self._manager.on_left()

    def _process_keepalive(self) -> None:
        """The time of an idle connection is over; one whose request is on the lane is not idle."""
        if self._trip is not None or self._beginning is not None:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    # -- aiohttp's parser ---------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        self._is_clean = self._unparsed == len(data) > 0
        self._unparsed = max(0, self._unparsed - len(data))
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        waiting = len(self._messages)
        super().data_received(data)
        self._watch_chunks(data, waiting)
        self._ends_with_head = data.endswith(http1.END_OF_HEAD)
        self._end_broken_body()
        self._bound_head(data)

    def _parse_request(self, request: http1.Request, data: bytes) -> None:
        """What begins with an ordinary request and has no more than that."""
        was_clean = self._is_clean
        self._parse(data)
        if was_clean or self._has_parsed(request):
            self._unparsed = request.size - len(data)
            self._is_clean = not self._unparsed

    def _has_parsed(self, request: http1.Request) -> bool:
        """Whether the parser has made exactly this of the bytes: then it held nothing of others."""
        message = self._messages[0][0] if len(self._messages) == 1 else None
        return (
            isinstance(message, RawRequestMessage)
            and (message.method, message.path) == ("POST", request.target)
            and len(message.raw_headers) == len(request.pairs)
        )

    def _watch_chunks(self, data: bytes, waiting: int) -> None:
        """Serve nothing behind a body in chunks that had trailers: the next request would bear the last of them.

        Behind its plain end the connection goes on. What was ``waiting`` before ``data`` came was looked at then.
        """
        if self._chunks is None:
            for number, (message, payload) in enumerate(self._messages):
                if number >= waiting and isinstance(message, RawRequestMessage) and message.chunked:
                    self._chunks, self._extent = payload, Extent()
                    waiting = number + 1
                    break
            else:
                return
        assert self._extent is not None
        self._extent.add(data)
        if self._chunks.is_eof():
            if not self._extent.ends_with_chunks:
                while len(self._messages) > waiting:
                    self._messages.pop()
                self._close = True
            self._chunks = self._extent = None

    def _end_broken_body(self) -> None:
        """Tell whoever reads a body that its framing is wrong: aiohttp would say so only after the answer."""
        request = self._current_request
        is_broken = bool(self._messages) and isinstance(self._messages[-1][0], _ErrInfo)
        if is_broken and request is not None and not request.content.is_eof():
            self._messages.pop()
            request.content.set_exception(web.RequestPayloadError("bad framing"))
            self._lingering_time = 0.0
            self.close()

    def _bound_head(self, data: bytes) -> None:
        """aiohttp bounds the size of a header and their number, which together are a lot of memory."""
        waiter = self._waiter
        if waiter is None or waiter.done():  # a request is under way: what comes is its body
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > 2 * self.max_field_size and self.transport is not None:
            self._tell(refusals.HEADERS_TOO_LARGE)
            self.transport.write(TOO_MUCH)
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002 - decided by what went wrong
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - the same
    ) -> web.StreamResponse:
        """Answer as the sidecar does, and log nothing of the request: it may hold credentials."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way")
        answer = _unread(exc)
        self._tell(answer)
        return last_response(answer)

    def _tell(self, answer: OwnAnswer) -> None:
        if isinstance(answer, Refusal) and isinstance(self._manager, ClientServer):
            self._manager.on_unread(answer)


def _unread(error: BaseException | None) -> OwnAnswer:
    """What a request gets that never became one."""
    if isinstance(error, http_exceptions.LineTooLong) or "Too many headers" in str(error):
        return refusals.HEADERS_TOO_LARGE
    is_clients = isinstance(error, http_exceptions.HttpProcessingError)
    return refusals.UNREADABLE if is_clients else refusals.OWN_FAULT


class ClientServer(web.Server):
    """Makes a ``ClientProtocol`` per connection; ``on_unread`` hears of what never became a request."""

    on_unread: Callable[[Refusal], None]
    on_left: Callable[[], None]
    express: Express

    def __call__(self) -> RequestHandler:
        """A protocol for one connection."""
        return ClientProtocol(self, loop=self._loop, **self._kwargs)


def make_server(ingress: Router) -> ClientServer:
    """The server that hands every request to ``ingress``. A client that leaves cancels its incoming."""
    server = ClientServer(
        ingress.handle,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        max_line_size=ingress.services.limits.max_header_bytes,
        max_field_size=ingress.services.limits.max_header_bytes,
        max_headers=MAX_HEADERS,
        read_bufsize=64 * 1024,
    )
    server.on_unread = ingress.note_unread
    server.on_left = ingress.note_left
    server.express = Express(ingress)
    return server
