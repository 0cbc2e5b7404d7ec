"""One POST and its answer: retries under new ids, bodies too large to keep, encoded bodies, clients that leave."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass
from typing import Any

import pytest

from mcp_sidecar.facts import DroppedKind, HealEnded, HealOutcome, MessageDropped
from tests.support.behaviour import Answers, SessionMode
from tests.support.client import McpClient, raw_exchange, raw_post
from tests.support.dialects import DIALECTS
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer as Says
from tests.support.faults import (
    CutStream,
    EndStream,
    Fault,
    ResetAfterExecution,
    ResetBeforeExecution,
    Stage,
    Stall,
    StallAt,
    TruncateJson,
)
from tests.support.ledger import Arrival
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

BIG = "x" * 200_000


def sent(arrival: Arrival) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(arrival.body)
    return message


# -- again in the same session ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)
@pytest.mark.parametrize("request_id", [7, "seven"], ids=["number", "text"])
async def test_a_retry_goes_under_new_ids(answers: Answers, request_id: int | str) -> None:
    """Inside one session no id is used twice: the retry has its own, and the client sees its old one."""
    async with connected(answers=answers) as (upstream, _, client):
        await client.call("tools/list")
        upstream.inject(ResetAfterExecution(), times=2, tool="echo")
        answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": "a"}}, id=request_id)
        assert (answer.text, answer.response["id"]) == ("a", request_id)
        ids = [sent(arrival)["id"] for arrival in upstream.ledger.arrived(tool="echo")]
        assert ids[0] == request_id
        assert len({json.dumps(each) for each in ids}) == 3
        assert len({arrival.session_id for arrival in upstream.ledger.arrived(tool="echo")}) == 1


async def test_a_harmless_request_is_not_sent_for_ever() -> None:
    """A request that breaks its server is given up after two retries."""
    async with connected() as (upstream, _, client):
        upstream.inject(ResetBeforeExecution(), times=None)
        answer = await client.call("ping", id=1)
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert upstream.ledger.count("ping") == 3


async def test_progress_of_a_retry_comes_under_the_old_token() -> None:
    """The retry has a new progress token, too; what it reports is mapped back, and so is its response."""
    async with connected() as (upstream, _, client):
        listed = {"tools": [{"name": "progress", "annotations": {"readOnlyHint": True}}]}
        upstream.inject(
            Says(
                200,
                (("Content-Type", "application/json"),),
                json.dumps({"jsonrpc": "2.0", "id": 1, "result": listed}).encode(),
            )
        )
        await client.call("tools/list", id=1)
        upstream.inject(ResetAfterExecution(), tool="progress")
        params = {"name": "progress", "arguments": {"steps": 2}, "_meta": {"progressToken": "mine"}}
        answer = await client.call("tools/call", params, id=5)
        assert [m["params"]["progressToken"] for m in answer.messages[:-1]] == ["mine", "mine"]
        assert answer.response["id"] == 5
        first, second = (sent(arrival) for arrival in upstream.ledger.arrived(tool="progress"))
        assert first["params"]["_meta"]["progressToken"] == "mine"
        assert second["params"]["_meta"]["progressToken"] not in ("mine", 5)


async def test_a_cancellation_reaches_the_retry() -> None:
    """``notifications/cancelled`` names the id under which the request is under way now."""
    async with connected() as (upstream, sidecar, client):
        await client.call("tools/list")
        upstream.inject(ResetBeforeExecution(), tool="slow_read")
        call = asyncio.create_task(client.call("tools/call", {"name": "slow_read"}, id=9))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow_read")) == 1)
        await client.notify("notifications/cancelled", {"requestId": 9})
        answer = await call
        assert (answer.error["message"], answer.response["id"]) == ("Request cancelled", 9)
        assert not any(session.progress.new_ids for session in sidecar.services.sessions.table)


async def test_ids_of_strangers_are_not_mixed_up() -> None:
    """On a server without sessions one client's cancellation never names another client's request."""
    async with (
        FakeUpstream(sessions=SessionMode.STATELESS) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as one,
        McpClient(sidecar.url) as other,
    ):
        upstream.inject(ResetBeforeExecution(), rpc_method="ping")
        upstream.inject(Stall(StallAt.BEFORE_HEADERS), rpc_method="ping")
        call = asyncio.create_task(one.call("ping", id=9))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("ping")) == 1)
        await other.notify("notifications/cancelled", {"requestId": 9})
        upstream.release()
        assert (await call).response["id"] == 9
        [cancelled] = upstream.ledger.arrived(rpc_method="notifications/cancelled")
        assert sent(cancelled)["params"]["requestId"] == 9


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}], ids=["too-large", "encoded"])
async def test_an_answer_that_cannot_be_mapped_back_is_not_passed(headers: dict[str, str]) -> None:
    """The client would wait for ever for an answer that came under the id of the retry."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"text": BIG}}).encode()
    async with connected(limits__max_buffered_answer="64KiB", limits__max_request_body="64KiB") as (
        upstream,
        _,
        client,
    ):
        upstream.inject(ResetAfterExecution(), rpc_method="ping")
        upstream.inject(Says(200, (("Content-Type", "application/json"), *headers.items()), body), rpc_method="ping")
        answer = await client.call("ping", id=1)
        assert (answer.response["id"], answer.error["data"]) == (1, {"reason": "outcome_unknown"})


# -- answers that break -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunked", "told"),
    [pytest.param(False, False, id="announced"), pytest.param(True, False, id="chunked")],
)
async def test_a_large_json_answer_that_breaks_is_cut(chunked: bool, told: bool) -> None:
    """Beyond ``max_buffered_answer`` it streams, and a broken one is never ended as if whole."""
    async with connected(answers=Answers.JSON, limits__max_buffered_answer="64KiB") as (upstream, _, client):
        upstream.inject(TruncateJson(100_000, chunked=chunked), tool="big")
        answer = await client.tool("big", bytes=200_000)
        assert (answer.status, answer.broken is None) == (200, told)
        whole = await client.tool("big", bytes=200_000)
        assert len(whole.text) == 200_000


@pytest.mark.parametrize("at", [100, 60_000], ids=["early", "late"])
async def test_a_small_json_answer_that_breaks_is_told(at: int) -> None:
    """Up to ``max_buffered_answer`` a broken answer is a definite error, and nothing of it is shown."""
    async with connected(answers=Answers.JSON, limits__max_buffered_answer="64KiB") as (upstream, _, client):
        upstream.inject(TruncateJson(at, chunked=True), tool="big")
        answer = await client.tool("big", bytes=60_000)
        assert answer.error["data"] == {"reason": "outcome_unknown"}


@pytest.mark.long
@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
async def test_a_refusal_that_breaks_is_understood_or_passed(dialect: str, chunked: bool) -> None:
    """Half of what a server says about a lost session is not its word: it passes as an error, and nothing runs."""
    async with connected(dialect=dialect) as (upstream, _, client):
        await upstream.restart()
        upstream.inject(TruncateJson(10, chunked=chunked), tool="charge")
        answer = await client.tool("charge")
        assert answer.broken is None
        is_healed = answer.status == 200 and "result" in answer.response
        assert answer.status == 200 or (answer.status >= 400 and len(answer.body) <= 10)
        assert len(upstream.ledger.executions("charge")) == is_healed


async def test_a_stream_that_stalls_is_told() -> None:
    """No byte for ``upstream.idle_timeout`` is a cut; what had come stays."""
    async with connected(upstream__idle_timeout=0.1) as (upstream, _, client):
        params = {"name": "progress", "arguments": {"steps": 1, "wait": True}, "_meta": {"progressToken": 1}}
        answer = await client.call("tools/call", params, id=3)
        assert [message.get("method") for message in answer.messages] == ["notifications/progress", None]
        assert (answer.response["id"], answer.error["data"]) == (3, {"reason": "outcome_unknown"})
        await upstream.ledger.wait_for(lambda ledger: ledger.arrived(tool="progress")[0].client_left)


async def test_a_name_that_is_not_known_is_an_upstream_that_is_away() -> None:
    """Nothing was sent: held, then the error with its own id."""
    async with (
        running_sidecar("http://nowhere.invalid:9000/mcp", healing__hold_timeout=0.05) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        answer = await client.call("tools/list", id=1)
        assert (answer.status, answer.response["id"]) == (200, 1)
        assert answer.error["data"] == {"reason": "upstream_unavailable"}


async def test_a_handshake_that_is_begun_anew_has_one_id() -> None:
    """A cut ``initialize`` stream has shown an id; the session is known under that one, and it heals."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        upstream.inject(CutStream(0, event_ids=False), rpc_method="initialize")
        await client.initialize()
        assert len(upstream.sessions) == 2
        assert (await client.tool("charge")).text == "charged 1"
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]


# -- large ------------------------------------------------------------------------------------------------------------


async def test_a_large_request_passes() -> None:
    """Up to ``limits.max_request_body`` a request is held whole."""
    async with connected() as (_, _, client):
        assert (await client.tool("echo", text=BIG)).text == BIG


async def test_a_large_request_of_a_lost_session_is_sent_again() -> None:
    """As any other: it runs once, in the new session."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        assert (await client.tool("charge", note=BIG)).text == "charged 1"
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]
        assert len(upstream.ledger.executions("charge")) == 1


async def test_a_large_request_is_held_while_the_upstream_is_away() -> None:
    """Nothing of it was sent: it is sent once the upstream is back."""
    async with connected() as (upstream, sidecar, client):
        await upstream.stop()
        call = asyncio.create_task(client.tool("charge", note=BIG))
        await eventually(lambda: len(sidecar.services.holds) == 1)
        await upstream.start()
        assert (await call).text == "charged 1"
        assert len(upstream.ledger.executions("charge")) == 1


ID_LAST = {"method": "tools/call", "params": {"name": "charge", "arguments": {"note": BIG}}, "jsonrpc": "2.0", "id": 77}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ResetAfterExecution(), id="reset"),
        pytest.param(CutStream(after_events=0, event_ids=False), id="stream-cut"),
        pytest.param(EndStream(after_events=0, event_ids=False), id="stream-ended"),
        pytest.param(Says(502, (), b"bad gateway"), id="gateway"),
    ],
)
async def test_a_large_request_that_breaks_is_told_under_its_id(fault: Fault) -> None:
    """Wherever in the message the id stands: some SDKs write it last."""
    async with connected() as (upstream, _, client):
        upstream.inject(fault, tool="charge")
        answer = await client.post(ID_LAST)
        assert (answer.status, answer.response["id"]) == (200, 77)
        assert answer.error["data"] == {"reason": "outcome_unknown"}


# -- too deep to be read ------------------------------------------------------------------------------------------------

DEEP = b'{"jsonrpc":"2.0","id":3,"method":"ping","params":{"a":%b}}' % (b"[" * 600 + b"]" * 600)


async def test_a_request_too_deep_to_be_read_passes() -> None:
    """What it is, the server says."""
    async with connected() as (upstream, _, client):
        answer = await client.post(DEEP)
        assert upstream.ledger.arrivals[-1].body == DEEP
        assert answer.status == upstream.ledger.arrivals[-1].answer_status


@pytest.mark.parametrize("is_healed", [False, True], ids=["lost", "healed before"])
async def test_a_request_too_deep_to_be_read_is_never_healed(is_healed: bool) -> None:
    """It may be an answer to a question of the session that is gone: the client has to start over."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        if is_healed:
            await client.call("ping")
        assert (await client.post(DEEP)).status == 404
        assert len(sidecar.of(HealEnded)) == is_healed


async def test_an_answer_too_deep_to_be_read_passes() -> None:
    """The client has it as it came, in JSON and on a stream."""
    body = DEEP.replace(b'"method":"ping","params"', b'"result"')
    stream = b"data: " + body + b"\n\n"
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        await client.call("ping")
        upstream.inject(Says(200, (("Content-Type", "application/json"),), body), rpc_method="ping")
        assert body in await raw_ping(sidecar.port, client)
        upstream.inject(Says(200, (("Content-Type", "text/event-stream"),), stream), rpc_method="ping")
        assert stream in await raw_ping(sidecar.port, client)


async def raw_ping(port: int, client: McpClient) -> bytes:
    """What a ping is answered with, not looked into."""
    request = raw_post(port, json.dumps(client.request("ping")).encode(), f"Mcp-Session-Id: {client.session_id}")
    return (await raw_exchange(port, request)).data


# -- encoded ----------------------------------------------------------------------------------------------------------


async def test_an_encoded_request_passes_unread() -> None:
    """Its bytes arrive as they are, with the header that says how to read them."""
    body = gzip.compress(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    async with connected() as (upstream, _, client):
        await client.post(body, headers={"Content-Encoding": "gzip"})
        arrival = upstream.ledger.arrivals[2]  # the server refuses it, which is asked about
        assert (arrival.body, arrival.header("content-encoding")) == (body, "gzip")


async def test_an_encoded_request_is_never_sent_twice_in_doubt() -> None:
    """What cannot be read may be unsafe, and its id is not known: 502."""
    body = gzip.compress(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    async with connected() as (upstream, _, client):
        before = len(upstream.ledger.arrivals)
        upstream.inject(ResetBeforeExecution())
        answer = await client.post(body, headers={"Content-Encoding": "gzip"})
        assert answer.status == 502
        assert len(upstream.ledger.arrivals) == before + 1


async def test_an_encoded_request_of_a_lost_session_is_replayed() -> None:
    """A proof that it did not run needs no look into it."""
    body = gzip.compress(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    async with connected() as (upstream, _, client):
        await upstream.restart()
        await client.post(body, headers={"Content-Encoding": "gzip"})
        assert [arrival.body == body for arrival in upstream.ledger.arrivals].count(True) == 2
        assert len(upstream.ledger.initializes) == 2


# -- clients that leave -----------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_closes_its_upstream_request() -> None:
    """The upstream learns at once that nobody waits any more; no cancellation is made up."""
    async with connected() as (upstream, _, client):
        call = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        call.cancel()
        await upstream.ledger.wait_for(lambda ledger: ledger.arrived(tool="slow")[0].client_left)
        assert upstream.ledger.count("notifications/cancelled") == 0


async def test_a_client_that_leaves_its_stream_closes_the_upstreams() -> None:
    """The same in the middle of an event stream."""
    async with connected() as (upstream, _, client):
        params = {"name": "progress", "arguments": {"steps": 1, "wait": True}, "_meta": {"progressToken": 1}}
        async with await client.open_call("tools/call", params) as stream:
            assert await stream.next_message() is not None
        await upstream.ledger.wait_for(lambda ledger: ledger.arrived(tool="progress")[0].client_left)


# -- what nobody waits for --------------------------------------------------------------------------------------------


async def test_an_unsafe_notification_that_broke_is_dropped_and_counted() -> None:
    """It may have arrived and must not arrive twice: 202, and the drop is told."""
    async with connected() as (upstream, sidecar, client):
        upstream.inject(ResetBeforeExecution())
        answer = await client.notify("notifications/progress", {"progressToken": 1, "progress": 1})
        assert (answer.status, answer.body) == (202, b"")
        assert [fact.kind for fact in sidecar.of(MessageDropped)] == [DroppedKind.NOTIFICATION]


@dataclass(frozen=True, slots=True)
class CutsAtOnce:
    """A stream whose head has come, and a comment; then nothing more."""

    executes: bool = False

    async def play(self, stage: Stage) -> None:
        await stage.wire.head(200, (("Content-Type", "text/event-stream"),), None)
        await stage.wire.body(b": hi\n\n")
        await stage.wire.close()


async def test_a_stream_for_unknown_ids_is_cut_where_it_breaks() -> None:
    """Where nobody knows who waits there is no error to send, but neither is the broken stream ended as if whole."""
    async with connected() as (upstream, _, client):
        coded = gzip.compress(json.dumps(client.request("tools/call", {"name": "charge"}, id=5)).encode())
        upstream.inject(CutsAtOnce(), http_method="POST")
        answer = await client.post(coded, headers={"Content-Encoding": "gzip"})
        assert answer.status == 200
        assert answer.broken is not None


# -- errors whose body does not come ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HalfAnError:
    """An error whose body breaks off, or gets stuck."""

    status: int
    stalls: bool
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        headers = (("Content-Type", "application/json"), ("WWW-Authenticate", "Bearer"))
        await stage.wire.head(self.status, headers, 100)
        await stage.wire.body(b'{"error":"in')
        await (stage.released.wait() if self.stalls else stage.wire.close())


@pytest.mark.parametrize("stalls", [False, True], ids=["breaks", "stalls"])
@pytest.mark.parametrize("status", [401, 403, 500])
async def test_an_error_is_passed_with_what_came_of_its_body(status: int, stalls: bool) -> None:
    """Its status and headers are the upstream's word: a challenge is not hidden because its body broke."""
    async with connected() as (upstream, _, client):
        upstream.inject(HalfAnError(status, stalls), tool="charge")
        answer = await client.tool("charge")
        assert (answer.status, answer.body, answer.broken) == (status, b'{"error":"in', None)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        upstream.release()


@pytest.mark.parametrize("method", ["POST", "DELETE", "GET"])
async def test_a_page_that_gets_stuck_is_judged_by_what_came(method: str) -> None:
    """Nobody waits for the rest of an ingress page."""
    async with connected(upstream__idle_timeout=60) as (upstream, _, client):
        upstream.inject(HalfAnError(503, stalls=True), http_method=method)
        async with asyncio.timeout(10):
            if method == "POST":
                assert (await client.tool("charge")).error["data"] == {"reason": "outcome_unknown"}
            elif method == "DELETE":
                assert (await client.delete()).status == 200
            else:
                stream = await client.get_stream()
                assert stream.status == 200
                stream.close()
        upstream.release()
