"""Behind a break of its listening stream a session is asked about once, and what a server may have forgotten is said again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, HintDropped, ListeningEnded, ListKind, ListsChanged
from tests.support.behaviour import SessionMode
from tests.support.client import McpClient, Stream
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer, CutStream, ResetAfterExecution
from tests.support.ledger import Arrival
from tests.support.listening import Says, attached, ends_cleanly, next_method, scene
from tests.support.sidecar import WatchedSidecar
from tests.support.waiting import eventually

JSON = (("Content-Type", "application/json"),)
THERE = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Bad Request: session already exists"}}'


def pings(upstream: FakeUpstream) -> list[Arrival]:
    """The sidecar's own."""
    return [arrival for arrival in upstream.ledger.arrivals if b'"mcp-sidecar-ping-' in arrival.body]


def said_again(upstream: FakeUpstream, *, process: int | None = None) -> list[str]:
    """What the sidecar has said for the client, in order."""
    arrivals = upstream.ledger.arrived(process=process) if process is not None else upstream.ledger.arrivals
    own = [arrival for arrival in arrivals if b'"mcp-sidecar-restore-' in arrival.body]
    return [arrival.rpc_methods[0] for arrival in own]


async def is_refreshed(sidecar: WatchedSidecar, upstream: FakeUpstream) -> None:
    """Wait until the break is settled, and nothing is said any more."""
    await eventually(lambda: pings(upstream) and not len(sidecar.services.sessions.refresher))


async def hears(upstream: FakeUpstream, stream: Stream) -> list[str]:
    """The methods of what has come on the stream, up to a marker that is sent now."""
    upstream.notify("notifications/marker")
    methods = [await next_method(stream)]
    while methods[-1] != "notifications/marker":
        methods.append(await next_method(stream))
    return methods[:-1]


async def set_up(client: McpClient) -> None:
    """A log level, a subscription, and a list that the client has seen."""
    await client.call("logging/setLevel", {"level": "info"})
    await client.call("resources/subscribe", {"uri": "memo://one"})
    await client.call("tools/list")


# -- a loss that the new stream does not show -------------------------------------------------------------------------


async def test_a_stream_that_is_given_to_any_id_is_not_trusted() -> None:
    """Some servers answer 200 to a GET of any id (mcp-go 0.43, stateful): a client that only listens is healed all the same."""
    async with scene({"get_takes_any": True}) as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        await upstream.restart()
        await attached(upstream)
        assert await hears(upstream, stream) == []
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]
        assert len(pings(upstream)) == 1


async def test_a_loss_in_words_of_its_own_is_found_by_asking() -> None:
    """No row of the table knows these words; the ping on the same session does."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.inject(Answer(400, (("Content-Type", "text/plain"),), b"never heard of you"), http_method="GET")
        await upstream.restart()
        await attached(upstream)
        assert await hears(upstream, stream) == []
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]


@pytest.mark.long
@pytest.mark.parametrize("status", [400, 409, 500])
async def test_a_stream_that_is_there_already_is_tried_for_minutes(status: int) -> None:
    """Some servers learn only after 170 s that the former stream is gone: the client's own stays open, and is commented."""
    async with scene(listen__comment_interval=20) as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.inject(Answer(status, JSON, THERE), http_method="GET", times=None)
        upstream.end_get_streams()
        await asyncio.sleep(170)
        assert upstream.ledger.count("GET") < 100
        await upstream.clear()
        await attached(upstream)
        assert await hears(upstream, stream) == []
        assert sidecar.of(HealEnded) == []
        assert len(pings(upstream)) == 1


async def test_a_stream_that_is_over_for_good_is_told_once() -> None:
    """The client's stream ends; why stands in the log, once."""
    async with scene() as (upstream, sidecar, client):
        async with await client.get_stream() as stream:
            await attached(upstream)
            upstream.become(get_streams=False)
            upstream.end_get_streams()
            await ends_cleanly(stream)
        async with await client.get_stream() as again:
            assert again.status == 405
        assert [fact.status for fact in sidecar.of(ListeningEnded)] == [405]


# -- a session that expires while its client only listens -------------------------------------------------------------


async def expiring(upstream: FakeUpstream, idle_s: float) -> None:
    """A server that ends what nobody has used for so long."""
    while True:
        await asyncio.sleep(idle_s)
        upstream.end_get_streams()
        upstream.forget()


@pytest.mark.long
async def test_a_session_that_expires_is_healed_ever_more_rarely() -> None:
    """One heal, then doubling intervals, of which nobody hears anything. A call is healed at once, and tells of it."""
    async with scene(listen__comment_interval=20) as (upstream, sidecar, client):
        await set_up(client)
        async with await client.get_stream() as stream:
            await attached(upstream)
            server = asyncio.create_task(expiring(upstream, 2.0))
            await asyncio.sleep(20)
            assert 1 <= len(sidecar.of(HealEnded)) <= 5
            await asyncio.sleep(600)
            heals = sidecar.of(HealEnded)
            assert 5 <= len(heals) <= 9
            assert {fact.outcome for fact in heals} == {HealOutcome.HEALED}
            assert (await client.tool("echo", text="x")).text == "x"
            await asyncio.sleep(10)
            assert len(sidecar.of(HealEnded)) >= len(heals) + 2
            server.cancel()
            await attached(upstream)
            assert await hears(upstream, stream) == ["notifications/resources/updated", "notifications/message"]
        assert sidecar.of(HintDropped) == []


async def test_a_restart_is_told_of_as_ever() -> None:
    """What breaks has not expired: the client reads again what it has subscribed to."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await set_up(client)
        await attached(upstream)
        await upstream.restart()
        await attached(upstream)
        assert await hears(upstream, stream) == ["notifications/resources/updated", "notifications/message"]
        assert len(sidecar.of(HealEnded)) == 1


# -- what a server forgets without saying so --------------------------------------------------------------------------


async def test_what_was_set_is_said_again_to_a_server_that_takes_any_id() -> None:
    """A restart of such a server cannot be seen: behind the break it is told all, and asked for its lists; no initialize."""
    async with scene({"sessions": SessionMode.ADOPTING}) as (upstream, sidecar, client):
        await set_up(client)
        async with await client.get_stream() as stream:
            await attached(upstream)
            await upstream.restart(extra_tools=("new",))
            await attached(upstream)
            await is_refreshed(sidecar, upstream)
            assert await hears(upstream, stream) == ["notifications/tools/list_changed"]
            upstream.touch("memo://one")
            assert await next_method(stream) == "notifications/resources/updated"
        assert said_again(upstream) == ["logging/setLevel", "resources/subscribe"]
        assert upstream.ledger.count("initialize") == 1
        assert [fact.kind for fact in sidecar.of(ListsChanged)] == [ListKind.TOOLS]
        assert sidecar.of(HealEnded) == []
        assert len(pings(upstream)) == 1


async def test_it_can_be_switched_off() -> None:
    """``healing.refresh_after_break = false``: one ping, and nothing is said again."""
    async with scene({"sessions": SessionMode.ADOPTING}, healing__refresh_after_break="false") as (
        upstream,
        sidecar,
        client,
    ):
        await set_up(client)
        async with await client.get_stream() as stream:
            await attached(upstream)
            await upstream.restart()
            await attached(upstream)
            await is_refreshed(sidecar, upstream)
            assert await hears(upstream, stream) == []
        assert said_again(upstream) == []


async def test_a_call_that_breaks_is_a_break_for_a_client_that_does_not_listen() -> None:
    """Its stream is the only one that shows it."""
    async with scene({"sessions": SessionMode.ADOPTING}) as (upstream, sidecar, client):
        await set_up(client)
        upstream.inject(CutStream(after_events=0), tool="charge")
        await client.tool("charge", amount=1)
        await is_refreshed(sidecar, upstream)
        assert said_again(upstream) == ["logging/setLevel", "resources/subscribe"]
        assert len(upstream.ledger.executions("charge")) == 1
        assert sidecar.of(HealEnded) == []


# -- a server that opens another session by itself --------------------------------------------------------------------


async def test_a_session_goes_on_under_the_id_that_its_server_shows() -> None:
    """The client keeps its own id; upstream the other is used from then on, and told all that was set."""
    async with scene({"sessions": SessionMode.OPENING}) as (upstream, sidecar, client):
        await set_up(client)
        await upstream.restart()
        answer = await client.tool("echo", text="x")
        assert (answer.text, answer.session_id) == ("x", client.session_id)
        await eventually(lambda: said_again(upstream) and not len(sidecar.services.sessions.refresher))
        await client.tool("echo", text="y")
        [opened] = upstream.sessions
        [first, second] = [a.session_id for a in upstream.ledger.arrived(tool="echo") if a.process == upstream.process]
        assert (first, second) == (client.session_id, opened)
        assert said_again(upstream) == ["logging/setLevel", "resources/subscribe"]
        [session] = sidecar.services.sessions.table
        assert (session.generation, session.upstream_id, session.told_restart) == (2, opened, True)
        assert upstream.ledger.count("initialize") == 1


async def test_questions_of_both_are_kept_apart() -> None:
    """The other session counts its questions from zero again: the client sees them under ids of their own."""
    async with scene({"sessions": SessionMode.OPENING}) as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        first = asyncio.create_task(upstream.ask(next(iter(upstream.sessions)), "roots/list", {}))
        before = await stream.next_message()
        assert before is not None
        await client.respond(before["id"], {"roots": []})
        await first
        await upstream.restart()
        await attached(upstream)
        second = asyncio.create_task(upstream.ask(next(iter(upstream.sessions)), "roots/list", {}))
        after = await stream.next_message()
        assert after is not None
        assert after["id"] != before["id"]
        await client.respond(after["id"], {"roots": [{"uri": "file:///"}]})
        assert (await second)["result"] == {"roots": [{"uri": "file:///"}]}


async def test_an_id_on_which_another_session_stands_is_nobody_elses() -> None:
    """Whatever a server shows, no client ever gets into a session that is another's."""
    async with scene() as (upstream, sidecar, client), McpClient(sidecar.url) as other:
        await other.initialize()
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {}}).encode()
        assert other.session_id is not None
        upstream.inject(Answer(200, (*JSON, ("Mcp-Session-Id", other.session_id)), body), rpc_method="ping")
        answer = await client.call("ping", id=1)
        assert answer.session_id == client.session_id
        await client.tool("echo", text="mine")
        assert upstream.ledger.arrived(tool="echo")[0].session_id == client.session_id
        assert {session.generation for session in sidecar.services.sessions.table} == {1}


# -- answers on another stream ----------------------------------------------------------------------------------------


async def test_a_call_that_was_sent_again_is_answered_under_its_own_id_on_any_stream() -> None:
    """Some servers answer on the listening stream: the id of the second attempt is nobody's but the sidecar's."""
    async with scene() as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        await client.call("tools/list")
        upstream.inject(ResetAfterExecution(), tool="echo")
        upstream.inject(Says((b": wait\n\n", b"")), tool="echo")
        params: dict[str, Any] = {"name": "echo", "arguments": {"text": "x"}}
        calling = asyncio.create_task(client.call("tools/call", params, id=7))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.arrived(tool="echo")) == 2)
        sent = json.loads(upstream.ledger.arrived(tool="echo")[1].body)
        assert sent["id"] != 7
        upstream.push({"jsonrpc": "2.0", "id": sent["id"], "result": {"content": []}})
        message = await stream.next_message()
        assert message == {"jsonrpc": "2.0", "id": 7, "result": {"content": []}}
        upstream.release()
        assert (await calling).messages == []
        upstream.notify("notifications/next")
        assert await next_method(stream) == "notifications/next"
