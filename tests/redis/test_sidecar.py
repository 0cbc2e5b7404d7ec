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
from mcp_sidecar.facts import (
    HealEnded,
    SessionAdopted,
    SessionLost,
    SidecarFault,
    StoreAsked,
    StoreBack,
    StoreLost,
    StoreWritesRefused,
)
from mcp_sidecar.healing.record import Instance
from mcp_sidecar.healing.session import UpstreamSessionId
from mcp_sidecar.sessions.stores.keys import new_key
from tests.support.client import Answer, McpClient
from tests.support.credentials import alice, bearer
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Stall, StallAt
from tests.support.listening import attached, next_method
from tests.support.own_answers import is_error, is_not_found
from tests.support.redis_server import NEEDS_REDIS, RedisServer, redis_server
from tests.support.relay import How, relay_to
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
async def at_two(
    server: RedisServer,
) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, WatchedSidecar, McpClient, McpClient]]:
    """Two sidecars in front of one server, and a client at each, both in one session."""
    async with (
        FakeUpstream() as upstream,
        a_sidecar(upstream, server) as first,
        a_sidecar(upstream, server) as second,
        McpClient(first.url) as one,
    ):
        await one.initialize()
        async with going_on(second, one) as other:
            assert (await other.tool("echo", text="x")).text == "x"
            yield upstream, first, second, one, other


def asked(sidecar: WatchedSidecar, operation: str) -> int:
    """How often its store was asked for this."""
    return sum(fact.operation == operation for fact in sidecar.of(StoreAsked))


class TestLease:
    """Of several sidecars in front of one server one heals, and the others wait for what comes of it."""

    @pytest.fixture
    async def begun(self, server: RedisServer) -> AsyncIterator[tuple[FakeUpstream, list[asyncio.Task[Answer]]]]:
        """Both have met the loss; the server has the ``initialize`` of one and does not answer it yet."""
        async with at_two(server) as (upstream, first, second, one, other):
            await upstream.restart()
            upstream.inject(Stall(StallAt.BEFORE_EXECUTION), times=None, rpc_method="initialize")
            calls = [asyncio.create_task(each.tool("charge", n=n)) for each in (one, other) for n in range(25)]
            await eventually(lambda: asked(first, "lease") and asked(second, "lease"))
            await eventually(lambda: len(upstream.ledger.initializes) == 2)
            yield upstream, calls
            assert all("result" in answer.response for answer in await asyncio.gather(*calls))
            assert len(upstream.ledger.executions("charge")) == 50
            await eventually(lambda: len(upstream.sessions) == 1)

    async def test_one_initialize(self, begun: tuple[FakeUpstream, list[asyncio.Task[Answer]]]) -> None:
        """For fifty calls at both."""
        upstream, calls = begun
        await upstream.clear()
        upstream.release()
        await asyncio.gather(*calls)
        assert len(upstream.ledger.initializes) == 2

    async def test_a_lease_that_is_evicted(
        self, server: RedisServer, begun: tuple[FakeUpstream, list[asyncio.Task[Answer]]]
    ) -> None:
        """Or that has run out, since its holder hangs: one initialize more, and the later commit is refused."""
        upstream, calls = begun
        lease = await server.keys("*:lease:*")
        await server.say("DEL", *lease)
        await eventually(lambda: len(upstream.ledger.initializes) == 3)
        await upstream.clear()
        upstream.release()
        await asyncio.gather(*calls)
        assert len(upstream.ledger.initializes) == 3

    async def test_what_is_learnt_meanwhile(self, server: RedisServer) -> None:
        """Whoever waits may learn by a write of its own that the session was healed: it does not heal it once more."""
        async with at_two(server) as (upstream, _first, second, one, other), McpClient(upstream.url) as third:
            (session,) = second.services.sessions.table
            await upstream.restart()
            upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method="initialize")
            held = asyncio.create_task(one.tool("charge", n=1))
            await eventually(lambda: len(upstream.ledger.initializes) == 2)
            waiting = asyncio.create_task(other.tool("charge", n=2))
            await eventually(lambda: asked(second, "lease"))
            await third.initialize()
            there = UpstreamSessionId(third.session_id or "")
            session.record = session.record.standing_at(Instance(session.instance, there, "word"))
            session.follow()
            assert "result" in (await waiting).response
            assert len(upstream.ledger.initializes) == 3
            upstream.release()
            assert "result" in (await held).response


async def test_listening_at_one_and_healed_at_the_other(server: RedisServer) -> None:
    """Whose listening stream broke finds the session healed already, and hears the server from then on."""
    async with at_two(server) as (upstream, _first, _second, one, other), await one.get_stream() as stream:
        await attached(upstream)
        await upstream.restart()
        assert (await other.tool("charge", amount=1)).text == "charged 1"
        await attached(upstream)
        upstream.notify("notifications/tools/list_changed")
        async with asyncio.timeout(HANG_S):
            while await next_method(stream) != "notifications/tools/list_changed":
                pass
        assert len(upstream.sessions) == 1


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

    @pytest.mark.parametrize("how", [How.SILENT, How.RESET])
    async def test_it_is_half_there(self, server: RedisServer, how: How) -> None:
        """Connections that go silent or break off: calls and heals go on, and what was learnt is in it afterwards."""
        async with (
            relay_to(server.port) as relay,
            FakeUpstream() as upstream,
            a_sidecar(
                upstream, server, store=f"redis://127.0.0.1:{relay.port}", sessions__store_timeout=0.25
            ) as sidecar,
            McpClient(sidecar.url) as client,
        ):
            await client.initialize()
            relay.how = how
            await upstream.restart()
            assert (await client.tool("charge", amount=1)).text == "charged 1"
            relay.how = How.PLAIN
            await eventually(lambda: sidecar.of(StoreBack))
            keeper = sidecar.services.sessions.rounds.keeper
            await keeper.touch()
            await eventually(lambda: not keeper.unsaved)
            async with a_sidecar(upstream, server) as other, going_on(other, client) as again:
                assert (await again.tool("charge", amount=2)).text == "charged 2"
                assert len(upstream.ledger.initializes) == 2

    async def test_it_is_slow(self, server: RedisServer) -> None:
        """Within its time-out that is no outage."""
        async with (
            relay_to(server.port) as relay,
            FakeUpstream() as upstream,
            a_sidecar(upstream, server, store=f"redis://127.0.0.1:{relay.port}") as sidecar,
            McpClient(sidecar.url) as client,
        ):
            relay.how = How.SLOW
            await client.initialize()
            await upstream.restart()
            assert (await client.tool("charge", amount=1)).text == "charged 1"
            assert sidecar.of(StoreLost) == []

    async def test_its_secrets_are_deleted(self, server: RedisServer) -> None:
        """Whoever knows them gives them back, and principals are the same to everybody afterwards."""
        async with FakeUpstream() as upstream, a_sidecar(upstream, server) as first:
            async with McpClient(first.url, headers=alice()) as former:
                await former.initialize()
                await server.say("DEL", *await server.keys("*:secret:*"))
                await first.services.sessions.rounds.keeper.touch()
            async with a_sidecar(upstream, server) as other:
                async with going_on(other, former, headers=alice(sub="eve")) as stranger:
                    await upstream.restart()
                    assert is_not_found(await stranger.tool("charge", amount=9))
                async with going_on(other, former, headers=alice()) as client:
                    assert (await client.tool("charge", amount=1)).text == "charged 1"

    @pytest.mark.parametrize(
        ("refusing", "taking", "losses"),
        [
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), 1),
            (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0"), 0),
        ],
        ids=["a replica", "too few replicas"],
    )
    async def test_it_answers_and_takes_nothing(
        self, server: RedisServer, refusing: tuple[str, ...], taking: tuple[str, ...], losses: int
    ) -> None:
        """It does not come and go: it is lost once, or not at all if it can be read; afterwards it has everything."""
        async with at_one(server) as (upstream, sidecar, client, _):
            await client.initialize()
            await server.say(*refusing)
            await client.call("logging/setLevel", {"level": "info"})
            keeper = sidecar.services.sessions.rounds.keeper
            for _ in range(20):
                await keeper.flush()
                await keeper.touch()
                await asyncio.wait({asyncio.ensure_future(keeper.store.back())}, timeout=0.05)
            assert keeper.unsaved == 1
            assert (len(sidecar.of(StoreLost)), sidecar.of(StoreBack)) == (losses, [])
            assert len(sidecar.of(StoreWritesRefused)) == 1 - losses
            await server.say(*taking)
            await eventually(lambda: keeper.store.is_up)
            await keeper.flush()
            async with a_sidecar(upstream, server) as other, going_on(other, client) as again:
                assert (await again.tool("charge", amount=1)).text == "charged 1"

    async def test_it_becomes_a_replica_and_is_promoted_again(self, server: RedisServer) -> None:
        """Reads and writes wait here meanwhile; a heal needs none of them."""
        async with at_one(server) as (upstream, sidecar, client, _):
            await client.initialize()
            await server.say("REPLICAOF", "127.0.0.1", "1")
            await upstream.restart()
            assert (await client.tool("charge", amount=1)).text == "charged 1"
            await server.say("REPLICAOF", "NO", "ONE")
            keeper = sidecar.services.sessions.rounds.keeper
            await eventually(lambda: keeper.store.is_up)
            await keeper.touch()
            await eventually(lambda: not keeper.unsaved)
            async with a_sidecar(upstream, server) as other, going_on(other, client) as again:
                assert (await again.tool("charge", amount=2)).text == "charged 2"
                assert len(upstream.ledger.initializes) == 2

    async def test_its_memory_is_full(self, server: RedisServer) -> None:
        """What is known is read, what cannot be written waits here, and calls and heals go on."""
        async with FakeUpstream() as upstream:
            async with a_sidecar(upstream, server) as first, McpClient(first.url) as former:
                await former.initialize()
            async with a_sidecar(upstream, server) as second, going_on(second, former) as client:
                await server.say("CONFIG", "SET", "maxmemory", "1")
                await upstream.restart()
                assert (await client.tool("charge", amount=1)).text == "charged 1"
                async with McpClient(second.url) as newcomer:
                    await newcomer.initialize()
                    keeper = second.services.sessions.rounds.keeper
                    assert keeper.store.is_up
                    await server.say("CONFIG", "SET", "maxmemory", "0")
                    await eventually(lambda: not keeper.unsaved)
                    await keeper.flush()
            async with a_sidecar(upstream, server) as third:
                for each in (former, newcomer):
                    async with going_on(third, each) as client:
                        assert (await client.tool("charge", amount=2)).text == "charged 2"
            assert len(upstream.ledger.initializes) == 3

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

    async def test_it_comes_late_and_is_sealed_with_another_key(self, server: RedisServer, tmp_path: Path) -> None:
        """That is told once, and the process goes on; with the key in its file it shares what it has."""
        key_file, missing = tmp_path / "keys", new_key()
        key_file.write_text(new_key(), encoding="ascii")
        async with FakeUpstream() as upstream:
            async with a_sidecar(upstream, server, sessions__key=missing):
                await server.say("SAVE")
            await server.kill()
            async with a_sidecar(upstream, server, sessions__key_file=key_file) as sidecar:
                async with McpClient(sidecar.url) as client:
                    await client.initialize()
                    await server.start()
                    await eventually(lambda: any("sealed" in lost.reason for lost in sidecar.of(StoreLost)))
                    with key_file.open("a", encoding="ascii") as keys:
                        keys.write(f"\n{missing}\n")
                    rounds = sidecar.services.sessions.rounds
                    assert rounds.read_keys_again()
                    await eventually(lambda: not rounds.keeper.unsaved)
                assert [("sealed" in lost.reason) for lost in sidecar.of(StoreLost)].count(True) == 1
                async with (
                    a_sidecar(upstream, server, sessions__key_file=key_file) as other,
                    going_on(other, client) as again,
                ):
                    assert (await again.tool("charge", amount=1)).text == "charged 1"

    async def test_it_is_flushed(self, server: RedisServer) -> None:
        """Whoever holds sessions writes them again with the next round, though they were not used for long."""
        async with (
            FakeUpstream() as upstream,
            a_sidecar(upstream, server) as sidecar,
            McpClient(sidecar.url) as former,
        ):
            await former.initialize()
            await server.say("FLUSHALL")
            keeper = sidecar.services.sessions.rounds.keeper
            await keeper.touch()
            await keeper.flush()
            async with a_sidecar(upstream, server) as other, going_on(other, former) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"

    async def test_one_that_writes_to_its_disk(self, tmp_path: Path) -> None:
        """Killed and started again it has everything, and nobody needs to write it anew."""
        async with FakeUpstream() as upstream:
            async with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
                async with a_sidecar(upstream, server) as first, McpClient(first.url) as former:
                    await former.initialize()
                await server.kill()
                await server.start()
                async with a_sidecar(upstream, server) as second, going_on(second, former) as client:
                    assert (await client.tool("charge", amount=1)).text == "charged 1"
            assert len(upstream.ledger.initializes) == 1

    async def test_a_wrong_password(self, server: RedisServer) -> None:
        """The process does not start."""
        await server.say("CONFIG", "SET", "requirepass", "right")
        with pytest.raises(CannotStart):
            async with running_sidecar("http://127.0.0.1:9/mcp", store=server.url.replace("//", "//:wrong@")):
                pass
