"""A new server takes the place of the old one under a running sidecar: new requests go there, sessions are healed at once.

What is under way on the old one ends there. A session that bears credentials is healed by its own stream or its next request:
credentials are never kept, so there is nothing that could be said for it before.
"""

from __future__ import annotations

import asyncio

from mcp_sidecar.config import UpstreamConfig
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.heal import Loss
from mcp_sidecar.sessions.own_requests import Trigger
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.upstream.pool import Pool
from mcp_sidecar.waiting.hold import HeldRequest, Waited

REPLACED = "server-replaced"
GONE_AFTER_S = 10.0
"""Who neither listens nor has asked for so long is healed by the next call, and could not be told of anything before."""
CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})


class Sessions:
    """What may be asked for the sessions of clients that need no credentials: the last request of each, without its body."""

    def __init__(self, services: Services) -> None:
        """Nobody has asked anything yet."""
        self._services = services
        self._triggers: dict[Session, Trigger] = {}
        self._secret = CREDENTIALS | frozenset(services.policy.principal_headers)

    def note(self, call: Call) -> None:
        """A request in a session was answered."""
        if call.session is not None and not any(name.lower() in self._secret for name, _ in call.pairs):
            self._triggers[call.session] = call.trigger

    def leave(self) -> Pool | None:
        """Send nothing to anybody from now on: requests wait. Gives the connections of so far."""
        return self._services.upstream.point_at(None)

    def take_over(self, config: UpstreamConfig) -> Pool | None:
        """Go on with another server, where requests go from now on. Gives the connections to the former one."""
        former = self._services.upstream.point_at(config)
        self._services.holds.fail(None)
        self._services.holds.availability.note(connected=True)
        return former

    async def heal(self) -> int:
        """Heal every session that can be healed now; how many were."""
        self._triggers = {session: trigger for session, trigger in self._triggers.items() if self._is_there(session)}
        healing = [self._heal(session, trigger) for session, trigger in self._triggers.items()]
        return sum(await asyncio.gather(*healing))

    def _is_there(self, session: Session) -> bool:
        """Whether somebody is likely to be at the other end: programs of one call leave without a word."""
        is_in_use = session.streams > 0 or self._services.clock() - session.last_used_at < GONE_AFTER_S
        return is_in_use and not session.is_ended

    def fail(self, why: str) -> None:
        """There is no server, and none will come by itself: whoever waits is told why."""
        self._services.upstream.point_at(None)
        self._services.holds.fail(why)

    def hope(self) -> None:
        """A server is being started: calls wait for it again."""
        self._services.holds.fail(None)

    async def _heal(self, session: Session, trigger: Trigger) -> bool:
        services = self._services
        loss = Loss(session.generation, REPLACED, 0)
        held = HeldRequest(0, services.policy.hold_timeout_s, is_stream=True)
        waited, end = await services.sessions.healer.heal(session, loss, trigger, held, is_urgent=False)
        if waited is not Waited.BACK or end.why is not None:
            return False
        services.sessions.list_check.answered(session, session.generation, trigger)
        return True
