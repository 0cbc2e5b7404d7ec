"""The trip of one client message through the sidecar, as typed steps.

The law of this file: it decides and does nothing. The driver carries out one step, reports what came of it, and gets
the next one. A step is a frozen value; its successors are what the reporting method returns. Correctness comes in this
order: never run a tool twice; never bind one user's session to another; never hide a real 401; never let a client
hang; then heal.

::

    begin ──▶ Send ──▶ judged ──▶ Pass                       the upstream's answer, untouched
                │         ├─────▶ Heal ──▶ healed ──▶ Send   twice per exchange
                │         ├─────▶ Hold ──▶ back ──▶ Send     until the hold ends
                │         └─────▶ Give                       an answer of our own
                ├─────▶ failed ─▶ Send | Hold | Give
                └─────▶ displaced ─▶ Heal | Give             its id is another session's now
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus

from mcp_sidecar.facts import ReplayCause
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.arrival import Arrival, Attempt, Settled
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.replay import AfterLoss, after_loss
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.healing.stream_watch import AfterEnd
from mcp_sidecar.verdicts.classify import Judgement, SessionKnowledge, Verdict
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.jsonrpc import Kind, Message
from mcp_sidecar.wire.reply import OwnAnswer

MAX_HEALS = 2
"""How often one message has its session healed: a server that loses each new session at once is given up."""

MAX_RESENDS_IN_DOUBT = 2
"""How often a harmless request goes again after resets: a request that crashes its server must not do so for ever."""


class Awaited(Enum):
    """What a hold waits for."""

    CONNECT = "connect"  # until the upstream accepts connections
    ROUTE = "route"  # until an ingress has its route back


@dataclass(frozen=True, slots=True)
class Send:
    """Send the message. ``cause`` says why it is not the first time; ``renumber`` gives it new ids (basic, "Requests")."""

    cause: ReplayCause | None = None
    renumber: bool = False


_FIRST_TIME = Send()


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
    NO_ROUTE = "no route"  # `initialize` met a 404, too: the route is missing, and nothing behind it was reached
    GATEWAY = "gateway"  # a page of an ingress, or a break, in the place of the server's answer: proves nothing
    UNAUTHORIZED = "unauthorized"  # the credentials were refused: that refusal is passed on
    NOT_RESTORED = "not restored"  # refused, incompatible or rejected: the client has to start over


@dataclass(slots=True)
class Tries:
    """What was tried for one message, counted; each count has a bound, or says what may be done once more."""

    heals: int = 0
    resends: int = 0  # after an attempt that may have run
    renewed: int = 0  # of the sends, those under new ids
    unsafe: int = 0  # of the sends, those that were not known to be harmless
    missing_routes: int = 0  # refusals that proved to be an ingress's


@dataclass(slots=True)
class Exchange:
    """One POST of a client of an older revision.

    ``is_safe`` gives the verdict of the replay matrix at this moment: a server that was exchanged takes its hints with
    it. ``opaque`` says that the body is encoded and was not read; ``endpoint_worked`` that the endpoint has answered 2xx
    in this process.
    """

    message: Message
    session: SessionKnowledge
    mode: Mode
    is_safe: Callable[[], bool]
    opaque: bool = False
    trust_503: bool = False
    endpoint_worked: bool = False
    _arrival: Arrival = field(default=Arrival.NOT_SENT, init=False)
    _tries: Tries = field(default_factory=Tries, init=False)
    _refusal: Judgement | None = field(default=None, init=False)  # the last answer, while a heal is to settle it
    _last_status: int | None = field(default=None, init=False)

    # -- what the driver reports --------------------------------------------------------------------------------------

    def begin(self) -> Step:
        """Start the trip."""
        return self._send()

    def displaced(self) -> Step:
        """Nothing was sent, since the session's upstream id now is another session's: under it, it would run there."""
        if self.mode is Mode.REWRITE or not self._may_heal:
            return self._session_not_found()
        if after_loss(self.message) is AfterLoss.DROP:
            return Give(replies.ACCEPTED, drops=True)
        return Heal("id-minted-anew", confirm=False)

    def judged(self, judgement: Judgement, status: int) -> Step:
        """The upstream answered, and the classifier has said what the answer means for the session."""
        self._last_status = status
        match judgement.verdict:
            case Verdict.SESSION_LOST:
                return self._lost(judgement)
            case Verdict.AMBIGUOUS:
                return self._perhaps_lost(judgement)
            case Verdict.UNAVAILABLE if not judgement.jsonrpc_body:
                return self._gateway_page(status)
            case _ if judgement.bare_404 and self.session is SessionKnowledge.NONE and self.endpoint_worked:
                return self._gateway_page(status)
            case _:
                return self._pass()

    def failed(self, fault: Fault) -> Step:
        """There is no answer."""
        self._note(Attempt.MAY_HAVE_RUN if fault.may_have_arrived else Attempt.DID_NOT_RUN)
        if not fault.may_have_arrived:
            return self._wait(Awaited.CONNECT)
        return self._resend() if self.may_resend_stream else self._outcome_unknown()

    def healed(self) -> Step:
        """The session stands on a new upstream session."""
        self._tries.heals += 1
        self._settle(Settled.PROVEN)
        after = after_loss(self.message)
        if after is not AfterLoss.REPLAY:
            return Give(replies.ACCEPTED, drops=after is AfterLoss.DROP)
        return self._send(ReplayCause.SESSION_LOST) if self._may_go_again else self._outcome_unknown()

    def unhealed(self, why: Unhealed) -> Step:
        """The heal ended otherwise."""
        match why:
            case Unhealed.ALIVE if self._was_the_routes_404:
                self._tries.resends += 1
                self._settle_by_route()
                return self.back()
            case Unhealed.NO_ROUTE:
                self._tries.missing_routes += self._met_bare_404
                self._settle(Settled.PROVEN)
                return self._wait(Awaited.ROUTE)
            case Unhealed.UNREACHABLE | Unhealed.GATEWAY:
                self._settle(Settled.UNPROVEN)
                return self._wait(Awaited.CONNECT if why is Unhealed.UNREACHABLE else Awaited.ROUTE)
            case Unhealed.NOT_RESTORED:
                return self._session_not_found()
            case _:
                return Pass()

    def back(self) -> Step:
        """The hold ended: the upstream may be back. The session id is tried as it is."""
        return self._send_in_doubt() if self._arrival.may_have_run else self._send(ReplayCause.NOT_SENT)

    def expired(self) -> Step:
        """The wait lasted as long as it may, or there was no room for it, or the sidecar drains."""
        self._settle_by_route()
        return self._outcome_unknown() if self._arrival.may_have_run else self._unavailable()

    def cancelled(self) -> Step:
        """The client cancelled the held request."""
        return self._error(Reason.CANCELLED)

    def ended(self) -> Step:
        """The session is over, by the client's own DELETE perhaps: nothing may be sent in it any more."""
        return Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST)

    @property
    def is_unread(self) -> bool:
        """Whether it is JSON that was not looked into: perhaps an answer to a question, which no later session may get."""
        return self.message.is_unread and not self.opaque

    @property
    def safe_in_doubt(self) -> bool:
        """Whether it may run twice: wherever it was sent it was harmless, and where it would be sent now it is."""
        return not self._tries.unsafe and self.is_safe()

    @property
    def may_resend_stream(self) -> bool:
        """Whether what has certainly arrived may be begun anew: it is harmless, and a resend is left."""
        return self.mode is Mode.HEAL and self.safe_in_doubt and self._has_resends

    def stream_broke(self, after: AfterEnd) -> Step | None:
        """The answer's stream ended before its response; ``None`` where there is nothing left to do."""
        self._note(Attempt.MAY_HAVE_RUN)
        if after is AfterEnd.RESEND:
            return self._resend()
        return self._outcome_unknown() if after is AfterEnd.TELL else None

    # -- how it decides -----------------------------------------------------------------------------------------------

    @property
    def _may_heal(self) -> bool:
        return self._tries.heals < MAX_HEALS and not self.is_unread

    @property
    def _has_resends(self) -> bool:
        return self._tries.resends < MAX_RESENDS_IN_DOUBT

    @property
    def _may_go_again(self) -> bool:
        return self.safe_in_doubt or not self._arrival.may_have_run

    @property
    def _met_bare_404(self) -> bool:
        return self._refusal is not None and self._refusal.bare_404

    @property
    def _was_the_routes_404(self) -> bool:
        """Whether a 404 that a live session got was the route's, which came back before the ping.

        Without a sign of that some server may have run the message and answered 404: only what is harmless goes again.
        """
        is_proven = self._tries.missing_routes > 0
        return self._met_bare_404 and self._has_resends and (is_proven or self.safe_in_doubt)

    def _lost(self, judgement: Judgement) -> Step:
        is_bound = self.session is SessionKnowledge.BOUND
        if self.mode is Mode.REWRITE or not is_bound:
            return self._session_not_found()
        if after_loss(self.message) is AfterLoss.DROP:
            return Give(replies.ACCEPTED, drops=True)
        if not self._may_heal:
            return self._session_not_found()
        return self._heal(judgement, confirm=False)

    def _perhaps_lost(self, judgement: Judgement) -> Step:
        if self.mode is Mode.REWRITE or not self._may_heal:
            return self._pass()
        return self._heal(judgement, confirm=True)

    def _heal(self, judgement: Judgement, *, confirm: bool) -> Step:
        self._refusal = judgement
        self._note(_refused(judgement))
        return Heal(judgement.signature.name if judgement.signature is not None else "unnamed", confirm=confirm)

    def _gateway_page(self, status: int) -> Step:
        is_trusted = self.trust_503 and status == HTTPStatus.SERVICE_UNAVAILABLE
        self._note(Attempt.DID_NOT_RUN if is_trusted else Attempt.MAY_HAVE_RUN)
        return self._wait(Awaited.ROUTE)

    def _wait(self, awaited: Awaited) -> Step:
        """Wait, if the message may be sent afterwards; else say at once what a wait that is over would say."""
        return Hold(awaited) if self.mode is Mode.HEAL and self._may_go_again else self.expired()

    # -- what it notes ------------------------------------------------------------------------------------------------

    def _note(self, attempt: Attempt) -> None:
        self._arrival = self._arrival.after(attempt)

    def _settle(self, settled: Settled) -> None:
        """Say of a refusal that is in question whether it came before anything was dispatched.

        A tool may answer 404 itself, after it ran. Only a ping or an ``initialize`` that is denied in the same way shows
        that the message did not get as far; a page or a break in their place does not.
        """
        if self._arrival.is_open:
            self._arrival = self._arrival.after(settled)
        self._refusal = None

    def _settle_by_route(self) -> None:
        """Nobody was asked in vain: what counts is whether the route was missing before."""
        self._settle(Settled.PROVEN if self._tries.missing_routes else Settled.UNPROVEN)

    # -- how it goes on -----------------------------------------------------------------------------------------------

    def _pass(self) -> Pass:
        self._note(Attempt.MAY_HAVE_RUN)
        return Pass()

    def _send(self, cause: ReplayCause | None = None) -> Send:
        self._tries.unsafe += not self.is_safe()
        was_tried = self._arrival is not Arrival.NOT_SENT
        if not was_tried and not self._tries.renewed:
            return _FIRST_TIME
        return Send(cause if was_tried else None, renumber=self._tries.renewed > 0)

    def _send_in_doubt(self) -> Send:
        self._tries.renewed += 1  # sent again in one session, hence under ids of its own from now on
        return self._send(ReplayCause.AMBIGUOUS_SAFE)

    def _resend(self) -> Send:
        self._tries.resends += 1
        return self._send_in_doubt()

    # -- what it answers ----------------------------------------------------------------------------------------------

    @property
    def _is_initialize(self) -> bool:
        return self.message.method == "initialize" and self.message.kind is Kind.REQUEST

    def _error(self, reason: Reason) -> Give:
        if self.opaque:
            return Give(replies.opaque(reason), reason=reason)
        answer = replies.in_session(self.message, reason)
        return Give(answer, reason=reason, drops=answer is replies.ACCEPTED)

    def _unavailable(self) -> Give:
        if self._is_initialize:
            answer = replies.unavailable(self.message.id, may_have_run=self._arrival.may_have_run)
            return Give(answer, reason=Reason.UPSTREAM_UNAVAILABLE)
        return self._error(Reason.UPSTREAM_UNAVAILABLE)

    def _outcome_unknown(self) -> Give:
        return self._unavailable() if self._is_initialize else self._error(Reason.OUTCOME_UNKNOWN)

    def _session_not_found(self) -> Give:
        return Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST, rewrites=self._last_status)


def _refused(judgement: Judgement) -> Attempt:
    """What a refusal shows that speaks of the session, should its session prove lost."""
    if judgement.proves_not_run:
        return Attempt.DID_NOT_RUN
    return Attempt.PERHAPS_NOT if judgement.bare_404 else Attempt.MAY_HAVE_RUN
