"""Redis as a store: what one promises, and what becomes of it where the server is away, full, read-only or empty."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from mcp_sidecar.sessions.stores.redis import RedisStore
from mcp_sidecar.sessions.stores.store import (
    ABSENT,
    Claim,
    Entry,
    Key,
    Lease,
    StoreAway,
    StoreUnusable,
    StoreUnwritable,
    Touch,
    Turn,
)
from tests.support.redis_server import NEEDS_REDIS, RedisServer, redis_server
from tests.support.waiting import HANG_S, eventually

pytestmark = NEEDS_REDIS

ALICE, BOB, OTHER = Key(b"session", b"alice"), Key(b"session", b"bob"), Key(b"other", b"alice")


SOON_S: Final = 0.25


@asynccontextmanager
async def refusing_scripts(said: str) -> AsyncIterator[str]:
    """The URL of what takes every command of one word, and refuses all others in these words."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while count := await reader.readline():
            words = int(count[1:])
            for _ in range(2 * words):
                await reader.readline()
            writer.write(b"+OK\r\n" if words == 1 else f"-{said}\r\n".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def entry(revision: int, data: bytes | None = b"da:ta\x00\r\n") -> Entry:
    return Entry(revision, b"w", data)


def ended(revision: int) -> Entry:
    return Entry(revision, b"", None)


def store_of(url: str, namespace: str = "test", timeout_s: float = HANG_S) -> RedisStore:
    return RedisStore(url, namespace=namespace, timeout_s=timeout_s, claims_ttl_s=1000, warn=lambda _: None)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as started:
        yield started


@asynccontextmanager
async def opened(url: str, namespace: str = "test", timeout_s: float = HANG_S) -> AsyncIterator[RedisStore]:
    store = store_of(url, namespace, timeout_s)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


class TestPromises:
    """The port's promises."""

    async def test_compare_and_set(self, server: RedisServer) -> None:
        """Who has read the revision that stands there wins; the other is told what does."""
        async with opened(server.url) as one, opened(server.url) as two:
            assert await one.put(ALICE, entry(1), expected=0, ttl_s=100) is None
            assert await two.put(ALICE, entry(2, b"other"), expected=0, ttl_s=100) == entry(1)
            assert await two.put(ALICE, entry(2, b"other"), expected=1, ttl_s=100) is None
            assert await one.put(ALICE, entry(2), expected=1, ttl_s=100) == entry(2, b"other")
            assert await one.put(BOB, entry(2), expected=1, ttl_s=100) == ABSENT
            assert await one.put(BOB, entry(1), expected=0, ttl_s=100) is None
            assert await two.get(b"session") == {b"alice": entry(2, b"other"), b"bob": entry(1)}
            assert await two.get(b"nothing") == {}

    async def test_of_many_writers_one_wins(self, server: RedisServer) -> None:
        """Whatever comes together."""
        async with opened(server.url) as store:
            tries = [store.put(ALICE, Entry(1, b"%d" % n, b"x"), expected=0, ttl_s=100) for n in range(200)]
            assert (await asyncio.gather(*tries)).count(None) == 1

    async def test_an_end(self, server: RedisServer) -> None:
        """It is written as every entry is, and what comes later knows of it."""
        async with opened(server.url) as store:
            await store.put(ALICE, entry(7), expected=0, ttl_s=100)
            assert await store.put(ALICE, ended(7), expected=6, ttl_s=100) == entry(7)
            assert await store.put(ALICE, ended(8), expected=7, ttl_s=100) is None
            assert await store.get(b"session") == {b"alice": ended(8)}
            assert await store.put(ALICE, entry(8), expected=7, ttl_s=100) == ended(8)
            assert await store.touch([Touch(ALICE, 1, 100)]) == [ALICE]

    async def test_what_expires_is_forgotten(self, server: RedisServer) -> None:
        """One principal's entry is, although another's of the same session is not."""
        async with opened(server.url) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=0.001)
            await store.put(BOB, entry(1), expected=0, ttl_s=1000)
            await self._until(store, {b"bob": entry(1)})
            assert await store.put(ALICE, entry(1), expected=0, ttl_s=0.001) is None

    @staticmethod
    async def _until(store: RedisStore, wanted: dict[bytes, Entry]) -> None:
        async with asyncio.timeout(HANG_S):
            while await store.get(b"session") != wanted:
                pass

    async def test_a_touch_puts_it_off(self, server: RedisServer) -> None:
        """Where it is there, and not older than what was written; the others are told."""
        async with opened(server.url) as store:
            await store.put(ALICE, entry(2), expected=0, ttl_s=5)
            touches = [Touch(ALICE, 2, 1000), Touch(ALICE, 3, 10), Touch(BOB, 1, 10), Touch(OTHER, 1, 10)]
            assert await store.touch(touches) == [ALICE, BOB, OTHER]
            assert await store.get(b"session") == {b"alice": entry(2)}
            left = await server.say("PTTL", f"mcps1:{{test:{ALICE.session.hex()}}}")
            assert int(left.removeprefix(":")) > 900_000

    async def test_claims(self, server: RedisServer) -> None:
        """An upstream id is whose record was written with it last; what is not written claims nothing."""
        here, there = Claim(b"here", b"1"), Claim(b"there", b"1")
        async with opened(server.url) as store:
            assert await store.holder(here) is None
            await store.put(ALICE, entry(1), expected=0, ttl_s=100, claim=here)
            assert (await store.holder(here), await store.holder(there)) == (ALICE, None)
            await store.put(OTHER, entry(1), expected=0, ttl_s=100, claim=here)
            assert await store.put(ALICE, entry(1), expected=0, ttl_s=100, claim=here) == entry(1)
            assert await store.holder(here) == OTHER

    async def test_leases(self, server: RedisServer) -> None:
        """One writer has it, for one session, principal and instance, until it gives it back; nobody gives back another's."""
        mine, others = Lease(ALICE, b"here", b"me"), Lease(ALICE, b"here", b"other")
        async with opened(server.url) as store:
            assert (await store.lease(mine, ttl_s=100)).is_own
            assert not (await store.lease(others, ttl_s=100)).is_own
            assert (await store.lease(mine, ttl_s=100)).is_own
            for free in (
                Lease(BOB, b"here", b"other"),
                Lease(OTHER, b"here", b"other"),
                Lease(ALICE, b"there", b"other"),
            ):
                assert (await store.lease(free, ttl_s=100)).is_own
            await store.give_back(others)
            assert not (await store.lease(others, ttl_s=100)).is_own
            await store.give_back(mine)
            assert (await store.lease(others, ttl_s=0.001)).is_own
            async with asyncio.timeout(HANG_S):
                while not (await store.lease(mine, ttl_s=100)).is_own:
                    pass

    async def test_whoever_asks_for_a_lease_hears_of_the_record(self, server: RedisServer) -> None:
        """Its revision, whosever turn it is: what is unchanged need not be read again."""
        mine, others = Lease(ALICE, b"here", b"me"), Lease(ALICE, b"here", b"other")
        async with opened(server.url) as store:
            assert await store.lease(mine, ttl_s=100) == Turn(is_own=True, revision=0)
            await store.put(ALICE, entry(1), expected=0, ttl_s=100)
            assert await store.lease(mine, ttl_s=100) == Turn(is_own=True, revision=1)
            await store.put(ALICE, ended(2), expected=1, ttl_s=100)
            assert await store.lease(others, ttl_s=100) == Turn(is_own=False, revision=2)

    async def test_secrets(self, server: RedisServer) -> None:
        """The first one stays, for all who share the namespace."""
        async with opened(server.url) as one, opened(server.url) as two, opened(server.url, "another") as three:
            assert await one.secret("index", b"first") == b"first"
            assert await two.secret("index", b"second") == b"first"
            assert await two.secret("index", b"second", replaces=b"not it") == b"first"
            assert await two.secret("index", b"second", replaces=b"first") == b"second"
            assert await three.secret("index", b"third") == b"third"

    async def test_nothing_stays_for_ever(self, server: RedisServer) -> None:
        """Every key but the secrets has an end."""
        async with opened(server.url) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=100, claim=Claim(b"here", b"1"))
            await store.put(OTHER, ended(1), expected=0, ttl_s=100)
            lease = Lease(ALICE, b"here", b"me")
            await store.lease(lease, ttl_s=100)
            assert await server.say("INFO", "keyspace") is not None
            claim = store._of_claim(Claim(b"here", b"1"))
            for key in (store._of(ALICE.session), store._of(OTHER.session), claim, store._of_lease(lease)):
                assert int((await server.say("PTTL", key)).removeprefix(":")) > 0


class TestTrouble:
    """Whatever it cannot do is said in our words."""

    async def test_nobody_is_there(self, server: RedisServer) -> None:
        """It opens all the same, and comes back by itself."""
        await server.kill()
        async with opened(server.url) as store:
            with pytest.raises(StoreAway):
                await store.get(b"session")
            await server.start()
            assert await store.get(b"session") == {}

    async def test_it_hangs(self, server: RedisServer) -> None:
        """The time-out ends it; a write that is done later all the same is known by its writer."""
        async with opened(server.url, timeout_s=SOON_S) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=100)
            server.signal(signal.SIGSTOP)
            with pytest.raises(StoreAway):
                await store.put(ALICE, entry(2), expected=1, ttl_s=100)
            server.signal(signal.SIGCONT)
            await eventually(lambda: True)
            assert (await store.get(b"session"))[b"alice"] in (entry(1), entry(2))

    @pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru", "volatile-ttl"])
    async def test_its_memory_is_full(self, server: RedisServer, policy: str) -> None:
        """Reading goes on where it does not evict; where it does, that was warned of."""
        warned: list[str] = []
        await server.say("CONFIG", "SET", "maxmemory-policy", policy)
        store = RedisStore(server.url, namespace="t", timeout_s=HANG_S, claims_ttl_s=9, warn=warned.append)
        await store.open()
        assert bool(warned) is (policy != "noeviction")
        await store.put(ALICE, entry(1), expected=0, ttl_s=100)
        await server.say("CONFIG", "SET", "maxmemory", "1")
        if policy == "noeviction":
            with pytest.raises(StoreUnwritable):
                await store.put(ALICE, entry(2), expected=1, ttl_s=100)
            assert await store.get(b"session") == {b"alice": entry(1)}
        await server.say("CONFIG", "SET", "maxmemory", "0")
        assert (await store.put(ALICE, entry(1), expected=0, ttl_s=100)) in (None, entry(1))
        await store.close()

    async def test_it_has_become_a_replica(self, server: RedisServer) -> None:
        """What it cannot write is as good as away; promoted again it serves."""
        async with opened(server.url) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=100)
            await server.say("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreAway):
                await store.put(ALICE, entry(2), expected=1, ttl_s=100)
            await server.say("REPLICAOF", "NO", "ONE")
            assert await store.put(ALICE, entry(2), expected=1, ttl_s=100) is None

    async def test_it_refuses_to_write(self, server: RedisServer) -> None:
        """With too few replicas, or a disk that is full, it is still read; with them again it is written."""
        async with opened(server.url) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=100)
            await server.say("CONFIG", "SET", "min-replicas-to-write", "1")
            with pytest.raises(StoreUnwritable):
                await store.put(ALICE, entry(2), expected=1, ttl_s=100)
            with pytest.raises(StoreUnwritable):
                await store.touch([Touch(ALICE, 1, 200)])
            with pytest.raises(StoreUnwritable):
                await store.put(ALICE, ended(2), expected=1, ttl_s=100)
            assert await store.get(b"session") == {b"alice": entry(1)}
            await server.say("CONFIG", "SET", "min-replicas-to-write", "0")
            assert await store.put(ALICE, entry(2), expected=1, ttl_s=100) is None

    async def test_an_old_one_has_become_a_replica(self) -> None:
        """Before version 7 scripts told so within an error of their own."""
        said = "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -READONLY You can't write."
        async with refusing_scripts(said) as url:
            store = store_of(url)
            with pytest.raises(StoreAway, match="read-only") as caught:
                await store.put(ALICE, ended(1), expected=0, ttl_s=1)
            assert not isinstance(caught.value, StoreUnwritable)
            await store.close()

    @pytest.mark.parametrize(
        "said",
        ["CROSSSLOT Keys in request don't hash to the same slot", "MOVED 13657 127.0.0.1:6004"],
        ids=["crossslot", "moved"],
    )
    async def test_a_cluster(self, said: str) -> None:
        """A record and the claim on its upstream id are in different slots: said at the start, in one line."""
        async with refusing_scripts(said) as url:
            with pytest.raises(StoreUnusable, match="it is a cluster"):
                async with opened(url):
                    pass

    async def test_a_user_who_may_run_no_scripts(self, server: RedisServer) -> None:
        """The process does not start, as with a wrong password."""
        await server.say("ACL", "SETUSER", "app", "on", ">pw", "~mcps1:*", "+@all", "-@scripting")
        with pytest.raises(StoreUnusable, match="NoPermissionError"):
            async with opened(server.url.replace("//", "//app:pw@")):
                pass

    async def test_it_forgets_its_scripts(self, server: RedisServer) -> None:
        """They are sent again."""
        async with opened(server.url) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=100)
            await server.say("SCRIPT", "FLUSH")
            assert await store.put(ALICE, entry(2), expected=1, ttl_s=100) is None
            await server.say("SCRIPT", "FLUSH")
            assert await store.touch([Touch(ALICE, 2, 100)]) == []

    @pytest.mark.parametrize("userinfo", [":wrong@", "nobody:wrong@", ""])
    async def test_a_wrong_password(self, server: RedisServer, userinfo: str) -> None:
        """Said once at the start, without quoting it."""
        await server.say("CONFIG", "SET", "requirepass", "right")
        with pytest.raises(StoreUnusable) as caught:
            async with opened(server.url.replace("//", f"//{userinfo}")):
                pass
        assert "wrong" not in str(caught.value)
        async with opened(server.url.replace("//", "//:right@")) as store:
            assert await store.get(b"session") == {}
            assert "right" not in str(store)

    async def test_a_user_who_may_little(self, server: RedisServer) -> None:
        """Who may not CONFIG is served, with the commands that docs/sessions.md names on keys of ours."""
        page = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text(encoding="utf-8")
        told = page[page.index("A user needs") : page.index("on `mcps1:*`")]
        commands = [f"+{command.lower()}" for command in re.findall(r"`([A-Z]+)`", told)]
        await server.say("ACL", "SETUSER", "app", "on", ">pw", "~mcps1:*", "-@all", *commands)
        lease = Lease(ALICE, b"here", b"me")
        async with opened(server.url.replace("//", "//app:pw@")) as store:
            await store.secret("index", b"first")
            assert await store.put(ALICE, entry(1), expected=0, ttl_s=100, claim=Claim(b"here", b"1")) is None
            assert await store.holder(Claim(b"here", b"1")) == ALICE
            assert await store.touch([Touch(ALICE, 1, 100)]) == []
            assert (await store.lease(lease, ttl_s=100)).is_own
            await store.give_back(lease)
            await store.put(ALICE, ended(2), expected=1, ttl_s=100)
            assert await store.get(b"session") == {b"alice": ended(2)}

    @pytest.mark.parametrize("url", ["redis+sentinel://", "redis+sentinel://h", "redis://h:port", "redis://h/?no=such"])
    def test_a_url_that_cannot_be(self, url: str) -> None:
        """One line says so."""
        with pytest.raises(StoreUnusable):
            store_of(url)


async def test_a_unix_socket(tmp_path: Path) -> None:
    """`redis+unix://PATH`."""
    async with (
        redis_server(tmp_path, "--unixsocket", str(tmp_path / "s")),
        opened(f"redis+unix://{tmp_path}/s?db=1") as store,
    ):
        assert await store.put(ALICE, entry(1), expected=0, ttl_s=100) is None
