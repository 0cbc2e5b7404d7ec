"""The trip of one GET of a client's, its listening stream, as typed steps.

The law of this file is that of ``exchange``: it decides and does nothing. In a session that is known here the client's
stream is the sidecar's: once open it stays so while the upstream is away, and is attached again when it is back, after a
heal where the session was lost. Behind a break the session is asked about with one `ping`, whatever the new GET was
answered: some servers answer 200 to any id (mcp-go 0.43 and 1.2, stateful), others to a lost one in words of their own.

::

    begin ──▶ Get ──▶ attached ──▶ Relay | Ask ──▶ asked ──▶ Relay ──▶ over ──▶ Wait | End
               │ ├──▶ refused ───▶ Ask | Pass | Give | Tell | Wait | Heal ──▶ healed | unhealed
               │ └──▶ failed ────▶ Wait | Give | End
               └────▶ moved ─────▶ Wait                       a heal came in between
    Wait ──▶ waited ──▶ Get | Heal | Tell | End
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mcp_sidecar.healing import replies
from mcp_sidecar.healing.exchange import Ask, Give, Heal, Pass, Unhealed
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.position import Position
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.healing.session import Session
from mcp_sidecar.healing.stream_watch import StreamWatch
from mcp_sidecar.verdicts.classify import Judgement, Verdict
from mcp_sidecar.verdicts.refusals import PingAnswer, PingVerdict
from mcp_sidecar.verdicts.words import words_of
from mcp_sidecar.wire.faults import Fault

QUICK_END_S = 1.0
"""Streams that end sooner than this one after the other are attached again only after as long a pause."""

METHOD_NOT_ALLOWED, CONFLICT = 405, 409

CONFLICTS = 20
"""How often a stream that was there before is tried again, at the slowest pace: the server needs a moment to learn that
the former one is closed."""

LATE_CONFLICTS, CONFLICT_PAUSE_S = 60, 5.0
"""How often it is tried again after that, and after which pause, where the client's own stream is open meanwhile: some
servers learn of it only when they write to it, as late as after 170 s."""


class Until(Enum):
    """What a wait is for."""

    TURN = "turn"  # the stream's turn among all that come back
    CONNECT = "connect"  # the upstream accepts connections
    ROUTE = "route"  # an ingress has its route back; or a moment has passed: no reason to hurry


@dataclass(frozen=True, slots=True)
class Get:
    """Ask the upstream for the stream. ``comes_back``: it was there before."""

    comes_back: bool = False


@dataclass(frozen=True, slots=True)
class Relay:
    """Relay the upstream's stream until it ends. ``behind_break``: what a `ping` has shown of the session since."""

    behind_break: PingVerdict | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait before the next ``Get``, at least ``pause_s`` seconds. ``keeps_open``: the client gets its stream meanwhile."""

    until: Until = Until.TURN
    keeps_open: bool = False
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the client that the outcome of what it polls for is unknown, and end."""


@dataclass(frozen=True, slots=True)
class End:
    """End the client's stream. ``cut``: not as if it were whole. ``refused_with``: the upstream gives none any more."""

    cut: bool = False
    refused_with: int | None = None


GoOn = Get | Ask | Relay | Wait | Heal
Last = Pass | Give | Tell | End
Step = GoOn | Last

_AGAIN = Wait()
_NOT_THE_SERVERS = frozenset({PingVerdict.AWAY, PingVerdict.GATEWAY, PingVerdict.BUSY})


@dataclass(frozen=True, slots=True)
class Ended:
    """How the upstream's side of a stream ended: after how long, and whether it broke."""

    generation: int
    lived_s: float
    broke: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer to a GET that is no stream. ``is_there``: it says that there is one already."""

    judgement: Judgement
    status: int
    is_there: bool = False

    @classmethod
    def of(cls, judgement: Judgement, status: int, body: bytes) -> Refused:
        """Read the words of an answer. ``body`` is free of content encodings, at least its beginning."""
        return cls(judgement, status, status == CONFLICT or words_of(status, body).speak_of_presence)


class Attachment:
    """One GET in a session, or under an id that is not known. ``is_open``: the client has its stream.

    ``is_expiry``: the upstream has ended the stream in good order, and went on; should the session be lost, it has expired.
    """

    __slots__ = (
        "_broke_in",
        "_conflicts_left",
        "_ended_quickly",
        "_found",
        "_in_question",
        "_is_unasked",
        "_late_conflicts_left",
        "_loss",
        "_mode",
        "_position",
        "_session",
        "_was_away",
        "is_expiry",
        "is_open",
    )

    def __init__(self, mode: Mode, session: Session | None, position: Position) -> None:
        """``session`` is the client's own, if it is known."""
        self._mode = mode
        self._session = session
        self._position = position
        self.is_open = False
        self.is_expiry = False
        self._conflicts_left = 0
        self._late_conflicts_left = LATE_CONFLICTS
        self._ended_quickly = False
        self._is_unasked = False  # nobody knows whether the session has outlived the break
        self._found: PingVerdict | None = None
        self._broke_in = 0  # the generation of the latest break
        self._in_question: Refused | None = None
        self._was_away = False
        self._loss: tuple[Heal, int] | None = None  # with the status that showed it; 0: the upstream was not even asked

    @property
    def may_outlive(self) -> bool:
        """Whether the stream goes on when the upstream's side ends."""
        return self._mode is Mode.HEAL and self._session is not None and not self._session.is_ended

    @property
    def generation(self) -> int:
        """The one that a GET would be sent under now."""
        return self._session.generation if self._session is not None else 1

    # -- what the driver reports --------------------------------------------------------------------------------------

    def begin(self, *, replaces_one: bool = False) -> Step:
        """Start. ``replaces_one``: the client had a stream in this session, which has just been closed."""
        self._conflicts_left = CONFLICTS if replaces_one else 0
        return self._get()

    def attached(self) -> Step:
        """The upstream's stream is there."""
        self._was_away = False
        self.is_open = True
        if self._session is not None:
            self._session.note_get(is_refused=False)
        return Ask() if self._is_unasked and self.may_outlive else self._relay()

    def moved(self) -> Step:
        """A heal came in between: what was asked for would be an earlier upstream session's."""
        self._forget_break()
        return _AGAIN

    def failed(self, fault: Fault) -> Step:
        """There is no answer."""
        if self.may_outlive:
            return self._keep_open(Until.ROUTE if fault.may_have_arrived else Until.CONNECT)
        return self._give(Give(replies.BAD_GATEWAY if fault.may_have_arrived else replies.UNAVAILABLE_PATH))

    def refused(self, refused: Refused, now: float) -> Step:
        """The upstream answered with something else than a stream."""
        judgement, status = refused.judgement, refused.status
        if status == METHOD_NOT_ALLOWED and self._session is not None and self._position.last_seen is None:
            self._session.note_get(is_refused=True)
        if judgement.verdict is Verdict.SESSION_LOST:
            return self._lost(judgement, status, now)
        if judgement.verdict is Verdict.UNAVAILABLE and not judgement.jsonrpc_body and self.may_outlive:
            return self._keep_open(Until.ROUTE)
        if judgement.verdict is not Verdict.AUTH_FAILURE and self._is_unasked and self.may_outlive:
            return self._ask(refused)
        if judgement.verdict is Verdict.ASK and self.may_outlive and not self._is_tried_again(refused):
            return self._perhaps_lost(refused)
        if judgement.verdict is not Verdict.AUTH_FAILURE and self.may_outlive:
            return self._refused_in_session(refused)
        return self._pass(status)

    def asked(self, ping: PingAnswer, now: float) -> Step:
        """The `ping` was answered in this way; what the GET was answered is settled by it."""
        refused, self._in_question = self._in_question, None
        if ping.verdict is PingVerdict.REFUSED:
            status = ping.refusal.words.status if ping.refusal is not None else 0
            signature = refused.judgement.signature if refused is not None else None
            return self._lost(Judgement(Verdict.SESSION_LOST, signature), status, now, is_told=False)
        if refused is not None and ping.verdict in _NOT_THE_SERVERS:
            return self._keep_open(Until.CONNECT if ping.verdict is PingVerdict.AWAY else Until.ROUTE)
        self._forget_break()
        self._found = ping.verdict
        return self._relay() if refused is None else self._refused_in_session(refused)

    def healed(self, now: float) -> Step:
        """The session stands on a new upstream session."""
        if self.is_expiry and self._session is not None:
            self._session.note_expiry_healed(now)
        self._forget_break()
        return _AGAIN

    def unhealed(self, why: Unhealed) -> Step:
        """The heal ended otherwise."""
        match why:
            case Unhealed.UNREACHABLE:
                return self._keep_open(Until.CONNECT)
            case Unhealed.NO_ROUTE | Unhealed.GATEWAY:
                return self._keep_open(Until.ROUTE)
            case Unhealed.NOT_RESTORED:
                return self._session_not_found()
            case _:
                return self._pass(self.lost_with)

    def expired(self) -> Step:
        """The heal takes longer than anybody waits: the upstream may well accept connects, so there is no hurry."""
        return self._keep_open(Until.ROUTE)

    def waited(self) -> Step:
        """The wait is over, perhaps because a heal came in between."""
        if self._session is not None and self._session.is_ended:
            return End()
        if self.generation != self._broke_in:
            self._forget_break()
        return self._get(comes_back=True)

    def over(self, watch: StreamWatch, ended: Ended) -> Step:
        """The upstream's side has ended; ``watch`` saw all of it."""
        self._position.advance(watch)
        if self._position.is_answered:
            return End()
        if self.may_outlive and not watch.in_fragment:
            return self._come_back(watch, ended)
        return End(cut=watch.in_fragment or (ended.broke and self._session is None))

    # -- how it decides -----------------------------------------------------------------------------------------------

    @property
    def lost_with(self) -> int:
        """The status that has shown a loss; 0 where the upstream was not even asked."""
        return self._loss[1] if self._loss is not None else 0

    def _come_back(self, watch: StreamWatch, ended: Ended) -> Step:
        """A server that ends a stream in good order behind an event with an id wants to be polled: that is no break."""
        if ended.generation != self.generation:
            self._forget_break()
            return _AGAIN
        self._broke_in = self.generation
        self._is_unasked = ended.broke or watch.last_event_id is None
        self.is_expiry = not ended.broke and self._session is not None and not self._session.posts
        return Wait(pause_s=self._pause_s(ended.lived_s, watch.retry_ms))

    def _forget_break(self) -> None:
        """All that there is to know about the latest break is known."""
        self._is_unasked = self.is_expiry = False
        self._in_question = self._found = None

    def _relay(self) -> Step:
        found, self._found = self._found, None
        self.is_expiry = False
        self._conflicts_left, self._late_conflicts_left = CONFLICTS, LATE_CONFLICTS
        return Relay(found)

    def _get(self, *, comes_back: bool = False) -> Step:
        session = self._session
        if session is not None and session.displaced:  # it would be a window into another one's session
            self._loss = Heal("id-minted-anew"), 0
            return self._loss[0] if self._mode is Mode.HEAL else self._session_not_found()
        if self._mode is Mode.HEAL and self._position.is_stranded(self.generation):
            return Tell()
        return Get(comes_back=comes_back)

    def _keep_open(self, until: Until) -> Step:
        """Answer 200 although the upstream is away, unless this session is known to have no such stream."""
        self._was_away = self._is_unasked = True
        self._broke_in = self.generation
        self.is_expiry, self._found = False, None
        if self._session is not None and self._session.refuses_get and not self._position.is_poll and not self.is_open:
            return Give(replies.GET_NOT_SUPPORTED)
        self.is_open = True
        return Wait(until, keeps_open=True)

    def _refused_in_session(self, refused: Refused) -> Step:
        """The session is alive, and the client's stream may be had in another way."""
        if self._position.is_poll:
            return Tell()
        if refused.is_there and self._conflicts_left:
            self._conflicts_left -= 1
            return Wait(Until.ROUTE)
        if refused.is_there and self.is_open and self._late_conflicts_left:
            self._late_conflicts_left -= 1
            return Wait(pause_s=CONFLICT_PAUSE_S)
        if self.is_open and self._position.last_seen is not None:
            self._position.forget()  # it cannot be resumed here
            return _AGAIN
        if refused.judgement.bare_404 and self._was_away:
            self._was_away = False  # back between that answer and the ping: the answer still was the ingress's
            return _AGAIN
        return self._pass(refused.status)

    def _is_tried_again(self, refused: Refused) -> bool:
        """Whether the stream is there already, and is had as soon as the server has noticed."""
        return refused.is_there and bool(self._conflicts_left or (self.is_open and self._late_conflicts_left))

    def _perhaps_lost(self, refused: Refused) -> Step:
        if self._position.last_seen is not None and not self._position.is_poll:
            self._position.forget()  # perhaps only the resume was refused (rmcp up to 1.4: 500)
            return _AGAIN
        return self._ask(refused)

    def _ask(self, refused: Refused) -> Ask:
        self._in_question = refused
        return Ask(refused.judgement.refusal, is_remembered=not refused.judgement.bare_404)

    def _lost(self, judgement: Judgement, status: int, now: float, *, is_told: bool = True) -> Step:
        """``is_told``: not only once `initialize` has agreed."""
        self._loss = Heal(judgement.name, is_told), status
        if not self.may_outlive:
            return self._session_not_found()
        pause_s = self._session.expiry_pause_s(now) if self.is_expiry and self._session is not None else 0.0
        return Wait(keeps_open=True, pause_s=pause_s) if pause_s else self._loss[0]

    def _pause_s(self, lived_s: float, retry_ms: int | None) -> float:
        """Once a stream may end at once, as at a restart; a server that does it again is not asked in a loop."""
        is_quick = lived_s < QUICK_END_S
        again, self._ended_quickly = is_quick and self._ended_quickly, is_quick
        return (retry_ms or 0) / 1000 or (QUICK_END_S if again else 0.0)

    # -- what it answers ----------------------------------------------------------------------------------------------

    def _session_not_found(self) -> Step:
        status = self.lost_with
        given = Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST, rewrites=status or None)
        return End(refused_with=status) if self.is_open else given

    def _give(self, step: Give) -> Step:
        """A stream that is already open can only end."""
        return End() if self.is_open else step

    def _pass(self, status: int) -> Step:
        return End(refused_with=status) if self.is_open else Pass()
