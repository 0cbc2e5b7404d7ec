"""While the upstream is away: what waits, for how long, how many, and what each gets when the wait ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcp_sidecar.facts import (
    HealEnded,
    HoldOverflowed,
    MessageDropped,
    ReplayCause,
    RequestReplayed,
    RequestServed,
    SessionLost,
    UpstreamBack,
    UpstreamLost,
)
from mcp_sidecar.waiting.hold import HeldRequest, Holds, Waited
from mcp_sidecar.wire.jsonrpc import dump
from tests.support.behaviour import SessionMode
from tests.support.client import Answer, McpClient, raw_post
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer as Answered
from tests.support.faults import IngressPage, Refuse, RoutePage, Router
from tests.support.own_answers import is_error, is_unavailable
from tests.support.scene import connected
from tests.support.script import Planted
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.unhurried import now
from tests.support.waiting import eventually

SHORT_S = 0.15
SHORT: dict[str, object] = {"healing__hold_timeout": SHORT_S, "healing__connect_hold_timeout": SHORT_S}


async def held(sidecar: WatchedSidecar, count: int) -> None:
    """Wait until so many requests are held."""
    await eventually(lambda: len(sidecar.services.holds) == count)


class _Counting(asyncio.Future[None]):
    """How often anybody begins or ceases to look at it."""

    looks = 0

    def add_done_callback(self, *arguments: Any, **context: Any) -> None:
        self.looks += 1
        super().add_done_callback(*arguments, **context)

    def remove_done_callback(self, *arguments: Any) -> int:
        self.looks += 1
        return super().remove_done_callback(*arguments)


@pytest.mark.parametrize("comes_back", [True, False])
async def test_many_who_wait_for_the_same(comes_back: bool) -> None:
    """Their ends cost as much each as one's: a future removes a callback by going through all that it has."""
    loop = asyncio.get_running_loop()
    holds = Holds(max_requests=100, max_bytes=100, can_connect=_never, emit=lambda _: None, clock=loop.time)
    shared = _Counting()
    waits = [asyncio.create_task(holds.for_result(HeldRequest(1, SHORT_S), shared)) for _ in range(100)]
    await eventually(lambda: len(holds) == 100)
    if comes_back:
        shared.set_result(None)
    assert await asyncio.gather(*waits) == [(Waited.BACK if comes_back else Waited.EXPIRED, None)] * 100
    assert shared.looks <= 2


@pytest.mark.parametrize("comes_back", [True, False])
async def test_many_streams_that_wait(comes_back: bool) -> None:
    """The same without a bound: what they wait for knows one of them, however many stay or leave."""
    loop = asyncio.get_running_loop()
    holds = Holds(max_requests=1, max_bytes=1, can_connect=_never, emit=lambda _: None, clock=loop.time)
    shared = _Counting()
    waits = [asyncio.create_task(holds.without_bound(shared)) for _ in range(100)]
    await eventually(lambda: len(holds._waiting_for.get(shared, ())) == 100)
    for leaving in waits[: 50 if comes_back else 100]:
        leaving.cancel()
    if comes_back:
        shared.set_result(None)
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert ends.count(None) == (50 if comes_back else 0)
    assert shared.looks <= 2


async def test_streams_wait_for_the_upstream_as_one() -> None:
    """However many there are, what tells that it is back has one of them to tell, and all are counted."""
    loop = asyncio.get_running_loop()
    holds = Holds(max_requests=1, max_bytes=1, can_connect=_never, emit=lambda _: None, clock=loop.time)
    streams = [asyncio.create_task(holds.for_stream()) for _ in range(100)]
    await eventually(lambda: holds.waiting() == 100)
    assert len(holds.availability.back()._callbacks or ()) == 1
    for leaving in streams[:99]:
        leaving.cancel()
    await asyncio.gather(*streams[:99], return_exceptions=True)
    assert holds.waiting() == 1
    holds.availability.note(False)
    holds.availability.note(True)
    await streams[99]
    await holds.availability.stop()


async def _never() -> bool:
    return False


# -- the upstream refuses connections ---------------------------------------------------------------------------------


async def test_what_was_held_is_sent_when_the_upstream_is_back() -> None:
    """The same process with the same sessions: every held request runs once, and nothing is healed."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(Refuse())
        calls = [asyncio.create_task(client.tool("charge", amount=n)) for n in range(5)]
        calls += [asyncio.create_task(client.notify("notifications/roots/list_changed"))]
        await held(sidecar, 6)
        assert not sidecar.services.holds.availability.is_up
        await upstream.clear()
        answers = await asyncio.gather(*calls)
        assert [answer.text for answer in answers[:5]] == [f"charged {n}" for n in range(5)]
        assert answers[5].status == 202
        assert len(upstream.ledger.executions("charge")) == 5
        assert len(upstream.ledger.initializes) == 1
        assert {fact.cause for fact in sidecar.of(RequestReplayed)} == {ReplayCause.NOT_SENT}
        assert (len(sidecar.of(UpstreamLost)), [fact.held for fact in sidecar.of(UpstreamBack)]) == (1, [6])
        assert sidecar.services.holds.availability.is_up


async def test_a_first_connect_is_held_too() -> None:
    """`initialize` may come before the upstream does."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await upstream.stop()
        opening = asyncio.create_task(client.initialize())
        await held(sidecar, 1)
        await upstream.start()
        assert (await opening).status == 200
        assert (await client.tool("charge")).text == "charged 1"


RequestLine = Callable[[McpClient], Awaitable[Answer]]
BATCH = [
    {"jsonrpc": "2.0", "id": 7, "method": "ping"},
    {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"},
    {"jsonrpc": "2.0", "id": "b", "method": "tools/list"},
]
MODERN = {"Mcp-Session-Id": "", "MCP-Protocol-Version": "2026-07-28"}

EXPIRED: list[Any] = [
    pytest.param(
        lambda client: client.call("tools/list", id="mine"),
        lambda answer: is_error(answer, "mine", "upstream_unavailable"),
        id="request",
    ),
    pytest.param(
        lambda client: client.call("tools/list", id=7, bare=True),
        lambda answer: is_error(answer, 7, "upstream_unavailable"),
        id="request-without-session",
    ),
    pytest.param(
        lambda client: client.notify("notifications/roots/list_changed"),
        lambda answer: (answer.status, answer.body) == (202, b""),
        id="notification",
    ),
    pytest.param(
        lambda client: client.respond(1), lambda answer: (answer.status, answer.body) == (202, b""), id="response"
    ),
    pytest.param(
        lambda client: client.batch(BATCH),
        lambda answer: (
            [(error["id"], error["error"]["data"]) for error in answer.messages]
            == [(7, {"reason": "upstream_unavailable"}), ("b", {"reason": "upstream_unavailable"})]
        ),
        id="batch",
    ),
    pytest.param(
        lambda client: client.batch(BATCH[1:2]),
        lambda answer: (answer.status, answer.body) == (202, b""),
        id="batch-of-notifications",
    ),
    pytest.param(
        lambda client: client.call("initialize", {}, id=1, bare=True),
        lambda answer: is_unavailable(answer, 1),
        id="initialize",
    ),
    pytest.param(
        lambda client: client.call("server/discover", {}, id=2, headers=MODERN, bare=True),
        lambda answer: is_unavailable(answer, 2),
        id="discover",
    ),
    pytest.param(
        lambda client: client.call(
            "tools/list",
            {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}},
            id=3,
            headers={"MCP-Protocol-Version": "2026-07-28"},
            bare=True,
        ),
        lambda answer: is_unavailable(answer, 3),
        id="sessionless",
    ),
]


@pytest.mark.parametrize(("ask", "is_right"), EXPIRED)
async def test_each_kind_gets_its_own_answer_when_the_hold_ends(
    ask: RequestLine, is_right: Callable[[Answer], bool]
) -> None:
    """What the client can go on with: an error with its own id, 202 where nobody waits, 503 only where it connects."""
    async with connected(**SHORT) as (upstream, sidecar, client):
        await upstream.stop()
        answer = await ask(client)
        assert is_right(answer), (answer.status, answer.headers, answer.body)
        assert len(sidecar.services.holds) == 0


async def test_dropped_messages_are_told() -> None:
    """A notification and a response that go nowhere are counted as such."""
    async with connected(**SHORT) as (upstream, sidecar, client):
        await upstream.stop()
        await asyncio.gather(client.notify("notifications/roots/list_changed"), client.respond(1))
        assert sorted(fact.kind for fact in sidecar.of(MessageDropped)) == ["notification", "response"]


async def test_each_kind_of_request_has_its_own_patience() -> None:
    """``connect_hold_timeout`` for a connect, ``hold_timeout`` for everything in a session."""
    async with connected(healing__hold_timeout=30, healing__connect_hold_timeout=0.1) as (upstream, sidecar, client):
        await upstream.stop()
        call = asyncio.create_task(client.tool("charge"))
        await held(sidecar, 1)
        assert (await client.call("initialize", {}, bare=True)).status == 503
        assert not call.done()
        await upstream.start()
        assert (await call).text == "charged 1"


async def test_other_paths_are_never_held() -> None:
    """503 at once, although the hold would last for minutes."""
    async with connected(healing__hold_timeout=300, healing__connect_hold_timeout=300) as (upstream, sidecar, client):
        await upstream.stop()
        assert client.http is not None
        async with client.http.get(f"http://{sidecar.address}/health") as answer:
            assert (answer.status, "Retry-After" in answer.headers) == (503, True)


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_only_so_many_are_held() -> None:
    """Beyond ``max_held_requests`` the answer comes at once; a place that becomes free can be taken again."""
    async with connected(healing__max_held_requests=3) as (upstream, sidecar, client):
        await upstream.stop()
        calls = [asyncio.create_task(client.tool("charge", amount=n)) for n in range(3)]
        await held(sidecar, 3)
        assert is_error(await client.call("ping", id=99), 99, "upstream_unavailable")
        assert [fact.held_requests for fact in sidecar.of(HoldOverflowed)] == [3]
        calls[0].cancel()
        await held(sidecar, 2)
        calls[0] = asyncio.create_task(client.tool("charge", amount=0))
        await held(sidecar, 3)
        await upstream.start()
        assert [answer.text for answer in await asyncio.gather(*calls)] == [f"charged {n}" for n in range(3)]


async def test_only_so_many_bytes_are_held() -> None:
    """Beyond ``max_held_bytes`` the answer comes at once; a smaller request still finds room."""
    async with connected(healing__max_held_bytes="4KiB") as (upstream, sidecar, client):
        await upstream.stop()
        big = asyncio.create_task(client.tool("echo", text="x" * 3000))
        await held(sidecar, 1)
        refused = await client.tool("echo", text="y" * 3000)
        assert refused.error["data"] == {"reason": "upstream_unavailable"}
        small = asyncio.create_task(client.tool("echo", text="z"))
        await held(sidecar, 2)
        await upstream.start()
        assert ((await big).text, (await small).text) == ("x" * 3000, "z")


# -- leaving ----------------------------------------------------------------------------------------------------------


async def test_a_held_request_can_be_cancelled() -> None:
    """The request gets its error, the notification 202, and neither goes upstream."""
    async with connected() as (upstream, sidecar, client):
        await upstream.stop()
        seen = len(upstream.ledger.arrivals)
        call = asyncio.create_task(client.call("tools/call", {"name": "charge"}, id="to-cancel"))
        other = asyncio.create_task(client.call("tools/call", {"name": "charge"}, id=5))
        await held(sidecar, 2)
        notice = await client.notify("notifications/cancelled", {"requestId": "to-cancel"})
        assert (notice.status, notice.body) == (202, b"")
        assert is_error(await call, "to-cancel", "cancelled")
        await upstream.start()
        assert (await other).text == "charged 1"
        assert [arrival.rpc_methods for arrival in upstream.ledger.arrivals[seen:]] == [("tools/call",)]


async def test_a_held_request_of_an_unknown_session_can_be_cancelled() -> None:
    """After the sidecar's own restart, say. Only by the principal that sent it."""
    async with (
        connected() as (upstream, _, former),
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, session_id=former.session_id) as client,
    ):
        upstream.inject(Refuse())
        call = asyncio.create_task(client.call("tools/call", {"name": "charge"}, id=5))
        await held(sidecar, 1)
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
        stranger = asyncio.create_task(client.post(cancelled, headers={"Authorization": "Bearer other"}))
        await held(sidecar, 2)
        assert (await client.post(cancelled)).status == 202
        assert is_error(await call, 5, "cancelled")
        await upstream.clear()
        assert (await stranger).status == 202
        assert upstream.ledger.count(tool="charge") == 0


async def test_a_held_batch_is_cancelled_when_all_its_requests_are() -> None:
    """Until then it goes as it is, and each notification goes after it."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(Refuse())
        batches = [
            [client.request("tools/call", {"name": "charge"}, id=n) for n in numbers] for numbers in ((5, 6), (7, 8))
        ]
        calls = [asyncio.create_task(client.batch(batch)) for batch in batches]
        await held(sidecar, 2)
        notices = []
        for number, waiting in ((5, 3), (8, 4)):
            notices += [asyncio.create_task(client.notify("notifications/cancelled", {"requestId": number}))]
            await held(sidecar, waiting)
        assert (await client.notify("notifications/cancelled", {"requestId": 6})).status == 202
        errors = (await calls[0]).messages
        assert [(error["id"], error["error"]["data"]["reason"]) for error in errors] == [
            (5, "cancelled"),
            (6, "cancelled"),
        ]
        await upstream.clear()
        assert sorted(message["id"] for message in (await calls[1]).messages) == [7, 8]
        assert [notice.status for notice in await asyncio.gather(*notices)] == [202, 202]
        assert len(upstream.ledger.executions("charge")) == 2


async def test_ids_are_cancelled_by_type_and_session() -> None:
    """1 is not "1", and nobody cancels another session's request."""
    async with connected() as (upstream, sidecar, client), McpClient(sidecar.url) as other:
        await other.initialize()
        upstream.inject(Refuse())
        call = asyncio.create_task(client.call("tools/call", {"name": "charge"}, id=1))
        await held(sidecar, 1)
        notices = [
            asyncio.create_task(client.notify("notifications/cancelled", {"requestId": "1"})),
            asyncio.create_task(other.notify("notifications/cancelled", {"requestId": 1})),
        ]
        await held(sidecar, 3)
        await upstream.clear()
        assert (await call).text == "charged 1"
        await asyncio.gather(*notices)


async def test_a_request_whose_client_left_is_never_sent() -> None:
    """Nobody could take the answer."""
    async with connected() as (upstream, sidecar, client):
        await upstream.stop()
        call = asyncio.create_task(client.tool("charge"))
        await held(sidecar, 1)
        call.cancel()
        await held(sidecar, 0)
        await upstream.start()
        assert (await client.tool("echo", text="on")).text == "on"
        assert upstream.ledger.count(tool="charge") == 0


@pytest.mark.parametrize("size", [150_000, 400_000])
@pytest.mark.parametrize("headers", [(), ("MCP-Protocol-Version: 2026-07-28",)], ids=["session", "sessionless"])
async def test_a_large_held_request_whose_client_left_is_never_sent(size: int, headers: tuple[str, ...]) -> None:
    """Its body is here when it is held, and the news that the client has left comes like any other."""
    async with connected() as (upstream, sidecar, client):
        await upstream.stop()
        body = dump(client.request("tools/call", {"name": "charge", "arguments": {"padding": "x" * size}}))
        with socket.create_connection(("127.0.0.1", sidecar.port)) as raw:
            raw.setblocking(False)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
            session = () if headers else (f"Mcp-Session-Id: {client.session_id}",)
            data = raw_post(sidecar.port, body, *headers, *session)
            async with asyncio.timeout(5):
                await asyncio.get_running_loop().sock_sendall(raw, data)
            await held(sidecar, 1)
        await upstream.start()
        await held(sidecar, 0)
        await eventually(lambda: any(fact.status == 499 for fact in sidecar.of(RequestServed)))
        await client.initialize()
        assert (await client.tool("echo", text="on")).text == "on"
        assert upstream.ledger.count(tool="charge") == 0


async def test_a_large_held_request_whose_client_waits_is_sent_whole() -> None:
    """When the upstream is back, and once."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(Refuse())
        call = asyncio.create_task(client.tool("echo", text="x" * 400_000))
        await held(sidecar, 1)
        await upstream.clear()
        assert (await call).text == "x" * 400_000


async def test_a_drain_releases_what_is_held() -> None:
    """Every held request gets the "upstream away" answer at once, and nobody is held any more."""
    async with connected() as (upstream, sidecar, client), McpClient(sidecar.url) as opening:
        await upstream.stop()
        call = asyncio.create_task(client.call("tools/call", {"name": "charge"}, id=4))
        first = asyncio.create_task(opening.call("initialize", {}, id=5, bare=True))
        await held(sidecar, 2)
        await sidecar.drain()
        assert is_error(await call, 4, "upstream_unavailable")
        assert is_unavailable(await first, 5)


# -- who tries, and how often -----------------------------------------------------------------------------------------


@asynccontextmanager
async def counting_port() -> AsyncIterator[tuple[str, list[float]]]:
    """A port that accepts connections and ends them; when each came."""
    connects: list[float] = []

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.append(now())
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", connects


async def test_a_failed_handshake_is_a_failed_connect() -> None:
    """A port that accepts and then cannot speak TLS is away as one that refuses: one prober tries it for all."""
    async with (
        counting_port() as (url, connects),
        running_sidecar(url.replace("http:", "https:"), healing__connect_hold_timeout=0.5) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        answers = await asyncio.gather(*(client.call("initialize", {}, id=n, bare=True) for n in range(20)))
        assert all(is_unavailable(answer, n) for n, answer in enumerate(answers))
        assert len(connects) <= 20 + 150
        assert (len(sidecar.of(UpstreamLost)), len(sidecar.of(UpstreamBack))) == (1, 0)


# -- a route without a server -----------------------------------------------------------------------------------------

PAGES = [pytest.param(RoutePage(router), id=router.name.lower()) for router in Router]


@pytest.mark.parametrize("page", PAGES)
async def test_a_route_that_is_away_is_waited_for(page: RoutePage) -> None:
    """A 404 of a router, for the request, for a ping and for initialize: held until the route is back, nothing healed."""
    async with connected() as (upstream, _, client):
        planted = upstream.inject(page, times=None)
        calls = [asyncio.create_task(client.tool("charge", amount=n)) for n in range(10)]
        await eventually(lambda: planted.hits >= 12)
        await upstream.clear()
        answers = await asyncio.gather(*calls)
        assert [answer.text for answer in answers] == [f"charged {n}" for n in range(10)]
        assert len(upstream.ledger.executions("charge")) == 10
        assert len(upstream.sessions) == 1


@pytest.mark.long
async def test_a_route_that_comes_back_is_seen_soon() -> None:
    """However often a held request asked in vain, it is healed and answered within a pause of the server's return."""
    async with connected() as (upstream, sidecar, client):
        planted = upstream.inject(RoutePage(), times=None)
        call = asyncio.create_task(client.tool("charge"))
        await eventually(lambda: planted.hits >= 30)
        assert (sidecar.of(SessionLost), sidecar.of(HealEnded)) == ([], [])
        upstream.forget()
        await upstream.clear()
        back = now()
        assert (await call).text == "charged 1"
        assert now() - back < 1.5
        assert len(sidecar.of(HealEnded)) == 1


@pytest.mark.long
async def test_one_scout_tries_the_route() -> None:
    """Fifty requests wait behind an ingress page; after the first round one of them asks, at the prober's pace."""
    async with connected(healing__hold_timeout=0.6) as (upstream, _, client):
        upstream.inject(IngressPage(503), times=None)
        seen = len(upstream.ledger.arrivals)
        answers = await asyncio.gather(*(client.call("tools/list") for _ in range(50)))
        assert {answer.error["data"]["reason"] for answer in answers} == {"outcome_unknown"}
        assert len(upstream.ledger.arrivals) - seen <= 50 + 75


async def planted_again(planted: Planted) -> None:
    """Wait until a few more requests met the fault."""
    before = planted.hits
    await eventually(lambda: planted.hits > before + 3)


@pytest.mark.long
async def test_another_scout_takes_over() -> None:
    """The scout's client leaves: the others are not forgotten."""
    async with connected() as (upstream, _, client):
        planted = upstream.inject(IngressPage(503), times=None)
        calls = [asyncio.create_task(client.call("tools/list")) for _ in range(3)]
        for call in calls[:2]:
            await planted_again(planted)
            call.cancel()
        await planted_again(planted)
        await upstream.clear()
        assert "tools" in (await calls[2]).result


async def test_a_404_before_the_endpoint_ever_worked_passes() -> None:
    """A wrong path is a mistake that its user has to see; after the first success the same 404 means away."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, **SHORT) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        upstream.inject(RoutePage(), times=None)
        answer = await client.call("initialize", {}, bare=True)
        assert (answer.status, answer.body) == (404, b"404 page not found\n")
        await upstream.clear()
        await client.initialize()
        upstream.inject(RoutePage(), times=None)
        assert is_unavailable(await client.call("initialize", {}, id=8, bare=True), 8)
        assert is_error(await client.call("tools/list", id=9, bare=True), 9, "outcome_unknown")
        assert is_error(await client.call("tools/list", id=10), 10, "upstream_unavailable")


async def test_a_404_without_a_session_does_not_show_that_nothing_ran() -> None:
    """A stateless server's tool may answer 404 itself: nobody can be asked, so only what is harmless is sent again."""
    async with connected(sessions=SessionMode.STATELESS) as (upstream, _, client):
        ran = Answered(404, (("Content-Type", "text/plain"),), b"no such order", executes=True)
        upstream.inject(ran, tool="charge")
        upstream.inject(ran, rpc_method="tools/list", times=3)
        assert is_error(await client.call("tools/call", {"name": "charge"}, id=9), 9, "outcome_unknown")
        assert len(upstream.ledger.executions("charge")) == 1
        assert "tools" in (await client.call("tools/list")).result


# -- how soon ---------------------------------------------------------------------------------------------------------

OUTAGES = 30


@pytest.mark.long
async def test_a_held_call_is_answered_soon_after_the_upstream_accepts() -> None:
    """Over thirty outages with a restart: the sidecar waits no longer than its pace and the spread of heals, together 100 ms."""
    waits: list[float] = []
    async with connected(healing__max_heals_per_minute=1000) as (upstream, sidecar, client):
        for _ in range(OUTAGES):
            await upstream.stop()
            call = asyncio.create_task(client.tool("charge"))
            await held(sidecar, 1)
            await upstream.restart()
            accepts = now()
            assert (await call).text == "charged 1"
            waits.append(now() - accepts)
    assert max(waits) < 0.1
