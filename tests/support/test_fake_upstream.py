"""The fake upstream behaves like a server and misbehaves as promised; its ledger tells the truth about both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest

from tests.support.behaviour import MODERN, Answers, EarlyRequest, Priming, SessionMode
from tests.support.client import ACCEPT, McpClient, NoAnswer, raw_exchange, raw_post
from tests.support.dialects import DIALECTS, Mint
from tests.support.endpoint import Outgoing
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import (
    Answer,
    Break,
    CloseBeforeHeaders,
    Crash,
    CutStream,
    EndStream,
    Fault,
    GarbageHeaders,
    HugeHeaders,
    IngressPage,
    Refuse,
    ResetAfterExecution,
    ResetBeforeExecution,
    Router,
    RoutePage,
    SlowHeaders,
    Stacked,
    Stall,
    StallAt,
    TruncateJson,
)


class Connect(Protocol):
    """Starts an upstream with this behaviour and a client with an open session."""

    def __call__(self, **behaviour: Any) -> Awaitable[tuple[FakeUpstream, McpClient]]: ...


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def connected(**behaviour: Any) -> tuple[FakeUpstream, McpClient]:
            upstream = await stack.enter_async_context(FakeUpstream(**behaviour))
            client = await stack.enter_async_context(McpClient(upstream.url))
            assert (await client.initialize()).status == 200
            return upstream, client

        yield connected


EITHER_FORM = pytest.mark.parametrize("answers", [pytest.param(form, id=form.value) for form in Answers])


class TestServer:
    @EITHER_FORM
    async def test_a_session_serves_tools(self, connect: Connect, answers: Answers) -> None:
        """initialize mints an id that every later answer echoes, and a tool runs exactly once per call."""
        upstream, client = await connect(answers=answers)
        answer = await client.tool("echo", text="hi")
        assert (answer.status, answer.text) == (200, "hi")
        assert answer.content_type == {"json": "application/json", "sse": "text/event-stream"}[answers.value]
        assert set(client.seen_session_ids) == {client.session_id} == set(upstream.sessions)
        (execution,) = upstream.ledger.executions("echo")
        assert (execution.finished, execution.answer_sent, execution.arguments) == (True, True, {"text": "hi"})
