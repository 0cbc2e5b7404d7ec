"""A thousand clients that listen, and one restart: all come back in turn, and whoever calls goes first."""

from __future__ import annotations

import asyncio
import statistics
from typing import cast

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, HoldOverflowed, SidecarFault
from mcp_sidecar.healing.session import Session
from mcp_sidecar.waiting.slots import AT_A_TIME, ReturnQueue, SlotRequest, Slots
from tests.sessions.test_burst import open_sessions
from tests.support import virtual_time
from tests.support.client import McpClient, Stream, new_http
from tests.support.fake_upstream import FakeUpstream
from tests.support.http1 import HttpRequest
from tests.support.ledger import Arrival
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.streams import Session as UpstreamSession
from tests.support.waiting import eventually

MANY, CALLERS = 1000, 100


class CountingUpstream(FakeUpstream):
    """Counts the initializes that it works on, knows sessions that nobody opened, and who came back in which order."""

    initializing = most_initializing = 0

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def know(self, names: list[str]) -> None:
        """As if their clients had initialized long ago."""
        for name in names:
            self.sessions[name] = UpstreamSession(name, self.process, "2025-06-18", None, initialized=True)

    def attached(self) -> set[str]:
        """The sessions that have an open GET stream."""
        return {session.id for session in self.sessions.values() if session.get_streams_open}

    def _arrived(self, connection: int, request: HttpRequest) -> Arrival:
        arrival = super()._arrived(connection, request)
        self.initializing += "initialize" in arrival.rpc_methods
        self.most_initializing = max(self.most_initializing, self.initializing)
        return arrival

    def _answered(self, arrival: Arrival, status: int) -> None:
        super()._answered(arrival, status)
        if status == 200 and ("tools/call" in arrival.rpc_methods or arrival.http_method == "GET"):
            self.order.append("call" if arrival.rpc_methods else "stream")
        self.initializing -= "initialize" in arrival.rpc_methods


async def listening(clients: list[McpClient]) -> list[Stream]:
    streams: list[Stream] = []
    for start in range(0, len(clients), 100):
        streams += await asyncio.gather(*(client.get_stream() for client in clients[start : start + 100]))
    return streams


@pytest.mark.long
async def test_a_thousand_streams_survive_a_restart() -> None:
    """All are attached again, with one initialize each and few at a time; calls meanwhile go before idle streams."""
    async with (
        CountingUpstream() as upstream,
        running_sidecar(upstream.url, healing__max_concurrent_heals=16) as sidecar,
        new_http() as http,
    ):
        names = open_sessions(sidecar, MANY)
        upstream.know(names)
        clients = [McpClient(sidecar.url, http=http, session_id=name) for name in names]
        streams = await listening(clients)
        assert {stream.status for stream in streams} == {200}
        await eventually(lambda: len(upstream.attached()) == MANY)
        assert upstream.ledger.initializes == []
        await upstream.restart()
        upstream.order.clear()
        # The callers' streams were the last to be opened: nothing but their calls brings them to the front.
        answers = await asyncio.gather(*(client.tool("echo", text="x") for client in clients[-CALLERS:]))
        assert {answer.text for answer in answers} == {"x"}
        await eventually(lambda: upstream.order.count("stream") == MANY)
        await _all_hear(upstream, streams)
        assert len(upstream.ledger.initializes) == len(upstream.sessions) == MANY
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED] * MANY
        assert upstream.most_initializing <= 16
        assert {session.get_streams_open for session in upstream.sessions.values()} == {1}
        assert sidecar.of(SidecarFault) == []
        calls, back = ([n for n, who in enumerate(upstream.order) if who == one] for one in ("call", "stream"))
        assert len(calls) == CALLERS
        assert statistics.median(calls) < statistics.median(back)
        assert calls[-1] < back[-1]
        for stream in streams:
            stream.close()


async def _all_hear(upstream: FakeUpstream, streams: list[Stream]) -> None:
    upstream.notify("notifications/after")
    messages = await asyncio.gather(*(stream.next_message() for stream in streams))
    assert {message and message["method"] for message in messages} == {"notifications/after"}


@pytest.mark.long
async def test_streams_of_a_server_that_keeps_sessions_come_back_few_at_a_time() -> None:
    """No heal is needed, and the server is not overrun all the same."""
    count = 200
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar, new_http() as http:
        clients = [McpClient(sidecar.url, http=http) for _ in range(count)]
        for client in clients:
            await client.initialize()
        streams = await listening(clients)
        await eventually(lambda: sum(s.get_streams_open for s in upstream.sessions.values()) == count)
        asked = upstream.ledger.count("GET")
        await upstream.stop()
        await upstream.start()
        await eventually(lambda: sum(s.get_streams_open for s in upstream.sessions.values()) == count)
        assert upstream.ledger.count("GET") - asked <= 2 * count
        await _all_hear(upstream, streams)
        assert sidecar.of(HealEnded) == []
        for stream in streams:
            stream.close()


@pytest.mark.long
async def test_a_call_overtakes_the_heals_of_idle_streams() -> None:
    """With one heal at a time and many idle streams in the queue, a call is next; its own stream's heal is taken over."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, healing__max_concurrent_heals=1) as sidecar,
        new_http() as http,
    ):
        names = open_sessions(sidecar, 40)
        clients = [McpClient(sidecar.url, http=http, session_id=name) for name in names]
        opening = [asyncio.create_task(client.get_stream()) for client in clients]
        await eventually(lambda: _healing(sidecar) == 40 or len(upstream.sessions) > 1)
        assert (await clients[-1].tool("echo", text="x")).text == "x"
        assert len(upstream.sessions) < 20
        for stream in await asyncio.gather(*opening):
            stream.close()
        assert len(upstream.ledger.initializes) == 40


@pytest.mark.long
async def test_idle_streams_take_no_place_of_a_waiting_call() -> None:
    """However many wait for their heals, a call is held as long as there is room for calls."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, healing__max_concurrent_heals=1, healing__max_held_requests=5) as sidecar,
        new_http() as http,
    ):
        names = open_sessions(sidecar, 40)
        clients = [McpClient(sidecar.url, http=http, session_id=name) for name in names]
        opening = [asyncio.create_task(client.get_stream()) for client in clients]
        await eventually(lambda: _healing(sidecar) > 10)
        assert (await clients[-1].tool("echo", text="x")).text == "x"
        for stream in await asyncio.gather(*opening):
            stream.close()
        assert sidecar.of(HoldOverflowed) == []


def _healing(sidecar: WatchedSidecar) -> int:
    sessions = cast("list[Session]", list(sidecar.services.sessions.table))
    return sum(session.state == "healing" for session in sessions)


# -- turns ------------------------------------------------------------------------------------------------------------


class Work:
    """Works with a place until told to stop, and writes down who began when."""

    def __init__(self, turns: Slots) -> None:
        self.turns = turns
        self.began: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.known: dict[str, SlotRequest] = {}
        self.may_end: dict[str, asyncio.Event] = {}

    async def add(self, name: str, *, urgent: bool = False) -> None:
        self.known[name], self.may_end[name] = SlotRequest(is_urgent=urgent), asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._work(name))
        await settle()

    async def _work(self, name: str) -> None:
        async with self.turns.place(self.known[name]):
            self.began.append(name)
            await self.may_end[name].wait()

    async def end(self, name: str) -> None:
        self.may_end[name].set()
        await settle()

    async def end_all(self) -> None:
        for event in self.may_end.values():
            event.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settle() -> None:
    """Let everybody go as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_whoever_is_waited_for_goes_first() -> None:
    """First come, first served within a class; who is promoted goes behind those that were urgent before."""
    work = Work(Slots(1))
    for name, urgent in [("a", False), ("b", False), ("c", False), ("d", True), ("e", True)]:
        await work.add(name, urgent=urgent)
    work.turns.promote(work.known["c"])
    for name in "adecb":
        assert work.began[-1] == name
        await work.end(name)
    assert work.began == list("adecb")
    await work.end_all()


async def test_who_leaves_the_queue_costs_no_place() -> None:
    """Waiting, or in the very moment when its turn comes."""
    work = Work(Slots(1))
    for name in "abcd":
        await work.add(name)
    work.tasks["b"].cancel()
    await settle()
    work.may_end["a"].set()
    await asyncio.sleep(0)
    work.tasks["c"].cancel()
    await settle()
    assert work.began == ["a", "d"]
    await work.end("d")
    await work.add("e")
    assert work.began == ["a", "d", "e"]
    await work.end_all()


async def test_a_place_is_given_back_once() -> None:
    """However often that is said."""
    turns, first, second = Slots(1), SlotRequest(), SlotRequest()
    await turns.take(first)
    turns.give_back(first)
    turns.give_back(first)
    assert not await turns.take(second)
    third = asyncio.create_task(turns.take(SlotRequest()))
    await settle()
    assert not third.done()
    turns.give_back(second)
    assert await third


def test_who_returns_alone_returns_at_once_and_many_in_turn() -> None:
    """The spread grows with their number; no more than some ask at a time, and a silent server holds nobody up."""

    async def returns(count: int) -> tuple[float, int]:
        returning, now, most, active = ReturnQueue(), virtual_time.now(), 0, 0

        async def one() -> None:
            nonlocal most, active
            await returning.spread()
            async with returning.place():
                active += 1
                most = max(most, active)
                await asyncio.sleep(0.010)
                active -= 1

        await asyncio.gather(*(one() for _ in range(count)))
        return virtual_time.now() - now, most

    async def silent() -> float:
        returning, now = ReturnQueue(), virtual_time.now()

        async def one() -> None:
            async with returning.place():
                await asyncio.sleep(60)

        await asyncio.gather(*(one() for _ in range(AT_A_TIME * 4)))
        return virtual_time.now() - now

    async def all_of_it() -> None:
        seconds, most = await returns(1)
        assert (seconds < 0.02, most) == (True, 1)
        seconds, most = await returns(1000)
        assert 0.3 < seconds < 2.0
        assert most <= AT_A_TIME
        assert await silent() < 62

    virtual_time.run(all_of_it())
