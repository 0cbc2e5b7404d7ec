"""A credential acts on a session once the upstream has accepted it there; until then it is passed on, and does nothing.

Nothing here is signed: which tokens are good stands in the upstream's ``authorization``, and a forged one is any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, SidecarFault
from mcp_sidecar.healing.hints import resource_updated
from mcp_sidecar.healing.session import Session
from tests.support.behaviour import SessionMode
from tests.support.client import McpClient
from tests.support.credentials import alice, bearer
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer, IngressPage, Stage, Stall, StallAt
from tests.support.listening import attached, next_method
from tests.support.own_answers import is_not_found
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

Headers = dict[str, str]
Scene = tuple[FakeUpstream, WatchedSidecar, McpClient]


def without_subject() -> Headers:
    """A fresh token as some proxies issue them."""
    return alice(sub="")


@asynccontextmanager
async def scene(owner: Headers, *others: Headers, **settings: object) -> AsyncIterator[Scene]:
    """A session of the owner's; the upstream knows its token and those of ``others``, and no other."""
    good = frozenset(headers["Authorization"] for headers in (owner, *others))
    async with (
        FakeUpstream(authorization=good) as upstream,
        running_sidecar(upstream.url, **settings) as sidecar,
        McpClient(sidecar.url, headers=owner) as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client
        assert sidecar.of(SidecarFault) == []
        said = repr(sidecar.facts)
        assert not any(token.partition(" ")[2] in said for token in good)


def other_of(client: McpClient, headers: Headers) -> McpClient:
    """Somebody else who knows the session's id."""
    return McpClient(client.url, headers=headers, http=client.http, session_id=client.session_id)


def session_of(sidecar: WatchedSidecar) -> Session:
    """The only one."""
    (session,) = sidecar.services.sessions.table
    return session


FORGED = [
    pytest.param(alice, id="the owner's claims under another signature"),
    pytest.param(without_subject, id="a JWT without subject"),
    pytest.param(lambda: bearer("forged"), id="opaque"),
]
REFRESHED = [
    pytest.param(lambda: bearer("opaque-1"), lambda: bearer("opaque-2"), id="opaque"),
    pytest.param(without_subject, without_subject, id="a JWT without subject"),
    pytest.param(alice, alice, id="a JWT"),
    pytest.param(lambda: bearer("opaque-1"), alice, id="a JWT for an opaque token"),
]


def owner_for(forged: Headers) -> Headers:
    """A token that the forged one might follow."""
    return (
        alice()
        if forged["Authorization"].count(".") == 2 and "forged" not in forged["Authorization"]
        else bearer("opaque-own")
    )


# -- what a forged token does not do ----------------------------------------------------------------------------------


@pytest.mark.parametrize("forge", FORGED)
async def test_it_ends_no_stream(forge: Any) -> None:
    """Its GET is the upstream's to refuse; the owner's stream stays, and hears what comes."""
    async with scene(owner_for(forge())) as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        async with await other_of(client, forge()).get_stream() as other:
            assert other.status == 401
        assert upstream.ledger.arrivals[-1].session_id == client.session_id
        upstream.notify("notifications/still-here")
        assert await next_method(stream) == "notifications/still-here"


@pytest.mark.parametrize("forge", FORGED)
async def test_it_cancels_nothing(forge: Any) -> None:
    """A request that waits for the upstream waits on, and runs; the forged cancellation waits as well, and is refused."""
    async with scene(owner_for(forge())) as (upstream, sidecar, client):
        await upstream.stop()
        call = asyncio.create_task(client.call("tools/call", {"name": "charge", "arguments": {}}, id=77))
        await eventually(lambda: len(sidecar.services.holds) == 1)
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 77}}
        forged = asyncio.create_task(other_of(client, forge()).post(cancelled))
        await eventually(lambda: len(sidecar.services.holds) == 2)
        await upstream.start()
        assert (await call).text == "charged 1"
        assert (await forged).status == 401
        assert len(upstream.ledger.executions("charge")) == 1


@pytest.mark.parametrize("forge", FORGED)
async def test_it_ends_nothing_in_an_outage(forge: Any) -> None:
    """Its DELETE is told that the upstream is away, and the session is there afterwards."""
    async with scene(owner_for(forge())) as (upstream, _, client):
        await upstream.stop()
        assert (await other_of(client, forge()).delete()).status == 503
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        assert (await other_of(client, forge()).delete()).status == 401
        assert (await client.tool("charge")).text == "charged 1"


@pytest.mark.parametrize("forge", FORGED)
async def test_it_is_no_listener_in_an_outage(forge: Any) -> None:
    """Its GET waits for as long as a request may; the owner's stream stays open, and is the one that comes back."""
    async with (
        scene(owner_for(forge()), healing__hold_timeout=0.3) as (upstream, sidecar, client),
        await client.get_stream() as stream,
    ):
        await attached(upstream)
        await upstream.stop()
        async with await other_of(client, forge()).get_stream() as other:
            assert other.status == 503
        assert session_of(sidecar).streams == 1
        await upstream.restart()
        await attached(upstream)
        upstream.notify("notifications/back")
        while (method := await next_method(stream)) != "notifications/back":
            assert method.startswith("notifications/")


@pytest.mark.parametrize("forge", FORGED)
async def test_it_reads_no_hints_and_learns_nothing(forge: Any) -> None:
    """What waits to be told waits for the owner; what it sets is not set again after a heal."""
    async with scene(owner_for(forge())) as (upstream, sidecar, client):
        session = session_of(sidecar)
        waiting = (resource_updated("file:///a"),)
        session.keep_hints(waiting)
        forged = other_of(client, forge())
        assert (await forged.call("logging/setLevel", {"level": "debug"})).status == 401
        assert session.hints == waiting
        assert session.client_state.log_level is None
        assert session.posts == 0
        assert upstream.ledger.arrivals[-1].session_id == client.session_id


@pytest.mark.parametrize("forge", FORGED)
async def test_it_heals_nothing(forge: Any) -> None:
    """In a lost session it gets the upstream's refusal, and the owner's next request finds everything as it was."""
    async with scene(owner_for(forge())) as (upstream, sidecar, client):
        await upstream.restart()
        assert (await other_of(client, forge()).tool("charge")).status == 401
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == []
        assert (await client.tool("charge")).text == "charged 1"
        assert len(upstream.ledger.executions("charge")) == 1


@dataclass(frozen=True, slots=True)
class RefuseLater:
    """With ``upstream.release()`` the request is refused in some way of the server's own."""

    executes: bool = False

    async def play(self, stage: Stage) -> None:
        await stage.released.wait()
        await Answer(400, (("Content-Type", "application/json"),), b'{"error":"bad token"}').play(stage)


async def test_a_heal_under_a_forged_token_is_nobody_elses_failure() -> None:
    """Should a server refuse it otherwise than with a 401, then the owner, who waits for the same heal, has one of its own."""
    async with scene(alice()) as (upstream, sidecar, client):
        await upstream.restart(authorization=None)
        upstream.inject(RefuseLater(), rpc_method="initialize")
        forged = asyncio.create_task(other_of(client, alice()).tool("charge"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.arrived(rpc_method="initialize")) == 2)
        call = asyncio.create_task(client.tool("charge"))
        await eventually(lambda: len(sidecar.services.holds) == 2)
        upstream.release()
        assert is_not_found(await forged)
        assert (await call).text == "charged 1"
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.FAILED, HealOutcome.HEALED]


# -- what a refreshed one does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), REFRESHED)
async def test_refreshed_before_a_heal(first: Any, then: Any) -> None:
    """The server has accepted the new token in the session: it is healed under it."""
    one, two = first(), then()
    async with scene(one, two) as (upstream, _, client):
        client.headers = two
        assert (await client.tool("charge")).text == "charged 1"
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        assert upstream.ledger.initializes[-1].header("authorization") == two["Authorization"]
        assert set(client.seen_session_ids) == {client.session_id}


@pytest.mark.parametrize(("first", "then"), REFRESHED)
async def test_refreshed_after_a_heal(first: Any, then: Any) -> None:
    """Another upstream id stands behind the client's by then: the new token is asked about under that one, and goes on."""
    one, two, three = first(), then(), then() if then is not REFRESHED[0].values[1] else bearer("opaque-3")
    async with scene(one, two, three) as (upstream, _, client):
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        for headers in (two, three):
            client.headers = headers
            assert (await client.tool("charge")).text == "charged 1"
            await upstream.restart()
            assert (await client.tool("charge")).text == "charged 1"
        assert len(upstream.ledger.executions("charge")) == 5
        assert set(client.seen_session_ids) == {client.session_id}


@pytest.mark.parametrize(("first", "then"), REFRESHED)
async def test_refreshed_in_an_outage(first: Any, then: Any) -> None:
    """The request waits as others do and is then sent; the upstream still knows the session."""
    one, two = first(), then()
    async with scene(one, two) as (upstream, sidecar, client):
        await upstream.stop()
        client.headers = two
        call = asyncio.create_task(client.tool("charge"))
        await eventually(lambda: len(sidecar.services.holds) == 1)
        await upstream.start()
        assert (await call).text == "charged 1"
        assert len(upstream.ledger.initializes) == 1


@pytest.mark.parametrize(("first", "then"), REFRESHED)
async def test_a_refreshed_token_listens(first: Any, then: Any) -> None:
    """A stream whose credential is accepted is the session's: it replaces the one before, and outlives a restart."""
    one, two = first(), then()
    async with scene(one, two) as (upstream, sidecar, client), await client.get_stream() as old:
        await attached(upstream)
        client.headers = two
        async with await client.get_stream() as new:
            assert [event.message async for event in old.rest() if event.message is not None] == []
            await eventually(lambda: session_of(sidecar).streams == 1)
            await upstream.restart()
            await attached(upstream)
            upstream.notify("notifications/back")
            while await next_method(new) != "notifications/back":
                pass


@pytest.mark.parametrize(("first", "then"), REFRESHED)
async def test_what_it_sets_is_set_again_after_a_heal(first: Any, then: Any) -> None:
    """With the very answer that shows that it is accepted it is the session's own request."""
    one, two = first(), then()
    async with scene(one, two) as (upstream, _, client):
        client.headers = two
        assert (await client.call("logging/setLevel", {"level": "debug"})).status == 200
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        assert [session.log_level for session in upstream.sessions.values()] == ["debug"]


@pytest.mark.parametrize(("first", "then"), REFRESHED)
async def test_it_may_end_the_session(first: Any, then: Any) -> None:
    """The upstream's own success ends the id for everybody."""
    one, two = first(), then()
    async with scene(one, two) as (upstream, _, client):
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        refreshed = other_of(client, two)
        assert (await refreshed.delete()).status in (200, 204)
        assert not upstream.sessions
        assert is_not_found(await client.tool("charge"))
        assert is_not_found(await refreshed.tool("charge"))


async def test_a_new_token_of_the_same_jwt_heals() -> None:
    """Issuer, subject and client are those of the owner, and the upstream's ``initialize`` takes the token."""
    one, two = alice(), alice()
    async with scene(one, two) as (upstream, _, client):
        await upstream.restart()
        client.headers = two
        async with await client.get_stream() as stream:
            assert stream.status == 200
            await attached(upstream)
            upstream.notify("notifications/back")
            assert await next_method(stream) == "notifications/back"
        assert (await client.tool("charge")).text == "charged 1"
        assert len(upstream.ledger.initializes) == 2


@pytest.mark.parametrize("of", [bearer, lambda token: alice(sub="", token=token)])
async def test_a_token_that_nobody_accepted_in_the_session_does_not_heal_it(of: Any) -> None:
    """In a lost session nothing tells its bearer from a stranger who knows the id: it gets the 404, and the owner goes on."""
    one, two = of("opaque-1"), of("opaque-2")
    async with scene(one, two) as (upstream, sidecar, client):
        await upstream.restart()
        assert is_not_found(await other_of(client, two).tool("charge"))
        async with await other_of(client, two).get_stream() as stream:
            assert stream.status == 404
        assert len(upstream.ledger.initializes) == 1
        assert {fact.outcome for fact in sidecar.of(HealEnded)} == {HealOutcome.REFUSED}
        assert (await client.tool("charge")).text == "charged 1"
        assert (await other_of(client, two).tool("charge")).text == "charged 1"


@pytest.mark.parametrize("by", ["a call", "a GET"])
async def test_a_session_that_the_server_opened_for_it_is_not_the_owners(by: str) -> None:
    """Some servers open a session of their own under an id that they have lost: that success was in another session."""
    one, two = bearer("opaque-1"), bearer("opaque-2")
    async with scene(one, two) as (upstream, sidecar, client):
        upstream.become(sessions=SessionMode.OPENING)
        upstream.forget()
        other = other_of(client, two)
        if by == "a call":
            assert (await other.tool("charge")).text == "charged 1"
        else:
            stream = await other.get_stream()
            stream.close()
        assert len(session_of(sidecar).accepted.identities) == 1
        assert (await client.tool("charge")).text == "charged 1"
        assert upstream.sessions[session_of(sidecar).upstream_id or ""].authorization == one["Authorization"]


async def test_a_server_that_binds_its_sessions_has_the_last_word() -> None:
    """It refuses another user's good token in this session: that one gets the 404, and nothing of it is remembered."""
    one, two = bearer("opaque-1"), bearer("opaque-2")
    async with scene(one, two) as (upstream, sidecar, client):
        upstream.become(bind_principal=True)
        for _ in range(2):
            assert is_not_found(await other_of(client, two).tool("charge"))
        refused = sidecar.services.sessions.principals.of_values({"authorization": two["Authorization"]})
        assert not session_of(sidecar).accepted.holds(refused)
        assert len(upstream.ledger.initializes) == 1
        assert (await client.tool("charge")).text == "charged 1"


async def test_adopting_can_be_switched_off() -> None:
    """``adopt_credentials = false``: another token is another principal, whatever the upstream says to it."""
    async with scene(bearer("opaque-1"), bearer("opaque-2"), healing__adopt_credentials="false") as (
        upstream,
        _,
        client,
    ):
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        assert is_not_found(await other_of(client, bearer("opaque-2")).tool("charge"))
        assert upstream.ledger.arrivals[-1].session_id == client.session_id


# -- what else tells principals apart ---------------------------------------------------------------------------------


async def test_another_key_in_the_query_is_another_principal() -> None:
    """It never heals; the key that opened the session does, and stands in the query of the heal."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(f"{sidecar.url}?key=mine") as client,
    ):
        await client.initialize()
        await upstream.restart()
        stranger = McpClient(f"{sidecar.url}?key=other", http=client.http, session_id=client.session_id)
        for other in (stranger, McpClient(sidecar.url, http=client.http, session_id=client.session_id)):
            assert is_not_found(await other.tool("charge"))
            assert upstream.ledger.arrivals[-1].session_id == client.session_id
        assert len(upstream.ledger.initializes) == 1
        assert (await client.tool("charge")).text == "charged 1"
        assert upstream.ledger.initializes[-1].request.target.endswith("?key=mine")
        assert is_not_found(await stranger.tool("charge"))
        assert "mine" not in repr(sidecar.facts)


async def test_named_cookies_tell_principals_apart() -> None:
    """Only those that the operator names; a star at the end stands for any rest."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, healing__principal_cookies="user,app_*") as sidecar,
        McpClient(sidecar.url, headers={"Cookie": "user=alice; app_a=1; theme=dark"}) as client,
    ):
        await client.initialize()
        await upstream.restart()
        for cookie in ("user=mallory; app_a=1", "user=alice; app_a=2", "app_a=1", "user=alice"):
            assert is_not_found(await other_of(client, {"Cookie": cookie}).tool("charge"))
        client.headers = {"Cookie": "theme=light; app_a=1; user=alice"}
        assert (await client.tool("charge")).text == "charged 1"


async def test_what_its_ping_meets_says_nothing_of_the_owners_session() -> None:
    """A server that binds its sessions tells a stranger that there is none; the owner's tool says the same, and ran."""
    one, two = bearer("opaque-1"), bearer("opaque-2")
    async with scene(one, two) as (upstream, sidecar, client):
        upstream.become(bind_principal=True)
        upstream.inject(IngressPage(), rpc_method="tools/list")
        planted = upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method="ping")
        stranger = asyncio.create_task(other_of(client, two).call("tools/list"))
        await eventually(lambda: planted.hits)
        lost = upstream.behaviour.dialect_row.post.filled(sid=client.session_id or "", rpc_id=1)
        upstream.inject(Answer(lost.status, tuple(lost.headers), lost.body, executes=True), tool="charge")
        call = asyncio.create_task(client.tool("charge"))
        await eventually(lambda: call.done() or len(sidecar.services.holds) == 2)
        upstream.release()
        assert (await call).status == lost.status
        assert is_not_found(await stranger)
        assert len(upstream.ledger.executions("charge")) == 1
        assert len(upstream.ledger.initializes) == 1
