"""After a heal the client may be told that the server's in-memory state is new: in its log, or in a tool result."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from mcp_sidecar.facts import HealEnded, HintDropped, HintKind
from tests.support.behaviour import Answers
from tests.support.client import Answer, McpClient
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import ResetAfterExecution
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

TEXT: Final = "The MCP server restarted or forgot this session: its in-memory state is new."
MESSAGE: Final = {
    "jsonrpc": "2.0",
    "method": "notifications/message",
    "params": {"level": "warning", "logger": "mcp-sidecar", "data": TEXT},
}
BLOCK: Final = {"type": "text", "text": TEXT}

ANSWERS = pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)


def blocks(answer: Answer) -> list[Any]:
    """The blocks of a tool result that are ours."""
    content: list[Any] = answer.result["content"]
    return [block for block in content if block == BLOCK]


async def set_level(client: McpClient, level: str) -> None:
    assert "result" in (await client.call("logging/setLevel", {"level": level})).response


# -- in the log -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announce", ["log", "result"])
async def test_a_client_that_reads_warnings_is_told_on_its_stream(announce: str) -> None:
    """One message per heal on the open stream, before anything else that the new server says."""
    async with connected(healing__announce=announce) as (upstream, sidecar, client):
        await set_level(client, "info")
        async with await client.get_stream() as stream:
            for round_ in (1, 2):
                await upstream.restart()
                await client.call("ping")
                assert await stream.next_message() == MESSAGE
                upstream.notify("notifications/marker", {"round": round_})
                marker = await stream.next_message()
                assert marker is not None and marker["params"] == {"round": round_}
        assert not sidecar.of(HintDropped)


async def test_it_goes_ahead_of_a_replayed_answer_that_is_a_stream() -> None:
    """Without a stream of its own the client finds the message in front of its answer; not in the next one."""
    async with connected(answers=Answers.SSE) as (upstream, sidecar, client):
        await set_level(client, "debug")
        await upstream.restart()
        first, second = await client.tool("echo", text="one"), await client.tool("echo", text="two")
        assert first.messages[0] == MESSAGE
        assert [len(first.messages), len(second.messages)] == [2, 1]
        assert first.text == "one"
        assert not sidecar.of(HintDropped)


async def test_where_nothing_can_carry_it_it_is_dropped() -> None:
    """A JSON answer holds one message and no other; the drop is counted."""
    async with connected(answers=Answers.JSON) as (upstream, sidecar, client):
        await set_level(client, "debug")
        await upstream.restart()
        answer = await client.tool("echo", text="one")
        assert [message.get("id") for message in answer.messages] == [answer.response["id"]]
        assert [fact.kind for fact in sidecar.of(HintDropped)] == [HintKind.MESSAGE]


@pytest.mark.parametrize(
    ("announce", "level"),
    [
        pytest.param("log", None, id="no level"),
        pytest.param("log", "error", id="errors only"),
        pytest.param("off", "debug", id="off"),
    ],
)
async def test_who_did_not_ask_is_not_told(announce: str, level: str | None) -> None:
    """Without a level that lets warnings through, and with ``off``, there is no message and nothing to drop."""
    async with connected(healing__announce=announce) as (upstream, sidecar, client):
        if level is not None:
            await set_level(client, level)
        async with await client.get_stream() as stream:
            await upstream.restart()
            answer = await client.tool("echo", text="again")
            assert answer.result["content"] == [{"type": "text", "text": "again"}]
            await eventually(lambda: any(session.get_streams_open for session in upstream.sessions.values()))
            upstream.notify("notifications/marker")
            marker = await stream.next_message()
            assert marker is not None and marker["method"] == "notifications/marker"
        assert not sidecar.of(HintDropped)


# -- in a result ------------------------------------------------------------------------------------------------------


@ANSWERS
async def test_the_first_result_after_each_heal_says_it(answers: Answers) -> None:
    """One block more, once per heal, and only after one."""
    async with connected(answers=answers, healing__announce="result") as (upstream, _, client):
        assert blocks(await client.tool("echo", text="before")) == []
        for _ in range(2):
            await upstream.restart()
            first, second = await client.tool("echo", text="one"), await client.tool("echo", text="two")
            assert first.result["content"] == [{"type": "text", "text": "one"}, BLOCK]
            assert second.result["content"] == [{"type": "text", "text": "two"}]
            assert first.result["isError"] is False
            assert "_meta" in first.result


@ANSWERS
@pytest.mark.parametrize(
    ("method", "params"),
    [
        pytest.param("tools/call", {"name": "fail"}, id="isError"),
        pytest.param("tools/call", {"name": "unknown"}, id="error"),
        pytest.param("tools/list", None, id="another method"),
        pytest.param("prompts/get", {"name": "greet"}, id="a prompt"),
        pytest.param("ping", None, id="ping"),
    ],
)
async def test_anything_else_passes_and_the_next_result_says_it(
    method: str, params: dict[str, Any] | None, answers: Answers
) -> None:
    """Never in an error; what cannot carry the block leaves it to the next result."""
    async with connected(answers=answers, healing__announce="result") as (upstream, sidecar, client):
        await upstream.restart()
        assert TEXT.encode() not in (await client.call(method, params)).body
        assert len(sidecar.of(HealEnded)) == 1
        assert blocks(await client.tool("echo", text="then")) == [BLOCK]
        assert blocks(await client.tool("echo", text="later")) == []


async def test_a_result_too_large_to_be_read_passes_untouched() -> None:
    """Beyond ``limits.max_buffered_answer`` nobody looks into an answer; the next one carries the block."""
    async with connected(answers=Answers.JSON, healing__announce="result", limits__max_buffered_answer="4KiB") as (
        upstream,
        _,
        client,
    ):
        await upstream.restart()
        large = await client.tool("big", bytes=10_000)
        assert large.result["content"] == [{"type": "text", "text": "x" * 10_000}]
        assert blocks(await client.tool("echo", text="then")) == [BLOCK]


@ANSWERS
async def test_one_of_many_results_says_it(answers: Answers) -> None:
    """Twenty calls meet one loss: the model hears of it once."""
    async with connected(answers=answers, healing__announce="result") as (upstream, _, client):
        await upstream.restart()
        results = await asyncio.gather(*(client.tool("charge", amount=n) for n in range(20)))
        assert sorted(len(blocks(result)) for result in results) == [0] * 19 + [1]
        assert [result.text for result in results] == [f"charged {n}" for n in range(20)]


@ANSWERS
async def test_a_batch_says_it_once(answers: Answers) -> None:
    """The first result of a batch that can carry it (2025-03-26)."""
    async with (
        FakeUpstream(answers=answers) as upstream,
        running_sidecar(upstream.url, healing__announce="result") as sidecar,
        McpClient(sidecar.url, version="2025-03-26") as client,
    ):
        await client.initialize()
        await upstream.restart()
        names = ["fail", "echo", "echo"]
        calls = [client.request("tools/call", {"name": name, "arguments": {"text": "t"}}) for name in names]
        answer = await client.batch(calls)
        assert [message["id"] for message in answer.messages] == [call["id"] for call in calls]
        assert [BLOCK in message["result"]["content"] for message in answer.messages] == [False, True, False]


@ANSWERS
async def test_a_call_sent_again_under_another_id_says_it(answers: Answers) -> None:
    """The client finds the block under its own id."""
    async with connected(answers=answers, healing__announce="result") as (upstream, _, client):
        await client.call("tools/list")
        await upstream.restart()
        await client.call("ping")
        upstream.inject(ResetAfterExecution(), tool="echo")
        answer = await client.tool("echo", text="again")
        assert answer.result["content"] == [{"type": "text", "text": "again"}, BLOCK]
        assert len(upstream.ledger.executions("echo")) == 2


@pytest.mark.parametrize("announce", ["off", "log"])
async def test_results_stay_as_they_are_unless_it_is_asked_for(announce: str) -> None:
    """Opt-in: by default the answer after a heal is the upstream's, to the byte."""
    async with connected(answers=Answers.JSON, healing__announce=announce) as (upstream, _, client):
        await upstream.restart()
        assert TEXT.encode() not in (await client.tool("echo", text="again")).body
        assert (await client.tool("echo", text="more")).result["content"] == [{"type": "text", "text": "more"}]
