"""The sessions as an operator sees them: short hashes, counts and names, never an id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from operator import attrgetter

from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.peers import client_of, server_of
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.waiting.hold import Holds

Row = Mapping[str, object]
Program = tuple[str, str, int]


class SessionsView:
    """Reads the table of sessions."""

    def __init__(self, table: SessionTable, holds: Holds, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._table = table
        self._holds = holds
        self._clock = clock

    def __len__(self) -> int:
        """How many sessions there are."""
        return len(self._table)

    def rows(self, *, after: str = "", limit: int | None = None) -> Iterator[Row]:
        """One row per session in the order of their hashes: those behind ``after``, as many as ``limit``.

        Each is made when it is asked for, of the sessions that there were at the first one.
        """
        found = sorted((each for each in self._table if each.label > after), key=attrgetter("label"))
        peers: dict[int, dict[str, object]] = {}
        for session in found[:limit]:
            yield self._row(session, peers)

    def _row(self, session: Session, peers: dict[int, dict[str, object]]) -> Row:
        now, handshake = self._clock(), session.handshake
        if (both := peers.get(id(handshake))) is None:
            both = peers[id(handshake)] = _both(handshake)
        healed_at = session.healed_at
        return {
            "session": session.label,
            "age_seconds": round(now - session.opened_at, 3),
            "idle_seconds": round(now - session.last_used_at, 3),
            "generation": session.generation,
            "state": session.state.value,
            "protocol_version": handshake.protocol_version,
            "streams": session.streams,
            **both,
            "held": self._holds.held_of(session),
            "last_heal": None if healed_at is None else round(now - healed_at, 3),
        }

    def programs(self) -> tuple[tuple[Program, ...], tuple[Program, ...]]:
        """Clients and servers by name and version, with the number of their sessions, the most frequent first."""
        clients: Counter[tuple[str, str]] = Counter()
        servers: Counter[tuple[str, str]] = Counter()
        for handshake, number in self._handshakes():
            client, server = client_of(handshake), server_of(handshake)
            clients[client.name, client.version] += number
            servers[server.name, server.version] += number
        return _most_first(clients), _most_first(servers)

    def by_client(self) -> Mapping[str, int]:
        """How many sessions each client of the bounded set has."""
        names: Counter[str] = Counter()
        for handshake, number in self._handshakes():
            names[client_of(handshake).label] += number
        return names

    def _handshakes(self) -> Iterator[tuple[Handshake, int]]:
        """Each handshake with the number of sessions that share it."""
        handshakes: dict[int, Handshake] = {}
        numbers: Counter[int] = Counter()
        for session in self._table:
            handshake = session.handshake
            handshakes[id(handshake)] = handshake
            numbers[id(handshake)] += 1
        return ((handshakes[key], number) for key, number in numbers.items())


def _most_first(numbers: Counter[tuple[str, str]]) -> tuple[Program, ...]:
    return tuple((name, version, number) for (name, version), number in numbers.most_common())


def _both(handshake: Handshake) -> dict[str, object]:
    return {"client": asdict(client_of(handshake)), "server": asdict(server_of(handshake))}
