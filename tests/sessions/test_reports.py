"""Situations that users of other products have reported, each with what its user should get.

The rule: what a server says decides nothing. A lost session is healed and its calls run once, a living one is left alone,
and whoever must wait has an answer. Each test names the report that its bytes or its order of events come from.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, SessionLost
from tests.support.behaviour import SessionMode
from tests.support.client import McpClient
from tests.support.credentials import alice, bearer
from tests.support.dialects import JSON, Dialect, Said
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer, Repeats, RoutePage
from tests.support.listening import attached
from tests.support.own_answers import is_not_found
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar

JSON_TYPE = (("Content-Type", JSON),)
TOOLS = ("echo", "charge")


def rpc_error(code: int, message: str, to: str = "null", data: str = "") -> str:
    more = f',"data":{data}' if data else ""
    return f'{{"jsonrpc":"2.0","error":{{"code":{code},"message":{json.dumps(message)}{more}}},"id":{to}}}'


LOSSES = {
    # diegosouzapw/OmniRoute#5169
    "a header that is unknown": Said(400, rpc_error(-32000, "Bad Request: Unknown Mcp-Session-Id header"), JSON),
    # punkpeye/fastmcp#121: a gateway wraps what the server behind it said
    "an error inside the text of another one": Said(
        500,
        json.dumps(
            {
                "error": "Error POSTing to endpoint (HTTP 400): "
                + rpc_error(-32000, "Bad Request: No valid session ID provided")
            }
        ),
        JSON,
    ),
    # onyx-dot-app/agent-wiki#158
    "a 200 under the request's own id": Said(200, rpc_error(-32600, "missing or invalid Mcp-Session-Id", "{ID}"), JSON),
    # MikkoParkkola/mcp-gateway#248
    "a code of its own": Said(200, rpc_error(-32015, "Session not found", "{ID}"), JSON),
    # LanternOps/breeze#4256, as it says since then
    "one text for all sessions that cannot be used": Said(404, '{"error":"Session not found or expired"}', JSON),
}


@pytest.mark.parametrize("said", [pytest.param(said, id=name) for name, said in LOSSES.items()])
async def test_a_reported_loss_is_healed(said: Said) -> None:
    """Every call succeeds and an unsafe one has run once; one `initialize` for each loss."""
    async with connected(dialect=Dialect(name="reported", servers="", post=said)) as (upstream, sidecar, client):
        await client.call("tools/list")
        for number, tool in enumerate(TOOLS, 2):
            upstream.forget()
            answer = await client.tool(tool, text="again")
            assert "result" in answer.response, answer
            assert len(upstream.ledger.executions(tool)) == 1
            assert len(upstream.ledger.initializes) == number
        assert len(sidecar.of(SessionLost)) == 2


@pytest.mark.parametrize(
    "refused",
    [
        # Tr3kkR/Yuzu#2070: a cap on sessions, and a pause that is null
        Answer(429, JSON_TYPE, rpc_error(-32010, "Session limit reached", "{}", '{"retry_after_ms":null}').encode()),
        # cartesia-ai/cartesia-mcp#84: the same in other words; giantswarm/muster#1303: a 429 without a body
        Answer(503, JSON_TYPE, b'{"error":"Too many active MCP sessions"}'),
        Answer(429, (("Retry-After", "2"),)),
    ],
    ids=["a cap with JSON-RPC", "a cap in a 503", "a rate"],
)
async def test_a_server_that_has_no_room_for_the_new_session_yet(refused: Answer) -> None:
    """The heal waits within the hold and succeeds; the client never hears of it."""
    async with connected() as (upstream, sidecar, client):
        upstream.forget()
        upstream.inject(refused, rpc_method="initialize", times=3)
        assert "result" in (await client.tool("charge")).response
        assert len(upstream.ledger.executions("charge")) == 1
        assert [fact.outcome for fact in sidecar.of(HealEnded)][-1] is HealOutcome.HEALED


@pytest.mark.parametrize("rpc_id", ["own", "null"])
@pytest.mark.parametrize("status", [200, 404, 400])
async def test_a_server_without_ping_lives(status: int, rpc_id: str) -> None:
    """Barnett-Studios/cxpak#116: it answers a ping that there is no such method, by which it has dispatched it.

    A tool that speaks of a session of its own runs once, and nothing is healed.
    """
    said = Said(status, rpc_error(-32601, "Method not found", "{ID}" if rpc_id == "own" else "null"), JSON)
    async with connected() as (upstream, sidecar, client):
        upstream.inject(Repeats(said), rpc_method="ping", times=None)
        upstream.inject(
            Answer(400, JSON_TYPE, b'{"error":"no such chat session"}', executes=True), tool="charge", times=None
        )
        for number in range(1, 4):
            assert (await client.tool("charge")).status == 400
            assert len(upstream.ledger.executions("charge")) == number
        assert len(upstream.ledger.initializes) == 1
        assert sidecar.of(HealEnded) == []


async def test_a_server_that_is_full_before_it_looks_at_the_session() -> None:
    """zereight/gitlab-mcp#697: a request in a lost session meets first what a request without one would meet.

    What only reads waits and is healed; of the other a 503 that no MCP server wrote does not say that it did not run.
    """
    full = Answer(503, JSON_TYPE, b'{"error":"Maximum 1 concurrent sessions reached"}')
    async with connected() as (upstream, _, client):
        await client.call("tools/list")
        for tool in TOOLS:
            upstream.forget()
            upstream.inject(full, times=3)
            answer = await client.tool(tool, text="x")
            assert answer.status == 200
            assert len(upstream.ledger.executions(tool)) == (1 if tool == "echo" else 0)
            assert ("result" in answer.response) == (tool == "echo")
            await upstream.clear()
        assert "result" in (await client.tool("charge")).response


@pytest.mark.parametrize("method", ["tools/list", "tools/call"])
async def test_a_route_that_is_missing_for_a_moment(method: str) -> None:
    """anthropics/claude-code#94273: a server without sessions, an ingress that has no route to it for 1.5 seconds.

    What only reads is sent again and succeeds; the other has a definite answer and has run once at most. The next one works.
    """
    params = {"name": "charge", "arguments": {}} if method == "tools/call" else {}
    async with connected(sessions=SessionMode.STATELESS) as (upstream, _, client):
        assert "result" in (await client.call(method, params)).response
        upstream.inject(RoutePage(), times=None)
        asked = asyncio.create_task(client.call(method, params))
        await asyncio.sleep(1.5)
        await upstream.clear()
        answer = await asked
        assert answer.status == 200
        assert len(upstream.ledger.executions("charge")) == (1 if params else 0)
        if params:
            assert answer.error["data"]["reason"] == "outcome_unknown"
        else:
            assert "result" in answer.response
        assert "result" in (await client.call(method, params)).response


async def test_a_ping_without_a_session_may_be_refused() -> None:
    """Kuadrant/mcp-gateway#1419: strict servers refuse a ping outside of a session, and serve everything else.

    Behind a gateway's page a request that only reads goes again in good time.
    """
    async with connected(sessions=SessionMode.STATELESS) as (upstream, _, client):
        await client.call("tools/list")
        refusal = rpc_error(-32000, "Bad Request: Server not initialized").encode()
        upstream.inject(Answer(400, JSON_TYPE, refusal), rpc_method="ping", times=None)
        page = Answer(502, (("Content-Type", "text/html"),), b"<html>502</html>")
        upstream.inject(page, rpc_method="tools/list", times=2)
        before = len(upstream.ledger.arrivals)
        assert "result" in (await client.call("tools/list")).response
        assert len(upstream.ledger.arrivals) - before <= 8
        assert len(upstream.ledger.initializes) == 1


@pytest.mark.parametrize("tool", TOOLS)
async def test_a_server_that_takes_initialized_in_its_own_time(tool: str) -> None:
    """zoedsoupe/anubis-mcp#198: it answers ``initialized`` first and notes it then; a request right behind is refused.

    The new session lives, as a ping shows, and any tool may say so of something else: the answer passes under the request's
    id, nothing is healed again or runs, and the next call works.
    """
    early = rpc_error(-32600, "Server not initialized", "4")
    async with connected() as (upstream, _, client):
        await client.call("tools/list")
        upstream.forget()
        upstream.inject(Answer(200, JSON_TYPE, early.encode()), tool=tool, skip=1)
        answer = await client.call("tools/call", {"name": tool, "arguments": {"text": "x"}}, id=4)
        assert (answer.status, answer.response["id"], answer.error["code"]) == (200, 4, -32600)
        assert upstream.ledger.executions(tool) == []
        assert "result" in (await client.tool(tool, text="x")).response
        assert len(upstream.ledger.initializes) == 2


async def test_a_stream_that_ends_at_once_while_the_former_one_is_there() -> None:
    """modelcontextprotocol/kotlin-sdk#715: in the place of a 409 a stream of 200 that ends without a byte.

    The client's stream stays open and is attached once the server has let go of the former one; the session is not healed.
    """
    async with connected() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        empty = Answer(200, (("Content-Type", "text/event-stream"),), b"")
        upstream.inject(empty, http_method="GET", times=8)
        before = len(upstream.ledger.arrivals)
        upstream.end_get_streams()
        await attached(upstream)
        upstream.notify("notifications/marker")
        message = await stream.next_message()
        assert message is not None
        assert message["method"] == "notifications/marker"
        assert len(upstream.ledger.arrivals) - before <= 30
        assert sidecar.of(HealEnded) == []


async def test_a_second_stream_ends_the_session_of_some_servers() -> None:
    """supercorp-ai/supergateway#126: a conflict of two streams ends the process behind it, with all sessions.

    The client's stream and its next call go on in a new session.
    """
    async with connected() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        conflict = rpc_error(-32000, "Conflict: Only one SSE stream is allowed per session").encode()
        upstream.inject(Answer(409, JSON_TYPE, conflict), http_method="GET")
        upstream.end_get_streams()
        await upstream.ledger.wait_for(lambda ledger: any(a.answer_status == 409 for a in ledger.arrivals))
        await upstream.restart()
        assert "result" in (await client.tool("charge")).response
        await attached(upstream)
        upstream.notify("notifications/marker")
        while (message := await stream.next_message()) is not None and message["method"] != "notifications/marker":
            pass
        assert message is not None
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]
        assert len(upstream.ledger.executions("charge")) == 1


@pytest.mark.parametrize("names_its_user", [True, False])
@pytest.mark.parametrize("tool", TOOLS)
async def test_a_server_that_ends_its_sessions_with_each_new_token(tool: str, names_its_user: bool) -> None:
    """liketrek/TREK#1475, stacklok/toolhive#5306: behind a refresh of the token the session is not found.

    A token of the same issuer, subject and client heals, and the call runs once. One that names nobody may be anybody's: by the
    404 its client starts over.
    """
    lost = Dialect(name="reported", servers="", post=Said(404, '{"error":"Session not found"}', JSON))
    old, new = (alice(), alice()) if names_its_user else (bearer("old"), bearer("new"))
    async with (
        FakeUpstream(dialect=lost) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=old) as client,
    ):
        await client.initialize()
        await client.call("tools/list")
        upstream.forget()
        client.headers = new
        answer = await client.tool(tool, text="x")
        if names_its_user:
            assert "result" in answer.response, answer
        else:
            assert is_not_found(answer)
        assert len(upstream.ledger.executions(tool)) == len(upstream.ledger.initializes) - 1 == names_its_user
