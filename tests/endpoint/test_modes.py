"""How much is done about a loss: modes ``rewrite`` and ``observe``, for every kind of failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcp_sidecar.facts import (
    ActionObserved,
    AnswerRewritten,
    Fact,
    HealEnded,
    MessageDropped,
    OutcomeUnknown,
    RequestReplayed,
    RequestServed,
    SessionEnded,
    SessionLost,
    SessionOpened,
    UpstreamBack,
    UpstreamLost,
)
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.verdicts.signatures import TABLE
from tests.support.behaviour import Answers
from tests.support.client import McpClient
from tests.support.dialects import DIALECTS
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer as Says
from tests.support.faults import (
    CutStream,
    Fault,
    IngressPage,
    ResetAfterExecution,
    ResetBeforeExecution,
    RoutePage,
    TruncateJson,
)
from tests.support.own_answers import is_error, is_not_found, is_unavailable
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

ANSWERS = pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)
CONCLUSIVE = sorted(name for name, dialect in DIALECTS.items() if dialect.conclusive)
INCONCLUSIVE = sorted(set(DIALECTS) - set(CONCLUSIVE))
SIGNATURES = {row.name for row in TABLE}
MODERN = {"MCP-Protocol-Version": "2026-07-28"}
MODERN_PARAMS = {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}

# What happens in every mode.
COMMON = (RequestServed, SessionOpened, SessionEnded, UpstreamLost, UpstreamBack)


@asynccontextmanager
async def connected(mode: str, **behaviour: Any) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, McpClient]]:
    async with (
        FakeUpstream(**behaviour) as upstream,
        running_sidecar(upstream.url, mode=mode, healing__hold_timeout=300) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client


def told(sidecar: WatchedSidecar) -> list[Fact]:
    """The facts that are not told in every mode."""
    return [fact for fact in getattr(sidecar, "facts", []) if not isinstance(fact, COMMON)]


# -- every mode -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
async def test_a_session_with_a_running_exchange_is_in_use(mode: Mode) -> None:
    """However long that takes, and the time that it may be idle begins when it is over."""
    async with connected(mode, answers=Answers.SSE) as (upstream, sidecar, client):
        store, now = sidecar.services.sessions.table, sidecar.services.sessions.table._clock
        call = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        store._clock = lambda: now() + 86_401
        assert (await client.call("ping")).status == 200
        upstream.slow_gate.set()
        assert (await call).text == "at last"
        store.sweep()
        async with await client.get_stream() as stream:
            assert stream.status == 200
            await eventually(lambda: [view["streams"] for view in list(sidecar.sessions.rows())] == [1])
            store._clock = lambda: now() + 3 * 86_401
            store.sweep()
            assert len(store) == 1
        await eventually(lambda: [view["streams"] for view in list(sidecar.sessions.rows())] == [0])
        store.sweep()
        assert len(store) == 1
        store._clock = lambda: now() + 4 * 86_402
        store.sweep()
        assert len(store) == 0


# -- rewrite ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
@ANSWERS
@pytest.mark.parametrize("dialect", CONCLUSIVE)
async def test_rewrite_answers_every_lost_session_with_the_404(dialect: str, answers: Answers) -> None:
    """Whatever the server says, the client learns that it has to start over, and can."""
    async with connected("rewrite", dialect=dialect, answers=answers) as (upstream, sidecar, client):
        await upstream.restart()
        seen = len(upstream.ledger.arrivals)
        assert is_not_found(await client.tool("charge"))
        assert len(upstream.ledger.arrivals) == seen + 1
        assert [type(fact) for fact in told(sidecar)] == [SessionLost, AnswerRewritten]
        assert is_not_found(await client.tool("charge"))
        async with await client.get_stream() as stream:
            assert stream.status >= 400
        assert len(sidecar.of(SessionLost)) == 1
        await client.initialize()
        assert (await client.tool("charge")).text == "charged 1"


@pytest.mark.parametrize("dialect", INCONCLUSIVE)
async def test_rewrite_does_not_probe(dialect: str) -> None:
    """An answer that would have to be settled by a ping passes as it came."""
    async with connected("rewrite", dialect=dialect) as (upstream, sidecar, client), McpClient(upstream.url) as direct:
        direct.session_id = client.session_id
        await upstream.restart()
        seen = len(upstream.ledger.arrivals)
        through, without = await client.call("ping", id=1), await direct.call("ping", id=1)
        assert (through.status, through.body) == (without.status, without.body)
        assert len(upstream.ledger.arrivals) == seen + 2
        assert told(sidecar) == []


async def test_rewrite_and_what_it_cannot_ask_about() -> None:
    """A bare 404 in a session passes, for clients start over on it; without one it is an outage. No GET is kept open."""
    async with connected("rewrite") as (upstream, _, client):
        upstream.inject(RoutePage(), times=None)
        assert (await client.call("ping")).status == 404
        assert is_error(await client.call("ping", id=2, bare=True), 2, "outcome_unknown")
        await upstream.clear()
        upstream.inject(ResetAfterExecution(), http_method="GET")
        assert (await client.get_stream()).status == 502
        await upstream.stop()
        assert (await client.get_stream()).status == 503


async def test_rewrite_answers_at_once_while_the_upstream_is_away() -> None:
    """The "upstream away" answers of the contract, with nothing held."""
    async with connected("rewrite") as (upstream, sidecar, client), asyncio.timeout(5):
        await upstream.stop()
        assert is_error(await client.call("ping", id=1), 1, "upstream_unavailable")
        assert is_error(await client.call("ping", id=2, bare=True), 2, "upstream_unavailable")
        assert (await client.notify("notifications/roots/list_changed")).status == 202
        assert is_unavailable(await client.call("initialize", {}, id=3, bare=True), 3)
        modern = await client.call("tools/list", MODERN_PARAMS, id=4, headers=MODERN, bare=True)
        assert is_unavailable(modern, 4)
        assert [type(fact) for fact in told(sidecar)] == [MessageDropped]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(ResetBeforeExecution(), "outcome_unknown", id="reset"),
        pytest.param(ResetAfterExecution(), "outcome_unknown", id="reset-after-execution"),
        pytest.param(IngressPage(502), "outcome_unknown", id="ingress-502"),
        pytest.param(IngressPage(503), "outcome_unknown", id="ingress-503"),
        pytest.param(TruncateJson(), "outcome_unknown", id="truncated-json"),
        pytest.param(CutStream(event_ids=False), "outcome_unknown", id="cut-stream"),
        pytest.param(CutStream(event_ids=True, after_events=1), "outcome_unknown", id="cut-stream-with-ids"),
    ],
)
@pytest.mark.parametrize("tool", ["echo", "charge"])
async def test_rewrite_replays_nothing(fault: Fault, reason: str, tool: str) -> None:
    """Not even what could do no harm: the client is told at once that the outcome is unknown."""
    async with connected("rewrite", event_store=True) as (upstream, sidecar, client):
        upstream.inject(fault, tool=tool)
        answer = await client.call("tools/call", {"name": tool, "arguments": {}}, id=5)
        assert answer.status == 200 and answer.broken is None
        assert (answer.response["id"], answer.error["data"]) == (5, {"reason": reason})
        assert (upstream.ledger.count(tool=tool), upstream.ledger.count("GET")) == (1, 0)
        assert [type(fact) for fact in told(sidecar)] == [OutcomeUnknown]


# -- observe ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
@ANSWERS
@pytest.mark.parametrize("dialect", sorted(DIALECTS))
async def test_observe_passes_every_answer_as_it_came(dialect: str, answers: Answers) -> None:
    """A lost session's answer reaches the client byte for byte; what would have been done is counted, nothing else is."""
    async with (
        connected("observe", dialect=dialect, answers=answers) as (upstream, sidecar, client),
        McpClient(upstream.url, session_id=client.session_id) as direct,
    ):
        assert len(sidecar.services.sessions.table) == 1
        await upstream.restart()
        seen = len(upstream.ledger.arrivals)
        through, without = await client.call("ping", id=1), await direct.call("ping", id=1)
        assert (through.status, through.body) == (without.status, without.body)
        assert through.headers.get("Content-Type") == without.headers.get("Content-Type")
        assert len(upstream.ledger.arrivals) == seen + 2
        assert [fact.action for fact in sidecar.of(ActionObserved)] == ["heal"]
        assert sidecar.of(ActionObserved)[0].signature in SIGNATURES
        assert len(told(sidecar)) == 1
        async with await client.get_stream() as stream:
            assert stream.status >= 200
        assert len(told(sidecar)) == len(sidecar.of(ActionObserved)) == 2


async def test_observe_tells_a_foreign_loss_from_ones_own() -> None:
    """An unknown id would not have been healed: only the 404 would have been given."""
    async with connected("observe") as (_, sidecar, client):
        client.session_id = "made-up"
        assert (await client.call("ping")).status == 404
        assert [fact.action for fact in sidecar.of(ActionObserved)] == ["rewrite"]


async def test_observe_answers_as_a_plain_proxy_while_the_upstream_is_away() -> None:
    """502 at once for whatever comes; what mode heal would have held is counted as a replay."""
    async with connected("observe") as (upstream, sidecar, client), asyncio.timeout(5):
        await upstream.stop()
        answers = [
            await client.call("ping"),
            await client.notify("notifications/roots/list_changed"),
            await client.call("initialize", {}, bare=True),
            await client.call("tools/list", MODERN_PARAMS, headers=MODERN, bare=True),
            await client.delete(),
        ]
        assert [answer.status for answer in answers] == [502] * 5
        assert {type(fact) for fact in told(sidecar)} == {ActionObserved}
        assert [fact.action for fact in sidecar.of(ActionObserved)][:4] == ["replay"] * 4
        assert {fact.signature for fact in sidecar.of(ActionObserved)} == {"none"}


@pytest.mark.parametrize(
    ("fault", "status", "action"),
    [
        pytest.param(IngressPage(502), 502, "refuse", id="ingress-502"),
        pytest.param(IngressPage(503), 503, "refuse", id="ingress-503"),
        pytest.param(ResetAfterExecution(), 502, "refuse", id="reset"),
        pytest.param(RoutePage(), 404, "heal", id="route-404"),
        pytest.param(Says(500, (), b"broken"), 500, "heal", id="error"),
        pytest.param(Says(422, (), b"broken"), 422, "heal", id="what only a ping could settle"),
        pytest.param(Says(415, (), b"broken"), 415, None, id="what is never asked about"),
    ],
)
async def test_observe_changes_no_failure(fault: Fault, status: int, action: str | None) -> None:
    """The client of an unsafe call gets what it would get without the sidecar."""
    async with connected("observe") as (upstream, sidecar, client):
        upstream.inject(fault, tool="charge")
        answer = await client.tool("charge")
        assert answer.status == status
        assert upstream.ledger.count(tool="charge") == 1
        assert [fact.action for fact in sidecar.of(ActionObserved)] == ([action] if action else [])
        assert len(told(sidecar)) == len(sidecar.of(ActionObserved))


@pytest.mark.parametrize(
    "fault", [pytest.param(CutStream(), id="cut-stream"), pytest.param(TruncateJson(), id="truncated-json")]
)
async def test_observe_cuts_what_was_cut(fault: Fault) -> None:
    """A broken answer arrives broken, with what had come before."""
    async with connected("observe") as (upstream, _, client):
        upstream.inject(fault, tool="echo")
        answer = await client.tool("echo", text="hello")
        assert (answer.status, answer.broken is None) == (200, False)


async def test_observe_counts_open_streams_as_every_mode_does() -> None:
    """The gauges tell what is open, whoever looks after it."""
    async with connected("observe", answers=Answers.SSE) as (upstream, sidecar, client):
        call = asyncio.create_task(client.tool("slow"))
        await eventually(lambda: sidecar.services.streams.open.post_streams == 1)
        upstream.slow_gate.set()
        assert (await call).text == "at last"
        await eventually(lambda: sidecar.services.streams.open.post_streams == 0)


async def test_observe_counts_in_one_metric_only() -> None:
    """``observed_total`` goes up; losses, heals, replays and rewritten answers stay at 0."""
    async with connected("observe") as (upstream, sidecar, client):
        await upstream.restart()
        await client.tool("charge")
        async with await client.get_stream() as stream:
            assert stream.status == 404
        text = sidecar._metrics.render(None)[0].decode()
        counted = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in text.splitlines() if line[:1] != "#"}
        assert counted['mcp_sidecar_observed_total{action="heal"}'] == "2.0"
        others = ("sessions_lost", "heals", "replays", "answers_rewritten", "outcomes_unknown", "messages_dropped")
        for name, value in counted.items():
            if name.startswith(tuple(f"mcp_sidecar_{other}_total" for other in others)):
                assert value == "0.0", name
        assert [len(sidecar.of(kind)) for kind in (SessionLost, HealEnded, RequestReplayed)] == [0, 0, 0]
