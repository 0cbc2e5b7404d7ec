"""A request that is held for long: its answer is opened as a stream, kept alive, and ended with what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcp_sidecar.facts import SessionEnd, SessionEnded
from tests.support.behaviour import Answers
from tests.support.client import ACCEPT, McpClient, Stream, raw_exchange, raw_post
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer as Says
from tests.support.faults import Refuse, Stall, StallAt, TruncateJson
from tests.support.own_answers import is_not_found
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

EARLY: dict[str, object] = {"healing__early_stream_after": 0.05, "listen__comment_interval": 0.1}
ECHO = {"name": "echo", "arguments": {"text": "a"}}
CHARGE = {"name": "charge", "arguments": {}}
UNAVAILABLE = {"reason": "upstream_unavailable"}
LOST = {"reason": "session_lost"}


@asynccontextmanager
async def connected(
    settings: dict[str, object] | None = None, **behaviour: Any
) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, McpClient]]:
    """A client with a session, through a sidecar that opens streams early."""
    async with (
        FakeUpstream(**behaviour) as upstream,
        running_sidecar(upstream.url, **{**EARLY, **(settings or {})}) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client


@asynccontextmanager
async def held_early(upstream: FakeUpstream, client: McpClient, **call: Any) -> AsyncIterator[Stream]:
    """A call that is held until its stream is open; the upstream refuses connections."""
    upstream.inject(Refuse())
    async with await client.open_call("tools/call", {**CHARGE, **call}, id="mine") as stream:
        assert stream.status == 200
        yield stream


async def last_message(stream: Stream) -> dict[str, Any]:
    """The one message of a stream, whose end is a clean one."""
    message = await stream.next_message()
    assert message is not None
    assert await stream.next_event() is None
    return message


# -- opened -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", Answers, ids=lambda form: form.value)
async def test_the_answer_comes_on_the_stream(answers: Answers) -> None:
    """Whatever form the upstream's answer has, it is an event of the stream that was opened meanwhile, and its end."""
    async with connected(answers=answers) as (upstream, _, client), held_early(upstream, client) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert stream.headers["Mcp-Session-Id"] == client.session_id
        await upstream.clear()
        message = await last_message(stream)
        assert (message["id"], message["result"]["content"][0]["text"]) == ("mine", "charged 1")
        assert len(upstream.ledger.executions("charge")) == 1


async def test_comments_come_meanwhile() -> None:
    """At least one in each comment interval, in the midst of nothing."""
    async with connected() as (upstream, _, client), held_early(upstream, client) as stream:
        for _ in range(3):
            comment = await stream.next_event(2)
            assert comment is not None
            assert comment.raw == b": keep-alive\n\n"
        await upstream.clear()
        assert "result" in await last_message(stream)


async def test_comments_come_while_the_answer_is_awaited() -> None:
    """A stream that was opened early is kept alive until its end, not only while the request is held."""
    async with connected() as (upstream, _, client), held_early(upstream, client, name="slow") as stream:
        await upstream.clear()
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        for _ in range(2):
            comment = await stream.next_event(2)
            assert comment is not None
            assert comment.raw == b": keep-alive\n\n"
        upstream.slow_gate.set()
        assert "result" in await last_message(stream)


async def test_a_heal_that_takes_long_is_a_hold() -> None:
    """The stream opens while the session is healed; the replay's answer ends it, and the client's id is the old one."""
    async with connected() as (upstream, _, client):
        await upstream.restart()
        upstream.inject(Stall(StallAt.BEFORE_HEADERS), rpc_method="initialize")
        async with await client.open_call("tools/call", CHARGE, id=4) as stream:
            assert stream.headers["Mcp-Session-Id"] == client.session_id
            upstream.release()
            message = await last_message(stream)
        assert message["result"]["content"][0]["text"] == "charged 1"
        assert len(upstream.ledger.executions("charge")) == 1
        assert set(client.seen_session_ids) == {client.session_id}


async def test_a_large_answer_is_one_event() -> None:
    """A JSON answer too large to be kept becomes one event while it comes, line ends out of the way."""
    body = json.dumps({"jsonrpc": "2.0", "id": "mine", "result": {"a": "x\\n" * 100_000}}, indent=1).encode()
    large = Says(200, (("Content-Type", "application/json"),), body.replace(b"\n", b"\r\n"))
    settings: dict[str, object] = {"limits__max_buffered_answer": "64KiB"}
    async with connected(settings) as (upstream, _, client), held_early(upstream, client) as stream:
        upstream.inject(large, tool="charge")
        await upstream.start()
        message = await last_message(stream)
        assert (message["id"], len(message["result"]["a"])) == ("mine", 300_000)


# -- not opened -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "is_early"),
    [
        pytest.param(ACCEPT, True, id="both"),
        pytest.param("text/event-stream;q=0.5", True, id="less gladly"),
        pytest.param("application/json", False, id="json only"),
        pytest.param("*/*", False, id="anything"),
        pytest.param("application/json, text/event-stream;q=0", False, id="refused"),
    ],
)
async def test_who_reads_streams(accept: str, is_early: bool) -> None:
    """Only a client that says that it reads event streams gets one."""
    async with connected({"healing__hold_timeout": 0.3}) as (upstream, _, client):
        upstream.inject(Refuse())
        answer = await client.post(client.request("tools/call", ECHO, id=3), headers={"Accept": accept})
        assert answer.content_type == ("text/event-stream" if is_early else "application/json")
        assert (answer.response["id"], answer.error["data"]) == (3, UNAVAILABLE)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        pytest.param({"method": "notifications/roots/list_changed"}, 202, id="a notification"),
        pytest.param({"id": 4, "result": {}}, 202, id="an answer"),
        pytest.param({"id": 1, "method": "initialize", "params": {}}, 503, id="initialize"),
    ],
)
async def test_what_gets_no_stream(message: dict[str, Any], status: int) -> None:
    """A notification and an answer wait for a status, and `initialize` for headers that nobody knows yet."""
    short: dict[str, object] = {"healing__hold_timeout": 0.3, "healing__connect_hold_timeout": 0.3}
    async with connected(short) as (upstream, _, client):
        upstream.inject(Refuse())
        assert (await client.post({"jsonrpc": "2.0", **message})).status == status


@pytest.mark.parametrize("after", [0, 30], ids=["never", "late"])
async def test_a_short_hold_is_answered_as_ever(after: int) -> None:
    """What is back in time keeps the upstream's own status and headers; so does everything where the setting is 0."""
    settings: dict[str, object] = {"healing__early_stream_after": after}
    async with connected(settings, answers=Answers.JSON) as (upstream, sidecar, client):
        upstream.inject(Refuse())
        call = asyncio.create_task(client.call("tools/call", ECHO))
        await eventually(lambda: len(sidecar.services.holds) == 1)
        await upstream.clear()
        assert (await call).content_type == "application/json"


# -- ended otherwise --------------------------------------------------------------------------------------------------


async def test_a_hold_that_expires_is_told_on_the_stream() -> None:
    """The error that the request would have got is the stream's last event."""
    async with (
        connected({"healing__hold_timeout": 0.3}) as (upstream, _, client),
        held_early(upstream, client) as stream,
    ):
        message = await last_message(stream)
        assert (message["id"], message["error"]["data"]) == ("mine", UNAVAILABLE)


async def test_each_request_of_a_batch_gets_its_error() -> None:
    """As one array, as without a stream."""
    async with connected({"healing__hold_timeout": 0.3}) as (upstream, _, client):
        upstream.inject(Refuse())
        batch = [client.request("ping", id=1), client.request("ping", id=2)]
        answer = await client.batch([*batch, {"jsonrpc": "2.0", "method": "notifications/x"}])
        assert answer.content_type == "text/event-stream"
        [event] = [event for event in answer.events if event.data]
        assert event.data is not None
        errors = json.loads(event.data)
        assert [(error["id"], error["error"]["data"]) for error in errors] == [(1, UNAVAILABLE), (2, UNAVAILABLE)]


async def test_a_session_that_is_another_servers_ends() -> None:
    """The heal finds another server: -32603 with session_lost on the stream, then the 404 for every later request."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(Refuse())
        async with await client.open_call("tools/call", CHARGE, id="mine") as stream:
            upstream.become(server_name="another")
            upstream.forget()
            await upstream.clear()
            message = await last_message(stream)
        assert message["error"]["code"] == -32603
        assert (message["id"], message["error"]["data"]) == ("mine", LOST)
        assert is_not_found(await client.call("ping"))
        assert upstream.ledger.executions("charge") == []
        assert len(sidecar.of(SessionEnded)) == 1


async def test_a_handshake_that_is_rejected_ends_the_session() -> None:
    """Without a stream the next request would try again; the client was told, so it is certain now."""
    async with connected() as (upstream, sidecar, client), held_early(upstream, client) as stream:
        upstream.forget()
        await upstream.start()
        upstream.inject(Says(400, (), b"bad"), rpc_method="initialize")
        message = await last_message(stream)
        assert message["error"]["data"] == LOST
        assert is_not_found(await client.call("ping"))
        assert [fact.reason for fact in sidecar.of(SessionEnded)] == [SessionEnd.GIVEN_UP]


JSON_HEAD = (("Content-Type", "application/json"),)
OWN_ERROR = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: no","data":{"a":1}}}'
SECRET = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"the secret"}}'


@pytest.mark.parametrize(
    ("says", "error"),
    [
        pytest.param(
            Says(401, (*JSON_HEAD, ("WWW-Authenticate", "Bearer")), SECRET),
            {"code": -32603, "message": "The MCP server answered with HTTP status 401 Unauthorized."},
            id="401",
        ),
        pytest.param(
            Says(403, JSON_HEAD, SECRET),
            {"code": -32603, "message": "The MCP server answered with HTTP status 403 Forbidden."},
            id="403",
        ),
        pytest.param(
            Says(400, JSON_HEAD, OWN_ERROR), {"code": -32000, "message": "Bad Request: no"}, id="an error of its own"
        ),
        pytest.param(
            Says(413, (), b"<html>too large"),
            {"code": -32603, "message": "The MCP server answered with HTTP status 413 Request Entity Too Large."},
            id="a page",
        ),
    ],
)
async def test_an_error_status_becomes_an_error(says: Says, error: dict[str, Any]) -> None:
    """A status cannot be passed on any more: the request gets an error that says what came, and no words of a refusal."""
    async with connected() as (upstream, _, client), held_early(upstream, client) as stream:
        upstream.inject(says, tool="charge")
        await upstream.start()
        message = await last_message(stream)
        assert message["id"] == "mine"
        got = message["error"]
        assert got["code"] == error["code"]
        assert got["message"].partition(" status ")[0] == error["message"].partition(" status ")[0]
        assert (str(says.status) in got["message"]) is ("status" in error["message"])
        assert "secret" not in json.dumps(message)
        assert "html" not in json.dumps(message)


async def test_a_refused_heal_becomes_an_error() -> None:
    """The 401 that the re-initialize met is told by its number, and the session stays: its client may come back."""
    async with connected() as (upstream, _, client), held_early(upstream, client) as stream:
        upstream.forget()
        upstream.inject(Says(401, JSON_HEAD, SECRET), rpc_method="initialize")
        await upstream.start()
        message = await last_message(stream)
        assert (message["id"], message["error"]["data"]) == ("mine", {"reason": "http_error", "status": 401})
        assert "secret" not in json.dumps(message)
        assert (await client.tool("charge")).text == "charged 1"


async def test_an_answer_that_breaks_is_told() -> None:
    """A JSON answer that is cut half-way is never an event: the call may have run."""
    async with connected(answers=Answers.JSON) as (upstream, _, client), held_early(upstream, client) as stream:
        upstream.inject(TruncateJson(), tool="charge")
        await upstream.start()
        message = await last_message(stream)
        assert (message["id"], message["error"]["data"]) == ("mine", {"reason": "outcome_unknown"})


async def test_a_cancelled_request_is_told_on_the_stream() -> None:
    """The client takes it back: its error ends the stream, and nothing goes upstream."""
    async with connected() as (upstream, _, client), held_early(upstream, client) as stream:
        assert (await client.notify("notifications/cancelled", {"requestId": "mine"})).status == 202
        message = await last_message(stream)
        assert (message["id"], message["error"]["data"]) == ("mine", {"reason": "cancelled"})
        await upstream.clear()
        await client.call("ping")
        assert upstream.ledger.executions("charge") == []


async def test_a_client_that_left_is_never_sent() -> None:
    """It leaves while its stream is open: the request never reaches the upstream, and nothing waits any more."""
    async with connected() as (upstream, sidecar, client), held_early(upstream, client) as stream:
        stream.close()
        await eventually(lambda: len(sidecar.services.holds) == 0)
        await upstream.clear()
        await client.call("ping")
        assert upstream.ledger.executions("charge") == []


async def test_a_drain_ends_the_stream() -> None:
    """The sidecar stops: who waits gets its error on the stream, not a cut."""
    async with connected() as (upstream, sidecar, client), held_early(upstream, client) as stream:
        draining = asyncio.create_task(sidecar.drain())
        message = await last_message(stream)
        assert message["error"]["data"] == UNAVAILABLE
        await draining


# -- whom it is for ---------------------------------------------------------------------------------------------------


async def test_a_client_of_one_request_at_a_time_is_set_free() -> None:
    """Such a client sends its next message only when it has the headers of the last: here, while the first is held."""
    async with connected({"healing__hold_timeout": 0.5}) as (upstream, sidecar, client):
        upstream.inject(Refuse())
        async with await client.open_call("tools/call", CHARGE, id=1) as first:
            assert len(sidecar.services.holds) == 1
            cancelled = await client.notify("notifications/cancelled", {"requestId": 1})
            assert cancelled.status == 202
            assert (await last_message(first))["error"]["data"] == {"reason": "cancelled"}


async def test_http_1_0_gets_its_stream_too() -> None:
    """Without chunks the stream ends with the connection."""
    async with connected({"healing__hold_timeout": 0.3}) as (upstream, sidecar, client):
        upstream.inject(Refuse())
        body = json.dumps(client.request("ping", id=9)).encode()
        raw = raw_post(sidecar.port, body, f"Mcp-Session-Id: {client.session_id}").replace(b"HTTP/1.1", b"HTTP/1.0")
        answer = await raw_exchange(sidecar.port, raw)
        assert answer.status == 200
        assert b"upstream_unavailable" in answer.data
        assert not answer.reset
