"""Streams that the upstream has ended in order to be polled for the rest (2025-11-25, "Sending Messages" 6)."""

from __future__ import annotations

from collections.abc import Iterable

from mcp_sidecar.wire.jsonrpc import JsonRpcId

MAX_POLLED_STREAMS = 100
"""How many streams that are to be polled are remembered per session."""

MAX_POLLED_IDS, MAX_POLLED_ID_CHARS = 100, 1_024
"""A stream of more requests, or of longer ids, is not remembered."""


class PolledStreams:
    """Of one session: behind which event, as the client saw its id, which requests still wait. None, as a rule."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        """None yet."""
        self._waiting: dict[str, tuple[JsonRpcId, ...]] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._waiting)

    def note(self, seen_event_id: str, waiting: Iterable[JsonRpcId]) -> None:
        """The upstream ended the stream of these requests in order to be polled for the rest, from this event on."""
        ids = tuple(waiting)
        if len(ids) > MAX_POLLED_IDS or any(isinstance(one, str) and len(one) > MAX_POLLED_ID_CHARS for one in ids):
            return
        self._waiting[seen_event_id] = ids
        if len(self._waiting) > MAX_POLLED_STREAMS:
            del self._waiting[next(iter(self._waiting))]

    def behind(self, seen_event_id: str | None) -> tuple[JsonRpcId, ...]:
        """The requests that a client which resumes behind this event still waits for."""
        return self._waiting.get(seen_event_id or "", ())
