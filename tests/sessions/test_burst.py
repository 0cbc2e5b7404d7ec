"""Many sessions at once: everybody goes on, and the upstream is not overrun."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Self, cast

import pytest

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.facts import Fact, HealEnded, HealOutcome
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.policy import Policy
from mcp_sidecar.healing.principal import ANONYMOUS
from mcp_sidecar.healing.session import ClientSessionId
from mcp_sidecar.sessions.heal import HEALED, HealServices, Loss
from mcp_sidecar.sessions.healer import Healer
from mcp_sidecar.sessions.notifier import Notifier
from mcp_sidecar.sessions.open_streams import GetStreams
from mcp_sidecar.sessions.own_requests import Trigger
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.waiting.hold import GO_ON_AT_A_TIME, HeldRequest, Holds, Waited
from mcp_sidecar.wire.headers import Pair
from tests.support import virtual_time
from tests.support.client import McpClient, new_http
from tests.support.fake_upstream import FakeUpstream
from tests.support.sessions import keeper
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

PARAMS = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "many", "version": "1"}}
RESULT = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "serverInfo": {"name": "fake-upstream", "version": "1.0"},
}


def open_sessions(sidecar: WatchedSidecar, count: int) -> list[str]:
    """Sessions as if their clients had initialized before the upstream lost them."""
    handshake = Handshake.of(PARAMS, RESULT)
    names = [ClientSessionId(f"client-{number}") for number in range(count)]
    for name in names:
        sidecar.services.sessions.table.open(name, ANONYMOUS, handshake)
    return list(names)


@pytest.mark.long
async def test_a_thousand_sessions_are_healed_at_once() -> None:
    """A thousand clients call right after a restart: all succeed, with one initialize each."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar, new_http() as http:
        names = open_sessions(sidecar, 1000)
        clients = [McpClient(sidecar.url, http=http, session_id=name) for name in names]
        answers = await asyncio.gather(*(client.tool("charge", amount=n) for n, client in enumerate(clients)))
        assert [answer.text for answer in answers] == [f"charged {n}" for n in range(1000)]
        assert len(upstream.ledger.initializes) == len(upstream.sessions) == 1000
        assert len(upstream.ledger.executions("charge")) == 1000
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED] * 1000


@pytest.mark.long
async def test_an_outage_under_many_sessions_ends_well() -> None:
    """Four hundred clients call while the server is down: nothing is lost when it comes back without their sessions.

    It is not met by as many connections either: those who wait for their heal leave theirs to others.
    """
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar, new_http() as http:
        names = open_sessions(sidecar, 400)
        await upstream.stop()
        clients = [McpClient(sidecar.url, http=http, session_id=name) for name in names]
        calls = [asyncio.create_task(client.tool("charge")) for client in clients]
        await eventually(lambda: len(sidecar.services.holds) == 400)
        await upstream.restart()
        assert {answer.text for answer in await asyncio.gather(*calls)} == {"charged 1"}
        assert len(upstream.ledger.initializes) == 400
        assert len(upstream.ledger.executions("charge")) == 400
        at_a_time = GO_ON_AT_A_TIME + sidecar.services.policy.max_concurrent_heals
        assert len({arrival.connection for arrival in upstream.ledger.arrivals}) <= 2 * at_a_time


# -- ten thousand, under virtual time ---------------------------------------------------------------------------------


class InstantAnswer:
    """A whole answer that takes no time."""

    headers: tuple[Pair, ...] = ()

    def __init__(self, status: int, body: bytes, session_id: str | None = None) -> None:
        self.status = status
        self.whole, self.peeked = True, body
        self._body = body
        self._headers = {"Content-Type": "application/json", "Mcp-Session-Id": session_id}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def header(self, name: str) -> str | None:
        return self._headers.get(name)

    async def peek(self, _limit: int) -> bytes:
        return self._body

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body

    def close(self) -> None:
        pass


class InstantUpstream:
    """A server that is infinitely fast: whatever spreads the load is the sidecar's doing."""

    affinity_cookies: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.initializes: list[float] = []
        self.under_way = self.most_under_way = 0

    async def send(
        self, _method: str, _target: str, _headers: list[Pair], body: bytes | None = None, **_options: object
    ) -> InstantAnswer:
        if body is None or b'"initialize"' not in body:
            return InstantAnswer(202, b"")
        self.initializes.append(virtual_time.now())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        message = {"jsonrpc": "2.0", "id": json.loads(body)["id"], "result": RESULT}
        return InstantAnswer(200, json.dumps(message).encode(), f"upstream-{len(self.initializes)}")


async def _never() -> bool:
    return False


@pytest.mark.long
def test_ten_thousand_sessions_are_not_healed_in_the_same_second() -> None:
    """All notice the loss in one moment, and the server could serve all: still they come in turn, and all come."""

    async def restart() -> None:
        facts: list[Fact] = []
        upstream, clock, policy = InstantUpstream(), virtual_time.now, Policy()
        store = SessionTable(
            SessionLimits(),
            facts.append,
            salt=b"s",
            clock=clock,
            new_tag=lambda: "t",
            keeper=keeper(SessionLimits(), clock),
        )
        holding = Holds(max_requests=10_000, max_bytes=10_000, can_connect=_never, emit=facts.append, clock=clock)
        streams = GetStreams()
        telling = Notifier(streams, facts.append)
        tools = HealServices(cast(Upstream, upstream), store, telling, policy, 1024, facts.append, clock, streams)
        healer = Healer(tools, holding)
        handshake = Handshake.of(PARAMS, RESULT)
        sessions = [store.open(ClientSessionId(f"client-{n}"), ANONYMOUS, handshake) for n in range(10_000)]
        loss, trigger = Loss(1, "python-404", 404), Trigger("/mcp", [], ANONYMOUS)
        ends = await asyncio.gather(
            *(healer.heal(session, loss, trigger, HeldRequest(0, policy.hold_timeout_s)) for session in sessions)
        )
        assert set(ends) == {(Waited.BACK, HEALED)}
        assert len(upstream.initializes) == 10_000
        assert upstream.most_under_way <= policy.max_concurrent_heals
        busiest = max(Counter(int(at * 10) for at in upstream.initializes).values())
        assert busiest <= 400  # in a tenth of a second
        assert 2.5 < virtual_time.now() < policy.hold_timeout_s

    virtual_time.run(restart())
