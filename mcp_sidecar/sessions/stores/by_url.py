"""Which store a URL names.

The rule of this file: a store is imported where it is asked for. SQLite costs a process a MiB, a library of an extra six.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_sidecar.config import SessionLimits, StoreConfig
from mcp_sidecar.sessions.stores.keys import BadKeys, KeyRing
from mcp_sidecar.sessions.stores.memory import MemoryStore
from mcp_sidecar.sessions.stores.store import Store, StoreUnusable, Times

if TYPE_CHECKING:
    from mcp_sidecar.sessions.stores.sqlite import SqliteStore

REDIS_SCHEMES: Final = ("redis:", "rediss:", "redis+unix:", "redis+sentinel:")

Warn = Callable[[str], None]
"""Told what an operator could do better; once."""


def _ignore(_: str) -> None:
    """Nobody wants to hear it."""


def key_ring(config: StoreConfig) -> KeyRing | None:
    """The keys, if there are any. Raises ``StoreUnusable``."""
    if config.key_file is None and config.key is None:
        return None
    try:
        return KeyRing(file=config.key_file, text=config.key)
    except BadKeys as error:
        raise StoreUnusable(f"{config.key_file or 'sessions.key'}: {error}") from None


def store_at(
    config: StoreConfig, limits: SessionLimits, times: Times, ring: KeyRing | None = None, warn: Warn = _ignore
) -> Store:
    """The store, not yet opened; with keys it seals. Raises ``StoreUnusable``, without quoting what may hold a password."""
    store = _plain(config, limits, times, ring, warn)
    if ring is None or isinstance(store, MemoryStore):
        return store
    from mcp_sidecar.sessions.stores.at_rest import SealingStore

    return SealingStore(store, ring)


def _plain(config: StoreConfig, limits: SessionLimits, times: Times, ring: KeyRing | None, warn: Warn) -> Store:

    def sqlite(path: Path) -> SqliteStore:
        from mcp_sidecar.sessions.stores.sqlite import SqliteStore

        return SqliteStore(path, times=times, max_entries=limits.max_sessions, ended_ttl_s=limits.max_lifetime_s)

    scheme, colon, rest = config.url.partition(":")
    match scheme.lower() + colon:
        case "auto":
            from mcp_sidecar.sessions.stores.automatic import AutomaticStore

            return AutomaticStore(config, sqlite)
        case scheme if scheme in REDIS_SCHEMES and rest.startswith("//"):
            from mcp_sidecar.sessions.stores.redis import RedisStore

            return RedisStore(
                config.url,
                namespace=config.namespace,
                timeout_s=config.timeout_s,
                claims_ttl_s=limits.max_lifetime_s,
                warn=warn,
            )
        case "memory:" if not rest:
            return MemoryStore()
        case "sealed:" if not rest:
            if ring is None:
                raise StoreUnusable("sealed: needs sessions.key_file; `mcp-sidecar new-key` prints a key")
            return MemoryStore("sealed:")
        case "sqlite:" if rest and not rest.endswith("/"):
            return sqlite(Path(rest).expanduser())
        case "sqlite:":
            raise StoreUnusable("sqlite: needs the path of a file, as in sqlite:/var/lib/mcp-sidecar/sessions.db")
        case _:
            raise StoreUnusable("no such store: use auto, memory:, sqlite:PATH, sealed: or redis://HOST")
