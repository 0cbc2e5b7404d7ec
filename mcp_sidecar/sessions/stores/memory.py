"""``memory:``: sessions live in this process and end with it. ``sealed:``: and in what their clients know.

The session table holds them already, so nothing is kept here a second time, and there is nothing to ask.
"""
# ruff: noqa: ARG002 - it has the parameters of a store, and needs none of them

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcp_sidecar.sessions.stores.store import Claim, Entry, Key, Lease, Touch, Turn


class MemoryStore:
    """Takes everything, keeps nothing, finds nothing, and never waits."""

    outlives_process = False

    def __init__(self, shown: str = "memory:") -> None:
        """``shown`` is what stands in ``sessions.store``."""
        self._shown = shown

    def __str__(self) -> str:
        """As in ``sessions.store``."""
        return self._shown

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def get(self, session: bytes) -> Mapping[bytes, Entry]:
        """Nothing is known that the table does not know."""
        return {}

    async def put(
        self, key: Key, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        """The table holds it."""
        return None

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Key]:
        """Nothing is missed."""
        return ()

    async def holder(self, claim: Claim) -> Key | None:
        """The table knows."""
        return None

    async def lease(self, lease: Lease, *, ttl_s: float) -> Turn:
        """Nobody shares it."""
        return Turn(is_own=True, revision=0)

    async def give_back(self, lease: Lease) -> None:
        """Nothing to do."""

    async def secret(self, name: str, fresh: bytes, *, replaces: bytes | None = None) -> bytes:
        """Nobody shares it."""
        return fresh

    async def sweep(self) -> None:
        """Nothing expires here."""
