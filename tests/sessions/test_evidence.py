"""What proves that an unsafe call did not run, and what only looks like it: every order of events in which a tool ran."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mcp_sidecar.facts import RefusalAsked
from tests.sessions.test_identity import count_anew
from tests.support.client import Answer as Seen
from tests.support.dialects import JSON, TEXT_UTF8, Dialect, Mint, Said
from tests.support.faults import AS_USUAL, Answer, CutStream, ResetBeforeExecution, Stage
from tests.support.scene import connected
from tests.support.waiting import eventually

EVENTS = "text/event-stream"
GONE_TO_REQUEST = '{"jsonrpc":"2.0","error":{"code":-32000,"message":"This session went away"},"id":{ID}}'
GONE_TO_NOBODY = GONE_TO_REQUEST.replace("{ID}", "null")


def dialect(body: str, status: int = 200, content_type: str = EVENTS) -> Dialect:
    return Dialect(name="gone", servers="nobody's", post=Said(status, body, content_type))


def event(data: str) -> str:
    return f"event: message\ndata: {data}\n\n"


@dataclass(frozen=True, slots=True)
class RunsAndSays:
    """The tool runs; before its answer goes out something happens; the answer is written by hand."""

    answer: Answer
    meanwhile: Callable[[], object]
    executes: bool = True

    async def play(self, stage: Stage) -> None:
        await stage.run()
        self.meanwhile()
        await self.answer.play(stage)


@dataclass(frozen=True, slots=True)
class Before:
    """Something happens just before the request is looked at."""

    happens: Callable[[], object]
    executes: bool = True

    async def play(self, stage: Stage) -> None:
        self.happens()
        await stage.serve(stage.wire, AS_USUAL)


def reason_of(answer: Seen) -> str:
    return str(answer.error["data"]["reason"])


# -- what the stream of a call has brought ----------------------------------------------------------------------------

PROGRESS = '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"p","progress":1}}'
LOGGED = '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"begun"}}'


@pytest.mark.parametrize("said_first", [PROGRESS, LOGGED], ids=["progress", "a log message"])
async def test_a_stream_that_has_said_something_was_of_a_call_that_ran(said_first: str) -> None:
    """A session that goes away under a running tool: its refusal in the server's own words is no proof."""
    async with connected(dialect=dialect(event(GONE_TO_REQUEST))) as (upstream, _, client):
        body = event(said_first) + event(GONE_TO_REQUEST.replace("{ID}", '"mine"'))
        said = Answer(200, (("Content-Type", EVENTS),), body.encode())
        upstream.inject(RunsAndSays(said, upstream.forget), tool="charge")
        answer = await client.call(
            "tools/call", {"name": "charge", "arguments": {}, "_meta": {"progressToken": "p"}}, id="mine"
        )
        assert len(upstream.ledger.executions("charge")) == 1
        assert reason_of(answer) == "outcome_unknown"


async def test_what_a_resumed_stream_is_refused_with_says_nothing_of_the_call() -> None:
    """The tool ran, its stream broke behind an event id, and the new process refuses the resume on a stream of its own."""
    said = event(GONE_TO_NOBODY)
    async with connected(dialect=dialect(said), event_store=True) as (upstream, _, client):
        upstream.inject(CutStream(after_events=1, event_ids=True), tool="charge")
        upstream.inject(Before(upstream.forget), http_method="GET")
        answer = await client.tool("charge")
        assert len(upstream.ledger.executions("charge")) == 1
        assert reason_of(answer) == "outcome_unknown"


# -- whose words they are ---------------------------------------------------------------------------------------------


async def test_an_error_under_the_calls_own_id_is_not_what_a_server_says_to_nobody() -> None:
    """The tool ran into the end of its session; to a ping the server says the same, but under no id."""
    async with connected(dialect=dialect(GONE_TO_NOBODY, content_type=JSON)) as (upstream, _, client):
        body = GONE_TO_REQUEST.replace("{ID}", '"mine"').encode()
        said = Answer(200, (("Content-Type", JSON),), body)
        upstream.inject(RunsAndSays(said, upstream.forget), tool="charge")
        answer = await client.call("tools/call", {"name": "charge", "arguments": {}}, id="mine")
        assert len(upstream.ledger.executions("charge")) == 1
        assert reason_of(answer) == "outcome_unknown"


# -- whom a late ping asks --------------------------------------------------------------------------------------------


async def test_who_asks_again_asks_about_the_session_that_refused() -> None:
    """The ping breaks, one of two calls has the session healed meanwhile: the other one is not asked about in the new one."""
    async with connected(dialect=dialect("No idea who you are", 418, TEXT_UTF8)) as (upstream, _, client):
        upstream.forget()
        upstream.inject(ResetBeforeExecution(), rpc_method="ping")
        answers = await asyncio.gather(*(client.tool("charge", n=n) for n in range(4)))
        assert [answer.status for answer in answers] == [200] * 4
        assert ["result" in answer.response for answer in answers] == [True] * 4
        assert len(upstream.ledger.executions("charge")) == 4
        assert len(upstream.ledger.initializes) == 2


@dataclass(frozen=True, slots=True)
class SaidLate:
    """An answer that is written and on its way for as long as ``upstream.release()`` is not called."""

    answer: Answer
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        await stage.released.wait()
        await self.answer.play(stage)


async def test_an_id_that_was_minted_again_is_not_asked_about_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session was healed and got its old id once more: that one lives, and the late refusal was of the one before."""
    count_anew(monkeypatch)
    async with connected(mint=Mint.COUNTER) as (upstream, _, client):
        await client.call("tools/list")
        said = Answer(
            404,
            (("Content-Type", JSON),),
            b'{"jsonrpc":"2.0","error":{"code":-32600,"message":"Session not found"},"id":null}',
        )
        planted = upstream.inject(SaidLate(said), tool="charge")
        late = asyncio.create_task(client.tool("charge", note="x" * 70_000))  # too large for the express lane
        await eventually(lambda: planted.hits)
        upstream.forget()
        count_anew(monkeypatch)
        assert (await client.tool("echo", text="on")).text == "on"
        upstream.release()
        assert reason_of(await late) == "outcome_unknown"
        assert [*upstream.sessions] == [client.session_id]
        assert upstream.ledger.executions("charge") == []


# -- how long a finding counts ----------------------------------------------------------------------------------------


async def test_what_a_living_session_said_counts_for_nothing_once_it_is_lost() -> None:
    """A tool says it, and the session lives; within the minute the server says the same, since it has lost the session."""
    async with connected(dialect=dialect("No idea who you are", 418, TEXT_UTF8)) as (upstream, _, client):
        said = Answer(418, (("Content-Type", TEXT_UTF8),), b"No idea who you are")
        upstream.inject(RunsAndSays(said, lambda: None), tool="charge")
        assert (await client.tool("charge")).status == 418
        upstream.forget()
        other = Answer(409, (("Content-Type", TEXT_UTF8),), b"Who is that?")
        upstream.inject(other, rpc_method="tools/list")
        assert "result" in (await client.call("tools/list")).response
        upstream.forget()
        assert (await client.tool("charge")).text == "charged 1"


async def test_what_follows_the_answer_on_its_stream_is_no_refusal() -> None:
    """The call is answered; that its session goes away behind that is the next one's loss."""
    async with connected(dialect=dialect(event(GONE_TO_NOBODY))) as (upstream, sidecar, client):
        await client.call("tools/list")
        result = '{"jsonrpc":"2.0","id":"mine","result":{"content":[]}}'
        said = Answer(200, (("Content-Type", EVENTS),), (event(result) + event(GONE_TO_NOBODY)).encode())
        upstream.inject(RunsAndSays(said, upstream.forget), tool="echo")
        answer = await client.call("tools/call", {"name": "echo", "arguments": {}}, id="mine")
        assert [message.get("id") for message in answer.messages] == ["mine", None]
        assert len(upstream.ledger.executions("echo")) == 1
        assert sidecar.of(RefusalAsked) == []


async def test_a_call_that_has_asked_its_client_is_not_begun_anew_by_a_refusal() -> None:
    """A harmless call may run twice, but not put its question twice: it ends with its error, and the session is healed."""
    async with connected(dialect=dialect(event(GONE_TO_REQUEST))) as (upstream, _, client):
        await client.call("tools/list")
        question = '{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{"message":"Go on?"}}'
        body = event(question) + event(GONE_TO_REQUEST.replace("{ID}", '"mine"'))
        upstream.inject(
            RunsAndSays(Answer(200, (("Content-Type", EVENTS),), body.encode()), upstream.forget), tool="echo"
        )
        answer = await client.call("tools/call", {"name": "echo", "arguments": {}}, id="mine")
        assert reason_of(answer) == "outcome_unknown"
        assert len(upstream.ledger.executions("echo")) == 1
        assert len(upstream.ledger.initializes) == 2
