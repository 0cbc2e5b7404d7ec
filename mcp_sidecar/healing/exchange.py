"""The trip of one client message through the sidecar, as typed steps.

The law of this file: it decides and does nothing. The driver carries out one step, reports what came of it, and gets
the next one. A step is a frozen value; its successors are what the reporting method returns. Correctness comes in this
order: never run a tool twice; never bind one user's session to another; never hide a real 401; never let a client
hang; then heal.

::

    begin ──▶ Send ──▶ judged ──▶ Pass                       the upstream's answer
                │         ├─────▶ Ask ───▶ asked ───▶ Pass | Send | Heal | Hold
                │         ├─────▶ Heal ──▶ healed ──▶ Send   twice per exchange
                │         ├─────▶ Hold ──▶ back ──▶ Send | Ask | Heal, until the hold ends
                │         └─────▶ Give                       an answer of our own
                ├─────▶ failed ─▶ Send | Hold | Give
                └─────▶ displaced ─▶ Heal | Give             its id is another session's now

Known words are quick, asking is proof. Of what a refused message did, only a ping that is refused in the same words tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Final

from mcp_sidecar.facts import ReplayCause
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.arrival import Arrival, Attempt, Settled
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.replay import AfterLoss, after_loss
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.healing.stream_watch import AfterEnd
from mcp_sidecar.verdicts.classify import Judgement, SessionKnowledge, Verdict
from mcp_sidecar.verdicts.refusals import PingAnswer, PingVerdict, Refusal
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.jsonrpc import Kind, Message
from mcp_sidecar.wire.reply import OwnAnswer

MAX_HEALS = 2
"""How often one message has its session healed: a server that loses each new session at once is given up."""

MAX_RESENDS = 3
"""How often a request that has arrived goes again, whatever it was answered: a gateway is waited for with pings."""

MAX_RESENDS_IN_DOUBT = 2
"""How often a harmless request goes again after resets: a request that crashes its server must not do so for ever."""


UNNAMED = "unnamed"
"""Stands where the name of a signature would."""


class Awaited(Enum):
    """What a hold waits for."""

    CONNECT = "connect"  # until the upstream accepts connections
    ROUTE = "route"  # until an ingress has its route back
    TURN = "turn"  # until the server, which is there, has time


@dataclass(frozen=True, slots=True)
class Send:
    """Send the message. ``cause`` says why it is not the first time; ``renumber`` gives it new ids (basic, "Requests")."""

    cause: ReplayCause | None = None
    renumber: bool = False


_FIRST_TIME = Send()


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask with a ping on the same session, or wait for whoever does. ``refusal`` is what is asked about, if anything is.

    ``elsewhere``: also on other connections, should this one find the session alive; ``is_new``: or lost, though it was
    healed a moment ago. ``is_remembered``: the same refusal is not asked about again for a while; a route may be missing
    once more at any time.
    """

    refusal: Refusal | None = None
    elsewhere: bool = False
    is_new: bool = False
    is_remembered: bool = True


@dataclass(frozen=True, slots=True)
class Heal:
    """Have the session re-initialized, or wait for whoever is at it. ``is_certain``: that it is lost is to be told."""

    signature: str
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the message until the upstream is back, with its answer where ``is_in_question``.

    ``pause_s`` is how long the server itself wants to be left alone.
    """

    awaited: Awaited
    is_in_question: bool = False
    pause_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """Pass the upstream's answer on; an error in it ``to_sender``, whoever it is addressed to.

    ``useless``: a heal has changed nothing about it, and none is tried for its words again.
    """

    to_sender: bool = False
    useless: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Give:
    """Give an answer of our own. ``rewrites`` is the upstream's status that the 404 replaces."""

    answer: OwnAnswer
    reason: Reason | None = None
    drops: bool = False
    rewrites: int | None = None


Step = Send | Ask | Heal | Hold | Pass | Give


class Unhealed(Enum):
    """Why a heal did not end in a new upstream session."""

    UNREACHABLE = "unreachable"  # no connection
    NO_ROUTE = "no route"  # `initialize` met a 404, too: the route is missing, and nothing behind it was reached
    GATEWAY = "gateway"  # a page of an ingress, or a break, in the place of the server's answer: proves nothing
    UNAUTHORIZED = "unauthorized"  # the credentials were refused: that refusal is passed on
    NOT_RESTORED = "not restored"  # refused, incompatible or rejected: the client has to start over


@dataclass(slots=True)
class Tries:
    """What was tried for one message, counted; each count has a bound, or says what may be done once more."""

    heals: int = 0
    losses: int = 0  # of the answers, those in words that are known
    arrived: int = 0  # of the sends, those that reached somebody
    renewed: int = 0  # of the sends, those under new ids
    unsafe: int = 0  # of the sends, those that were not known to be harmless, or have shown something of consequence


@dataclass(slots=True)
class Exchange:
    """One POST of a client of an older revision.

    ``is_safe`` gives the verdict of the replay matrix at this moment: a server that was exchanged takes its hints with
    it. ``opaque`` says that the body is encoded and was not read; ``endpoint_worked`` that the endpoint has answered 2xx
    in this process; ``may_believe`` whether strong words are taken for what they say without a ping.
    """

    message: Final[Message]
    session: SessionKnowledge
    mode: Final[Mode]
    is_safe: Final[Callable[[], bool]]
    opaque: Final[bool] = False
    trust_503: Final[bool] = False
    endpoint_worked: Final[bool] = False
    may_believe: Final[Callable[[Refusal | None], bool]] = lambda _: True
    _arrival: Arrival = field(default=Arrival.NOT_SENT, init=False)
    _tries: Final[Tries] = field(default_factory=Tries, init=False)
    _question: Judgement | None = field(default=None, init=False)  # the last answer, while it is to be settled
    _loss: Heal = field(default=Heal(UNNAMED, is_certain=False), init=False)
    _was_away: bool = field(default=False, init=False)  # the upstream, while the answer was in question
    _before: Arrival = field(default=Arrival.NOT_SENT, init=False)  # this attempt
    _then: Ask | Heal | None = field(default=None, init=False)  # what a wait is for
    _healed_from: Refusal | None = field(default=None, init=False)
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
        return Heal("id-minted-anew")

    def judged(self, judgement: Judgement, status: int) -> Step:
        """The upstream answered, and the classifier has said what the answer means for the session."""
        self._last_status = status
        self._tries.arrived += 1
        self._before = self._arrival
        match judgement.verdict:
            case Verdict.SESSION_LOST:
                return self._lost(judgement)
            case Verdict.ASK:
                return self._perhaps_lost(judgement)
            case Verdict.UNAVAILABLE if judgement.refusal is not None and judgement.jsonrpc_body:
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
        self._tries.arrived += 1
        return self._send_in_doubt() if self.may_resend_stream else self._outcome_unknown()

    def asked(self, answer: PingAnswer) -> Step:
        """Somebody has asked with a ping."""
        question = self._question
        is_same = question is not None and question.refusal is not None and question.refusal.is_same_as(answer.refusal)
        match answer.verdict:
            case PingVerdict.REFUSED if question is None or is_same or not _is_unauthorized(answer):
                return self._refused(is_same=is_same)
            case PingVerdict.ELSEWHERE if is_same:
                self._settle(Settled.PROVEN)
                return self._send(ReplayCause.NOT_SENT) if self._has_resends else self._pass()
            case PingVerdict.BUSY:
                if is_same:
                    self._settle(Settled.PROVEN)
                return self._wait(Awaited.TURN, self._ask(), pause_s=answer.retry_after_s)
            case PingVerdict.AWAY:
                return self._wait(Awaited.CONNECT, self._ask())
            case PingVerdict.GATEWAY:
                return self._wait(Awaited.ROUTE, self._ask())
            case _ if question is None:
                return self._go_on()
            case PingVerdict.ALIVE if question.bare_404 and self._was_away and self.safe_in_doubt:
                self._settle(Settled.UNPROVEN)
                return self._go_on()
            case _:
                return self._pass(to_sender=True)

    def healed(self) -> Step:
        """The session stands on a new upstream session."""
        self._tries.heals += 1
        if self._question is not None:
            self._healed_from = self._question.refusal
        if self._arrival.is_open and not self.safe_in_doubt and self._question is not None:
            return self._ask()  # it was harmless on the server before this one: did it run there?
        self._settle(Settled.UNPROVEN)
        after = after_loss(self.message)
        if after is not AfterLoss.REPLAY:
            return Give(replies.ACCEPTED, drops=after is AfterLoss.DROP)
        if not self._may_go_again:
            return self._outcome_unknown()
        return self._send(ReplayCause.SESSION_LOST) if self._has_resends else self.expired()

    def unhealed(self, why: Unhealed) -> Step:
        """The heal ended otherwise."""
        if why is not Unhealed.UNAUTHORIZED:
            self._settle(Settled.UNPROVEN)
        match why:
            case Unhealed.NO_ROUTE | Unhealed.GATEWAY:
                return self._wait(Awaited.ROUTE, Ask())
            case Unhealed.UNREACHABLE:
                return self._wait(Awaited.CONNECT, Ask())
            case Unhealed.NOT_RESTORED:
                return self._session_not_found()
            case _:
                return Pass()

    def back(self) -> Step:
        """The hold ended: the upstream may be back. The session id is tried as it is."""
        return self._then if self._then is not None else self._go_on()

    def expired(self) -> Step:
        """The wait lasted as long as it may, or there was no room for it, or the sidecar drains."""
        self._settle(Settled.UNPROVEN)
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
        return self.mode is Mode.HEAL and self.safe_in_doubt and self._tries.arrived <= MAX_RESENDS_IN_DOUBT

    def stream_broke(self, after: AfterEnd) -> Step | None:
        """The answer's stream ended before its response; ``None`` where there is nothing left to do."""
        self._note(Attempt.MAY_HAVE_RUN)
        match after:
            case AfterEnd.ASK if self._may_heal:
                return self._ask()
            case AfterEnd.RESEND | AfterEnd.ASK if self.may_resend_stream:
                return self._send_in_doubt()
            case AfterEnd.TELL | AfterEnd.RESEND | AfterEnd.ASK:
                return self._outcome_unknown()
            case _:
                return None

    def stream_refused(self, refusal: Refusal, *, has_begun: bool, committed: bool = False) -> Step:
        """The stream brought a refusal that is to be asked about, and nothing said before it unless ``has_begun``.

        ``committed``: the client has seen something of consequence, so that not even a harmless call is begun anew.
        """
        self._tries.unsafe += committed
        if not has_begun:
            self._arrival = self._before
        return self._perhaps_lost(Judgement(Verdict.ASK, refusal=refusal))

    # -- how it decides -----------------------------------------------------------------------------------------------

    @property
    def may_ask(self) -> bool:
        """Whether what its answer's stream brings may be asked about."""
        is_known = self.mode is Mode.HEAL and self.session is SessionKnowledge.BOUND
        return is_known and (self.opaque or not self.message.is_unread)

    @property
    def _may_heal(self) -> bool:
        return self._tries.heals < MAX_HEALS and not self.is_unread

    @property
    def _has_resends(self) -> bool:
        return self._tries.arrived <= MAX_RESENDS

    @property
    def _may_go_again(self) -> bool:
        return self.safe_in_doubt or not self._arrival.may_have_run

    def _lost(self, judgement: Judgement) -> Step:
        if self.mode is Mode.REWRITE or self.session is not SessionKnowledge.BOUND:
            return self._session_not_found()
        if after_loss(self.message) is AfterLoss.DROP:
            return Give(replies.ACCEPTED, drops=True)
        if self._is_useless(judgement):
            return self._pass(useless=judgement.refusal)
        if not self._may_heal:
            return self._session_not_found()
        self._put(judgement)
        self._tries.losses += 1
        if self.may_believe(judgement.refusal) and self.safe_in_doubt and self._tries.losses == 1:
            return self._heal()
        return self._ask()

    def _perhaps_lost(self, judgement: Judgement) -> Step:
        if self._is_useless(judgement):
            return self._pass(useless=judgement.refusal)
        if not self.may_ask or not self._may_heal:
            return self._pass(to_sender=self.may_ask)
        self._put(judgement)
        return self._ask()

    def _is_useless(self, judgement: Judgement) -> bool:
        """Whether a heal has changed nothing about a refusal that looks like one of credentials."""
        refusal, before = judgement.refusal, self._healed_from
        return self._last_status == HTTPStatus.UNAUTHORIZED and refusal is not None and refusal.is_same_as(before)

    def _put(self, judgement: Judgement) -> None:
        """This answer is in question from now on."""
        self._question, self._was_away = judgement, False
        self._note(Attempt.PERHAPS_NOT)

    def _ask(self) -> Ask:
        refusal = self._question.refusal if self._question is not None else None
        is_remembered = self._question is None or not self._question.bare_404
        elsewhere = refusal is not None and refusal.words.speak_of_session
        return Ask(refusal, elsewhere=elsewhere, is_new=self._tries.heals > 0, is_remembered=is_remembered)

    def _refused(self, *, is_same: bool) -> Step:
        """The session is lost, if ``initialize`` agrees."""
        if self.session is not SessionKnowledge.BOUND:
            return self._go_on()  # the server answers; nobody's session was asked about
        if self._arrival.is_open:
            self._arrival = self._arrival.after(Settled.PROVEN if is_same else Settled.UNPROVEN)
        if after_loss(self.message) is AfterLoss.DROP and self._question is not None:
            return Give(replies.ACCEPTED, drops=True)
        return self._heal() if self._may_heal else self._session_not_found()

    def _heal(self) -> Heal:
        if self._question is not None:
            is_certain = self._question.verdict is Verdict.SESSION_LOST
            self._loss = Heal(self._question.signature.name if self._question.signature else UNNAMED, is_certain)
        return self._loss

    def _go_on(self) -> Step:
        if not self._has_resends:
            return self.expired()
        if not self._arrival.may_have_run:
            return self._send(ReplayCause.NOT_SENT)
        return self._send_in_doubt() if self._may_go_again else self._outcome_unknown()

    def _gateway_page(self, status: int) -> Step:
        is_trusted = self.trust_503 and status == HTTPStatus.SERVICE_UNAVAILABLE
        self._note(Attempt.DID_NOT_RUN if is_trusted else Attempt.MAY_HAVE_RUN)
        return self._wait(Awaited.ROUTE, Ask() if self._has_resends else None)

    def _wait(self, awaited: Awaited, then: Ask | None = None, *, pause_s: float | None = None) -> Step:
        """Wait, if the message may be sent afterwards; else say at once what a wait that is over would say."""
        is_open = self._question is not None and self._arrival.is_open
        if self.mode is not Mode.HEAL or not (is_open or self._may_go_again):
            return self.expired()
        if not self._has_resends and not is_open:
            return self.expired()
        self._then, self._was_away = then, self._was_away or awaited is not Awaited.TURN
        return Hold(awaited, is_open, pause_s)

    # -- what it notes ------------------------------------------------------------------------------------------------

    def _note(self, attempt: Attempt) -> None:
        if self._arrival.is_open:
            self._arrival = self._arrival.after(Settled.UNPROVEN)
        self._arrival = self._arrival.after(attempt)

    def _settle(self, settled: Settled) -> None:
        """Say of an answer in question whether it came before anything was dispatched, and that it is settled.

        A tool may refuse by itself, after it ran. Only a ping that is refused in the same words shows that the message did
        not get as far; a page or a break in its place does not.
        """
        if self._arrival.is_open:
            self._arrival = self._arrival.after(settled)
        self._question = None

    # -- how it goes on -----------------------------------------------------------------------------------------------

    def _pass(self, *, to_sender: bool = False, useless: Refusal | None = None) -> Pass:
        self._settle(Settled.UNPROVEN)
        self._note(Attempt.MAY_HAVE_RUN)
        return Pass(to_sender, useless)

    def _send(self, cause: ReplayCause | None = None) -> Send:
        self._tries.unsafe += not self.is_safe()
        self._then = None
        was_tried = self._arrival is not Arrival.NOT_SENT
        if not was_tried and not self._tries.renewed:
            return _FIRST_TIME
        return Send(cause if was_tried else None, renumber=self._tries.renewed > 0)

    def _send_in_doubt(self) -> Send:
        self._tries.renewed += 1  # sent again in one session, hence under ids of its own from now on
        return self._send(ReplayCause.AMBIGUOUS_SAFE)

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


def _is_unauthorized(answer: PingAnswer) -> bool:
    """A ping that is refused as one without credentials says nothing of another refusal."""
    return answer.refusal is not None and answer.refusal.words.status == HTTPStatus.UNAUTHORIZED
