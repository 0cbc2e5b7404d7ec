"""What became of a call, as the counter and the log tell it."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.facts import RequestHeld, RequestServed
from tests.support.behaviour import Answers
from tests.support.client import McpClient, raw_exchange, raw_post
from tests.support.faults import ResetAfterExecution, Stall, StallAt
from tests.support.raw_upstream import Conversation, RawUpstream
from tests.support.scene import connected
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually


def outcomes(sidecar: WatchedSidecar, rpc_method: str = "tools/call") -> list[str]:
    """Of all calls of a method so far; what is no call has none."""
    served = [fact for fact in sidecar.of(RequestServed) if fact.rpc_method == rpc_method]
    return [str(fact.outcome) for fact in served if fact.outcome is not None]


@pytest.mark.parametrize("answers", Answers)
async def test_healthy_calls_are_answered(answers: Answers) -> None:
    """By either way, and whichever form the answer has; what is no call is not counted as one."""
    async with connected(answers=answers) as (_, sidecar, client):
        for _ in range(10):
            await client.tool("echo", text="x")
        await client.notify("notifications/roots/list_changed")
        await client.respond(1)
        await client.delete()
        served = sidecar.of(RequestServed)
        assert outcomes(sidecar) == ["answered"] * 10
        assert outcomes(sidecar, "initialize") == ["answered"]
        assert sum(fact.outcome is not None for fact in served) == 11


RESPONSE = b'event: message\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\n\n'


@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
@pytest.mark.parametrize(("event", "outcome"), [(RESPONSE, ("answered", 200)), (b": here\n\n", ("client_left", 499))])
async def test_a_client_that_leaves_behind_its_response_is_answered(
    version: str, event: bytes, outcome: tuple[str, int]
) -> None:
    """SDKs close their stream as soon as they have the response; whatever the server still has to say is nobody's."""

    async def play(conversation: Conversation) -> None:
        await conversation.read_body()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await conversation.send(head + b"%x\r\n%b\r\n" % (len(event), event))
        await conversation.client_left.wait()

    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        call = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}'
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(raw_post(sidecar.port, call, f"Mcp-Protocol-Version: {version}"))
        await reader.readuntil(event)
        writer.close()
        await eventually(lambda: sidecar.of(RequestServed))
        [served] = sidecar.of(RequestServed)
        assert (str(served.outcome), served.status) == outcome


async def test_a_healed_call_is_told_apart() -> None:
    """It was answered, and after a heal."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        await client.tool("echo", text="x")
        await client.tool("echo", text="x")
        assert outcomes(sidecar) == ["answered_after_heal", "answered"]


async def test_a_held_call_is_told_apart() -> None:
    """It was answered, and has waited; how long is known."""
    async with connected() as (upstream, sidecar, client):
        await upstream.stop()
        call = asyncio.create_task(client.tool("echo", text="x"))
        await eventually(lambda: len(sidecar.services.holds))
        await upstream.start()
        await call
        assert outcomes(sidecar) == ["answered_after_hold"]
        assert [held.seconds > 0 for held in sidecar.of(RequestHeld)] == [True]


@pytest.mark.long
async def test_calls_that_fail_after_the_hold_are_unavailable() -> None:
    """Though their status is 200: ten of ten."""
    async with connected(healing__hold_timeout=1) as (upstream, sidecar, client):
        await upstream.stop()
        await asyncio.gather(*(client.tool("echo", text="x") for _ in range(10)))
        assert outcomes(sidecar) == ["unavailable"] * 10
        assert [fact.status for fact in sidecar.of(RequestServed)][-10:] == [200] * 10
        assert [held.seconds for held in sidecar.of(RequestHeld)] == pytest.approx([1] * 10)


async def test_a_call_that_may_have_run_is_unknown() -> None:
    """The client was told so."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(ResetAfterExecution(), tool="charge")
        await client.tool("charge", amount=1)
        assert outcomes(sidecar) == ["unknown"]


async def test_a_session_that_is_lost_for_good_is_told() -> None:
    """The 404 that makes a client start over."""
    async with connected(mode="rewrite") as (upstream, sidecar, client):
        await upstream.restart()
        assert (await client.tool("echo", text="x")).status == 404
        assert outcomes(sidecar) == ["session_lost"]


@pytest.mark.parametrize(
    ("body", "line", "status"),
    [(b"{", "X: y", 400), (b"{}", "Origin: https://evil.example", 403), (b"x" * 2000, "X: y", 413)],
)
async def test_what_the_sidecar_refuses_is_rejected(body: bytes, line: str, status: int) -> None:
    """Its method may not be known; on other paths it is no call."""
    async with connected(limits__max_request_body=1024) as (_, sidecar, _):
        answer = await raw_exchange(sidecar.port, raw_post(sidecar.port, body, line))
        assert answer.status == status
        assert outcomes(sidecar, "other") == ["rejected"]
        await raw_exchange(sidecar.port, raw_post(sidecar.port, body, "Origin: https://evil.example", path="/x"))
        assert outcomes(sidecar, "other") == ["rejected"]


async def test_what_the_upstream_refuses_is_rejected() -> None:
    """A 401, say: the client has its answer, and it is no success."""
    async with connected() as (upstream, sidecar, client):
        upstream.become(authorization=frozenset({"Bearer x"}))
        assert (await client.tool("echo", text="x")).status == 401
        assert outcomes(sidecar) == ["rejected"]


async def test_a_client_that_leaves_before_its_response_has_left() -> None:
    """Whether it was held, or the server was slow."""
    async with connected(answers=Answers.JSON) as (upstream, sidecar, client):
        upstream.inject(Stall(StallAt.BEFORE_HEADERS), tool="echo")
        call = asyncio.create_task(client.tool("echo", text="x"))
        await eventually(lambda: upstream.ledger.executions("echo"))
        call.cancel()
        await eventually(lambda: outcomes(sidecar))
        await upstream.stop()
        call = asyncio.create_task(client.tool("echo", text="x"))
        await eventually(lambda: len(sidecar.services.holds))
        call.cancel()
        await eventually(lambda: len(outcomes(sidecar)) == 2)
        assert outcomes(sidecar) == ["client_left"] * 2


async def test_an_idle_sidecar_notices_that_its_upstream_has_gone() -> None:
    """And that it is back, without anybody's asking for anything."""
    async with connected(listen__comment_interval=5) as (upstream, sidecar, _):
        availability = sidecar.services.holds.availability
        await upstream.stop()
        await asyncio.sleep(11)
        assert not availability.is_up
        await upstream.start()
        await asyncio.sleep(11)
        assert availability.is_up
        connections = upstream.connections
        await upstream.stop()
        assert not await sidecar.upstream_is_there()
        assert upstream.connections == connections


@pytest.mark.long
async def test_the_status_page_tells_what_happened() -> None:
    """Up or away, heals and holds, and the calls by outcome; no id is in it."""
    async with connected(healing__hold_timeout=1) as (upstream, sidecar, client):
        await client.tool("echo", text="x")
        await upstream.restart()
        await client.tool("echo", text="x")
        await upstream.stop()
        await client.tool("echo", text="x")
        text = sidecar.status()
        assert ">away<" in text
        for told in ("healed in", "Upstream away", "unavailable after", "test-client", "fake-upstream", "answered 2"):
            assert told in text
        assert "\n" not in text
        for session_id in client.seen_session_ids:
            assert session_id not in text
        async with McpClient(sidecar.url) as other:
            await other.call("ping")
