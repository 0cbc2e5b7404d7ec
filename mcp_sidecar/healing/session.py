"""One client session across upstream sessions.

The law of this file: the client-visible id never changes; the upstream id behind it changes only by ``repoint``, which
is the one place that raises the generation. A *generation* is the n-th upstream session behind one client session.
Whoever sends a request remembers the generation that it was sent under: a loss reported by an older generation is no
news. States change only along ``TRANSITIONS``; the diagram in the documentation is drawn from the same table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from mcp_sidecar.healing.client_state import ClientState
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.hints import Hint
from mcp_sidecar.healing.lists import SeenLists
from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.progress import Progress
from mcp_sidecar.wire.jsonrpc import JsonRpcId

ClientSessionId = NewType("ClientSessionId", str)
UpstreamSessionId = NewType("UpstreamSessionId", str)


MAX_POLLED_STREAMS = 100
"""How many streams that are to be polled are remembered per session."""

MAX_POLLED_IDS, MAX_POLLED_ID_CHARS = 100, 1_024
"""A stream of more requests, or of longer ids, is not remembered."""


class State(StrEnum):
    """Where a session stands."""

    ESTABLISHED = "established"
    HEALING = "healing"
    LOST = "lost"
    ENDED = "ended"


class Event(StrEnum):
    """What can happen to a session."""

    LOSS_SEEN = "loss seen"
    HEALED = "healed"
    ALIVE_AFTER_ALL = "alive after all"
    NOT_HEALED = "not healed"
    DISPLACED = "id minted anew for another session"
    ENDED = "ended"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.ESTABLISHED, Event.LOSS_SEEN): State.HEALING,
    (State.ESTABLISHED, Event.DISPLACED): State.LOST,
    (State.ESTABLISHED, Event.ENDED): State.ENDED,
    (State.HEALING, Event.HEALED): State.ESTABLISHED,
    (State.HEALING, Event.ALIVE_AFTER_ALL): State.ESTABLISHED,
    (State.HEALING, Event.NOT_HEALED): State.LOST,
    (State.HEALING, Event.DISPLACED): State.HEALING,
    (State.HEALING, Event.ENDED): State.ENDED,
    (State.LOST, Event.LOSS_SEEN): State.HEALING,
    (State.LOST, Event.DISPLACED): State.LOST,
    (State.LOST, Event.ENDED): State.ENDED,
    (State.ENDED, Event.HEALED): State.ENDED,
    (State.ENDED, Event.ALIVE_AFTER_ALL): State.ENDED,
    (State.ENDED, Event.NOT_HEALED): State.ENDED,
    (State.ENDED, Event.ENDED): State.ENDED,
}


def diagram() -> str:
    """The state diagram in Mermaid's language, for ``docs/architecture.md``; what changes no state is left out."""
    edges: dict[tuple[State, State], list[str]] = {}
    for (before, event), after in TRANSITIONS.items():
        if before is not after:
            edges.setdefault((before, after), []).append(event.value)
    lines = [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in edges.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.ESTABLISHED}", *lines, f"    {State.ENDED} --> [*]"])


class InvalidTransition(Exception):
    """A bug of the sidecar: an event that cannot happen in this state."""


@dataclass(slots=True, eq=False)
class Session:
    """A client session and the upstream session that stands behind it now.

    ``label`` is the short salted hash that logs and the admin page show. ``tag`` makes ids of later generations
    distinguishable from any id an upstream may mint (see ``healing.generations``). Times are seconds of a monotonic
    clock that the owner reads. ``streams`` are the client's open GET streams, ``posts`` its POSTs under way, ``exchanges``
    all its requests that are not at their end yet. ``failed_heals`` counts those in a row that did not restore the session;
    ``told_lost`` is the latest generation whose loss was told. ``hints`` wait for an answer that can carry them.
    ``lists`` are those that the client has seen; ``list_check_due`` from a heal until somebody has begun to compare them.
    ``told_restart``: the model knows of the latest heal.
    """

    client_id: ClientSessionId
    principal: Principal
    handshake: Handshake
    label: str
    tag: str
    created_at: float
    last_used_at: float
    upstream_id: UpstreamSessionId | None = field(init=False)
    generation: int = 1
    state: State = State.ESTABLISHED
    displaced: bool = False
    safe_tools: frozenset[str] = frozenset()
    refuses_get: bool = False
    streams: int = 0
    exchanges: int = 0
    recent_heals: tuple[float, ...] = ()
    failed_heals: int = 0
    told_lost: int = 0
    client_state: ClientState = field(default_factory=ClientState)
    hints: tuple[Hint, ...] = ()
    lists: SeenLists | None = None
    list_check_due: bool = False
    told_restart: bool = True
    posts: int = 0
    progress: Progress = field(default_factory=Progress)
    _polled: dict[str, tuple[JsonRpcId, ...]] | None = None

    def __post_init__(self) -> None:
        """The first upstream id is the client-visible one."""
        self.upstream_id = UpstreamSessionId(self.client_id)

    def fire(self, event: Event) -> None:
        """Take one transition. Nothing changes where the table has no row."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise InvalidTransition(f"{event.value} while {self.state.value}") from None

    def repoint(self, upstream_id: UpstreamSessionId | None, *, tools_still_hold: bool) -> None:
        """A heal succeeded: from now on ``upstream_id`` stands behind the client's id (none: it became stateless)."""
        self.fire(Event.HEALED)
        if self.state is State.ENDED:
            return
        self.upstream_id = upstream_id
        self.generation += 1
        self.failed_heals = 0
        self.displaced = False
        self.list_check_due = True
        self.told_restart = False
        if not tools_still_hold:
            self.safe_tools = frozenset()

    def note_polled(self, seen_event_id: str, waiting: Iterable[JsonRpcId]) -> None:
        """The upstream ended the stream of these requests in order to be polled for the rest, from this event on."""
        ids = tuple(waiting)
        if len(ids) > MAX_POLLED_IDS or any(isinstance(one, str) and len(one) > MAX_POLLED_ID_CHARS for one in ids):
            return
        self._polled = self._polled or {}
        self._polled[seen_event_id] = ids
        if len(self._polled) > MAX_POLLED_STREAMS:
            del self._polled[next(iter(self._polled))]

    def polled_from(self, seen_event_id: str | None) -> tuple[JsonRpcId, ...]:
        """The requests that a client which resumes behind this event still waits for."""
        return (self._polled or {}).get(seen_event_id or "", ())

    def displace(self) -> None:
        """The upstream has given this session's id to another one: it must not be used again."""
        self.fire(Event.DISPLACED)
        self.displaced = True

    @property
    def is_ended(self) -> bool:
        """Whether the client ended it, or it expired, or was given up."""
        return self.state is State.ENDED

    def heals_within(self, seconds: float, now: float) -> int:
        """How many heals were tried in the last ``seconds``; forgets the older ones."""
        self.recent_heals = tuple(at for at in self.recent_heals if now - at < seconds)
        return len(self.recent_heals)

    def note_heal(self, now: float) -> None:
        """Count one heal against the budget."""
        self.recent_heals = (*self.recent_heals, now)
