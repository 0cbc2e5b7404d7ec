"""One heal, step by step: confirm with a ping, initialize, compare, ``initialized``.

What is sent carries the credentials of the request that triggered the heal, and nothing of them is kept. A new session
that is not told everything, or not wanted after all, is ended upstream and never taken for whole.
"""

from __future__ import annotations

import contextlib
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
from mcp_sidecar.proxy.reading import KeptAnswer, decoded_body, is_event_stream, judged_head, kept, read_rpc_answer
from mcp_sidecar.proxy.store import SessionStore
from mcp_sidecar.proxy.upstream import Answer, Upstream, UpstreamFault
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.messages import Message, is_initialize_result
from mcp_sidecar.wire.revisions import PROTOCOL_VERSION_HEADER, sends_version_header

REQUEST_ID = "mcp-sidecar-initialize"
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


@dataclass(frozen=True, slots=True)
class Tools:
    """What every heal of this process works with. ``clock`` gives monotonic seconds."""

    upstream: Upstream
    store: SessionStore
    policy: Policy
    max_answer_bytes: int
    emit: Emit
    clock: Callable[[], float]


class Restore:
    """One attempt to make the upstream know a session again."""

    def __init__(self, tools: Tools, session: Session, loss: Loss, trigger: Trigger, started: float) -> None:
        """``started`` is when the loss was noticed, by the clock of ``tools``."""
        self._tools = tools
        self._session = session
        self._loss = loss
        self._trigger = trigger
        self._started = started
        self._is_counted = False
        self._claimed_id: UpstreamSessionId | None = None

    async def run(self) -> HealEnd:
        """Do it. Raises ``UpstreamFault`` where the upstream breaks off."""
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
        if self._session.is_ended or self._session.upstream_id != self._claimed_id:
            self._tools.store.release_upstream_id(self._claimed_id, self._session)

    def unavailable(self, fault: Fault) -> HealEnd:
        """What broke may break again at once: it is tried at the pace of a route, not whenever a connect succeeds."""
        self._end_unavailable(f"upstream {fault.value}")
        return HealEnd(Unhealed.GATEWAY if fault.may_have_arrived else Unhealed.UNREACHABLE)

    # -- the steps ----------------------------------------------------------------------------------------------------

    async def _confirm(self, original: JudgedAnswer) -> HealEnd | None:
        """Ask with a ping on the same session; ``None`` means go on with ``initialize``."""
        async with await self._post(PING_BODY, self._session.upstream_id) as answer:
            body = b"" if is_event_stream(answer) else await decoded_body(answer, PEEK_BYTES)
            ping = JudgedAnswer(judged_head(answer), body, complete=answer.whole)
        match judge_probe(original, ping, self._tools.policy.signatures):
            case ProbeVerdict.LOST:
                return None
            case ProbeVerdict.ALIVE:
                self._session.fire(Event.ALIVE_AFTER_ALL)
                return HealEnd(Unhealed.ALIVE)
            case ProbeVerdict.UNAVAILABLE:
                return HealEnd(Unhealed.GATEWAY)
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
            upstream_id = self._claimed_id = _new_session_id(answer)
            self._tools.store.claim_upstream_id(upstream_id, self._session)
            message = await read_rpc_answer(answer, REQUEST_ID, self._tools.max_answer_bytes)
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
            case InitializeVerdict.GONE | InitializeVerdict.UNAVAILABLE as verdict:
                if self._loss.ambiguous is None:
                    self._count()
                self._end_unavailable("no route to the server")
                return HealEnd(Unhealed.NO_ROUTE if verdict is InitializeVerdict.GONE else Unhealed.GATEWAY)
            case _:
                self._count()
                self._tell_loss()
                return await self._give_up(None, HealOutcome.FAILED, "the handshake was rejected")

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
            end = await self._give_up(upstream_id, HealOutcome.INCOMPATIBLE, reason)
            self._tools.store.end(self._session, SessionEnd.INCOMPATIBLE)
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
        store, former = self._tools.store, self._session.upstream_id
        if former != upstream_id:
            store.release_upstream_id(former, self._session)
        self._session.repoint(upstream_id, tools_still_hold=tools_still_hold)
        if not store.has_claimed(upstream_id, self._session):  # minted for another one since then
            store.displace(self._session)

    async def _give_up(self, upstream_id: UpstreamSessionId | None, outcome: HealOutcome, reason: str) -> HealEnd:
        self._end(outcome, reason)
        await self._discard(upstream_id)
        return HealEnd(Unhealed.NOT_RESTORED)

    async def _discard(self, upstream_id: UpstreamSessionId | None) -> None:
        """Leave no orphan behind: a new session that is not used is ended."""
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
        return await self._tools.upstream.send(method, self._trigger.target, pairs, body)

    # -- what is told -------------------------------------------------------------------------------------------------

    def _tell_loss(self) -> None:
        """Once per loss, however many heals it takes."""
        tell_loss(self._session, self._loss, self._tools.emit)

    def _end_unavailable(self, reason: str) -> None:
        """A loss that nobody could confirm is not told: most likely the upstream is just away."""
        if self._session.told_lost == self._loss.generation:
            self._end(HealOutcome.UNAVAILABLE, reason)

    def _end(self, outcome: HealOutcome, reason: str) -> None:
        seconds = self._tools.clock() - self._started
        session = self._session
        self._tools.emit(HealEnded(session.label, outcome, self._loss.signature, reason, session.generation, seconds))


def tell_loss(session: Session, loss: Loss, emit: Emit) -> None:
    """Say that a session is lost, unless that was said of this generation before."""
    if session.told_lost < loss.generation:
        session.told_lost = loss.generation
        emit(SessionLost(session.label, loss.signature, loss.status, loss.generation))


def _is_about_the_message(name: str) -> bool:
    return name in _NOT_FOR_OWN_REQUESTS or name.startswith(_MIRRORED)


def _new_session_id(answer: Answer) -> UpstreamSessionId | None:
    session_id = answer.header(headers.SESSION_ID)
    if session_id is None or not headers.is_valid_session_id(session_id):
        return None
    return UpstreamSessionId(session_id)
