"""One re-initialize per lost session, however many requests wait for it.

A heal belongs to the session, not to the request that noticed the loss: it runs in a task of its own, to its end, even
if that client leaves (`initialize` must not be cancelled). It uses the credentials of the request that triggered it and
keeps none. ``restore`` is the order in which a session is told again; a new session that is not told everything is
ended upstream and never taken for whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mcp_sidecar.healing.classify import (
    PEEK_BYTES,
    InitializeVerdict,
    ProbeVerdict,
    judge_initialize_status,
    judge_probe,
)
from mcp_sidecar.healing.classify import Answer as JudgedAnswer
from mcp_sidecar.healing.exchange import Unhealed
from mcp_sidecar.healing.facts import Emit, HealEnded, HealOutcome, SessionEnd, SessionLost
from mcp_sidecar.healing.faults import Fault
from mcp_sidecar.healing.policy import Policy
from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.recorded import INCOMPATIBLE, INITIALIZED, differences, is_same_server
from mcp_sidecar.healing.session import Event, Session, State, UpstreamSessionId
from mcp_sidecar.proxy.holding import Held, Holding, Waited
from mcp_sidecar.proxy.reading import KeptAnswer, decoded_body, is_event_stream, judged_head, kept, read_rpc_answer
from mcp_sidecar.proxy.store import SessionStore
from mcp_sidecar.proxy.upstream import Answer, Upstream, UpstreamFault
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.messages import Message, is_initialize_result
from mcp_sidecar.wire.revisions import PROTOCOL_VERSION_HEADER, sends_version_header

FLIGHT_TIMEOUT_S = 60.0
"""A heal that takes longer has met a server that accepts and never answers."""

JITTER_S = 0.050
"""How long a heal that had to queue waits at most when its turn comes, so that thousands do not come in step."""

BUDGET_PERIOD_S = 60.0

QUICK_TRIES, SLOW_PACE_S = 3, 0.250
"""After so many heals that failed in a row a session waits before each further one: its server cannot open sessions just
now, and the budget should last until it can."""

REQUEST_ID = "mcp-sidecar-initialize"
PING_ID = "mcp-sidecar-ping"
PING_BODY = b'{"jsonrpc":"2.0","id":"mcp-sidecar-ping","method":"ping"}'

_NOT_FOR_OWN_REQUESTS = frozenset(
    {"mcp-session-id", "mcp-protocol-version", "last-event-id", "accept", "accept-encoding", "content-type"}
    | {"content-encoding", "content-digest", "digest", "idempotency-key"}
    | {"if-match", "if-none-match", "if-modified-since", "range"}
)
_MIRRORED = ("mcp-method", "mcp-name", "mcp-param-")
"""Headers that repeat what the client's own message says (SEP-2243); on another message they would be a mismatch."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """The client request on whose behalf a heal runs; its credentials are used for it and for nothing else."""

    target: str
    headers: list[Pair] = field(repr=False)
    credential: Principal = field(repr=False)

    def own_headers(self) -> list[Pair]:
        """Headers for a request of ours: the client's own and its credentials, without what is about its message."""
        return [
            *(pair for pair in self.headers if not _is_about_the_message(pair[0].lower())),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
            ("Accept-Encoding", "identity"),
        ]


@dataclass(frozen=True, slots=True)
class Loss:
    """How a request came to believe that its session is lost. ``ambiguous`` is the answer to confirm with a ping."""

    generation: int
    signature: str
    status: int
    ambiguous: JudgedAnswer | None = None


@dataclass(frozen=True, slots=True)
class HealEnd:
    """How a heal ended: ``why`` is ``None`` if the session is whole. ``refusal`` is the 401 or 403 to pass on."""

    why: Unhealed | None
    refusal: KeptAnswer | None = None


HEALED = HealEnd(None)


@dataclass(eq=False, slots=True)
class Flight:
    """A heal under way."""

    task: asyncio.Task[HealEnd]
    credential: Principal
    confirms: bool


class Healer:
    """Heals sessions, each at most once per loss, and not too many at a time."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        store: SessionStore,
        holding: Holding,
        policy: Policy,
        max_answer_bytes: int,
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives monotonic seconds."""
        self._upstream = upstream
        self._store = store
        self._holding = holding
        self._policy = policy
        self._max_answer_bytes = max_answer_bytes
        self._emit = emit
        self._clock = clock
        self._slots = asyncio.Semaphore(policy.max_concurrent_heals)
        self._flights: dict[Session, Flight] = {}
        self._random = random.Random()

    async def heal(self, session: Session, loss: Loss, trigger: Trigger, held: Held) -> tuple[Waited, HealEnd]:
        """Have the session healed, or wait for whoever is at it.

        Waits no longer than ``held`` may; the heal itself goes on.
        """
        while True:
            if session.is_ended:
                self._refuse(session, loss, "the session was ended")
                return Waited.BACK, HealEnd(Unhealed.NOT_RESTORED)
            if session.generation > loss.generation:
                return Waited.BACK, HEALED
            flight = self._flights.get(session)
            if flight is None:
                if self._is_spent(session):
                    self._refuse(session, loss, "heals of this session in a minute")
                    return Waited.BACK, HealEnd(Unhealed.NOT_RESTORED)
                flight = self._start(session, loss, trigger)
            waited, end = await self._holding.for_result(held, flight.task)
            if end is None or self._counts_for(end, flight, loss, trigger):
                return waited, end or HEALED

    def refuse_foreign(self, session_label: str, signature: str) -> None:
        """Another principal's request met the loss: it never heals."""
        self._emit(HealEnded(session_label, HealOutcome.REFUSED, signature, "another principal", 0, 0.0))

    async def stop(self) -> None:
        """Abandon what is under way."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- single flight and budgets ------------------------------------------------------------------------------------

    def _start(self, session: Session, loss: Loss, trigger: Trigger) -> Flight:
        session.fire(Event.LOSS_SEEN)
        task = asyncio.create_task(self._fly(session, loss, trigger))
        flight = Flight(task, trigger.credential, confirms=loss.ambiguous is not None)
        self._flights[session] = flight
        task.add_done_callback(lambda _: self._flights.pop(session, None))
        return flight

    @staticmethod
    def _counts_for(end: HealEnd, flight: Flight, loss: Loss, trigger: Trigger) -> bool:
        """Whether the end of somebody's heal is the end for this request, too.

        Refused credentials are only those of the request that flew; a ping that found the session alive does not
        outweigh an answer that needed no confirmation.
        """
        if end.why is Unhealed.UNAUTHORIZED:
            return flight.credential == trigger.credential
        if end.why in (Unhealed.ALIVE, Unhealed.UNPROVEN):
            return loss.ambiguous is not None
        return True

    def _is_spent(self, session: Session) -> bool:
        return session.heals_within(BUDGET_PERIOD_S, self._clock()) >= self._policy.max_heals_per_minute

    def _refuse(self, session: Session, loss: Loss, reason: str) -> None:
        self._emit(HealEnded(session.label, HealOutcome.REFUSED, loss.signature, reason, session.generation, 0.0))

    async def _fly(self, session: Session, loss: Loss, trigger: Trigger) -> HealEnd:
        started = self._clock()
        if session.failed_heals >= QUICK_TRIES:
            await asyncio.sleep(SLOW_PACE_S)
        queued = self._slots.locked()
        async with self._slots:
            if queued:
                await asyncio.sleep(self._random.uniform(0, JITTER_S))
            flight = _Restore(self, session, loss, trigger, started)
            try:
                async with asyncio.timeout(FLIGHT_TIMEOUT_S):
                    return await flight.run()
            except UpstreamFault as fault:
                return flight.unavailable(fault.fault)
            except TimeoutError:
                return flight.unavailable(Fault.STALLED)
            finally:
                flight.settle()


class _Restore:
    """One heal, step by step: confirm, initialize, compare, initialized."""

    def __init__(self, healer: Healer, session: Session, loss: Loss, trigger: Trigger, started: float) -> None:
        self._healer = healer
        self._upstream = healer._upstream
        self._session = session
        self._loss = loss
        self._trigger = trigger
        self._started = started
        self._is_counted = False

    async def run(self) -> HealEnd:
        if self._loss.ambiguous is not None:
            end = await self._confirm(self._loss.ambiguous)
            if end is not None:
                return end
        else:
            self._tell_loss()
        return await self._initialize()

    def settle(self) -> None:
        """Whatever happened, the session is not left in the middle."""
        if self._session.state is State.HEALING:
            self._session.failed_heals += self._is_counted
            self._session.fire(Event.NOT_HEALED)

    def unavailable(self, fault: Fault) -> HealEnd:
        """What broke may break again at once: it is tried at the pace of a route, not whenever a connect succeeds."""
        self._end_unavailable(f"upstream {fault.value}")
        return HealEnd(Unhealed.NO_ROUTE if fault.may_have_arrived else Unhealed.UNREACHABLE)

    # -- the steps ----------------------------------------------------------------------------------------------------

    async def _confirm(self, original: JudgedAnswer) -> HealEnd | None:
        """Ask with a ping on the same session (R12); ``None`` means go on with ``initialize``."""
        async with await self._post(PING_BODY, self._session.upstream_id) as answer:
            body = b"" if is_event_stream(answer) else await decoded_body(answer, PEEK_BYTES)
            ping = JudgedAnswer(judged_head(answer), body, complete=answer.whole)
        match judge_probe(original, ping, self._healer._policy.signatures):
            case ProbeVerdict.LOST:
                return None
            case ProbeVerdict.ALIVE:
                self._session.fire(Event.ALIVE_AFTER_ALL)
                return HealEnd(Unhealed.ALIVE)
            case ProbeVerdict.UNAVAILABLE:
                return HealEnd(Unhealed.NO_ROUTE)
            case _:
                self._session.fire(Event.ALIVE_AFTER_ALL)
                return HealEnd(Unhealed.UNPROVEN)

    async def _initialize(self) -> HealEnd:
        try:
            answer = await self._post(self._session.handshake.initialize_request(REQUEST_ID), None)
        except UpstreamFault as fault:
            if fault.fault.may_have_arrived:
                self._count()
            raise
        async with answer:
            if not 200 <= answer.status < 300:
                return await self._not_accepted(answer)
            self._count()
            message = await read_rpc_answer(answer, REQUEST_ID, self._healer._max_answer_bytes)
            upstream_id = _new_session_id(answer)
        self._tell_loss()
        if message is None or not is_initialize_result(message):
            return await self._give_up(upstream_id, HealOutcome.FAILED, "initialize was rejected")
        return await self._accept(message, upstream_id)

    async def _not_accepted(self, answer: Answer) -> HealEnd:
        body = await decoded_body(answer, PEEK_BYTES)
        match judge_initialize_status(answer.status, body):
            case InitializeVerdict.AUTH:
                # Not counted: tokens are not verified here, and a bad one must not spend the owner's budget.
                self._end(HealOutcome.FAILED, "the credentials were refused")
                return HealEnd(Unhealed.UNAUTHORIZED, refusal=await kept(answer, PEEK_BYTES))
            case InitializeVerdict.GONE | InitializeVerdict.UNAVAILABLE:
                if self._loss.ambiguous is None:
                    self._count()
                self._end_unavailable("no route to the server")
                return HealEnd(Unhealed.NO_ROUTE)
            case _:
                self._count()
                self._tell_loss()
                return await self._give_up(None, HealOutcome.FAILED, "the handshake was rejected")

    def _count(self) -> None:
        """Charge the session's budget for an ``initialize`` that a server may have taken, once per heal."""
        if not self._is_counted:
            self._is_counted = True
            self._session.note_heal(self._healer._clock())

    async def _accept(self, message: Message, upstream_id: UpstreamSessionId | None) -> HealEnd:
        result = message.result or {}
        found = differences(self._session.handshake, result)
        unacceptable = found & INCOMPATIBLE[self._healer._policy.on_server_change]
        if unacceptable:
            reason = ", ".join(sorted(difference.value for difference in unacceptable))
            end = await self._give_up(upstream_id, HealOutcome.INCOMPATIBLE, reason)
            self._healer._store.end(self._session, SessionEnd.INCOMPATIBLE)
            return end
        refused = await self._tell_initialized(upstream_id)
        if refused is not None:
            return refused
        if self._session.is_ended:  # the client's DELETE came meanwhile and wins
            return await self._give_up(upstream_id, HealOutcome.REFUSED, "the session was ended")
        self._repoint(upstream_id, tools_still_hold=is_same_server(found))
        self._end(HealOutcome.HEALED, "healed")
        return HEALED

    async def _tell_initialized(self, upstream_id: UpstreamSessionId | None) -> HealEnd | None:
        """Say ``initialized``; ``None`` if it was taken, else the end of the heal."""
        try:
            async with await self._post(INITIALIZED, upstream_id, in_session=True) as answer:
                if 200 <= answer.status < 300:
                    return None
                end = await self._not_accepted(answer)
        except UpstreamFault:
            await self._discard(upstream_id)
            raise
        await self._discard(upstream_id)
        return end

    def _repoint(self, upstream_id: UpstreamSessionId | None, *, tools_still_hold: bool) -> None:
        store = self._healer._store
        store.release_upstream_id(self._session.upstream_id, self._session)
        self._session.repoint(upstream_id, tools_still_hold=tools_still_hold)
        store.claim_upstream_id(self._session)

    async def _give_up(self, upstream_id: UpstreamSessionId | None, outcome: HealOutcome, reason: str) -> HealEnd:
        self._end(outcome, reason)
        await self._discard(upstream_id)
        return HealEnd(Unhealed.NOT_RESTORED)

    async def _discard(self, upstream_id: UpstreamSessionId | None) -> None:
        """Leave no orphan behind: a new session that is not used is ended (R52)."""
        if upstream_id is None:
            return
        with contextlib.suppress(UpstreamFault):
            answer = await self._send("DELETE", None, upstream_id, in_session=True)
            answer.close()

    # -- requests of our own ------------------------------------------------------------------------------------------

    async def _post(self, body: bytes, upstream_id: UpstreamSessionId | None, *, in_session: bool = False) -> Answer:
        return await self._send("POST", body, upstream_id, in_session=in_session or upstream_id is not None)

    async def _send(
        self, method: str, body: bytes | None, upstream_id: UpstreamSessionId | None, *, in_session: bool
    ) -> Answer:
        pairs = self._trigger.own_headers()
        version = self._session.handshake.protocol_version
        if upstream_id is not None:
            pairs.append((headers.SESSION_ID, upstream_id))
        if in_session and sends_version_header(version):
            pairs.append((PROTOCOL_VERSION_HEADER, version))
        return await self._upstream.send(method, self._trigger.target, pairs, body)

    # -- what is told -------------------------------------------------------------------------------------------------

    def _tell_loss(self) -> None:
        """Once per loss, however many heals it takes."""
        session, loss = self._session, self._loss
        if session.told_lost < loss.generation:
            session.told_lost = loss.generation
            self._healer._emit(SessionLost(session.label, loss.signature, loss.status, loss.generation))

    def _end_unavailable(self, reason: str) -> None:
        """A loss that nobody could confirm is not told: most likely the upstream is just away."""
        if self._session.told_lost == self._loss.generation:
            self._end(HealOutcome.UNAVAILABLE, reason)

    def _end(self, outcome: HealOutcome, reason: str) -> None:
        seconds = self._healer._clock() - self._started
        session = self._session
        self._healer._emit(HealEnded(session.label, outcome, self._loss.signature, reason, session.generation, seconds))


def _is_about_the_message(name: str) -> bool:
    return name in _NOT_FOR_OWN_REQUESTS or name.startswith(_MIRRORED)


def _new_session_id(answer: Answer) -> UpstreamSessionId | None:
    session_id = answer.header(headers.SESSION_ID)
    if session_id is None or not headers.is_valid_session_id(session_id):
        return None
    return UpstreamSessionId(session_id)
