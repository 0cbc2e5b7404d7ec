"""What all client connections have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.request import Fault, HeadReader

KEEP_ALIVE_S = 75.0
"""How long a connection may be open without a request."""

EDGE_KEEP_ALIVE_S = 4030.0
"""The same for a proxy's, which it closes itself as long as we do not: Traefik after 90 s, Google's after 600, Envoy after
3,600, Amazon's after 4,000 at most. One that is closed here while a request comes is a 502; no proxy sends a POST again."""

MAX_LONG_IDLE = 512
"""So many idle connections are kept for longer: whoever has a private address counts as a proxy, unless it is said."""

LINGER_S = 10.0
"""How long a client that is still sending is read from behind its answer: a reset could take that from it."""

LOOKS_PER_PATIENCE = 6
LONGEST_BETWEEN_LOOKS_S = 5.0


def _nobody(_: str | None) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may be silent in its turn, or take nothing of an answer or of a stream, in seconds.

    ``is_edge`` tells of an address whether it is a proxy's.
    """

    client_s: float = 30.0
    stream_s: float = 60.0
    idle_s: float = KEEP_ALIVE_S
    linger_s: float = LINGER_S
    edge_idle_s: float = EDGE_KEEP_ALIVE_S
    is_edge: Callable[[str | None], bool] = _nobody

    def idle_of(self, peer: str | None) -> float:
        """How long a connection from this address may be open without a request."""
        return self.edge_idle_s if self.is_edge(peer) else self.idle_s

    @property
    def between_looks_s(self) -> float:
        """How often to look: a client may get so much more than it should."""
        return min(min(self.client_s, self.stream_s) / LOOKS_PER_PATIENCE, LONGEST_BETWEEN_LOOKS_S)


class Handler(Protocol):
    """What is done with requests."""

    async def handle(self, request: Request, responder: Responder) -> None:
        """Answer one, or leave it ``parked``. Cancelled where the client leaves."""

    def note_unread(self, answer: OwnAnswer) -> None:
        """What did not become a request got this answer."""

    def note_left(self, request: Request) -> None:
        """The client has left before ``handle`` was called."""

    def note_gone(self, connection: Hashable) -> None:
        """A client's connection is over, whatever was asked on it."""

    def note_failed(self, error: Exception) -> None:
        """A request ended without an answer."""


class Passage(Protocol):
    """A request on the fast path."""

    @property
    def awaits_client(self) -> bool:
        """Whether a part of the request is still to come."""

    def received(self, data: bytes) -> None:
        """The client has sent more."""

    def client_left(self) -> None:
        """It has left."""


class Client(Protocol):
    """A client's connection, as the fast path sees it."""

    peer: str | None
    is_slow: bool

    def answer(self, data: bytes) -> None:
        """Give the whole answer to the request on the fast path."""

    def take_back(self, data: bytes, in_flight: object | None = None) -> None:
        """Have the ordinary way go on with what has come of the request."""

    def data_received(self, data: bytes) -> None:
        """Here is more of it, or more than it."""


Door = Callable[[Client, bytes], Passage | None]
"""Is shown what comes on an idle connection; ``None`` where it does not want it."""


class Looked(Protocol):
    """A connection, as whoever looks after all of them sees it."""

    @property
    def is_idle(self) -> bool:
        """Whether no request has begun."""

    def look(self, now: float) -> None:
        """Give up a client that is too slow."""

    def close_idle(self) -> None:
        """Close it, unless a request is under way or has begun."""

    def cancel(self) -> asyncio.Task[None] | None:
        """Cut it; the task that ends with it, if there is one."""


@dataclass(slots=True)
class Common:
    """``clock`` gives monotonic seconds; the one timer for all connections goes by the loop's own."""

    loop: asyncio.AbstractEventLoop
    handler: Handler
    refusals: Mapping[Fault, OwnAnswer]
    heads: HeadReader
    patience: Patience
    clock: Callable[[], float]
    door: Door | None = None
    is_draining: bool = False
    """Whether every answer says that it is the last one of its connection."""
    is_closing: bool = False
    """Whether no connection goes on behind its answer."""
    is_crowded: bool = False
    """Whether too many connections are idle for any to be kept for longer than others."""
    connections: set[Looked] = field(default_factory=set)
    _timer: asyncio.TimerHandle | None = None

    def opened(self, connection: Looked) -> None:
        """A client has come."""
        self.connections.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(self.patience.between_looks_s, self._look)

    def lost(self, connection: Looked) -> None:
        """It has left."""
        self.connections.discard(connection)

    def stop_looking(self) -> None:
        """Every connection is cut."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """The timer goes on while there is a connection."""
        self._timer = None
        self.look(self.loop.time())
        if self.connections:
            self._timer = self.loop.call_later(self.patience.between_looks_s, self._look)

    def look(self, now: float) -> None:
        """Look after every connection."""
        self.is_crowded = sum(connection.is_idle for connection in self.connections) > MAX_LONG_IDLE
        for connection in list(self.connections):
            connection.look(now)
