"""Send one request to the upstream and hand out its answer, byte for byte.

Everything that can go wrong on this side of the sidecar leaves this module as an ``UpstreamFault``. Nothing is
followed, decompressed, added or kept: no redirects, no cookies, no defaults for headers that the client did not send.
Nothing is sent twice, either; that is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from typing import cast

from mcp_sidecar import spans
from mcp_sidecar.config import Limits, UpstreamConfig
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.upstream.connect import Connector, Nowhere
from mcp_sidecar.upstream.connection import Connection, Received
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.host import PASSED, host_line
from mcp_sidecar.upstream.pool import NOBODY, Pool
from mcp_sidecar.upstream.upload import Body
from mcp_sidecar.waiting.budget import Budget
from mcp_sidecar.wire.headers import Pair, encoded_head, signs_in_connection

_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_CREDENTIALS, _CHALLENGE = "authorization", "www-authenticate"

OnConnect = Callable[[bool, str], None]
"""Hears of each request whether a connection could be had, and if not, why."""

OnUnreadable = Callable[[str], None]
"""Hears why an answer could not be read: a phrase of ``wire.response``."""


class Upstream:
    """The one server behind the sidecar."""

    def __init__(
        self, config: UpstreamConfig, limits: Limits, on_connect: OnConnect, on_unreadable: OnUnreadable
    ) -> None:
        """``budget`` counts what is held of requests and answers.

        Raises OSError where the certificates of ``config.ca_file`` cannot be read.
        """
        self.budget = Budget(limits.max_buffered_bytes * 3 // 4)  # the rest is for what arrives before anybody can wait
        self._config = config
        self._limits = limits
        self._on_connect = on_connect
        self._on_unreadable = on_unreadable
        self._pool: Pool | None = None
        self._connector: Connector | Nowhere = Connector(config)
        self._retired: set[Pool] = set()
        self.host_line = host_line(config)
        self.passes_host = config.host_header == PASSED
        self.idle_timeout_s = config.idle_timeout_s
        self.affinity_cookies = config.affinity_cookies

    @property
    def url(self) -> str:
        """Of its endpoint, where it was last said to be."""
        return self._config.url

    async def open(self) -> None:
        """Make the connection pool."""
        self._pool = self._new_pool()

    async def close(self) -> None:
        """Close all connections."""
        for pool in [self._pool, *self._retired]:
            if pool is not None:
                await pool.close()

    def point_at(self, config: UpstreamConfig | None) -> Pool | None:
        """Send there what comes from now on; without a config nowhere, which is as if nobody could be reached.

        What is under way ends where it is. Gives the connections of so far: see ``Pool.retire``.
        """
        former = self._pool
        if former is not None:
            self._retired.add(former)
        if config is None:
            self._connector = Nowhere()
        else:
            self._config, self._connector = config, Connector(config)
            self.host_line, self.passes_host = host_line(config), config.host_header == PASSED
        self._pool = self._new_pool()
        return former

    def _new_pool(self) -> Pool:
        return Pool(self._connector, self._limits, self._config.keep_alive_s, self._on_unreadable)

    async def retire(self, pool: Pool, patience_s: float) -> None:
        """Let connections of earlier end behind their answers, for so many seconds at most."""
        try:
            async with asyncio.timeout(patience_s):
                await pool.retire()
        except TimeoutError:
            await pool.close()
        self._retired.discard(pool)

    def reload(self) -> None:
        """Read the certificates anew, for connections from now on. Raises OSError, and goes on with what it had."""
        if self._connector.trust is not None:
            self._connector.trust.reload()

    async def send(
        self,
        method: str,
        target: str,
        headers: Iterable[Pair],
        body: Body = None,
        *,
        may_idle: bool = False,
        owner: Hashable | None = None,
        fresh: bool = False,
    ) -> Answer:
        """Send one request and wait for the head of its answer.

        ``target`` is path and query as the client sent them. ``may_idle``: a stream that may stay silent for ever,
        even before its head. ``owner`` is the client's connection, which alone may ask again where a user was signed in
        (see ``pool``). ``fresh``: on a new connection.
        Raises ``UpstreamFault``; its fault says whether the request can have arrived.
        """
        pool = self._pool
        assert pool is not None, "send() before open()"
        attempt = spans.attempt(method, target, headers)
        headers = attempt.headers
        lines, is_chunked = self._lines(method, target, headers, body)
        head = encoded_head(lines)
        try:
            connection = await pool.take(owner, fresh=fresh)
            if any(len(name) == len(_CREDENTIALS) and _signs_in(name, value) for name, value in headers):
                connection.bound_to = NOBODY if owner is None else owner
            received = await connection.request(
                head,
                body,
                is_head=method == "HEAD",
                is_chunked=is_chunked,
                patience_s=None if may_idle else self._config.idle_timeout_s,
            )
        except UpstreamFault as fault:
            self._on_connect(fault.fault.may_have_arrived, fault.detail)
            attempt.failed(fault.fault)
            raise
        else:
            attempt.answered(received[0].status)
        finally:
            attempt.end()
        return self._answered(pool, connection, received, owner)

    def express(self, owner: object = None) -> Connection | None:
        """A connection that is free at this moment, unless ``owner`` has one of its own."""
        return self._pool.take_free(owner) if self._pool is not None else None

    def served(self, connection: Connection) -> None:
        """A request on a connection of ``express`` has its answer, all of it."""
        assert self._pool is not None
        self._on_connect(True, "")
        self._pool.give_back(connection)

    async def take_up(self, connection: Connection, owner: Hashable | None = None) -> Answer:
        """Wait for the answer to a request that is under way already. Raises as ``send`` does."""
        assert self._pool is not None
        try:
            received = await connection.received()
        except UpstreamFault as fault:
            self._on_connect(fault.fault.may_have_arrived, fault.detail)
            raise
        return self._answered(self._pool, connection, received, owner)

    @property
    def unanswered_s(self) -> float:
        """How long the oldest request has been without the first byte of an answer."""
        return self._pool.unanswered_s if self._pool is not None else 0.0

    def release(self, owner: Hashable) -> None:
        """A client's connection is gone: close what nobody else may use."""
        if self._pool is not None:
            self._pool.release(owner)

    def _answered(self, pool: Pool, connection: Connection, received: Received, owner: Hashable | None) -> Answer:
        self._on_connect(True, "")
        head, content = received
        if any(map(signs_in_connection, head.fields.values(_CHALLENGE))):
            connection.bound_to = NOBODY if owner is None else owner
        return Answer(pool, connection, head, content, self._config.idle_timeout_s, self.budget.answers.claim())

    def _lines(self, method: str, target: str, headers: list[Pair], body: Body) -> tuple[list[str], bool]:
        """The lines of the head, and whether the body has to be sent in chunks."""
        lines = [f"{method} {target} HTTP/1.1"]
        if not self.passes_host or not any(name.lower() == "host" for name, _ in headers):
            lines.append(self.host_line)
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
        try:
            probe = await self._connector.open(_Probe)
        except UpstreamFault as fault:
            self._on_connect(False, fault.detail)
            return False
        probe.close()
        return True


class _Probe(asyncio.Protocol):
    """A connection on which nothing is asked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def close(self) -> None:
        """That was all."""
        self._transport.abort()


def _signs_in(name: str, value: str) -> bool:
    return name.lower() == _CREDENTIALS and signs_in_connection(value)
