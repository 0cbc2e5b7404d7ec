"""The trip of one client message through the sidecar, as typed steps.

The law of this file: it decides and does nothing. The driver carries out one step, reports what came of it, and gets
the next one. A step is a frozen value; its successors are what the reporting method returns. Correctness comes in this
order: never run a tool twice; never bind one user's session to another; never hide a real 401; never let a client
hang; then heal.

::

    begin ──▶ Send ──▶ judged ──▶ Pass                       the upstream's answer, untouched
                │         ├─────▶ Heal ──▶ healed ──▶ Send   once per exchange
                │         ├─────▶ Hold ──▶ back ──▶ Send     until the hold ends
                │         └─────▶ Give                       an answer of our own
                └─────▶ failed ─▶ Send | Hold | Give
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus

from mcp_sidecar.healing import own_answers
from mcp_sidecar.healing.classify import Judgement, SessionKnowledge, Verdict
from mcp_sidecar.healing.facts import ObservedAction, ReplayCause
from mcp_sidecar.healing.faults import Fault
from mcp_sidecar.healing.own_answers import OwnAnswer, Reason
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.replay import AfterLoss, after_loss
from mcp_sidecar.healing.signatures import Signature
from mcp_sidecar.healing.streams import AfterEnd
from mcp_sidecar.wire.messages import Kind, Message

MAX_RESENDS_IN_DOUBT = 2
"""How often a harmless request goes again after resets: a request that crashes its server must not do so for ever."""


class Awaited(Enum):
    """What a hold waits for."""

    CONNECT = "connect"  # until the upstream accepts connections
    ROUTE = "route"  # until an ingress has its route back


@dataclass(frozen=True, slots=True)
class Send:
    """Send the message. ``cause`` says why it is not the first time; ``renumber`` gives it new ids (R47)."""

    cause: ReplayCause | None = None
    renumber: bool = False


@dataclass(frozen=True, slots=True)
class Heal:
    """Have the session re-initialized, or wait for whoever is at it. ``confirm``: ask with a ping first."""

    signature: str
    confirm: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the message until the upstream is back."""

    awaited: Awaited


@dataclass(frozen=True, slots=True)
class Pass:
    """Pass the upstream's answer on as it is."""


@dataclass(frozen=True, slots=True)
class Give:
    """Give an answer of our own. ``rewrites`` is the upstream's status that the 404 replaces."""

    answer: OwnAnswer
    reason: Reason | None = None
    drops: bool = False
    rewrites: int | None = None


Step = Send | Heal | Hold | Pass | Give


class Unhealed(Enum):
    """Why a heal did not end in a new upstream session."""

    ALIVE = "alive"  # the session lives: the answer was about this message only
    UNPROVEN = "unproven"  # neither alive nor lost
    UNREACHABLE = "unreachable"  # no connection
    NO_ROUTE = "no route"  # an ingress answers instead of the server
    UNAUTHORIZED = "unauthorized"  # the credentials were refused: that refusal is passed on
    NOT_RESTORED = "not restored"  # refused, incompatible or rejected: the client has to start over


@dataclass(slots=True)
class Exchange:
    """One POST of a client of an older revision.

    ``safe_in_doubt`` is the verdict of the replay matrix; ``whole`` says that the body is held, so that it can be sent
    again; ``opaque`` that it is encoded and was not read; ``endpoint_worked`` that the endpoint has answered 2xx in
    this process.
    """

    message: Message
    session: SessionKnowledge
    mode: Mode
    safe_in_doubt: bool
    whole: bool = True
    opaque: bool = False
    trust_503: bool = False
    endpoint_worked: bool = False
    displaced: bool = False
    healed_once: bool = False
    resends_in_doubt: int = 0
    in_doubt: bool = False
    last_status: int | None = None
    may_replay_after_heal: bool = True
    observed: list[ObservedAction] = field(default_factory=list)

    # -- what the driver reports --------------------------------------------------------------------------------------

    def begin(self) -> Step:
        """Start the trip."""
        if self.displaced and self.mode is Mode.HEAL:
            return Heal("id-minted-anew", confirm=False)
        return Send()

    def judged(self, judgement: Judgement, status: int) -> Step:
        """The upstream answered, and the classifier has said what the answer means for the session."""
        self.last_status = status
        if judgement.verdict is Verdict.SESSION_LOST:
            return self._lost(judgement.signature, judgement.proves_not_run)
        if judgement.verdict is Verdict.AMBIGUOUS:
            return self._perhaps_lost(judgement)
        if judgement.verdict is Verdict.UNAVAILABLE and not judgement.jsonrpc_body:
            return self._gateway_page(status)
        if judgement.bare_404 and self.session is SessionKnowledge.NONE and self.endpoint_worked:
            return self._no_route()
        return Pass()

    def failed(self, fault: Fault) -> Step:
        """There is no answer."""
        if self.mode is Mode.OBSERVE:
            return self._observe_fault(fault)
        if not fault.may_have_arrived:
            return Hold(Awaited.CONNECT) if self.mode is Mode.HEAL else self._unavailable()
        if fault is Fault.STALLED or not self._may_resend_in_doubt():
            return self._outcome_unknown()
        self.resends_in_doubt += 1
        return self._resend_in_doubt()

    def healed(self) -> Step:
        """The session stands on a new upstream session."""
        self.healed_once = True
        if after_loss(self.message) is not AfterLoss.REPLAY:
            return Give(own_answers.ACCEPTED, drops=after_loss(self.message) is AfterLoss.DROP)
        if not self.whole:
            return self._error(Reason.TOO_LARGE_TO_REPLAY)
        if not self.may_replay_after_heal:
            return self._outcome_unknown()
        return Send(ReplayCause.SESSION_LOST, renumber=self.in_doubt)

    def unhealed(self, why: Unhealed) -> Step:
        """The heal ended otherwise."""
        match why:
            case Unhealed.ALIVE | Unhealed.UNPROVEN | Unhealed.UNAUTHORIZED:
                return Pass()
            case Unhealed.UNREACHABLE:
                return Hold(Awaited.CONNECT)
            case Unhealed.NO_ROUTE:
                return Hold(Awaited.ROUTE)
            case Unhealed.NOT_RESTORED:
                return self._session_not_found()

    def back(self, awaited: Awaited) -> Step:
        """The hold ended: the upstream may be back."""
        if self.displaced and not self.healed_once:
            return Heal("id-minted-anew", confirm=False)
        if self.in_doubt:
            return self._resend_in_doubt()
        return Send(ReplayCause.NOT_SENT)

    def expired(self) -> Step:
        """The hold lasted as long as it may, or there was no room for it, or the sidecar drains."""
        return self._outcome_unknown() if self.in_doubt else self._unavailable()

    def stream_broke(self, after: AfterEnd) -> Step | None:
        """The answer's stream ended before its response; ``None`` where there is nothing left to do."""
        if after is AfterEnd.RESEND:
            self.resends_in_doubt += 1
            return self._resend_in_doubt()
        return self._outcome_unknown() if after is AfterEnd.TELL else None

    @property
    def may_resend_stream(self) -> bool:
        """Whether a cut stream may be begun anew."""
        return self._may_resend_in_doubt()

    def cancelled(self) -> Step:
        """The client cancelled the held request."""
        return self._error(Reason.CANCELLED)

    # -- how it decides -----------------------------------------------------------------------------------------------

    def _lost(self, signature: Signature | None, proves_not_run: bool) -> Step:
        if self.mode is Mode.OBSERVE:
            return self._observe(
                ObservedAction.HEAL if self.session is SessionKnowledge.BOUND else ObservedAction.REWRITE
            )
        if self.mode is Mode.REWRITE or self.session is not SessionKnowledge.BOUND:
            return self._session_not_found()
        if after_loss(self.message) is AfterLoss.DROP:
            return Give(own_answers.ACCEPTED, drops=True)
        if self.healed_once:
            return self._session_not_found()
        self.may_replay_after_heal = proves_not_run or self.safe_in_doubt
        return Heal(signature.name if signature is not None else "unnamed", confirm=False)

    def _perhaps_lost(self, judgement: Judgement) -> Step:
        if self.mode is not Mode.HEAL or self.healed_once:
            return Pass()
        # A ping that meets the same bare 404 shows that it comes before anything is dispatched.
        proves_not_run = judgement.proves_not_run or judgement.bare_404
        self.may_replay_after_heal = proves_not_run or self.safe_in_doubt
        return Heal(judgement.signature.name if judgement.signature is not None else "ambiguous", confirm=True)

    def _gateway_page(self, status: int) -> Step:
        nothing_ran = self.trust_503 and status == HTTPStatus.SERVICE_UNAVAILABLE
        if self.mode is Mode.OBSERVE:
            return self._observe(ObservedAction.REPLAY if nothing_ran or self.safe_in_doubt else ObservedAction.REWRITE)
        if nothing_ran and self.whole:
            return Hold(Awaited.ROUTE) if self.mode is Mode.HEAL else self._unavailable()
        if self.mode is Mode.HEAL and self.safe_in_doubt and self.whole:
            self.in_doubt = True
            return Hold(Awaited.ROUTE)
        return self._outcome_unknown()

    def _no_route(self) -> Step:
        if self.mode is Mode.OBSERVE:
            return self._observe(ObservedAction.REPLAY)
        if self.mode is Mode.REWRITE or not self.whole:
            return self._unavailable()
        return Hold(Awaited.ROUTE)

    def _may_resend_in_doubt(self) -> bool:
        return (
            self.mode is Mode.HEAL
            and self.safe_in_doubt
            and self.whole
            and self.resends_in_doubt < MAX_RESENDS_IN_DOUBT
        )

    def _resend_in_doubt(self) -> Step:
        self.in_doubt = True
        return Send(ReplayCause.AMBIGUOUS_SAFE, renumber=True)

    # -- what it answers ----------------------------------------------------------------------------------------------

    @property
    def _is_initialize(self) -> bool:
        return self.message.method == "initialize" and self.message.kind is Kind.REQUEST

    def _error(self, reason: Reason) -> Give:
        if self.opaque:
            return Give(own_answers.opaque(reason), reason=reason)
        drops = self.message.kind is not Kind.OTHER and not self.message.requests
        return Give(own_answers.in_session(self.message, reason), reason=reason, drops=drops)

    def _unavailable(self) -> Give:
        if self._is_initialize:
            return Give(own_answers.unavailable(self.message.id), reason=Reason.UPSTREAM_UNAVAILABLE)
        return self._error(Reason.UPSTREAM_UNAVAILABLE)

    def _outcome_unknown(self) -> Give:
        if self._is_initialize:
            return self._unavailable()
        return self._error(Reason.OUTCOME_UNKNOWN)

    def _session_not_found(self) -> Give:
        return Give(own_answers.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST, rewrites=self.last_status)

    def _observe(self, action: ObservedAction) -> Pass:
        self.observed.append(action)
        return Pass()

    def _observe_fault(self, fault: Fault) -> Give:
        would_replay = not fault.may_have_arrived or self.safe_in_doubt
        self.observed.append(ObservedAction.REPLAY if would_replay else ObservedAction.REWRITE)
        return Give(own_answers.BAD_GATEWAY)
