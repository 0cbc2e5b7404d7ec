"""Send one request to the upstream and hand out its answer, byte for byte.

Everything that can go wrong on this side of the sidecar leaves this module as an ``UpstreamFault``. Nothing is
followed, decompressed, added or kept: no redirects, no cookies, no defaults for headers that the client did not send.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict
from yarl import URL

from mcp_sidecar.healing.faults import Fault
from mcp_sidecar.proxy.config import Limits, UpstreamConfig
from mcp_sidecar.wire.headers import Pair, for_client

KEEP_ALIVE_S = 4.0
"""Idle connections are closed before the five seconds after which uvicorn and Node close theirs: a request sent into a
closing connection could not be told from one that was executed."""

CHUNK_BYTES = 64 * 1024
MAX_HEADERS = 256
IN_ONE_GO_BYTES = 1024 * 1024

_ADDED_BY_CLIENT = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)

Body = bytes | AsyncIterator[bytes] | None


class UpstreamFault(Exception):
    """The upstream gave no answer, or no whole one."""

    def __init__(self, fault: Fault) -> None:
        """``fault`` says whether the request can have arrived."""
        super().__init__(fault.value)
        self.fault = fault


class Answer:
    """The head of the upstream's answer and, on demand, its body.

    An asynchronous context manager: leaving it without having read everything closes the connection, so that the
    upstream learns at once that nobody listens any more.
    """

    def __init__(self, response: aiohttp.ClientResponse, idle_timeout_s: float) -> None:
        """Wrap a response whose body has not been touched."""
        self._response = response
        self._idle_timeout_s = idle_timeout_s
        self.status = response.status
        self.reason = response.reason or ""
        self.headers: list[Pair] = [
            (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
            for name, value in response.raw_headers
        ]
        self.peeked = b""
        self.whole = False
        self._fault: Fault | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return self._response.headers.get(name)

    @property
    def content_length(self) -> int | None:
        """The length that the upstream announced, in bytes."""
        return self._response.content_length

    def client_headers(self, without: Iterable[str] = ()) -> list[Pair]:
        """The headers to pass on."""
        return for_client(self.headers, without=without)

    async def peek(self, limit: int) -> bytes:
        """Read up to ``limit`` bytes ahead; ``whole`` tells whether that was all. Raises ``UpstreamFault``."""
        parts = [self.peeked]
        size = len(self.peeked)
        try:
            while size < limit and not self.whole:
                chunk = await self._read()
                if not chunk:
                    self.whole = True
                parts.append(chunk)
                size += len(chunk)
        finally:
            self.peeked = b"".join(parts)  # what came before a break, too
        return self.peeked

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body from its start, what was peeked first. Raises ``UpstreamFault`` where it breaks."""
        peeked, self.peeked = self.peeked, b""
        if peeked:
            yield peeked
        while not self.whole:
            chunk = await self._read()
            if not chunk:
                self.whole = True
                return
            yield chunk

    async def _read(self) -> bytes:
        if self._fault is not None:
            raise UpstreamFault(self._fault)
        content = self._response.content
        try:
            return await content.readany()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if self._fault is not None:
                raise UpstreamFault(self._fault) from None
            self._fault = _fault_of(error)
        # What arrived before the break is part of the answer, perhaps all that a client waits for; aiohttp's reader
        # raises the break first and would never hand it out.
        arrived = content._read_nowait(-1)
        if not arrived:
            raise UpstreamFault(self._fault)
        return arrived

    def let_idle(self, may_idle: bool) -> None:
        """Say whether the rest may be silent for ever, now that the head tells what it is."""
        connection = self._response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = None if may_idle else self._idle_timeout_s
            connection.protocol.start_timeout()

    def break_off(self) -> None:
        """Whatever has not been read is lost, now and for whoever is reading: as if the upstream had broken off."""
        self._fault = Fault.BROKEN
        self._response.close()

    def close(self) -> None:
        """Let go of the connection: kept if everything was read, closed otherwise."""
        self._response.release() if self._response.content.at_eof() else self._response.close()

    async def __aenter__(self) -> Self:
        """Enter."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class Upstream:
    """The one server behind the sidecar."""

    def __init__(self, config: UpstreamConfig, limits: Limits, on_connect: Callable[[bool], None]) -> None:
        """``on_connect`` hears of every request: whether a connection could be had."""
        self._config = config
        self._limits = limits
        self._on_connect = on_connect
        self._session: aiohttp.ClientSession | None = None
        self._ssl = _tls_context(config)

    async def open(self) -> None:
        """Make the connection pool."""
        connector = aiohttp.TCPConnector(
            limit=0,  # the default of 100 would stop the 101st open stream
            keepalive_timeout=KEEP_ALIVE_S,
            use_dns_cache=False,  # a restarted upstream may have another address
            ssl=self._ssl,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            raise_for_status=False,
            read_bufsize=CHUNK_BYTES,
            max_line_size=self._limits.max_header_bytes,
            max_field_size=self._limits.max_header_bytes,
            max_headers=MAX_HEADERS,
            skip_auto_headers=_ADDED_BY_CLIENT,
        )
        # aiohttp would send a GET or DELETE again by itself after a disconnect; what is sent twice is decided here.
        self._session._retry_connection = False

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(
        self, method: str, target: str, headers: Iterable[Pair], body: Body = None, *, may_idle: bool = False
    ) -> Answer:
        """Send one request and wait for the head of its answer.

        ``target`` is path and query as the client sent them. ``may_idle``: a stream that may stay silent for ever,
        even before its head.
        Raises ``UpstreamFault``; its fault says whether the request can have arrived.
        """
        assert self._session is not None, "send() before open()"
        try:
            response = await self._session.request(
                method,
                URL(self._config.origin + target, encoded=True),
                headers=CIMultiDict(headers),
                data=_in_steps(body),
                allow_redirects=False,
                timeout=self._timeout(None if may_idle else self._config.idle_timeout_s),
            )
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            fault = _fault_of(error)
            self._on_connect(fault.may_have_arrived)
            raise UpstreamFault(fault) from None
        self._on_connect(True)
        is_too_large = _head_bytes(response) > self._limits.max_header_bytes  # aiohttp bounds each header for itself
        # Nobody asks for 101: Upgrade is not passed on.
        if is_too_large or response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            response.close()
            raise UpstreamFault(Fault.GARBLED)
        return Answer(response, self._config.idle_timeout_s)

    async def can_connect(self) -> bool:
        """Try one connect, for https with its handshake, and close it again."""
        url = URL(self._config.origin)
        context = self._ssl if isinstance(self._ssl, ssl.SSLContext) else None
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                _, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
        except (TimeoutError, OSError):
            return False
        is_other = not is_connected_to_itself(writer)
        writer.transport.abort()
        return is_other

    def _timeout(self, idle_s: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=self._config.connect_timeout_s, sock_read=idle_s
        )


def is_connected_to_itself(writer: asyncio.StreamWriter) -> bool:
    """Whether there is nobody at the other end: connects to a closed port may get that very port as their own."""
    return bool(writer.get_extra_info("sockname") == writer.get_extra_info("peername"))


_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_STALLED = (asyncio.TimeoutError,)
_GARBLED = (aiohttp.ClientResponseError, aiohttp.InvalidURL)


def _head_bytes(response: aiohttp.ClientResponse) -> int:
    return sum(len(name) + len(value) + 4 for name, value in response.raw_headers)


def _in_steps(body: Body) -> Body | io.BytesIO:
    """A large body is written step by step, so that others have their turn."""
    return io.BytesIO(body) if isinstance(body, bytes) and len(body) > IN_ONE_GO_BYTES else body


def _fault_of(error: BaseException) -> Fault:
    if isinstance(error, _NOT_SENT):
        return Fault.UNREACHABLE
    if isinstance(error, _STALLED):
        return Fault.STALLED
    return Fault.GARBLED if isinstance(error, _GARBLED) else Fault.BROKEN


def _tls_context(config: UpstreamConfig) -> ssl.SSLContext | bool:
    if not config.origin.startswith("https:"):
        return True
    return ssl.create_default_context(cafile=config.ca_file)
