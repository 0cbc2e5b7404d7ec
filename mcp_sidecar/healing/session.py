"""One client session across upstream sessions, as it lives in this process.

The law of this file: the client-visible id never changes; the upstream id behind it changes only by ``repoint``, which
is the one place that raises the generation. A *generation* is the n-th upstream session behind one client session, as this
process counts them; the first is that of the client's own ``initialize``, and no other. Whoever sends a request remembers
the generation that it was sent under: a loss reported by an older generation is no news. States change only along
``TRANSITIONS``; the diagram in the documentation is drawn from the same table.

What must outlive the process is the ``record``, a frozen value that methods of this class replace; everything else here is
gone with the process, and nothing that a client could miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Any, Final

from mcp_sidecar.healing.client_state import ClientState
from mcp_sidecar.healing.findings import Findings
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.hints import Hint, question_cancelled, resource_updated
from mcp_sidecar.healing.lists import SeenLists
from mcp_sidecar.healing.marked_ids import FIRST, Mark, Marks
from mcp_sidecar.healing.polled_streams import PolledStreams
from mcp_sidecar.healing.principal import Accepted, Identity, Principal
from mcp_sidecar.healing.progress import Progress
from mcp_sidecar.healing.questions import Questions
from mcp_sidecar.healing.record import ClientSessionId, Instance, SessionRecord, UpstreamSessionId
from mcp_sidecar.healing.replay import updated as updated_tools
from mcp_sidecar.wire.cookies import Cookies
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Message

__all__ = ["ClientSessionId", "Event", "InvalidTransition", "Session", "State", "UpstreamSessionId", "diagram"]


class State(StrEnum):
    """Where a session stands."""

    ESTABLISHED = "established"
    HEALING = "healing"
    LOST = "lost"
    ENDED = "ended"


class Event(StrEnum):
    """What can happen to a session."""

    LOSS_SEEN = "loss seen"
    HEALED = "healed"
    ALIVE_AFTER_ALL = "alive after all"
    NOT_HEALED = "not healed"
    DISPLACED = "id minted anew for another session"
    ENDED = "ended"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.ESTABLISHED, Event.LOSS_SEEN): State.HEALING,
    (State.ESTABLISHED, Event.DISPLACED): State.LOST,
    (State.ESTABLISHED, Event.ENDED): State.ENDED,
    (State.HEALING, Event.HEALED): State.ESTABLISHED,
    (State.HEALING, Event.ALIVE_AFTER_ALL): State.ESTABLISHED,
    (State.HEALING, Event.NOT_HEALED): State.LOST,
    (State.HEALING, Event.DISPLACED): State.HEALING,
    (State.HEALING, Event.ENDED): State.ENDED,
    (State.LOST, Event.LOSS_SEEN): State.HEALING,
    (State.LOST, Event.DISPLACED): State.LOST,
    (State.LOST, Event.ENDED): State.ENDED,
    (State.ENDED, Event.HEALED): State.ENDED,
    (State.ENDED, Event.ALIVE_AFTER_ALL): State.ENDED,
    (State.ENDED, Event.NOT_HEALED): State.ENDED,
    (State.ENDED, Event.ENDED): State.ENDED,
}


def diagram() -> str:
    """The state diagram in Mermaid's language, for ``docs/architecture.md``; what changes no state is left out."""
    edges: dict[tuple[State, State], list[str]] = {}
    for (before, event), after in TRANSITIONS.items():
        if before is not after:
            edges.setdefault((before, after), []).append(event.value)
    lines = [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in edges.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.ESTABLISHED}", *lines, f"    {State.ENDED} --> [*]"])


EXPIRY_PAUSE_S = 4.0
MAX_EXPIRY_PAUSE_S = 3600.0
"""While nobody calls, a session that its server lets expire is healed again only after so long, then twice as long."""

MOVE_PAUSE_S = 60.0
"""How often the upstream is followed where it answers under another id: some mint one with every answer, and keep none."""


class InvalidTransition(Exception):
    """A bug of the sidecar: an event that cannot happen in this state."""


@dataclass(slots=True)
class Activity:
    """What goes on in a session at this moment.

    ``posts`` are the client's POSTs under way, ``streams`` its open GET streams, ``exchanges`` all its requests that are not
    at their end yet. ``refuses_get``: the upstream's latest answer to a GET was a 405.
    """

    posts: int = 0
    streams: int = 0
    exchanges: int = 0
    refuses_get: bool = False


@dataclass(slots=True)
class HealBudget:
    """The heals of one session. ``failed`` counts those in a row that did not restore it.

    ``recent`` are the times at which one was charged, ``told_lost`` is the latest generation whose loss was told.
    ``expiries`` counts the sessions that the server let expire, each healed, since the client has last called; the latest
    heal of one was at ``expiry_at``. At ``moved_at`` the upstream has last gone on under another id by itself.
    """

    recent: tuple[float, ...] = ()
    failed: int = 0
    told_lost: int = 0
    expiries: int = 0
    expiry_at: float = -inf
    moved_at: float = -inf


@dataclass(slots=True)
class Talk:
    """What was said in a session and is not settled yet.

    ``hints`` wait for an answer that can carry them. ``lists`` are those that the client has seen; ``list_check_due`` from a
    heal until somebody has begun to compare them. ``told_restart``: the model knows of the latest heal.
    ``findings`` are those of the pings.
    """

    questions: Questions | None = None
    progress: Progress = field(default_factory=Progress)
    polled: PolledStreams | None = None
    hints: tuple[Hint, ...] = ()
    lists: SeenLists | None = None
    list_check_due: bool = False
    told_restart: bool = True
    findings: Findings | None = None


@dataclass(slots=True, eq=False)
class Session:
    """A client session and the upstream session that stands behind it now.

    ``label`` is the short salted hash that logs and the admin page show. ``instance`` is the key of this process's upstream
    in the record. Times are seconds of a monotonic clock that the owner reads. ``displaced``: nothing stands behind it here,
    since its upstream id has become another session's, or none was ever minted at this instance; it is healed before its
    next request. ``is_new_here``: that, and it was opened elsewhere. ``cookies`` are those of load balancers that lead to the
    upstream session.
    """

    client_id: Final[ClientSessionId]
    record: SessionRecord
    label: Final[str]
    instance: Final[str]
    marks: Marks
    opened_at: Final[float]
    last_used_at: float
    upstream_id: UpstreamSessionId | None = field(init=False)
    generation: int = field(init=False, default=FIRST)
    state: State = field(init=False, default=State.ESTABLISHED)
    displaced: bool = field(init=False, default=False)
    is_new_here: bool = field(init=False, default=False)
    accepted: Accepted = field(init=False)
    cookies: Cookies = field(init=False, default=(), repr=False)
    activity: Final[Activity] = field(init=False, default_factory=Activity)
    _heals: HealBudget | None = field(init=False, default=None)
    talk: Final[Talk] = field(init=False, default_factory=Talk)

    def __post_init__(self) -> None:
        """Stand where the record says, if it says anything of this instance.

        Only the upstream session of the original ``initialize`` is unmarked, and hence of the first generation.
        """
        self.accepted = Accepted(self.record.principal, self.record.accepted)
        here = self.record.at(self.instance)
        self.upstream_id = here.upstream_id if here is not None else None
        self.cookies = here.cookies if here is not None else ()
        if here is None:
            self.state, self.displaced, self.is_new_here = State.LOST, True, True
        if here is None or here.word:
            self.generation = FIRST + 1
        if self.record.lists:
            self.talk.lists = SeenLists.of(self.record.lists, self.generation)

    # -- what outlives the process ------------------------------------------------------------------------------------

    @property
    def handshake(self) -> Handshake:
        """The client's ``initialize``."""
        return self.record.handshake

    @property
    def principal(self) -> Principal:
        """Whose session it is."""
        return self.record.principal

    @property
    def client_state(self) -> ClientState:
        """What a new upstream session must be told."""
        return self.record.client_state

    @property
    def safe_tools(self) -> frozenset[str]:
        """The tools that may be called again in doubt, as far as their server has said so."""
        return self.record.safe_tools

    def learnt(self, request: Message) -> None:
        """The server has taken what the next one must be told."""
        state = self.record.client_state.learnt(request)
        if state is not self.record.client_state:
            self.record = replace(self.record, client_state=state)

    def learnt_tools(self, result: Mapping[str, Any], *, is_first_page: bool) -> None:
        """The client is given one page of ``tools/list``."""
        tools = updated_tools(self.safe_tools, result, is_first_page=is_first_page)
        if tools != self.safe_tools:
            self.record = replace(self.record, safe_tools=tools)

    def learnt_list(self, method: str, cursor: str | None, result: Mapping[str, Any], generation: int) -> None:
        """The client is given one page of a list that is to be compared after a heal."""
        self.talk.lists = self.talk.lists or SeenLists()
        self.talk.lists.see(method, cursor, result, generation)
        if self.talk.lists.digests != self.record.lists:
            self.record = replace(self.record, lists=self.talk.lists.digests)

    # -- whose it is --------------------------------------------------------------------------------------------------

    def accept(self, identity: Identity) -> None:
        """The upstream has accepted this credential in the session."""
        self.accepted = self.accepted.and_also(identity)
        if self.accepted.identities is not self.record.accepted:
            self.record = replace(self.record, accepted=self.accepted.identities)

    def belong_to(self, principal: Principal) -> None:
        """Whose it is under another secret: what was accepted is not known under that."""
        self.record = replace(self.record, principal=principal, accepted=())
        self.accepted = Accepted(principal)

    def may_be_claimed_by(self, identity: Identity) -> bool:
        """Whether the upstream may be asked to accept another principal's credential in it.

        Only a server that told sessions apart could say so.
        """
        return self.upstream_id is not None and self.accepted.may_be_followed_by(identity)

    # -- states and generations ---------------------------------------------------------------------------------------

    def fire(self, event: Event) -> None:
        """Take one transition. Nothing changes where the table has no row."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise InvalidTransition(f"{event.value} while {self.state.value}") from None

    def repoint(self, upstream_id: UpstreamSessionId | None, *, tools_still_hold: bool, cookies: Cookies = ()) -> None:
        """A heal succeeded: from now on ``upstream_id`` stands behind the client's id (none: it became stateless)."""
        self.fire(Event.HEALED)
        if self.state is State.ENDED:
            return
        self.upstream_id, self.cookies = upstream_id, cookies
        self.generation += 1
        self.displaced = self.is_new_here = False
        self.heals.failed = 0
        self.talk.list_check_due = True
        self.talk.told_restart = False
        word = self.mark_of(self.generation).word
        healed = self.record.standing_at(Instance(self.instance, upstream_id, word, cookies))
        self.record = healed if tools_still_hold else replace(healed, safe_tools=frozenset())

    def follow(self) -> None:
        """Another process has healed it at this very instance, as the record says by now: go on there."""
        here = self.record.at(self.instance)
        assert here is not None, "somebody has healed it"
        if self.state is not State.HEALING:
            self.fire(Event.LOSS_SEEN)
        self.fire(Event.HEALED)
        self.upstream_id, self.cookies = here.upstream_id, here.cookies
        self.generation += 1
        self.marks = self.marks.with_word(self.generation, here.word)
        self.displaced = self.is_new_here = False
        self.heals.failed = 0
        self.talk.list_check_due = True

    def displace(self) -> None:
        """The upstream has given this session's id to another one: it must not be used again, here or in a later process."""
        self.fire(Event.DISPLACED)
        self.displaced = True
        self.record = self.record.not_at(self.instance)

    def mark_of(self, generation: int) -> Mark:
        """What ids of this generation bear, as the client sees them."""
        return self.marks.of(generation)

    @property
    def is_ended(self) -> bool:
        """Whether the client ended it, or it expired, or was given up."""
        return self.state is State.ENDED

    # -- the heals ----------------------------------------------------------------------------------------------------

    @property
    def heals(self) -> HealBudget:
        """What there is to say of its heals; most sessions never see one."""
        if self._heals is None:
            self._heals = HealBudget()
        return self._heals

    def heals_within(self, seconds: float, now: float) -> int:
        """How many heals were tried in the last ``seconds``; forgets the older ones."""
        self.heals.recent = tuple(at for at in self.heals.recent if now - at < seconds)
        return len(self.heals.recent)

    def note_heal(self, now: float) -> None:
        """Count one heal against the budget."""
        self.heals.recent = (*self.heals.recent, now)

    @property
    def healed_at(self) -> float | None:
        """When a heal of it was begun last, in monotonic seconds."""
        return self._heals.recent[-1] if self._heals is not None and self._heals.recent else None

    def not_healed(self, *, is_counted: bool) -> None:
        """A heal has ended without success. ``is_counted``: a server may have taken its ``initialize``."""
        self.heals.failed += is_counted
        self.fire(Event.NOT_HEALED)

    def expiry_pause_s(self, now: float) -> float:
        """How long a session that its server let expire is not healed again, while nobody calls."""
        if not self.heals.expiries:
            return 0.0
        pause_s = min(EXPIRY_PAUSE_S * 2.0 ** min(self.heals.expiries - 1, 32), MAX_EXPIRY_PAUSE_S)
        return max(0.0, self.heals.expiry_at + pause_s - now)

    def note_expiry_healed(self, now: float) -> None:
        """The server had let the session expire, and it is whole again."""
        self.heals.expiries += 1
        self.heals.expiry_at = now

    def may_move(self, now: float) -> bool:
        """Whether the session may go on under another id that its upstream shows by itself."""
        is_whole = self.state is State.ESTABLISHED and not self.displaced
        return is_whole and now - self.heals.moved_at >= MOVE_PAUSE_S

    def move(self, upstream_id: UpstreamSessionId, now: float) -> None:
        """The upstream has opened this session by itself, and the same server answers: a new generation, and no news."""
        self.heals.moved_at = now
        self.fire(Event.LOSS_SEEN)
        self.repoint(upstream_id, tools_still_hold=True, cookies=self.cookies)
        self.note_told_restart()

    def note_told_lost(self, generation: int) -> bool:
        """The loss of this generation is about to be told: whether that is news."""
        is_news = self.heals.told_lost < generation
        if is_news:
            self.heals.told_lost = generation
        return is_news

    # -- what goes on -------------------------------------------------------------------------------------------------

    @property
    def posts(self) -> int:
        """The client's POSTs under way."""
        return self.activity.posts

    @property
    def streams(self) -> int:
        """The client's open GET streams."""
        return self.activity.streams

    @property
    def exchanges(self) -> int:
        """All requests of the client that are not at their end yet."""
        return self.activity.exchanges

    @property
    def refuses_get(self) -> bool:
        """Whether the upstream's latest answer to a GET was a 405."""
        return self.activity.refuses_get

    def post_begins(self, message: Message) -> None:
        """A POST of the client is under way, until ``post_ends``."""
        self.activity.posts += 1
        self.talk.progress.begins(message)
        if self._heals is not None and message.requests:
            self._heals.expiries = 0
        if not self.record.is_used and any(request.method == "tools/call" for request in message.requests):
            self.record = replace(self.record, is_used=True)

    def post_ends(self) -> None:
        """It is not any more."""
        self.activity.posts -= 1

    def stream_opens(self) -> None:
        """The client listens on one GET stream more, until ``stream_ends``."""
        self.activity.streams += 1

    def stream_ends(self) -> None:
        """It does not any more."""
        self.activity.streams -= 1

    def note_get(self, *, is_refused: bool) -> None:
        """What the upstream makes of a GET: refused for good with a 405, or answered."""
        self.activity.refuses_get = is_refused

    # -- what was said ------------------------------------------------------------------------------------------------

    @property
    def hints(self) -> tuple[Hint, ...]:
        """What the client is to be told and could not be yet."""
        return self.talk.hints

    def keep_hints(self, hints: tuple[Hint, ...]) -> None:
        """These wait from now on, and no others."""
        self.talk.hints = hints

    def take_hints(self) -> tuple[Hint, ...]:
        """What waits, which somebody is about to tell."""
        hints, self.talk.hints = self.talk.hints, ()
        return hints

    def hints_after_heal(self, *, missed_nothing: bool = False) -> list[Hint]:
        """What to tell the client of a heal: its dead questions, and the resources to be read again.

        ``missed_nothing``: the server went on all the time.

        A subscription that was not restored is among them: the client's own reading then meets what is wrong.
        """
        questions = self.talk.questions
        dead = questions.take_dead(self.generation) if questions is not None else ()
        missed = () if missed_nothing else self.client_state.subscriptions
        return [*map(question_cancelled, dead), *map(resource_updated, missed)]

    def heard(self, message: Message, mark: Mark) -> None:
        """A message of the server goes to the client."""
        if self.talk.questions is None:
            self.talk.questions = Questions()
        self.talk.questions.heard(message, mark)

    def answered(self, message: Message) -> None:
        """A message of the client has come; it may answer questions."""
        if self.talk.questions is not None:
            self.talk.questions.answered(message)

    @property
    def progress(self) -> Progress:
        """What the client has seen of the progress of its calls."""
        return self.talk.progress

    @property
    def lists(self) -> SeenLists | None:
        """The lists that the client has seen."""
        return self.talk.lists

    @property
    def list_check_due(self) -> bool:
        """Whether nobody has begun to compare the lists since the latest heal."""
        return self.talk.list_check_due

    def list_check_begins(self) -> None:
        """Somebody compares them now."""
        self.talk.list_check_due = False

    @property
    def told_restart(self) -> bool:
        """Whether the model knows of the latest heal."""
        return self.talk.told_restart

    def note_told_restart(self) -> None:
        """It does now."""
        self.talk.told_restart = True

    def note_polled(self, seen_event_id: str, waiting: Iterable[JsonRpcId]) -> None:
        """The upstream ended the stream of these requests in order to be polled for the rest, from this event on."""
        if self.talk.polled is None:
            self.talk.polled = PolledStreams()
        self.talk.polled.note(seen_event_id, waiting)

    def polled_from(self, seen_event_id: str | None) -> tuple[JsonRpcId, ...]:
        """The requests that a client which resumes behind this event still waits for."""
        return self.talk.polled.behind(seen_event_id) if self.talk.polled is not None else ()
