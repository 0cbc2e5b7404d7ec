"""Whole trips of a message: what is reported, and which step must follow.

A row reads like a story: the exchange, then pairs of a report and the step that answers it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import pytest

from mcp_sidecar.facts import ReplayCause
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.exchange import (
    MAX_HEALS,
    Ask,
    Awaited,
    Exchange,
    Give,
    Heal,
    Hold,
    Pass,
    Send,
    Step,
    Unhealed,
)
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.healing.stream_watch import AfterEnd
from mcp_sidecar.verdicts.classify import UNANSWERED, Judgement, SessionKnowledge, Verdict
from mcp_sidecar.verdicts.refusals import AWAY as NO_CONNECTION
from mcp_sidecar.verdicts.refusals import BROKEN, PingAnswer, PingVerdict, Refusal
from mcp_sidecar.verdicts.signatures import TABLE
from mcp_sidecar.verdicts.words import Words
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.jsonrpc import UNREAD, Message
from tests.healing import samples

Report = Callable[[Exchange], Step | None]
Story = list[tuple[Report, Step | None]]

CALL: Final = samples.call()
LIST: Final = samples.request("tools/list")
INITIALIZE: Final = samples.request("initialize")
RESPONSE: Final = samples.response()
INITIALIZED: Final = samples.notification("notifications/initialized")
CANCELLED: Final = samples.notification("notifications/cancelled", requestId=7)
PROGRESS: Final = samples.notification("notifications/progress", progressToken=7, progress=1)

ROWS: Final = {row.name: row for row in TABLE}
SAID: Final = Refusal(Words(404, "session not found"))
OTHERWISE: Final = Refusal(Words(404, "no such session"))
NOTHING: Final = Refusal(Words(404, ""))
PROVEN: Final = Judgement(Verdict.SESSION_LOST, ROWS["python-404"], jsonrpc_body=True, refusal=SAID)
BARE_404: Final = Judgement(Verdict.ASK, ROWS["bare-404"], bare_404=True, refusal=NOTHING)
PERHAPS: Final = Judgement(Verdict.ASK, refusal=OTHERWISE)
ROUTE_404: Final = Judgement(Verdict.OTHER, bare_404=True)
PAGE: Final = UNANSWERED
SERVERS_503: Final = Judgement(Verdict.UNAVAILABLE, jsonrpc_body=True)

NEVER: Final = (Judgement(Verdict.OK), Judgement(Verdict.OTHER), Judgement(Verdict.AUTH_FAILURE), SERVERS_503)
"""Judgements that leave nothing to do but to pass the answer on."""


def exchange(message: Message = CALL, mode: Mode = Mode.HEAL, **facts: Any) -> Exchange:
    is_safe = message in (LIST, INITIALIZE, INITIALIZED)
    defaults = {"session": SessionKnowledge.BOUND, "is_safe": lambda: is_safe}
    return Exchange(message=message, mode=mode, **{**defaults, **facts})


# -- reports -------------------------------------------------------------------------------------------------------


def begin(trip: Exchange) -> Step:
    return trip.begin()


def displaced(trip: Exchange) -> Step:
    return trip.displaced()


def answered(judgement: Judgement, status: int = 404) -> Report:
    return lambda trip: trip.judged(judgement, status)


def failed(fault: Fault) -> Report:
    return lambda trip: trip.failed(fault)


def healed(trip: Exchange) -> Step:
    return trip.healed()


def asked(verdict: PingVerdict, refusal: Refusal | None = None) -> Report:
    return lambda trip: trip.asked(PingAnswer(verdict, refusal))


ALIVE: Final = asked(PingVerdict.ALIVE)


def lost(refusal: Refusal) -> Report:
    return asked(PingVerdict.REFUSED, refusal)


def unhealed(why: Unhealed) -> Report:
    return lambda trip: trip.unhealed(why)


def back(trip: Exchange) -> Step:
    return trip.back()


def expired(trip: Exchange) -> Step:
    return trip.expired()


def cancelled(trip: Exchange) -> Step:
    return trip.cancelled()


def broke(after: AfterEnd) -> Report:
    return lambda trip: trip.stream_broke(after)


REFUSED: Final = failed(Fault.UNREACHABLE)
RESET: Final = failed(Fault.BROKEN)

# -- steps ---------------------------------------------------------------------------------------------------------

FIRST: Final = (begin, Send())
AFTER_LOSS: Final = Send(ReplayCause.SESSION_LOST)
NOT_SENT: Final = Send(ReplayCause.NOT_SENT)
IN_DOUBT: Final = Send(ReplayCause.AMBIGUOUS_SAFE, renumber=True)
CONNECT: Final = Hold(Awaited.CONNECT)
ROUTE: Final = Hold(Awaited.ROUTE)
HEAL: Final = Heal("python-404")
HEAL_DISPLACED: Final = Heal("id-minted-anew")
HEAL_ASKED: Final = Heal("unnamed", is_certain=False)
ASK: Final = Ask(SAID, elsewhere=True)
ASK_NEW: Final = Ask(SAID, elsewhere=True, is_new=True)
ASK_OTHERWISE: Final = Ask(OTHERWISE, elsewhere=True)
ASK_NOTHING: Final = Ask(NOTHING, is_remembered=False)
ACCEPTED: Final = Give(replies.ACCEPTED)
DROPPED: Final = Give(replies.ACCEPTED, drops=True)
UNAVAILABLE_503: Final = Give(replies.unavailable(1), reason=Reason.UPSTREAM_UNAVAILABLE)
UNAVAILABLE_IN_DOUBT: Final = Give(replies.unavailable(1, may_have_run=True), reason=Reason.UPSTREAM_UNAVAILABLE)


def error(reason: Reason, message: Message = CALL) -> Give:
    return Give(replies.in_session(message, reason), reason=reason)


def undelivered(reason: Reason) -> Give:
    return Give(replies.ACCEPTED, reason=reason, drops=True)


def not_found(rewrites: int | None = 404) -> Give:
    return Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST, rewrites=rewrites)


AWAY: Final = error(Reason.UPSTREAM_UNAVAILABLE)
UNKNOWN: Final = error(Reason.OUTCOME_UNKNOWN)
GIVEN_UP: Final = error(Reason.CANCELLED)

LOST_AND_HEALED: Final[Story] = [(answered(PROVEN), ASK), (lost(SAID), HEAL), (healed, AFTER_LOSS)]
LOST_AGAIN: Final[Story] = [(answered(PROVEN), ASK_NEW), (lost(SAID), HEAL), (healed, AFTER_LOSS)]
GIVEN_AWAY: Final[Story] = [(displaced, HEAL_DISPLACED), (healed, Send())]

LOSS: Final[dict[str, tuple[Exchange, Story]]] = {
    "safe: healed at once and sent again": (exchange(LIST), [FIRST, (answered(PROVEN), HEAL), (healed, AFTER_LOSS)]),
    "unsafe: a ping refused in the same words proves that it did not run": (
        exchange(),
        [FIRST, *LOST_AND_HEALED, (answered(NEVER[0], 200), Pass())],
    ),
    "refused in other words: healed, and it may have run": (
        exchange(),
        [FIRST, (answered(PROVEN), ASK), (lost(OTHERWISE), HEAL), (healed, UNKNOWN)],
    ),
    "words that no row knows": (
        exchange(),
        [FIRST, (answered(PERHAPS), ASK_OTHERWISE), (lost(OTHERWISE), HEAL_ASKED), (healed, AFTER_LOSS)],
    ),
    "alive: the answer passes to its sender": (
        exchange(),
        [FIRST, (answered(PERHAPS), ASK_OTHERWISE), (ALIVE, Pass(to_sender=True))],
    ),
    "alive after the strongest words": (exchange(), [FIRST, (answered(PROVEN), ASK), (ALIVE, Pass(to_sender=True))]),
    "another server knows it: sent again in the same session": (
        exchange(),
        [FIRST, (answered(PROVEN), ASK), (asked(PingVerdict.ELSEWHERE, SAID), NOT_SENT)],
    ),
    "after a heal the same words may be a tool's that ran": (
        exchange(),
        [FIRST, *LOST_AND_HEALED, (answered(PROVEN), ASK_NEW), (ALIVE, Pass(to_sender=True))],
    ),
    "after a heal the same words, and a ping refused in others": (
        exchange(),
        [FIRST, *LOST_AND_HEALED, (answered(PROVEN), ASK_NEW), (lost(OTHERWISE), HEAL), (healed, UNKNOWN)],
    ),
    "the route was missing, and the tool says the same": (
        exchange(),
        [
            FIRST,
            (answered(BARE_404), ASK_NOTHING),
            (lost(NOTHING), Heal("bare-404", is_certain=False)),
            (unhealed(Unhealed.NO_ROUTE), ROUTE),
            (back, Ask()),
            (ALIVE, NOT_SENT),
            (answered(BARE_404), ASK_NOTHING),
            (ALIVE, Pass(to_sender=True)),
        ],
    ),
    "the second loss of a safe message is asked about": (
        exchange(LIST),
        [FIRST, (answered(PROVEN), HEAL), (healed, AFTER_LOSS), (answered(PROVEN), ASK_NEW)],
    ),
    "lost again after each heal: no third one": (
        exchange(),
        [FIRST, *LOST_AND_HEALED, *LOST_AGAIN, (answered(PROVEN, 400), not_found(400))],
    ),
    "not restored": (
        exchange(LIST),
        [FIRST, (answered(PROVEN, 400), HEAL), (unhealed(Unhealed.NOT_RESTORED), not_found(400))],
    ),
    "credentials refused: that refusal passes": (
        exchange(LIST),
        [FIRST, (answered(PROVEN), HEAL), (unhealed(Unhealed.UNAUTHORIZED), Pass())],
    ),
    "unknown id: the right 404, nothing else": (
        exchange(session=SessionKnowledge.UNKNOWN),
        [FIRST, (answered(PROVEN, 400), not_found(400))],
    ),
    "a gateway in between: asked until somebody answers": (
        exchange(),
        [
            FIRST,
            (answered(PROVEN), ASK),
            (lambda trip: trip.asked(BROKEN), Hold(Awaited.ROUTE, is_in_question=True)),
            (back, ASK),
            (lost(SAID), HEAL),
            (healed, AFTER_LOSS),
        ],
    ),
    "no connection in between, and none in time": (
        exchange(),
        [
            FIRST,
            (answered(PROVEN), ASK),
            (lambda trip: trip.asked(NO_CONNECTION), Hold(Awaited.CONNECT, is_in_question=True)),
            (expired, UNKNOWN),
        ],
    ),
    "no time, in the same words: nothing ran": (
        exchange(),
        [
            FIRST,
            (answered(PERHAPS), ASK_OTHERWISE),
            (asked(PingVerdict.BUSY, OTHERWISE), Hold(Awaited.TURN)),
            (back, Ask()),
            (ALIVE, NOT_SENT),
        ],
    ),
    "the route is missing, and back before the next ping": (
        exchange(),
        [
            FIRST,
            (answered(BARE_404), ASK_NOTHING),
            (lost(NOTHING), Heal("bare-404", is_certain=False)),
            (unhealed(Unhealed.NO_ROUTE), ROUTE),
            (back, Ask()),
            (ALIVE, NOT_SENT),
        ],
    ),
    "initialized: the heal says it": (
        exchange(INITIALIZED),
        [FIRST, (answered(PROVEN), HEAL), (healed, ACCEPTED)],
    ),
    "cancelled: about a request that died": (exchange(CANCELLED), [FIRST, (answered(PROVEN), DROPPED)]),
    "a response never goes to another session": (exchange(RESPONSE), [FIRST, (answered(PROVEN), DROPPED)]),
    "a response that was asked about is dropped": (
        exchange(RESPONSE),
        [FIRST, (answered(BARE_404), ASK_NOTHING), (lost(NOTHING), DROPPED)],
    ),
}

DISPLACED: Final[dict[str, tuple[Exchange, Story]]] = {
    "healed before anything is sent, which is no replay": (
        exchange(),
        [FIRST, (displaced, HEAL_DISPLACED), (healed, Send()), (answered(NEVER[0], 200), Pass())],
    ),
    "no server: held, then healed, never sent under the other's id": (
        exchange(),
        [
            FIRST,
            (displaced, HEAL_DISPLACED),
            (unhealed(Unhealed.UNREACHABLE), CONNECT),
            (back, Ask()),
            (displaced, HEAL_DISPLACED),
            (healed, Send()),
            (REFUSED, CONNECT),
            (back, NOT_SENT),
        ],
    ),
    "given away while it was held": (
        exchange(),
        [FIRST, (REFUSED, CONNECT), (back, NOT_SENT), (displaced, HEAL_DISPLACED), (healed, AFTER_LOSS)],
    ),
    "given away between two tries": (
        exchange(LIST),
        [
            FIRST,
            (RESET, IN_DOUBT),
            (displaced, HEAL_DISPLACED),
            (healed, Send(ReplayCause.SESSION_LOST, renumber=True)),
        ],
    ),
    "given away again after each heal: no third one": (
        exchange(),
        [FIRST, *GIVEN_AWAY * MAX_HEALS, (displaced, not_found(None))],
    ),
    "not restored: 404, and nothing was rewritten": (
        exchange(),
        [FIRST, (displaced, HEAL_DISPLACED), (unhealed(Unhealed.NOT_RESTORED), not_found(None))],
    ),
    "a response is dropped at once": (exchange(RESPONSE), [FIRST, (displaced, DROPPED)]),
    "initialized is said by the heal": (
        exchange(INITIALIZED),
        [FIRST, (displaced, HEAL_DISPLACED), (healed, ACCEPTED)],
    ),
}

OUTAGE: Final[dict[str, tuple[Exchange, Story]]] = {
    "refused, back": (
        exchange(),
        [FIRST, (REFUSED, CONNECT), (back, NOT_SENT), (REFUSED, CONNECT), (back, NOT_SENT)],
    ),
    "refused, back, lost, healed": (
        exchange(),
        [FIRST, (REFUSED, CONNECT), (back, NOT_SENT), *LOST_AND_HEALED],
    ),
    "refused, never back": (exchange(), [FIRST, (REFUSED, CONNECT), (expired, AWAY)]),
    "refused, never back: initialize": (
        exchange(INITIALIZE, session=SessionKnowledge.NONE),
        [FIRST, (REFUSED, CONNECT), (expired, UNAVAILABLE_503)],
    ),
    "refused, never back: a notification": (
        exchange(PROGRESS),
        [FIRST, (REFUSED, CONNECT), (expired, undelivered(Reason.UPSTREAM_UNAVAILABLE))],
    ),
    "refused, cancelled": (exchange(), [FIRST, (REFUSED, CONNECT), (cancelled, GIVEN_UP)]),
    "a 404, stateless, once the endpoint worked: some server may have run it": (
        exchange(session=SessionKnowledge.NONE, endpoint_worked=True),
        [FIRST, (answered(ROUTE_404), UNKNOWN)],
    ),
    "the same for a safe one: it waits for the route": (
        exchange(LIST, session=SessionKnowledge.NONE, endpoint_worked=True),
        [
            FIRST,
            (answered(ROUTE_404), ROUTE),
            (back, Ask()),
            (ALIVE, IN_DOUBT),
            (answered(ROUTE_404), ROUTE),
            (expired, UNKNOWN),
        ],
    ),
    "the same for initialize": (
        exchange(INITIALIZE, session=SessionKnowledge.NONE, endpoint_worked=True),
        [
            FIRST,
            (answered(ROUTE_404), ROUTE),
            (back, Ask()),
            (ALIVE, IN_DOUBT),
            (answered(ROUTE_404), ROUTE),
            (expired, UNAVAILABLE_IN_DOUBT),
        ],
    ),
    "a route's 404 before the endpoint ever worked passes": (
        exchange(session=SessionKnowledge.NONE),
        [FIRST, (answered(ROUTE_404), Pass())],
    ),
    "a route's 404 to an unknown id passes": (
        exchange(session=SessionKnowledge.UNKNOWN, endpoint_worked=True),
        [FIRST, (answered(ROUTE_404), Pass())],
    ),
}

DOUBT: Final[dict[str, tuple[Exchange, Story]]] = {
    "reset: an unsafe call is told": (exchange(), [FIRST, (RESET, UNKNOWN)]),
    "no HTTP: an unsafe call is told": (exchange(), [FIRST, (failed(Fault.GARBLED), UNKNOWN)]),
    "reset: a safe call goes again, but not for ever": (
        exchange(LIST),
        [FIRST, (RESET, IN_DOUBT), (RESET, IN_DOUBT), (RESET, UNKNOWN)],
    ),
    "reset, refused, back: under a new id": (
        exchange(LIST),
        [FIRST, (RESET, IN_DOUBT), (REFUSED, CONNECT), (back, IN_DOUBT), (answered(NEVER[0], 200), Pass())],
    ),
    "reset, refused, never back: it may have run": (
        exchange(LIST),
        [FIRST, (RESET, IN_DOUBT), (REFUSED, CONNECT), (expired, UNKNOWN)],
    ),
    "reset, lost, healed: the ids stay new": (
        exchange(LIST),
        [
            FIRST,
            (RESET, IN_DOUBT),
            (answered(PROVEN), HEAL),
            (healed, Send(ReplayCause.SESSION_LOST, renumber=True)),
        ],
    ),
    "lost, healed, reset: the new session may have run it": (
        exchange(),
        [FIRST, *LOST_AND_HEALED, (RESET, UNKNOWN)],
    ),
    "stalled: an unsafe call is told": (exchange(), [FIRST, (failed(Fault.STALLED), UNKNOWN)]),
    "stalled: a safe call goes again, as after every cut": (
        exchange(LIST),
        [FIRST, (failed(Fault.STALLED), IN_DOUBT), (failed(Fault.STALLED), IN_DOUBT), (failed(Fault.STALLED), UNKNOWN)],
    ),
    "reset: initialize is told to come again": (
        exchange(INITIALIZE, session=SessionKnowledge.NONE),
        [FIRST, (RESET, IN_DOUBT), (RESET, IN_DOUBT), (RESET, UNAVAILABLE_IN_DOUBT)],
    ),
    "reset: a notification": (exchange(PROGRESS), [FIRST, (RESET, undelivered(Reason.OUTCOME_UNKNOWN))]),
    "an ingress page: an unsafe call is told": (exchange(), [FIRST, (answered(PAGE, 502), UNKNOWN)]),
    "an ingress page: a safe call waits for the route": (
        exchange(LIST),
        [
            FIRST,
            (answered(PAGE, 502), ROUTE),
            (back, Ask()),
            (ALIVE, IN_DOUBT),
            (answered(PAGE, 503), ROUTE),
            (expired, UNKNOWN),
        ],
    ),
    "a trusted 503: nothing ran": (
        exchange(trust_503=True),
        [
            FIRST,
            (answered(PAGE, 503), ROUTE),
            (back, Ask()),
            (ALIVE, NOT_SENT),
            (answered(PAGE, 503), ROUTE),
            (expired, AWAY),
        ],
    ),
    "trust in 503 is none in 502": (exchange(trust_503=True), [FIRST, (answered(PAGE, 502), UNKNOWN)]),
    "a trusted 503 after a reset does not undo it": (
        exchange(LIST, trust_503=True),
        [FIRST, (RESET, IN_DOUBT), (answered(PAGE, 503), ROUTE), (back, Ask()), (ALIVE, IN_DOUBT)],
    ),
    "a cut stream: told": (exchange(), [FIRST, (answered(NEVER[0], 200), Pass()), (broke(AfterEnd.TELL), UNKNOWN)]),
    "a cut stream: begun anew": (
        exchange(LIST),
        [FIRST, (answered(NEVER[0], 200), Pass()), (broke(AfterEnd.RESEND), IN_DOUBT), (REFUSED, CONNECT)],
    ),
    "a stream that ended as it should": (
        exchange(),
        [FIRST, (answered(NEVER[0], 200), Pass()), (broke(AfterEnd.FINISH), None)],
    ),
    "a stream that was cut": (exchange(), [FIRST, (answered(NEVER[0], 200), Pass()), (broke(AfterEnd.CUT), None)]),
}

REWRITE: Final[dict[str, tuple[Exchange, Story]]] = {
    "lost: the right 404": (exchange(mode=Mode.REWRITE), [FIRST, (answered(PROVEN, 400), not_found(400))]),
    "lost, unknown id: the right 404": (
        exchange(mode=Mode.REWRITE, session=SessionKnowledge.UNKNOWN),
        [FIRST, (answered(PROVEN, 401), not_found(401))],
    ),
    "perhaps lost: passes": (exchange(mode=Mode.REWRITE), [FIRST, (answered(BARE_404), Pass())]),
    "refused: told at once": (exchange(mode=Mode.REWRITE), [FIRST, (REFUSED, AWAY)]),
    "refused: initialize": (exchange(INITIALIZE, Mode.REWRITE), [FIRST, (REFUSED, UNAVAILABLE_503)]),
    "reset, safe: told at once": (
        exchange(LIST, Mode.REWRITE),
        [FIRST, (RESET, UNKNOWN)],
    ),
    "an ingress page: told at once": (exchange(LIST, Mode.REWRITE), [FIRST, (answered(PAGE, 502), UNKNOWN)]),
    "a trusted 503: told at once": (
        exchange(mode=Mode.REWRITE, trust_503=True),
        [FIRST, (answered(PAGE, 503), AWAY)],
    ),
    "a route's 404: told at once": (
        exchange(mode=Mode.REWRITE, session=SessionKnowledge.NONE, endpoint_worked=True),
        [FIRST, (answered(ROUTE_404), UNKNOWN)],
    ),
    "an id minted anew is another session's: nothing is sent under it": (
        exchange(mode=Mode.REWRITE),
        [FIRST, (displaced, not_found(None))],
    ),
}

UNREAD_JSON: Final[dict[str, tuple[Exchange, Story]]] = {
    "lost: it may be an answer to the dead session's question": (
        exchange(UNREAD),
        [FIRST, (answered(PROVEN), not_found(404))],
    ),
    "perhaps lost: passes": (exchange(UNREAD), [FIRST, (answered(PERHAPS), Pass())]),
    "displaced": (exchange(UNREAD), [FIRST, (displaced, not_found(None))]),
    "reset: there is no id to answer to": (exchange(UNREAD), [FIRST, (RESET, error(Reason.OUTCOME_UNKNOWN, UNREAD))]),
    "refused, back": (exchange(UNREAD), [FIRST, (REFUSED, CONNECT), (back, NOT_SENT)]),
}

ENCODED: Final[dict[str, tuple[Exchange, Story]]] = {
    "lost, healed, sent again": (
        exchange(UNREAD, opaque=True),
        [FIRST, *LOST_AND_HEALED],
    ),
    "reset: there is no id to answer to": (
        exchange(UNREAD, opaque=True),
        [FIRST, (RESET, Give(replies.BAD_GATEWAY, reason=Reason.OUTCOME_UNKNOWN))],
    ),
    "refused, never back": (
        exchange(UNREAD, opaque=True),
        [FIRST, (REFUSED, CONNECT), (expired, Give(replies.UNAVAILABLE_PATH, reason=Reason.UPSTREAM_UNAVAILABLE))],
    ),
}

TRIPS: Final = [
    pytest.param(trip, story, id=f"{chapter} - {name}")
    for chapter, stories in {
        "loss": LOSS,
        "displaced": DISPLACED,
        "outage": OUTAGE,
        "doubt": DOUBT,
        "rewrite": REWRITE,
        "unread": UNREAD_JSON,
        "encoded": ENCODED,
    }.items()
    for name, (trip, story) in stories.items()
]


@pytest.mark.parametrize(("trip", "story"), TRIPS)
def test_trip(trip: Exchange, story: Story) -> None:
    """Each report is followed by exactly this step."""
    trip = copy.deepcopy(trip)
    assert [report(trip) for report, _ in story] == [step for _, step in story]


@pytest.mark.parametrize("mode", [Mode.HEAL, Mode.REWRITE])
@pytest.mark.parametrize("session", SessionKnowledge)
@pytest.mark.parametrize("judgement", NEVER, ids=["ok", "other", "auth", "a server's own 503"])
def test_an_answer_that_says_nothing_of_a_loss_passes(
    judgement: Judgement, session: SessionKnowledge, mode: Mode
) -> None:
    """Success, real 401s and 403s, and whatever an MCP server itself has written are the client's."""
    trip = exchange(mode=mode, session=session, endpoint_worked=True)
    assert [trip.begin(), trip.judged(judgement, 401)] == [Send(), Pass()]


def test_a_loss_without_a_row_has_a_name() -> None:
    """A heal always has something to be counted under."""
    trip = exchange(LIST)
    trip.begin()
    assert trip.judged(Judgement(Verdict.SESSION_LOST), 404) == Heal("unnamed")


HINTS: Final = [
    pytest.param([answered(PROVEN), lost(SAID), healed, RESET], UNKNOWN, id="reset by the next server"),
    pytest.param([answered(PERHAPS), lost(SAID), healed], UNKNOWN, id="healed onto the next server"),
    pytest.param([REFUSED, back, answered(PAGE, 502)], UNKNOWN, id="a page after an outage"),
]


@pytest.mark.parametrize(("reports", "step"), HINTS)
@pytest.mark.parametrize("verdicts", [(True, False), (False, True)], ids=["forgotten", "new"])
def test_hints_count_where_it_was_sent_and_where_it_would_go(
    reports: list[Report], step: Step, verdicts: tuple[bool, bool]
) -> None:
    """A hint of one server allows no second run on another one, in either direction."""
    now = [verdicts[0]]
    trip = exchange(is_safe=lambda: now[0])
    trip.begin()
    now[0] = verdicts[1]
    assert [report(trip) for report in reports][-1] == step


@pytest.mark.parametrize(
    ("message", "facts", "may"),
    [
        pytest.param(LIST, {}, True, id="safe"),
        pytest.param(CALL, {}, False, id="unsafe"),
        pytest.param(LIST, {"mode": Mode.REWRITE}, False, id="rewrite"),
    ],
)
def test_what_may_be_begun_anew(message: Message, facts: dict[str, Any], may: bool) -> None:
    """A cut stream is begun anew only in mode heal, for what is harmless."""
    assert exchange(message, **facts).may_resend_stream is may


@pytest.mark.parametrize("mode", [Mode.HEAL, Mode.REWRITE])
def test_nothing_is_sent_in_a_session_that_was_ended(mode: Mode) -> None:
    """Before the first attempt and after one: the client starts over."""
    trip, over = exchange(mode=mode), Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST)
    assert trip.ended() == over
    trip.begin()
    assert trip.ended() == over
