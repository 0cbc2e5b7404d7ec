"""Who asks whether the upstream is back, how often, and who learns it."""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mcp_sidecar.facts import Fact, UpstreamBack, UpstreamLost
from mcp_sidecar.healing.principal import ANONYMOUS
from mcp_sidecar.healing.session import ClientSessionId
from mcp_sidecar.waiting.availability import Availability, Route
from mcp_sidecar.waiting.hold import GO_ON_AT_A_TIME, HEAD_PATIENCE_S, HeldRequest, Holds, Waited
from tests.support import virtual_time

KEY = (ClientSessionId("session"), ANONYMOUS, 7)


@dataclass(slots=True)
class Server:
    """A server that accepts from ``up_at`` on, and when it was tried."""

    up_at: float
    tries: list[float] = field(default_factory=list)

    async def can_connect(self) -> bool:
        self.tries.append(virtual_time.now())
        return virtual_time.now() >= self.up_at


@dataclass(slots=True)
class Waiting:
    """A holding place in front of a server, under virtual time."""

    server: Server
    facts: list[Fact]
    holds: Holds
    availability: Availability

    async def hold(self, timeout_s: float = 60.0, *, answer_s: float = 0.0, log: list[float] | None = None) -> Waited:
        """Wait, go on, and have an answer after ``answer_s``; ``log`` gets the time of going on."""
        held = HeldRequest(10, timeout_s)
        waited = await self.holds.for_connect(held)
        if waited is Waited.BACK:
            if log is not None:
                log.append(virtual_time.now())
            await asyncio.sleep(answer_s)
        self.holds.went_on(held)
        return waited


def waiting(up_at: float) -> Waiting:
    facts: list[Fact] = []
    server = Server(up_at)
    holding = Holds(
        max_requests=10_000,
        max_bytes=1_000_000,
        can_connect=server.can_connect,
        emit=facts.append,
        clock=virtual_time.now,
    )
    return Waiting(server, facts, holding, holding.availability)


@pytest.mark.long
def test_one_prober_tries_for_a_thousand() -> None:
    """Connects are counted per upstream, not per held request; the first success releases all."""

    async def outage() -> None:
        place = waiting(up_at=1.0)
        place.availability.note(False)
        ends = await asyncio.gather(*(place.hold() for _ in range(1000)))
        assert set(ends) == {Waited.BACK}
        assert 245 <= len(place.server.tries) <= 255
        assert virtual_time.now() < 1.02
        assert place.availability.is_up
        assert [type(fact) for fact in place.facts] == [UpstreamLost, UpstreamBack]
        assert [fact.held for fact in place.facts if isinstance(fact, UpstreamBack)] == [1000]

    virtual_time.run(outage())


def test_the_pace_is_fast_and_then_slow() -> None:
    """Every 4 ms for ten seconds, then backing off to four times a second, and never slower."""

    async def outage() -> None:
        place = waiting(up_at=60.0)
        await place.hold(timeout_s=120.0)
        tries = place.server.tries
        gaps = [round(after - before, 4) for before, after in itertools.pairwise(tries)]
        assert set(gaps[:2499]) == {0.004}
        assert gaps == sorted(gaps)
        assert set(gaps[2520:]) == {0.25}
        assert tries[-1] - 60.0 < 0.25

    virtual_time.run(outage())


def test_nobody_probes_for_nobody() -> None:
    """When the last hold has ended the prober stops, and the next hold starts it again."""

    async def outage() -> None:
        place = waiting(up_at=100.0)
        assert await place.hold(timeout_s=0.5) is Waited.EXPIRED
        await asyncio.sleep(10.0)
        assert len(place.server.tries) <= 127
        assert await place.hold(timeout_s=200.0) is Waited.BACK

    virtual_time.run(outage())


def test_a_stream_waits_without_a_bound() -> None:
    """A client's GET stream keeps the prober going and takes no request's place."""

    async def outage() -> None:
        place = waiting(up_at=300.0)
        await place.holds.for_stream()
        assert 300.0 <= virtual_time.now() < 300.5
        assert len(place.holds) == 0

    virtual_time.run(outage())


def test_a_request_that_gets_through_ends_the_outage_for_all() -> None:
    """Whoever connects first tells everybody; nobody waits for the prober's next try."""

    async def outage() -> None:
        place = waiting(up_at=1000.0)
        place.availability.note(False)
        held = [asyncio.create_task(place.hold()) for _ in range(3)]
        await asyncio.sleep(20.0)
        place.availability.note(True)
        assert await asyncio.gather(*held) == [Waited.BACK] * 3
        assert virtual_time.now() == 20.0

    virtual_time.run(outage())


def test_those_who_waited_go_on_one_after_the_other() -> None:
    """A server that has just come back is asked by some at a time; who comes new need not wait."""

    async def outage() -> None:
        place, log = waiting(up_at=1.0), list[float]()
        ends = await asyncio.gather(*(place.hold(answer_s=0.010, log=log) for _ in range(1000)))
        assert set(ends) == {Waited.BACK}
        at_a_time = collections.Counter(round(at, 3) for at in log)
        assert set(at_a_time.values()) <= {GO_ON_AT_A_TIME, 1000 % GO_ON_AT_A_TIME}
        assert virtual_time.now() < 1.0 + 0.01 + 1000 / GO_ON_AT_A_TIME * 0.011

    virtual_time.run(outage())


def test_long_work_does_not_keep_the_others_waiting() -> None:
    """Answers that take minutes: each place is free again after ``HEAD_PATIENCE_S``."""

    async def outage() -> None:
        place, log = waiting(up_at=1.0), list[float]()
        await asyncio.gather(*(place.hold(answer_s=120.0, log=log) for _ in range(10 * GO_ON_AT_A_TIME)))
        assert max(log) < 1.0 + 0.02 + 10 * HEAD_PATIENCE_S

    virtual_time.run(outage())


def test_who_leaves_the_queue_takes_no_place() -> None:
    """Clients that go, requests that are cancelled and time that runs out while others have their turn: nobody is stuck.

    Who is out of time goes on at once: the upstream is there.
    """

    async def outage() -> None:
        place, log = waiting(up_at=1.0), list[float]()
        first = [asyncio.create_task(place.hold(answer_s=0.040, log=log)) for _ in range(GO_ON_AT_A_TIME)]
        await asyncio.sleep(0.5)
        late = [asyncio.create_task(place.hold(timeout_s=0.51, log=log)) for _ in range(GO_ON_AT_A_TIME)]
        gone = [asyncio.create_task(place.hold(log=log)) for _ in range(GO_ON_AT_A_TIME)]
        named = HeldRequest(10, 60.0, frozenset({KEY}))
        cancelled = asyncio.create_task(place.holds.for_connect(named))
        last = [asyncio.create_task(place.hold(answer_s=0.010, log=log)) for _ in range(2 * GO_ON_AT_A_TIME)]
        await asyncio.sleep(0.515)
        assert len(log) == 2 * GO_ON_AT_A_TIME
        for task in gone:
            task.cancel()
        assert place.holds.cancel(KEY)
        assert await cancelled is Waited.CANCELLED
        assert await asyncio.gather(*first) == [Waited.BACK] * len(first)
        assert await asyncio.gather(*late) == [Waited.BACK] * len(late)
        assert await asyncio.gather(*last) == [Waited.BACK] * len(last)
        assert virtual_time.now() < 1.1
        assert len(place.holds) == 0

    virtual_time.run(outage())


def test_nobody_is_out_of_time_in_the_queue_of_a_server_that_is_back() -> None:
    """A thousand that have waited for three of four seconds, and answers that take 60 ms."""

    async def outage() -> None:
        place = waiting(up_at=3.0)
        ends = await asyncio.gather(*(place.hold(timeout_s=4.0, answer_s=0.060) for _ in range(1000)))
        assert set(ends) == {Waited.BACK}

    virtual_time.run(outage())


def test_a_turn_that_came_to_nothing_keeps_no_place() -> None:
    """Requests that wait again before they were sent hold one place at most, and not for long."""

    async def outage() -> None:
        place = waiting(up_at=0.0)
        again = HeldRequest(10, 60.0)
        for _ in range(2 * GO_ON_AT_A_TIME):
            assert await place.holds.for_connect(again) is Waited.BACK
        log = list[float]()
        await asyncio.gather(*(place.hold(answer_s=120.0, log=log) for _ in range(GO_ON_AT_A_TIME + 1)))
        assert len(log) == GO_ON_AT_A_TIME + 1
        assert max(log) < 1.0

    virtual_time.run(outage())


def test_a_wait_for_what_is_done_lets_others_run() -> None:
    """A request that does not share in the end of somebody else's heal waits anew: the loop must not stand still for it."""

    async def story() -> None:
        place, ran = waiting(up_at=0.0), list[bool]()

        async def heal() -> str:
            return "refused"

        task = asyncio.create_task(heal())
        await task
        asyncio.get_running_loop().call_soon(ran.append, True)
        assert await place.holds.for_result(HeldRequest(10, 60.0), task) == (Waited.BACK, "refused")
        assert ran == [True]

    virtual_time.run(story())


def test_the_upstream_is_up_until_a_connect_fails() -> None:
    """The gauge: 1 at first, 0 from the first failure on, 1 from the next success on; each change is told once."""

    async def story() -> None:
        place = waiting(up_at=0.0)
        seen = [place.availability.is_up]
        for connected in (False, False, True, True, False):
            place.availability.note(connected)
            seen.append(place.availability.is_up)
        assert seen == [True, False, False, True, True, False]
        assert [type(fact) for fact in place.facts] == [UpstreamLost, UpstreamBack, UpstreamLost]

    virtual_time.run(story())


def test_each_reason_is_told_once_in_an_outage() -> None:
    """A server that comes back with a certificate that is not trusted is another fault, and only its reason helps."""

    async def story() -> None:
        place = waiting(up_at=0.0)
        note = place.availability.note
        for why in ("", "certificate not trusted: expired", "", "no connection", "certificate not trusted: expired"):
            note(False, why)
        for number in range(99):
            note(False, f"reason {number}")
        told = [fact.fault for fact in place.facts if isinstance(fact, UpstreamLost)]
        assert told == ["no connection", "certificate not trusted: expired", "reason 0", "reason 1"]
        note(True)
        note(False, "certificate not trusted: expired")
        assert place.facts[-1] == UpstreamLost("certificate not trusted: expired")

    virtual_time.run(story())


# -- a route without a server -----------------------------------------------------------------------------------------


async def visit(holding: Holds, is_served: Callable[[], bool], log: list[float], *, timeout_s: float = 60.0) -> bool:
    """One request behind an ingress: asks, and waits where the ingress answers; whether it was served."""
    held = HeldRequest(10, timeout_s)
    try:
        while True:
            log.append(virtual_time.now())
            if is_served():
                holding.route.note_served()
                return True
            if await holding.for_route(held) is not Waited.BACK:
                return False
            holding.went_on(held)
    finally:
        holding.leave(held)


def test_one_scout_asks_for_a_thousand() -> None:
    """Behind an ingress page a connect proves nothing: one held request asks ever less often, then all go."""

    async def outage() -> None:
        place, log = waiting(up_at=0.0), list[float]()
        visits = (visit(place.holds, lambda: virtual_time.now() >= 2.0, log) for _ in range(1000))
        assert all(await asyncio.gather(*visits))
        asked_meanwhile = [at for at in log if 0.0 < at < 2.0]
        assert 5 <= len(asked_meanwhile) <= 10
        assert virtual_time.now() < 3.3

    virtual_time.run(outage())


def test_the_scouts_place_is_taken_over() -> None:
    """Scouts whose time is up or whose client left are replaced, so that the last one still learns of the return."""

    async def outage() -> None:
        place, log = waiting(up_at=0.0), list[float]()
        timeouts = [0.5, 1.0, 1.5, 60.0]
        visits = [
            asyncio.create_task(visit(place.holds, lambda: virtual_time.now() >= 3.0, log, timeout_s=timeout_s))
            for timeout_s in timeouts
        ]
        leaving = asyncio.create_task(visit(place.holds, lambda: False, log))
        await asyncio.sleep(1.2)
        leaving.cancel()
        assert await asyncio.gather(*visits) == [False, False, False, True]
        assert virtual_time.now() < 4.3
        assert len(place.holds) == 0

    virtual_time.run(outage())


def test_a_scout_that_is_stuck_is_replaced() -> None:
    """Its request may take minutes to answer, be it served or not: after a second another one asks."""

    async def outage() -> None:
        place = waiting(up_at=0.0)
        stuck = HeldRequest(10, 60.0)
        assert await place.holds.for_route(stuck) is Waited.BACK
        log = list[float]()
        await asyncio.sleep(0.5)
        visits = (visit(place.holds, lambda: virtual_time.now() >= 3.0, log) for _ in range(3))
        assert all(await asyncio.gather(*visits))
        assert 1.0 <= min(at for at in log if at > 0.6) < 1.1
        assert virtual_time.now() < 4.3
        place.holds.leave(stuck)

    virtual_time.run(outage())


def test_a_route_that_goes_away_again_is_waited_for_again() -> None:
    """Who still has no turn when the ingress's page is back is not sent into it."""

    async def outage() -> None:
        place = waiting(up_at=0.0)
        route, sent_into_it = place.holds.route, list[HeldRequest]()

        async def ask() -> None:
            held = HeldRequest(10, 5.0)
            waited = await place.holds.for_route(held)
            if waited is Waited.BACK and route.is_away and not route.is_scout(held):
                sent_into_it.append(held)
            await asyncio.sleep(0.040)
            place.holds.went_on(held)
            if waited is Waited.BACK and virtual_time.now() > 1.02:
                route.apply(held)
            place.holds.leave(held)

        scout = HeldRequest(10, 5.0)
        route.apply(scout)
        asked = [asyncio.create_task(ask()) for _ in range(10 * GO_ON_AT_A_TIME)]
        await asyncio.sleep(1.0)
        route.note_served()
        await asyncio.gather(*asked)
        assert len(sent_into_it) == 0

    virtual_time.run(outage())


def test_an_outage_of_the_route_ends_with_any_answer_of_the_server() -> None:
    """Away from the first page until the server itself has answered anybody."""

    async def story() -> None:
        route = Route(virtual_time.now)
        assert not route.is_away
        assert route.apply("one") and not route.apply("two")
        assert route.is_away and route.is_scout("one")
        route.resign("two")
        assert route.is_scout("one")
        route.note_served()
        assert not route.is_away and not route.is_scout("one")

    virtual_time.run(story())
