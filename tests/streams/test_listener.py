"""The client's listening stream: relayed, kept open while the upstream is away, attached again, healed."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from mcp_sidecar.facts import ActionObserved, AnswerRewritten, HealEnded, HealOutcome, HoldOverflowed, ObservedAction
from mcp_sidecar.waiting.availability import SLOWEST_PACE_S
from tests.support.behaviour import Answers
from tests.support.client import raw_exchange
from tests.support.faults import Answer, CutStream, IngressPage, ResetBeforeExecution, RoutePage, Stall
from tests.support.ledger import Ledger
from tests.support.listening import attached, next_method, scene
from tests.support.waiting import eventually

NOT_FOUND = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'


# -- while everything is well -----------------------------------------------------------------------------------------


async def test_a_stream_is_relayed_event_by_event() -> None:
    """It is answered before there is an event, and every event arrives before the next one exists."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        assert stream.status == 200
        assert stream.headers["Content-Type"] == "text/event-stream"
        await attached(upstream)
        for name in ("one", "two"):
            upstream.notify(f"notifications/{name}")
            assert await next_method(stream) == f"notifications/{name}"
        assert upstream.ledger.count("GET") == 1
        assert sidecar.services.streams.open.get_streams == 1
        assert [session.streams for session in sidecar.services.sessions.table] == [1]


async def test_a_silent_stream_is_commented_on() -> None:
    """So that nothing in between takes it for dead."""
    async with scene() as (_, _, client), await client.get_stream() as stream:
        event = await stream.next_event()
        assert event is not None
        assert event.raw.startswith(b":")


async def test_a_client_that_leaves_ends_the_upstream_stream() -> None:
    """There is never an upstream GET without a client's: it would swallow messages."""
    async with scene() as (upstream, sidecar, client):
        stream = await client.get_stream()
        await attached(upstream)
        stream.close()
        await upstream.ledger.wait_for(lambda ledger: ledger.arrived(http_method="GET")[0].client_left)
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)
        assert [session.streams for session in sidecar.services.sessions.table] == [0]
        async with await client.get_stream() as again:
            assert again.status == 200


async def test_a_second_stream_replaces_the_first() -> None:
    """The client has left its former one, which ends cleanly; the upstream never has two of them open."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        async with await client.get_stream() as second:
            assert second.status == 200
            assert all([event.message is None async for event in stream.rest()])
            await attached(upstream)
            upstream.notify("notifications/one")
            assert await next_method(second) == "notifications/one"
            assert sidecar.services.streams.open.get_streams == 1


async def test_the_upstream_sees_the_clients_headers_and_its_own_id() -> None:
    """Accept, credentials and a resume's event id as they came; the session id of the upstream's."""
    async with scene({"event_store": True}) as (upstream, _, client):
        async with await client.get_stream(headers={"Authorization": "", "X-Mine": "1"}) as stream:
            await attached(upstream)
            upstream.notify("notifications/one")
            event = None
            while event is None or event.event_id is None:
                event = await stream.next_event()
        async with await client.get_stream(last_event_id=event.event_id) as resumed:
            assert resumed.status == 200
            upstream.notify("notifications/two")
            assert await next_method(resumed) == "notifications/two"
        first, second = upstream.ledger.arrived(http_method="GET")
        assert first.header("accept") == "text/event-stream"
        assert first.header("x-mine") == "1"
        assert first.header("last-event-id") is None
        assert second.header("last-event-id") == event.event_id


@pytest.mark.parametrize("session_id", [None, "unknown"])
async def test_a_stream_outside_a_known_session_is_only_passed_on(session_id: str | None) -> None:
    """Nobody keeps it open, and nothing is remembered."""
    async with scene() as (upstream, sidecar, client):
        client.session_id = session_id
        async with await client.get_stream() as stream:
            assert stream.status == (400 if session_id is None else 404)
        assert upstream.ledger.arrived(http_method="GET")[0].session_id == session_id
        await upstream.stop()
        async with await client.get_stream() as stream:
            assert stream.status == 503
        assert sidecar.of(HealEnded) == []


async def test_another_principal_cannot_listen() -> None:
    """Its request goes with the client-visible id, and is never kept open or healed."""
    async with scene({"bind_principal": True}) as (upstream, sidecar, client):
        async with await client.get_stream(headers={"Authorization": "Bearer other"}) as stream:
            assert stream.status == 404
            assert (await stream.read()).body == NOT_FOUND
        assert upstream.ledger.arrived(http_method="GET")[0].session_id == client.session_id
        assert HealOutcome.HEALED not in [fact.outcome for fact in sidecar.of(HealEnded)]


# -- 405 --------------------------------------------------------------------------------------------------------------


async def test_405_passes_and_is_remembered() -> None:
    """A client told that there is no stream must not be given one because the upstream is away."""
    async with scene({"get_streams": False}) as (upstream, _, client):
        async with await client.get_stream() as stream:
            assert stream.status == 405
            assert stream.headers["Allow"] == "POST"
        await upstream.stop()
        async with await client.get_stream() as stream:
            assert stream.status == 405


async def test_a_405_that_is_over_is_forgotten() -> None:
    """What counts is how the last GET was answered."""
    async with scene({"get_streams": False}) as (upstream, _, client):
        (await client.get_stream()).close()
        upstream.become(get_streams=True)
        async with await client.get_stream() as stream:
            assert stream.status == 200
        await upstream.stop()
        async with await client.get_stream() as stream:
            assert stream.status == 200


async def test_a_server_that_came_back_without_streams_ends_the_clients() -> None:
    """Cleanly: its next GET is told 405."""
    async with scene() as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        await upstream.restart(get_streams=False)
        async with asyncio.timeout(5):
            assert all([event.message is None async for event in stream.rest()])
        async with await client.get_stream() as again:
            assert again.status == 405


# -- a lost session ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["python-404", "python-400-text", "ts-map-400", "rmcp-401", "ts-v2-get-text"])
async def test_a_lost_session_is_healed_and_listened_to(dialect: str) -> None:
    """The client sees its stream, and the events of the new session on it."""
    async with scene({"dialect": dialect}) as (upstream, sidecar, client):
        await upstream.restart()
        async with await client.get_stream() as stream:
            assert stream.status == 200
            await attached(upstream)
            upstream.notify("notifications/new")
            assert await next_method(stream) == "notifications/new"
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]
        assert len(upstream.ledger.initializes) == 2
        assert set(client.seen_session_ids) == {client.session_id}


async def test_a_stream_survives_a_restart() -> None:
    """It is attached to the new session; the client's connection is the one that it opened."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.notify("notifications/before")
        assert await next_method(stream) == "notifications/before"
        await upstream.restart()
        await attached(upstream)
        upstream.notify("notifications/after")
        assert await next_method(stream) == "notifications/after"
        assert len(sidecar.of(HealEnded)) == 1
        assert (await client.tool("echo", text="x")).text == "x"
        assert len(upstream.ledger.initializes) == 2
        assert sidecar.services.streams.open.get_streams == 1


async def test_event_ids_of_two_servers_are_told_apart() -> None:
    """A restarted server counts from zero; an id of the old one never reaches the new one, its own ids do unmarked."""
    async with scene({"event_store": True}) as (upstream, _, client):
        ids: list[str] = []
        async with await client.get_stream() as stream:
            await attached(upstream)
            for _ in range(2):
                upstream.notify("notifications/x")
                event = None
                while event is None or event.message is None:
                    event = await stream.next_event()
                assert event.event_id is not None
                ids.append(event.event_id)
                if len(ids) == 1:
                    await upstream.restart()
                    await attached(upstream)
        assert len(set(ids)) == 2
        for event_id, expected in ((ids[0], None), (ids[1], "get-0")):
            await eventually(lambda: not any(s.get_streams_open for s in upstream.sessions.values()))
            async with await client.get_stream(last_event_id=event_id) as stream:
                assert stream.status == 200
                assert upstream.ledger.arrived(http_method="GET")[-1].header("last-event-id") == expected
        [new_id] = upstream.sessions
        asked_new = upstream.ledger.arrived(http_method="GET", session_id=new_id)
        assert [arrival.header("last-event-id") for arrival in asked_new] == [None, None, "get-0"]


async def test_a_refused_resume_is_no_lost_session() -> None:
    """rmcp answers 500 to a resume that it cannot do; the stream itself can be had."""
    refused = Answer(500, (), b"Encounter an error when resume session: Channel error: 5")
    async with scene() as (upstream, sidecar, client):
        upstream.inject(refused, http_method="GET")
        async with await client.get_stream(last_event_id="5") as stream:
            assert stream.status == 200
            await attached(upstream)
        resumed, plain = upstream.ledger.arrived(http_method="GET")
        assert (resumed.header("last-event-id"), plain.header("last-event-id")) == ("5", None)
        assert sidecar.of(HealEnded) == []
        assert len(upstream.ledger.initializes) == 1


async def test_a_401_while_attaching_again_ends_the_stream_cleanly() -> None:
    """Only the client can get a new token; its next GET is told so."""
    async with scene({"authorization": frozenset({"Bearer a"})}) as (upstream, _, client):
        client.headers = {"Authorization": "Bearer a"}
        await client.initialize()
        async with await client.get_stream() as stream:
            assert stream.status == 200
            await attached(upstream)
            upstream.become(authorization=frozenset({"Bearer b"}))
            upstream.end_get_streams()
            async with asyncio.timeout(5):
                assert all([event.message is None async for event in stream.rest()])
        async with await client.get_stream() as again:
            assert again.status == 401
            assert "WWW-Authenticate" in again.headers


async def test_a_server_that_is_another_one_ends_the_session() -> None:
    """An open stream ends cleanly, a new GET gets the 404 that makes the client start over."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        await upstream.restart(server_name="another")
        async with asyncio.timeout(5):
            assert all([event.message is None async for event in stream.rest()])
        async with await client.get_stream() as again:
            assert again.status == 404
            assert (await again.read()).body == NOT_FOUND
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.INCOMPATIBLE]


# -- the upstream is away ---------------------------------------------------------------------------------------------


async def test_a_stream_is_answered_while_the_upstream_is_away() -> None:
    """With 200 and comments; it is attached when the upstream is back, healed where that has lost the session."""
    async with scene() as (upstream, _, client):
        await upstream.stop()
        async with await client.get_stream() as stream:
            assert stream.status == 200
            assert stream.headers["Content-Type"] == "text/event-stream"
            for _ in range(3):
                event = await stream.next_event()
                assert event is not None
                assert event.raw.startswith(b":")
            await upstream.restart()
            await attached(upstream)
            upstream.notify("notifications/back")
            assert await next_method(stream) == "notifications/back"


async def test_a_stream_survives_an_outage_without_loss() -> None:
    """A server that stores its sessions is simply listened to again, with no event lost that it kept."""
    async with scene({"event_store": True}) as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.notify("notifications/one")
        assert await next_method(stream) == "notifications/one"
        await upstream.stop()
        upstream.notify("notifications/missed")
        await upstream.start()
        assert await next_method(stream) == "notifications/missed"
        assert sidecar.of(HealEnded) == []


@pytest.mark.long
@pytest.mark.parametrize("page", [IngressPage(503), IngressPage(502, html=False), RoutePage()], ids=str)
async def test_an_ingress_page_is_an_outage(page: IngressPage | RoutePage) -> None:
    """The stream is answered and attached when the page is gone."""
    async with scene() as (upstream, sidecar, client):
        await client.tool("echo", text="worked")
        upstream.inject(page, times=3)
        async with await client.get_stream() as stream:
            assert stream.status == 200
            await attached(upstream)
            upstream.notify("notifications/back")
            assert await next_method(stream) == "notifications/back"
        assert sidecar.of(HealEnded) == []


@pytest.mark.long
async def test_a_reset_before_the_head_is_tried_again() -> None:
    """A GET has no effects."""
    async with scene() as (upstream, _, client):
        upstream.inject(ResetBeforeExecution(), http_method="GET")
        async with await client.get_stream() as stream:
            assert stream.status == 200
            await attached(upstream)


@pytest.mark.parametrize("mid_event", [False, True])
async def test_a_stream_that_breaks_goes_on(mid_event: bool) -> None:
    """An event of which only half arrived never reaches the client as if whole."""
    async with scene({"event_store": True}) as (upstream, _, client):
        cut = CutStream(after_events=0 if mid_event else 1, event_ids=True, mid_event=mid_event)
        upstream.inject(cut, http_method="GET")
        async with await client.get_stream() as stream:
            await attached(upstream)
            upstream.notify("notifications/one")
            if not mid_event:
                assert await next_method(stream) == "notifications/one"
            await eventually(lambda: upstream.ledger.count("GET") == 2)
            await attached(upstream)
            upstream.notify("notifications/two")
            assert await next_method(stream) == "notifications/two"


def _has_gets(count: int, ledger: Ledger) -> bool:
    return ledger.count("GET") == count


@pytest.mark.long
async def test_a_server_that_ends_its_streams_is_not_asked_in_a_loop() -> None:
    """A stream that ended as soon as it began is attached again after a pause, or after the server's ``retry``."""
    async with scene() as (upstream, _, client), await client.get_stream():
        await attached(upstream)
        for n in range(2, 5):
            upstream.end_get_streams()
            started = asyncio.get_running_loop().time()
            await upstream.ledger.wait_for(partial(_has_gets, n))
            await attached(upstream)
            assert (asyncio.get_running_loop().time() - started > 0.9) is (n > 2)


async def test_a_delete_ends_a_stream_that_waits() -> None:
    """Nothing will ever come on it, whether the upstream returns or not."""
    async with scene() as (upstream, _, client):
        await upstream.stop()
        async with await client.get_stream() as stream:
            assert (await client.delete()).status == 200
            async with asyncio.timeout(5):
                assert all([event.message is None async for event in stream.rest()])


async def test_a_drain_breaks_streams_off_at_once() -> None:
    """Attached or waiting: the ending after which most clients open another."""
    async with scene() as (upstream, sidecar, client):
        request = "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        request += f"Mcp-Session-Id: {client.session_id}\r\n\r\n"
        listening = asyncio.create_task(raw_exchange(sidecar.port, request.encode()))
        await eventually(lambda: any(session.streams for session in sidecar.services.sessions.table))
        await sidecar.drain()
        answer = await listening
        assert not answer.data.endswith(b"0\r\n\r\n")
        assert not answer.timed_out
    async with scene() as (upstream, sidecar, client):
        await upstream.stop()
        async with await client.get_stream() as stream:
            await sidecar.drain()
            answered = await stream.read()
            assert (answered.messages, answered.broken is None) == ([], False)


# -- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rewrite", "observe"])
async def test_other_modes_keep_no_stream_open(mode: str) -> None:
    """It ends with the upstream's; while that is away there is none."""
    async with scene({"answers": Answers.JSON}, healing__mode=mode) as (upstream, sidecar, client):
        stream = await client.get_stream()
        assert stream.status == 200
        await attached(upstream)
        upstream.end_get_streams()
        assert await stream.next_event() is None
        await upstream.stop()
        async with await client.get_stream() as away:
            assert away.status == (503 if mode == "rewrite" else 502)
        await upstream.restart()
        async with await client.get_stream() as lost:
            assert lost.status == 404
            body = (await lost.read()).body
        assert (body == NOT_FOUND) is (mode == "rewrite")
        assert len(upstream.ledger.initializes) == 1
        assert len(sidecar.of(AnswerRewritten)) == (mode == "rewrite")
        if mode == "observe":
            assert ObservedAction.HEAL in [fact.action for fact in sidecar.of(ActionObserved)]


async def test_an_answer_that_is_no_stream_passes() -> None:
    """A 200 with something else in it is the server's business."""
    async with scene() as (upstream, _, client):
        upstream.inject(Answer(200, (("Content-Type", "text/html"),), b"<p>hello"), http_method="GET")
        async with await client.get_stream() as stream:
            answer = await stream.read()
            assert (answer.status, answer.body, answer.content_type) == (200, b"<p>hello", "text/html")


@pytest.mark.long
async def test_a_stream_whose_heal_stalls_does_not_hurry() -> None:
    """It waits without a request's place, and the upstream is asked again at the pace of a route, not in a loop."""
    async with (
        scene(healing__max_held_requests=0, healing__hold_timeout=0.01) as (upstream, sidecar, client),
        await client.get_stream() as stream,
    ):
        await attached(upstream)
        upstream.inject(Stall(), rpc_method="initialize", times=None)
        standalone = upstream.sessions[client.session_id or ""].standalone
        upstream.forget()
        standalone.hang_up()
        await eventually(lambda: upstream.ledger.count("GET") >= 2)
        asked, began = upstream.ledger.count("GET"), asyncio.get_running_loop().time()
        await eventually(lambda: upstream.ledger.count("GET") >= asked + 3)
        assert asyncio.get_running_loop().time() - began >= 2 * SLOWEST_PACE_S / 2
        assert sidecar.of(HoldOverflowed) == []
        stream.close()
        upstream.release()
