"""What a request costs, counted and not timed, so that a slip shows on any machine.

The bounds on function calls are a sixth above what was counted (CPython 3.11); whoever needs more says why.
"""

from __future__ import annotations

import gc
import json
import tracemalloc

import pytest

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.session import ClientSessionId
from mcp_sidecar.sessions.table import SessionTable
from tests.support.in_memory import answered, posted, through
from tests.support.sessions import keeper

CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"%b"}}}'
RESULT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"%b"}],"isError":false}}'
ERROR = b'{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"no such tool"}}'
EVENT = b"event: message\ndata: %b\n\n"

KIB = 1024


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(answered(RESULT % (b"x" * 500)), id="JSON"),
        pytest.param(answered(EVENT % (RESULT % (b"x" * 500)), "text/event-stream"), id="a short stream"),
        pytest.param(answered(ERROR), id="an error"),
    ],
)
async def test_a_request_needs_no_task_of_its_own(answer: bytes) -> None:
    """Nor a timer; and its answer leaves in one piece. At most a thousand function calls on the ordinary way."""
    async with through() as way:
        request = posted(CALL % (b"a" * 200))
        for _ in range(3):  # what is learned once
            await way.request(request, answer)
        spent = await way.spent_on(request, answer)
        assert (spent.writes, spent.tasks, spent.timers) == (1, 0, 0)
        assert spent.calls <= 1000, spent.calls


async def test_the_answer_is_the_upstreams() -> None:
    """What is counted here is a request that passes: one write, head and body."""
    async with through() as way:
        (written,) = await way.request(posted(CALL % b"a"), answered(RESULT % b"x"))
        head, _, body = written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(body)["id"] == 7


@pytest.mark.long
@pytest.mark.parametrize(
    ("asked_bytes", "answered_bytes", "copies"),
    [
        # Each is read in one piece here; the parser, the head in front of it and the transport hold one copy each.
        pytest.param(1, 512 * KIB, 3, id="a large answer"),
        pytest.param(512 * KIB, 1, 4, id="a large request, which is parsed"),
    ],
)
async def test_bodies_are_not_copied_over_and_over(asked_bytes: int, answered_bytes: int, copies: int) -> None:
    """At no moment are there more copies of a body than are needed to hand it on; whatever else the process does may take more."""
    request, answer = posted(CALL % (b"a" * asked_bytes)), answered(RESULT % (b"x" * answered_bytes))
    async with through() as way:
        await way.request(request, answer)
        gc.collect()
        peaks = []
        tracemalloc.start()
        try:
            for _ in range(3):
                tracemalloc.reset_peak()
                held, _ = tracemalloc.get_traced_memory()
                await way.request(request, answer)
                peaks.append(tracemalloc.get_traced_memory()[1] - held)
        finally:
            tracemalloc.stop()
    assert min(peaks) < copies * max(asked_bytes, answered_bytes) + 64 * KIB


@pytest.mark.long
def test_an_idle_session_is_small() -> None:
    """Sessions of the same client and server share what they said of themselves; the rest is below 2 KiB."""
    store = SessionTable(
        SessionLimits(),
        lambda _: None,
        salt=b"s" * 16,
        clock=lambda: 0.0,
        new_tag=lambda: "0123456789ab",
        keeper=keeper(SessionLimits(), lambda: 0.0),
    )
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
    number = 2000
    gc.collect()
    tracemalloc.start()
    try:
        for index in range(number):
            store.open(ClientSessionId(f"{index:032x}"), Principal(b"%016d" % index), Handshake.of(params, result))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store) == number
    assert size / number < 2 * KIB
