"""What a client had set in its session holds after a heal: log level, subscriptions; and nothing half restored is used."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcp_sidecar.facts import (
    AnswerRewritten,
    HealEnded,
    HealOutcome,
    HintDropped,
    HintKind,
    RestoreRefused,
    RestoreStep,
    SidecarFault,
)
from mcp_sidecar.sessions.own_requests import STEP_TIMEOUT_S
from mcp_sidecar.sessions.restore import ALL_STEPS_TIMEOUT_S
from tests.support import behaviour
from tests.support.behaviour import Answers
from tests.support.client import McpClient
from tests.support.dialects import Mint
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import (
    Answer,
    CloseBeforeHeaders,
    Crash,
    Fault,
    IngressPage,
    ResetAfterExecution,
    ResetBeforeExecution,
    RoutePage,
    SlowHeaders,
    Stall,
    StallAt,
    TruncateJson,
)
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

Scene = tuple[FakeUpstream, WatchedSidecar, McpClient]

ANSWERS = pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)
LEVEL = {"level": "info"}
ONE, TWO = {"uri": "fake://one"}, {"uri": "fake://two"}
UPDATED = "notifications/resources/updated"
JSON = (("Content-Type", "application/json"),)
NOT_FOUND = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'


@asynccontextmanager
async def scene(kind: dict[str, Any] | None = None, **settings: object) -> AsyncIterator[Scene]:
    """A client in a session, that wants to hear nothing of the restart itself."""
    settings = {"healing__announce": "off", **settings}
    async with (
        FakeUpstream(**(kind or {})) as upstream,
        running_sidecar(upstream.url, **settings) as sidecar,
        McpClient(sidecar.url, headers={"Authorization": "Bearer mine"}) as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client
        assert sidecar.of(SidecarFault) == []


async def set_up(client: McpClient) -> None:
    """A log level and two subscriptions."""
    await client.call("logging/setLevel", LEVEL)
    await client.call("resources/subscribe", ONE)
    await client.call("resources/subscribe", TWO)


def is_whole(upstream: FakeUpstream, *, orphans: int = 0) -> bool:
    """Whether the newest session has all that ``set_up`` has set, and there is no other but ``orphans``."""
    *others, newest = upstream.sessions.values()
    has_all = newest.log_level == "info" and newest.subscriptions == {"fake://one", "fake://two"}
    return newest.initialized and has_all and len(others) == orphans


async def attached(upstream: FakeUpstream) -> None:
    await eventually(lambda: any(session.get_streams_open for session in upstream.sessions.values()))


# -- what is said again -----------------------------------------------------------------------------------------------


@ANSWERS
@pytest.mark.parametrize("listens", [False, True], ids=["no stream", "a stream"])
async def test_the_order_of_a_restore(answers: Answers, listens: bool) -> None:
    """Initialize, the listening stream, initialized, log level, subscriptions, the request; all as the client."""
    async with scene({"answers": answers}) as (upstream, _, client):
        await set_up(client)
        stream = await client.get_stream() if listens else None
        if listens:
            await attached(upstream)
        await upstream.restart()
        assert (await client.tool("echo", text="again")).text == "again"
        asked = [*upstream.ledger.arrived(session_id=next(iter(upstream.sessions)))]
        order = [arrival.rpc_methods[0] if arrival.rpc_methods else arrival.http_method for arrival in asked]
        expected = ["notifications/initialized", "logging/setLevel", "resources/subscribe", "resources/subscribe"]
        assert order == ["GET"] * listens + [*expected, "tools/call"]
        said = [a for a in upstream.ledger.arrived(process=2) if a.rpc_methods and a.rpc_methods[0] in expected]
        assert {arrival.header("authorization") for arrival in said} == {"Bearer mine"}
        assert {arrival.header("mcp-protocol-version") for arrival in said} == {"2025-06-18"}
        assert {arrival.session_id for arrival in said} == set(upstream.sessions)
        ids = [json.loads(arrival.body).get("id") for arrival in said][1:]
        assert all(str(own_id).startswith("mcp-sidecar-") for own_id in ids)
        assert len(set(ids)) == 3
        assert is_whole(upstream)
        if stream is not None:
            stream.close()


@ANSWERS
async def test_it_is_said_again_after_every_restart(answers: Answers) -> None:
    """What a heal has restored is restored by the next one."""
    async with scene({"answers": answers}) as (upstream, _, client):
        await set_up(client)
        for _ in range(3):
            await upstream.restart()
            assert (await client.call("ping")).status == 200
            assert is_whole(upstream)


@ANSWERS
async def test_only_what_is_in_force_is_said(answers: Answers) -> None:
    """The last level, and no subscription that was given up."""
    async with scene({"answers": answers}) as (upstream, _, client):
        await set_up(client)
        await client.call("logging/setLevel", {"level": "error"})
        await client.call("resources/unsubscribe", ONE)
        await upstream.restart()
        await client.call("ping")
        (session,) = upstream.sessions.values()
        assert (session.log_level, session.subscriptions) == ("error", {"fake://two"})


@ANSWERS
@pytest.mark.parametrize(
    ("method", "left"), [("resources/subscribe", {"fake://one"}), ("resources/unsubscribe", set())]
)
async def test_what_an_earlier_server_has_taken_late_is_remembered(
    method: str, left: set[str], answers: Answers
) -> None:
    """It answers after the heal, as one does that is drained: for the client it is done, and holds from the next heal on."""
    async with scene({"answers": answers}) as (upstream, _, client):
        if method == "resources/unsubscribe":
            await client.call("resources/subscribe", ONE)
        stalled = upstream.inject(Stall(StallAt.BEFORE_HEADERS), rpc_method=method)
        late = asyncio.create_task(client.call(method, ONE))
        await eventually(lambda: stalled.hits == 1)
        upstream.forget()
        assert (await client.call("ping")).status == 200
        upstream.release()
        assert (await late).result == {}
        await upstream.restart()
        await client.call("ping")
        [session] = upstream.sessions.values()
        assert session.subscriptions == left


@ANSWERS
async def test_what_the_server_refused_is_not_remembered(answers: Answers) -> None:
    """Only success counts."""
    refused = frozenset({"logging/setLevel", "resources/subscribe"})
    async with scene({"answers": answers, "refused_methods": refused}) as (upstream, _, client):
        await set_up(client)
        await upstream.restart(refused_methods=frozenset())
        await client.call("ping")
        (session,) = upstream.sessions.values()
        assert (session.log_level, session.subscriptions) == (None, set())


@ANSWERS
async def test_what_was_set_in_a_batch(answers: Answers) -> None:
    """Each request counts by its own answer (2025-03-26)."""
    async with scene({"answers": answers, "protocol_versions": ("2025-03-26",)}) as (upstream, _, client):
        batch = [client.request("logging/setLevel", LEVEL), client.request("resources/subscribe", ONE)]
        await client.batch([*batch, client.request("ping")])
        upstream.become(refused_methods=frozenset({"resources/subscribe"}))
        await client.batch([client.request("ping"), client.request("resources/subscribe", TWO)])
        await upstream.restart(refused_methods=frozenset())
        await client.call("ping")
        (session,) = upstream.sessions.values()
        assert (session.log_level, session.subscriptions) == ("info", {"fake://one"})


async def test_what_was_sent_again_under_another_id_counts() -> None:
    """The answer to a second try bears an id of ours."""
    async with scene() as (upstream, _, client):
        upstream.inject(ResetAfterExecution(), rpc_method="logging/setLevel")
        assert (await client.call("logging/setLevel", LEVEL)).result == {}
        await upstream.restart()
        await client.call("ping")
        assert [session.log_level for session in upstream.sessions.values()] == ["info"]


async def test_what_triggered_the_heal_is_remembered_afterwards() -> None:
    """A log level that meets the loss is set by its own replay, and by the next heal."""
    async with scene() as (upstream, _, client):
        for _ in range(2):
            await upstream.restart()
            await client.call("logging/setLevel", LEVEL)
            assert [session.log_level for session in upstream.sessions.values()] == ["info"]
        await upstream.restart()
        await client.call("ping")
        assert [session.log_level for session in upstream.sessions.values()] == ["info"]


@pytest.mark.parametrize(
    "capabilities",
    [
        pytest.param({"tools": {}}, id="none"),
        pytest.param({"tools": {}, "resources": {}}, id="no subscribe"),
        pytest.param({"tools": {}, "resources": {"subscribe": False}}, id="subscribe false"),
    ],
)
async def test_a_server_without_the_capability_is_not_asked(capabilities: dict[str, Any]) -> None:
    """The step is left out, and the heal succeeds."""
    async with scene() as (upstream, sidecar, client):
        await set_up(client)
        await upstream.restart(capabilities=capabilities)
        assert (await client.tool("echo", text="again")).text == "again"
        assert upstream.ledger.count("logging/setLevel", process=2) == 0
        assert upstream.ledger.count("resources/subscribe", process=2) == 0
        assert sidecar.of(RestoreRefused) == []


# -- refusals ---------------------------------------------------------------------------------------------------------

REFUSALS = [
    pytest.param(Answer(403, JSON, b'{"error":"no"}'), id="403"),
    pytest.param(Answer(422, JSON, b'{"detail":"no"}'), id="422"),
    pytest.param(Answer(500, JSON, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"no"}}'), id="500"),
    pytest.param(Answer(200, JSON, b'{"jsonrpc":"2.0","id":"other","result":{}}'), id="another's answer"),
    pytest.param(Answer(202), id="202"),
]


@ANSWERS
async def test_a_refused_step_does_not_fail_the_heal(answers: Answers) -> None:
    """It is told, and the client reads again what it had subscribed to."""
    async with scene({"answers": answers}) as (upstream, sidecar, client):
        await set_up(client)
        async with await client.get_stream() as stream:
            await attached(upstream)
            await upstream.restart(refused_methods=frozenset({"logging/setLevel", "resources/subscribe"}))
            assert (await client.tool("echo", text="again")).text == "again"
            messages = [await stream.next_message() for _ in range(2)]
            assert [message and message["params"]["uri"] for message in messages] == ["fake://one", "fake://two"]
        steps = [fact.step for fact in sidecar.of(RestoreRefused)]
        assert steps == [RestoreStep.SET_LEVEL, RestoreStep.SUBSCRIBE, RestoreStep.SUBSCRIBE]
        await upstream.restart(refused_methods=frozenset())
        await client.call("ping")
        assert is_whole(upstream)


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_in_any_form(refusal: Answer) -> None:
    """A 4xx that says nothing of the session, an error of the server's, or no answer to the question."""
    async with scene() as (upstream, sidecar, client):
        await set_up(client)
        await upstream.restart()
        upstream.inject(refusal, rpc_method="logging/setLevel")
        assert (await client.tool("echo", text="again")).text == "again"
        assert [fact.step for fact in sidecar.of(RestoreRefused)] == [RestoreStep.SET_LEVEL]
        (session,) = upstream.sessions.values()
        assert (session.log_level, len(session.subscriptions)) == (None, 2)


# -- kill the server at every step of the restore ---------------------------------------------------------------------

LOST = Answer(404, JSON, b'{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Session not found"}}')

STEPS: dict[str, dict[str, Any]] = {
    "initialize": {"rpc_method": "initialize"},
    "GET": {"http_method": "GET"},
    "initialized": {"rpc_method": "notifications/initialized"},
    "setLevel": {"rpc_method": "logging/setLevel"},
    "first subscribe": {"rpc_method": "resources/subscribe"},
    "second subscribe": {"rpc_method": "resources/subscribe", "skip": 1},
    "replay": {"rpc_method": "tools/call"},
}
KILLS: dict[str, Fault] = {
    "dies before": Crash(),
    "dies after": Crash(executes=True),
    "reset before": ResetBeforeExecution(),
    "reset after": ResetAfterExecution(),
    "closed": CloseBeforeHeaders(),
    "502": IngressPage(502),
    "503": IngressPage(503, html=False),
    "502 after": IngressPage(502, executes=True),
    "session lost": LOST,
    "no route": RoutePage(),
    "cut answer": TruncateJson(),
}


UNSEEN_ID = {("initialize", kill) for kill in ("reset after", "502 after")}
"""Nobody has learned the id of the session that was opened: it cannot be ended."""

KILLED = [(step, kill) for step in STEPS for kill in KILLS if (step, kill) != ("initialize", "session lost")]
"""An `initialize` has no session to lose."""


@pytest.mark.long
@pytest.mark.parametrize(("step", "kill"), KILLED)
async def test_killed_at_every_step(step: str, kill: str) -> None:
    """No hang, no 404, nothing half restored is taken for whole, no orphan is left, and the next request heals again."""
    async with scene() as (upstream, sidecar, client):
        await client.call("tools/list")  # so that `echo` is known to be harmless
        await set_up(client)
        async with await client.get_stream() as stream, asyncio.timeout(12):
            await attached(upstream)
            await upstream.stop()
            call = asyncio.create_task(client.tool("echo", text="again"))
            await eventually(lambda: len(sidecar.services.holds) == 1)
            planted = upstream.inject(KILLS[kill], **STEPS[step])
            await upstream.restart()
            if isinstance(KILLS[kill], Crash):
                await eventually(lambda: planted.hits == 1 and upstream.process == 3)
                await upstream.start()
            answer = await call
            assert answer.status == 200
            assert answer.response.get("result") or answer.error["data"]["reason"] == "outcome_unknown"
            assert (await client.tool("echo", text="next")).text == "next"
            await eventually(lambda: planted.hits == 1)
            await eventually(lambda: is_whole(upstream, orphans=(step, kill) in UNSEEN_ID))
            await attached(upstream)
            upstream.touch("fake://two")
            seen = await stream.next_message()
            while seen is None or seen["params"].get("uri") != "fake://two":
                seen = await stream.next_message()
        assert HealOutcome.HEALED in [fact.outcome for fact in sidecar.of(HealEnded)]
        ran_in = {execution.session_id for execution in upstream.ledger.executions("echo")}
        assert list(upstream.sessions)[-1] in ran_in


@pytest.mark.long
@pytest.mark.parametrize("at", [StallAt.BEFORE_EXECUTION, StallAt.BEFORE_HEADERS, StallAt.MID_BODY])
@pytest.mark.parametrize("step", list(STEPS)[:-1])
async def test_stuck_at_every_step(step: str, at: StallAt) -> None:
    """Whoever waits gets the answer for an upstream that is away; what hangs is not taken for whole."""
    async with scene(healing__hold_timeout=0.4) as (upstream, _, client):
        await set_up(client)
        async with await client.get_stream(), asyncio.timeout(12):
            await attached(upstream)
            await upstream.stop()
            planted = upstream.inject(Stall(at), **STEPS[step])
            await upstream.restart()
            answer = await client.tool("charge", amount=1)
            assert answer.status == 200
            await eventually(lambda: planted.hits == 1)
            upstream.release()
            assert (await client.tool("charge", amount=2)).text == "charged 2"
            assert is_whole(upstream)


@pytest.mark.parametrize("step", ["initialized", "setLevel", "second subscribe"])
@pytest.mark.parametrize("delete", [200, 405])
async def test_a_half_restored_session_under_the_old_id(
    step: str, delete: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that count their sessions give the same id again: one that lives on half restored is not used."""
    monkeypatch.setitem(behaviour.MINTS, Mint.COUNTER, counting := Counting())
    async with scene({"mint": Mint.COUNTER, "delete_status": delete}) as (upstream, sidecar, client):
        await set_up(client)
        await upstream.restart()
        counting.again()
        upstream.inject(ResetBeforeExecution(), **STEPS[step])
        assert (await client.tool("charge", amount=1)).text == "charged 1"
        assert is_whole(upstream, orphans=delete == 405)
        outcomes = [fact.outcome for fact in sidecar.of(HealEnded)]
        assert outcomes == [HealOutcome.UNAVAILABLE, HealOutcome.HEALED]


class Counting:
    """Mints session-1, session-2 and so on; ``again`` as a new process does."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def __call__(self) -> str:
        return f"session-{next(self._ids)}"

    def again(self) -> None:
        self._ids = itertools.count(1)


@pytest.mark.long
async def test_a_step_that_hangs_for_good_ends_the_heal() -> None:
    """After some seconds the new session is given up and ended, and the next heal begins anew."""
    async with scene(healing__hold_timeout=0.2) as (upstream, sidecar, client):
        await set_up(client)
        await upstream.restart()
        upstream.inject(Stall(StallAt.BEFORE_EXECUTION), rpc_method="logging/setLevel")
        assert (await client.call("ping")).error["data"]["reason"] == "outcome_unknown"
        await eventually(lambda: HealOutcome.UNAVAILABLE in [f.outcome for f in sidecar.of(HealEnded)], timeout_s=8)
        assert upstream.sessions == {}
        assert (await client.call("ping")).result == {}
        assert is_whole(upstream)


async def test_many_steps_at_a_slow_server_do_not_keep_a_session_lost() -> None:
    """What cannot be said in time counts as refused: the session goes on, and the client reads anew what it missed."""
    step_s = 0.9 * STEP_TIMEOUT_S
    async with scene(healing__hold_timeout=2 * ALL_STEPS_TIMEOUT_S) as (upstream, sidecar, client):
        uris = [f"fake://{number}" for number in range(int(ALL_STEPS_TIMEOUT_S / step_s) + 3)]
        for uri in uris:
            await client.call("resources/subscribe", {"uri": uri})
        await upstream.restart()
        upstream.inject(SlowHeaders(pieces=2, pause_s=step_s / 2), rpc_method="resources/subscribe", times=None)
        answer = await client.tool("echo", text="on")
        assert answer.text == "on"
        assert updates(answer.messages) == uris
        [session] = upstream.sessions.values()
        assert 1 <= len(session.subscriptions) < len(uris)
        assert len(sidecar.of(RestoreRefused)) == len(uris) - len(session.subscriptions)


# -- what the client is told ------------------------------------------------------------------------------------------


def updates(messages: list[dict[str, Any]]) -> list[str]:
    return [message["params"]["uri"] for message in messages if message.get("method") == UPDATED]


async def test_each_subscribed_resource_is_told_once_on_the_listening_stream() -> None:
    """Updates were missed while the server was away."""
    async with scene() as (upstream, sidecar, client):
        await set_up(client)
        async with await client.get_stream() as stream:
            await attached(upstream)
            await upstream.restart()
            answer = await client.tool("echo", text="again")
            assert updates(answer.messages) == []
            await attached(upstream)
            upstream.notify("notifications/last")
            seen: list[dict[str, Any]] = []
            while not seen or seen[-1]["method"] != "notifications/last":
                message = await stream.next_message()
                assert message is not None
                seen.append(message)
        assert updates(seen) == ["fake://one", "fake://two"]
        assert sidecar.of(HintDropped) == []


async def test_without_a_listening_stream_it_goes_ahead_of_the_answer() -> None:
    """On the replayed request's own stream, and on no other."""
    async with scene({"answers": Answers.SSE}) as (upstream, sidecar, client):
        await set_up(client)
        await upstream.restart()
        answer = await client.tool("echo", text="again")
        assert updates(answer.messages) == ["fake://one", "fake://two"]
        assert answer.messages[-1] == answer.response
        assert updates((await client.tool("echo", text="once more")).messages) == []
        assert sidecar.of(HintDropped) == []


async def test_where_nothing_can_carry_it_it_is_dropped_and_counted() -> None:
    """A JSON answer carries nothing else."""
    async with scene({"answers": Answers.JSON}) as (upstream, sidecar, client):
        await set_up(client)
        await upstream.restart()
        assert (await client.tool("echo", text="again")).text == "again"
        assert [fact.kind for fact in sidecar.of(HintDropped)] == [HintKind.UPDATED] * 2
        upstream.become(answers=Answers.SSE)
        assert updates((await client.tool("echo", text="once more")).messages) == []


async def test_a_heal_without_an_answer_leaves_it_to_the_next_one() -> None:
    """What a notification has healed is told ahead of the next answer, and once."""
    async with scene() as (upstream, sidecar, client):
        await set_up(client)
        for _ in range(3):
            await upstream.restart()
            assert (await client.notify("notifications/roots/list_changed")).status == 202
        assert updates((await client.call("ping")).messages) == ["fake://one", "fake://two"]
        assert sidecar.of(HintDropped) == []


async def test_what_waits_is_told_to_a_client_that_begins_to_listen() -> None:
    """The same on a stream that is opened after the heal, or that has triggered it."""
    async with scene() as (upstream, _, client):
        await set_up(client)
        await upstream.restart()
        async with await client.get_stream() as stream:
            messages = [await stream.next_message() for _ in range(2)]
            assert updates([message for message in messages if message]) == ["fake://one", "fake://two"]


# -- judged by its own body -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "status", "body"),
    [
        pytest.param(Answer(422, JSON, b'{"detail":"no"}'), 422, b'{"detail":"no"}', id="the server's own"),
        pytest.param(Answer(400, JSON, b'{"detail":"no"}'), 400, b'{"detail":"no"}', id="another one"),
        pytest.param(LOST, 404, NOT_FOUND, id="lost again"),
    ],
)
async def test_a_replay_is_judged_by_its_own_body(second: Answer, status: int, body: bytes) -> None:
    """A loss that a 200 has told (tower-mcp) does not colour what the replay is told."""
    async with scene({"dialect": "tower-mcp-200", "answers": Answers.JSON}) as (upstream, sidecar, client):
        await upstream.restart()
        upstream.inject(second, tool="echo", skip=1, times=None)
        if second is LOST:
            upstream.inject(second, rpc_method="ping", skip=1, times=None)
        answer = await client.tool("echo", text="again")
        assert (answer.status, answer.body) == (status, body)
        heals = 2 if status == 404 else 1
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED] * heals
        assert [fact.from_status for fact in sidecar.of(AnswerRewritten)] == ([404] if status == 404 else [])
