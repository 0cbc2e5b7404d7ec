"""How a lost session is healed: what goes upstream, in which order, how often, and when not."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, ReplayCause, RequestReplayed, SessionLost, SidecarFault
from mcp_sidecar.healing.record import Instance, UpstreamSessionId
from tests.support.behaviour import Answers as Form
from tests.support.behaviour import EarlyRequest, Priming, SessionMode
from tests.support.client import McpClient
from tests.support.credentials import alice
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import (
    Answer,
    CloseBeforeHeaders,
    Crash,
    Fault,
    GarbageHeaders,
    IngressPage,
    ResetAfterExecution,
    ResetBeforeExecution,
    RoutePage,
    Stage,
    Stall,
    StallAt,
)
from tests.support.own_answers import is_not_found
from tests.support.scene import connected
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

JSON = (("Content-Type", "application/json"),)
LOST = Answer(404, JSON, b'{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Session not found"}}')
BARE_404 = Answer(404)
STALLED = Stall(StallAt.BEFORE_EXECUTION)


def outcomes(sidecar: WatchedSidecar) -> list[HealOutcome]:
    """How the heals ended, in order."""
    return [fact.outcome for fact in sidecar.of(HealEnded)]


# -- once per loss ----------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_many_waiting_requests_cost_one_heal() -> None:
    """Twenty calls that meet one loss: one initialize, one loss told, twenty replays."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        answers = await asyncio.gather(*(client.tool("charge", amount=n) for n in range(20)))
        assert [answer.text for answer in answers] == [f"charged {n}" for n in range(20)]
        assert len(upstream.ledger.initializes) == 2
        assert len(sidecar.of(SessionLost)) == len(outcomes(sidecar)) == 1
        assert [fact.cause for fact in sidecar.of(RequestReplayed)] == [ReplayCause.SESSION_LOST] * 20


async def test_a_late_loss_of_an_older_generation_is_only_replayed() -> None:
    """A request that was sent before the heal and refused after it goes again, and nothing is healed for it."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(STALLED, tool="echo")
        late = asyncio.create_task(client.tool("echo", text="late"))
        await upstream.ledger.wait_for(lambda ledger: ledger.count(tool="echo") == 1)
        upstream.forget()
        assert (await client.tool("charge")).text == "charged 1"
        upstream.release()
        assert (await late).text == "late"
        assert len(upstream.ledger.initializes) == 2
        assert len(sidecar.of(SessionLost)) == 1


async def test_every_loss_is_healed_anew() -> None:
    """A session outlives any number of restarts under one id, each for one initialize."""
    async with connected() as (upstream, _, client):
        for number in range(1, 6):
            await upstream.restart()
            assert (await client.tool("charge")).text == "charged 1"
            assert len(upstream.ledger.initializes) == number + 1
        assert set(client.seen_session_ids) == {client.session_id}


# -- what goes upstream -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "named"),
    [
        pytest.param("2025-03-26", None, id="2025-03-26-names-no-version"),
        pytest.param("2025-06-18", "2025-06-18", id="2025-06-18"),
    ],
)
async def test_the_handshake_is_repeated_as_it_was_negotiated(version: str, named: str | None) -> None:
    """The client's own params with the negotiated version, no session header; then `initialized` with both headers."""
    async with (
        FakeUpstream(protocol_versions=(version,)) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize(version="2025-11-25", capabilities={"roots": {"listChanged": True}, "sampling": {}})
        await upstream.restart(protocol_versions=("2025-11-25", version))
        assert (await client.tool("echo", text="on")).text == "on"
        first, again = (json.loads(arrival.body)["params"] for arrival in upstream.ledger.initializes)
        assert again == {**first, "protocolVersion": version}
        assert upstream.ledger.initializes[-1].session_id is None
        assert upstream.ledger.initializes[-1].header("mcp-protocol-version") is None
        told = upstream.ledger.arrived(rpc_method="notifications/initialized")[-1]
        assert told.session_id == next(iter(upstream.sessions))
        assert told.header("mcp-protocol-version") == named


async def test_what_is_about_the_message_stays_with_it() -> None:
    """Headers that describe the client's own message are on the replay and on nothing that the heal sends."""
    about = {"Mcp-Method": "tools/call", "Mcp-Name": "charge", "Mcp-Param-Amount": "1", "Idempotency-Key": "k"}
    async with connected() as (upstream, _, client):
        await upstream.restart()
        client.headers = {**about, "Accept-Encoding": "gzip", "X-Tenant": "blue"}
        assert (await client.tool("charge")).text == "charged 1"
        _, initialize, initialized, replay = upstream.ledger.arrivals[-4:]
        for own in (initialize, initialized):
            assert [name for name in about if own.header(name) is not None] == []
            assert (own.header("x-tenant"), own.header("accept-encoding")) == ("blue", "identity")
            assert own.header("accept") == "application/json, text/event-stream"
            assert own.header("content-type") == "application/json"
        assert {name: replay.header(name) for name in about} == about


async def test_nothing_comes_before_initialized() -> None:
    """A server that drops a session which is used too early keeps it, whoever waits and whoever comes meanwhile."""
    async with connected(early_request=EarlyRequest.KILLS_SESSION) as (upstream, sidecar, client):
        await upstream.restart()
        upstream.inject(STALLED, rpc_method="notifications/initialized")
        early = [asyncio.create_task(client.tool("charge", amount=n)) for n in range(5)]
        await upstream.ledger.wait_for(lambda ledger: ledger.count("notifications/initialized") == 2)
        late = [asyncio.create_task(client.tool("charge", amount=n)) for n in range(5, 10)]
        await eventually(lambda: len(sidecar.services.holds) == 10)
        upstream.release()
        answers = await asyncio.gather(*early, *late)
        assert [answer.text for answer in answers] == [f"charged {n}" for n in range(10)]
        assert len(upstream.ledger.initializes) == 2


@pytest.mark.parametrize("priming", Priming, ids=lambda priming: priming.value)
@pytest.mark.parametrize("form", Form, ids=lambda form: form.value)
async def test_the_answer_to_initialize_may_have_any_form(form: Form, priming: Priming) -> None:
    """JSON or an event stream, whose first event may be empty, with or without an id."""
    async with connected(initialize_answers=form, priming=priming) as (upstream, sidecar, client):
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        assert outcomes(sidecar) == [HealOutcome.HEALED]


async def test_a_server_that_became_stateless_goes_on_without_an_id() -> None:
    """Re-initialize returns no id: the client keeps its own, and none goes upstream."""
    async with connected() as (upstream, _, client):
        await upstream.restart(sessions=SessionMode.STATELESS)
        upstream.inject(LOST, tool="charge")
        upstream.inject(LOST, rpc_method="ping")
        for _ in range(2):
            assert (await client.tool("charge")).text == "charged 1"
            assert upstream.ledger.arrivals[-1].session_id is None
        assert set(client.seen_session_ids) == {client.session_id}
        assert len(upstream.ledger.initializes) == 2


# -- another server ---------------------------------------------------------------------------------------------------

PROMISED = {"tools": {"listChanged": True}, "logging": {}}
UNPROMISED: dict[str, Any] = {"tools": {}, "logging": {}}
MORE: dict[str, Any] = {**PROMISED, "resources": {"subscribe": True}}

CHANGES = [
    # changes of the server, healed under adapt, healed under reset
    pytest.param({}, True, True, id="nothing"),
    pytest.param({"server_version": "2.0"}, True, True, id="version"),
    pytest.param({"capabilities": MORE}, True, True, id="one-capability-more"),
    pytest.param({"capabilities": {"tools": {"listChanged": True}}}, True, False, id="one-capability-less"),
    pytest.param({"capabilities": UNPROMISED}, True, False, id="a-promise-less"),
    pytest.param({"instructions": "Now otherwise."}, True, False, id="instructions"),
    pytest.param({"server_name": "another"}, False, False, id="name"),
    pytest.param({"protocol_versions": ("2025-03-26",)}, False, False, id="protocol-version"),
]


@pytest.mark.parametrize("on_server_change", ["adapt", "reset"])
@pytest.mark.parametrize(("changes", "adapts", "resets"), CHANGES)
async def test_the_server_that_comes_back_is_compared(
    changes: dict[str, Any], adapts: bool, resets: bool, on_server_change: str
) -> None:
    """A server too different ends the session: 404 now and without asking ever after, and no orphan is left upstream."""
    async with connected(
        capabilities=PROMISED, protocol_versions=("2025-06-18",), healing__on_server_change=on_server_change
    ) as (upstream, sidecar, client):
        await upstream.restart(**changes)
        answer = await client.tool("charge")
        if resets if on_server_change == "reset" else adapts:
            assert answer.text == "charged 1"
            assert outcomes(sidecar) == [HealOutcome.HEALED]
            return
        assert is_not_found(answer)
        assert outcomes(sidecar) == [HealOutcome.INCOMPATIBLE]
        assert (len(upstream.sessions), upstream.ledger.count("DELETE")) == (0, 1)
        seen = len(upstream.ledger.arrivals)
        assert is_not_found(await client.tool("charge"))
        assert len(upstream.ledger.arrivals) == seen


async def test_a_new_session_that_is_not_wanted_is_ended_in_its_own_revision() -> None:
    """Strict servers refuse a DELETE that names another version than the one that this very session negotiated."""
    async with connected(protocol_versions=("2025-06-18",)) as (upstream, _, client):
        await upstream.restart(protocol_versions=("2025-11-25",))
        assert is_not_found(await client.tool("charge"))
        (ended,) = upstream.ledger.arrived(http_method="DELETE")
        assert ended.header("mcp-protocol-version") == "2025-11-25"


async def test_a_version_change_without_promised_notices_resets() -> None:
    """Strict form: where lists may have changed and the client was not promised to hear of it, 404."""
    async with connected(capabilities=UNPROMISED, healing__on_server_change="reset") as (upstream, _, client):
        await upstream.restart(server_version="2.0")
        assert is_not_found(await client.tool("charge"))


# -- initialize is not accepted ---------------------------------------------------------------------------------------

REJECTIONS: list[Any] = [
    pytest.param(
        Answer(
            400, JSON, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Server already initialized"}}'
        ),
        id="already-initialized",
    ),
    pytest.param(
        Answer(200, JSON, b'{"jsonrpc":"2.0","id":"mcp-sidecar-initialize","error":{"code":-32603,"message":"no"}}'),
        id="json-rpc-error",
    ),
    pytest.param(Answer(200, (("Content-Type", "text/html"),), b"<h1>Welcome</h1>"), id="a-web-page"),
    pytest.param(Answer(202), id="accepted-without-a-result"),
    pytest.param(Answer(400, (), b"Bad Request"), id="bad-request"),
]


@pytest.mark.parametrize("rejection", REJECTIONS)
async def test_a_rejected_initialize_is_a_404(rejection: Fault) -> None:
    """The client has to start over; nothing is ended, so that a later request may still find the session healed."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        upstream.inject(rejection, rpc_method="initialize")
        assert is_not_found(await client.tool("charge"))
        assert outcomes(sidecar) == [HealOutcome.FAILED]
        assert (await client.tool("charge")).text == "charged 1"
        assert len(upstream.ledger.executions("charge")) == 1


async def test_a_single_session_server_taken_by_another_is_a_404() -> None:
    """The one session there is belongs to somebody else by now."""
    async with (
        FakeUpstream(sessions=SessionMode.SINGLE) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as client,
        McpClient(upstream.url) as other,
    ):
        await client.initialize()
        await upstream.restart()
        await other.initialize()
        assert is_not_found(await client.tool("charge"))
        assert (await other.tool("charge")).text == "charged 1"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Answer(500, (), b"broken"), id="refused"),
        pytest.param(ResetAfterExecution(), id="reset"),
        pytest.param(IngressPage(503), id="ingress-page"),
    ],
)
async def test_a_session_that_was_not_told_everything_is_not_left_behind(fault: Fault) -> None:
    """`initialized` fails: the new upstream session is ended, and the client gets a definite answer."""
    async with connected() as (upstream, _, client):
        await upstream.restart()
        upstream.inject(fault, rpc_method="notifications/initialized")
        answer = await client.tool("charge")
        assert is_not_found(answer) or answer.text == "charged 1"
        assert upstream.ledger.count("DELETE") == 1
        assert (await client.tool("charge")).text == "charged 1"
        assert len(upstream.sessions) == 1


# -- credentials ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeldBack:
    """An answer that comes when the upstream is told to release."""

    answer: Answer
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        await stage.released.wait()
        await self.answer.play(stage)


async def test_refused_credentials_concern_only_their_own_request() -> None:
    """A 401 on the heal is passed to the requests with those credentials; the others heal with theirs."""
    refusal = Answer(401, (("WWW-Authenticate", 'Bearer error="invalid_token"'), *JSON), b'{"error":"invalid_token"}')
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=alice()) as client,
    ):
        await client.initialize()
        await upstream.restart()
        upstream.inject(HeldBack(refusal), rpc_method="initialize")
        expired = McpClient(sidecar.url, headers=alice(), http=client.http, session_id=client.session_id)
        losers = [asyncio.create_task(expired.tool("charge", amount=1))]
        await upstream.ledger.wait_for(lambda ledger: len(ledger.initializes) == 2)
        losers += [asyncio.create_task(expired.tool("charge", amount=1)) for _ in range(2)]
        winners = [asyncio.create_task(client.tool("charge", amount=2)) for _ in range(3)]
        await eventually(lambda: len(sidecar.services.holds) == 6)
        upstream.release()
        for answer in await asyncio.gather(*losers):
            assert (answer.status, answer.body) == (401, refusal.body)
            assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
        assert [answer.text for answer in await asyncio.gather(*winners)] == ["charged 2"] * 3
        assert len(upstream.ledger.initializes) == 3


async def test_refused_credentials_do_not_spend_the_budget() -> None:
    """Anybody can send a bad token for a subject; that must not cost the owner the session."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, healing__max_heals_per_minute=2) as sidecar,
        McpClient(sidecar.url, headers=alice()) as client,
    ):
        await client.initialize()
        await upstream.restart()
        upstream.inject(Answer(401, (), b"no"), times=4, rpc_method="initialize")
        assert [(await client.tool("charge")).status for _ in range(4)] == [401] * 4
        assert (await client.tool("charge")).text == "charged 1"


# -- budgets ----------------------------------------------------------------------------------------------------------


async def test_a_session_is_healed_so_often_in_a_minute() -> None:
    """Beyond the budget the client gets the 404 at once; the upstream sees no further initialize."""
    async with connected(healing__max_heals_per_minute=3) as (upstream, sidecar, client):
        for _ in range(3):
            upstream.forget()
            assert (await client.tool("charge")).text == "charged 1"
        upstream.forget()
        assert is_not_found(await client.tool("charge"))
        assert is_not_found(await client.tool("charge"))
        assert outcomes(sidecar) == [*[HealOutcome.HEALED] * 3, HealOutcome.REFUSED, HealOutcome.REFUSED]
        assert [fact.generation for fact in sidecar.of(SessionLost)] == [1, 2, 3, 4]
        assert len(upstream.ledger.initializes) == 4


async def test_one_request_heals_twice() -> None:
    """A server that loses the session on every request: healed twice, then the client is told."""
    async with connected() as (upstream, _, client):
        upstream.inject(LOST, times=None, tool="charge")
        upstream.inject(LOST, times=None, rpc_method="ping")
        assert is_not_found(await client.tool("charge"))
        assert len(upstream.ledger.initializes) == 3
        assert upstream.ledger.count(tool="charge") == 3


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ResetBeforeExecution(), id="reset"),
        pytest.param(CloseBeforeHeaders(), id="closed"),
        pytest.param(GarbageHeaders(), id="garbage"),
        pytest.param(IngressPage(503), id="ingress-page"),
        pytest.param(RoutePage(), id="route-page"),
        pytest.param(Answer(500, (), b"broken"), id="error"),
    ],
)
async def test_an_upstream_that_cannot_initialize_sees_no_storm(fault: Fault) -> None:
    """It says that the session is lost and fails on initialize, again and again: a bounded number of tries."""
    async with connected(healing__max_heals_per_minute=5, healing__hold_timeout=1) as (upstream, sidecar, client):
        await upstream.restart()
        upstream.inject(fault, times=None, rpc_method="initialize")
        answers = await asyncio.gather(*(client.tool("charge") for _ in range(10)))
        assert all(
            is_not_found(answer) or answer.error["data"]["reason"] == "upstream_unavailable" for answer in answers
        )
        assert len(upstream.ledger.initializes) <= 1 + 5
        assert upstream.ledger.executions("charge") == []
        assert len(sidecar.of(SessionLost)) == 1


async def test_only_so_many_heals_at_once() -> None:
    """``max_concurrent_heals`` bounds the initializes under way over all sessions; the others wait for their turn."""
    async with FakeUpstream() as upstream, AsyncExitStack() as stack:
        sidecar = await stack.enter_async_context(running_sidecar(upstream.url, healing__max_concurrent_heals=2))
        clients = [await stack.enter_async_context(McpClient(sidecar.url)) for _ in range(8)]
        for client in clients:
            await client.initialize()
        await upstream.restart()
        upstream.inject(STALLED, times=None, rpc_method="initialize")
        calls = [asyncio.create_task(client.tool("charge")) for client in clients]
        await eventually(lambda: len(sidecar.services.holds) == 8)
        await upstream.ledger.wait_for(lambda ledger: len(ledger.initializes) == 8 + 2)
        assert (await clients[0].call("ping", bare=True)).status == 400  # a whole round trip, and still
        assert len(upstream.ledger.initializes) == 8 + 2
        upstream.release()
        assert [answer.text for answer in await asyncio.gather(*calls)] == ["charged 1"] * 8
        assert len(upstream.ledger.initializes) == 16


# -- whoever leaves, whatever ends ------------------------------------------------------------------------------------


async def test_a_heal_goes_on_when_its_client_leaves() -> None:
    """`initialize` is not cancelled; the request of the client that left is never replayed."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        upstream.inject(STALLED, rpc_method="initialize")
        call = asyncio.create_task(client.tool("charge"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.initializes) == 2)
        call.cancel()
        await eventually(lambda: not len(sidecar.services.holds))
        upstream.release()
        await eventually(lambda: outcomes(sidecar) == [HealOutcome.HEALED])
        assert not upstream.ledger.initializes[-1].client_left
        assert upstream.ledger.executions("charge") == []
        assert (await client.tool("echo", text="on")).text == "on"
        assert len(upstream.ledger.initializes) == 2


@pytest.mark.parametrize("stalls", ["initialize", "notifications/initialized"])
async def test_a_delete_during_a_heal_wins(stalls: str) -> None:
    """The session is ended: whoever waits gets the 404, and the upstream session that was being made is ended, too."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        upstream.inject(STALLED, rpc_method=stalls)
        call = asyncio.create_task(client.tool("charge"))
        await upstream.ledger.wait_for(lambda ledger: ledger.count(stalls) == 2)
        assert (await client.delete()).status == 200
        assert is_not_found(await call)
        assert is_not_found(await client.tool("charge"))
        upstream.release()
        await eventually(lambda: outcomes(sidecar) == [HealOutcome.REFUSED])
        await eventually(lambda: (len(upstream.sessions), len(sidecar.services.sessions.table)) == (0, 0))


async def test_the_clients_own_initialized_is_not_said_twice() -> None:
    """A restart between `initialize` and the client's `initialized`: the heal says it, and the client gets its 202."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize(initialized=False)
        await upstream.restart()
        assert (await client.notify("notifications/initialized")).status == 202
        assert len(upstream.ledger.executions("notifications/initialized", process=2)) == 1
        assert (await client.tool("charge")).text == "charged 1"


# -- answers that leave it open ---------------------------------------------------------------------------------------


async def test_a_live_session_gets_the_answer_as_it_came() -> None:
    """A bare 404 while the session answers a ping was about that request only: it passes, nothing is healed."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(Answer(404, (("X-Own", "yes"),), b"nothing here"), tool="charge")
        answer = await client.tool("charge")
        assert (answer.status, answer.body, answer.headers["X-Own"]) == (404, b"nothing here", "yes")
        assert (upstream.ledger.count("ping"), len(upstream.ledger.initializes)) == (1, 1)
        assert (sidecar.of(SessionLost), outcomes(sidecar)) == ([], [])
        assert (await client.tool("charge")).text == "charged 1"


@pytest.mark.parametrize("lost_on", [BARE_404, RoutePage()], ids=["empty", "page"])
async def test_a_lost_session_is_found_out_by_ping(lost_on: Fault) -> None:
    """A bare 404 for the request and for a ping, and a new session can be opened: it was lost, and nothing had run."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        upstream.inject(lost_on, tool="charge")
        upstream.inject(lost_on, rpc_method="ping")
        assert (await client.tool("charge")).text == "charged 1"
        assert [fact.signature for fact in sidecar.of(SessionLost)] == ["bare-404"]
        assert upstream.ledger.arrived(rpc_method="ping")[0].session_id == client.session_id


async def test_a_ping_that_is_refused_proves_nothing() -> None:
    """401 for the ping: the answer passes as it came, and the session stays as it is."""
    async with connected() as (upstream, _, client):
        upstream.inject(Answer(404, (), b"nothing here"), tool="charge")
        upstream.inject(Answer(401, (), b"who are you?"), rpc_method="ping")
        answer = await client.tool("charge")
        assert (answer.status, answer.body) == (404, b"nothing here")
        assert len(upstream.ledger.initializes) == 1
        assert (await client.tool("charge")).text == "charged 1"


PINGS = [
    pytest.param(ResetBeforeExecution(), id="reset"),
    pytest.param(IngressPage(503), id="page"),
    pytest.param(Crash(), id="crash"),
]


@pytest.mark.parametrize("ping", PINGS)
async def test_a_ping_that_breaks_leaves_a_harmless_request_waiting(ping: Fault) -> None:
    """The upstream went away between the answer and the ping: the request is held and settled when it is back."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(BARE_404, rpc_method="tools/list")
        planted = upstream.inject(ping, rpc_method="ping")
        call = asyncio.create_task(client.call("tools/list"))
        await eventually(lambda: planted.hits == 1)
        if isinstance(ping, Crash):
            await eventually(lambda: sidecar.services.holds.waiting() == 1)
            await upstream.start()
        assert "tools" in (await call).result


@pytest.mark.long
@pytest.mark.parametrize("ping", PINGS)
async def test_a_ping_that_breaks_does_not_show_that_a_tool_did_not_run(ping: Fault) -> None:
    """A tool may answer 404 itself, after it ran: asked again, that passes; where nobody answers, it is unknown."""
    async with connected(healing__hold_timeout=1) as (upstream, _, client):
        upstream.inject(Answer(404, (("Content-Type", "text/plain"),), b"no such order", executes=True), tool="charge")
        upstream.inject(ping, rpc_method="ping")
        answer = await client.tool("charge")
        if isinstance(ping, Crash):
            assert answer.error["data"] == {"reason": "outcome_unknown"}
        else:
            assert (answer.status, answer.body) == (404, b"no such order")
        assert len(upstream.ledger.executions("charge")) == 1


async def test_a_hint_of_one_server_allows_nothing_on_the_next() -> None:
    """A tool that declared itself harmless runs once on another version, which has declared nothing yet."""
    async with connected(answers=Form.JSON) as (upstream, _, client):
        await client.call("tools/list")
        await upstream.restart(server_version="2.0")
        upstream.inject(ResetAfterExecution(), tool="put", times=None, skip=1)  # the first one meets the loss
        answer = await client.tool("put", key="k", value="v")
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert len(upstream.ledger.executions("put")) == 1


# -- signatures of the operator ---------------------------------------------------------------------------------------

SAID = Answer(400, (("Content-Type", "text/plain"),), b"no such conversation, sorry")


@pytest.mark.parametrize("status", [400, 403, 429])
async def test_an_operators_signature_is_a_row_like_any_other(status: int) -> None:
    """It heals the session, and counts for the ping as well, whatever the status means elsewhere."""
    row = {"name": "my-server", "status": status, "text": "no such conversation, sorry"}
    async with connected(healing__signatures=json.dumps([row])) as (upstream, sidecar, client):
        said = Answer(status, SAID.headers, SAID.body)
        upstream.inject(said, tool="charge")
        upstream.inject(said, rpc_method="ping")
        answer = await client.tool("charge")
        assert [fact.signature for fact in sidecar.of(SessionLost)] == ["my-server"]
        assert outcomes(sidecar) == [HealOutcome.HEALED]
        assert answer.text == "charged 1"
        assert (await client.tool("charge")).text == "charged 1"


async def test_what_no_signature_knows_passes() -> None:
    """Without the operator's row the same answer costs a ping, and passes."""
    async with connected() as (upstream, _, client):
        upstream.inject(SAID, tool="charge")
        answer = await client.tool("charge")
        assert (answer.status, answer.body) == (400, SAID.body)
        assert [arrival.rpc_methods for arrival in upstream.ledger.arrivals[3:]] == [("ping",)]


async def test_a_heal_that_another_process_was_quicker_with() -> None:
    """What the store says of it may be learnt while a heal is under way: that one's session stands, and ours is ended."""
    async with connected() as (upstream, sidecar, client), McpClient(upstream.url) as other:
        (session,) = sidecar.services.sessions.table
        upstream.forget()
        planted = upstream.inject(STALLED, rpc_method="initialize")
        call = asyncio.create_task(client.tool("charge"))
        await eventually(lambda: planted.hits)
        await other.initialize()
        there = UpstreamSessionId(other.session_id or "")
        session.record = session.record.standing_at(Instance(session.instance, there, "word"))
        session.follow()
        upstream.release()
        assert (await call).text == "charged 1"
        assert [ran.session_id for ran in upstream.ledger.executions("charge")] == [there]
        await eventually(lambda: [*upstream.sessions] == [there])
        assert sidecar.of(SidecarFault) == []
