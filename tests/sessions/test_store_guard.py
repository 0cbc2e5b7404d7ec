"""What is told of a store that can be read and takes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mcp_sidecar.facts import Fact, StoreAsked, StoreLost, StoreWritesRefused, StoreWritesTaken
from mcp_sidecar.sessions.store_guard import StoreGuard
from mcp_sidecar.sessions.stores.memory import MemoryStore
from mcp_sidecar.sessions.stores.store import Claim, Entry, Key, StoreUnwritable, Touch
from tests.support.waiting import HANG_S

KEY, ENTRY = Key(b"session", b"alice"), Entry(1, b"w", b"data")


class _Filling(MemoryStore):
    """One that somebody asks, on a disk that may be full."""

    outlives_process = True
    is_full = False
    standing: Entry | None = None

    async def put(
        self, key: Key, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        if self.standing is not None:
            return self.standing
        if self.is_full:
            raise StoreUnwritable("the disk is full")
        return await super().put(key, entry, expected=expected, ttl_s=ttl_s, claim=claim)

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Key]:
        return [touch.key for touch in touches]


async def test_refused_writes_are_told_once_until_one_is_taken() -> None:
    """However many are refused, and although reading goes on; the next time is another one."""
    store, told, seconds = _Filling(), list[Fact](), 0.0
    guard = StoreGuard(store, timeout_s=HANG_S, clock=lambda: seconds, emit=told.append)

    async def written() -> bool:
        try:
            return await guard.put(KEY, ENTRY, expected=0, ttl_s=9) is None
        except StoreUnwritable:
            return False

    for outage in range(2):
        store.is_full = True
        for _ in range(3):
            assert not await written()
            assert await guard.get(b"session") == {}
        seconds += 5
        store.is_full = False
        assert await written()
        assert await written()
        expected = [StoreWritesRefused("the disk is full"), StoreWritesTaken(5.0)] * (outage + 1)
        assert [fact for fact in told if not isinstance(fact, StoreAsked)] == expected
    assert not any(isinstance(fact, StoreLost) for fact in told)
    assert guard.is_up


async def test_what_writes_nothing_does_not_end_that() -> None:
    """A full store finds by reading that another was quicker, or that what is in use is not there."""
    store, told = _Filling(), list[Fact]()
    guard = StoreGuard(store, timeout_s=HANG_S, clock=lambda: 0.0, emit=told.append)
    store.is_full = True
    for _ in range(2):
        store.standing = None
        with pytest.raises(StoreUnwritable):
            await guard.put(KEY, ENTRY, expected=0, ttl_s=9)
        store.standing = ENTRY
        assert await guard.put(KEY, ENTRY, expected=0, ttl_s=9) == ENTRY
        assert await guard.touch([Touch(KEY, 1, 9)]) == [KEY]
    assert [fact for fact in told if not isinstance(fact, StoreAsked)] == [StoreWritesRefused("the disk is full")]
