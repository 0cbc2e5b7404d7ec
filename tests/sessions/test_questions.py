"""Questions of the server: those that died with it are cancelled, and no answer ever meets another question."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcp_sidecar.facts import DroppedKind, HintDropped, MessageDropped, SidecarFault
from mcp_sidecar.healing.questions import MAX_QUESTIONS
from tests.support.behaviour import Answers
from tests.support.client import McpClient, Stream
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

Scene = tuple[FakeUpstream, WatchedSidecar, McpClient]

ELICIT = "elicitation/create"
FORM = {"message": "Go on?", "requestedSchema": {"type": "object", "properties": {}}}
CANCELLED = "notifications/cancelled"
ASK = {"name": "ask", "arguments": {"kind": "elicitation"}}


@asynccontextmanager
async def scene(behaviour: dict[str, Any] | None = None, **settings: object) -> AsyncIterator[Scene]:
    """A client in a session."""
    async with (
        FakeUpstream(**(behaviour or {})) as upstream,
        running_sidecar(upstream.url, **settings) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client
        assert sidecar.of(SidecarFault) == []


async def attached(upstream: FakeUpstream) -> None:
    await eventually(lambda: any(session.get_streams_open for session in upstream.sessions.values()))


async def following(stream: Stream, method: str) -> dict[str, Any]:
    """The next message of this method; what comes before it is of no interest."""
    while (message := await stream.next_message()) is not None:
        if message.get("method") == method:
            return message
    raise AssertionError(f"no {method}")


def asking(upstream: FakeUpstream, params: dict[str, Any] | None = None) -> asyncio.Task[Any]:
    """The newest session asks its client something on the listening stream."""
    return asyncio.create_task(upstream.ask(list(upstream.sessions)[-1], ELICIT, params or FORM))


def dropped(sidecar: WatchedSidecar) -> list[DroppedKind]:
    return [fact.kind for fact in sidecar.of(MessageDropped)]


async def test_a_question_open_during_a_restart_is_cancelled() -> None:
    """No dialog stays open for a dead server, a late answer goes nowhere, and the new question gets its own answer."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        dead = asking(upstream)
        first = await following(stream, ELICIT)
        await upstream.restart()
        assert (await client.call("ping")).result == {}
        assert (await following(stream, CANCELLED))["params"]["requestId"] == first["id"]
        await attached(upstream)
        living = asking(upstream)
        second = await following(stream, ELICIT)
        assert second["id"] != first["id"]
        assert (await client.respond(first["id"], {"action": "accept", "content": {"late": True}})).status == 202
        assert dropped(sidecar) == [DroppedKind.RESPONSE]
        assert not living.done()
        assert (await client.respond(second["id"], {"action": "decline"})).status == 202
        answer = await living
        assert (answer["id"], answer["result"]) == (0, {"action": "decline"})  # the very id of the dead question
        assert [(reply.process, reply.expected) for reply in upstream.ledger.replies] == [(2, True)]
        dead.cancel()


async def test_each_generation_has_its_own_questions() -> None:
    """Every question that a restart meets is cancelled under the id that the client saw, once."""
    async with scene() as (upstream, _, client), await client.get_stream() as stream:
        seen = []
        for _ in range(4):
            await attached(upstream)
            task = asking(upstream)
            question = await following(stream, ELICIT)
            await upstream.restart()
            await client.call("ping")
            assert (await following(stream, CANCELLED))["params"]["requestId"] == question["id"]
            seen.append(str(question["id"]))
            task.cancel()
        assert len(set(seen)) == len(seen)
        await attached(upstream)
        upstream.notify("notifications/last")
        message = await stream.next_message()
        assert message is not None
        assert message["method"] == "notifications/last"


@pytest.mark.parametrize("generation", [1, 2])
async def test_an_answered_question_is_not_cancelled(generation: int) -> None:
    """Nor one that the server has given up itself."""
    async with scene() as (upstream, _, client), await client.get_stream() as stream:
        if generation == 2:
            await upstream.restart()
            await client.call("ping")
        await attached(upstream)
        living = asking(upstream)
        await client.respond((await following(stream, ELICIT))["id"], {"action": "accept"})
        await living
        given_up = asking(upstream)
        question = await following(stream, ELICIT)
        upstream.notify(CANCELLED, {"requestId": 1})
        assert (await following(stream, CANCELLED))["params"]["requestId"] == question["id"]
        await upstream.restart()
        await client.call("ping")
        await attached(upstream)
        upstream.notify("notifications/last")
        message = await stream.next_message()
        assert message is not None
        assert message["method"] == "notifications/last"
        given_up.cancel()


async def test_an_answer_that_meets_the_loss_itself() -> None:
    """It is dropped, and its question is over for the client: nothing is cancelled."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        dead = asking(upstream)
        question = await following(stream, ELICIT)
        upstream.become(get_streams=False)  # so that the answer is the first to notice
        await upstream.restart()
        assert (await client.respond(question["id"], {"action": "accept"})).status == 202
        assert (await client.call("ping")).messages[0].get("method") != CANCELLED
        assert dropped(sidecar) == [DroppedKind.RESPONSE]
        assert upstream.ledger.replies == []
        dead.cancel()


async def test_a_question_on_the_stream_of_a_call() -> None:
    """It dies with the call; without a listening stream the client learns it ahead of the next answer."""
    async with scene({"answers": Answers.SSE}) as (upstream, sidecar, client):
        async with await client.open_call("tools/call", ASK, id=7) as stream:
            question = await following(stream, ELICIT)
            await upstream.restart()
            end = await stream.next_message()
            assert end is not None
            assert (end["id"], end["error"]["data"]) == (7, {"reason": "outcome_unknown"})
        answer = await client.call("ping")
        cancelled = [message for message in answer.messages if message.get("method") == CANCELLED]
        assert [message["params"]["requestId"] for message in cancelled] == [question["id"]]
        assert sidecar.of(HintDropped) == []
        async with await client.open_call("tools/call", ASK, id=8) as stream:
            second = await following(stream, ELICIT)
            assert (await client.respond(question["id"], {"action": "accept"})).status == 202
            assert (await client.respond(second["id"], {"action": "decline"})).status == 202
            end = await stream.next_message()
            assert end is not None
            assert end["result"]["content"][0]["text"] == "the client said ['action']"
        assert [reply.message["result"] for reply in upstream.ledger.replies] == [{"action": "decline"}]


async def test_a_large_question() -> None:
    """It is cancelled like any other, and its large answer settles it."""
    async with scene(limits__max_buffered_answer="64KiB") as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        large = {**FORM, "message": "x" * 200_000}
        dead = [asking(upstream, large), asking(upstream, large)]
        first, second = await following(stream, ELICIT), await following(stream, ELICIT)
        await client.respond(first["id"], {"action": "accept", "content": {"text": "y" * 200_000}})
        await dead[0]
        await upstream.restart()
        await client.call("ping")
        assert (await following(stream, CANCELLED))["params"]["requestId"] == second["id"]
        await attached(upstream)
        upstream.notify("notifications/last")
        message = await stream.next_message()
        assert message is not None
        assert message["method"] == "notifications/last"
        dead[1].cancel()


async def test_a_session_that_is_forgotten_without_a_restart() -> None:
    """The process lives on, its questions of before are dead all the same."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        dead = asking(upstream)
        question = await following(stream, ELICIT)
        upstream.forget()
        await client.call("ping")
        assert (await following(stream, CANCELLED))["params"]["requestId"] == question["id"]
        assert (await client.respond(question["id"], {"action": "accept"})).status == 202
        assert dropped(sidecar) == [DroppedKind.RESPONSE]
        assert upstream.ledger.replies == []
        dead.cancel()


# -- progress and cancellation by the client ---------------------------------------------------------------------------


def progress(token: object, done: int = 1) -> dict[str, Any]:
    return {"progressToken": token, "progress": done}


async def test_progress_goes_only_to_the_question_that_asked_for_it() -> None:
    """Its token is the upstream's own again; one of an earlier upstream session goes nowhere and is counted."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        asked = {**FORM, "_meta": {"progressToken": 5}}
        await attached(upstream)
        dead = asking(upstream, asked)
        first = await following(stream, ELICIT)
        assert first["params"]["_meta"]["progressToken"] == 5
        assert (await client.notify("notifications/progress", progress(5))).status == 202
        await upstream.restart()
        await client.call("ping")
        await attached(upstream)
        living = asking(upstream, asked)
        second = await following(stream, ELICIT)
        token = second["params"]["_meta"]["progressToken"]
        assert token != 5
        assert (await client.notify("notifications/progress", progress(5, 2))).status == 202
        assert dropped(sidecar) == [DroppedKind.NOTIFICATION]
        assert (await client.notify("notifications/progress", progress(token, 3))).status == 202
        await client.respond(second["id"], {"action": "accept"})
        await living
        seen = [
            (execution.process, execution.arguments)
            for execution in upstream.ledger.executions("notifications/progress")
        ]
        assert seen == [(1, progress(5)), (2, progress(5, 3))]
        dead.cancel()


async def test_a_cancellation_of_another_generations_id_goes_nowhere() -> None:
    """What bears the mark of an earlier upstream session means nothing to the new one; the client's own ids pass."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        for _ in range(2):
            await upstream.restart()
            await client.call("ping")
            await attached(upstream)
            question = asking(upstream)
            seen = await following(stream, ELICIT)
            question.cancel()
        await upstream.restart()
        await client.call("ping")
        assert (await client.notify(CANCELLED, {"requestId": seen["id"]})).status == 202
        assert dropped(sidecar) == [DroppedKind.NOTIFICATION]
        assert (await client.notify(CANCELLED, {"requestId": 4711})).status == 202
        passed = [execution.arguments for execution in upstream.ledger.executions(CANCELLED)]
        assert passed == [{"requestId": 4711}]


# -- too many ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_no_server_can_ask_without_end() -> None:
    """What is remembered is bounded; every question still reaches the client."""
    count = 3 * MAX_QUESTIONS
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        for n in range(count):
            upstream.push({"jsonrpc": "2.0", "id": n, "method": "ping"})
        for n in range(count):
            message = await stream.next_message()
            assert message is not None
            assert message["id"] == n
        (session,) = sidecar.services.sessions.table
        assert len(session.talk.questions or ()) == MAX_QUESTIONS
        await upstream.restart()
        await client.call("ping")
        cancelled = [(await following(stream, CANCELLED))["params"]["requestId"] for _ in range(MAX_QUESTIONS)]
        assert cancelled == list(range(count - MAX_QUESTIONS, count))
        assert len(session.talk.questions or ()) == 0
