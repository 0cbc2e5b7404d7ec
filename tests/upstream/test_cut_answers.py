"""Answers that only the end of their connection ends: whether that was the end, or somebody cut it."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.facts import OutcomeUnknown
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.wire.faults import Fault
from tests.support.client import McpClient
from tests.support.raw_upstream import OK, Conversation, RawUpstream
from tests.support.sidecar import running_sidecar
from tests.upstream.sending import sender, sends, to_the_fault

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
TEXT = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
GZIP = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n"


async def peeked(answer: Answer) -> tuple[bytes, Fault | None]:
    """What is seen ahead."""
    try:
        await answer.peek(1000)
    except UpstreamFault as fault:
        return answer.peeked, fault.fault
    return answer.peeked, None


async def taken(answer: Answer) -> tuple[bytes, Fault | None]:
    """What is taken as it arrives."""
    got = b""
    try:
        while not answer.whole:
            await answer.arrival()
            got += answer.take()
    except UpstreamFault as fault:
        return got, fault.fault
    return got, None


READERS = {"chunks": to_the_fault, "peek": peeked, "take": taken}


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        pytest.param((JSON, b'{"a":[1]}'), None, id="whole"),
        pytest.param((JSON + b'{"a":', b"[1]", b"}\r\n"), None, id="whole, in parts"),
        pytest.param((JSON,), None, id="nothing at all"),
        pytest.param((JSON + b'{"a":[1]',), Fault.BROKEN, id="cut"),
        pytest.param((JSON + b'{"a":', b'"}'), Fault.BROKEN, id="cut within a string"),
        pytest.param((JSON, b'[{"a":1},'), Fault.BROKEN, id="cut between members"),
        pytest.param((TEXT + b'{"a":[1]',), None, id="not JSON"),
        pytest.param((GZIP + b"{",), None, id="not to be read"),
    ],
)
@pytest.mark.parametrize("reading", READERS)
async def test_json_that_is_not_whole_was_cut(parts: tuple[bytes, ...], fault: Fault | None, reading: str) -> None:
    """In whichever way it is read: what has come is handed out, and then the fault."""
    body = b"".join(parts).partition(b"\r\n\r\n")[2]
    async with RawUpstream(sends(*parts)) as server, sender(server.origin) as upstream:
        answer = await upstream.send("POST", "/mcp", [], b"{}")
        assert await READERS[reading](answer) == (body, fault)
        answer.close()


async def test_a_framed_answer_is_not_looked_into() -> None:
    """Where a length or chunks tell the end, the text is its reader's business."""
    framed = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{"a":'
    async with RawUpstream(framed) as server, sender(server.origin) as upstream:
        answer = await upstream.send("POST", "/mcp", [], b"{}")
        assert await to_the_fault(answer) == (b'{"a":', None)
        answer.close()


async def test_our_own_end_of_a_connection_is_no_end_of_an_answer() -> None:
    """A sidecar that stops leaves no reader with half an answer that looks whole."""
    async with RawUpstream(sends(TEXT + b"some", then="wait")) as server, sender(server.origin) as upstream:
        answer = await upstream.send("GET", "/", [])
        chunks = answer.chunks()
        assert await anext(chunks) == b"some"
        reading = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        await upstream.close()
        with pytest.raises(UpstreamFault):
            await reading
        answer.close()


INITIALIZED = (
    b'{"jsonrpc":"2.0","id":%b,"result":{"protocolVersion":"2025-06-18","capabilities":{},'
    b'"serverInfo":{"name":"s","version":"1"}}}'
)


@pytest.mark.parametrize("come", [b'{"jsonrpc":"2.0","id":2,"result":{"content":[', b""])
async def test_a_client_is_told_of_a_cut_answer(come: bytes) -> None:
    """A call whose answer ends too early may have run: it gets the error for that, not half a JSON text, and not nothing."""

    async def play(conversation: Conversation) -> None:
        body = await conversation.read_body()
        if b'"initialize"' in body:
            await conversation.send(JSON.replace(b"\r\n\r\n", b"\r\nMcp-Session-Id: s\r\n\r\n") + INITIALIZED % b"1")
        elif b"tools/call" in body:
            await conversation.send(JSON + come)
        else:
            await conversation.send(OK.replace(b"200 OK", b"202 Accepted"))
        conversation.close()

    async with (
        RawUpstream(play) as server,
        running_sidecar(server.url) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        answer = await client.call("tools/call", {"name": "charge", "arguments": {}}, id=2)
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert len(sidecar.of(OutcomeUnknown)) == 1
        assert sum(b"tools/call" in bytes(request.body) for request in server.requests) == 1
