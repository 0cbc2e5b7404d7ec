"""Traffic of 2026-07-28, which has no sessions: passed byte for byte, and only failed connects are tried again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from mcp_sidecar.facts import ActionObserved, HealEnded, RequestReplayed
from tests.support.behaviour import Answers
from tests.support.client import Answer, McpClient, Stream, new_http, raw_exchange, raw_post
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import CloseBeforeHeaders, CutStream, GarbageHeaders, Refuse, ResetAfterExecution, Stall
from tests.support.raw_upstream import Conversation, RawUpstream, pass_through
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
HEADERS = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call"}


def call(tool: str, /, request_id: object = 7, **arguments: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments, "_meta": META}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


DISCOVER = {"jsonrpc": "2.0", "id": "d", "method": "server/discover", "params": {"_meta": META}}
LISTEN = {"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": {"_meta": META}}


async def post(sidecar: WatchedSidecar, message: object, **headers: str) -> Answer:
    async with McpClient(sidecar.url) as client:
        return await client.post(message, headers={**HEADERS, **headers}, bare=True)


# -- byte for byte ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "version"),
    [
        pytest.param(
            b'{ "id" :1.0,"jsonrpc":"2.0","method":"tools/call" , "params":{"_meta":'
            b'{"io.modelcontextprotocol/protocolVersion":"2026-07-28"},"b":"\\u00e9\xc3\xa9","a":1e400}}\n',
            None,
            id="told-by-meta",
        ),
        pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}', "2026-07-28", id="told-by-header"),
        pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}', "2027-01-01", id="a-later-one"),
        pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}', "draft", id="draft"),
        pytest.param(b' {"jsonrpc":"2.0","id":1,"method":"server/discover"}', None, id="told-by-method"),
    ],
)
async def test_a_request_passes_byte_for_byte(body: bytes, version: str | None) -> None:
    """With the session headers that do not belong to it: its receiver ignores them, the sidecar does, too."""
    lines = [
        "POST /mcp?x HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        "Mcp-Session-Id: stray",
        "Last-Event-ID: 5",
        "Accept-Encoding: gzip",
        "Mcp-Name: x",
        f"Content-Length: {len(body)}",
        *([f"MCP-Protocol-Version: {version}"] if version else []),
    ]
    back = b'HTTP/1.1 200 OK\r\nMcp-Session-Id: odd\r\nContent-Length: 9\r\n\r\n{ "a":1 }'
    passed = await pass_through("\r\n".join([*lines, "", ""]).encode() + body, back)
    assert passed.request.line == b"POST /mcp?x HTTP/1.1"
    assert bytes(passed.request.body) == body
    for name, value in (line.split(": ") for line in lines[3:]):
        assert passed.request.values(name) == [value.encode()]
    assert passed.head.split(b"\r\n")[:3] == [b"HTTP/1.1 200 OK", b"Mcp-Session-Id: odd", b"Content-Length: 9"]
    assert passed.body == b'{ "a":1 }'


@pytest.mark.parametrize("code", [-32020, -32021, -32022, -32602, -32601, -32600, -32001])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 502, 503, 504])
async def test_errors_pass_verbatim(status: int, code: int) -> None:
    """Also those that would mean a lost session to an older client, whatever their text says."""
    body = json.dumps({"jsonrpc": "2.0", "id": 7, "error": {"code": code, "message": "Session not found"}}).encode()
    request = b'{"jsonrpc":"2.0","id":7,"method":"x"}'
    passed = await pass_through(
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nMCP-Protocol-Version: 2026-07-28\r\n"
        b"Mcp-Session-Id: stray\r\nContent-Length: %d\r\n\r\n%b" % (len(request), request),
        b"HTTP/1.1 %d Odd\r\nContent-Type: application/json\r\nWWW-Authenticate: Bearer\r\nContent-Length: %d\r\n\r\n%b"
        % (status, len(body), body),
    )
    assert passed.head.startswith(b"HTTP/1.1 %d Odd\r\nContent-Type: application/json\r\nWWW-Authenticate: B" % status)
    assert passed.body == body


@pytest.mark.parametrize("version", [None, "2025-11-25"])
async def test_a_method_of_older_revisions_is_theirs(version: str | None) -> None:
    """``initialize`` opens a session with a server that speaks both eras, and is none of this traffic."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar:
        async with McpClient(sidecar.url) as client:
            await client.initialize(headers={"MCP-Protocol-Version": version} if version else {})
        assert len(sidecar.services.sessions.table) == 1


async def test_a_large_request_passes_with_its_length() -> None:
    """It is held like any other."""
    request = json.dumps(call("big", text="x" * 3_000_000)).encode()
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nMCP-Protocol-Version: 2026-07-28\r\n"
    passed = await pass_through(head + b"Content-Length: %d\r\n\r\n%b" % (len(request), request))
    assert bytes(passed.request.body) == request
    assert passed.request.values("content-length") == [str(len(request)).encode()]


async def test_a_large_answer_passes() -> None:
    """Beyond max_buffered_answer, too."""
    async with FakeUpstream(modern=True, answers=Answers.JSON) as upstream, running_sidecar(upstream.url) as sidecar:
        answer = await post(sidecar, call("big", bytes=3_000_000))
        assert len(answer.text) == 3_000_000


async def test_both_eras_share_one_endpoint() -> None:
    """A restart heals the older client's session and is nothing to the newer one."""
    async with (
        FakeUpstream(modern=True) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as older,
    ):
        await older.initialize()
        assert (await post(sidecar, call("echo", text="new"))).text == "new"
        await upstream.restart()
        assert (await post(sidecar, call("echo", text="new"))).text == "new"
        assert sidecar.of(HealEnded) == []
        assert (await older.tool("echo", text="old")).text == "old"
        assert len(sidecar.of(HealEnded)) == 1


# -- the upstream is away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [DISCOVER, call("charge")], ids=["discover", "call"])
async def test_a_refused_connect_is_held_and_sent_when_the_upstream_is_back(message: dict[str, Any]) -> None:
    """Nothing was sent, so that nothing can happen twice."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar:
        await upstream.stop()
        held = asyncio.create_task(post(sidecar, message))
        await eventually(lambda: len(sidecar.services.holds))
        await upstream.restart()
        answer = await held
        assert answer.status == 200
        assert answer.response["id"] == message["id"]
        assert len(upstream.ledger.executions()) == 1


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        pytest.param(DISCOVER, {"healing__hold_timeout": 0.1}, id="discover"),
        pytest.param(call("echo"), {"healing__hold_timeout": 0.1}, id="call"),
        pytest.param(LISTEN, {"healing__hold_timeout": 0.1}, id="listen"),
        pytest.param(DISCOVER, {"healing__mode": "rewrite"}, id="rewrite"),
        pytest.param(call("echo"), {"healing__max_held_requests": 0}, id="no-room"),
    ],
)
async def test_an_outage_that_lasts_gets_503(message: dict[str, Any], settings: dict[str, object]) -> None:
    """With Retry-After and the error as body: a 4xx would drive a client into the older protocol."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url, **settings) as sidecar:
        await upstream.stop()
        answer = await post(sidecar, message)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.content_type == "application/json"
        assert answer.response["id"] == message["id"]
        assert answer.error["code"] == -32603
        assert answer.error["data"] == {"reason": "upstream_unavailable"}


async def test_observe_answers_as_a_plain_proxy_would() -> None:
    """At once, with 502, and says what it would have done."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url, healing__mode="observe") as sidecar:
        await upstream.stop()
        assert (await post(sidecar, DISCOVER)).status == 502
        assert len(sidecar.of(ActionObserved)) == 1


async def test_a_client_that_left_is_never_sent() -> None:
    """The disconnect is the cancel signal of this revision, while it waits as well."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar:
        await upstream.stop()
        held = asyncio.create_task(post(sidecar, call("charge")))
        await eventually(lambda: len(sidecar.services.holds))
        held.cancel()
        await eventually(lambda: not len(sidecar.services.holds))
        await upstream.restart()
        assert (await post(sidecar, call("echo"))).status == 200
        assert upstream.ledger.executions("charge") == []


# -- the upstream breaks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [ResetAfterExecution(), CloseBeforeHeaders(), GarbageHeaders(), Stall()],
    ids=lambda fault: type(fault).__name__,
)
@pytest.mark.parametrize("tool", ["charge", "echo"])
async def test_a_break_before_the_head_gets_502(fault: Any, tool: str) -> None:
    """``outcome_unknown``, even for a tool that only reads: nobody has said so in a session of this client's."""
    async with (
        FakeUpstream(modern=True) as upstream,
        running_sidecar(upstream.url, upstream__idle_timeout=0.2) as sidecar,
    ):
        upstream.inject(fault, tool=tool)
        answer = await post(sidecar, call(tool))
        assert answer.status == 502
        assert answer.response["id"] == 7
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert upstream.ledger.count(tool=tool) == 1
        assert sidecar.of(RequestReplayed) == []


@pytest.mark.parametrize(
    "fault",
    [ResetAfterExecution(), CloseBeforeHeaders(), GarbageHeaders()],
    ids=lambda fault: type(fault).__name__,
)
@pytest.mark.parametrize("method", ["server/discover", "tools/list", "resources/read"])
async def test_what_only_reads_is_sent_again(fault: Any, method: str) -> None:
    """Cut before its answer it goes again, as in older revisions: twice at most, and then the client is told."""
    reading = {"jsonrpc": "2.0", "id": "r", "method": method, "params": {"_meta": META, "uri": "fake://one"}}
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar:
        upstream.inject(fault, rpc_method=method, times=2)
        answer = await post(sidecar, reading)
        assert (answer.status, answer.response["id"]) == (200, "r")
        assert [fact.cause for fact in sidecar.of(RequestReplayed)] == ["ambiguous_safe"] * 2
        upstream.inject(fault, rpc_method=method, times=None)
        answer = await post(sidecar, reading)
        assert (answer.status, answer.error["data"]) == (502, {"reason": "outcome_unknown"})
        assert upstream.ledger.count(method) == 6


async def test_a_tool_that_only_reads_is_sent_again_to_whom_the_server_has_said_so() -> None:
    """By the hints in a list that this very principal was given; nobody else's call goes again, and no unsafe one."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar:
        listing = {"jsonrpc": "2.0", "id": "t", "method": "tools/list", "params": {"_meta": META}}
        assert (await post(sidecar, listing, Authorization="Bearer alice")).status == 200
        for tool, who, status in [("echo", "alice", 200), ("echo", "bob", 502), ("charge", "alice", 502)]:
            upstream.inject(ResetAfterExecution(), tool=tool)
            assert (await post(sidecar, call(tool), Authorization=f"Bearer {who}")).status == status
        assert len(upstream.ledger.executions("charge")) == 1


@pytest.mark.long
async def test_discover_is_held_as_a_call_is() -> None:
    """A 503 makes clients fall back to sessions for as long as they are connected."""
    async with (
        FakeUpstream(modern=True) as upstream,
        running_sidecar(upstream.url, healing__connect_hold_timeout=0.05) as sidecar,
    ):
        await upstream.stop()
        held = asyncio.create_task(post(sidecar, DISCOVER))
        await asyncio.sleep(1)
        await upstream.restart()
        assert (await held).status == 200


async def test_a_large_request_that_breaks_gets_its_own_id() -> None:
    """What is left of it is read to learn the id, and sent nowhere."""

    async def play(conversation: Conversation) -> None:
        await conversation.read_some()
        conversation.reset()

    body = json.dumps({"method": "tools/call", "params": {"t": "x" * 5_000_000}, "id": "last", "jsonrpc": "2.0"})
    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        answer = await raw_exchange(sidecar.port, raw_post(sidecar.port, body.encode(), "MCP-Protocol-Version: draft"))
        assert answer.status == 502
        assert b'"id":"last"' in answer.data
        assert b'"outcome_unknown"' in answer.data
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("mid_event", [False, True])
async def test_a_stream_that_breaks_is_cut(mid_event: bool) -> None:
    """No event of ours, no resume, no clean end: the client sends a new request with a new id."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar:
        upstream.inject(CutStream(after_events=0 if mid_event else 1, event_ids=True, mid_event=mid_event))
        answer = await post(sidecar, call("echo"))
        assert answer.status == 200
        assert answer.broken is not None
        assert b"mcp-sidecar" not in answer.body and b"outcome_unknown" not in answer.body
        assert len(upstream.ledger.arrivals) == 1


async def test_events_arrive_one_by_one() -> None:
    """Each is with the client before the next one exists, and the stream's end is the server's."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar, new_http() as http:
        client = McpClient(sidecar.url, version="2026-07-28", http=http)
        stream = await client.open_call("subscriptions/listen", {"_meta": META})
        first = await stream.next_message()
        assert first is not None
        assert first["method"] == "notifications/subscriptions/acknowledged"
        upstream.slow_gate.set()
        last = await stream.next_message()
        assert last is not None
        assert "result" in last
        assert await stream.next_event() is None


async def test_a_client_that_leaves_cancels_upstream_at_once() -> None:
    """In the middle of a stream: the connection to the upstream is closed, and the work there ends."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar, new_http() as http:
        client = McpClient(sidecar.url, version="2026-07-28", http=http)
        stream = await client.open_call("subscriptions/listen", {"_meta": META})
        await stream.next_message()
        stream.close()
        await upstream.ledger.wait_for(lambda ledger: ledger.arrivals[-1].client_left)


async def test_get_and_delete_pass_to_a_server_without_sessions() -> None:
    """It answers 405, which is no loss and nothing to hold for."""
    back = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: POST\r\nContent-Length: 0\r\n\r\n"
    async with RawUpstream(back) as upstream, running_sidecar(upstream.url) as sidecar:
        for method in (b"GET", b"DELETE"):
            answer = await raw_exchange(
                sidecar.port,
                method + b" /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nMcp-Session-Id: stray\r\n"
                b"MCP-Protocol-Version: 2026-07-28\r\n\r\n",
            )
            assert answer.status == 405
            assert b"Allow: POST\r\n" in answer.data
        assert len(upstream.requests) == 2


async def test_what_was_held_and_sent_again_is_counted() -> None:
    """As a request in a session is: it was not sent before."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar:
        upstream.inject(Refuse())
        held = asyncio.create_task(post(sidecar, call("echo", text="x")))
        await eventually(lambda: len(sidecar.services.holds) == 1)
        await upstream.clear()
        assert (await held).text == "x"
        replays = sidecar.of(RequestReplayed)
        assert [(fact.session, fact.cause, fact.rpc_method) for fact in replays] == [("", "not_sent", "tools/call")]


async def test_its_streams_are_counted() -> None:
    """As POST streams, while they are open."""
    async with (
        FakeUpstream(modern=True) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        client.headers = HEADERS
        stream = Stream(await client._send("POST", LISTEN, bare=True))
        assert stream.status == 200
        await eventually(lambda: sidecar.services.streams.open.post_streams == 1)
        stream.close()
        await eventually(lambda: sidecar.services.streams.open.post_streams == 0)


async def test_an_upstream_that_refuses_all_is_probed_once_for_all() -> None:
    """Fifty held requests cost one prober, and all are sent when it connects."""
    async with FakeUpstream(modern=True) as upstream, running_sidecar(upstream.url) as sidecar:
        upstream.inject(Refuse())
        held = [asyncio.create_task(post(sidecar, call("echo", request_id=n, text=str(n)))) for n in range(50)]
        await eventually(lambda: len(sidecar.services.holds) == 50)
        await upstream.clear()
        answers = await asyncio.gather(*held)
        assert [answer.text for answer in answers] == [str(n) for n in range(50)]
