"""Send one request to the upstream and hand out its answer, byte for byte.

Everything that can go wrong on this side of the sidecar leaves this module as an ``UpstreamFault``. Nothing is
followed, decompressed, added or kept: no redirects, no cookies, no defaults for headers that the client did not send.
Nothing is sent twice, either; that is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import chain
from types import TracebackType
from typing import Self

from aiohttp import StreamReader, hdrs
from aiohttp.http import RawResponseMessage
from aiohttp.streams import EMPTY_PAYLOAD
from yarl import URL

from mcp_sidecar.aiohttp_internals import NO_ANSWER, lighten_reader
from mcp_sidecar.config import Limits, UpstreamConfig
from mcp_sidecar.upstream.connection import Body, Connection, UpstreamFault
from mcp_sidecar.upstream.pool import Pool, is_connected_to_itself
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Fields, Pair, encoded_head

__all__ = ["Answer", "Body", "Upstream", "UpstreamFault", "is_connected_to_itself"]

_SWITCHING_PROTOCOLS = 101
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Answer:
    """The head of the upstream's answer and, on demand, its body.

    An asynchronous context manager: leaving it without having read everything closes the connection, so that the
    upstream learns at once that nobody listens any more.
    """

    def __init__(
        self,
        pool: Pool,
        connection: Connection,
        message: RawResponseMessage,
        content: StreamReader,
        idle_timeout_s: float,
    ) -> None:
        """``content`` is a body that has not been touched."""
        self._idle_timeout_s = idle_timeout_s
        self._pool = pool
        self._connection: Connection | None = connection
        self._message = message
        self._content = content
        self.status: int = message.code
        self.reason: str = message.reason or ""
        self.peeked = b""
        self.whole = content is EMPTY_PAYLOAD
        self._fault: Fault | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return self._message.headers.get(name)

    @property
    def names_a_url(self) -> bool:
        """Whether a header says where something is, perhaps on the upstream's origin."""
        return hdrs.LOCATION in self._message.headers or hdrs.CONTENT_LOCATION in self._message.headers

    @property
    def content_length(self) -> int | None:
        """The length that the upstream announced, in bytes."""
        announced = self.header(hdrs.CONTENT_LENGTH)
        return int(announced) if announced is not None and announced.isdecimal() else None

    @property
    def headers(self) -> list[Pair]:
        """All headers, as they came."""
        return Fields(self._message.raw_headers).pairs

    def client_headers(self, without: Iterable[str] = ()) -> list[Pair]:
        """The headers to pass on."""
        return Fields(self._message.raw_headers).for_client(frozenset(without))

    @property
    def has_arrived(self) -> bool:
        """Whether all of it is here, to be read without a wait."""
        return self._content.is_eof()

    async def peek(self, limit: int) -> bytes:
        """Read up to ``limit`` bytes ahead; ``whole`` tells whether that was all. Raises ``UpstreamFault``."""
        parts = [self.peeked] if self.peeked else []
        size = len(self.peeked)
        try:
            while size < limit and not self.whole:
                chunk = await self._read()
                parts.append(chunk)
                size += len(chunk)
                self.whole = not chunk or self._content.at_eof()
        finally:
            self.peeked = parts[0] if len(parts) == 1 else b"".join(parts)  # what came before a break, too
        return self.peeked

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body from its start, what was peeked first. Raises ``UpstreamFault`` where it breaks."""
        peeked, self.peeked = self.peeked, b""
        if peeked:
            yield peeked
        while not self.whole:
            chunk = await self._read()
            self.whole = not chunk or self._content.at_eof()
            if chunk:
                yield chunk

    async def _read(self) -> bytes:
        if self._fault is not None:
            raise UpstreamFault(self._fault)
        content = self._content
        # What arrived before a break is part of the answer, perhaps all that a client waits for; aiohttp's reader
        # raises the break first and would never hand it out.
        if content._buffer:
            return content._read_nowait(-1)
        try:
            return await content.readany()
        except UpstreamFault as fault:
            self._fault = self._fault or fault.fault
        except (OSError, RuntimeError):  # closed meanwhile
            self._fault = self._fault or Fault.BROKEN
        raise UpstreamFault(self._fault)

    def forget_head(self) -> None:
        """Nobody will ask for the headers again, and the body will come slowly."""
        self._message = NO_ANSWER
        lighten_reader(self._content)

    def arrival(self) -> Awaitable[None]:
        """Done when there is something to ``take``: for one who waits long, and for whom a coroutine each is too much."""
        content = self._content
        arrived = content._loop.create_future()
        if self.peeked or content._buffer or content._eof or content._exception or not content._protocol.connected:
            arrived.set_result(None)
        else:
            content._waiter = arrived
        return arrived

    def take(self) -> bytes:
        """What has come of the body and was not taken yet; ``whole`` tells whether that was all. Raises ``UpstreamFault``."""
        peeked, self.peeked = self.peeked, b""
        content = self._content
        if peeked or self.whole:
            return peeked
        if self._fault is not None:
            raise UpstreamFault(self._fault)
        if not content._buffer and not content._eof:
            error = content.exception()
            self._fault = error.fault if isinstance(error, UpstreamFault) else Fault.BROKEN
            raise UpstreamFault(self._fault)
        chunk = content._read_nowait(-1)
        self.whole = content.at_eof()
        return chunk

    def let_idle(self, may_idle: bool) -> None:
        """Say whether the rest may be silent for ever, now that the head tells what it is."""
        if self._connection is not None:
            self._connection.bear_silence(None if may_idle else self._idle_timeout_s)

    def break_off(self) -> None:
        """Whatever has not been read is lost, now and for whoever is reading: as if the upstream had broken off."""
        self._fault = Fault.BROKEN
        if self._connection is not None:
            self._connection.break_off()

    def close(self) -> None:
        """Let go of the connection: kept if everything was read, closed otherwise."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if not self._content.at_eof():
                connection.abort()
            self._pool.give_back(connection)

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
        self._pool: Pool | None = None
        self._ssl = _tls_context(config)
        self._url = URL(config.origin)
        self.host_line = f"Host: {self._url.host_port_subcomponent}"
        self.idle_timeout_s = config.idle_timeout_s

    async def open(self) -> None:
        """Make the connection pool."""
        self._pool = Pool(self._config, self._limits, self._ssl)

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.close()

    async def send(
        self, method: str, target: str, headers: Iterable[Pair], body: Body = None, *, may_idle: bool = False
    ) -> Answer:
        """Send one request and wait for the head of its answer.

        ``target`` is path and query as the client sent them. ``may_idle``: a stream that may stay silent for ever,
        even before its head.
        Raises ``UpstreamFault``; its fault says whether the request can have arrived.
        """
        pool = self._pool
        assert pool is not None, "send() before open()"
        lines, is_chunked = self._lines(method, target, headers, body)
        head = encoded_head(lines)
        try:
            connection = await pool.take()
            message, content = await connection.request(
                head,
                body,
                is_head=method == "HEAD",
                is_chunked=is_chunked,
                patience_s=None if may_idle else self._config.idle_timeout_s,
            )
        except UpstreamFault as fault:
            self._on_connect(fault.fault.may_have_arrived)
            raise
        return self._answered(connection, message, content)

    def express(self) -> Connection | None:
        """A connection that is free at this moment."""
        return self._pool.take_free() if self._pool is not None else None

    def served(self, connection: Connection) -> None:
        """A request on a connection of ``express`` has its answer, all of it."""
        assert self._pool is not None
        self._on_connect(True)
        self._pool.give_back(connection)

    async def take_up(self, connection: Connection) -> Answer:
        """Wait for the answer to a request that is under way already. Raises as ``send`` does."""
        try:
            message, content = await connection.received()
        except UpstreamFault as fault:
            self._on_connect(fault.fault.may_have_arrived)
            raise
        return self._answered(connection, message, content)

    def _answered(self, connection: Connection, message: RawResponseMessage, content: StreamReader) -> Answer:
        assert self._pool is not None
        self._on_connect(True)
        # aiohttp bounds each header for itself; and nobody asks for 101: Upgrade is not passed on
        if message.code == _SWITCHING_PROTOCOLS or _head_bytes(message) > self._limits.max_header_bytes:
            connection.abort()
            raise UpstreamFault(Fault.GARBLED)
        return Answer(self._pool, connection, message, content, self._config.idle_timeout_s)

    def _lines(self, method: str, target: str, headers: Iterable[Pair], body: Body) -> tuple[list[str], bool]:
        """The lines of the head, and whether the body has to be sent in chunks."""
        lines = [f"{method} {target} HTTP/1.1", self.host_line]
        lines += [f"{name}: {value}" for name, value in headers]
        if isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}")
        elif body is None:
            if method not in _WITHOUT_BODY:
                lines.append("Content-Length: 0")
        elif not any(name.lower() == "content-length" for name, _ in headers):
            lines.append("Transfer-Encoding: chunked")
            return lines, True
        return lines, False

    async def can_connect(self) -> bool:
        """Try one connect, for https with its handshake, and close it again."""
        context = self._ssl if isinstance(self._ssl, ssl.SSLContext) else None
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                _, writer = await asyncio.open_connection(self._url.host, self._url.port, ssl=context)
        except (TimeoutError, OSError):
            return False
        is_other = not is_connected_to_itself(writer)
        writer.transport.abort()
        return is_other


def _head_bytes(message: RawResponseMessage) -> int:
    return sum(map(len, chain.from_iterable(message.raw_headers))) + 4 * len(message.raw_headers)


def _tls_context(config: UpstreamConfig) -> ssl.SSLContext | bool:
    if not config.origin.startswith("https:"):
        return True
    return ssl.create_default_context(cafile=config.ca_file)
