"""Records at rest, sealed where there is a key: what stands there in clear, and what under another key."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_sidecar.sessions.stores.at_rest import SEALED, SealingStore
from mcp_sidecar.sessions.stores.keys import KeyRing, new_key
from mcp_sidecar.sessions.stores.store import StoreUnusable
from tests.sessions.stores.test_sqlite import Clock, opened

FRESH = bytes(range(32))


class TestSecrets:
    """What all who share a store hash with."""

    @pytest.mark.parametrize("first", [0, SEALED, 0xFF])
    async def test_one_in_clear_is_read_whatever_it_begins_with(self, tmp_path: Path, first: int) -> None:
        """It is random: one in 256 begins like what is sealed. From then on it is sealed."""
        clear = bytes((first, *b"x" * 31))
        async with opened(tmp_path / "sessions.db", Clock()) as store:
            assert await store.secret("name", clear) == clear
            sealing = SealingStore(store, KeyRing(text=new_key()))
            for _ in range(2):
                assert await sealing.secret("name", FRESH) == clear
            assert len(await store.secret("name", FRESH)) > len(clear)

    async def test_one_of_another_key_is_not_replaced(self, tmp_path: Path) -> None:
        """The key may just be missing here."""
        async with opened(tmp_path / "sessions.db", Clock()) as store:
            key = new_key()
            assert await SealingStore(store, KeyRing(text=key)).secret("name", FRESH) == FRESH
            with pytest.raises(StoreUnusable):
                await SealingStore(store, KeyRing(text=new_key())).secret("name", b"y" * 32)
            assert await SealingStore(store, KeyRing(text=key)).secret("name", b"z" * 32) == FRESH
