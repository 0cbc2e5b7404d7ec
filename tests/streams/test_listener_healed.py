"""A heal and the client's listening stream: opened before the new session is told `initialized`, and never left behind."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome
from mcp_sidecar.wire.sse import encode_event
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer, CutStream, EndStream, ResetBeforeExecution, Stall
from tests.support.ledger import Arrival, Ledger
from tests.support.listening import Says, attached, ends_cleanly, next_method, scene
from tests.support.waiting import eventually

LISTS = frozenset({"tools/list", "prompts/list", "resources/list", "resources/templates/list"})


def told(upstream: FakeUpstream, process: int = 2) -> list[str]:
    """What a process was asked in sessions of its own, in order."""
    known = set(upstream.sessions)
    arrivals = upstream.ledger.arrived(process=process)
    return [_name(a) for a in arrivals if a.session_id in known or a.rpc_methods == ("initialize",)]


def _name(arrival: Arrival) -> str:
    return arrival.rpc_methods[0] if arrival.rpc_methods else arrival.http_method


def gets(upstream: FakeUpstream) -> list[Arrival]:
    """The GETs to sessions that the upstream knows."""
    return [a for a in upstream.ledger.arrived(http_method="GET") if a.session_id in upstream.sessions]


@pytest.mark.parametrize("healed_by", ["the stream", "a call"])
async def test_the_stream_is_opened_before_initialized(healed_by: str) -> None:
    """A server may speak as soon as it is told: whoever listens then has missed nothing. One GET, and no other."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        if healed_by == "the stream":
            await upstream.restart()
        else:
            upstream.forget()  # the connection of the stream stands, and nothing will ever come on it
            assert (await client.tool("echo", text="x")).text == "x"
        await attached(upstream)
        upstream.notify("notifications/new")
        assert await next_method(stream) == "notifications/new"
        new = [name for name in told(upstream, upstream.process) if name not in LISTS]
        start = len(new) - 1 - new[::-1].index("initialize")
        assert new[start : start + 3] == ["initialize", "GET", "notifications/initialized"]
        assert len(gets(upstream)) == 1
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]
        assert sum(session.get_streams_open for session in upstream.sessions.values()) == 1


async def test_it_is_opened_with_the_listeners_own_headers() -> None:
    """The credentials and headers of that GET, not those of the request that wanted the heal; no event id of before."""
    async with scene({"event_store": True}) as (upstream, _, client):
        async with await client.get_stream(headers={"X-Mine": "listener"}) as stream:
            await attached(upstream)
            upstream.notify("notifications/x")
            assert await next_method(stream) == "notifications/x"
            upstream.forget()
            client.headers = {"X-Mine": "caller"}
            assert (await client.tool("echo", text="x")).text == "x"
            await attached(upstream)
        [ahead] = gets(upstream)
        assert ahead.header("x-mine") == "listener"
        assert ahead.header("last-event-id") is None
        assert ahead.header("accept") == "text/event-stream"
        assert ahead.header("mcp-protocol-version") == client.version


async def test_what_comes_at_once_is_not_lost() -> None:
    """What the new server says before it is told `initialized` reaches the client."""
    async with scene() as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        early = encode_event('{"jsonrpc":"2.0","method":"notifications/early"}')
        upstream.forget()
        upstream.inject(Says((early, b"")), http_method="GET")
        await client.tool("echo", text="x")
        assert await next_method(stream) == "notifications/early"


async def test_a_server_without_a_head_does_not_hold_up_the_heal() -> None:
    """Some send no head before their first event: the heal goes on, and so does that GET."""
    async with scene() as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.forget()
        upstream.inject(Stall(), http_method="GET", times=None)
        began = asyncio.get_running_loop().time()
        assert (await client.tool("echo", text="x")).text == "x"
        assert 0.2 < asyncio.get_running_loop().time() - began < 1.5
        upstream.release()
        await attached(upstream)
        upstream.notify("notifications/new")
        assert await next_method(stream) == "notifications/new"
        assert len(gets(upstream)) == 1


async def test_405_there_is_not_fatal_to_the_heal() -> None:
    """The call is answered; the listener asks by itself, and its stream ends cleanly."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.forget()
        upstream.become(get_streams=False)
        assert (await client.tool("echo", text="x")).text == "x"
        await ends_cleanly(stream)
        async with await client.get_stream() as again:
            assert again.status == 405
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Answer(400, (("Content-Type", "application/json"),), b"{}"), id="refused"),
        pytest.param(ResetBeforeExecution(), id="reset"),
        pytest.param(Answer(200, (("Content-Type", "application/json"),), b'{"jsonrpc":"2.0"}'), id="json"),
    ],
)
async def test_a_get_that_fails_there_is_not_fatal(fault: Answer | ResetBeforeExecution) -> None:
    """The heal goes on, and the listener has its stream a moment later."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.forget()
        upstream.inject(fault, http_method="GET")
        assert (await client.tool("echo", text="x")).text == "x"
        await attached(upstream)
        upstream.notify("notifications/new")
        assert await next_method(stream) == "notifications/new"
        assert len(sidecar.of(HealEnded)) == 1


async def test_a_heal_that_fails_closes_what_it_opened() -> None:
    """Nobody listens to a session that is nobody's; the next heal does without the GET, should that have been the cause."""
    async with scene({"delete_status": 405}) as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.forget()
        upstream.inject(ResetBeforeExecution(), rpc_method="notifications/initialized")
        assert (await client.tool("echo", text="x")).text == "x"
        await upstream.ledger.wait_for(partial(_has_gets, 3))
        unwanted, wanted = upstream.sessions
        await upstream.ledger.wait_for(lambda ledger: ledger.arrived(session_id=unwanted)[0].client_left)
        await eventually(lambda: upstream.sessions[wanted].get_streams_open)
        upstream.notify("notifications/new")
        assert await next_method(stream) == "notifications/new"
        of_first = [_name(a) for a in upstream.ledger.arrived(session_id=unwanted)]
        of_second = [_name(a) for a in upstream.ledger.arrived(session_id=wanted)]
        assert of_first == ["GET", "notifications/initialized", "DELETE"]
        assert of_second.index("notifications/initialized") < of_second.index("GET")


async def test_a_listener_that_leaves_takes_its_get_with_it() -> None:
    """There is never an upstream GET without a client's, not even one that a heal has opened."""
    async with scene() as (upstream, sidecar, client):
        stream = await client.get_stream()
        await attached(upstream)
        upstream.forget()
        upstream.inject(Stall(), rpc_method="notifications/initialized")
        calling = asyncio.create_task(client.tool("echo", text="x"))
        await upstream.ledger.wait_for(lambda ledger: ledger.count("notifications/initialized") == 2)
        stream.close()
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)
        upstream.release()
        assert (await calling).text == "x"
        await eventually(lambda: not any(s.get_streams_open for s in upstream.sessions.values()))
        await upstream.ledger.wait_for(lambda ledger: all(a.client_left for a in ledger.arrived(http_method="GET")))


async def test_a_new_stream_during_a_heal_is_the_one_that_is_attached() -> None:
    """What was opened ahead for the former one is closed with it."""
    async with scene() as (upstream, _, client), await client.get_stream() as first:
        await attached(upstream)
        upstream.forget()
        upstream.inject(Stall(), rpc_method="notifications/initialized")
        calling = asyncio.create_task(client.tool("echo", text="x"))
        await upstream.ledger.wait_for(lambda ledger: ledger.count("notifications/initialized") == 2)
        opening = asyncio.create_task(client.get_stream())
        await ends_cleanly(first)
        upstream.release()
        assert (await calling).text == "x"
        async with await opening as second:
            await attached(upstream)
            upstream.notify("notifications/new")
            assert await next_method(second) == "notifications/new"


# -- attached again to the same session -------------------------------------------------------------------------------


def _has_gets(count: int, ledger: Ledger) -> bool:
    return ledger.count("GET") >= count


async def test_a_stream_of_ours_that_the_server_still_holds_is_waited_for() -> None:
    """409 says that it has not learned of the end of the former one."""
    conflict = Answer(409, (("Content-Type", "application/json"),), b'{"jsonrpc":"2.0"}')
    async with scene() as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.inject(conflict, http_method="GET", times=3)
        upstream.end_get_streams()
        await upstream.ledger.wait_for(partial(_has_gets, 5))
        await attached(upstream)
        upstream.notify("notifications/new")
        assert await next_method(stream) == "notifications/new"


async def test_a_first_stream_that_conflicts_is_passed() -> None:
    """Somebody else listens in this session: that is the server's answer."""
    async with scene() as (upstream, _, client):
        upstream.inject(Answer(409), http_method="GET")
        async with await client.get_stream() as stream:
            assert stream.status == 409


@pytest.mark.parametrize("status", [400, 404, 405, 500])
async def test_a_resume_that_is_refused_is_no_end(status: int) -> None:
    """A server that has no event any more, or keeps none, is listened to from now on."""
    refused = Answer(status, (("Content-Type", "text/plain"),), b"no such event")
    async with scene({"event_store": True}) as (upstream, sidecar, client):
        upstream.inject(CutStream(after_events=1, event_ids=True), http_method="GET")
        upstream.inject(refused, http_method="GET")
        async with await client.get_stream() as stream:
            await attached(upstream)
            upstream.notify("notifications/one")
            assert await next_method(stream) == "notifications/one"
            await upstream.ledger.wait_for(partial(_has_gets, 3))
            await attached(upstream)
            upstream.notify("notifications/two")
            assert await next_method(stream) == "notifications/two"
        assert [a.header("last-event-id") for a in upstream.ledger.arrived(http_method="GET")] == [None, "get-0", None]
        assert sidecar.of(HealEnded) == []
        assert not next(iter(sidecar.services.sessions.table)).refuses_get


async def test_a_stream_ended_in_order_to_be_polled_is_resumed() -> None:
    """A clean end behind an event with an id loses nothing."""
    async with scene({"event_store": True}) as (upstream, _, client):
        upstream.inject(EndStream(1, event_ids=True), http_method="GET")
        async with await client.get_stream() as stream:
            await attached(upstream)
            for name in ("one", "two"):
                upstream.notify(f"notifications/{name}")
            assert [await next_method(stream) for _ in range(2)] == ["notifications/one", "notifications/two"]


# -- what is told on it -----------------------------------------------------------------------------------------------

OURS = encode_event('{"jsonrpc":"2.0","method":"notifications/ours"}')


async def test_our_own_events_come_on_the_stream() -> None:
    """Attached or while the upstream is away; where the client has left, nobody can be told."""
    async with scene() as (upstream, sidecar, client):
        [session] = sidecar.services.sessions.table
        assert sidecar.services.streams.listening.listener_of(session) is None
        async with await client.get_stream() as stream:
            await attached(upstream)
            listener = sidecar.services.streams.listening.listener_of(session)
            assert listener is not None
            assert await listener.tell(OURS)
            assert await next_method(stream) == "notifications/ours"
            await upstream.stop()
            assert await listener.tell(OURS)
            assert await next_method(stream) == "notifications/ours"
        await eventually(lambda: sidecar.services.streams.listening.listener_of(session) is None)
        assert not await listener.tell(OURS)


async def test_a_stream_without_an_answer_cannot_be_told() -> None:
    """Before its head is sent there is nothing to write on."""
    async with scene() as (upstream, sidecar, client):
        upstream.inject(Stall(), http_method="GET")
        opening = asyncio.create_task(client.get_stream())
        await upstream.ledger.wait_for(partial(_has_gets, 1))
        [session] = sidecar.services.sessions.table
        listener = sidecar.services.streams.listening.listener_of(session)
        assert listener is not None
        assert not await listener.tell(OURS)
        upstream.release()
        (await opening).close()


@pytest.mark.parametrize("is_whole", [True, False])
async def test_our_own_events_wait_for_the_end_of_a_large_one(is_whole: bool) -> None:
    """In the middle of an event that passes in pieces they would spoil it; where its end never comes they are dropped."""
    large = b'data: {"jsonrpc":"2.0","method":"notifications/large","params":{"x":"' + b"x" * 5000
    end = b'"}}\n\n' if is_whole else b""
    async with scene(limits__max_request_body=1024) as (upstream, sidecar, client):
        upstream.inject(Says((large, b"", end, b"" if is_whole else b"x")), http_method="GET")
        async with await client.get_stream() as stream:
            [session] = sidecar.services.sessions.table
            assert len(await stream._response.content.readany()) > 1000
            listener = sidecar.services.streams.listening.listener_of(session)
            assert listener is not None
            telling = asyncio.create_task(listener.tell(OURS))
            await asyncio.wait({telling}, timeout=0.1)
            assert not telling.done()
            upstream.release()
            assert await telling is is_whole
            if is_whole:
                rest = await stream._response.content.readany()
                while OURS not in rest:
                    rest += await stream._response.content.readany()
                assert b'"}}\n\n' + OURS in rest
