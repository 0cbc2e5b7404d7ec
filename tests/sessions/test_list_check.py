"""After a heal the client hears of lists that are not what it saw, where it was promised to, and of no others."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest

from mcp_sidecar.facts import HealEnded, HintDropped, HintKind, ListKind, ListsChanged, SessionEnd, SessionEnded
from tests.support.behaviour import Answers
from tests.support.client import McpClient, Stream
from tests.support.credentials import alice
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer, Crash, Fault, IngressPage, ResetAfterExecution, Stall, StallAt
from tests.support.ledger import Arrival
from tests.support.own_answers import is_not_found
from tests.support.scene import connected
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

TOOLS: Final = "tools/list"
SILENT: Final[dict[str, Any]] = {"tools": {}, "prompts": {}, "resources": {}, "logging": {}}
JSON: Final = (("Content-Type", "application/json"),)

ANSWERS = pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)


def compared(upstream: FakeUpstream) -> list[Arrival]:
    """The sidecar's own list requests."""
    return [a for a in upstream.ledger.arrivals if b'"mcp-sidecar-list-' in a.body]


async def is_over(upstream: FakeUpstream, sidecar: WatchedSidecar, requests: int) -> None:
    """So many requests of the sidecar's own have come, and everything that follows from them is done."""
    await eventually(lambda: len(compared(upstream)) == requests and not len(sidecar.services.sessions.list_check))


async def next_but_marker(upstream: FakeUpstream, stream: Stream) -> list[str]:
    """The methods of what comes on a stream before the marker that is sent now."""
    upstream.notify("notifications/marker")
    methods: list[str] = []
    while (message := await stream.next_message()) is not None and message["method"] != "notifications/marker":
        methods.append(message["method"])
    return methods


def told(sidecar: WatchedSidecar) -> list[tuple[ListKind, bool]]:
    return [(fact.kind, fact.promised) for fact in sidecar.of(ListsChanged)]


@ANSWERS
@pytest.mark.parametrize(
    ("method", "change", "kind"),
    [
        pytest.param("tools/list", {"extra_tools": ("new",)}, ListKind.TOOLS, id="tools"),
        pytest.param("prompts/list", {"extra_prompts": ("new",)}, ListKind.PROMPTS, id="prompts"),
        pytest.param("resources/list", {"extra_resources": ("new",)}, ListKind.RESOURCES, id="resources"),
        pytest.param("resources/templates/list", {"extra_templates": ("new",)}, ListKind.RESOURCES, id="templates"),
    ],
)
async def test_a_list_that_changed_is_told(
    method: str, change: dict[str, Any], kind: ListKind, answers: Answers
) -> None:
    """One notification of the right kind on the open stream, of the list that the client has seen."""
    async with connected(answers=answers) as (upstream, sidecar, client):
        await client.call(method)
        async with await client.get_stream() as stream:
            await upstream.restart(**change)
            await client.tool("echo", text="again")
            message = await stream.next_message()
            assert message == {"jsonrpc": "2.0", "method": f"notifications/{kind.value}/list_changed", "params": {}}
            assert await next_but_marker(upstream, stream) == []
        assert told(sidecar) == [(kind, True)]
        assert [arrival.rpc_methods for arrival in compared(upstream)] == [(method,)]
        assert not sidecar.of(HintDropped)


@ANSWERS
async def test_a_list_that_is_the_same_is_not_told(answers: Answers) -> None:
    """Every list that the client saw is looked at once, and nothing is said of it."""
    methods = ["tools/list", "prompts/list", "resources/list", "resources/templates/list"]
    async with connected(answers=answers) as (upstream, sidecar, client):
        for method in methods:
            await client.call(method)
        async with await client.get_stream() as stream:
            await upstream.restart()
            await client.tool("echo", text="again")
            await is_over(upstream, sidecar, 4)
            assert await next_but_marker(upstream, stream) == []
        assert told(sidecar) == []
        bodies = [json.loads(arrival.body) for arrival in compared(upstream)]
        assert [body["method"] for body in bodies] == methods
        assert [body["id"] for body in bodies] == [f"mcp-sidecar-list-{n}" for n in (1, 2, 3, 4)]


async def test_several_changes_are_told_once_each() -> None:
    """Templates and resources have one notification together."""
    async with connected() as (upstream, sidecar, client):
        for method in ("resources/templates/list", "resources/list", "tools/list"):
            await client.call(method)
        async with await client.get_stream() as stream:
            await upstream.restart(extra_tools=("t",), extra_resources=("r",), extra_templates=("s",))
            await client.tool("echo", text="again")
            await is_over(upstream, sidecar, 3)
            methods = await next_but_marker(upstream, stream)
        assert methods == ["notifications/resources/list_changed", "notifications/tools/list_changed"]


async def test_what_the_client_never_saw_is_not_looked_at() -> None:
    """A client that lists nothing costs no request, and hears of nothing."""
    async with connected(page_size=4) as (upstream, sidecar, client):
        await client.call(TOOLS)  # one page of three
        await client.tool("echo")
        await upstream.restart(extra_tools=("new",))
        await client.tool("echo", text="again")
        await client.call("ping")
        assert compared(upstream) == []
        assert len(sidecar.services.sessions.list_check) == 0
        assert told(sidecar) == []


async def test_the_comparison_can_be_switched_off() -> None:
    """``healing.compare_lists = false``: nothing is remembered and nothing asked."""
    async with connected(healing__compare_lists="false") as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        await client.tool("echo", text="again")
        await client.call("ping")
        assert compared(upstream) == []
        assert [session.lists for session in sidecar.services.sessions.table] == [None]


@ANSWERS
async def test_pages_are_put_together(answers: Answers) -> None:
    """All pages of the client and all of our own: the same list in pages of another size is the same."""
    async with connected(answers=answers, page_size=4) as (upstream, sidecar, client):
        page = await client.call(TOOLS)
        while "nextCursor" in page.result:
            page = await client.call(TOOLS, {"cursor": page.result["nextCursor"]})
        await upstream.restart(page_size=2)
        await client.tool("echo", text="again")
        await is_over(upstream, sidecar, 5)
        assert told(sidecar) == []
        await upstream.restart(page_size=3, extra_tools=("new",))
        await client.tool("echo", text="again")
        await is_over(upstream, sidecar, 5 + 4)
        assert told(sidecar) == [(ListKind.TOOLS, True)]


async def test_after_the_replay_and_once_per_heal() -> None:
    """Twenty calls meet one loss: one comparison, with the credentials of a call, after a call was answered."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers={"X-API-Key": "k"}) as client,
    ):
        await client.initialize()
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        await asyncio.gather(*(client.tool("charge", amount=n) for n in range(20)))
        await is_over(upstream, sidecar, 1)
        await client.call("ping")
        [own] = compared(upstream)
        first_answered = min(
            a.number for a in upstream.ledger.arrived(tool="charge", process=2) if a.answer_status == 200
        )
        assert own.number > first_answered
        assert own.header("x-api-key") == "k"
        assert own.header("mcp-protocol-version") == client.version
        assert own.session_id in upstream.sessions
        assert told(sidecar) == [(ListKind.TOOLS, True)]


async def test_without_a_stream_the_hint_is_dropped() -> None:
    """Nobody listens: what would have been told is counted."""
    async with connected() as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        assert (await client.tool("echo", text="again")).messages[0]["id"] is not None
        await eventually(lambda: sidecar.of(HintDropped))
        assert [fact.kind for fact in sidecar.of(HintDropped)] == [HintKind.LIST_CHANGED]
        assert [len(answer) for answer in [(await client.tool("echo", text="more")).messages]] == [1]


# -- what was not promised --------------------------------------------------------------------------------------------


async def test_adapt_keeps_quiet_about_what_was_not_promised() -> None:
    """The notification would be outside of what was negotiated: the client goes on, and the log says it."""
    async with connected(capabilities=SILENT) as (upstream, sidecar, client):
        await client.call(TOOLS)
        async with await client.get_stream() as stream:
            await upstream.restart(extra_tools=("new",))
            await client.tool("echo", text="again")
            await is_over(upstream, sidecar, 1)
            assert await next_but_marker(upstream, stream) == []
        assert told(sidecar) == [(ListKind.TOOLS, False)]
        assert (await client.tool("echo", text="more")).text == "more"


async def test_the_old_promise_counts_and_not_the_new_server_s() -> None:
    """A capability that was added by the restart is none of this client's."""
    async with connected(capabilities=SILENT) as (upstream, sidecar, client):
        await client.call(TOOLS)
        async with await client.get_stream() as stream:
            await upstream.restart(extra_tools=("new",), capabilities={**SILENT, "tools": {"listChanged": True}})
            await client.tool("echo", text="again")
            await is_over(upstream, sidecar, 1)
            assert await next_but_marker(upstream, stream) == []
        assert told(sidecar) == [(ListKind.TOOLS, False)]


async def test_reset_ends_the_session() -> None:
    """``on_server_change = reset``: the replay is answered, the stream ends cleanly, the next request gets the 404."""
    async with connected(capabilities=SILENT, healing__on_server_change="reset") as (upstream, sidecar, client):
        await client.call(TOOLS)
        async with await client.get_stream() as stream:
            await upstream.restart(extra_tools=("new",))
            assert (await client.tool("echo", text="again")).text == "again"
            assert await stream.next_message() is None
        assert [fact.reason for fact in sidecar.of(SessionEnded)] == [SessionEnd.INCOMPATIBLE]
        await eventually(lambda: not upstream.sessions)
        answer = await client.tool("echo", text="more")
        assert is_not_found(answer)


async def test_reset_tells_what_was_promised() -> None:
    """Where the client was promised to hear of it, ``reset`` needs no 404."""
    async with connected(healing__on_server_change="reset") as (upstream, _, client):
        await client.call(TOOLS)
        async with await client.get_stream() as stream:
            await upstream.restart(extra_tools=("new",))
            await client.tool("echo", text="again")
            message = await stream.next_message()
            assert message is not None and message["method"] == "notifications/tools/list_changed"
        assert (await client.tool("echo", text="more")).text == "more"


# -- what the client has seen -----------------------------------------------------------------------------------------


async def test_a_replayed_list_request_is_what_the_client_has_seen() -> None:
    """The client has the new server's list already: nothing is asked or told."""
    async with connected() as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        assert "new" in [tool["name"] for tool in (await client.call(TOOLS)).result["tools"]]
        await client.call("ping")
        assert compared(upstream) == []
        await upstream.restart()
        await client.tool("echo", text="again")
        await is_over(upstream, sidecar, 1)
        assert told(sidecar) == []


async def test_the_client_asks_while_we_do() -> None:
    """What the client itself learns while the comparison is under way is not told again."""
    async with connected() as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method=TOOLS)
        await client.tool("echo", text="again")
        await eventually(lambda: len(compared(upstream)) == 1)
        await client.call(TOOLS)
        upstream.release()
        await is_over(upstream, sidecar, 1)
        assert told(sidecar) == []


async def test_a_list_too_large_to_be_read_was_not_seen() -> None:
    """Beyond ``limits.max_buffered_answer`` nobody looks into an answer."""
    async with (
        FakeUpstream(answers=Answers.JSON, extra_tools=tuple(f"tool-{n}" for n in range(100))) as upstream,
        running_sidecar(upstream.url, limits__max_buffered_answer="4KiB") as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        assert len((await client.call(TOOLS)).result["tools"]) > 100
        await upstream.restart(extra_tools=())
        await client.tool("echo", text="again")
        await client.call("ping")
        assert compared(upstream) == []


async def test_a_list_that_the_new_server_does_not_know() -> None:
    """Method not found is an empty list: changed, where the client had seen something."""
    async with connected() as (upstream, sidecar, client):
        await client.call("prompts/list")
        await upstream.restart()
        body = {"jsonrpc": "2.0", "id": "mcp-sidecar-list-1", "error": {"code": -32601, "message": "Method not found"}}
        upstream.inject(Answer(200, JSON, json.dumps(body).encode()), rpc_method="prompts/list")
        await client.tool("echo", text="again")
        await is_over(upstream, sidecar, 1)
        assert told(sidecar) == [(ListKind.PROMPTS, True)]


@ANSWERS
async def test_lists_in_a_batch_are_seen_too(answers: Answers) -> None:
    """A batch (2025-03-26) brings several lists at once."""
    async with (
        FakeUpstream(answers=answers) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, version="2025-03-26") as client,
    ):
        await client.initialize()
        await client.batch([client.request("prompts/list"), client.request("ping"), client.request(TOOLS)])
        await upstream.restart(extra_prompts=("new",))
        await client.tool("echo", text="again")
        await is_over(upstream, sidecar, 2)
        assert told(sidecar) == [(ListKind.PROMPTS, True)]


async def test_reset_leaves_alone_what_is_running() -> None:
    """A call that runs on the new server is not cut by the end of its session; only what comes next gets the 404."""
    async with connected(capabilities=SILENT, healing__on_server_change="reset") as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        slow = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        await client.call("ping")
        await eventually(lambda: sidecar.of(SessionEnded))
        upstream.slow_gate.set()
        assert (await slow).text == "at last"
        assert is_not_found(await client.call("ping"))


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Crash(), id="crash"),
        pytest.param(ResetAfterExecution(), id="reset"),
        pytest.param(IngressPage(503), id="ingress"),
        pytest.param(Answer(401, (("WWW-Authenticate", "Bearer"),)), id="401"),
        pytest.param(Answer(404), id="404"),
        pytest.param(Answer(200, JSON, b"{}"), id="no answer"),
        pytest.param(Answer(200, JSON, b'{"jsonrpc":"2.0","id":"mcp-sidecar-list-1","result":{}}'), id="no list"),
        pytest.param(
            Answer(200, JSON, b'{"jsonrpc":"2.0","id":"mcp-sidecar-list-1","error":{"code":-32603,"message":"no"}}'),
            id="error",
        ),
        pytest.param(Answer(200, JSON, b'{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}'), id="another id"),
        pytest.param(
            Answer(
                200, JSON, b'{"jsonrpc":"2.0","id":"mcp-sidecar-list-1","result":{"tools":"' + b"x" * 2**21 + b'"}}'
            ),
            id="too large",
        ),
    ],
)
async def test_a_comparison_that_fails_is_dropped(fault: Fault) -> None:
    """Nobody hears of it, the client goes on, and the next heal compares again."""
    async with connected() as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        upstream.inject(fault, rpc_method=TOOLS)
        assert (await client.tool("echo", text="again")).text == "again"
        await is_over(upstream, sidecar, 1)
        assert told(sidecar) == []
        await upstream.restart()
        assert (await client.tool("echo", text="more")).text == "more"
        await is_over(upstream, sidecar, 2)
        assert told(sidecar) == [(ListKind.TOOLS, True)]


async def test_endless_pages_are_given_up() -> None:
    """A server that always has one page more is asked a bounded number of times."""
    body = b'{"jsonrpc":"2.0","id":"mcp-sidecar-list-%d","result":{"tools":[],"nextCursor":"on"}}'
    async with connected() as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart()
        for number in range(1, 201):
            upstream.inject(Answer(200, JSON, body % number), rpc_method=TOOLS)
        await client.tool("echo", text="again")
        await is_over(upstream, sidecar, 100)
        assert told(sidecar) == []


async def test_another_heal_overtakes_a_comparison() -> None:
    """What hangs at a server that is gone by now says nothing; the newer heal compares for itself."""
    async with connected() as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method=TOOLS)
        await client.tool("echo", text="again")
        await eventually(lambda: len(compared(upstream)) == 1)
        upstream.forget()
        await client.tool("echo", text="more")
        await is_over(upstream, sidecar, 2)
        upstream.release()
        assert len(sidecar.of(HealEnded)) == 2
        assert told(sidecar) == [(ListKind.TOOLS, True)]


# -- who begins it ----------------------------------------------------------------------------------------------------


async def test_a_stream_that_healed_begins_it() -> None:
    """No request is under way: the re-attached stream's own credentials serve, and it brings the news."""
    async with connected() as (upstream, _, client):
        await client.call(TOOLS)
        async with await client.get_stream(headers={"X-Of": "the stream"}) as stream:
            await upstream.restart(extra_tools=("new",))
            message = await stream.next_message()
            assert message is not None and message["method"] == "notifications/tools/list_changed"
        [own] = compared(upstream)
        assert own.header("x-of") == "the stream"
        assert own.header("content-type") == "application/json"


async def test_a_stream_leaves_it_to_the_request_under_way() -> None:
    """A call is still running on the new server: nothing is looked up before it was answered."""
    async with connected() as (upstream, _, client):
        await client.call(TOOLS)
        async with await client.get_stream() as stream:
            upstream.forget()
            slow = asyncio.create_task(client.tool("slow"))
            await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
            upstream.become(extra_tools=("new",))
            upstream.end_get_streams()
            await upstream.ledger.wait_for(lambda ledger: ledger.count("GET") >= 2)
            assert await next_but_marker(upstream, stream) == []
            assert compared(upstream) == []
            upstream.slow_gate.set()
            await slow
            message = await stream.next_message()
            assert message is not None and message["method"] == "notifications/tools/list_changed"


async def test_a_client_that_left_leaves_it_to_the_next_request() -> None:
    """The heal went on without its client; the next answer begins the comparison, with its own credentials."""
    first, second = alice(), alice()
    async with (
        FakeUpstream(authorization=frozenset({first["Authorization"], second["Authorization"]})) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=first) as client,
    ):
        await client.initialize()
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method="initialize")
        call = asyncio.create_task(client.tool("echo", text="again"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.initializes) == 2)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        upstream.release()
        await eventually(lambda: sidecar.of(HealEnded))
        assert compared(upstream) == []
        await client.call("ping", headers=second)
        await is_over(upstream, sidecar, 1)
        assert compared(upstream)[0].header("authorization") == second["Authorization"]
        assert told(sidecar) == [(ListKind.TOOLS, True)]


async def test_a_refused_request_begins_nothing() -> None:
    """A 401 is no answer whose credentials would serve; the next request that is let in begins it."""
    async with connected() as (upstream, sidecar, client):
        await client.call(TOOLS)
        await upstream.restart(extra_tools=("new",))
        upstream.inject(Answer(401, (("WWW-Authenticate", "Bearer"),)), tool="echo", skip=1)
        assert (await client.tool("echo", text="again")).status == 401
        assert compared(upstream) == []
        await client.call("ping")
        await is_over(upstream, sidecar, 1)
        assert told(sidecar) == [(ListKind.TOOLS, True)]
