"""The connections to the upstream: those that are free are used again, for a few seconds.

aiohttp's connector opens new ones (names, both IP families, TLS). It does not keep them: its own pool costs several times
as much per request as the deque below.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from functools import partial
from typing import cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from mcp_sidecar.config import Limits, UpstreamConfig
from mcp_sidecar.upstream.connection import Connection, UpstreamFault
from mcp_sidecar.wire.faults import Fault

KEEP_ALIVE_S = 4.0
"""Idle connections are closed before the five seconds after which uvicorn and Node close theirs: a request sent into a
closing connection could not be told from one that was executed."""


class Pool:
    """All connections to one origin."""

    def __init__(self, config: UpstreamConfig, limits: Limits, context: ssl.SSLContext | bool) -> None:
        """Needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._free: deque[tuple[Connection, float]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._connector = aiohttp.TCPConnector(
            limit=0,  # the default of 100 would stop the 101st open stream
            use_dns_cache=False,  # a restarted upstream may have another address
            ssl=context,
        )
        self._connector._factory = cast("partial[ResponseHandler]", partial(Connection, self._loop, limits))
        self._asked = aiohttp.ClientRequest("GET", URL(config.origin), loop=self._loop)
        self._timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=config.connect_timeout_s)

    async def take(self) -> Connection:
        """A connection for one request. Raises ``UpstreamFault`` where there is none to be had."""
        return self.take_free() or await self._open()

    def give_back(self, connection: Connection) -> None:
        """The request is over, one way or the other."""
        if not connection.finish():
            connection.close()
            return
        self._free.append((connection, self._loop.time()))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEP_ALIVE_S, self._sweep)

    async def close(self) -> None:
        """Close all connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._free.clear()
        await self._connector.close(abort_ssl=True)

    def take_free(self) -> Connection | None:
        """The one that was used last: what is too many is left to grow old."""
        oldest = self._loop.time() - KEEP_ALIVE_S
        while self._free:
            connection, since = self._free.pop()
            if since >= oldest and connection.is_connected():
                return connection
            connection.close()
        return None

    async def _open(self) -> Connection:
        try:
            lease = await self._connector.connect(self._asked, [], self._timeout)
        except (TimeoutError, aiohttp.ClientError, OSError):
            raise UpstreamFault(Fault.UNREACHABLE) from None
        connection = cast("Connection", lease.protocol)
        connection.lease = lease
        if connection.transport is None or is_connected_to_itself(connection.transport):
            connection.abort()
            raise UpstreamFault(Fault.UNREACHABLE)
        return connection

    def _sweep(self) -> None:
        self._sweeper = None
        oldest = self._loop.time() - KEEP_ALIVE_S
        while self._free and self._free[0][1] <= oldest:
            self._free.popleft()[0].close()
        if self._free:
            self._sweeper = self._loop.call_at(self._free[0][1] + KEEP_ALIVE_S, self._sweep)


def is_connected_to_itself(transport: asyncio.BaseTransport | asyncio.StreamWriter) -> bool:
    """Whether there is nobody at the other end: connects to a closed port may get that very port as their own."""
    return bool(transport.get_extra_info("sockname") == transport.get_extra_info("peername"))
