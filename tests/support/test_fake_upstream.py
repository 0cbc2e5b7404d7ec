"""The fake upstream behaves like a server and misbehaves as promised; its ledger tells the truth about both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest

from tests.support.behaviour import MODERN, Answers, EarlyRequest, Priming, SessionMode
from tests.support.client import ACCEPT, McpClient, NoAnswer, raw_exchange, raw_post
from tests.support.dialects import DIALECTS, Mint
from tests.support.endpoint import Outgoing
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import (
    Answer,
    Break,
    CloseBeforeHeaders,
    Crash,
    CutStream,
    EndStream,
    Fault,
    GarbageHeaders,
    HugeHeaders,
    IngressPage,
    Refuse,
    ResetAfterExecution,
    ResetBeforeExecution,
    RoutePage,
    Router,
    SlowHeaders,
    Stacked,
    Stall,
    StallAt,
    TruncateJson,
)


class Connect(Protocol):
    """Starts an upstream with this behaviour and a client with an open session."""

    def __call__(self, **behaviour: Any) -> Awaitable[tuple[FakeUpstream, McpClient]]: ...


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def connected(**behaviour: Any) -> tuple[FakeUpstream, McpClient]:
            upstream = await stack.enter_async_context(FakeUpstream(**behaviour))
            client = await stack.enter_async_context(McpClient(upstream.url))
            assert (await client.initialize()).status == 200
            return upstream, client

        yield connected


EITHER_FORM = pytest.mark.parametrize("answers", [pytest.param(form, id=form.value) for form in Answers])


class TestServer:
    @EITHER_FORM
    async def test_a_session_serves_tools(self, connect: Connect, answers: Answers) -> None:
        """initialize mints an id that every later answer echoes, and a tool runs exactly once per call."""
        upstream, client = await connect(answers=answers)
        answer = await client.tool("echo", text="hi")
        assert (answer.status, answer.text) == (200, "hi")
        assert answer.content_type == {"json": "application/json", "sse": "text/event-stream"}[answers.value]
        assert set(client.seen_session_ids) == {client.session_id} == set(upstream.sessions)
        (execution,) = upstream.ledger.executions("echo")
        assert (execution.finished, execution.answer_sent, execution.arguments) == (True, True, {"text": "hi"})

    @EITHER_FORM
    async def test_every_method_has_an_answer(self, connect: Connect, answers: Answers) -> None:
        """Each request method of the session revisions is served, in both forms."""
        _, client = await connect(answers=answers)
        requests: dict[str, dict[str, Any]] = {
            "ping": {},
            "tools/list": {},
            "resources/list": {},
            "resources/templates/list": {},
            "resources/read": {"uri": "fake://one"},
            "resources/subscribe": {"uri": "fake://one"},
            "resources/unsubscribe": {"uri": "fake://one"},
            "prompts/list": {},
            "prompts/get": {"name": "greet"},
            "logging/setLevel": {"level": "debug"},
            "completion/complete": {"ref": {}, "argument": {}},
        }
        for method, params in requests.items():
            answer = await client.call(method, params)
            assert (answer.status, "result" in answer.response) == (200, True), method

    @pytest.mark.parametrize(
        ("params", "code"),
        [
            pytest.param({"name": "nothing"}, -32602, id="unknown-tool"),
            pytest.param({}, -32602, id="no-tool"),
        ],
    )
    async def test_a_bad_call_is_an_error_in_band(self, connect: Connect, params: dict[str, Any], code: int) -> None:
        """JSON-RPC errors come with status 200 and the request's id."""
        _, client = await connect()
        answer = await client.call("tools/call", params, id="mine")
        assert (answer.status, answer.error["code"], answer.response["id"]) == (200, code, "mine")
        assert (await client.call("no/such")).error["code"] == -32601

    async def test_hints_are_listed(self, connect: Connect) -> None:
        """Annotations say what may be replayed: echo reads, put is idempotent, charge says nothing."""
        _, client = await connect()
        tools = {tool["name"]: tool for tool in (await client.call("tools/list")).result["tools"]}
        assert tools["echo"]["annotations"] == {"readOnlyHint": True}
        assert tools["put"]["annotations"]["idempotentHint"] is True
        assert "annotations" not in tools["charge"]

    async def test_pages_belong_to_a_process(self, connect: Connect) -> None:
        """A cursor leads through all pages, and means nothing to the next process."""
        upstream, client = await connect(page_size=4)
        first = (await client.call("tools/list")).result
        second = (await client.call("tools/list", {"cursor": first["nextCursor"]})).result
        assert (len(first["tools"]), first["tools"][0] in second["tools"]) == (4, False)
        await upstream.restart()
        await client.initialize()
        assert (await client.call("tools/list", {"cursor": first["nextCursor"]})).error["code"] == -32602

    async def test_notifications_and_stray_responses_get_202(self, connect: Connect) -> None:
        """What needs no answer gets an empty 202; a response that nobody asked for is written down as such."""
        upstream, client = await connect()
        notified = await client.notify("notifications/roots/list_changed")
        assert (notified.status, notified.body) == (202, b"")
        assert (await client.respond(99)).status == 202
        assert [(reply.rpc_id, reply.expected) for reply in upstream.ledger.replies] == [(99, False)]

    async def test_a_batch_is_answered_as_one(self, connect: Connect) -> None:
        """A 2025-03-26 batch is answered by an array with one response per request of it."""
        upstream, client = await connect(answers=Answers.JSON)
        messages = [
            client.request("ping", id=1),
            {"jsonrpc": "2.0", "method": "notifications/x"},
            client.request("ping", id=2),
        ]
        answer = await client.batch(messages)
        assert [message["id"] for message in answer.messages] == [1, 2]
        assert upstream.ledger.arrivals[-1].rpc_methods == ("ping", "notifications/x", "ping")

    @pytest.mark.parametrize(
        ("mint", "length"),
        [
            pytest.param(Mint.UUID_HEX, 32, id="uuid-hex"),
            pytest.param(Mint.UUID, 36, id="uuid"),
            pytest.param(Mint.MCP_GO, 48, id="mcp-go"),
            pytest.param(Mint.BASE32, 26, id="base32"),
            pytest.param(Mint.BASE64URL, 22, id="base64url"),
        ],
    )
    async def test_ids_have_the_shape_that_was_asked_for(self, connect: Connect, mint: Mint, length: int) -> None:
        """Session ids are as long as those of the real servers."""
        _, client = await connect(mint=mint)
        assert len(client.session_id or "") == length

    async def test_delete_ends_a_session(self, connect: Connect) -> None:
        """After DELETE the session is terminated, and python says so in other words than of a lost one."""
        upstream, client = await connect(dialect="python2-404", delete_status=204)
        assert (await client.delete()).status == 204
        answer = await client.tool("echo")
        assert (answer.status, upstream.sessions) == (404, {})
        assert answer.error["message"] == "Not Found: Session has been terminated"

    async def test_another_server_can_come_back(self, connect: Connect) -> None:
        """A restart may change what initialize answers; the port stays."""
        upstream, client = await connect()
        url = upstream.url
        await upstream.restart(server_version="2.0", instructions="new", protocol_versions=("2025-03-26",))
        result = (await client.initialize()).result
        assert (result["serverInfo"]["version"], result["instructions"]) == ("2.0", "new")
        assert (result["protocolVersion"], upstream.url, upstream.process) == ("2025-03-26", url, 2)

    async def test_other_paths(self, connect: Connect) -> None:
        """Off the endpoint: routes that the test sets, an echo with repeated headers, else 404."""
        upstream, client = await connect()
        upstream.routes["/health"] = Outgoing(200, (("Content-Type", "text/plain"),), b"fine")
        assert client.http is not None
        async with client.http.get(upstream.origin + "/health") as answer:
            assert await answer.read() == b"fine"
        async with client.http.patch(upstream.origin + "/echo/x?q=1", data=b"body") as answer:
            seen = await answer.json()
            assert (seen["method"], seen["target"], seen["body"]) == ("PATCH", "/echo/x?q=1", "body")
            assert answer.headers.getall("X-Twice") == ["a", "b"]
        async with client.http.get(upstream.origin + "/nowhere") as answer:
            assert answer.status == 404

    async def test_bodies_may_be_chunked(self, connect: Connect) -> None:
        """A chunked request body is put together again."""
        upstream, client = await connect()

        async def pieces() -> AsyncIterator[bytes]:
            yield b"one "
            yield b"two"

        assert client.http is not None
        async with client.http.post(upstream.origin + "/echo", data=pieces()) as answer:
            assert (await answer.json())["body"] == "one two"


class TestRefusals:
    """The server says no in the order and in the words of real servers."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            pytest.param({"Accept": "application/json"}, 406, id="accept"),
            pytest.param({"Content-Type": "text/plain"}, 415, id="content-type"),
            pytest.param({"MCP-Protocol-Version": "1999-01-01"}, 400, id="version"),
            pytest.param({"Host": "elsewhere.example"}, 421, id="host"),
        ],
    )
    async def test_bad_headers(self, connect: Connect, headers: dict[str, str], status: int) -> None:
        """A request in the wrong form runs nothing."""
        upstream, client = await connect()
        assert (await client.call("tools/list", headers=headers)).status == status
        assert upstream.ledger.executions("tools/list") == []

    async def test_a_request_without_a_session_id(self, connect: Connect) -> None:
        """python answers it with 400 and a fresh id that leads nowhere, a trap for clients that adopt it."""
        upstream, client = await connect()
        answer = await client.call("tools/list", bare=True)
        assert (answer.status, len(answer.session_id or "")) == (400, 32)
        assert upstream.ledger.executions("tools/list") == []

    async def test_malformed_json(self, connect: Connect) -> None:
        """What is not JSON-RPC gets 400 with -32700."""
        _, client = await connect()
        answer = await client.post(b"{nope")
        assert (answer.status, answer.error["code"]) == (400, -32700)

    async def test_credentials_come_before_the_session(self, connect: Connect) -> None:
        """A wrong Authorization is 401 with its challenge, even with a session id that is lost."""
        upstream, client = await connect()
        upstream.become(authorization=frozenset({"Bearer good"}))
        upstream.forget()
        refused = await client.call("ping", headers={"Authorization": "Bearer bad"})
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"')
        assert (await client.call("ping", headers={"Authorization": "Bearer good"})).status == 404
        upstream.become(www_authenticate=None)
        assert "WWW-Authenticate" not in (await client.call("ping")).headers

    async def test_another_principals_session_is_lost(self, connect: Connect) -> None:
        """With bind_principal a live session looks lost to everybody else."""
        _, client = await connect(bind_principal=True)
        assert (await client.call("ping", headers={"Authorization": "Bearer other"})).status == 404
        assert (await client.call("ping")).status == 200

    async def test_initialize_is_validated(self, connect: Connect) -> None:
        """initialize without its parameters, or with a session id, opens nothing."""
        upstream, client = await connect()
        assert (await client.call("initialize", {}, bare=True)).status == 400
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        assert (await client.call("initialize", params)).status == 400
        client.session_id = "stale"
        assert (await client.call("initialize", params)).status == 404
        assert (len(upstream.ledger.initializes), len(upstream.ledger.executions("initialize"))) == (4, 1)

    async def test_a_single_session_server_is_taken(self, connect: Connect) -> None:
        """One shared transport: a second initialize gets 400, and a stale id another answer than on a fresh process."""
        upstream, client = await connect(sessions=SessionMode.SINGLE, dialect="ts-not-initialized")
        stale = client.session_id
        await upstream.restart()
        assert (await client.call("ping")).status == 400
        await client.initialize()
        async with McpClient(upstream.url) as second:
            taken = await second.initialize()
            assert (taken.status, taken.error["message"]) == (400, "Invalid Request: Server already initialized")
            second.session_id = stale
            assert (await second.call("ping")).status == 404

    async def test_capacity(self, connect: Connect) -> None:
        """A full server answers initialize with 503 and a JSON-RPC error."""
        upstream, _ = await connect(max_sessions=1)
        async with McpClient(upstream.url) as second:
            answer = await second.initialize()
            assert (answer.status, answer.error["code"]) == (503, -32603)

    @pytest.mark.parametrize(
        ("early", "status", "afterwards"),
        [
            pytest.param(EarlyRequest.SERVED, 200, 200, id="served"),
            pytest.param(EarlyRequest.REFUSED, 200, 200, id="refused"),
            pytest.param(EarlyRequest.KILLS_SESSION, 500, 404, id="kills"),
        ],
    )
    async def test_requests_before_initialized(
        self, connect: Connect, early: EarlyRequest, status: int, afterwards: int
    ) -> None:
        """A request before notifications/initialized is served, refused in band, or kills the session."""
        upstream, client = await connect(early_request=early)
        await client.initialize(initialized=False)
        answer = await client.tool("charge")
        assert answer.status == status
        assert len(upstream.ledger.executions("charge")) == (early is EarlyRequest.SERVED)
        assert (await client.notify("notifications/initialized")).status in (202, afterwards)
        assert (await client.tool("echo")).status == afterwards


class TestSessionless:
    async def test_a_stateless_server_has_no_sessions(self) -> None:
        """No id is minted, any id is ignored, GET and DELETE are 405."""
        async with FakeUpstream(sessions=SessionMode.STATELESS) as upstream, McpClient(upstream.url) as client:
            assert (await client.initialize()).session_id is None
            client.session_id = "whatever"
            assert (await client.tool("echo", text="x")).text == "x"
            assert ((await client.delete()).status, (await client.get_stream()).status) == (405, 405)
            assert client.seen_session_ids == []

    async def test_an_adopting_server_loses_silently(self, connect: Connect) -> None:
        """mcp-go's default: after a restart the old id is accepted as if nothing had happened."""
        upstream, client = await connect(sessions=SessionMode.ADOPTING, mint=Mint.MCP_GO)
        await upstream.restart()
        assert (await client.tool("echo")).status == 200

    @pytest.mark.parametrize(
        ("method", "version", "status", "code"),
        [
            pytest.param("server/discover", MODERN, 200, None, id="discover"),
            pytest.param("tools/list", MODERN, 200, None, id="list"),
            pytest.param("ping", MODERN, 404, -32601, id="removed"),
            pytest.param("no/such", MODERN, 404, -32601, id="unknown"),
            pytest.param("tools/list", "2027-01-01", 400, -32022, id="version"),
        ],
    )
    async def test_2026_07_28(self, method: str, version: str, status: int, code: int | None) -> None:
        """Requests of 2026-07-28 need no session, and an unknown method is a 404 that is not session loss."""
        async with FakeUpstream(modern=True) as upstream, McpClient(upstream.url, version=version) as client:
            meta = {"_meta": {"io.modelcontextprotocol/protocolVersion": version}}
            answer = await client.call(method, meta)
            assert (answer.status, answer.session_id) == (status, None)
            assert answer.response.get("error", {}).get("code") == code

    async def test_a_legacy_server_refuses_discover(self, connect: Connect) -> None:
        """Without 2026-07-28 the probe of a modern client is a request without a session."""
        upstream, _ = await connect()
        async with McpClient(upstream.url, version=MODERN) as client:
            assert (await client.call("server/discover", {})).status == 400

    @pytest.mark.parametrize(
        ("modern", "finishes"), [pytest.param(True, False, id="2026"), pytest.param(False, True, id="legacy")]
    )
    async def test_a_client_that_leaves(self, connect: Connect, modern: bool, finishes: bool) -> None:
        """Leaving cancels the work in 2026-07-28 and only there; the ledger notes the leaving in any case."""
        upstream, client = await connect(modern=modern)
        call = client.request("tools/call", {"name": "slow", **(_MODERN_META if modern else {})})
        headers = {"MCP-Protocol-Version": MODERN} if modern else {}
        waiting = asyncio.create_task(client.post(call, headers=headers))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        waiting.cancel()
        await upstream.ledger.wait_for(lambda ledger: ledger.arrivals[-1].client_left)
        upstream.slow_gate.set()
        assert (await client.tool("echo")).status == 200
        (execution,) = upstream.ledger.executions("slow")
        assert (execution.finished, execution.answer_sent) == (finishes, False)


_MODERN_META = {"_meta": {"io.modelcontextprotocol/protocolVersion": MODERN}}


class TestStreams:
    @pytest.mark.parametrize(
        ("priming", "first"),
        [
            pytest.param(Priming.WITH_ID, b"id: post0-0\nretry: 3000\ndata: \n\n", id="with-id"),
            pytest.param(Priming.WITHOUT_ID, b"retry: 3000\ndata: \n\n", id="without-id"),
        ],
    )
    async def test_the_first_event_may_be_empty(self, priming: Priming, first: bytes) -> None:
        """Even the initialize answer may start with an event without data."""
        async with FakeUpstream(priming=priming, retry_ms=3000) as upstream, McpClient(upstream.url) as client:
            answer = await client.initialize()
            assert (answer.events[0].raw, answer.events[0].message) == (first, None)
            assert "protocolVersion" in answer.result

    async def test_crlf(self, connect: Connect) -> None:
        """Lines of a stream end as the server's framework ends them."""
        _, client = await connect(newline="\r\n")
        assert (await client.tool("echo")).body.endswith(b"\r\n\r\n")

    async def test_a_question_waits_for_the_clients_answer(self, connect: Connect) -> None:
        """A tool asks on its POST stream and goes on with the client's response, which only this session can give."""
        upstream, client = await connect(answers=Answers.JSON)
        async with await client.open_call("tools/call", {"name": "ask", "arguments": {"kind": "sampling"}}) as stream:
            question = await stream.next_message()
            assert question is not None and question["method"] == "sampling/createMessage"
            await client.respond(question["id"], {"role": "assistant"})
            response = await stream.next_message()
            assert response is not None and response["result"]["content"][0]["text"] == "the client said ['role']"
        assert [reply.expected for reply in upstream.ledger.replies] == [True]

    async def test_question_ids_start_over_in_every_session(self, connect: Connect) -> None:
        """Two sessions ask with the same id, so that an answer sent to the wrong one would be believed."""
        upstream, client = await connect()
        ids = []
        for _ in range(2):
            async with await client.open_call("tools/call", {"name": "ask"}) as stream:
                question = await stream.next_message()
                ids.append(question and question["id"])
            await upstream.restart()
            await client.initialize()
        assert ids == [0, 0]

    async def test_progress_comes_before_the_response(self, connect: Connect) -> None:
        """Progress goes to the token of the request, then the response."""
        _, client = await connect()
        params = {"name": "progress", "arguments": {"steps": 2}, "_meta": {"progressToken": "t"}}
        messages = (await client.call("tools/call", params)).messages
        assert [message.get("params", {}).get("progressToken") for message in messages] == ["t", "t", None]

    async def test_the_get_stream_carries_what_the_server_pushes(self, connect: Connect) -> None:
        """Pushed messages arrive at once; a clean end is an end; afterwards the stream can be opened again."""
        upstream, client = await connect()
        await client.call("resources/subscribe", {"uri": "fake://one"})
        async with await client.get_stream() as stream:
            upstream.touch("fake://one")
            upstream.touch("fake://two")
            message = await stream.next_message()
            assert message and message["params"] == {"uri": "fake://one"}
            asking = asyncio.create_task(upstream.ask(client.session_id or "", "roots/list", {}))
            question = await stream.next_message()
            await client.respond(question and question["id"], {"roots": []})
            assert (await asking)["result"] == {"roots": []}
            upstream.end_get_streams()
            assert await stream.next_event() is None
        async with await client.get_stream() as again:
            assert again.status == 200

    async def test_get_refusals(self, connect: Connect) -> None:
        """A second stream is 409, a server without GET says 405."""
        upstream, client = await connect()
        async with await client.get_stream(), await client.get_stream() as second:
            assert second.status == 409
        upstream.become(get_streams=False)
        async with await client.get_stream() as refused:
            assert refused.status == 405

    async def test_cancelled_work_ends(self, connect: Connect) -> None:
        """notifications/cancelled ends the call that it names."""
        upstream, client = await connect()
        waiting = asyncio.create_task(client.call("tools/call", {"name": "slow"}, id="s"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        await client.notify("notifications/cancelled", {"requestId": "s"})
        assert (await waiting).error["message"] == "Request cancelled"


class TestResuming:
    async def test_a_cut_stream_is_continued(self, connect: Connect) -> None:
        """With an event store, one GET with Last-Event-ID brings what the cut POST stream still owed; it runs once."""
        upstream, client = await connect(event_store=True)
        upstream.inject(CutStream(after_events=1, event_ids=True), tool="charge")
        cut = await client.tool("charge", amount=5)
        assert cut.broken is not None
        async with await client.get_stream(last_event_id=cut.events[-1].event_id) as stream:
            message = await stream.next_message()
            assert message and message["result"]["content"][0]["text"] == "charged 5"
            assert await stream.next_event() is None
        (execution,) = upstream.ledger.executions("charge")
        assert execution.answer_sent

    async def test_polling(self, connect: Connect) -> None:
        """A clean end after an event with an id is polling: the work goes on and the GET gets its response."""
        upstream, client = await connect(event_store=True, retry_ms=10)
        upstream.inject(EndStream(after_events=1, event_ids=True), tool="slow")
        polled = await client.tool("slow")
        assert (polled.broken, polled.messages, polled.events[0].retry_ms) == (None, [], 10)
        async with await client.get_stream(last_event_id=polled.events[0].event_id) as stream:
            upstream.slow_gate.set()
            message = await stream.next_message()
            assert message and message["result"]["content"][0]["text"] == "at last"

    @pytest.mark.parametrize("status", [pytest.param(status, id=str(status)) for status in (400, 404, 405)])
    async def test_without_a_store_resuming_is_refused(self, connect: Connect, status: int) -> None:
        """A server without an event store says so as configured."""
        _, client = await connect(resume_status=status)
        async with await client.get_stream(last_event_id="post0-0") as refused:
            assert refused.status == status

    async def test_an_unknown_event_is_refused(self, connect: Connect) -> None:
        """An event id of another process leads nowhere."""
        _, client = await connect(event_store=True)
        async with await client.get_stream(last_event_id="post9-9") as refused:
            assert refused.status == 400


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in DIALECTS])
class TestDialects:
    @EITHER_FORM
    async def test_a_lost_session_is_reported_and_nothing_runs(
        self, connect: Connect, name: str, answers: Answers
    ) -> None:
        """After a restart every HTTP method with the old id gets the dialect's answer; a new session works."""
        upstream, client = await connect(dialect=name, answers=answers)
        stale, dialect = client.session_id or "", DIALECTS[name]
        await upstream.restart()
        post = await client.call("tools/call", {"name": "charge"}, id=7)
        assert (post.status, post.headers.get("Content-Type")) == (dialect.post.status, dialect.post.content_type)
        for template, filled in (("{SID}", stale.encode()), ("{ID}", b"7")):
            assert template.encode() not in post.body
            assert filled in post.body or template not in dialect.post.body
        async with await client.get_stream() as got:
            assert got.status == dialect.lost("GET").status
        assert (await client.delete()).status == dialect.lost("DELETE").status
        assert upstream.ledger.executions(process=2) == []
        await client.initialize()
        assert (await client.tool("charge")).text == "charged 1"
        assert len(upstream.ledger.initializes) == 2

    async def test_expiry_speaks_the_same_language(self, connect: Connect, name: str) -> None:
        """A session that is forgotten without a restart is reported in the same way."""
        upstream, client = await connect(dialect=name)
        upstream.forget(client.session_id)
        assert (await client.notify("notifications/cancelled")).status == DIALECTS[name].post.status


class TestLife:
    async def test_stop_refuses_and_start_remembers(self, connect: Connect) -> None:
        """A stopped upstream refuses connects on a port that stays its own; sessions survive stop and start."""
        upstream, client = await connect()
        await upstream.stop()
        with pytest.raises(NoAnswer):
            await client.tool("echo")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", upstream.port)
        await upstream.start()
        assert (await client.tool("echo")).status == 200

    async def test_stop_ends_running_work(self, connect: Connect) -> None:
        """What ran when the process ended never finishes, and the client never gets an answer to it."""
        upstream, client = await connect(answers=Answers.JSON)
        waiting = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        await upstream.stop()
        with pytest.raises(NoAnswer):
            await waiting
        upstream.slow_gate.set()
        await upstream.restart()
        (execution,) = upstream.ledger.executions("slow")
        assert (execution.process, execution.finished, execution.answer_sent) == (1, False, False)

    async def test_the_ledger_outlives_restarts(self, connect: Connect) -> None:
        """Arrivals and executions carry the number of the process that saw them."""
        upstream, client = await connect()
        await client.tool("put", key="a", value=1)
        await upstream.restart()
        await client.tool("put", key="a", value=1)
        assert [arrival.process for arrival in upstream.ledger.arrived(tool="put")] == [1, 2]
        assert [execution.process for execution in upstream.ledger.executions("put")] == [1]
        assert (upstream.ledger.count("POST"), upstream.ledger.count("tools/call")) == (4, 2)
        assert [arrival.answer_status for arrival in upstream.ledger.arrivals] == [200, 202, 200, 404]

    async def test_many_at_once(self, connect: Connect) -> None:
        """Hundreds of concurrent calls are all served and all written down."""
        upstream, client = await connect()
        answers = await asyncio.gather(*(client.tool("charge", amount=n) for n in range(300)))
        assert [answer.text for answer in answers] == [f"charged {n}" for n in range(300)]
        assert len(upstream.ledger.executions("charge")) == 300

    async def test_waiting_for_the_ledger_ends(self, connect: Connect) -> None:
        """A claim that never comes true ends in TimeoutError."""
        upstream, _ = await connect()
        with pytest.raises(TimeoutError):
            await upstream.ledger.wait_for(lambda ledger: ledger.count("no/such") > 0, timeout_s=0.01)


def _no_answer(fault: Fault, *, id: str) -> Any:
    return pytest.param(fault, id=id)


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            _no_answer(ResetBeforeExecution(), id="reset-before"),
            _no_answer(ResetAfterExecution(), id="reset-after"),
            _no_answer(CloseBeforeHeaders(), id="close"),
            _no_answer(CloseBeforeHeaders(executes=True), id="close-after"),
            _no_answer(Crash(), id="crash-before"),
            _no_answer(Crash(executes=True), id="crash-after"),
            _no_answer(GarbageHeaders(), id="garbage"),
            _no_answer(GarbageHeaders(b"\x00\x01\x02", executes=True), id="garbage-after"),
        ],
    )
    @EITHER_FORM
    async def test_no_answer(self, connect: Connect, fault: Fault, answers: Answers) -> None:
        """The client gets no HTTP answer, the tool ran exactly if the fault says so, and its answer was not sent."""
        upstream, client = await connect(answers=answers)
        planted = upstream.inject(fault, tool="charge")
        with pytest.raises(NoAnswer):
            await client.tool("charge")
        assert len(upstream.ledger.executions("charge")) == fault.executes
        assert not any(execution.answer_sent for execution in upstream.ledger.executions("charge"))
        await upstream.start()
        await client.initialize()
        assert ((await client.tool("charge")).status, planted.hits) == (200, 1)

    @pytest.mark.parametrize(
        ("fault", "reset"),
        [
            pytest.param(ResetBeforeExecution(), True, id="reset-before"),
            pytest.param(ResetAfterExecution(), True, id="reset-after"),
            pytest.param(Crash(executes=True), True, id="crash"),
            pytest.param(CloseBeforeHeaders(executes=True), False, id="close"),
        ],
    )
    async def test_reset_and_close_differ_on_the_socket(self, connect: Connect, fault: Fault, reset: bool) -> None:
        """A reset is RST, a close is FIN, and neither is preceded by a byte."""
        upstream, client = await connect()
        upstream.inject(fault)
        body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"charge"}}'
        raw = raw_post(upstream.port, body, f"Mcp-Session-Id: {client.session_id}")
        answer = await raw_exchange(upstream.port, raw)
        assert (answer.data, answer.reset, answer.timed_out) == (b"", reset, False)

    @pytest.mark.parametrize(
        ("fault", "status", "content_type"),
        [
            pytest.param(IngressPage(502), 502, "text/html", id="502-html"),
            pytest.param(IngressPage(503, html=False), 503, "text/plain", id="503-text"),
            pytest.param(IngressPage(504, executes=True), 504, "text/html", id="504-after"),
            pytest.param(IngressPage(520), 520, "text/html", id="520"),
            pytest.param(RoutePage(), 404, "text/plain", id="traefik"),
            pytest.param(RoutePage(Router.NGINX), 404, "text/html", id="nginx"),
            pytest.param(RoutePage(Router.KONG), 404, "application/json", id="kong"),
            pytest.param(RoutePage(Router.BARE), 404, "", id="bare"),
            pytest.param(Answer(418, (("X-A", "1"), ("X-A", "2")), b"tea"), 418, "", id="any"),
        ],
    )
    async def test_another_answer(self, connect: Connect, fault: Fault, status: int, content_type: str) -> None:
        """Somebody else answers; the tool ran exactly if the fault says so. The next request meets the server again."""
        upstream, client = await connect()
        upstream.inject(fault, rpc_method="tools/call")
        answer = await client.tool("charge")
        assert (answer.status, answer.content_type, answer.broken) == (status, content_type, None)
        assert len(upstream.ledger.executions("charge")) == fault.executes
        assert (await client.tool("echo")).status == 200

    @pytest.mark.parametrize(
        ("fault", "whole_events", "tail"),
        [
            pytest.param(CutStream(), 0, False, id="after-head"),
            pytest.param(CutStream(event_ids=False, how=Break.CLOSE), 0, False, id="closed"),
            pytest.param(CutStream(after_events=1, event_ids=True), 1, False, id="after-priming"),
            pytest.param(CutStream(mid_event=True), 0, True, id="mid-event"),
            pytest.param(CutStream(after_events=1, event_ids=True, mid_event=True), 1, True, id="mid-second"),
        ],
    )
    @EITHER_FORM
    async def test_a_stream_is_cut(
        self, connect: Connect, fault: CutStream, whole_events: int, tail: bool, answers: Answers
    ) -> None:
        """The stream breaks after so many events, with ids only if asked for; the tool ran, unanswered."""
        upstream, client = await connect(answers=answers)
        upstream.inject(fault, tool="charge")
        answer = await client.tool("charge")
        assert answer.broken is not None
        assert [event.event_id is not None for event in answer.events] == [True] * whole_events
        assert (len(answer.body) > sum(len(event.raw) for event in answer.events)) == tail
        (execution,) = upstream.ledger.executions("charge")
        assert (fault.executes, execution.answer_sent) == (True, False)

    async def test_a_cut_after_the_response_leaves_the_answer_sent(self, connect: Connect) -> None:
        """A stream that breaks behind its response has delivered it, and the ledger knows."""
        upstream, client = await connect()
        upstream.inject(CutStream(after_events=1, event_ids=False), tool="charge")
        answer = await client.tool("charge")
        assert (answer.text, answer.broken is None) == ("charged 1", False)
        assert upstream.ledger.executions("charge")[0].answer_sent

    @pytest.mark.parametrize("ids", [pytest.param(True, id="polling"), pytest.param(False, id="fault")])
    async def test_a_stream_ends_without_its_response(self, connect: Connect, ids: bool) -> None:
        """The stream ends as if whole, with or without an event id before; nothing is broken on the wire."""
        upstream, client = await connect()
        upstream.inject(EndStream(after_events=int(ids), event_ids=ids), tool="charge")
        answer = await client.tool("charge")
        assert (answer.status, answer.broken, answer.messages) == (200, None, [])
        assert bool(answer.events and answer.events[0].event_id) == ids
        assert not upstream.ledger.executions("charge")[0].answer_sent

    @pytest.mark.parametrize("how", [pytest.param(how, id=how.value) for how in Break])
    @pytest.mark.parametrize("chunked", [pytest.param(False, id="length"), pytest.param(True, id="chunked")])
    async def test_json_is_truncated(self, connect: Connect, how: Break, chunked: bool) -> None:
        """A JSON answer breaks after so many bytes, however it is framed; the tool ran."""
        upstream, client = await connect()
        upstream.inject(TruncateJson(after_bytes=12, chunked=chunked, how=how), tool="charge")
        answer = await client.tool("charge")
        assert (answer.content_type, len(answer.body), answer.broken is None) == ("application/json", 12, False)
        assert ("Content-Length" in answer.headers) == (not chunked)
        (execution,) = upstream.ledger.executions("charge")
        assert (execution.finished, execution.answer_sent) == (True, False)

    @pytest.mark.parametrize("at", [pytest.param(at, id=at.value) for at in StallAt])
    @EITHER_FORM
    async def test_a_stall_lasts_until_released(self, connect: Connect, at: StallAt, answers: Answers) -> None:
        """A stalled answer comes after release, whole; before execution, the tool has not run until then."""
        upstream, client = await connect(answers=answers)
        upstream.inject(Stall(at), tool="charge")
        waiting = asyncio.create_task(client.tool("charge"))
        await upstream.ledger.wait_for(lambda ledger: ledger.count(tool="charge") == 1)
        if at is StallAt.MID_BODY:
            await upstream.ledger.wait_for(lambda ledger: ledger.arrivals[-1].answer_status == 200)
        else:
            assert (await client.call("ping")).status == 200
        assert len(upstream.ledger.executions("charge")) == Stall(at).executes
        assert not waiting.done()
        upstream.release()
        assert (await waiting).text == "charged 1"

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param(SlowHeaders(), id="slow"),
            pytest.param(HugeHeaders(4000), id="huge"),
            pytest.param(Stacked((SlowHeaders(pieces=3, pause_s=0), HugeHeaders(4000))), id="stacked"),
        ],
    )
    @EITHER_FORM
    async def test_odd_heads_are_still_answers(self, connect: Connect, fault: Fault, answers: Answers) -> None:
        """A head that comes slowly or is large belongs to a whole answer."""
        upstream, client = await connect(answers=answers)
        upstream.inject(fault, tool="charge")
        answer = await client.tool("charge")
        assert (answer.text, answer.broken, fault.executes) == ("charged 1", None, True)
        assert (await client.tool("charge")).text == "charged 1"

    async def test_headers_may_be_too_large(self, connect: Connect) -> None:
        """The default size is more than a client takes."""
        upstream, client = await connect()
        upstream.inject(HugeHeaders(), tool="echo")
        with pytest.raises(NoAnswer):
            await client.tool("echo")

    async def test_refusing_leaves_the_process_alive(self, connect: Connect) -> None:
        """Refuse works at once: connects are refused and connections gone, while work goes on and sessions stay."""
        upstream, client = await connect()
        waiting = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        upstream.inject(Refuse())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", upstream.port)
        assert (await waiting).broken is not None
        upstream.slow_gate.set()
        await upstream.ledger.wait_for(lambda ledger: ledger.executions("slow")[0].finished)
        await upstream.clear()
        assert (await client.tool("echo")).status == 200

    async def test_faults_meet_the_requests_they_wait_for(self, connect: Connect) -> None:
        """Skipped and unmatched requests pass; a fault meets as many as it was told; clear ends it."""
        upstream, client = await connect()
        planted = upstream.inject(IngressPage(), times=2, skip=1, tool="charge")
        statuses = [(await client.tool(name)).status for name in ("charge", "echo", "charge", "charge", "charge")]
        assert (statuses, planted.hits) == ([200, 200, 502, 502, 200], 2)
        upstream.inject(IngressPage(503), times=None, http_method="POST")
        assert [(await client.call("ping")).status for _ in range(3)] == [503] * 3
        await upstream.clear()
        assert (await client.call("ping")).status == 200

    async def test_get_streams_break_too(self, connect: Connect) -> None:
        """A GET stream can be cut after an event."""
        upstream, client = await connect()
        upstream.inject(CutStream(after_events=1), http_method="GET")
        async with await client.get_stream() as stream:
            upstream.notify("notifications/tools/list_changed")
            answer = await stream.read()
            assert (len(answer.messages), answer.broken is None) == (1, False)


class TestRawClient:
    async def test_bytes_go_out_as_they_are(self, connect: Connect) -> None:
        """The socket helper sends what it is given and reads until the connection ends."""
        upstream, client = await connect(answers=Answers.JSON)
        body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
        answer = await raw_exchange(
            upstream.port, raw_post(upstream.port, body, f"MCP-SESSION-ID: {client.session_id}")
        )
        assert (answer.status, answer.reset) == (200, False)
        assert answer.data.endswith(b'{"jsonrpc":"2.0","id":1,"result":{}}')
        assert ("MCP-SESSION-ID", client.session_id) in upstream.ledger.arrivals[-1].request.headers

    async def test_nonsense_ends_the_connection(self, connect: Connect) -> None:
        """Bytes that are not HTTP reach no ledger and get no answer."""
        upstream, client = await connect()
        before = len(upstream.ledger.arrivals)
        answer = await raw_exchange(upstream.port, b"\x16\x03\x01 nonsense\r\n\r\n")
        assert (answer.status, answer.data, len(upstream.ledger.arrivals)) == (None, b"", before)
        assert (await client.call("ping", headers={"Accept": ACCEPT})).status == 200
