"""A DELETE: sent once, never heals, never waits; what it ended stays ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcp_sidecar.facts import AnswerRewritten, HealEnded, RequestReplayed, SessionEnd, SessionEnded
from tests.support.behaviour import SessionMode
from tests.support.client import McpClient
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import (
    Answer,
    CloseBeforeHeaders,
    IngressPage,
    Refuse,
    ResetAfterExecution,
    RoutePage,
    Router,
    Stall,
)
from tests.support.scene import connected
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

Scene = tuple[FakeUpstream, WatchedSidecar, McpClient]
BATCHED = {"jsonrpc": "2.0", "id": 77, "method": "tools/call", "params": {"name": "charge"}}
NOT_FOUND = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'


@asynccontextmanager
async def scene(behaviour: dict[str, Any] | None = None, **settings: object) -> AsyncIterator[Scene]:
    async with (
        FakeUpstream(**(behaviour or {})) as upstream,
        running_sidecar(upstream.url, **settings) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client
        assert upstream.ledger.count("DELETE") <= 1 + len(sidecar.of(SessionEnded))
        assert sidecar.of(HealEnded) == []
        assert sidecar.of(RequestReplayed) == []


async def assert_ended(client: McpClient, upstream: FakeUpstream) -> None:
    """The contract's 404 for whatever is asked with the id, and nothing of it reaches the upstream."""
    seen = len(upstream.ledger.arrivals)
    answers = [await client.tool("charge"), await client.notify("notifications/x"), await client.delete()]
    async with await client.get_stream() as stream:
        answers.append(await stream.read())
    for answer in answers:
        assert (answer.status, answer.body) == (404, NOT_FOUND)
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert len(upstream.ledger.arrivals) == seen


@pytest.mark.parametrize("status", [200, 202, 204])
async def test_a_2xx_passes_and_the_id_is_ended(status: int) -> None:
    """With the upstream's own status."""
    async with scene({"delete_status": status}) as (upstream, sidecar, client):
        assert (await client.delete()).status == status
        assert upstream.sessions == {}
        assert [fact.reason for fact in sidecar.of(SessionEnded)] == [SessionEnd.TERMINATED]
        assert len(sidecar.services.sessions.table) == 0
        await assert_ended(client, upstream)


@pytest.mark.parametrize(
    ("dialect", "status"), [("python-404", 200), ("python-400-text", 200), ("ts-404", 200), ("rmcp-401", 202)]
)
async def test_a_session_that_is_lost_already_is_ended(dialect: str, status: int) -> None:
    """The client wanted it gone, and it is: 200 with an empty body, no new session for the sake of ending it.
    rmcp says 202 to a DELETE of whatever it does not know, which passes."""
    async with scene({"dialect": dialect}) as (upstream, _, client):
        await upstream.restart()
        answer = await client.delete()
        assert (answer.status, answer.body) == (status, b"")
        assert len(upstream.ledger.initializes) == 1
        await assert_ended(client, upstream)


@pytest.mark.parametrize(
    "fault",
    [ResetAfterExecution(), CloseBeforeHeaders(), IngressPage(502), IngressPage(503), IngressPage(504, html=False)],
    ids=str,
)
async def test_a_delete_that_meets_an_outage_ends_the_id(fault: ResetAfterExecution) -> None:
    """It is not tried again: the server forgets the session by itself, if it has not done so."""
    async with scene() as (upstream, _, client):
        upstream.inject(fault, http_method="DELETE")
        answer = await client.delete()
        assert (answer.status, answer.body) == (200, b"")
        assert upstream.ledger.count("DELETE") == 1
        await assert_ended(client, upstream)


async def test_a_delete_while_the_upstream_is_away_ends_the_id_at_once() -> None:
    """And so it stays when the upstream is back."""
    async with scene(healing__hold_timeout=60) as (upstream, _, client):
        await upstream.stop()
        answer = await client.delete()
        assert (answer.status, answer.body) == (200, b"")
        await upstream.start()
        await assert_ended(client, upstream)


async def test_what_is_held_for_a_session_that_ends_is_never_sent() -> None:
    """The client ended it: its call gets the 404 at once and does not run when the upstream is back."""
    async with scene(healing__hold_timeout=60) as (upstream, sidecar, client), McpClient(sidecar.url) as other:
        await other.initialize()
        upstream.inject(Refuse())
        calls = [asyncio.create_task(client.tool("charge")), asyncio.create_task(client.batch([BATCHED]))]
        others = asyncio.create_task(other.tool("charge"))
        await eventually(lambda: len(sidecar.services.holds) == 3)
        assert (await client.delete()).status == 200
        async with asyncio.timeout(5):
            for answer in await asyncio.gather(*calls):
                assert (answer.status, answer.body) == (404, NOT_FOUND)
        await upstream.clear()
        assert (await others).text == "charged 1"
        assert len(upstream.ledger.executions("charge")) == 1
        sidecar.facts[:] = [fact for fact in sidecar.facts if not isinstance(fact, RequestReplayed)]


async def test_what_was_sent_before_the_session_ended_is_not_sent_again() -> None:
    """A harmless call that met an outage would go again, but not under an id that is ended."""
    async with scene(healing__hold_timeout=60) as (upstream, _, client):
        planted = upstream.inject(Stall(), rpc_method="ping")
        call = asyncio.create_task(client.call("ping"))
        await eventually(lambda: planted.hits)
        assert (await client.delete()).status == 200
        seen = upstream.ledger.count("POST")
        await upstream.restart()
        assert (await call).status == 404
        assert upstream.ledger.count("POST") == seen


async def test_an_upstream_that_never_answers_ends_the_id() -> None:
    """After ``idle_timeout``, which counts as cut."""
    async with scene(upstream__idle_timeout=0.1) as (upstream, _, client):
        upstream.inject(Stall(), http_method="DELETE")
        assert (await client.delete()).status == 200
        await assert_ended(client, upstream)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(405, (("Allow", "GET, POST"),)), id="405"),
        pytest.param(Answer(401, (("WWW-Authenticate", "Bearer"),), b"{}"), id="401"),
        pytest.param(Answer(403, (), b"no"), id="403"),
        pytest.param(Answer(500, (), b"oops"), id="500"),
        pytest.param(Answer(409), id="409"),
        pytest.param(
            Answer(503, (("Content-Type", "application/json"),), b'{"jsonrpc":"2.0","id":null,"error":{"code":-1}}'),
            id="503-json-rpc",
        ),
    ],
)
async def test_any_other_answer_passes_and_the_session_stays(answer: Answer) -> None:
    """405 means that clients cannot end sessions here; a real 401 wants a new token."""
    async with scene() as (upstream, sidecar, client):
        upstream.inject(answer, http_method="DELETE")
        got = await client.delete()
        assert (got.status, got.body) == (answer.status, answer.body)
        for name, value in answer.headers:
            assert got.headers[name] == value
        assert (await client.tool("echo", text="on")).text == "on"
        assert len(sidecar.services.sessions.table) == 1


@pytest.mark.parametrize("router", Router, ids=lambda router: router.name.lower())
async def test_a_404_that_no_server_signs_ends_the_id(router: Router) -> None:
    """Either the server lost the session and says so without a word, or its route is away: over in both cases."""
    async with scene() as (upstream, sidecar, client):
        upstream.inject(RoutePage(router), http_method="DELETE")
        answer = await client.delete()
        assert (answer.status, answer.body) == (200, b"")
        assert upstream.ledger.count("DELETE") == 1
        assert len(sidecar.services.sessions.table) == 0
        await assert_ended(client, upstream)


async def test_the_upstream_gets_its_own_id() -> None:
    """After a heal another one than the client's."""
    async with connected() as (upstream, _, client):
        await upstream.restart()
        await client.tool("echo")
        [upstream_id] = upstream.sessions
        assert (await client.delete()).status == 200
        assert upstream.ledger.arrived(http_method="DELETE")[0].session_id == upstream_id != client.session_id
        assert upstream.sessions == {}
        await assert_ended(client, upstream)


@pytest.mark.parametrize("session_id", [None, "unknown"])
async def test_a_delete_outside_a_known_session_is_passed(session_id: str | None) -> None:
    """An unknown id that the server denies, too, gets the contract's 404; a goodbye while it is away is no failure."""
    async with scene() as (upstream, sidecar, client):
        client.session_id = session_id
        got = await client.delete()
        assert got.status == (400 if session_id is None else 404)
        assert (got.body == NOT_FOUND) is (session_id is not None)
        assert len(sidecar.of(AnswerRewritten)) == (session_id is not None)
        await upstream.stop()
        assert (await client.delete()).status == (503 if session_id is None else 200)
        assert len(sidecar.services.sessions.table) == 1


async def test_another_principal_ends_nothing() -> None:
    """Its DELETE goes with the client-visible id; here the server denies it."""
    async with scene({"bind_principal": True}) as (_, sidecar, client):
        got = await client.delete(headers={"Authorization": "Bearer other"})
        assert (got.status, got.body) == (404, NOT_FOUND)
        assert (await client.tool("echo", text="on")).text == "on"
        assert len(sidecar.services.sessions.table) == 1


async def test_an_expired_id_gets_404() -> None:
    """Its session is forgotten; the client starts over."""
    async with scene(sessions__idle_ttl=1000) as (upstream, sidecar, client):
        now = sidecar.services.sessions.table._clock
        sidecar.services.sessions.table._clock = lambda: now() + 1001
        await assert_ended(client, upstream)
        assert [fact.reason for fact in sidecar.of(SessionEnded)] == [SessionEnd.EXPIRED]


async def test_an_ended_id_that_is_minted_again_lives_again() -> None:
    """Servers that count their sessions give the same id after a restart."""
    async with connected() as (upstream, _, client):
        session_id = client.session_id or ""
        await client.delete()
        body = b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{}}}'
        head = (("Content-Type", "application/json"), ("Mcp-Session-Id", session_id))
        upstream.inject(Answer(200, head, body), rpc_method="initialize")
        await client.initialize(initialized=False)
        assert client.session_id == session_id
        upstream.inject(Answer(200, head[:1], b'{"jsonrpc":"2.0","id":9,"result":{}}'), rpc_method="ping")
        assert (await client.call("ping", id=9)).result == {}


async def test_a_stateless_server_has_nothing_to_end() -> None:
    """Its 405 passes."""
    async with scene({"sessions": SessionMode.STATELESS}) as (_, _, client):
        assert (await client.delete()).status == 405


@pytest.mark.parametrize("mode", ["rewrite", "observe"])
async def test_other_modes_end_ids_as_the_upstream_does(mode: str) -> None:
    """``observe`` answers nothing itself, not even for an id that it knows to be ended."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url, healing__mode=mode) as sidecar:
        async with McpClient(sidecar.url) as client:
            await client.initialize()
            await client.tool("echo")
            assert (await client.delete()).status == 200
            seen = len(upstream.ledger.arrivals)
            again = await client.delete()
            assert again.status == 404
            assert (len(upstream.ledger.arrivals) > seen) is (mode == "observe")
            await upstream.stop()
            await client.delete()
        assert sidecar.of(HealEnded) == []


async def test_a_delete_ends_the_sessions_open_stream() -> None:
    """Cleanly, although the upstream may keep its side open."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await eventually(lambda: any(session.get_streams_open for session in upstream.sessions.values()))
        upstream.inject(Answer(200), http_method="DELETE")
        assert (await client.delete()).status == 200
        assert [event async for event in stream.rest()] == []
        await upstream.ledger.wait_for(lambda ledger: ledger.arrived(http_method="GET")[0].client_left)
        assert sidecar.services.streams.open.get_streams == 0


async def test_a_delete_that_a_heal_overtakes_ends_the_new_session_too() -> None:
    """Nothing is left upstream that nobody will ever end."""
    async with connected() as (upstream, _, client):
        await upstream.restart()
        upstream.inject(Stall(), http_method="DELETE")
        deleting = asyncio.create_task(client.delete())
        await upstream.ledger.wait_for(lambda ledger: ledger.count("DELETE") == 1)
        assert (await client.call("ping")).status == 200
        assert len(upstream.sessions) == 1
        upstream.release()
        assert (await deleting).status == 200
        await eventually(lambda: not upstream.sessions)
        assert upstream.ledger.count("DELETE") == 2
        await assert_ended(client, upstream)
