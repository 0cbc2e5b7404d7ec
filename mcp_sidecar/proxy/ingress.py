"""The client side: every request comes in here, is checked, and goes to the module that knows what it is.

::

    handle ─▶ gate (Host, Origin, header size)
           ─▶ another path            ─▶ passing
           ─▶ the endpoint: POST      ─▶ sessionless ─▶ passing
                                      ─▶ a session   ─▶ posting
                            GET       ─▶ listening
                            DELETE    ─▶ terminating
"""

from __future__ import annotations

import asyncio
import traceback
from pathlib import PurePath
from typing import cast

from aiohttp import hdrs, http_exceptions, web
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from mcp_sidecar.healing import own_answers
from mcp_sidecar.healing.facts import RequestRejected, RequestServed, SidecarFault
from mcp_sidecar.healing.labels import NO_METHOD, http_label, rpc_label
from mcp_sidecar.healing.own_answers import OwnAnswer, Reason
from mcp_sidecar.proxy import rejections
from mcp_sidecar.proxy.bodies import UNREADABLE, Body, Upload, message_of, read_body
from mcp_sidecar.proxy.call import BadSessionId, Call, read_call
from mcp_sidecar.proxy.config import ListenConfig, UpstreamConfig
from mcp_sidecar.proxy.listening import Listening
from mcp_sidecar.proxy.parts import Parts
from mcp_sidecar.proxy.passing import Passing
from mcp_sidecar.proxy.posting import Posting
from mcp_sidecar.proxy.rejections import Refusal
from mcp_sidecar.proxy.responding import Responder, last_response
from mcp_sidecar.proxy.terminating import Terminating
from mcp_sidecar.wire import headers, origins
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.messages import Kind, Message
from mcp_sidecar.wire.origins import Move
from mcp_sidecar.wire.revisions import PROTOCOL_VERSION_HEADER, is_sessionless_request

CLIENT_LEFT = 499
"""What nginx logs, too, for a client that did not wait for its answer."""

MAX_HEADERS = 256
TOO_MUCH = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Incoming:
    """One client request on its way: what is known of it before anybody decides."""

    def __init__(self, ingress: Ingress, request: web.BaseRequest) -> None:
        """``rpc_label`` becomes known when the body is read."""
        self.request = request
        self.raw: list[Pair] = [(_text(name), _text(value)) for name, value in request.raw_headers]
        self.responder = Responder(request, ingress.parts.clock)
        self.rpc_label = NO_METHOD
        self.message: Message | None = None
        self.in_session = False

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method

    @property
    def target(self) -> str:
        """Path and query, byte for byte."""
        raw = self.request.raw_path
        return raw if raw.startswith("/") else self.request.rel_url.raw_path_qs

    @property
    def upload(self) -> Upload | None:
        """The body that the client is about to send, if there is one."""
        return Upload(self.request) if self.request.can_read_body else None


class Ingress:
    """Handles every request on the client side."""

    def __init__(self, parts: Parts, listen: ListenConfig, upstream: UpstreamConfig) -> None:
        """``bound_to`` is to be called with the address as soon as it is known."""
        self.parts = parts
        self._listen = listen
        self._upstream = upstream
        self._endpoint = upstream.endpoint.rstrip("/")
        self._own_origins: tuple[str, ...] = (listen.public_url,) if listen.public_url else ()
        self._on_loopback = origins.is_loopback(listen.host)
        self._scheme = "https" if listen.tls_certificate else "http"
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def bound_to(self, host: str, port: int) -> None:
        """The address that the listener got, which is an origin of its own."""
        shown = f"[{host}]" if ":" in host else host
        self._own_origins = (*self._own_origins, f"{self._scheme}://{shown}:{port}")

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Whatever goes wrong in here concerns this request only."""
        started = self.parts.clock()
        incoming = Incoming(self, request)
        status = CLIENT_LEFT
        self._under_way += 1
        self._idle.clear()
        try:
            await self._answer(incoming)
            status = incoming.responder.status
        except (*UNREADABLE, BadSessionId) as error:
            await self._reject(incoming, rejections.of(error))
            status = incoming.responder.status
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - a bug must not reach beyond the request that met it
            self._tell_fault(error)
            await self._give_up(incoming)
            status = incoming.responder.status
        finally:
            seconds = self.parts.clock() - started
            self.parts.emit(RequestServed(http_label(request.method), incoming.rpc_label, status, seconds))
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        return cast("web.StreamResponse", incoming.responder)  # all that the server asks of one

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until every exchange has ended, but no longer than ``timeout_s`` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass

    # -- the gate -----------------------------------------------------------------------------------------------------

    async def _answer(self, incoming: Incoming) -> None:
        refused = self._gate(incoming)
        if refused is not None:
            await self._reject(incoming, refused)
        elif self._is_endpoint(incoming.request.path) and incoming.method in ("POST", "GET", "DELETE"):
            await self._endpoint_request(incoming)
        else:
            await self._passing(incoming).other_path(incoming.upload)

    def _gate(self, incoming: Incoming) -> Refusal | None:
        raw, own = incoming.raw, self._own_origins
        if not incoming.target.startswith("/") or incoming.method == hdrs.METH_CONNECT:
            return rejections.BAD_TARGET
        if any(coding.strip().lower() != "chunked" for coding in headers.values(raw, "transfer-encoding")):
            return rejections.BAD_CODING  # the coding would be lost on the way, and the body be taken for plain
        if sum(len(name) + len(value) + 4 for name, value in raw) > self.parts.limits.max_header_bytes:
            return rejections.HEADERS_TOO_LARGE
        if self._on_loopback and not all(
            origins.is_allowed_host(host, own, self._listen.allowed_hosts) for host in headers.values(raw, "host")
        ):
            return rejections.BAD_HOST
        for origin in headers.values(raw, "origin"):
            if not origins.is_allowed_origin(origin, own, self._listen.allowed_origins, on_loopback=self._on_loopback):
                return rejections.BAD_ORIGIN
        return None

    async def _reject(self, incoming: Incoming, answer: Refusal) -> None:
        self.parts.emit(RequestRejected(answer.status, answer.reason))
        if not incoming.responder.is_committed:
            await incoming.responder.give(answer)

    def _is_endpoint(self, path: str) -> bool:
        return path in (self._endpoint, f"{self._endpoint}/")

    # -- the endpoint -------------------------------------------------------------------------------------------------

    async def _endpoint_request(self, incoming: Incoming) -> None:
        if incoming.method == "POST":
            await self._post(incoming)
            return
        call = self._call(incoming)
        if call.client_id is not None and self._is_over(call):
            await incoming.responder.give(own_answers.SESSION_NOT_FOUND)
        elif incoming.method == "DELETE":
            await Terminating(self.parts, call, incoming.responder).run()
        elif call.client_id is None:
            await self._passing(incoming).other_path(incoming.upload)
        else:
            await Listening(self.parts, call, incoming.responder).run()

    async def _post(self, incoming: Incoming) -> None:
        encoding = headers.value(incoming.raw, "content-encoding")
        is_encoded = encoding is not None and encoding.strip().lower() not in ("", "identity")
        body = await read_body(incoming.request, self.parts.limits, encoded=is_encoded)
        message = Message(Kind.OTHER) if is_encoded else message_of(body)
        incoming.message, incoming.rpc_label = message, rpc_label(message)
        version = headers.value(incoming.raw, PROTOCOL_VERSION_HEADER)
        if is_sessionless_request(message.meta_protocol_version, message.method, version):
            await self._passing(incoming).sessionless(message, body)
        else:
            await self._session_post(incoming, message, body, is_encoded=is_encoded)

    async def _session_post(self, incoming: Incoming, message: Message, body: Body, *, is_encoded: bool) -> None:
        is_initialize = message.kind is Kind.REQUEST and message.method == "initialize"
        incoming.in_session = True
        call = self._call(incoming, drop_session=is_initialize)
        if self._is_over(call):
            await incoming.responder.give(own_answers.SESSION_NOT_FOUND)
        elif self._is_for_a_held_request(call, message) or self._was_said_by_heal(call, message):
            await incoming.responder.give(own_answers.ACCEPTED)
        else:
            await Posting(self.parts, call, message, body, incoming.responder, opaque=is_encoded).run()

    def _is_over(self, call: Call) -> bool:
        """Whether the client's id was ended or has expired."""
        if call.client_id is None or call.session is not None or self.parts.observes:
            return False
        return self.parts.store.is_ended(call.client_id, call.principal)

    def _is_for_a_held_request(self, call: Call, message: Message) -> bool:
        """Whether the client gives up a request that waits here: then neither goes upstream."""
        if call.session is None or message.cancelled_id is None:
            return False
        return self.parts.holding.cancel(call.session, message.cancelled_id)

    @staticmethod
    def _was_said_by_heal(call: Call, message: Message) -> bool:
        """Whether this is a client's `initialized` that a heal has already told the newer session."""
        is_initialized = message.kind is Kind.NOTIFICATION and message.method == "notifications/initialized"
        return is_initialized and call.session is not None and call.session.generation > 1

    def _call(self, incoming: Incoming, *, drop_session: bool = False) -> Call:
        raw = incoming.raw
        if drop_session:
            raw = [pair for pair in raw if pair[0].lower() != "mcp-session-id"]
        pairs = self._upstream_pairs(incoming, without={"mcp-session-id"})
        return read_call(self.parts, incoming.method, incoming.target, raw, pairs, self._move(incoming))

    # -- passing on ---------------------------------------------------------------------------------------------------

    def _upstream_pairs(self, incoming: Incoming, without: set[str] | None = None) -> list[Pair]:
        request = incoming.request
        pairs = headers.for_upstream(incoming.raw, without=without or ())
        return headers.with_forwarding(
            pairs, peer=request.remote, scheme=self._scheme, host=headers.value(incoming.raw, "host")
        )

    def _move(self, incoming: Incoming) -> Move:
        host = headers.value(incoming.raw, "host")
        own = self._own_origins[0] if self._listen.public_url or host is None else f"{self._scheme}://{host}"
        return Move(self._upstream.origin, own)

    def _passing(self, incoming: Incoming) -> Passing:
        pairs = self._upstream_pairs(incoming)
        length = headers.value(incoming.raw, "content-length")
        if length is not None and incoming.request.can_read_body and not self._is_held(incoming):
            pairs.append(("Content-Length", length))
        return Passing(
            self.parts,
            incoming.responder,
            method=incoming.method,
            target=incoming.target,
            pairs=pairs,
            move=self._move(incoming),
        )

    @staticmethod
    def _is_held(incoming: Incoming) -> bool:
        return incoming.message is not None

    # -- what must not happen -----------------------------------------------------------------------------------------

    def _tell_fault(self, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
        self.parts.emit(SidecarFault(type(error).__name__, where))

    async def _give_up(self, incoming: Incoming) -> None:
        """A definite answer even for a bug; whether the request ran is not known any more."""
        if incoming.responder.is_committed and not incoming.responder.is_event_stream:
            incoming.responder.cut()
        elif incoming.in_session and incoming.message is not None:
            await incoming.responder.give(own_answers.in_session(incoming.message, Reason.OUTCOME_UNKNOWN))
        else:
            await incoming.responder.give(rejections.OWN_FAULT)


class ClientProtocol(RequestHandler):
    """aiohttp's own protocol, but for what it does with requests that cannot be read."""

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._end_broken_body()
        self._bound_head(data)

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
        return last_response(_unread(exc))


def _unread(error: BaseException | None) -> OwnAnswer:
    """What a request gets that never became one."""
    if isinstance(error, http_exceptions.LineTooLong) or "Too many headers" in str(error):
        return rejections.HEADERS_TOO_LARGE
    is_clients = isinstance(error, http_exceptions.HttpProcessingError)
    return rejections.UNREADABLE if is_clients else rejections.OWN_FAULT


class ClientServer(web.Server):
    """Makes a ``ClientProtocol`` per connection."""

    def __call__(self) -> RequestHandler:
        """A protocol for one connection."""
        return ClientProtocol(self, loop=self._loop, **self._kwargs)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def make_server(ingress: Ingress) -> ClientServer:
    """The server that hands every request to ``ingress``. A client that leaves cancels its incoming."""
    return ClientServer(
        ingress.handle,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        max_line_size=ingress.parts.limits.max_header_bytes,
        max_field_size=ingress.parts.limits.max_header_bytes,
        max_headers=MAX_HEADERS,
        read_bufsize=64 * 1024,
    )
