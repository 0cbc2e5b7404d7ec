"""Situations from public reports: losses in words that no table knows, and words that mean something else.

Each has the outcome that its user should get, whatever the server says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from mcp_sidecar.facts import AskOutcome, HealEnded, RefusalAsked, SessionLost
from mcp_sidecar.verdicts.classify import Verdict
from tests.support.client import McpClient
from tests.support.corpus import Entry, entries
from tests.support.credentials import alice
from tests.support.dialects import JSON, TEXT_UTF8, Dialect, Said
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import (
    Answer,
    CloseBeforeHeaders,
    EndStream,
    Fault,
    GarbageHeaders,
    IngressPage,
    ResetAfterExecution,
    ResetBeforeExecution,
    RoutePage,
    TruncateJson,
)
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar

NOT_FOUND = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'
FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "content-encoding", "date", "keep-alive"})
JSON_TYPE = (("Content-Type", JSON),)
EVENTS = "text/event-stream"


def rpc_error(code: int, message: str, to: str = "null") -> str:
    return f'{{"jsonrpc":"2.0","error":{{"code":{code},"message":{json.dumps(message)}}},"id":{to}}}'


# -- losses -----------------------------------------------------------------------------------------------------------

LOSSES = {
    "the session-map example with a sentence of its own": Said(404, rpc_error(-32001, "MCP session not found"), JSON),
    "helidon: neither result nor error": Said(404, '{"jsonrpc":"2.0","id":{ID}}', JSON),
    "a replica without the session": Said(400, rpc_error(-32000, "initialize first, then send mcp-session-id"), JSON),
    "zilla: an error of nobody in a 200": Said(200, rpc_error(-32600, "Invalid Request"), JSON),
    "keryx: an event that is no JSON-RPC": Said(200, 'data: {"error":"Session not found"}\n\n', EVENTS),
    "keryx: the same as a 404": Said(404, 'data: {"error":"Session not found"}\n\n', EVENTS),
    "in general words, 400": Said(400, '{"error":"No session for that identifier"}', JSON),
    "in general words, 404": Said(404, "The session has gone away", TEXT_UTF8),
    "in general words, 410": Said(410, "Gone: unknown session {SID}", TEXT_UTF8),
    "as an event under the request's id": Said(
        200, "data: " + rpc_error(-32000, "Session is gone", "{ID}") + "\n\n", EVENTS
    ),
}


@pytest.mark.parametrize("said", [pytest.param(said, id=name) for name, said in LOSSES.items()])
async def test_a_loss_is_healed_in_whatever_words(said: Said) -> None:
    """Every call succeeds, an unsafe one has run once, one `initialize` for each loss, and no text is told."""
    plain = Said(400, "no", TEXT_UTF8)
    dialect = Dialect(name="reported", servers="reported", post=said, get=plain, delete=plain)
    async with connected(dialect=dialect) as (upstream, sidecar, client):
        await client.call("tools/list")
        for number, tool in enumerate(("charge", "echo"), 2):
            upstream.forget()
            answer = await client.tool(tool, text="again")
            assert (answer.status, "result" in answer.response) == (200, True), answer
            assert len(upstream.ledger.executions(tool)) == 1
            assert len(upstream.ledger.initializes) == number
        assert set(client.seen_session_ids) == {client.session_id}
        asked = sidecar.of(RefusalAsked)
        assert {(fact.outcome, fact.status) for fact in asked} == {(AskOutcome.LOST, said.status)}
        assert len(sidecar.of(SessionLost)) == 2


@pytest.mark.parametrize("said", [pytest.param(said, id=name) for name, said in LOSSES.items()])
async def test_the_same_words_about_something_else_pass(said: Said) -> None:
    """A tool that ran and says so itself ran once; its answer passes under the request's id, and the session lives."""
    async with connected() as (upstream, sidecar, client):
        filled = said.filled(sid=client.session_id or "", rpc_id=7)
        upstream.inject(Answer(said.status, tuple(filled.headers), filled.body, executes=True), tool="charge")
        answer = await client.call("tools/call", {"name": "charge", "arguments": {}}, id=7)
        assert answer.status == said.status
        assert len(upstream.ledger.executions("charge")) == 1
        if b'"jsonrpc"' in filled.body and b'"error"' in filled.body:
            assert answer.response["id"] == 7
        assert (await client.tool("echo", text="on")).text == "on"
        assert len(upstream.ledger.initializes) == 1
        assert sidecar.of(HealEnded) == []


@pytest.mark.parametrize("row", [False, True], ids=["as it comes", "with an operator's row"])
async def test_a_403_about_a_principal_passes_unless_an_operator_says_more(row: bool) -> None:
    """No ping, no `initialize`: 403 is a decision about somebody, and only an operator knows that it is another one."""
    said = Said(403, rpc_error(-32001, "principal mismatch"), JSON)
    rows = [{"name": "gateway-403", "status": 403, "text": "principal mismatch"}]
    settings = {"healing__signatures": json.dumps(rows)} if row else {}
    dialect = Dialect(name="gateway", servers="reported", post=said)
    async with connected(dialect=dialect, **settings) as (upstream, _, client):
        await client.call("tools/list")
        upstream.forget()
        answer = await client.tool("echo", text="again")
        assert answer.status == (200 if row else 403)
        assert len(upstream.ledger.initializes) == (2 if row else 1)
        assert upstream.ledger.count("ping") == 0


# -- what is none -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body"), [(404, b'{"detail":"Session not found"}'), (400, b"Invalid session ID"), (404, NOT_FOUND)]
)
async def test_an_application_has_sessions_of_its_own(status: int, body: bytes) -> None:
    """In the strongest words: the tool runs once, the answer passes, the session lives, and it is not asked about again."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(Answer(status, JSON_TYPE, body, executes=True), tool="charge", times=None)
        for number in range(1, 6):
            assert (await client.tool("charge")).status == status
            assert len(upstream.ledger.executions("charge")) == number
        assert upstream.ledger.count("ping") <= 4  # one, and on three other connections
        assert len(upstream.ledger.initializes) == 1
        assert sidecar.of(SessionLost) == []


async def test_a_harmless_tool_with_sessions_of_its_own_costs_one_heal() -> None:
    """Known words are quick: the first one heals at once; from then on they are known to mean something else here."""
    async with connected() as (upstream, _, client):
        await client.call("tools/list")
        body = b'{"detail":"Session not found"}'
        upstream.inject(Answer(404, JSON_TYPE, body, executes=True), tool="echo", times=None)
        for _ in range(5):
            answer = await client.tool("echo", text="x")
            assert (answer.status, answer.body) == (404, body)
        assert len(upstream.ledger.initializes) == 2
        assert len(upstream.ledger.executions("echo")) == 6


@pytest.mark.parametrize("status", [502, 504, 520])
async def test_a_gateways_page_is_waited_for_with_pings(status: int) -> None:
    """Five seconds of pages: a call that only reads has run four times at most, and succeeds."""
    async with connected() as (upstream, _, client):
        await client.call("tools/list")
        upstream.inject(IngressPage(status, executes=True), times=None)
        asked = asyncio.create_task(client.tool("echo", text="at last"))
        await asyncio.sleep(5)
        await upstream.clear()
        assert (await asked).text == "at last"
        assert len(upstream.ledger.executions("echo")) <= 4


@pytest.mark.parametrize("tool", ["echo", "charge"])
async def test_a_server_that_loses_every_new_session_is_given_up(tool: str) -> None:
    """Two heals for one call, then the 404, by which the client may start over."""
    async with connected() as (upstream, _, client):
        await client.call("tools/list")
        upstream.inject(Answer(404, JSON_TYPE, NOT_FOUND), times=None, tool=tool)
        upstream.inject(Answer(404, JSON_TYPE, NOT_FOUND), times=None, rpc_method="ping")
        answer = await client.tool(tool)
        assert (answer.status, answer.body) == (404, NOT_FOUND)
        assert len(upstream.ledger.initializes) == 3
        assert upstream.ledger.executions(tool) == []


# -- credentials ------------------------------------------------------------------------------------------------------


async def test_calls_that_always_get_401_cost_one_useless_initialize() -> None:
    """A server that lets anybody initialize: the refusal passes, whoever asks how often, and each credential tries once."""
    async with connected() as (upstream, _, client):
        await client.call("tools/list")
        upstream.inject(Answer(401, (), b"Unauthorized: Session not found"), rpc_method="tools/call", times=None)
        upstream.inject(Answer(401, (), b"Unauthorized: Session not found"), rpc_method="ping", times=None)
        for _ in range(5):
            assert (await client.tool("charge")).status == 401
            assert (await client.tool("echo")).status == 401
        assert len(upstream.ledger.initializes) == 2
        assert upstream.ledger.executions("charge") == []


async def test_each_credential_tries_once() -> None:
    """A token that was refreshed may be the better one: it is tried once as well, and then passes for what it is."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url, headers=alice()) as client,
    ):
        await client.initialize()
        for method in ("tools/call", "ping"):
            upstream.inject(Answer(401, (), b"Unauthorized: Session not found"), rpc_method=method, times=None)
        for tried in (2, 3, 4):
            for _ in range(4):
                assert (await client.tool("charge")).status == 401
            assert len(upstream.ledger.initializes) == tried
            client.headers = alice()
        assert upstream.ledger.executions("charge") == []


RECORDED = [entry for entry in entries() if entry.expect is Verdict.AUTH_FAILURE and entry.head is not None]


@pytest.mark.long
@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.id) for entry in RECORDED])
async def test_a_recorded_refusal_of_credentials_passes(entry: Entry) -> None:
    """Untouched, whoever else is asked: neither a ping nor an `initialize` follows, and nothing is taken for a loss."""
    async with connected() as (upstream, sidecar, client):
        status = entry.head.status if entry.head is not None else 0
        headers = tuple(pair for pair in entry.headers if pair[0].lower() not in FRAMING)
        upstream.inject(Answer(status, headers, entry.body), times=None)
        for tool in ("charge", "echo"):
            answer = await client.tool(tool)
            assert (answer.status, answer.body) == (status, entry.body)
            assert answer.headers.getall("WWW-Authenticate", []) == [
                value for name, value in headers if name.lower() == "www-authenticate"
            ]
        assert len(upstream.ledger.initializes) == 1
        assert upstream.ledger.count("ping") == 0
        assert sidecar.of(SessionLost) == []


@pytest.mark.parametrize("status", [401, 403])
async def test_a_challenge_is_never_asked_about(status: int) -> None:
    """It passes with all its headers, and neither a ping nor an `initialize` follows."""
    headers = (("WWW-Authenticate", 'Bearer realm="x"'), ("X-Kept", "1"))
    async with connected() as (upstream, _, client):
        upstream.inject(Answer(status, headers, b"no session, no service"), tool="charge")
        answer = await client.tool("charge")
        assert (answer.status, answer.headers["X-Kept"]) == (status, "1")
        assert (upstream.ledger.count("ping"), len(upstream.ledger.initializes)) == (0, 1)


# -- what asking costs ------------------------------------------------------------------------------------------------


async def test_the_strongest_words_cost_a_harmless_call_nothing_and_an_unsafe_one_a_ping() -> None:
    """Behind a restart: no request more than healing takes, and one small one where the call must not run twice."""
    async with connected() as (upstream, _, client):
        await client.call("tools/list")
        for process, (tool, pings) in enumerate((("echo", 0), ("charge", 1)), 2):
            await upstream.restart()
            assert (await client.tool(tool, text="x")).status == 200
            methods = [arrival.rpc_methods[0] for arrival in upstream.ledger.arrived(process=process)]
            expected = ["tools/call", *["ping"] * pings, "initialize", "notifications/initialized", "tools/call"]
            assert methods[: len(expected)] == expected


# -- bounds -----------------------------------------------------------------------------------------------------------

Outage = Callable[[FakeUpstream], None]


def lasting(fault: Fault) -> Outage:
    def plant(upstream: FakeUpstream) -> None:
        upstream.inject(fault, times=None)

    return plant


def lost_and(fault: Fault, *, rpc_method: str) -> Outage:
    def plant(upstream: FakeUpstream) -> None:
        upstream.forget()
        upstream.inject(fault, times=None, rpc_method=rpc_method)

    return plant


BUSY = Answer(503, JSON_TYPE, rpc_error(-32000, "Starting up").encode())
LATER = Answer(429, (("Retry-After", "1"),), b"slow down")
OUTAGES = {
    "gateway": lasting(IngressPage(502)),
    "gateway, ran": lasting(IngressPage(504, executes=True)),
    "gateway 503": lasting(IngressPage(503)),
    "route": lasting(RoutePage()),
    "busy": lasting(BUSY),
    "busy, with a pause": lasting(Answer(503, (*JSON_TYPE, ("Retry-After", "0")), BUSY.body)),
    "resets": lasting(ResetBeforeExecution()),
    "resets, ran": lasting(ResetAfterExecution()),
    "closed": lasting(CloseBeforeHeaders()),
    "no heads": lasting(GarbageHeaders()),
    "halves": lasting(TruncateJson()),
    "errors": lasting(Answer(500, (), b"Something has exploded")),
    "plain errors": lasting(Answer(500, (), b"Internal Server Error")),
    "ended streams": lasting(EndStream(0, event_ids=False)),
    "lost, and initialize is limited": lost_and(LATER, rpc_method="initialize"),
    "lost, and initialize is limited without a word": lost_and(Answer(429), rpc_method="initialize"),
    "lost, and initialize is busy": lost_and(BUSY, rpc_method="initialize"),
    "lost, and initialize is reset": lost_and(ResetBeforeExecution(), rpc_method="initialize"),
    "lost, and initialize meets a gateway": lost_and(IngressPage(502), rpc_method="initialize"),
    "lost, and initialize meets a 503": lost_and(IngressPage(503), rpc_method="initialize"),
    "lost, and initialize meets no route": lost_and(RoutePage(), rpc_method="initialize"),
    "lost, and initialize ends without a word": lost_and(EndStream(0, event_ids=False), rpc_method="initialize"),
    "lost, and initialized is limited": lost_and(LATER, rpc_method="notifications/initialized"),
    "lost, and initialized meets a gateway": lost_and(IngressPage(502), rpc_method="notifications/initialized"),
}


@pytest.mark.long
@pytest.mark.parametrize("plant", [pytest.param(plant, id=name) for name, plant in OUTAGES.items()])
@pytest.mark.parametrize("tool", ["echo", "charge"])
async def test_a_hold_makes_sixty_requests_at_most(plant: Outage, tool: str) -> None:
    """Whatever is wrong: for one waiting session, in fifteen seconds; then the client has a definite answer, never the 404."""
    async with connected() as (upstream, sidecar, client):
        await client.call("tools/list")
        before = len(upstream.ledger.arrivals)
        plant(upstream)
        answer = await client.tool(tool, text="x")
        assert answer.status == 200
        assert answer.error["data"]["reason"] in ("upstream_unavailable", "outcome_unknown")
        assert len(upstream.ledger.arrivals) - before <= 60
        assert len(upstream.ledger.executions(tool)) <= (4 if tool == "echo" else 1)
        assert len(sidecar.services.sessions.table) == 1
        await upstream.clear()
        assert (await client.tool("echo", text="on")).text == "on"


async def test_what_is_told_of_a_refusal_is_not_its_text() -> None:
    """Status, content type and JSON-RPC code, by which an operator may add a row."""
    async with connected() as (upstream, sidecar, client):
        body = rpc_error(-32099, "secret 42 of Alice").encode()
        upstream.inject(Answer(422, (("Content-Type", "application/json; charset=utf-8"),), body), tool="charge")
        await client.tool("charge")
        (fact,) = sidecar.of(RefusalAsked)
        assert (fact.outcome, fact.status, fact.content_type, fact.rpc_code) == (
            "alive",
            422,
            "application/json",
            -32099,
        )
        assert "Alice" not in repr(fact)


@pytest.mark.parametrize("mode", ["rewrite", "observe"])
async def test_only_mode_heal_asks(mode: str) -> None:
    """In the others what would be asked about passes, or gets the 404 where the words are known, and no ping goes."""
    async with connected(mode=mode) as (upstream, _, client):
        upstream.inject(Answer(422, JSON_TYPE, b'{"detail":"no such session"}'), tool="charge")
        assert (await client.tool("charge")).status == 422
        upstream.forget()
        assert (await client.tool("charge")).status == 404
        assert (upstream.ledger.count("ping"), len(upstream.ledger.initializes)) == (0, 1)
