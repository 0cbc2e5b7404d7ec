"""Whether the upstream accepts a credential in the session that it claims, asked with a ``ping`` before a GET is served.

The listening stream acts on what the sidecar holds: it ends the one before it, hears what waits to be told, and stays while
the upstream is away. So it is the session's only where the upstream has accepted its credential; else it is passed on alone.
"""

from __future__ import annotations

from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.heal import Loss
from mcp_sidecar.sessions.judge import is_accepted, judge
from mcp_sidecar.sessions.own_requests import OwnRequests
from mcp_sidecar.sessions.restore import PING_BODY
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.verdicts.classify import Judgement, RequestFacts, Verdict
from mcp_sidecar.waiting.hold import HeldRequest, Waited

MAX_HEALS = 2


class CredentialProof:
    """One credential in one session that it claims."""

    def __init__(self, services: Services, call: Call) -> None:
        """``call`` is the GET."""
        self._services = services
        self._call = call
        self._held = HeldRequest(0, services.policy.hold_timeout_s, owner=call.claimed, is_stream=True)
        self._heals_left = MAX_HEALS

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
        generation = session.generation
        own = OwnRequests(self._services.upstream, session, self._call.trigger)
        try:
            async with await own.post(PING_BODY, session.upstream_id, in_session=True) as answer:
                facts = RequestFacts("POST", "ping", self._call.knowledge)
                judgement = (await judge(answer, facts, self._services.policy.signatures)).judgement
                status = answer.status
        except UpstreamFault as fault:
            if fault.fault.may_have_arrived:
                return await self._services.holds.for_route(self._held) is Waited.BACK
            return await self._services.holds.for_connect(self._held) is Waited.BACK
        return await self._answered(session, Loss(generation, judgement.name, status), judgement)

    async def _answered(self, session: Session, loss: Loss, judgement: Judgement) -> bool:
        if judgement.verdict is Verdict.UNAVAILABLE and not judgement.jsonrpc_body:
            return await self._services.holds.for_route(self._held) is Waited.BACK
        self._services.holds.route.note_served()
        if is_accepted(judgement, loss.status):
            return not self._call.accepted(loss.generation)
        return judgement.verdict is Verdict.SESSION_LOST and await self._heal(session, loss)

    async def _heal(self, session: Session, loss: Loss) -> bool:
        if not self._call.may_heal or not self._heals_left:
            return False
        self._heals_left -= 1
        healer = self._services.sessions.healer
        waited, end = await healer.heal(session, loss, self._call.trigger, self._held, is_urgent=False)
        return waited is Waited.BACK and end.why is None
