"""What a plain request costs on the lane, and what it costs to hand one over, counted and not timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_sidecar.sessions.stores.keys import new_key
from tests.support.in_memory import answered, posted, through

CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"%b"}}}'
RESULT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"%b"}],"isError":false}}'
ERROR = b'{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"no such tool"}}'
EVENT = b"event: message\ndata: %b\n\n"


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        pytest.param(answered(RESULT % (b"x" * 500)), 250, id="JSON"),
        pytest.param(answered(EVENT % (RESULT % (b"x" * 500)), "text/event-stream"), 290, id="a short stream"),
    ],
)
async def test_a_plain_request_is_cheap(answer: bytes, calls: int) -> None:
    """No task, no timer, one write for the whole answer, and a bounded number of function calls: it takes the lane."""
    async with through() as way:
        request = posted(CALL % (b"a" * 200))
        for _ in range(3):  # what is learned once
            await way.request(request, answer)
        spent = await way.spent_on(request, answer)
        assert (spent.writes, spent.tasks, spent.timers) == (1, 0, 0)
        assert spent.calls <= calls


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        pytest.param(answered(ERROR), 950, id="an error, handed over"),
        pytest.param(answered(b"id: 1\n" + EVENT % RESULT, "text/event-stream"), 1085, id="an event id, handed over"),
    ],
)
async def test_a_hand_over_costs_no_second_request(answer: bytes, calls: int) -> None:
    """Where the lane does not pass the answer it has cost a look at the request and at the answer, and nothing else."""
    async with through() as way:
        request = posted(CALL % (b"a" * 200))
        for _ in range(3):
            await way.request(request, answer)
        spent = await way.spent_on(request, answer)
        assert (spent.writes, spent.tasks, spent.timers) == (1, 0, 0)
        assert spent.calls <= calls, spent.calls


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(answered(RESULT % (b"x" * 500)), id="JSON"),
        pytest.param(answered(EVENT % (RESULT % (b"x" * 500)), "text/event-stream"), id="a short stream"),
    ],
)
async def test_a_store_costs_a_plain_request_next_to_nothing(answer: bytes, tmp_path: Path) -> None:
    """A session in memory asks no store: at most 3 % more function calls, and 15 % where ids are tokens; no task, no timer."""
    spent = {}
    for store in ("memory:", f"sqlite:{tmp_path}/state/s.db", "sealed:"):
        async with through(STORE=store, SESSIONS__KEY=new_key()) as way:
            request = posted(CALL % (b"a" * 200), session_id=way.session_id)
            for _ in range(3):
                await way.request(request, answer)
            now = spent[store.partition(":")[0]] = await way.spent_on(request, answer)
            assert (now.writes, now.tasks, now.timers) == (1, 0, 0)
    assert spent["sqlite"].calls <= spent["memory"].calls * 1.03
    assert spent["sealed"].calls <= spent["memory"].calls * 1.15
