"""Sidecars that share a Redis: restarts, replicas, and a Redis that dies, hangs, forgets or comes late."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_sidecar.app import CannotStart
from mcp_sidecar.facts import HealEnded, SessionAdopted, SessionLost, SidecarFault, StoreBack, StoreLost
from tests.support.client import McpClient
from tests.support.credentials import alice, bearer
from tests.support.fake_upstream import FakeUpstream
from tests.support.own_answers import is_error, is_not_found
from tests.support.redis_server import NEEDS_REDIS, RedisServer, redis_server
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import HANG_S, eventually

pytestmark = NEEDS_REDIS


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as started:
        yield started


@asynccontextmanager
async def a_sidecar(upstream: FakeUpstream, server: RedisServer, **settings: Any) -> AsyncIterator[WatchedSidecar]:
    """Patient with its Redis, unless a test says otherwise: the machine may be slow."""
    given = {"store": server.url, "sessions__store_timeout": HANG_S, **settings}
    async with running_sidecar(upstream.url, **given) as sidecar:
        yield sidecar
        assert sidecar.of(SidecarFault) == []


def going_on(sidecar: WatchedSidecar, former: McpClient, **changes: Any) -> McpClient:
    """A client with the session of another."""
    return McpClient(sidecar.url, **{"session_id": former.session_id, "headers": former.headers, **changes})


@pytest.mark.parametrize("with_server", [False, True], ids=["the sidecar", "both"])
@pytest.mark.parametrize("key", [None, "sealed"])
async def test_a_restart(server: RedisServer, with_server: bool, key: str | None) -> None:
    """The session goes on under its id, and nobody else gets it."""
    settings = {} if key is None else {"sessions__key": KEY}
    async with FakeUpstream() as upstream:
        async with a_sidecar(upstream, server, **settings) as first, McpClient(first.url, headers=alice()) as former:
            await former.initialize()
        if with_server:
            await upstream.restart()
        async with a_sidecar(upstream, server, **settings) as second:
            if with_server:
                async with going_on(second, former, headers=alice(sub="eve")) as stranger:
                    assert is_not_found(await stranger.tool("charge", amount=9))
            async with going_on(second, former, headers=alice()) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"
                assert len(second.of(HealEnded)) - with_server <= with_server
        assert len(upstream.ledger.initializes) == 1 + with_server


KEY = "0J9yV3NDhxrLPLpLqOXRzIhmHQvcmK8QvGfVKVZwzzZlK5lh8n5TBRWzK4cZ3iTlKNhaq2YzSgT3ZNfXDkVQxQ"


async def test_replicas(server: RedisServer) -> None:
    """Each with a server of its own: a session goes on at any of them, and no server sees another's id."""
    async with FakeUpstream() as one, FakeUpstream() as other:
        async with a_sidecar(one, server) as first, a_sidecar(other, server) as second:
            async with McpClient(first.url) as former:
                await former.initialize()
                async with going_on(second, former) as client:
                    for number in range(3):
                        assert (await client.tool("charge", amount=number)).text == f"charged {number}"
                        assert (await former.tool("charge", amount=number)).text == f"charged {number}"
            assert len(second.of(SessionAdopted)) == 1 and not second.of(SessionLost)
        assert len(one.ledger.initializes) == len(other.ledger.initializes) == 1
        ids = [{each.session_id for each in upstream.ledger.arrivals} for upstream in (one, other)]
        assert ids[0] & ids[1] <= {None}


async def test_one_server_for_both(server: RedisServer) -> None:
    """Of two that meet a loss at once one wins; the surplus upstream session is ended, and both go on in one."""
    async with FakeUpstream() as upstream, a_sidecar(upstream, server) as first, a_sidecar(upstream, server) as second:
        async with McpClient(first.url) as former:
            await former.initialize()
            async with going_on(second, former) as client:
                assert (await client.tool("echo", text="x")).text == "x"
                await upstream.restart()
                calls = [each.tool("charge", n=n) for each in (former, client) for n in range(10)]
                assert all("result" in answer.response for answer in await asyncio.gather(*calls))
        assert len(upstream.ledger.executions("charge")) == 20
        assert len(upstream.ledger.initializes) <= 3
        await eventually(lambda: len(upstream.sessions) == 1)


@asynccontextmanager
async def at_one(server: RedisServer) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, McpClient, McpClient]]:
    """A sidecar that is as impatient as by default, and two clients."""
    async with (
        FakeUpstream() as upstream,
        a_sidecar(upstream, server, sessions__store_timeout=0.25) as sidecar,
        McpClient(sidecar.url) as one,
        McpClient(sidecar.url, headers=bearer("two")) as other,
    ):
        yield upstream, sidecar, one, other


class TestRedisAway:
    """What is in memory goes on; what only Redis knows waits; nothing is lost for good."""

    @pytest.mark.parametrize("how", ["killed", "hangs"])
    async def test_calls_go_on(self, server: RedisServer, how: str) -> None:
        """New sessions, calls and heals; afterwards all of it is known elsewhere, although Redis has come back empty."""
        async with at_one(server) as (upstream, sidecar, old, new):
            await old.initialize()
            await (server.kill() if how == "killed" else self._hang(server))
            await new.initialize()
            await upstream.restart()
            for each in (old, new):
                assert (await each.tool("charge", amount=1)).text == "charged 1"
            assert len(sidecar.of(StoreLost)) == 1
            await (server.start() if how == "killed" else self._goes_on(server))
            await eventually(lambda: sidecar.of(StoreBack))
            keeper = sidecar.services.sessions.rounds.keeper
            await keeper.touch()
            await keeper.flush()
            async with a_sidecar(upstream, server) as other:
                for each in (old, new):
                    async with going_on(other, each) as client:
                        assert (await client.tool("charge", amount=2)).text == "charged 2"

    @staticmethod
    async def _hang(server: RedisServer) -> None:
        server.signal(signal.SIGSTOP)

    @staticmethod
    async def _goes_on(server: RedisServer) -> None:
        server.signal(signal.SIGCONT)

    async def test_what_only_redis_knows_waits(self, server: RedisServer) -> None:
        """Held while it hangs, served when it is back; never the 404."""
        async with FakeUpstream() as upstream:
            async with a_sidecar(upstream, server) as first, McpClient(first.url) as former:
                await former.initialize()
            quick = {"sessions__store_timeout": 0.25}
            async with a_sidecar(upstream, server, **quick) as second, going_on(second, former) as client:
                server.signal(signal.SIGSTOP)
                call = asyncio.create_task(client.tool("charge", amount=1))
                await eventually(lambda: len(second.services.holds) == 1)
                server.signal(signal.SIGCONT)
                assert (await call).text == "charged 1"
            async with (
                a_sidecar(upstream, server, healing__hold_timeout=0.1) as third,
                going_on(third, former) as client,
            ):
                await server.kill()
                answer = await client.call("tools/call", {"name": "charge"}, id=7)
                assert is_error(answer, 7, "session_store_unavailable")
            assert len(upstream.ledger.executions("charge")) == 1

    async def test_it_comes_late(self, server: RedisServer) -> None:
        """The process serves without it, and shares what it has as soon as it is there."""
        async with FakeUpstream() as upstream:
            await server.kill()
            async with a_sidecar(upstream, server) as first, McpClient(first.url, headers=alice()) as former:
                await former.initialize()
                await server.start()
                assert (await former.tool("charge", amount=1)).text == "charged 1"
                keeper = first.services.sessions.rounds.keeper
                await eventually(lambda: keeper.has_keys)
                assert (await former.tool("charge", amount=2)).text == "charged 2"
                await eventually(lambda: not keeper.unsaved)
            async with a_sidecar(upstream, server) as second, going_on(second, former) as client:
                assert (await client.tool("charge", amount=3)).text == "charged 3"

    async def test_it_is_flushed(self, server: RedisServer) -> None:
        """Whoever holds sessions writes them again with the next touch."""
        async with (
            FakeUpstream() as upstream,
            a_sidecar(upstream, server, sessions__idle_ttl=100) as sidecar,
            McpClient(sidecar.url) as former,
        ):
            await former.initialize()
            await server.say("FLUSHALL")
            with sidecar.services.sessions.table.using(next(iter(sidecar.services.sessions.table))):
                while await server.say("DBSIZE") != ":4":  # a record, its claim, and two secrets
                    await sidecar.services.sessions.rounds.keeper.touch()
            async with a_sidecar(upstream, server) as other, going_on(other, former) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"

    async def test_a_wrong_password(self, server: RedisServer) -> None:
        """The process does not start."""
        await server.say("CONFIG", "SET", "requirepass", "right")
        with pytest.raises(CannotStart):
            async with running_sidecar("http://127.0.0.1:9/mcp", store=server.url.replace("//", "//:wrong@")):
                pass
