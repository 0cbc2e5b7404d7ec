"""Whole trips of a listening stream: what is reported, and which step must follow.

A row reads like a story, as in ``test_exchange``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from mcp_sidecar.healing import replies
from mcp_sidecar.healing.attachment import (
    CONFLICT_PAUSE_S,
    CONFLICTS,
    LATE_CONFLICTS,
    QUICK_END_S,
    Attachment,
    End,
    Ended,
    Get,
    Refused,
    Relay,
    Step,
    Tell,
    Until,
    Wait,
)
from mcp_sidecar.healing.exchange import Ask, Give, Heal, Pass, Unhealed
from mcp_sidecar.healing.marked_ids import FIRST, UNMARKED
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.position import Position
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.healing.session import EXPIRY_PAUSE_S, Event
from mcp_sidecar.healing.stream_watch import StreamWatch
from mcp_sidecar.verdicts.classify import NO_SIGNATURE, UNANSWERED, Judgement, Verdict
from mcp_sidecar.verdicts.refusals import PingAnswer, PingVerdict, Refusal
from mcp_sidecar.verdicts.signatures import TABLE
from mcp_sidecar.verdicts.words import Words
from mcp_sidecar.wire.faults import Fault
from tests.healing.test_session import session_in

Report = Callable[[Attachment], Step]
Story = list[tuple[Report, Step]]

ROWS: Final = {row.name: row for row in TABLE}
LOST: Final = Judgement(Verdict.SESSION_LOST, ROWS["python-404"], jsonrpc_body=True)
PERHAPS: Final = Judgement(Verdict.ASK, ROWS["bare-404"], bare_404=True)
NO_STREAM: Final = Judgement(Verdict.OTHER)
REFUSED_US: Final = Judgement(Verdict.AUTH_FAILURE)

# -- who listens -----------------------------------------------------------------------------------------------------


def listening(
    mode: Mode = Mode.HEAL, *, resumes: str | None = None, polls: bool = False, refuses_get: bool = False, **facts: Any
) -> Attachment:
    session = session_in()
    if polls:
        session.note_polled("e1", (7,))
    session.note_get(is_refused=refuses_get)
    for name, value in facts.items():
        setattr(session, name, value)
    return Attachment(mode, session, Position(session, "e1" if polls else resumes))


def stranger(mode: Mode = Mode.HEAL) -> Attachment:
    return Attachment(mode, None, Position(None, None))


# -- reports -----------------------------------------------------------------------------------------------------------


def begin(trip: Attachment) -> Step:
    return trip.begin()


def begin_anew(trip: Attachment) -> Step:
    return trip.begin(replaces_one=True)


def attached(trip: Attachment) -> Step:
    return trip.attached()


def moved(trip: Attachment) -> Step:
    return trip.moved()


def waited(trip: Attachment) -> Step:
    return trip.waited()


def healed(trip: Attachment) -> Step:
    return trip.healed(0.0)


def expired(trip: Attachment) -> Step:
    return trip.expired()


def failed(fault: Fault) -> Report:
    return lambda trip: trip.failed(fault)


def refused(judgement: Judgement, status: int = 404, body: bytes = b"", now: float = 0.0) -> Report:
    return lambda trip: trip.refused(Refused.of(judgement, status, body), now)


def asked(verdict: PingVerdict, *, status: int = 404, now: float = 0.0) -> Report:
    refusal = Refusal(Words(status, "gone")) if verdict is PingVerdict.REFUSED else None
    return lambda trip: trip.asked(PingAnswer(verdict, refusal), now)


def unhealed(why: Unhealed) -> Report:
    return lambda trip: trip.unhealed(why)


def over(
    *,
    lived_s: float = 60.0,
    broke: bool = False,
    in_event: bool = False,
    retry_ms: int | None = None,
    event_id: str | None = None,
) -> Report:
    def report(trip: Attachment) -> Step:
        watch = StreamWatch(UNMARKED, in_fragment=in_event, retry_ms=retry_ms, last_event_id=event_id)
        return trip.over(watch, Ended(FIRST, lived_s, broke))

    return report


AWAY: Final = failed(Fault.UNREACHABLE)
RESET: Final = failed(Fault.BROKEN)

# -- steps -------------------------------------------------------------------------------------------------------------

FIRST_GET: Final = (begin, Get())
STREAM: Final[Story] = [FIRST_GET, (attached, Relay())]
BACK: Final = (waited, Get(comes_back=True))
AGAIN: Final = Wait()
FOR_CONNECT: Final = Wait(Until.CONNECT, keeps_open=True)
FOR_ROUTE: Final = Wait(Until.ROUTE, keeps_open=True)
HEAL: Final = Heal("python-404")
PING_FIRST: Final = Ask(is_remembered=False)
NOT_FOUND: Final = Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST, rewrites=404)
NOTHING_REWRITTEN: Final = Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST)
DISPLACED: Final = Heal("id-minted-anew")

ALIVE: Final = asked(PingVerdict.ALIVE)
GONE: Final = asked(PingVerdict.REFUSED)
REFRESHING: Final = Relay(PingVerdict.ALIVE)
ASKED_HEAL: Final = Heal(NO_SIGNATURE, is_certain=False)
THERE: Final = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Session already exists"}}'
THERE_AT_FIRST: Final[Story] = [BACK, (refused(NO_STREAM, 400, THERE), Ask()), (ALIVE, Wait(Until.ROUTE)), BACK]
STILL_THERE: Final[Story] = [(refused(NO_STREAM, 400, THERE), Wait(Until.ROUTE)), BACK]
LATE: Final[Story] = [(refused(NO_STREAM, 400, THERE), Wait(pause_s=CONFLICT_PAUSE_S)), BACK]
EXPIRES_AND_IS_HEALED: Final[Story] = [(over(), AGAIN), BACK, (refused(LOST), HEAL), (healed, AGAIN), BACK]
IN_CONFLICT: Final[Story] = [(refused(NO_STREAM, 409), Wait(Until.ROUTE)), BACK]

STORIES: Final[dict[str, tuple[Attachment, Story]]] = {
    "a stream that ends is attached again, and its session asked about": (
        listening(),
        [*STREAM, (over(), AGAIN), BACK, (attached, Ask()), (ALIVE, REFRESHING)],
    ),
    "a stream that breaks is attached again": (listening(), [*STREAM, (over(broke=True), AGAIN), BACK]),
    "in the middle of an event it cannot go on: cut": (listening(), [*STREAM, (over(in_event=True), End(cut=True))]),
    "once a stream may end at once, twice is a habit": (
        listening(),
        [
            *STREAM,
            (over(lived_s=0.1), AGAIN),
            BACK,
            (attached, Ask()),
            (ALIVE, REFRESHING),
            (over(lived_s=0.1), Wait(pause_s=QUICK_END_S)),
        ],
    ),
    "the server's own pause": (listening(), [*STREAM, (over(retry_ms=2500), Wait(pause_s=2.5))]),
    "away: kept open, and attached when it is back": (
        listening(),
        [FIRST_GET, (AWAY, FOR_CONNECT), BACK, (AWAY, FOR_CONNECT), BACK, (attached, Ask()), (ALIVE, REFRESHING)],
    ),
    "a reset, or a page in the server's place: no reason to hurry": (
        listening(),
        [FIRST_GET, (RESET, FOR_ROUTE), BACK, (refused(UNANSWERED, 502), FOR_ROUTE)],
    ),
    "away, and known to have no such stream": (
        listening(refuses_get=True),
        [FIRST_GET, (AWAY, Give(replies.GET_NOT_SUPPORTED))],
    ),
    "no such stream: passes": (listening(), [FIRST_GET, (refused(NO_STREAM, 405), Pass())]),
    "no such stream any more: a stream that is open can only end": (
        listening(),
        [*STREAM, (over(), AGAIN), BACK, (refused(NO_STREAM, 405), Ask()), (ALIVE, End(refused_with=405))],
    ),
    "real 401s pass": (listening(), [FIRST_GET, (refused(REFUSED_US, 401), Pass())]),
    "a conflict at first is the upstream's word": (listening(), [FIRST_GET, (refused(NO_STREAM, 409), Pass())]),
    "the upstream learns late that the former stream is closed, but not for ever": (
        listening(),
        [
            (begin_anew, Get()),
            *IN_CONFLICT * CONFLICTS,
            (refused(NO_STREAM, 409), Pass()),
        ],
    ),
    "lost, healed, attached": (listening(), [FIRST_GET, (refused(LOST), HEAL), (healed, AGAIN), BACK]),
    "perhaps lost, and alive: it was about this GET": (
        listening(),
        [FIRST_GET, (refused(PERHAPS), PING_FIRST), (asked(PingVerdict.ALIVE), Pass())],
    ),
    "perhaps lost, and alive, behind an outage: it was the ingress's answer": (
        listening(),
        [
            FIRST_GET,
            (AWAY, FOR_CONNECT),
            BACK,
            (refused(PERHAPS), PING_FIRST),
            (ALIVE, AGAIN),
            BACK,
            (refused(PERHAPS), PING_FIRST),
            (ALIVE, End(refused_with=404)),
        ],
    ),
    "perhaps only the resume was refused": (
        listening(resumes="e1"),
        [FIRST_GET, (refused(PERHAPS, 500), AGAIN), BACK, (refused(PERHAPS), PING_FIRST)],
    ),
    "an open stream that cannot be resumed here begins anew": (
        listening(resumes="e1"),
        [
            FIRST_GET,
            (AWAY, FOR_CONNECT),
            BACK,
            (refused(NO_STREAM, 400), Ask()),
            (ALIVE, AGAIN),
            BACK,
            (refused(NO_STREAM, 400), End(refused_with=400)),
        ],
    ),
    "not restored: the right 404": (
        listening(),
        [FIRST_GET, (refused(LOST), HEAL), (unhealed(Unhealed.NOT_RESTORED), NOT_FOUND)],
    ),
    "not restored under an open stream: it ends": (
        listening(),
        [
            *STREAM,
            (over(), AGAIN),
            BACK,
            (refused(LOST), HEAL),
            (unhealed(Unhealed.NOT_RESTORED), End(refused_with=404)),
        ],
    ),
    "credentials refused: that refusal passes": (
        listening(),
        [FIRST_GET, (refused(LOST), HEAL), (unhealed(Unhealed.UNAUTHORIZED), Pass())],
    ),
    "nobody to heal it: kept open": (
        listening(),
        [FIRST_GET, (refused(LOST), HEAL), (unhealed(Unhealed.UNREACHABLE), FOR_CONNECT), BACK],
    ),
    "no route to heal it": (listening(), [FIRST_GET, (refused(LOST), HEAL), (unhealed(Unhealed.NO_ROUTE), FOR_ROUTE)]),
    "no end of the heal": (listening(), [FIRST_GET, (refused(LOST), HEAL), (expired, FOR_ROUTE)]),
    "a server that takes any id: the ping shows the loss": (
        listening(),
        [
            *STREAM,
            (over(broke=True), AGAIN),
            BACK,
            (attached, Ask()),
            (GONE, ASKED_HEAL),
            (healed, AGAIN),
            BACK,
            (attached, Relay()),
        ],
    ),
    "what was asked about once is not asked about again": (
        listening(),
        [*STREAM, (over(), AGAIN), *THERE_AT_FIRST, *STILL_THERE, (attached, REFRESHING)],
    ),
    "there already, for three minutes: tried again, whatever the status": (
        listening(),
        [*STREAM, (over(), AGAIN), *THERE_AT_FIRST, *STILL_THERE * (CONFLICTS - 1), *LATE * 34, (attached, REFRESHING)],
    ),
    "there already, for ever: the server's word": (
        listening(),
        [
            *STREAM,
            (over(), AGAIN),
            *THERE_AT_FIRST,
            *STILL_THERE * (CONFLICTS - 1),
            *LATE * LATE_CONFLICTS,
            (refused(NO_STREAM, 400, THERE), End(refused_with=400)),
        ],
    ),
    "lost in words of its own: asking shows it": (
        listening(),
        [*STREAM, (over(broke=True), AGAIN), BACK, (refused(NO_STREAM, 400), Ask()), (GONE, ASKED_HEAL)],
    ),
    "a stream that is there is never let go for an ingress's answer to a ping": (
        listening(),
        [
            *STREAM,
            (over(broke=True), AGAIN),
            BACK,
            (attached, Ask()),
            (asked(PingVerdict.GATEWAY), Relay(PingVerdict.GATEWAY)),
        ],
    ),
    "refused, and the ping meets nobody": (
        listening(),
        [
            *STREAM,
            (over(broke=True), AGAIN),
            BACK,
            (refused(NO_STREAM, 400), Ask()),
            (asked(PingVerdict.AWAY), FOR_CONNECT),
            BACK,
            (refused(NO_STREAM, 400), Ask()),
            (asked(PingVerdict.BUSY), FOR_ROUTE),
        ],
    ),
    "a heal while it was asked": (
        listening(),
        [*STREAM, (over(), AGAIN), BACK, (attached, Ask()), (moved, AGAIN), BACK, (attached, Relay())],
    ),
    "ended in order to be polled: no break": (
        listening(),
        [*STREAM, (over(event_id="e9"), AGAIN), BACK, (attached, Relay())],
    ),
    "real 401s behind a break are nobody's to ask about": (
        listening(),
        [*STREAM, (over(), AGAIN), BACK, (refused(REFUSED_US, 401), End(refused_with=401))],
    ),
    "expired while nobody calls: healed at once, then ever more rarely": (
        listening(),
        [
            *STREAM,
            *EXPIRES_AND_IS_HEALED,
            (attached, Relay()),
            (over(), AGAIN),
            BACK,
            (refused(LOST, now=EXPIRY_PAUSE_S - 1), Wait(keeps_open=True, pause_s=1.0)),
            BACK,
            (refused(LOST, now=EXPIRY_PAUSE_S), HEAL),
        ],
    ),
    "lost behind a break: healed at once, whenever that was": (
        listening(),
        [
            *STREAM,
            *EXPIRES_AND_IS_HEALED,
            (attached, Relay()),
            (over(broke=True), AGAIN),
            BACK,
            (refused(LOST), HEAL),
        ],
    ),
    "healed by another one meanwhile": (listening(), [FIRST_GET, (moved, AGAIN), BACK]),
    "its id is another session's: nothing is asked under it": (
        listening(displaced=True),
        [(begin, DISPLACED), (unhealed(Unhealed.NOT_RESTORED), NOTHING_REWRITTEN)],
    ),
    "a poll for what died with its upstream session": (listening(polls=True, generation=2), [(begin, Tell())]),
    "a poll that the server does not know": (listening(polls=True), [FIRST_GET, (refused(NO_STREAM, 400), Tell())]),
    "an id that nobody knows: passes, and is not kept open": (
        stranger(),
        [FIRST_GET, (attached, Relay()), (over(), End())],
    ),
    "an id that nobody knows, broken off": (
        stranger(),
        [FIRST_GET, (attached, Relay()), (over(broke=True), End(cut=True))],
    ),
    "an id that nobody knows, and away": (stranger(), [FIRST_GET, (AWAY, Give(replies.UNAVAILABLE_PATH))]),
    "an id that nobody knows, and a reset": (stranger(), [FIRST_GET, (RESET, Give(replies.BAD_GATEWAY))]),
    "an id that nobody knows, and lost": (stranger(), [FIRST_GET, (refused(LOST), NOT_FOUND)]),
    "rewrite: the right 404": (listening(Mode.REWRITE), [FIRST_GET, (refused(LOST), NOT_FOUND)]),
    "rewrite: asks nobody": (listening(Mode.REWRITE), [FIRST_GET, (refused(PERHAPS), Pass())]),
    "rewrite: ends with the upstream's side": (listening(Mode.REWRITE), [*STREAM, (over(), End())]),
    "rewrite: an id that is another session's": (
        listening(Mode.REWRITE, displaced=True),
        [(begin, NOTHING_REWRITTEN)],
    ),
}


@pytest.mark.parametrize(("trip", "story"), STORIES.values(), ids=STORIES)
def test_trip(trip: Attachment, story: Story) -> None:
    """Each report is followed by exactly this step."""
    assert [report(trip) for report, _ in story] == [step for _, step in story]


def test_a_session_that_ends_takes_its_stream_along() -> None:
    """Behind a DELETE, or a heal that gave it up, there is nothing to come back for."""
    session = session_in()
    trip = Attachment(Mode.HEAL, session, Position(session, None))
    assert [trip.begin(), trip.failed(Fault.UNREACHABLE)] == [Get(), FOR_CONNECT]
    session.fire(Event.ENDED)
    assert trip.waited() == End()


def test_what_is_learned_of_the_servers_streams() -> None:
    """A 405 to a client that listens is remembered, until a stream is had; one to a resume says nothing."""
    session = session_in()
    Attachment(Mode.HEAL, session, Position(session, "e1")).refused(Refused(NO_STREAM, 405), 0.0)
    assert not session.refuses_get
    trip = Attachment(Mode.HEAL, session, Position(session, None))
    trip.refused(Refused(NO_STREAM, 405), 0.0)
    assert session.refuses_get
    trip.attached()
    assert not session.refuses_get
