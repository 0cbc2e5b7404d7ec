"""Whose session it is: only the principal that opened a session can have it healed, and nobody gets another's."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FrameType, FunctionType, ModuleType

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, SidecarFault
from tests.support import behaviour
from tests.support.behaviour import Answers
from tests.support.client import McpClient
from tests.support.credentials import alice, bearer
from tests.support.dialects import Mint
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Fault, IngressPage, SlowHeaders, Stage, Stall, StallAt
from tests.support.own_answers import is_not_found
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

Headers = dict[str, str]

SAME = [
    pytest.param({}, {}, id="anonymous"),
    pytest.param(alice(), alice(), id="refreshed-jwt"),
    pytest.param(bearer("opaque"), bearer("opaque"), id="same-opaque-token"),
    pytest.param({"X-API-Key": "k1"}, {"x-api-key": "k1"}, id="same-api-key"),
    pytest.param({"X-API-Key": "k1", **alice()}, {"X-API-Key": "k1", **alice()}, id="key-and-refreshed-jwt"),
    pytest.param({"Cookie": "user=alice"}, {"Cookie": "user=mallory"}, id="cookies-never-count"),
    pytest.param({"X-User": "alice"}, {"X-User": "bob"}, id="other-headers-never-count"),
]
OTHERS = [
    pytest.param(alice(), alice(sub="mallory"), id="other-subject"),
    pytest.param(alice(), alice(iss="https://other.example"), id="other-issuer"),
    pytest.param(alice(), alice(client_id="other"), id="other-client"),
    pytest.param(alice(sub=""), alice(sub=""), id="refreshed-jwt-without-subject"),
    pytest.param(bearer("opaque"), bearer("rotated"), id="rotated-opaque-token"),
    pytest.param({"X-API-Key": "k1"}, {"X-API-Key": "k2"}, id="other-api-key"),
    pytest.param({}, alice(), id="credentials-on-an-anonymous-session"),
    pytest.param(alice(), {}, id="none-on-a-session-with-credentials"),
    pytest.param(alice(), {"X-API-Key": "k1", **alice()}, id="one-more-credential"),
]


@pytest.mark.parametrize(("opened_with", "used_with"), SAME)
async def test_the_same_principal_goes_on(opened_with: Headers, used_with: Headers) -> None:
    """Whoever opened a session has it healed, with the credentials that it has by then."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=opened_with) as client,
    ):
        await client.initialize()
        await upstream.restart()
        client.headers = used_with
        answer = await client.tool("charge")
        assert answer.text == "charged 1"
        assert answer.session_id == client.session_id
        assert len(upstream.ledger.initializes) == 2


@pytest.mark.parametrize(("opened_with", "used_with"), OTHERS)
async def test_another_principal_never_heals(opened_with: Headers, used_with: Headers) -> None:
    """It is told that the session is lost, nothing is opened for it, and the owner still goes on afterwards."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=opened_with) as client,
    ):
        await client.initialize()
        await upstream.restart()
        client.headers = used_with
        assert is_not_found(await client.tool("charge"))
        assert len(upstream.ledger.initializes) == 1
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.REFUSED]
        if used_with != opened_with and "Authorization" in opened_with:
            assert upstream.ledger.arrivals[-1].header("authorization") == used_with.get("Authorization")
        client.headers = opened_with
        assert (await client.tool("charge")).text == "charged 1"
        assert len(upstream.ledger.executions("charge")) == 1


async def test_another_principal_is_forwarded_unmapped_in_every_generation() -> None:
    """Its requests carry the id that it sent, before and after a heal; the owner's carry the upstream's."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=alice()) as client,
    ):
        await client.initialize()
        stranger = McpClient(sidecar.url, headers=alice(sub="mallory"), http=client.http, session_id=client.session_id)
        assert (await stranger.call("ping")).status == 200  # it is the upstream that checks who may
        await upstream.restart()
        assert (await client.call("ping")).status == 200
        for _ in range(2):
            assert is_not_found(await stranger.call("ping"))
            assert upstream.ledger.arrivals[-1].session_id == client.session_id
        assert (await stranger.delete()).status == 404
        assert upstream.ledger.arrivals[-1].session_id == client.session_id
        assert (await stranger.get_stream()).status == 404
        assert (await client.call("ping")).status == 200
        assert upstream.ledger.arrivals[-1].session_id == next(iter(upstream.sessions)) != client.session_id


async def test_without_binding_everybody_with_the_id_heals() -> None:
    """``bind_principal = false``: the id alone counts; the credentials used are those of whoever came."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, healing__bind_principal="false") as sidecar,
        McpClient(sidecar.url, headers=bearer("one")) as client,
    ):
        await client.initialize()
        await upstream.restart()
        client.headers = bearer("two")
        assert (await client.tool("charge")).text == "charged 1"
        assert upstream.ledger.initializes[-1].header("authorization") == "Bearer two"


async def test_principal_headers_are_a_setting() -> None:
    """A configured header tells principals apart, and one that is not configured does not."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, healing__principal_headers="X-User") as sidecar,
        McpClient(sidecar.url, headers={"X-User": "alice", **bearer("one")}) as client,
    ):
        await client.initialize()
        await upstream.restart()
        client.headers = {"X-User": "bob", **bearer("one")}
        assert is_not_found(await client.tool("charge"))
        client.headers = {"X-User": "alice", **bearer("two")}
        assert (await client.tool("charge")).text == "charged 1"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An upstream that counts its session ids; ``count_anew`` is what its restart does to them."""
    count_anew(monkeypatch)
    return monkeypatch


def count_anew(monkeypatch: pytest.MonkeyPatch, start: int = 1) -> None:
    counter = itertools.count(start)
    monkeypatch.setitem(behaviour.MINTS, Mint.COUNTER, lambda: f"session-{next(counter)}")


@asynccontextmanager
async def alice_and_bob() -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, McpClient, McpClient]]:
    """Two users of a server that counts its sessions."""
    async with (
        FakeUpstream(mint=Mint.COUNTER) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=alice()) as one,
        McpClient(sidecar.url, headers=alice(sub="bob")) as other,
    ):
        yield upstream, sidecar, one, other


def owner_of_last_call(upstream: FakeUpstream) -> str | None:
    """Who had opened the upstream session in which the last tool ran."""
    session_id = upstream.ledger.executions("charge")[-1].session_id
    return upstream.sessions[session_id].authorization if session_id is not None else None


async def test_ids_that_are_minted_again_never_mix_sessions(counting: pytest.MonkeyPatch) -> None:
    """After a restart the upstream counts from 1 again: everybody still calls in a session of their own."""
    async with FakeUpstream(mint=Mint.COUNTER) as upstream, running_sidecar(upstream.url) as sidecar:
        names = ("alice", "bob", "carol")
        clients = [await McpClient(sidecar.url, headers=alice(sub=name)).__aenter__() for name in names]
        for client in clients:
            await client.initialize()
        for _ in range(2):
            count_anew(counting)
            await upstream.restart()
            for client in reversed(clients):
                for _ in range(2):
                    assert (await client.tool("charge")).text == "charged 1"
                    assert owner_of_last_call(upstream) == client.headers["Authorization"]
        answers = await asyncio.gather(*(client.tool("charge", amount=n) for n, client in enumerate(clients)))
        assert [answer.text for answer in answers] == ["charged 0", "charged 1", "charged 2"]
        assert [set(client.seen_session_ids) for client in clients] == [{"session-1"}, {"session-2"}, {"session-3"}]
        for client in clients:
            await client.__aexit__(None, None, None)


async def test_two_principals_may_hold_the_same_id(counting: pytest.MonkeyPatch) -> None:
    """A newcomer gets the id that somebody else still holds from before: both go on, each in a session of their own."""
    async with alice_and_bob() as (upstream, _, old, new):
        await old.initialize()
        count_anew(counting)
        await upstream.restart()
        await new.initialize()
        assert old.session_id == new.session_id == "session-1"
        for client in (old, new, old, new):
            assert (await client.tool("charge")).text == "charged 1"
            assert owner_of_last_call(upstream) == client.headers["Authorization"]
        assert (await old.delete()).status == 200
        assert is_not_found(await old.tool("charge"))
        assert (await new.tool("charge")).text == "charged 1"
        assert owner_of_last_call(upstream) == new.headers["Authorization"]


async def test_clients_that_nothing_tells_apart_get_ids_that_do(counting: pytest.MonkeyPatch) -> None:
    """A newcomer without credentials gets no id that an older client without credentials goes under."""
    async with (
        FakeUpstream(mint=Mint.COUNTER) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as old,
        McpClient(sidecar.url) as new,
    ):
        await old.initialize()
        count_anew(counting)
        await upstream.restart()
        await new.initialize()
        assert old.session_id == "session-1" != new.session_id
        ran_in = []
        for client in (old, new, old, new):
            assert (await client.tool("charge")).text == "charged 1"
            ran_in.append(upstream.ledger.executions("charge")[-1].session_id)
        assert ran_in == ["session-2", "session-1", "session-2", "session-1"]
        assert set(new.seen_session_ids) == {new.session_id}


async def test_a_healed_session_whose_id_is_minted_again_is_healed_again(counting: pytest.MonkeyPatch) -> None:
    """Whichever upstream session stands behind a client: once its id is somebody else's, nothing is sent under it."""
    async with (
        FakeUpstream(mint=Mint.COUNTER) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=alice()) as old,
        McpClient(sidecar.url, headers=alice(sub="bob")) as second,
        McpClient(sidecar.url, headers=alice(sub="carol")) as third,
    ):
        await old.initialize()
        for newcomers in ((), (second, third)):
            count_anew(counting)
            await upstream.restart()
            for newcomer in newcomers:
                await newcomer.initialize()
            for client in (old, *newcomers, old):
                assert (await client.tool("charge")).text == "charged 1"
                assert owner_of_last_call(upstream) == client.headers["Authorization"]
        assert "id-minted-anew" in [fact.signature for fact in sidecar.of(HealEnded)]


@pytest.mark.long
async def test_a_displaced_session_lets_go_of_the_open_stream(counting: pytest.MonkeyPatch) -> None:
    """A stream that was attached under an id just before it became known as another's carries nothing of that one's."""
    async with alice_and_bob() as (upstream, _, old, new):
        await old.initialize()
        async with await old.get_stream() as stream:
            await eventually(lambda: upstream.sessions["session-1"].get_streams_open)
            count_anew(counting)
            upstream.inject(SlowHeaders(pieces=5, pause_s=0.2), rpc_method="initialize")
            upstream.inject(Stall(StallAt.BEFORE_EXECUTION), http_method="GET")
            await upstream.restart()
            opening = asyncio.create_task(new.initialize())
            await eventually(lambda: "session-1" in upstream.sessions)
            upstream.release()
            await eventually(lambda: upstream.sessions["session-1"].get_streams_open)
            await opening
            await eventually(
                lambda: "session-2" in upstream.sessions and upstream.sessions["session-2"].get_streams_open
            )
            assert new.session_id == "session-1"
            assert upstream.sessions["session-1"].get_streams_open == 0
            upstream.notify("notifications/for-new", session_id="session-1")
            upstream.notify("notifications/for-old", session_id="session-2")
            message = await stream.next_message()
            assert message is not None and message["method"] == "notifications/for-old"
            async with await new.get_stream() as own:
                assert own.status == 200


async def test_deleting_a_displaced_session_spares_the_other(counting: pytest.MonkeyPatch) -> None:
    """A DELETE of a session whose id now is somebody else's ends it here and nothing upstream."""
    async with alice_and_bob() as (upstream, _, old, new):
        await old.initialize()
        count_anew(counting)
        await upstream.restart()
        await new.initialize()
        assert (await old.delete()).status == 200
        assert upstream.ledger.count("DELETE") == 0
        assert (await new.tool("charge")).text == "charged 1"


@dataclass(frozen=True, slots=True)
class ResetLater:
    """The connection breaks with ``upstream.release()``; nothing runs."""

    executes: bool = False

    async def play(self, stage: Stage) -> None:
        await stage.released.wait()
        await stage.wire.reset()


@pytest.mark.parametrize("step", ["notifications/initialized", "logging/setLevel", "resources/subscribe"])
@pytest.mark.parametrize("then", [Stall(StallAt.BEFORE_EXECUTION), ResetLater()], ids=["goes on", "breaks"])
async def test_a_heal_whose_new_id_is_minted_for_another(step: str, then: Fault, counting: pytest.MonkeyPatch) -> None:
    """What it has still to say is not said in the other's session, nor is that one ended with what was begun."""
    async with alice_and_bob() as (upstream, _, old, new):
        await old.initialize()
        await old.call("logging/setLevel", {"level": "info"})
        for uri in ("fake://one", "fake://two"):
            await old.call("resources/subscribe", {"uri": uri})
        count_anew(counting, 50)
        await upstream.restart()
        stalled = upstream.inject(then, rpc_method=step)
        call = asyncio.create_task(old.tool("charge"))
        await eventually(lambda: stalled.hits == 1)
        begun = upstream.ledger.arrivals[-1].session_id or ""
        upstream.forget()
        count_anew(counting, int(begun.removeprefix("session-")))
        await new.initialize()
        said_before = len(upstream.ledger.arrivals)
        upstream.release()
        assert (await call).text == "charged 1"
        assert new.session_id == begun
        assert owner_of_last_call(upstream) == old.headers["Authorization"]
        to_another = [a for a in upstream.ledger.arrivals[said_before:] if a.session_id == new.session_id]
        assert {a.header("authorization") for a in to_another} <= {new.headers["Authorization"]}
        assert (await new.tool("charge")).text == "charged 1"


@pytest.mark.parametrize("first", [1, 50], ids=["the old id", "another id"])
@pytest.mark.parametrize("again", [False, True], ids=["", "minted again"])
async def test_a_session_that_ends_in_its_heal(first: int, again: bool, counting: pytest.MonkeyPatch) -> None:
    """What was begun is not left behind upstream, unless it is somebody else's by now: that one is spared."""
    async with alice_and_bob() as (upstream, sidecar, old, new):
        await old.initialize()
        await old.call("logging/setLevel", {"level": "info"})
        count_anew(counting, first)
        await upstream.restart()
        stalled = upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method="logging/setLevel")
        call = asyncio.create_task(old.tool("charge"))
        await eventually(lambda: stalled.hits == 1)
        [begun] = upstream.sessions
        assert (begun == old.session_id) is (first == 1)
        upstream.inject(IngressPage(502), http_method="DELETE")
        assert (await old.delete()).status == 200
        assert is_not_found(await call)
        if again:
            upstream.forget()
            count_anew(counting, int(begun.removeprefix("session-")))
            assert (await new.initialize()).session_id == begun
        upstream.release()
        await eventually(lambda: not sidecar.services.sessions.healer._flights)
        assert list(upstream.sessions) == [begun] * again
        assert len(sidecar.services.sessions.table._by_upstream_id) == again
        assert sidecar.of(SidecarFault) == []


async def test_rewrite_sends_nothing_under_an_id_that_is_another_sessions(counting: pytest.MonkeyPatch) -> None:
    """Where nothing is healed, the former holder of an id gets the 404, for its calls and for its stream."""
    async with (
        FakeUpstream(mint=Mint.COUNTER) as upstream,
        running_sidecar(upstream.url, mode="rewrite") as sidecar,
        McpClient(sidecar.url, headers=alice()) as old,
        McpClient(sidecar.url, headers=alice(sub="bob")) as new,
    ):
        await old.initialize()
        count_anew(counting)
        await upstream.restart()
        await new.initialize()
        assert is_not_found(await old.tool("charge"))
        async with await old.get_stream() as stream:
            assert is_not_found(await stream.read())
        assert not upstream.ledger.executions("charge")
        assert upstream.ledger.count("GET") == 0


@pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)
async def test_a_heal_uses_the_credentials_of_the_request_that_met_the_loss(answers: Answers) -> None:
    """Every request of a heal carries that request's credentials and custom headers, not those of the handshake."""
    first, then = alice(), alice()
    async with (
        FakeUpstream(answers=answers) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers={**first, "X-Tenant": "blue", "Cookie": "a=1"}) as client,
    ):
        await client.initialize()
        seen = len(upstream.ledger.arrivals)
        await upstream.restart(authorization=frozenset({then["Authorization"]}))
        client.headers = {**then, "X-Tenant": "green", "Cookie": "a=2"}
        assert (await client.tool("charge")).text == "charged 1"
        own = upstream.ledger.arrivals[seen:]
        assert [arrival.rpc_methods for arrival in own] == [
            ("tools/call",),
            ("ping",),
            ("initialize",),
            ("notifications/initialized",),
            ("tools/call",),
        ]
        for arrival in own:
            assert arrival.header("authorization") == then["Authorization"]
            assert (arrival.header("x-tenant"), arrival.header("cookie")) == ("green", "a=2")


async def test_no_credential_and_no_body_outlives_its_exchange() -> None:
    """After an exchange with a heal nothing that the process keeps holds a token or what was said with it."""
    token, argument = "opaque-token-that-must-go", "argument-that-must-go"
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers={"X-API-Key": "api-key-that-must-go", **bearer(token)}) as client,
    ):
        await client.initialize()
        await upstream.restart()
        assert (await client.tool("echo", text=argument)).text == argument
        assert client.http is not None
        await client.http.close()
        kept = texts_reachable_from(sidecar.services)
        assert any(client.session_id in text for text in kept if client.session_id)  # it looks where things are kept
        secrets = (token, "api-key-that-must-go", argument)
        assert not [text[:80] for text in kept if any(secret in text for secret in secrets)]


_NOT_STATE = (ModuleType, FunctionType, BuiltinFunctionType, FrameType, type, asyncio.AbstractEventLoop)


def texts_reachable_from(root: object) -> list[str]:
    """Every text and every bytes that an object holds, directly or not."""
    seen, waiting, found = {id(root)}, [root], []
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, str | bytes | bytearray):
            found.append(thing if isinstance(thing, str) else bytes(thing).decode("latin-1"))
            continue
        for inner in _held_by(thing):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
    return found


def _held_by(thing: object) -> list[object]:
    if isinstance(thing, FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
    return [
        inner
        for inner in gc.get_referents(thing)
        if isinstance(inner, FunctionType) or not isinstance(inner, _NOT_STATE)
    ]


def _is_filled(cell: object) -> bool:
    try:
        cell.cell_contents  # type: ignore[attr-defined] # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True
