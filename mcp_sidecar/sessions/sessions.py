"""The front door to everything that outlives a request: whose session a request is in, and who looks after it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mcp_sidecar.healing.principal import NOBODY, Identity, Principals
from mcp_sidecar.healing.safe_tools import SafeTools
from mcp_sidecar.sessions.asker import Asker
from mcp_sidecar.sessions.healer import Healer
from mcp_sidecar.sessions.list_check import ListCheck
from mcp_sidecar.sessions.notifier import Notifier
from mcp_sidecar.sessions.refresher import SessionRefresher
from mcp_sidecar.sessions.rounds import Rounds
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.wire.headers import Fields


@dataclass(frozen=True, slots=True)
class Sessions:
    """``principals`` hold the secret of their hashes; without ``binds`` everybody is the same one.

    ``sessionless`` is what is known where there are none.
    """

    table: SessionTable
    principals: Principals
    binds: bool
    healer: Healer
    asker: Asker
    notifier: Notifier
    list_check: ListCheck
    refresher: SessionRefresher
    rounds: Rounds
    sessionless: SafeTools = field(default_factory=SafeTools)

    def identity_of(self, fields: Fields, query: str) -> Identity:
        """Who asks, as far as the request tells."""
        identity = self.principals.of(fields, query)
        return identity if self.binds else replace(NOBODY, credential=identity.credential)

    async def stop(self) -> None:
        """Abandon what is under way for them."""
        await self.asker.stop()
        await self.healer.stop()
        await self.refresher.stop()
        await self.list_check.stop()
        await self.notifier.stop()
        await self.rounds.stop()
