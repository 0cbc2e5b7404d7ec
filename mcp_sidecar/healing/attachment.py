"""The trip of one GET of a client's, its listening stream, as typed steps.

The law of this file is that of ``exchange``: it decides and does nothing. In a session that is known here the client's
stream is the sidecar's: once open it stays so while the upstream is away, and is attached again when it is back, after a
heal where the session was lost.

::

    begin ──▶ Get ──▶ attached ──▶ Relay ──▶ over ──▶ Wait | End
               │ ├──▶ refused ───▶ Pass | Give | Tell | Wait | Heal ──▶ healed | unhealed
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
from mcp_sidecar.wire.faults import Fault

QUICK_END_S = 1.0
"""Streams that end sooner than this one after the other are attached again only after as long a pause."""

METHOD_NOT_ALLOWED, CONFLICT = 405, 409

CONFLICTS = 20
"""How often a stream that was there before is tried again, at the slowest pace: the server needs a moment to learn that
the former one is closed."""


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
    """Relay the upstream's stream until it ends."""


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
    """End the client's stream. ``cut``: not as if it were whole."""

    cut: bool = False


GoOn = Get | Relay | Wait | Ask | Heal
Last = Pass | Give | Tell | End
Step = GoOn | Last

_AGAIN = Wait()


@dataclass(frozen=True, slots=True)
class Ended:
    """How the upstream's side of a stream ended: after how long, and whether it broke."""

    generation: int
    lived_s: float
    broke: bool


class Attachment:
    """One GET in a session, or under an id that is not known. ``is_open``: the client has its stream."""

    __slots__ = ("_conflicts_left", "_ended_quickly", "_loss", "_mode", "_position", "_session", "_was_away", "is_open")

    def __init__(self, mode: Mode, session: Session | None, position: Position) -> None:
        """``session`` is the client's own, if it is known."""
        self._mode = mode
        self._session = session
        self._position = position
        self.is_open = False
        self._conflicts_left = 0
        self._ended_quickly = False
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
        self._conflicts_left = CONFLICTS
        self.is_open = True
        if self._session is not None:
            self._session.note_get(is_refused=False)
        return Relay()

    def moved(self) -> Step:
        """A heal came in between: what was asked for would be an earlier upstream session's."""
        return _AGAIN

    def failed(self, fault: Fault) -> Step:
        """There is no answer."""
        if self.may_outlive:
            return self._keep_open(Until.ROUTE if fault.may_have_arrived else Until.CONNECT)
        return self._give(Give(replies.BAD_GATEWAY if fault.may_have_arrived else replies.UNAVAILABLE_PATH))

    def refused(self, judgement: Judgement, status: int) -> Step:
        """The upstream answered with something else than a stream."""
        if status == METHOD_NOT_ALLOWED and self._session is not None and self._position.last_seen is None:
            self._session.note_get(is_refused=True)
        is_conflict = status == CONFLICT and self._conflicts_left > 0
        if judgement.verdict is Verdict.SESSION_LOST or (judgement.verdict is Verdict.ASK and not is_conflict):
            return self._lost(judgement, status)
        if judgement.verdict is Verdict.UNAVAILABLE and not judgement.jsonrpc_body and self.may_outlive:
            return self._keep_open(Until.ROUTE)
        if judgement.verdict is not Verdict.AUTH_FAILURE and self.may_outlive:
            return self._refused_in_session(status)
        return self._pass()

    def healed(self) -> Step:
        """The session stands on a new upstream session."""
        return _AGAIN

    def asked(self, answer: PingAnswer) -> Step:
        """Somebody has asked with a ping."""
        match answer.verdict:
            case PingVerdict.REFUSED:
                return self._loss[0] if self._loss is not None else self._pass()
            case PingVerdict.AWAY:
                return self._keep_open(Until.CONNECT)
            case PingVerdict.GATEWAY | PingVerdict.BUSY:
                return self._keep_open(Until.ROUTE)
            case PingVerdict.ALIVE if self._was_away:
                self._was_away = False  # back between that answer and the ping: the answer still was the ingress's
                return _AGAIN
            case PingVerdict.ALIVE if self._loss is not None:
                return self._refused_in_session(self._loss[1])
            case _:
                return self._pass()

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
                return self._pass()

    def expired(self) -> Step:
        """The heal takes longer than anybody waits: the upstream may well accept connects, so there is no hurry."""
        return self._keep_open(Until.ROUTE)

    def waited(self) -> Step:
        """The wait is over."""
        if self._session is not None and self._session.is_ended:
            return End()
        return self._get(comes_back=True)

    def over(self, watch: StreamWatch, ended: Ended) -> Step:
        """The upstream's side has ended; ``watch`` saw all of it."""
        self._position.advance(watch)
        if self._position.is_answered:
            return End()
        if self.may_outlive and not watch.in_fragment:
            pause_s = self._pause_s(ended.lived_s, watch.retry_ms) if ended.generation == self.generation else 0.0
            return Wait(pause_s=pause_s)
        return End(cut=watch.in_fragment or (ended.broke and self._session is None))

    # -- how it decides -----------------------------------------------------------------------------------------------

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
        self._was_away = True
        if self._session is not None and self._session.refuses_get and not self._position.is_poll and not self.is_open:
            return Give(replies.GET_NOT_SUPPORTED)
        self.is_open = True
        return Wait(until, keeps_open=True)

    def _refused_in_session(self, status: int) -> Step:
        """The session is alive, and the client's stream may be had in another way."""
        if self._position.is_poll:
            return Tell()
        if status == CONFLICT and self._conflicts_left:
            self._conflicts_left -= 1
            return Wait(Until.ROUTE)
        if self.is_open and self._position.last_seen is not None:
            self._position.forget()  # it cannot be resumed here
            return _AGAIN
        return self._pass()

    def _lost(self, judgement: Judgement, status: int) -> Step:
        is_certain = judgement.verdict is Verdict.SESSION_LOST
        self._loss = Heal(judgement.name, is_certain), status
        if not self.may_outlive:
            return self._session_not_found() if is_certain else self._pass()
        if not is_certain and self._position.last_seen is not None:
            self._position.forget()  # perhaps only the resume was refused (rmcp up to 1.4: 500)
            return _AGAIN
        return self._loss[0] if is_certain else Ask(judgement.refusal)

    def _pause_s(self, lived_s: float, retry_ms: int | None) -> float:
        """Once a stream may end at once, as at a restart; a server that does it again is not asked in a loop."""
        is_quick = lived_s < QUICK_END_S
        again, self._ended_quickly = is_quick and self._ended_quickly, is_quick
        return (retry_ms or 0) / 1000 or (QUICK_END_S if again else 0.0)

    # -- what it answers ----------------------------------------------------------------------------------------------

    def _session_not_found(self) -> Step:
        status = self._loss[1] if self._loss is not None else 0
        return self._give(Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST, rewrites=status or None))

    def _give(self, step: Give) -> Step:
        """A stream that is already open can only end."""
        return End() if self.is_open else step

    def _pass(self) -> Step:
        return End() if self.is_open else Pass()
