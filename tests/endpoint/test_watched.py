"""A sidecar that runs for a developer: its upstream is another one from time to time, and its clients are told of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from mcp_sidecar.app import Sidecar
from mcp_sidecar.commands.dev.takeover import Sessions
from mcp_sidecar.config import UpstreamConfig
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.facts import Fact, HealEnded, HealOutcome
from mcp_sidecar.healing.announcement import ListPromise
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.settings import load
from mcp_sidecar.wire.jsonrpc import Message
from tests.support.client import McpClient
from tests.support.credentials import bearer
from tests.support.fake_upstream import FakeUpstream
from tests.support.own_answers import is_error
from tests.support.waiting import eventually


class Watcher:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.sessions: Sessions | None = None
        self.bodies: list[bytes] = []

    def heard(self, fact: Fact) -> None:
        self.facts.append(fact)

    async def post(self, call: Call | None, message: Message, responder: Responder, work: Awaitable[None]) -> None:
        responder.tap = self.bodies.append
        await work
        assert self.sessions is not None and call is not None
        self.sessions.note(call)

    def healed(self) -> int:
        """How many sessions were."""
        return sum(isinstance(fact, HealEnded) and fact.outcome is HealOutcome.HEALED for fact in self.facts)


class Watched:
    """The sidecar, its watcher, and the way from one upstream to the next."""

    def __init__(self, upstream: FakeUpstream) -> None:
        self.watcher = Watcher()
        config = load({"upstream": [upstream.url], "listen": ["127.0.0.1:0"], "admin": ["off"]}, {}).config
        self.later_s = 0.0
        loop = asyncio.get_running_loop()
        self.sidecar = Sidecar(config, lambda: loop.time() + self.later_s, watch=self.watcher)
        self.sessions = self.watcher.sessions = Sessions(self.sidecar.services)
        self.config = config.upstream

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self.sidecar.client_url

    def at(self, upstream: FakeUpstream) -> UpstreamConfig:
        """Where this one is."""
        return replace(self.config, origin=upstream.origin)


@asynccontextmanager
async def watched(**behaviour: Any) -> AsyncIterator[tuple[Watched, FakeUpstream, FakeUpstream]]:
    """A sidecar before the first of two upstreams."""
    async with FakeUpstream(**behaviour) as old, FakeUpstream(**behaviour) as new:
        running = Watched(old)
        await running.sidecar.start()
        try:
            yield running, old, new
        finally:
            await running.sidecar.stop()


async def test_sessions_are_healed_before_anybody_calls() -> None:
    """The new server knows the session when the take-over returns, and the next call is one request."""
    async with watched() as (running, old, new), McpClient(running.url) as client:
        await client.initialize()
        await client.tool("echo", text="a")
        running.sessions.take_over(running.at(new))
        healed = await running.sessions.heal()
        assert healed == 1 == len(new.sessions) == running.watcher.healed()
        assert (await client.tool("echo", text="b")).text == "b"
        assert [len(each.ledger.executions("echo")) for each in (old, new)] == [1, 1]


async def test_a_call_under_way_ends_on_the_server_that_has_it() -> None:
    """It is neither repeated nor cut: the old connections close behind its answer."""
    async with watched() as (running, old, new), McpClient(running.url) as client:
        await client.initialize()
        call = asyncio.create_task(client.tool("slow"))
        await old.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        pool = running.sessions.take_over(running.at(new))
        healed = await running.sessions.heal()
        assert pool is not None and healed == 1
        retiring = asyncio.create_task(running.sidecar.services.upstream.retire(pool, 3600))
        await asyncio.sleep(0)
        assert not call.done() and not retiring.done()
        old.slow_gate.set()
        assert (await call).text == "at last"
        await retiring
        assert len(new.ledger.executions("slow")) == 0


async def test_patience_with_an_old_server_has_an_end() -> None:
    """What is under way beyond it is cut, and told as any break is."""
    async with watched() as (running, old, new), McpClient(running.url) as client:
        await client.initialize()
        call = asyncio.create_task(client.tool("slow"))
        await old.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        pool = running.sessions.take_over(running.at(new))
        await running.sessions.heal()
        assert pool is not None
        await running.sidecar.services.upstream.retire(pool, 5)
        assert (await call).error["data"] == {"reason": "outcome_unknown"}


async def test_credentials_are_not_kept_for_a_heal() -> None:
    """Such a session is healed by its next request."""
    async with watched() as (running, _, new), McpClient(running.url, headers=bearer("t")) as client:
        await client.initialize()
        await client.tool("echo", text="a")
        running.sessions.take_over(running.at(new))
        assert await running.sessions.heal() == 0
        assert (await client.tool("echo", text="b")).text == "b"
        assert running.watcher.healed() == 1


async def test_who_has_left_is_not_healed() -> None:
    """A program of one call leaves without a word: its session waits for a next call, and one whose client listens does not."""
    async with (
        watched() as (running, _, new),
        McpClient(running.url) as gone,
        McpClient(running.url) as silent,
        McpClient(running.url) as listening,
    ):
        for client in (gone, silent, listening):
            await client.initialize()
            await client.tool("echo", text="a")
        async with await listening.get_stream():
            running.later_s = 3600
            running.sessions.take_over(running.at(new))
            assert await running.sessions.heal() == 1
        assert (await silent.tool("echo", text="b")).text == "b"
        assert running.watcher.healed() == 2


async def test_who_listens_with_credentials_comes_back_by_itself() -> None:
    """When the old connections end, its stream breaks, goes on in the new server, and has the session healed for it."""
    async with watched() as (running, _, new), McpClient(running.url, headers=bearer("t")) as client:
        await client.initialize()
        async with await client.get_stream() as stream:
            pool = running.sessions.take_over(running.at(new))
            await running.sessions.heal()
            assert pool is not None
            await running.sidecar.services.upstream.retire(pool, 3600)
            await eventually(lambda: running.watcher.healed() == 1)
            await eventually(lambda: any(arrival.http_method == "GET" for arrival in new.ledger.arrivals))
            new.notify("notifications/tools/list_changed")
            message = await stream.next_message()
            assert message is not None and message["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize("capability", [{"listChanged": True}, {}], ids=["promised", "not promised"])
async def test_changed_lists_are_told_whatever_the_server_promised(capability: dict[str, bool]) -> None:
    """The client was promised it in the server's place, and hears of it right after the take-over."""
    async with watched(capabilities={"tools": capability}) as (running, _, new), McpClient(running.url) as client:
        opened = await client.initialize()
        assert opened.result["capabilities"]["tools"]["listChanged"] is True
        await client.call("tools/list")
        new.become(extra_tools=("added",))
        async with await client.get_stream() as stream:
            running.sessions.take_over(running.at(new))
            await running.sessions.heal()
            message = await stream.next_message()
            assert message is not None and message["method"] == "notifications/tools/list_changed"


async def test_without_a_server_calls_wait_for_the_next_one() -> None:
    """As in any outage, and nothing is sent to the one that is about to end."""
    async with watched() as (running, old, new), McpClient(running.url) as client:
        await client.initialize()
        running.sessions.leave()
        call = asyncio.create_task(client.tool("echo", text="a"))
        await eventually(lambda: len(running.sidecar.services.holds) == 1)
        running.sessions.take_over(running.at(new))
        await running.sessions.heal()
        assert (await call).text == "a"
        assert len(old.ledger.executions("echo")) == 0


async def test_where_no_server_will_come_calls_end_with_the_reason() -> None:
    """Those that wait, and those that come; the next server serves again."""
    async with watched() as (running, _, new), McpClient(running.url) as client:
        await client.initialize()
        running.sessions.leave()
        call = asyncio.create_task(client.call("tools/call", {"name": "echo", "arguments": {}}, id=7))
        await eventually(lambda: len(running.sidecar.services.holds) == 1)
        running.sessions.fail("SyntaxError: no")
        for answer in (await call, await client.call("ping", id=7)):
            assert is_error(answer, 7, "server_failed_to_start") and answer.error["message"] == "SyntaxError: no"
        assert (await client.notify("notifications/progress", {"progressToken": 1, "progress": 1})).status == 202
        running.sessions.hope()
        waiting = asyncio.create_task(client.tool("echo", text="a"))
        await eventually(lambda: len(running.sidecar.services.holds) == 1)
        running.sessions.take_over(running.at(new))
        await running.sessions.heal()
        assert (await waiting).text == "a"


async def test_what_passes_is_shown() -> None:
    """The watcher sees an answer's body as the client gets it."""
    async with watched() as (running, _, _), McpClient(running.url) as client:
        await client.initialize()
        running.watcher.bodies.clear()
        await client.tool("echo", text="seen")
        assert b"seen" in b"".join(running.watcher.bodies)


@pytest.mark.parametrize(
    "answer",
    [
        {"id": 1, "error": {"code": 1, "message": "no"}},
        {"id": 1, "result": {}},
        {"id": 1, "result": {"capabilities": "x"}},
        [],
    ],
)
def test_nothing_is_promised_where_nothing_can_be(answer: Any) -> None:
    """An error, or a result without capabilities, passes as it is."""
    assert ListPromise().added_to(answer, 1) is None


def test_only_lists_that_there_are_are_promised() -> None:
    """A client asks for what it is promised, and a server without prompts knows no such method."""
    answer = {"id": 1, "result": {"capabilities": {"tools": {"x": 1}, "logging": {}}, "y": 2}}
    assert ListPromise().added_to(answer, 1) == {
        "id": 1,
        "result": {"capabilities": {"tools": {"x": 1, "listChanged": True}, "logging": {}}, "y": 2},
    }
