"""Where a client stands in the events of its session: behind which one, and which requests it still waits for.

An event id of an earlier upstream session never reaches a newer one, which may have minted the same (transports,
"Resumability and Redelivery").
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mcp_sidecar.healing.session import Session
from mcp_sidecar.healing.stream_watch import StreamWatch
from mcp_sidecar.wire.jsonrpc import JsonRpcId

LONGEST_EVENT_ID = 4096
"""In characters. A longer one is no use as a header: most servers would refuse the request for it."""

_NO_IDS: set[JsonRpcId] = set()  # one for all, to which nothing is added: there may be thousands of streams
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Position:
    """One client's. ``polled`` are the requests whose answers it comes for, empty where it only listens."""

    __slots__ = ("_session", "is_poll", "last_seen", "polled")

    def __init__(self, session: Session | None, last_seen: str | None) -> None:
        """``last_seen`` is the ``Last-Event-ID`` that the client sent."""
        self._session = session
        self.last_seen = last_seen
        polled = session.polled_from(last_seen) if session is not None else ()
        self.polled: set[JsonRpcId] = set(polled) if polled else _NO_IDS
        self.is_poll = bool(self.polled)

    @property
    def is_answered(self) -> bool:
        """Whether the client has everything that it came for."""
        return self.is_poll and not self.polled

    def own_id(self, generation: int) -> str | None:
        """The last event id as the upstream minted it; ``None`` where there is none, or it is of another generation."""
        if self.last_seen is None or self._session is None:
            return self.last_seen
        return self._session.mark_of(generation).off_text(self.last_seen)

    def is_stranded(self, generation: int) -> bool:
        """Whether the client waits for answers that an upstream session of this generation will never give."""
        return bool(self.polled) and self.own_id(generation) is None

    def advance(self, watch: StreamWatch) -> None:
        """What passed on a stream that has ended."""
        if watch.last_event_id is not None:
            is_usable = can_be_sent_back(watch.last_event_id)
            self.last_seen = watch.mark.on_text(watch.last_event_id) if is_usable else None

    def is_at(self, seen_event_id: str, watch: StreamWatch | None) -> bool:
        """Whether this is the last event id that was sent to the client; ``watch`` is of the stream that it has now."""
        if watch is None or watch.last_event_id is None:
            return seen_event_id == self.last_seen
        return seen_event_id == watch.mark.on_text(watch.last_event_id)

    def forget(self) -> None:
        """The client only listens from now on."""
        self.last_seen = None


def can_be_sent_back(event_id: str) -> bool:
    """Whether an event id can stand in a header: a stream may hold any, and HTTP does not allow all."""
    return len(event_id) <= LONGEST_EVENT_ID and _CONTROL.search(event_id) is None


def note_unanswered(session: Session | None, watch: StreamWatch | None, waiting: Iterable[JsonRpcId] | None) -> None:
    """A stream is over, and its client may come back for these requests.

    Behind the last event, or behind the one before it, should the last have got lost on the way.
    """
    ids = tuple(waiting or ())
    if session is None or watch is None or not ids:
        return
    for event_id in (watch.former_event_id, watch.last_event_id):
        if event_id is not None and can_be_sent_back(event_id):
            session.note_polled(watch.mark.on_text(event_id), ids)
