"""What holds on every trip, whatever the upstream does: random walks through all reports that can answer a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_sidecar.facts import ReplayCause
from mcp_sidecar.healing.exchange import (
    MAX_HEALS,
    MAX_RESENDS,
    Ask,
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
from mcp_sidecar.healing.replay import AfterLoss, after_loss, is_safe_in_doubt
from mcp_sidecar.healing.stream_watch import AfterEnd
from mcp_sidecar.verdicts.classify import UNANSWERED, Judgement, SessionKnowledge, Verdict
from mcp_sidecar.verdicts.refusals import AWAY, BROKEN, PingAnswer, PingVerdict, Refusal
from mcp_sidecar.verdicts.signatures import ROUTE_ROWS, TABLE, Signature, Strength
from mcp_sidecar.verdicts.words import Words
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.jsonrpc import UNREAD
from tests.healing import samples

MAX_REPORTS: Final = 40

many: Final = settings(max_examples=3 * settings.default.max_examples if settings.default else 300)
"""Three times what the profile gives to others."""

MESSAGES: Final = (
    samples.call(),
    samples.call("read"),
    samples.request("tools/list"),
    samples.request("x/unknown"),
    samples.request("initialize"),
    samples.notification("notifications/initialized"),
    samples.notification("notifications/cancelled", requestId=1),
    samples.notification("notifications/progress", progressToken=1),
    samples.response(),
    samples.batch(samples.call(), samples.request("ping", id=2)),
    samples.batch(samples.request("ping", id=2), samples.response()),
    samples.NO_MESSAGE,
    UNREAD,
)


@dataclass(frozen=True, slots=True)
class Report:
    """What is told to the exchange, and what is true of the message then: tried, perhaps run.

    ``words``: perhaps run, unless a ping is refused in the same ones. ``met`` are those that a ping was refused with.
    """

    tell: Callable[[Exchange], Step | None]
    tried: bool = False
    ran: bool = False
    words: str = ""
    met: str = ""


@dataclass(slots=True)
class Trip:
    """One walk, with all its steps and reports."""

    exchange: Exchange
    steps: list[Step] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def ran(self) -> list[bool]:
        """For each report whether the message may have run by it."""
        return [report.ran and not (report.words and self._is_cleared(at)) for at, report in enumerate(self.reports)]

    def _is_cleared(self, at: int) -> bool:
        """A ping was refused in the words of this report: before it, or before anything else was sent."""
        words = self.reports[at].words
        until = next((n for n in range(at + 1, len(self.reports)) if self.reports[n].tried), len(self.reports))
        return any(report.met == words for report in self.reports[:until])

    def count(self, kind: type) -> int:
        return sum(isinstance(step, kind) for step in self.steps)


def _judged(judgement: Judgement, status: int, *, ran: bool, words: str = "") -> Report:
    return Report(lambda trip: trip.judged(judgement, status), tried=True, ran=ran, words=words)


def _failed(fault: Fault) -> Report:
    return Report(lambda trip: trip.failed(fault), tried=True, ran=fault.may_have_arrived)


def _unhealed(why: Unhealed) -> Report:
    return Report(lambda trip: trip.unhealed(why))


def _asked(answer: PingAnswer, met: str = "") -> Report:
    return Report(lambda trip: trip.asked(answer), met=met)


def _broke(after: AfterEnd) -> Report:
    return Report(lambda trip: trip.stream_broke(after), tried=True, ran=True)


def _about_session(row: Signature, words: str) -> Report:
    verdict = Verdict.SESSION_LOST if row.strength is Strength.STRONG else Verdict.ASK
    is_bare = row.name in ROUTE_ROWS
    refusal = Refusal(Words(404, words))
    return _judged(Judgement(verdict, row, bare_404=is_bare, refusal=refusal), 404, ran=True, words=words)


def one_row(name: str) -> Signature:
    return next(row for row in TABLE if row.name == name)


SETTLED: Final = [
    *(_judged(Judgement(verdict), 200, ran=True) for verdict in (Verdict.OK, Verdict.OTHER, Verdict.AUTH_FAILURE)),
    _judged(Judgement(Verdict.UNAVAILABLE, jsonrpc_body=True), 503, ran=True),
]
PAGE: Final = _judged(UNANSWERED, 502, ran=True)
PAGE_503: Final = _judged(UNANSWERED, 503, ran=False)
LOST: Final = [
    _about_session(one_row(name), words)
    for name in ("python-404", "generic-session-id", "weak-session-id", "bare-404")
    for words in ("session gone", "no such session")
]
ROUTE: Final = _judged(Judgement(Verdict.OTHER, bare_404=True), 404, ran=True)
FAULTS: Final = [_failed(fault) for fault in Fault]
HEALED: Final = Report(lambda trip: trip.healed())
UNHEALED: Final = {why: _unhealed(why) for why in Unhealed}
ASKED: Final = [
    *(_asked(PingAnswer(verdict)) for verdict in (PingVerdict.ALIVE, PingVerdict.AUTH, PingVerdict.UNPROVEN)),
    *(_asked(answer) for answer in (AWAY, BROKEN)),
    *(
        _asked(PingAnswer(verdict, Refusal(Words(404, words))), met=words)
        for verdict in (PingVerdict.REFUSED, PingVerdict.BUSY, PingVerdict.ELSEWHERE)
        for words in ("session gone", "no such session")
    ),
]
DISPLACED: Final = Report(lambda trip: trip.displaced())
BACK: Final = Report(lambda trip: trip.back())
EXPIRED: Final = Report(lambda trip: trip.expired())
CANCELLED: Final = Report(lambda trip: trip.cancelled())
BROKE: Final = [_broke(after) for after in (AfterEnd.FINISH, AfterEnd.TELL, AfterEnd.CUT)]
RESEND: Final = _broke(AfterEnd.RESEND)


def _possible(trip: Trip) -> list[Report]:
    """What can be reported of the last step, by what the classifier and the healer promise."""
    exchange, step = trip.exchange, trip.steps[-1]
    match step:
        case Send():
            trusted = [PAGE_503] if exchange.trust_503 else []
            displaced = [DISPLACED] if _may_be_displaced(exchange) else []
            about = {SessionKnowledge.NONE: [ROUTE], SessionKnowledge.UNKNOWN: LOST[:4]}
            return [*SETTLED, *FAULTS, PAGE, *displaced, *trusted, *about.get(exchange.session, LOST)]
        case Ask():
            return [*ASKED, EXPIRED, CANCELLED]
        case Heal():
            return [HEALED, *UNHEALED.values(), EXPIRED, CANCELLED]
        case Hold():
            return [BACK, EXPIRED, CANCELLED]
        case Pass() if isinstance(trip.steps[-2], Send):
            return [*BROKE, *([RESEND] if exchange.may_resend_stream else [])]
        case _:
            return []


def _may_be_displaced(exchange: Exchange) -> bool:
    return exchange.session is SessionKnowledge.BOUND


@st.composite
def trips(draw: st.DrawFn) -> Trip:
    """A walk to its end, or until the walker has seen enough."""
    message = draw(st.sampled_from(MESSAGES))
    trip = Trip(
        Exchange(
            message=message,
            session=draw(st.sampled_from([*SessionKnowledge, *[SessionKnowledge.BOUND] * 3])),
            mode=draw(st.sampled_from([Mode.REWRITE, *[Mode.HEAL] * 3])),
            is_safe=lambda: is_safe_in_doubt(message, {"read"}),
            trust_503=draw(st.booleans()),
            endpoint_worked=draw(st.booleans()),
        )
    )
    trip.steps.append(trip.exchange.begin())
    _walk(trip, lambda reports: _prefer(draw, reports), MAX_REPORTS)
    return trip


def _prefer(draw: st.DrawFn, reports: list[Report]) -> Report:
    """Mostly what makes a long trip: most others would end after a step or two."""
    long = [
        report for report in reports if report not in (*SETTLED, EXPIRED, CANCELLED, UNHEALED[Unhealed.NOT_RESTORED])
    ]
    prefers = draw(st.integers(0, 4)) > 0
    return draw(st.sampled_from(long if long and prefers else reports))


def _walk(trip: Trip, choose: Callable[[list[Report]], Report], limit: int) -> None:
    for _ in range(limit):
        reports = _possible(trip)
        if not reports:
            return
        report = choose(reports)
        step = report.tell(trip.exchange)
        trip.reports.append(report)
        if step is None:
            return
        trip.steps.append(step)


class TestEveryTrip:
    """The laws of the exchange, in the order of their weight."""

    @many
    @given(trips())
    def test_what_may_have_run_goes_again_only_if_it_is_harmless(self, trip: Trip) -> None:
        """An unsafe message is never sent after anything by which it may have run."""
        if not trip.exchange.safe_in_doubt and True in trip.ran():
            assert not any(isinstance(step, Send) for step in trip.steps[trip.ran().index(True) + 1 :])

    @many
    @given(trips())
    def test_what_was_not_read_is_never_healed(self, trip: Trip) -> None:
        """It may be an answer to a question of the session that is lost."""
        if trip.exchange.message is UNREAD:
            assert not trip.count(Heal)

    @many
    @given(trips())
    def test_heals_are_bounded(self, trip: Trip) -> None:
        """An exchange has its session healed twice at most; what it meets afterwards it takes as it is."""
        healed = [at for at, report in enumerate(trip.reports) if report is HEALED]
        assert len(healed) <= MAX_HEALS
        if len(healed) == MAX_HEALS:
            assert not any(isinstance(step, Heal) for step in trip.steps[healed[-1] + 1 :])

    @many
    @given(trips())
    def test_what_arrives_is_bounded(self, trip: Trip) -> None:
        """A request that is answered by nobody, or crashes its server, goes again three times, whatever lies between."""
        reported = zip(trip.steps, trip.reports, strict=False)
        arrived = [step for step, report in reported if isinstance(step, Send) and report.ran]
        assert len(arrived) <= 1 + MAX_RESENDS

    @many
    @given(trips())
    def test_a_second_try_in_one_session_has_its_own_ids(self, trip: Trip) -> None:
        """What may have run in a session is sent there again only under ids that it has not seen (basic, "Requests")."""
        in_doubt = False
        for report, ran, step in zip(trip.reports, trip.ran(), trip.steps[1:], strict=False):
            in_doubt = (in_doubt or ran) and report is not HEALED
            assert not (in_doubt and isinstance(step, Send)) or step.renumber

    @many
    @given(trips())
    def test_a_message_of_a_dead_session_goes_nowhere(self, trip: Trip) -> None:
        """A response or a cancellation is not sent again after a proven loss."""
        if after_loss(trip.exchange.message) is AfterLoss.DROP:
            assert not any(isinstance(step, Send) and step.cause is ReplayCause.SESSION_LOST for step in trip.steps)

    @many
    @given(trips())
    def test_the_first_send_is_no_replay(self, trip: Trip) -> None:
        """Only a message that was sent before is counted as sent again."""
        sends = [step for step in trip.steps if isinstance(step, Send)]
        tried = [report.tried for report, step in zip(trip.reports, trip.steps, strict=False) if isinstance(step, Send)]
        assert [send.cause is None for send in sends] == [not any(tried[:at]) for at in range(len(sends))]

    @many
    @given(trips())
    def test_it_always_ends(self, trip: Trip) -> None:
        """From wherever it stands, the end of waiting leads to an answer at once."""
        endings = {Hold: EXPIRED, Ask: EXPIRED, Heal: EXPIRED, Send: SETTLED[0], Pass: BROKE[0]}
        _walk(trip, lambda _: endings[type(trip.steps[-1])], 2)
        assert isinstance(trip.steps[-1], Pass | Give)

    @many
    @given(trips())
    def test_what_rewrite_never_does(self, trip: Trip) -> None:
        """It holds, heals and sends again nothing."""
        if trip.exchange.mode is Mode.REWRITE:
            assert trip.count(Hold) == trip.count(Heal) == 0
            assert [step for step in trip.steps if isinstance(step, Send)] == [Send()]

    @many
    @given(trips())
    def test_what_a_session_never_gets(self, trip: Trip) -> None:
        """On a session's POST no status of ours is anything but 200, 202 and the one 404; without one, never a 404."""
        ours = {step.answer.status for step in trip.steps if isinstance(step, Give)}
        if trip.exchange.session is SessionKnowledge.NONE or trip.exchange.message.method == "initialize":
            assert ours <= {200, 202, 503} | ({404} if trip.exchange.session is not SessionKnowledge.NONE else set())
        else:
            assert ours <= {200, 202, 404}
