"""The connections to the upstream: those that are free are used again, for a few seconds.

NTLM and Negotiate sign a connection in, not a request: whoever asks on it next is taken for the same user. A connection
on which one of them was spoken is therefore *bound*: it serves the client's connection that spoke it, and no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

from mcp_sidecar.config import Limits
from mcp_sidecar.upstream.connection import Connection
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.wire.faults import Fault

MARGIN_S = 1.0
"""So much earlier than the server says (``Keep-Alive: timeout``) a connection is given up, or a quarter of its time."""

SWEEPS = 8
"""How often at most old connections are looked for while a new one would become old."""


P = TypeVar("P", bound=asyncio.BaseProtocol)


class Opener(Protocol):
    """Whoever opens connections: see ``Connector``."""

    async def open(self, factory: Callable[[], P]) -> P:
        """A protocol that is connected. Raises ``UpstreamFault``."""


class _Nobody:
    """A client's connection that nobody has named."""


NOBODY = _Nobody()


class Pool:
    """All connections to one origin. Those that are free stand with the loop time until which they may be used."""

    def __init__(
        self, connector: Opener, limits: Limits, keep_alive_s: float, on_unreadable: Callable[[str], None]
    ) -> None:
        """Needs a running loop. ``keep_alive_s`` bounds how long a connection is free; a server may ask for less.

        ``on_unreadable`` hears why an answer is not HTTP.
        """
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._limits = limits
        self._keep_alive_s = keep_alive_s
        self._on_unreadable = on_unreadable
        self._all: set[Connection] = set()
        self._free: deque[tuple[Connection, float]] = deque()
        self._bound: dict[Hashable, tuple[Connection, float]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._is_retired = False

    async def take(self, owner: Hashable | None = None, *, fresh: bool = False) -> Connection:
        """A connection for one request of ``owner``. Raises ``UpstreamFault`` where there is none to be had.

        ``fresh``: one that has not served yet.
        """
        free = None if fresh else self._take_bound(owner) or self._take_shared()
        return free or await self._open()

    def take_free(self, owner: object = None) -> Connection | None:
        """One that is free at this moment, for a request of ``owner``; ``None`` where one is bound to that."""
        return self._take_shared() if owner not in self._bound else None

    def give_back(self, connection: Connection) -> None:
        """The request is over, one way or the other."""
        is_fit = connection.finish()
        if not is_fit or self._is_retired or connection.bound_to is NOBODY:
            connection.close()
            return
        until = self._loop.time() + self._patience_s(connection)
        if connection.bound_to is None:
            self._free.append((connection, until))
        else:
            self.release(connection.bound_to)
            self._bound[connection.bound_to] = connection, until
        if self._sweeper is None:
            self._sweeper = self._loop.call_at(until, self._sweep)

    @property
    def unanswered_s(self) -> float:
        """How long the oldest request has been without the first byte of an answer."""
        return max((connection.unanswered_s for connection in self._all), default=0.0)

    def release(self, owner: Hashable) -> None:
        """The client's connection is gone, or has another one of its own: nobody may use what is bound to it."""
        if owner in self._bound:
            self._bound.pop(owner)[0].close()

    async def retire(self) -> None:
        """Close what is free now and the others behind their answers; returns behind the last of them.

        Listening streams have no answer to wait for, and are broken off: whoever listens comes back elsewhere.
        """
        self._is_retired = True
        for connection in [each for each in self._all if each.is_listening]:
            connection.abort()
        for connection, _ in (*self._free, *self._bound.values()):
            connection.close()
        self._free.clear()
        self._bound.clear()
        await self._until_empty()

    async def close(self) -> None:
        """Close all connections, those in use as well."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._free.clear()
        self._bound.clear()
        for connection in self._all:
            connection.abort()
        await self._until_empty()

    async def _until_empty(self) -> None:
        if self._all:
            self._emptied = self._emptied or self._loop.create_future()
            await asyncio.shield(self._emptied)

    def _patience_s(self, connection: Connection) -> float:
        told_s = connection.idle_time_s
        if told_s is None:
            return self._keep_alive_s
        return min(self._keep_alive_s, told_s - min(MARGIN_S, told_s / 4))

    def _take_bound(self, owner: Hashable | None) -> Connection | None:
        found = self._bound.pop(owner, None) if owner is not None else None
        return _if_fit(*found, self._loop.time()) if found is not None else None

    def _take_shared(self) -> Connection | None:
        """The one that was used last: what is too many is left to grow old."""
        now = self._loop.time()
        while self._free:
            connection = _if_fit(*self._free.pop(), now)
            if connection is not None:
                return connection
        return None

    async def _open(self) -> Connection:
        connection = await self._connector.open(lambda: Connection(self._limits, self._lost, self._on_unreadable))
        if not connection.is_connected():
            raise UpstreamFault(Fault.UNREACHABLE)
        self._all.add(connection)
        return connection

    def _lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if self._emptied is not None and not self._all and not self._emptied.done():
            self._emptied.set_result(None)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        kept = [each for each in self._free if not _is_over(*each, now)]
        if len(kept) < len(self._free):
            self._free = deque(kept)
        for owner in [owner for owner, each in self._bound.items() if _is_over(*each, now)]:
            del self._bound[owner]
        left = [until for _, until in (*kept, *self._bound.values())]
        if left:
            at = max(min(left), now + self._keep_alive_s / SWEEPS)
            self._sweeper = self._loop.call_at(at, self._sweep)


def _if_fit(connection: Connection, until: float, now: float) -> Connection | None:
    """A look before it is used again: whatever is sent into a connection that is closed may, or may not, have run."""
    if until > now and connection.is_quiet():
        return connection
    connection.close()
    return None


def _is_over(connection: Connection, until: float, now: float) -> bool:
    if until > now and connection.is_connected():
        return False
    connection.close()
    return True
