"""The front door to everything that outlives a request: whose session a request is in, and who looks after it."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_sidecar.healing.principal import ANONYMOUS, Principal, Principals
from mcp_sidecar.healing.session import ClientSessionId, Session
from mcp_sidecar.sessions.asker import Asker
from mcp_sidecar.sessions.healer import Healer
from mcp_sidecar.sessions.list_check import ListCheck
from mcp_sidecar.sessions.notifier import Notifier
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.wire.headers import Fields


@dataclass(frozen=True, slots=True)
class Sessions:
    """``principals`` hold the secret of their hashes; without ``binds`` everybody is the same one."""

    table: SessionTable
    principals: Principals
    binds: bool
    healer: Healer
    asker: Asker
    notifier: Notifier
    list_check: ListCheck

    def principal_of(self, fields: Fields) -> tuple[Principal, Principal]:
        """Who asks, and with which credential."""
        identity = self.principals.of(fields)
        return (identity.principal if self.binds else ANONYMOUS), identity.credential

    def find(self, client_id: ClientSessionId | None, principal: Principal) -> tuple[Session | None, bool]:
        """The principal's own session with this id, and whether the id is somebody else's only."""
        if client_id is None:
            return None, False
        session = self.table.find(client_id, principal)
        return session, session is None and self.table.is_held(client_id)

    async def stop(self) -> None:
        """Abandon what is under way for them."""
        await self.asker.stop()
        await self.healer.stop()
        await self.list_check.stop()
        await self.notifier.stop()
