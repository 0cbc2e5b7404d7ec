"""Whether the upstream accepts a credential in the session that it claims, asked with a ``ping`` before a GET is served.

The listening stream acts on what the sidecar holds: it ends the one before it, hears what waits to be told, and stays while
the upstream is away. So it is the session's only where the upstream has accepted its credential; else it is passed on alone.
"""

from __future__ import annotations

from functools import partial

from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.heal import Loss
from mcp_sidecar.sessions.own_requests import OwnRequests
from mcp_sidecar.sessions.ping import ping
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.verdicts.classify import NO_SIGNATURE
from mcp_sidecar.verdicts.refusals import PingVerdict
from mcp_sidecar.waiting.hold import HeldRequest, Waited
from mcp_sidecar.waiting.pauses import Pauses

MAX_HEALS = 2


class CredentialProof:
    """One credential in one session that it claims."""

    def __init__(self, services: Services, call: Call) -> None:
        """``call`` is the GET."""
        self._services = services
        self._call = call
        self._held = HeldRequest(0, services.policy.hold_timeout_s, owner=call.claimed, is_stream=True)
        self._heals_left = MAX_HEALS
        self._pauses = Pauses()

    async def run(self) -> None:
        """Ask until the upstream has said something, as long as a request may wait; ``call.session`` is set if it accepts."""
        try:
            while (session := self._call.claimed) is not None and self._services.policy.heals:
                if session.is_ended or not await self._goes_on(session):
                    return
        finally:
            self._services.holds.leave(self._held)

    async def _goes_on(self, session: Session) -> bool:
        """Ask once; whether it is to be asked again."""
        if session.displaced:
            return await self._heal(session, Loss(session.generation, "id-minted-anew", 0))
        generation, holds = session.generation, self._services.holds
        own = OwnRequests(self._services.upstream, session, self._call.trigger)
        found = await ping(
            own,
            session.upstream_id,
            self._services.policy.signatures,
            heads=partial(self._call.accepted, generation),
        )
        match found.verdict:
            case PingVerdict.AWAY:
                return await holds.for_connect(self._held) is Waited.BACK
            case PingVerdict.GATEWAY:
                return await holds.for_route(self._held) is Waited.BACK
            case PingVerdict.BUSY:
                pause_s = self._pauses.next_s(found.retry_after_s)
                return await holds.for_turn(self._held, pause_s) is Waited.BACK
        holds.route.note_served()
        match found.verdict:
            case PingVerdict.ALIVE:
                return self._call.claimed is not None and session.generation > generation
            case PingVerdict.REFUSED:
                status = found.refusal.words.status if found.refusal is not None else 0
                return await self._heal(session, Loss(generation, NO_SIGNATURE, status, is_certain=False))
            case _:
                return False

    async def _heal(self, session: Session, loss: Loss) -> bool:
        if not self._call.may_heal or not self._heals_left:
            return False
        self._heals_left -= 1
        healer = self._services.sessions.healer
        waited, end = await healer.heal(session, loss, self._call.trigger, self._held, is_urgent=False)
        return waited is Waited.BACK and end.why is None
