"""Several servers behind one address: recognised where they do not share sessions, and found again by a balancer's cookie."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_sidecar.facts import HealEnded, SeveralServers
from mcp_sidecar.healing.findings import REMEMBERED_S
from mcp_sidecar.sessions.stores.keys import new_key
from tests.support.behaviour import SessionMode
from tests.support.client import McpClient
from tests.support.credentials import alice
from tests.support.dialects import JSON, Dialect, Said
from tests.support.replicas import Replicas
from tests.support.sidecar import WatchedSidecar, running_sidecar

pytestmark = pytest.mark.long

CALLS = 8


@asynccontextmanager
async def behind(count: int, **options: Any) -> AsyncIterator[tuple[Replicas, WatchedSidecar]]:
    """So many servers, and a sidecar in front of their balancer."""
    settings = {name: options.pop(name) for name in [*options] if "__" in name}
    async with Replicas(count, **options) as upstream, running_sidecar(upstream.url, **settings) as sidecar:
        yield upstream, sidecar


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="known words"),
        pytest.param(
            {"dialect": Dialect(name="own", servers="", post=Said(400, '{"error":"unknown session"}', JSON))},
            id="others",
        ),
    ],
)
@pytest.mark.parametrize("tool", ["echo", "charge"])
async def test_two_in_turn_without_affinity(tool: str, changes: dict[str, Any]) -> None:
    """The same session once more on the other one: few requests, every call succeeds and has run once, and one warning."""
    async with behind(2, **changes) as (upstream, sidecar), McpClient(sidecar.url) as client:
        await client.initialize()
        await client.call("tools/list")
        before = len(upstream.ledger.arrivals)
        for number in range(1, CALLS + 1):
            answer = await client.tool(tool, text="x")
            assert "result" in answer.response, answer
            assert len(upstream.ledger.executions(tool)) == number
        arrived = len(upstream.ledger.arrivals) - before
        assert arrived <= 3 * CALLS, [arrival.rpc_methods for arrival in upstream.ledger.arrivals[before:]]
        assert len(sidecar.of(SeveralServers)) == 1
        before = len(upstream.ledger.arrivals)
        for _ in range(CALLS):
            assert "result" in (await client.tool(tool, text="x")).response
        assert len(upstream.ledger.arrivals) - before <= 3 * CALLS


async def test_many_clients_have_one_warning() -> None:
    """It is said once by each process, whoever meets it."""
    async with behind(3) as (_upstream, sidecar):
        for _ in range(3):
            async with McpClient(sidecar.url) as client:
                await client.initialize()
                for _ in range(4):
                    await client.tool("charge")
        assert len(sidecar.of(SeveralServers)) <= 1


UNKNOWN = Dialect(
    name="own",
    servers="",
    post=Said(400, '{"error":"initialize first, then send mcp-session-id on follow-up requests"}', JSON),
)


async def test_a_new_session_that_is_refused_at_once_is_looked_for_elsewhere() -> None:
    """hyodotdev/openiap#287: a balancer that chooses by chance. Where ping and call met two servers that know nothing, the
    session was healed; the new one is not lost, too, for it was opened a moment ago: a third connection finds it.
    """
    async with behind(3, dialect=UNKNOWN) as (upstream, sidecar), McpClient(sidecar.url) as client:
        upstream.take_turns("1", "1")
        await client.initialize()
        heal = ("2", "2")
        upstream.take_turns("2", "3", *heal, "1", "3", "2", "2")
        answer = await client.tool("charge")
        assert "result" in answer.response, answer
        assert len(upstream.ledger.executions("charge")) == 1
        assert len(upstream.ledger.initializes) == 2
        assert len(sidecar.of(SeveralServers)) == 1


async def test_one_of_several_servers_that_knows_a_session_proves_little() -> None:
    """All pings have met the right one by chance: the refusal passes, and the next one is asked about all the same."""
    async with behind(2, dialect=UNKNOWN) as (upstream, sidecar), McpClient(sidecar.url) as client:
        upstream.take_turns("1", "1")
        await client.initialize()
        upstream.take_turns("2", "1", "2", "1")
        assert "result" in (await client.tool("charge")).response
        assert len(sidecar.of(SeveralServers)) == 1
        await asyncio.sleep(REMEMBERED_S)
        upstream.take_turns("2", "1", "1", "1", "1")
        assert (await client.tool("charge")).status == 400
        upstream.take_turns("2", "1", "2", "1")
        assert "result" in (await client.tool("charge")).response
        assert len(upstream.ledger.executions("charge")) == 2
        assert len(upstream.ledger.initializes) == 1


# -- affinity cookies -------------------------------------------------------------------------------------------------


async def test_a_balancers_cookie_goes_with_the_upstream_session() -> None:
    """A client that keeps no cookies stays with its server; after a heal, with the server of the new session."""
    async with behind(2, cookie="AWSALB") as (upstream, sidecar):
        async with McpClient(sidecar.url) as client:
            await client.initialize()
            for _ in range(4):
                assert "result" in (await client.tool("charge")).response
            assert len(upstream.ledger.initializes) == 1
            (first,) = (name for name, node in upstream.nodes.items() if node.sessions)
            upstream.replace_node(first)
            for _ in range(4):
                assert "result" in (await client.tool("charge")).response
            assert len(upstream.ledger.initializes) == 2
            sent = [arrival.header("cookie") or "" for arrival in upstream.ledger.arrivals]
            assert all("theirs" not in line for line in sent)
        assert sidecar.of(SeveralServers) == []
        assert len(sidecar.of(HealEnded)) == 1


async def test_a_cookie_of_the_clients_own_goes_before() -> None:
    """A client that keeps cookies knows better; one of another name stays beside the balancer's."""
    async with behind(2, cookie="AWSALB") as (upstream, sidecar), McpClient(sidecar.url) as client:
        await client.initialize()
        await client.call("ping", headers={"Cookie": "AWSALB=2; mine=1"})
        assert upstream.ledger.arrivals[-1].header("cookie") == "AWSALB=2; mine=1"
        await client.call("ping", headers={"Cookie": "mine=1"})
        assert (upstream.ledger.arrivals[-1].header("cookie") or "").startswith("mine=1; AWSALB=")


async def test_a_cookie_is_for_its_own_session_only() -> None:
    """Another client's requests bear the cookie of another session, or none."""
    async with (
        behind(2, cookie="AWSALB") as (upstream, sidecar),
        McpClient(sidecar.url) as one,
        McpClient(sidecar.url) as other,
    ):
        await one.initialize()
        await other.initialize()
        lines = set()
        for client in (one, other):
            await client.call("ping")
            lines.add(upstream.ledger.arrivals[-1].header("cookie"))
        assert lines == {"AWSALB=1", "AWSALB=2"}


@pytest.mark.parametrize("names", ["none-of-these", "X*"])
async def test_only_cookies_of_the_names_in_the_settings_are_kept(names: str) -> None:
    """Never one of another name."""
    async with behind(1, cookie="AWSALB", upstream__affinity_cookies=names) as (upstream, sidecar):
        async with McpClient(sidecar.url) as client:
            await client.initialize()
            await client.call("ping")
        assert all(arrival.header("cookie") is None for arrival in upstream.ledger.arrivals)


STORES = pytest.mark.parametrize("store", ["sqlite", "sealed"])


@STORES
async def test_a_cookie_outlives_the_sidecar(tmp_path: Path, store: str) -> None:
    """Behind a restart of the sidecar, or on another replica of it, the session's requests go where it is: nothing is healed.

    The cookie stands in no line of the log, and is no other session's.
    """
    settings: dict[str, Any] = {"store": f"sqlite:{tmp_path}/state/sessions.db"}
    if store == "sealed":
        settings = {"store": "sealed:", "sessions__key": new_key()}
    async with Replicas(3, cookie="AWSALB") as upstream:
        async with running_sidecar(upstream.url, **settings) as first, McpClient(first.url, headers=alice()) as former:
            await former.initialize()
        async with running_sidecar(upstream.url, **settings) as second:
            async with McpClient(second.url, former.headers, former.version, session_id=former.session_id) as client:
                for _ in range(4):
                    assert "result" in (await client.tool("charge")).response
            assert len(upstream.ledger.initializes) == 1
            assert {arrival.header("cookie") for arrival in upstream.ledger.arrivals[1:]} == {"AWSALB=1"}
            assert second.of(HealEnded) == []
            assert not any("AWSALB" in repr(fact) for sidecar in (first, second) for fact in sidecar.facts)


async def test_the_cookie_of_a_heal_outlives_the_sidecar(tmp_path: Path) -> None:
    """The latest one is in the store, not that of the client's own `initialize`."""
    store = f"sqlite:{tmp_path}/state/sessions.db"
    async with Replicas(2, cookie="AWSALB") as upstream:
        async with running_sidecar(upstream.url, store=store) as first, McpClient(first.url) as former:
            await former.initialize()
            (name,) = (name for name, node in upstream.nodes.items() if node.sessions)
            upstream.replace_node(name)
            assert "result" in (await former.tool("charge")).response
        led = upstream.ledger.arrivals[-1].header("cookie")
        async with running_sidecar(upstream.url, store=store) as second:
            async with McpClient(second.url, session_id=former.session_id, version=former.version) as client:
                assert "result" in (await client.tool("charge")).response
            assert upstream.ledger.arrivals[-1].header("cookie") == led
            assert len(upstream.ledger.initializes) == 2
            assert second.of(HealEnded) == []


async def test_a_session_that_moves_keeps_its_cookie() -> None:
    """The server opens a session of its own for an id that it does not know: the same server, by the same cookie."""
    async with (
        behind(2, cookie="AWSALB", sessions=SessionMode.OPENING) as (upstream, sidecar),
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        for node in upstream.nodes.values():
            node.sessions.clear()
        for _ in range(4):
            assert "result" in (await client.tool("charge")).response
        assert {arrival.header("cookie") for arrival in upstream.ledger.arrivals[1:]} == {"AWSALB=1"}
        assert len(upstream.ledger.initializes) == 1
