"""Sessions, their records, and tables of them, made without a client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.marked_ids import Marks
from mcp_sidecar.healing.principal import ANONYMOUS
from mcp_sidecar.healing.record import ClientSessionId, Instance, SessionRecord, UpstreamSessionId
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.keeper import Keeper
from mcp_sidecar.sessions.store_guard import StoreGuard
from mcp_sidecar.sessions.stores.memory import MemoryStore
from mcp_sidecar.sessions.stores.store import Store, Times

HERE: Final = "http://here"
HANDSHAKE: Final = Handshake(params=b"{}", protocol_version="2025-06-18", result=b"{}")


def a_record(upstream_id: str | None = "first", **members: Any) -> SessionRecord:
    """A record as an ``initialize`` makes it; other members by name."""
    minted = UpstreamSessionId(upstream_id) if upstream_id is not None else None
    made: dict[str, Any] = {
        "handshake": HANDSHAKE,
        "principal": ANONYMOUS,
        "tag": "tag",
        "created_at": 0.0,
        "last_used_at": 0.0,
        "instances": (Instance(HERE, minted, ""),),
    }
    return SessionRecord(**{**made, **members})


def a_session(client_id: str = "first", record: SessionRecord | None = None) -> Session:
    """A session behind which stands what its record says, by default the upstream session of the same id."""
    record = record or a_record(client_id)
    here = record.at(HERE)
    marks = Marks(record.tag, "seed", ((2, here.word),) if here is not None and here.word else ())
    return Session(ClientSessionId(client_id), record, "ab12", HERE, marks, 0.0, 0.0)


def keeper(
    limits: SessionLimits, clock: Callable[[], float], store: Store | None = None, *, instance: str = HERE
) -> Keeper:
    """A keeper whose wall clock is the monotonic one; without a store what it is given lives in this process alone."""
    guard = StoreGuard(store or MemoryStore(), timeout_s=5.0, clock=clock, emit=lambda _: None)
    return Keeper(guard, limits, instance=instance, namespace="default", times=Times(clock, clock))
