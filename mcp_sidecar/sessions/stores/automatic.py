"""``auto``: a SQLite file in the folder for state, one for each upstream; where that cannot be, memory.

The rule of this file: nobody has asked for it, so it never keeps the sidecar from starting, and it tells what it chose. A
folder that others can write, as Kubernetes makes an ``emptyDir``, gets one in it that they cannot.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from mcp_sidecar.config import StoreConfig
from mcp_sidecar.sessions.stores.memory import MemoryStore
from mcp_sidecar.sessions.stores.sqlite import OTHERS_MAY_WRITE, SqliteStore
from mcp_sidecar.sessions.stores.store import Claim, Entry, Key, Lease, Store, StoreAway, StoreUnusable, Touch, Turn

_PLAIN: Final = re.compile(r"[^A-Za-z0-9.]+")
_SHOWN_CHARS: Final = 60

TRIES: Final = 4
"""Another sidecar may be at the file for a moment; each try waits for a lock by itself."""


class AutomaticStore:
    """What was chosen when it was opened; until then nothing is kept."""

    def __init__(self, config: StoreConfig, sqlite: Callable[[Path], SqliteStore]) -> None:
        """``sqlite`` makes the store of a file."""
        self._config = config
        self._sqlite = sqlite
        self._store: Store = MemoryStore()
        self._why_not = ""

    @property
    def outlives_process(self) -> bool:
        """Whether a file was found or made."""
        return self._store.outlives_process

    def __str__(self) -> str:
        """What was chosen, and why it is memory, if it is."""
        return f"{self._store} ({self._why_not})" if self._why_not else str(self._store)

    async def open(self) -> None:
        """Choose. Raises nothing."""
        folder = self._config.state_folder
        if folder is None:
            self._why_not = "neither HOME nor XDG_STATE_HOME is set"
            return
        try:
            path = _private(Path(folder)) / _name(self._config.instance)
            store = self._sqlite(path)
            await store.open()
            await _read(store, path)
        except StoreUnusable as error:
            self._why_not = str(error)
        except OSError as error:
            self._why_not = f"{folder}: {error.strerror}"
        else:
            self._store = store

    async def close(self) -> None:
        """Let go of it."""
        await self._store.close()

    async def get(self, session: bytes) -> Mapping[bytes, Entry]:
        """All entries of one session id."""
        return await self._store.get(session)

    async def put(
        self, key: Key, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        """Compare and set."""
        return await self._store.put(key, entry, expected=expected, ttl_s=ttl_s, claim=claim)

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Key]:
        """Put off that these expire."""
        return await self._store.touch(touches)

    async def holder(self, claim: Claim) -> Key | None:
        """Whose the upstream id is."""
        return await self._store.holder(claim)

    async def lease(self, lease: Lease, *, ttl_s: float) -> Turn:
        """Whose turn it is."""
        return await self._store.lease(lease, ttl_s=ttl_s)

    async def give_back(self, lease: Lease) -> None:
        """The work is done."""
        await self._store.give_back(lease)

    async def secret(self, name: str, fresh: bytes, *, replaces: bytes | None = None) -> bytes:
        """The value that all share."""
        return await self._store.secret(name, fresh, replaces=replaces)

    async def sweep(self) -> None:
        """Forget what has expired."""
        await self._store.sweep()


async def _read(store: SqliteStore, path: Path) -> None:
    """See that it can be read. Raises ``StoreUnusable`` where it cannot, and lets go of it."""
    for tries_left in reversed(range(TRIES)):
        try:
            await store.get(b"anybody")
        except StoreAway as away:
            if not tries_left:
                await store.close()
                raise StoreUnusable(f"{path}: {away}") from None
        else:
            return


def _private(folder: Path) -> Path:
    """The folder, or where others can write in it one in it of ours alone. Raises ``OSError`` and ``StoreUnusable``."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not folder.stat().st_mode & OTHERS_MAY_WRITE:
        return folder
    within = folder / f"of-{os.geteuid()}"
    within.mkdir(mode=0o700, exist_ok=True)
    found = within.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StoreUnusable(f"{within} is not a folder of this user alone")
    return within


def _name(instance: str) -> str:
    """One file for each upstream: an id that two servers have given out is two sessions."""
    digest = hashlib.blake2b(instance.encode(), digest_size=4).hexdigest()
    shown = _PLAIN.sub("-", instance.rpartition("://")[2])[:_SHOWN_CHARS]
    return f"{shown}-{digest}.db"
