"""The sidecar restarts, alone or with its server, and its clients go on: what only a store knows, and what nobody may know.

Each sidecar here is a new one with nothing in memory; what it has of the one before is in the store. Whatever takes ``store``
holds with Redis, too (``tests/redis/test_durable.py``).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_sidecar.app import CannotStart
from mcp_sidecar.facts import (
    HealEnded,
    SessionAdopted,
    SessionEnd,
    SessionIdRejected,
    SessionLost,
    SessionNotSealed,
    SidecarFault,
    StoreBack,
    StoreLost,
)
from mcp_sidecar.sessions.stores.keys import new_key
from tests.support import behaviour
from tests.support.behaviour import Answers
from tests.support.client import Answer, McpClient, new_http
from tests.support.credentials import alice, bearer
from tests.support.dialects import Mint
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Stall, StallAt
from tests.support.listening import attached, ends_cleanly, next_method
from tests.support.own_answers import is_error, is_not_found
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.stores import Settings, shared_store
from tests.support.waiting import eventually

pytestmark = pytest.mark.long

ANSWERS = pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)
WHAT = pytest.mark.parametrize("with_server", [False, True], ids=["the sidecar", "both"])


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Settings]:
    async with shared_store("sqlite", tmp_path) as settings:
        yield settings


class Host:
    """Where sidecars come and go in front of one server. ``store`` is theirs, or the folder of a file for it."""

    def __init__(self, store: Settings | Path, upstream: FakeUpstream) -> None:
        self._store = {"store": f"sqlite:{store}/state/sessions.db"} if isinstance(store, Path) else store
        self.upstream = upstream
        self.sidecars: list[WatchedSidecar] = []

    @asynccontextmanager
    async def sidecar(self, **settings: Any) -> AsyncIterator[WatchedSidecar]:
        """A new process, as far as its memory goes."""
        async with running_sidecar(self.upstream.url, **{**self._store, **settings}) as sidecar:
            self.sidecars.append(sidecar)
            yield sidecar
            assert sidecar.of(SidecarFault) == []

    def client(self, sidecar: WatchedSidecar, former: McpClient | None = None, **changes: Any) -> McpClient:
        """A client; one that goes on with the session of ``former``, or with its headers changed."""
        kept = {} if former is None else {"session_id": former.session_id, "headers": former.headers}
        return McpClient(sidecar.url, **{**kept, **changes})


@asynccontextmanager
async def host(store: Settings | Path, **of_upstream: Any) -> AsyncIterator[Host]:
    async with FakeUpstream(**of_upstream) as upstream:
        yield Host(store, upstream)


@ANSWERS
@WHAT
async def test_a_restart(store: Settings, answers: Answers, with_server: bool) -> None:
    """The next call succeeds under the same id and runs once; the server is initialized again only if it was restarted."""
    async with host(store, answers=answers) as here:
        async with here.sidecar() as first, here.client(first) as former:
            await former.initialize()
        if with_server:
            await here.upstream.restart()
        async with here.sidecar() as second, here.client(second, former) as client:
            answer = await client.tool("charge", amount=1)
            assert answer.text == "charged 1"
            assert set(client.seen_session_ids) <= {former.session_id}
            assert len(here.upstream.ledger.executions("charge")) == 1
            assert len(here.upstream.ledger.initializes) == 1 + with_server
            assert len(second.of(SessionLost)) == len(second.of(HealEnded)) == with_server
            assert (await client.tool("charge", amount=2)).text == "charged 2"


@WHAT
async def test_an_id_that_holds_a_whole_session(store: Settings, with_server: bool) -> None:
    """Servers that keep nothing put all of it into the id, which may be as long as a header."""
    async with host(store, mint=Mint.TOKEN) as here:
        async with here.sidecar() as first, here.client(first) as former:
            await former.initialize()
        if with_server:
            await here.upstream.restart()
        async with here.sidecar() as second, here.client(second, former) as client:
            assert (await client.tool("charge", amount=1)).text == "charged 1"
            assert len(here.upstream.ledger.initializes) == 1 + with_server


async def test_again_and_again(store: Settings) -> None:
    """What was loaded and healed is written as well: it outlives the next restart, too."""
    async with host(store) as here:
        async with here.sidecar() as first, here.client(first) as former:
            await former.initialize()
        for number in range(1, 4):
            await here.upstream.restart()
            async with here.sidecar() as again, here.client(again, former) as client:
                assert (await client.tool("charge", amount=number)).text == f"charged {number}"
        assert len(here.upstream.ledger.initializes) == 4


@WHAT
async def test_what_the_client_had_set(store: Settings, with_server: bool) -> None:
    """Log level and subscriptions are known to the next process, which says them to a new server."""
    async with host(store) as here:
        async with here.sidecar() as first, here.client(first) as former:
            await former.initialize()
            await former.call("logging/setLevel", {"level": "warning"})
            await former.call("resources/subscribe", {"uri": "file:///a"})
        if with_server:
            await here.upstream.restart()
        async with here.sidecar() as second, here.client(second, former) as client:
            await client.tool("echo", text="x")
            (session,) = here.upstream.sessions.values()
            assert (session.log_level, set(session.subscriptions)) == ("warning", {"file:///a"})


@WHAT
async def test_a_listening_stream_comes_back(store: Settings, with_server: bool) -> None:
    """The client opens it again, as clients do, and hears what the server says from then on."""
    async with host(store) as here:
        async with here.sidecar() as first, here.client(first) as former:
            await former.initialize()
            async with await former.get_stream():
                await attached(here.upstream)
        if with_server:
            await here.upstream.restart()
        async with (
            here.sidecar() as second,
            here.client(second, former) as client,
            await client.get_stream() as stream,
        ):
            await attached(here.upstream)
            here.upstream.notify("notifications/tools/list_changed")
            assert await next_method(stream) == "notifications/tools/list_changed"


async def test_what_was_ended_stays_so(store: Settings) -> None:
    """A DELETE is remembered by every later process, for its principal."""
    async with host(store) as here:
        async with here.sidecar() as first, here.client(first) as former:
            await former.initialize()
            await former.delete()
        async with here.sidecar() as second, here.client(second, former) as client:
            assert is_not_found(await client.tool("charge"))
            assert here.upstream.ledger.executions("charge") == []


async def test_what_ends_elsewhere_while_it_is_healed(store: Settings) -> None:
    """The client hears the 404, nothing runs, and the upstream session that was just opened is not left behind."""
    async with host(store) as here, here.sidecar() as first, here.sidecar() as second, here.client(first) as one:
        await one.initialize()
        async with here.client(second, one) as other:
            assert (await other.tool("echo", text="x")).text == "x"
            await here.upstream.restart()
            here.upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method="initialize")
            call = asyncio.create_task(one.tool("charge", amount=1))
            await eventually(lambda: len(here.upstream.ledger.initializes) == 2)
            await other.delete()
        await here.upstream.clear()
        here.upstream.release()
        assert is_not_found(await call)
        await eventually(lambda: not here.upstream.sessions)
        assert here.upstream.ledger.executions("charge") == []


class TestWhoseItIs:
    """The principal is the same to every process, and nobody else's request gets anything."""

    @pytest.mark.parametrize("stranger", [{}, bearer("eve"), alice(sub="eve")], ids=["nobody", "token", "jwt"])
    async def test_another_principal(self, store: Settings, stranger: dict[str, str]) -> None:
        """Its request goes on unmapped, heals nothing, and hears the 404 where the server has lost the session."""
        async with host(store) as here:
            async with here.sidecar() as first, here.client(first, headers=alice()) as former:
                await former.initialize()
            await here.upstream.restart()
            async with here.sidecar() as second, here.client(second, former, headers=stranger) as client:
                assert is_not_found(await client.tool("charge"))
                assert len(here.upstream.ledger.initializes) == 1
                assert here.upstream.ledger.executions("charge") == []

    async def test_a_refreshed_jwt(self, store: Settings) -> None:
        """Issuer, subject and client are the same: it is the same principal."""
        async with host(store) as here:
            async with here.sidecar() as first, here.client(first, headers=alice()) as former:
                await former.initialize()
            await here.upstream.restart()
            async with here.sidecar() as second, here.client(second, former, headers=alice()) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"

    async def test_a_credential_that_was_accepted_before(self, store: Settings) -> None:
        """A refreshed opaque token that the server has taken in the session may heal it after the restart, too."""
        async with host(store) as here:
            async with here.sidecar() as first, here.client(first, headers=bearer("one")) as former:
                await former.initialize()
                async with here.client(first, former, headers=bearer("two")) as refreshed:
                    assert (await refreshed.tool("echo", text="x")).text == "x"
            await here.upstream.restart()
            async with here.sidecar() as second, here.client(second, former, headers=bearer("two")) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"

    async def test_a_credential_that_was_refreshed_meanwhile(self, store: Settings) -> None:
        """The server says whether it belongs to the session, as long as it knows the session."""
        async with host(store) as here:
            async with here.sidecar() as first, here.client(first, headers=bearer("one")) as former:
                await former.initialize()
            async with here.sidecar() as second, here.client(second, former, headers=bearer("two")) as client:
                assert (await client.tool("echo", text="x")).text == "x"
                await here.upstream.restart()
                assert (await client.tool("charge", amount=1)).text == "charged 1"


class TestOtherInstances:
    """An upstream id is used only where it was given out."""

    async def test_another_server(self, store: Settings) -> None:
        """A session goes on at once at a server that has never seen it: that is no loss, and nothing of another's is used."""
        async with host(store) as here, FakeUpstream() as there:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            other = Host(store, there)
            async with other.sidecar() as second, other.client(second, former) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"
                assert len(second.of(SessionAdopted)) == 1
                assert not second.of(SessionLost) and not second.of(HealEnded)
                assert former.session_id not in [arrival.session_id for arrival in there.ledger.arrivals]
                assert set(client.seen_session_ids) <= {former.session_id}
            async with here.sidecar() as third, here.client(third, former) as client:
                assert (await client.tool("charge", amount=2)).text == "charged 2"
            assert len(here.upstream.ledger.initializes) == 1

    async def test_the_first_message_elsewhere(self, store: Settings) -> None:
        """Behind `initialize` a balancer may send all else to another replica: its server is initialized once, told
        `initialized` once, and the client hears of no new state."""
        async with host(store) as here, FakeUpstream() as there:
            other = Host(store, there)
            async with here.sidecar() as first, other.sidecar(healing__announce="result") as second:
                async with here.client(first) as former:
                    await former.initialize(initialized=False)
                async with other.client(second, former) as client:
                    assert (await client.notify("notifications/initialized")).status == 202
                    assert (await client.tool("echo", text="x")).text == "x"
                    answer = await client.tool("echo", text="y")
                    assert len(answer.result["content"]) == 1
            assert len(there.ledger.initializes) == 1
            methods = [method for arrival in there.ledger.arrivals for method in arrival.rpc_methods]
            assert methods.count("notifications/initialized") == 1

    async def test_another_instance_on_the_same_url(self, store: Settings) -> None:
        """`sessions.instance` tells them apart where the URL does not."""
        async with host(store) as here:
            async with here.sidecar(sessions__instance="blue") as first, here.client(first) as former:
                await former.initialize()
            async with here.sidecar(sessions__instance="green") as second, here.client(second, former) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"
            assert len(here.upstream.ledger.initializes) == 2

    async def test_namespaces(self, store: Settings) -> None:
        """What is in one is unknown in the other."""
        async with host(store) as here:
            async with here.sidecar(sessions__namespace="a") as first, here.client(first) as former:
                await former.initialize()
            await here.upstream.restart()
            async with here.sidecar(sessions__namespace="b") as second, here.client(second, former) as client:
                assert is_not_found(await client.tool("charge"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody else writes all the while: the file can be read only."""
    with closing(sqlite3.connect(folder / "state" / "sessions.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")


class TestCountingServer:
    """A server that counts its sessions from 1 after every restart: ids are minted again, and sessions never mix."""

    @pytest.fixture(autouse=True)
    def counting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(behaviour.MINTS, Mint.COUNTER, lambda: f"session-{next(self.counter)}")

    counter = itertools.count(1)

    def count_anew(self) -> None:
        type(self).counter = itertools.count(1)

    @ANSWERS
    async def test_a_newcomer_with_a_known_id(self, store: Settings, answers: Answers) -> None:
        """It gets another id, and each is in an upstream session of its own."""
        self.count_anew()
        async with host(store, mint=Mint.COUNTER, answers=answers) as here:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            await here.upstream.restart()
            self.count_anew()
            async with (
                here.sidecar() as second,
                here.client(second) as newcomer,
                here.client(second, former) as client,
            ):
                await newcomer.initialize()
                assert newcomer.session_id != former.session_id
                await newcomer.call("logging/setLevel", {"level": "error"})
                assert (await client.tool("charge", amount=1)).text == "charged 1"
                assert (await newcomer.tool("charge", amount=2)).text == "charged 2"
                ran = [each.session_id for each in here.upstream.ledger.executions("charge")]
                assert ran == ["session-2", "session-1"]

    async def test_a_newcomer_whom_nobody_can_ask_about(self, tmp_path: Path) -> None:
        """While the store cannot say that an id is free, no newcomer goes under it: its former client may come at any time."""
        self.count_anew()
        async with host(tmp_path, mint=Mint.COUNTER) as here:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            async with here.sidecar() as second, here.client(second) as newcomer:
                with locked(tmp_path):
                    await here.upstream.restart()
                    self.count_anew()
                    await newcomer.initialize()
                    assert newcomer.session_id != former.session_id
                    assert (await newcomer.tool("charge", amount=2)).text == "charged 2"
                async with here.client(second, former) as client:
                    assert (await client.tool("charge", amount=1)).text == "charged 1"
                ran = [each.session_id for each in here.upstream.ledger.executions("charge")]
                assert ran == ["session-1", "session-2"]
                assert set(newcomer.seen_session_ids) == {newcomer.session_id}

    async def test_anothers_newcomer(self, store: Settings) -> None:
        """Another principal's session has the id upstream now: the former is not sent there, although its record says so."""
        self.count_anew()
        async with host(store, mint=Mint.COUNTER) as here:
            async with here.sidecar() as first, here.client(first, headers=bearer("one")) as former:
                await former.initialize()
            await here.upstream.restart()
            self.count_anew()
            async with here.sidecar() as second, here.client(second, headers=bearer("two")) as newcomer:
                await newcomer.initialize()
            async with here.sidecar() as third, here.client(third, former) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"
            assert [each.session_id for each in here.upstream.ledger.executions("charge")] == ["session-2"]


@asynccontextmanager
async def at_two(store: Settings) -> AsyncIterator[tuple[Host, McpClient, McpClient]]:
    """Two sidecars in front of one server, and a session that both have in memory, each for a client of its own."""
    async with host(store) as here, here.sidecar() as one, here.sidecar() as other, here.client(one) as former:
        await former.initialize()
        async with here.client(other, former) as client:
            assert (await client.tool("echo", text="x")).text == "x"
            yield here, former, client


class TestTwoAtOnce:
    """Two sidecars in front of one server share the file."""

    async def test_one_heals_and_the_other_follows(self, store: Settings) -> None:
        """Who meets the loss later looks first whether somebody was quicker: one initialize for both."""
        async with at_two(store) as (here, former, client):
            await asyncio.sleep(2)
            await here.upstream.restart()
            assert (await former.tool("charge", amount=1)).text == "charged 1"
            assert (await client.tool("charge", amount=2)).text == "charged 2"
            assert len(here.upstream.ledger.initializes) == 2
            assert len(here.upstream.sessions) == 1

    async def test_both_heal(self, store: Settings) -> None:
        """Two initializes at most; both go on in one upstream session, and the surplus one is ended."""
        async with at_two(store) as (here, former, client):
            await here.upstream.restart()
            answers = await asyncio.gather(*(each.tool("charge", n=n) for each in (former, client) for n in range(5)))
            assert all("result" in answer.response for answer in answers)
            assert len(here.upstream.ledger.executions("charge")) == 10
            assert len(here.upstream.ledger.initializes) <= 3
            await eventually(lambda: len(here.upstream.sessions) == 1)

    async def test_what_the_other_has_written_is_read_in_the_middle_of_a_heal(self, tmp_path: Path) -> None:
        """The heal stands back: the session is whole already, and its own upstream session is ended."""
        async with at_two({"store": f"sqlite:{tmp_path}/s/sessions.db"}) as (here, one, other):
            await here.upstream.restart()
            here.upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method="initialize")
            call = asyncio.create_task(one.tool("charge", amount=1))
            await eventually(lambda: len(here.upstream.ledger.initializes) == 2)
            assert (await other.tool("charge", amount=2)).text == "charged 2"
            (first, _) = here.sidecars
            keeper, (session,) = first.services.sessions.rounds.keeper, first.services.sessions.table
            keeper.note(session)
            await keeper.flush()
            here.upstream.release()
            assert (await call).text == "charged 1"
            assert (await one.tool("charge", amount=3)).text == "charged 3"
            await eventually(lambda: len(here.upstream.sessions) == 1)
            assert len(here.upstream.ledger.executions("charge")) == 3

    async def test_an_end_at_one(self, store: Settings) -> None:
        """A DELETE at one ends it at the other with the next loss, and nothing is healed."""
        async with at_two(store) as (here, former, client):
            await asyncio.sleep(2)
            await former.delete()
            assert is_not_found(await client.tool("charge"))
            assert len(here.upstream.ledger.initializes) == 1


class TestStoreAway:
    """While the store cannot be asked, what is in memory goes on, and nobody is told that a session is lost."""

    @staticmethod
    def put_away(folder: Path) -> None:
        """A file of somebody else's lies in its place; it is not touched."""
        for suffix in ("", "-wal", "-shm"):
            path = folder / "state" / f"sessions.db{suffix}"
            if path.exists():
                path.rename(folder / f"kept{suffix}")
        (folder / "state" / "sessions.db").write_text("not a database")

    @staticmethod
    def put_back(folder: Path) -> None:
        for suffix in ("-wal", "-shm", ""):
            if (folder / f"kept{suffix}").exists():
                (folder / f"kept{suffix}").replace(folder / "state" / f"sessions.db{suffix}")

    async def test_what_is_in_memory_goes_on(self, tmp_path: Path) -> None:
        """Calls, a new session and a heal work, and all of it is written once the store is back."""
        async with host(tmp_path) as here:
            async with here.sidecar() as first, here.client(first) as former, here.client(first) as newcomer:
                await former.initialize()
                self.put_away(tmp_path)
                await newcomer.initialize()
                await here.upstream.restart()
                for client in (former, newcomer):
                    assert (await client.tool("charge", amount=1)).text == "charged 1"
                assert len(first.of(StoreLost)) == 1
                self.put_back(tmp_path)
                await eventually(lambda: first.of(StoreBack))
            await here.upstream.restart()
            async with here.sidecar() as second:
                for each in (former, newcomer):
                    async with here.client(second, each) as client:
                        assert (await client.tool("charge", amount=2)).text == "charged 2"

    async def test_what_only_the_store_knows_waits(self, tmp_path: Path) -> None:
        """A call is held, nothing is sent upstream under an id that may be another's, and it succeeds when the store is back."""
        async with host(tmp_path) as here:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            async with here.sidecar() as second, here.client(second, former) as client:
                self.put_away(tmp_path)
                calls = [asyncio.create_task(client.tool("charge", amount=1)) for _ in range(3)]
                await eventually(lambda: len(second.services.holds) == 3)
                assert here.upstream.ledger.executions("charge") == []
                self.put_back(tmp_path)
                assert [answer.text for answer in await asyncio.gather(*calls)] == ["charged 1"] * 3

    async def test_for_as_long_as_a_request_may_wait(self, tmp_path: Path) -> None:
        """Then a request gets a definite error, a notification 202, and nobody a 404."""
        async with host(tmp_path) as here:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            async with here.sidecar(healing__hold_timeout=1) as second, here.client(second, former) as client:
                self.put_away(tmp_path)
                answer = await client.call("tools/call", {"name": "charge"}, id=7)
                assert is_error(answer, 7, "session_store_unavailable")
                assert (await client.notify("notifications/roots/list_changed")).status == 202
                assert here.upstream.ledger.executions("charge") == []

    async def test_a_held_call_is_cancelled(self, tmp_path: Path) -> None:
        """As it would be while it waits for the upstream."""
        async with host(tmp_path) as here:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            async with here.sidecar() as second, here.client(second, former) as client:
                self.put_away(tmp_path)
                call = asyncio.create_task(client.call("tools/call", {"name": "charge"}, id=7))
                await eventually(lambda: len(second.services.holds) == 1)
                assert (await client.notify("notifications/cancelled", {"requestId": 7})).status == 202
                assert is_error(await call, 7, "cancelled")

    async def test_a_listening_stream(self, tmp_path: Path) -> None:
        """It is open while the store is away, and ends when it is back: the client comes again. However many wait as one."""
        async with host(tmp_path) as here:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            async with here.sidecar() as second, here.client(second, former) as client:
                self.put_away(tmp_path)
                async with await client.get_stream() as stream, await client.get_stream() as another:
                    assert (stream.status, another.status) == (200, 200)
                    assert len(second.services.sessions.table.store_back()._callbacks or ()) == 1
                    self.put_back(tmp_path)
                    for each in (stream, another):
                        await ends_cleanly(each)
                async with await client.get_stream():
                    await attached(here.upstream)

    async def test_a_delete(self, tmp_path: Path) -> None:
        """It does not wait, and what the server has ended is remembered once the store is back."""
        async with host(tmp_path) as here:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            async with here.sidecar() as second, here.client(second, former) as client:
                self.put_away(tmp_path)
                assert (await client.delete()).status == 200
                self.put_back(tmp_path)
                await eventually(lambda: second.of(StoreBack))
            async with here.sidecar() as third, here.client(third, former) as client:
                assert is_not_found(await client.tool("charge"))

    async def test_a_start_without_it(self, tmp_path: Path) -> None:
        """The process serves at once, and knows its sessions as soon as the store can be asked."""
        async with host(tmp_path) as here:
            async with here.sidecar() as first, here.client(first, headers=alice()) as former:
                await former.initialize()
            locked = sqlite3.connect(tmp_path / "state" / "sessions.db", check_same_thread=False)
            locked.execute("PRAGMA locking_mode = EXCLUSIVE")
            locked.execute("BEGIN EXCLUSIVE")
            async with here.sidecar() as second, here.client(second, headers=alice()) as newcomer:
                await newcomer.initialize()
                assert (await newcomer.tool("charge", amount=1)).text == "charged 1"
                async with here.client(second, former) as client:
                    call = asyncio.create_task(client.tool("charge", amount=2))
                    await eventually(lambda: len(second.services.holds) == 1)
                    locked.rollback()
                    locked.close()
                    assert (await call).text == "charged 2"
                assert (await newcomer.tool("charge", amount=3)).text == "charged 3"
            await here.upstream.restart()
            async with here.sidecar() as third, here.client(third, newcomer) as client:
                assert (await client.tool("charge", amount=4)).text == "charged 4"


class TestSealed:
    """`sealed:`: the client's session id holds what a heal needs, and nothing is kept anywhere."""

    KEY, OTHER_KEY = new_key(), new_key()

    @asynccontextmanager
    async def sidecar(self, upstream: FakeUpstream, key: str = KEY, **settings: Any) -> AsyncIterator[WatchedSidecar]:
        given = {"store": "sealed:", "sessions__key": key, **settings}
        async with running_sidecar(upstream.url, **given) as sidecar:
            yield sidecar
            assert sidecar.of(SidecarFault) == []

    @staticmethod
    def client(sidecar: WatchedSidecar, former: McpClient | None = None, **changes: Any) -> McpClient:
        kept = {} if former is None else {"session_id": former.session_id, "headers": former.headers}
        return McpClient(sidecar.url, **{**kept, **changes})

    @ANSWERS
    @WHAT
    @pytest.mark.parametrize("headers", [{}, bearer("one"), alice()], ids=["nobody", "token", "jwt"])
    async def test_a_restart(self, answers: Answers, with_server: bool, headers: dict[str, str]) -> None:
        """The session goes on at the server that knows it, else it is healed; the id is a token and stays."""
        async with FakeUpstream(answers=answers) as upstream:
            async with self.sidecar(upstream) as first, self.client(first, headers=headers) as former:
                await former.initialize()
                assert former.session_id is not None and former.session_id.startswith("mcps1.")
                assert (await former.tool("charge", amount=1)).text == "charged 1"
            if with_server:
                await upstream.restart()
            async with self.sidecar(upstream) as second, self.client(second, former) as client:
                assert (await client.tool("charge", amount=2)).text == "charged 2"
                assert set(client.seen_session_ids) <= {former.session_id}
                assert len(second.of(HealEnded)) == with_server
            assert len(upstream.ledger.initializes) == 1 + with_server
            assert all(not (each.session_id or "").startswith("mcps1.") for each in upstream.ledger.arrivals)

    async def test_another_replica(self) -> None:
        """It goes on there at once, and neither server sees an id of the other's."""
        async with FakeUpstream() as one, FakeUpstream() as other:
            async with self.sidecar(one) as first, self.sidecar(other) as second:
                async with self.client(first, headers=bearer("one")) as former:
                    await former.initialize()
                async with self.client(second, former) as client:
                    assert (await client.tool("charge", amount=1)).text == "charged 1"
                assert [fact.source for fact in second.of(SessionAdopted)] == ["sealed"]
            assert {each.session_id for each in other.ledger.arrivals} & {
                each.session_id for each in one.ledger.arrivals
            } <= {None}

    async def test_an_end(self) -> None:
        """A DELETE is remembered by the process that has seen it."""
        async with FakeUpstream() as upstream, self.sidecar(upstream) as sidecar, self.client(sidecar) as client:
            await client.initialize()
            assert (await client.delete()).status == 200
            assert is_not_found(await client.tool("charge"))
            assert upstream.ledger.executions("charge") == []

    @pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
    @pytest.mark.parametrize("reason", ["unreadable", "expired", "principal", "unknown_key"])
    async def test_a_token_that_counts_for_nothing(self, reason: str, method: str) -> None:
        """The 404, counted by its reason; it is never forwarded, for it is not the server's id."""
        lifetime = 100
        async with FakeUpstream() as upstream:
            async with self.sidecar(upstream, sessions__max_lifetime=lifetime) as first, self.client(first) as former:
                former.headers = alice()
                await former.initialize(initialized=False)
            arrived = len(upstream.ledger.arrivals)
            changes = {"headers": alice(sub="eve")} if reason == "principal" else {}
            key = self.OTHER_KEY if reason == "unknown_key" else self.KEY
            async with self.sidecar(upstream, key) as second, self.client(second, former, **changes) as client:
                if reason == "unreadable":
                    client.session_id = f"{former.session_id}A"
                if reason == "expired":
                    second.services.sessions.rounds.keeper.tokens._lifetime_s = 0  # type: ignore[union-attr]
                    async with self.client(second, headers=former.headers) as short:
                        await short.initialize(initialized=False)
                        client.session_id = short.session_id
                        second.services.sessions.table.sweep_old()
                        second.services.sessions.table._remove(
                            next(iter(second.services.sessions.table)), SessionEnd.EVICTED
                        )
                        arrived = len(upstream.ledger.arrivals)
                answer = await (client.tool("charge") if method == "POST" else self._bodiless(client, method))
                assert is_not_found(answer)
                assert [fact.reason for fact in second.of(SessionIdRejected)] == [reason]
                assert len(upstream.ledger.arrivals) == arrived

    @staticmethod
    async def _bodiless(client: McpClient, method: str) -> Answer:
        return await (client.delete() if method == "DELETE" else (await client.get_stream()).read())

    async def test_a_jwt_that_anybody_could_have_written(self) -> None:
        """A token for a principal that a JWT merely claims heals nothing: the server has to accept the credential."""
        good = alice()
        async with FakeUpstream(authorization=frozenset(good.values())) as upstream:
            async with self.sidecar(upstream) as first, self.client(first, headers=good) as former:
                await former.initialize()
            await upstream.restart()
            async with self.sidecar(upstream) as second, self.client(second, former, headers=alice()) as forger:
                assert (await forger.tool("charge")).status == 401
                async with self.client(second, former) as client:
                    assert (await client.tool("charge", amount=1)).text == "charged 1"

    async def test_rotation(self, tmp_path: Path) -> None:
        """Append, move to the front, remove: nobody gets a 404 while the token's key is there, and the file is read again."""
        file = tmp_path / "keys"
        file.write_text(self.KEY)
        settings = {"store": "sealed:", "sessions__key_file": str(file)}
        async with FakeUpstream() as upstream, running_sidecar(upstream.url, **settings) as sidecar:
            old, new = (McpClient(sidecar.url, headers=bearer(name), http=new_http()) for name in ("old", "new"))
            await old.initialize()
            for keys in ([self.KEY, self.OTHER_KEY], [self.OTHER_KEY, self.KEY]):
                (tmp_path / "next").write_text("\n".join(keys))
                (tmp_path / "next").replace(file)
                sidecar.read_files_again()
                assert (await old.tool("charge", amount=1)).text == "charged 1"
            await new.initialize()
            async with running_sidecar(upstream.url, **settings) as other:
                for each in (old, new):
                    async with self.client(other, each) as client:
                        assert (await client.tool("charge", amount=2)).text == "charged 2"
            file.write_text("not a key")
            sidecar.read_files_again()
            assert (await new.tool("charge", amount=3)).text == "charged 3"
            for each in (old, new):
                assert each.http is not None
                await each.http.close()

    async def test_a_client_that_says_too_much(self) -> None:
        """It goes under the server's own id, and is told once; its session lives in this process."""
        async with FakeUpstream() as upstream, self.sidecar(upstream) as sidecar, self.client(sidecar) as client:
            noise: dict[str, Any] = {"experimental": {secrets.token_hex(16): {} for _ in range(200)}}
            await client.initialize(capabilities=noise)
            assert client.session_id in upstream.sessions
            assert len(sidecar.of(SessionNotSealed)) == 1
            await upstream.restart()
            assert (await client.tool("charge", amount=1)).text == "charged 1"


class TestKeys:
    """Records in a file, encrypted where there is a key."""

    async def test_nothing_is_readable_without_the_key(self, tmp_path: Path) -> None:
        """Neither what the client said nor the server's ids; with the key the session goes on."""
        key = new_key()
        async with host(tmp_path) as here:
            async with here.sidecar(sessions__key=key) as first, here.client(first) as former:
                await former.initialize()
            kept = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
            assert former.session_id is not None
            assert former.session_id.encode() not in kept and b"test-client" not in kept
            await here.upstream.restart()
            async with here.sidecar(sessions__key=key) as second, here.client(second, former) as client:
                assert (await client.tool("charge", amount=1)).text == "charged 1"

    async def test_a_key_that_comes_later(self, tmp_path: Path) -> None:
        """What was written in clear is read, and sealed with its next write."""
        async with host(tmp_path) as here:
            async with here.sidecar() as first, here.client(first) as former:
                await former.initialize()
            for key in (new_key(),) * 2:
                await here.upstream.restart()
                async with here.sidecar(sessions__key=key) as second, here.client(second, former) as client:
                    assert (await client.tool("charge", amount=1)).text == "charged 1"

    async def test_rotation(self, tmp_path: Path) -> None:
        """Under a new first key everything goes on, and later without the old one: what was sealed anew is."""
        old, new = new_key(), new_key()
        async with host(tmp_path) as here:
            async with here.sidecar(sessions__key=old) as first, here.client(first) as former:
                await former.initialize()
            for keys in (f"{new}\n{old}", new):
                await here.upstream.restart()
                async with here.sidecar(sessions__key=keys) as second, here.client(second, former) as client:
                    assert (await client.tool("charge", amount=1)).text == "charged 1"

    @pytest.mark.parametrize("key", [None, "another"])
    async def test_the_wrong_key(self, tmp_path: Path, key: str | None) -> None:
        """The process does not start, and the reason names the setting."""
        async with host(tmp_path) as here:
            async with here.sidecar(sessions__key=new_key()):
                pass
            settings = {} if key is None else {"sessions__key": new_key()}
            with pytest.raises(CannotStart, match=r"sessions\.key_file"):
                async with here.sidecar(**settings):
                    pass


@pytest.mark.parametrize(
    "settings", [{}, {"sessions__key": "short"}, {"sessions__key": "A" * 86}], ids=["none", "short", "not random"]
)
async def test_sealed_needs_a_key(settings: dict[str, str]) -> None:
    """One line says so, and quotes nothing of it."""
    with pytest.raises(CannotStart) as caught:
        async with running_sidecar("http://127.0.0.1:9/mcp", store="sealed:", **settings):
            pass
    assert "key" in str(caught.value)
    assert not any(value in str(caught.value) for value in settings.values())
