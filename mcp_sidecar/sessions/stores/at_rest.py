"""Records at rest, sealed where there is a key: a store around another one that never sees what it keeps.

The rule of this file: what was sealed for one place opens in no other, so that records cannot be swapped; what does not
open is left as it is, for the key may just be missing here.
The secrets that all share are sealed as well, and anew under a new first key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from mcp_sidecar.sessions.stores.keys import KEY_ID_BYTES, Key, KeyRing
from mcp_sidecar.sessions.stores.store import Claim, Entry, Lease, Store, StoreUnusable, Touch, Turn
from mcp_sidecar.sessions.stores.store import Key as Place

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV
except ImportError:  # the extra `sealed` is not installed
    AESSIV = None  # type: ignore[assignment, misc]

SEALED: Final = 0x80
"""The first byte of what is sealed; a record in clear begins with its version. To a reader without keys it is a later one."""

_HEAD_BYTES: Final = 1 + KEY_ID_BYTES
_PURPOSE: Final = b"mcps record"


class SealingStore:
    """Seals what it hands on, with the first key of the moment."""

    def __init__(self, store: Store, ring: KeyRing) -> None:
        """Raises ``StoreUnusable`` where the library is missing."""
        if AESSIV is None:
            raise StoreUnusable("sessions.key_file needs a library: install mcp-sidecar[sealed]")
        self._store = store
        self._ring = ring

    @property
    def outlives_process(self) -> bool:
        """As the other one."""
        return self._store.outlives_process

    def __str__(self) -> str:
        """As the other one."""
        return str(self._store)

    async def open(self) -> None:
        """Make it ready."""
        await self._store.open()

    async def close(self) -> None:
        """Let go of it."""
        await self._store.close()

    async def get(self, session: bytes) -> Mapping[bytes, Entry]:
        """All entries of one session id, opened."""
        entries = await self._store.get(session)
        return {principal: self._opened(Place(session, principal), entry) for principal, entry in entries.items()}

    async def put(
        self, key: Place, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        """Compare and set."""
        sealed = entry if entry.data is None else replace(entry, data=self._seal(entry.data, _of(key)))
        standing = await self._store.put(key, sealed, expected=expected, ttl_s=ttl_s, claim=claim)
        return self._opened(key, standing) if standing is not None else None

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Place]:
        """Put off that these expire."""
        return await self._store.touch(touches)

    async def holder(self, claim: Claim) -> Place | None:
        """Whose the upstream id is."""
        return await self._store.holder(claim)

    async def lease(self, lease: Lease, *, ttl_s: float) -> Turn:
        """Whose turn it is."""
        return await self._store.lease(lease, ttl_s=ttl_s)

    async def give_back(self, lease: Lease) -> None:
        """The work is done."""
        await self._store.give_back(lease)

    async def secret(self, name: str, fresh: bytes, *, replaces: bytes | None = None) -> bytes:
        """The value that all share; one in clear, or under a key that is not the first one any more, is sealed anew.

        It has as many bytes as ``fresh``. Raises ``StoreUnusable`` where none of the keys opens it.
        """
        place = [b"secret", name.encode()]
        stored = await self._store.secret(name, self._seal(fresh, place), replaces=replaces)
        is_clear = len(stored) == len(fresh)  # what is sealed is longer, and what is random may begin with any byte
        value = stored if is_clear else self._open(stored, place)
        if value is None:
            raise StoreUnusable("what it holds is sealed with a key that sessions.key_file does not have")
        if is_clear or stored[1:_HEAD_BYTES] != self._ring.keys.first.id:
            await self._store.secret(name, self._seal(value, place), replaces=stored)
        return value

    async def sweep(self) -> None:
        """Forget what has expired."""
        await self._store.sweep()

    def _seal(self, data: bytes, place: list[bytes]) -> bytes:
        key = self._ring.keys.first
        return bytes((SEALED,)) + key.id + _cipher(key).encrypt(data, place)

    def _opened(self, key: Place, entry: Entry) -> Entry:
        if entry.data is None or entry.data[:1] != bytes((SEALED,)):
            return entry
        data = self._open(entry.data, _of(key))
        return entry if data is None else replace(entry, data=data)

    def _open(self, sealed: bytes, place: list[bytes]) -> bytes | None:
        name = sealed[1:_HEAD_BYTES]
        key = next((key for key in self._ring.keys if key.id == name), None)
        if key is None:
            return None
        try:
            return _cipher(key).decrypt(sealed[_HEAD_BYTES:], place)
        except (InvalidTag, ValueError):
            return None


def _cipher(key: Key) -> AESSIV:
    return AESSIV(key.subkey(_PURPOSE))


def _of(key: Place) -> list[bytes]:
    return [b"record", key.session, key.principal]
