"""One heal, step by step: initialize, compare, ``initialized``, what else the client had set.

What is sent carries the credentials of the request that triggered the heal, and nothing of them is kept. A new session
that is not told everything, or not wanted after all, is ended upstream and never taken for whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcp_sidecar.facts import Emit, HealEnded, HealOutcome, SessionAdopted, SessionEnd, SessionLost
from mcp_sidecar.healing.exchange import Unhealed
from mcp_sidecar.healing.handshake import INCOMPATIBLE, INITIALIZED, differences, is_same_server
from mcp_sidecar.healing.hints import restarted
from mcp_sidecar.healing.policy import Policy
from mcp_sidecar.healing.session import Session, State, UpstreamSessionId
from mcp_sidecar.sessions.keeper import LEASE_S, Saving
from mcp_sidecar.sessions.notifier import Notifier
from mcp_sidecar.sessions.open_streams import GetStreams
from mcp_sidecar.sessions.own_requests import OwnRequests, Trigger, in_time, read_rpc_answer
from mcp_sidecar.sessions.restore import Restore
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.upstream.answer import Answer, KeptAnswer, decoded_body, is_event_stream, kept
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.verdicts.classify import PEEK_BYTES, InitializeVerdict, judge_initialize_status
from mcp_sidecar.verdicts.probes import StepVerdict
from mcp_sidecar.waiting.pauses import Pauses
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.cookies import affinity_cookies
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import retry_after_s
from mcp_sidecar.wire.jsonrpc import Message, is_initialize_result

REQUEST_ID = "mcp-sidecar-initialize"


@dataclass(frozen=True, slots=True)
class Loss:
    """How a request came to believe that its session is lost. Unless ``is_certain`` that is told once it is confirmed.

    ``is_expiry``: the server went on, and has let an idle session expire: nothing to tell anybody.
    """

    generation: int
    signature: str
    status: int
    is_certain: bool = True
    is_expiry: bool = False


@dataclass(frozen=True, slots=True)
class HealEnd:
    """How a heal ended: ``why`` is ``None`` if the session is whole. ``refusal`` is the 401 or 403 to pass on."""

    why: Unhealed | None
    refusal: KeptAnswer | None = None


HEALED = HealEnd(None)


@dataclass(frozen=True, slots=True)
class HealServices:
    """What every heal of this process works with. ``clock`` gives monotonic seconds."""

    upstream: Upstream
    table: SessionTable
    notifier: Notifier
    policy: Policy
    max_answer_bytes: int
    emit: Emit
    clock: Callable[[], float]
    streams: GetStreams


class HealAttempt:
    """One attempt to make the upstream know a session again."""

    def __init__(self, tools: HealServices, session: Session, loss: Loss, trigger: Trigger, started: float) -> None:
        """``started`` is when the loss was noticed, by the clock of ``tools``."""
        self._tools = tools
        self._session = session
        self._loss = loss
        self._own = OwnRequests(tools.upstream, session, trigger)
        self._retelling = Restore(self._own, tools.policy.signatures, tools.max_answer_bytes, tools.emit)
        self._started = started
        self._is_counted = False
        self._claimed_id: UpstreamSessionId | None = None
        self._is_whole = False

    async def run(self) -> HealEnd:
        """Do it. Raises ``UpstreamFault`` where the upstream breaks off."""
        try:
            if await self._is_settled_elsewhere():
                return HealEnd(Unhealed.NOT_RESTORED) if self._session.is_ended else HEALED
            if self._loss.is_certain:
                self._tell_loss()
            return await self._while_busy(self._initialize) or HEALED
        except BaseException:  # the upstream breaks off, or we are out of time: what was begun is not left behind
            await self._abandon()
            raise
        finally:
            await self._tools.table.give_turn_back(self._session)

    async def _is_settled_elsewhere(self) -> bool:
        """Whether another process has healed the session at this upstream, or ended it; one that is at it is waited for."""
        table, session, pauses = self._tools.table, self._session, Pauses()
        go_on_at = self._tools.clock() + LEASE_S
        while not (self._is_past() or await table.take_turn(session)) and self._tools.clock() < go_on_at:  # noqa: ASYNC110
            await asyncio.sleep(pauses.next_s())
        return self._is_past()

    def _is_past(self) -> bool:
        """Whether there is nothing to heal any more; any write of the session's record may have shown that."""
        return self._session.is_ended or self._session.generation > self._loss.generation

    def settle(self) -> None:
        """Whatever happened, the session is not left in the middle."""
        self._tools.streams.heal_ended(self._session)
        if self._session.state is State.HEALING:
            self._session.not_healed(is_counted=self._is_counted)
        if self._session.is_ended or not self._is_whole:
            self._tools.table.release_upstream_id(self._claimed_id, self._session)
        if self._session.is_ended:
            self._tools.table.release_upstream_id(self._session.upstream_id, self._session)

    def unavailable(self, fault: Fault) -> HealEnd:
        """What broke may break again at once: it is tried at the pace of a route, not whenever a connect succeeds."""
        self._end_unavailable(f"upstream {fault.value}")
        return HealEnd(Unhealed.GATEWAY if fault.may_have_arrived else Unhealed.UNREACHABLE)

    # -- the steps ----------------------------------------------------------------------------------------------------

    async def _while_busy(self, step: Callable[[], Awaitable[HealEnd | float | None]]) -> HealEnd | None:
        """Take a step again as long as the server says that it has no time, within the hold.

        The pause is the server's own, spread, so that those whom a rate limit has sent away do not come back together.
        """
        pauses = Pauses()
        give_up_at = self._started + self._tools.policy.hold_timeout_s
        while isinstance(end := await step(), float):
            pause_s, left_s = pauses.next_s(end or None), give_up_at - self._tools.clock()
            await asyncio.sleep(max(0.0, min(pause_s, left_s)))
            if pause_s > left_s:
                self._end_unavailable("the server has no time")
                await self._abandon()
                return HealEnd(Unhealed.GATEWAY)
        return end

    async def _initialize(self) -> HealEnd | float:
        try:
            answer = await self._own.post(self._session.handshake.initialize_request(REQUEST_ID), None)
        except UpstreamFault as fault:
            if fault.fault.may_have_arrived:
                self._count()
            raise
        async with answer:
            if not 200 <= answer.status < 300:
                return await self._not_accepted(answer)
            self._count()
            upstream_id = self._claimed_id = _new_session_id(answer)
            self._tools.table.claim_upstream_id(upstream_id, self._session)
            self._own.cookies = affinity_cookies(answer.headers, self._tools.upstream.affinity_cookies)
            message = await read_rpc_answer(answer, REQUEST_ID, self._tools.max_answer_bytes)
            if message is None and is_event_stream(answer):
                raise UpstreamFault(Fault.BROKEN)
        self._tell_loss()
        if message is None or not is_initialize_result(message):
            return await self._give_up(HealOutcome.FAILED, "initialize was rejected")
        self._own.version = str((message.result or {})["protocolVersion"])
        return await self._accept(message, upstream_id)

    async def _not_accepted(self, answer: Answer) -> HealEnd | float:
        """How the heal ends, or the pause that the server wants, 0 where it names none."""
        body = await decoded_body(answer, PEEK_BYTES)
        told_s = retry_after_s(answer.header("Retry-After"))
        match judge_initialize_status(answer.status, body, retry_after=told_s is not None):
            case InitializeVerdict.BUSY:
                return told_s or 0.0
            case InitializeVerdict.AUTH:
                # Not counted: tokens are not verified here, and a bad one must not spend the owner's budget.
                self._end(HealOutcome.FAILED, "the credentials were refused")
                return HealEnd(Unhealed.UNAUTHORIZED, refusal=await kept(answer, PEEK_BYTES))
            case InitializeVerdict.GONE | InitializeVerdict.UNAVAILABLE as verdict:
                if self._loss.is_certain:
                    self._count()
                self._end_unavailable("no route to the server")
                return HealEnd(Unhealed.NO_ROUTE if verdict is InitializeVerdict.GONE else Unhealed.GATEWAY)
            case _:
                self._count()
                self._tell_loss()
                return await self._give_up(HealOutcome.FAILED, "the handshake was rejected")

    def _count(self) -> None:
        """Charge the session's budget for an ``initialize`` that a server may have taken, once per heal."""
        if not self._is_counted:
            self._is_counted = True
            self._session.note_heal(self._tools.clock())

    async def _accept(self, message: Message, upstream_id: UpstreamSessionId | None) -> HealEnd:
        result = message.result or {}
        found = differences(self._session.handshake, result)
        unacceptable = found & INCOMPATIBLE[self._tools.policy.on_server_change]
        if unacceptable:
            reason = ", ".join(sorted(difference.value for difference in unacceptable))
            end = await self._give_up(HealOutcome.INCOMPATIBLE, reason)
            self._tools.table.end(self._session, SessionEnd.INCOMPATIBLE)
            return end
        failed = await self._tell_everything(upstream_id, result.get("capabilities") or {})
        if self._session.generation > self._loss.generation:  # another process was quicker, which was read meanwhile
            await self._abandon()
            return HEALED
        if failed is not None:
            return failed
        if self._session.is_ended:  # the client's DELETE came meanwhile and wins
            return await self._give_up(HealOutcome.REFUSED, "the session was ended")
        is_new_here = self._session.is_new_here
        self._repoint(upstream_id, tools_still_hold=is_same_server(found))
        if not await self._is_committed(upstream_id):
            return await self._give_up(HealOutcome.REFUSED, "the session was ended")
        self._is_whole = True
        if is_new_here:
            seconds = self._tools.clock() - self._started
            self._tools.emit(SessionAdopted(self._session.label, self._tools.table.adopted_from, seconds))
        else:
            self._end(HealOutcome.HEALED, "healed")
        self._tell_client(is_new_here=is_new_here)
        return HEALED

    async def _is_committed(self, upstream_id: UpstreamSessionId | None) -> bool:
        """Have the store know of it; false where another process has ended the session meanwhile.

        Of two processes that heal it at one upstream the quicker one's upstream session stands. Ours is ended then, unless
        somebody was given its id since.
        """
        table = self._tools.table
        saving = await table.save(self._session)
        is_surplus = saving in (Saving.OVERTAKEN, Saving.ENDED)
        if is_surplus and upstream_id is not None and not table.is_claimed(upstream_id):
            self._claimed_id = None
            await self._own.discard(upstream_id)
        return saving is not Saving.ENDED

    # -- what the new session is told ---------------------------------------------------------------------------------

    async def _tell_everything(
        self, upstream_id: UpstreamSessionId | None, capabilities: Mapping[str, Any]
    ) -> HealEnd | None:
        """``None`` if the new session knows all that the old one knew; else how the heal ends, and it is ended, too."""
        if self._is_ours():
            await self._tools.streams.open_ahead(self._session, upstream_id)
        end: HealEnd | None = None
        if self._is_ours():
            end = await self._while_busy(lambda: in_time(self._tell_initialized(upstream_id)))
        if end is None and upstream_id is not None:
            end = self._after(await self._retelling.run(upstream_id, capabilities, self._is_ours))
        if end is None and not self._is_ours():
            end = self._after(StepVerdict.LOST)
        if end is not None:
            await self._abandon()
        return end

    def _is_ours(self) -> bool:
        """Whether the upstream has not minted the new id for another session meanwhile: that one must be left alone."""
        return self._tools.table.has_claimed(self._claimed_id, self._session)

    async def _tell_initialized(self, upstream_id: UpstreamSessionId | None) -> HealEnd | float | None:
        """Twice where the new session is not known: it may have gone to another one of several servers."""
        for _ in range(2):
            async with await self._own.post(INITIALIZED, upstream_id, in_session=True) as answer:
                if await self._retelling.judge("notifications/initialized", answer) is StepVerdict.LOST:
                    continue
                return None if 200 <= answer.status < 300 else await self._not_accepted(answer)
        return self._after(StepVerdict.LOST)

    def _after(self, verdict: StepVerdict) -> HealEnd | None:
        """A server that was restarted once more is nothing to give up for: the next heal begins anew."""
        match verdict:
            case StepVerdict.LOST:
                self._end_unavailable("the new session was lost at once")
                return HealEnd(Unhealed.GATEWAY)
            case StepVerdict.NO_ROUTE | StepVerdict.GATEWAY:
                self._end_unavailable("no route to the server")
                return HealEnd(Unhealed.NO_ROUTE if verdict is StepVerdict.NO_ROUTE else Unhealed.GATEWAY)
            case _:
                return None

    # -- the end ------------------------------------------------------------------------------------------------------

    def _repoint(self, upstream_id: UpstreamSessionId | None, *, tools_still_hold: bool) -> None:
        store, former = self._tools.table, self._session.upstream_id
        if former != upstream_id:
            store.release_upstream_id(former, self._session)
        self._session.repoint(upstream_id, tools_still_hold=tools_still_hold, cookies=self._own.cookies)
        if not store.has_claimed(upstream_id, self._session):  # minted for another one since then
            store.displace(self._session)

    async def _give_up(self, outcome: HealOutcome, reason: str) -> HealEnd:
        self._end(outcome, reason)
        await self._abandon()
        return HealEnd(Unhealed.NOT_RESTORED)

    async def _abandon(self) -> None:
        """The new upstream session is not used, and not left behind.

        Servers that count their sessions may give it the very id that the client's stands on: should it outlive this,
        it must still not be taken for whole.
        """
        is_ours = self._is_ours()
        new_id, self._claimed_id = self._claimed_id, None
        if new_id is None or self._is_whole or not is_ours:
            return
        if new_id == self._session.upstream_id and not self._session.is_ended:
            self._tools.table.displace(self._session)
        await self._own.discard(new_id)
        self._tools.table.release_upstream_id(new_id, self._session)

    # -- what is told -------------------------------------------------------------------------------------------------

    def _tell_client(self, *, is_new_here: bool) -> None:
        """Whatever died with the old upstream session, and whatever may have been missed.

        Where a session that has called no tool goes on at another upstream instance, no state of it is new.
        """
        session = self._session
        hints = session.hints_after_heal(missed_nothing=self._loss.is_expiry)
        if self._loss.is_expiry or (is_new_here and not session.record.is_used):
            session.note_told_restart()
        else:
            hints += restarted(self._tools.policy.announce, session.client_state.log_level)
        self._tools.notifier.tell(session, hints, may_wait=True)

    def _tell_loss(self) -> None:
        """Once per loss, however many heals it takes; what was never here is not lost."""
        if self._session.is_new_here:
            return
        tell_loss(self._session, self._loss, self._tools.emit)

    def _end_unavailable(self, reason: str) -> None:
        """A loss that nobody could confirm is not told: most likely the upstream is just away."""
        if self._session.heals.told_lost == self._loss.generation:
            self._end(HealOutcome.UNAVAILABLE, reason)

    def _end(self, outcome: HealOutcome, reason: str) -> None:
        seconds = self._tools.clock() - self._started
        session = self._session
        self._tools.emit(HealEnded(session.label, outcome, self._loss.signature, reason, session.generation, seconds))


def tell_loss(session: Session, loss: Loss, emit: Emit) -> None:
    """Say that a session is lost, unless that was said of this generation before."""
    if session.note_told_lost(loss.generation):
        emit(SessionLost(session.label, loss.signature, loss.status, loss.generation))


def _new_session_id(answer: Answer) -> UpstreamSessionId | None:
    session_id = answer.header(headers.SESSION_ID)
    if session_id is None or not headers.is_valid_session_id(session_id):
        return None
    return UpstreamSessionId(session_id)
