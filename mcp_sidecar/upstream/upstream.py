"""Send one request to the upstream and hand out its answer, byte for byte.

Everything that can go wrong on this side of the sidecar leaves this module as an ``UpstreamFault``. Nothing is
followed, decompressed, added or kept: no redirects, no cookies, no defaults for headers that the client did not send.
Nothing is sent twice, either; that is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from itertools import chain

from aiohttp import StreamReader
from aiohttp.http import RawResponseMessage
from yarl import URL

from mcp_sidecar.config import Limits, UpstreamConfig
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.upstream.connection import Body, Connection, UpstreamFault
from mcp_sidecar.upstream.pool import Pool, is_connected_to_itself
from mcp_sidecar.waiting.budget import Budget
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Pair, encoded_head

_SWITCHING_PROTOCOLS = 101
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Upstream:
    """The one server behind the sidecar."""

    def __init__(self, config: UpstreamConfig, limits: Limits, on_connect: Callable[[bool], None]) -> None:
        """``on_connect`` hears of every request: whether a connection could be had.

        ``budget`` counts what is held of requests and answers.
        """
        self.budget = Budget(limits.max_buffered_bytes)
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
        return Answer(
            self._pool, connection, message, content, self._config.idle_timeout_s, self.budget.answers.claim()
        )

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
