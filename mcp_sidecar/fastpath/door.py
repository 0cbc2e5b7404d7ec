"""The one way into the fast path: what comes on an idle connection of a client is shown to it first."""

from __future__ import annotations

import asyncio

from mcp_sidecar.downstream.common import Client, Passage
from mcp_sidecar.fastpath.lane import Express, Gate, Trip
from mcp_sidecar.fastpath.layouts import Asked


def door_to(gate: Gate) -> Door | None:
    """The door, where the lane is of use in this mode."""
    express = Express(gate)
    return Door(express) if express.is_open else None


class Door:
    """Lets requests pass that the lane takes."""

    def __init__(self, express: Express) -> None:
        """``express`` decides which those are."""
        self.express = express

    def __call__(self, client: Client, data: bytes) -> Passage | None:
        """What becomes of a request that begins with ``data``; ``None`` where it is not for the lane."""
        express = self.express
        request = express.read(client.peer, data)
        if request is None:
            return None
        if request.size > len(data):
            return Beginning(express, client, request, data)
        return express.send(client, request, data)


class Beginning:
    """A request whose body has not come as a whole, and what becomes of it then."""

    __slots__ = ("_client", "_express", "_missing", "_parts", "_request", "_trip")

    def __init__(self, express: Express, client: Client, request: Asked, data: bytes) -> None:
        """It counts as under way from now on."""
        self._express = express
        self._client = client
        self._request = request
        self._parts = [data]
        self._missing = request.size - len(data)
        self._trip: Trip | None = None
        express.gate.enter()

    @property
    def awaits_client(self) -> bool:
        """Whether a part of the body is still to come."""
        return self._trip is None

    def received(self, data: bytes) -> None:
        """The rest of the body, or a part of it."""
        if self._trip is not None:
            self._trip.received(data)
            return
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        whole, self._parts = b"".join(self._parts), []
        self._trip = self._express.send(self._client, self._request, whole) if not self._missing else None
        if self._trip is None:
            self._client.take_back(whole)
        asyncio.get_running_loop().call_soon(self._express.gate.leave)  # by then it counts where it is now

    def client_left(self) -> None:
        """Nobody waits for the answer any more."""
        if self._trip is not None:
            self._trip.client_left()
        else:
            self._express.gate.leave()
            self._express.gate.note_left()
