"""The express lane: the same bytes as the ordinary way, in both directions, whatever is asked and answered."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from mcp_sidecar.downstream.connection import ClientConnection, Phase
from mcp_sidecar.facts import RequestServed, SidecarFault
from mcp_sidecar.fastpath.door import Door, door_to
from mcp_sidecar.fastpath.lane import CLOSED_FOR, IN_VAIN, STREAM_PATIENCE_S, Express, Trip
from mcp_sidecar.fastpath.plain_http import MAX_CHUNKS
from mcp_sidecar.wire.framing import LAST_CHUNK, ChunkedBody
from tests.support import in_memory
from tests.support.credentials import alice
from tests.support.in_memory import INITIALIZE, INITIALIZED, SESSION, through
from tests.support.raw_upstream import Conversation, Play, RawUpstream
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.unhurried import now
from tests.support.waiting import eventually

CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"a"}}}'
SAFE = b'{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{"uri":"a:b"}}'
RESULT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"x"}],"isError":false}}'
ERROR = b'{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"Unknown tool"}}'
LOST = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}'
LOST_IN_BAND = b'{"jsonrpc":"2.0","error":{"code":-32005,"message":"Session not found or expired"},"id":null}'
QUESTION = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
EVENT = b"event: message\ndata: %b\n\n"
JSON, EVENTS = "application/json", "text/event-stream"
IDLE_S = 0.5
SETTINGS = {"healing__hold_timeout": 0.3, "healing__connect_hold_timeout": 0.3, "upstream__idle_timeout": IDLE_S}


def answer(
    body: bytes, content_type: str = JSON, *lines: str, status: str = "200 OK", length: int | None = None
) -> bytes:
    """An answer with a length."""
    head = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", *lines]
    head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode() + body


def chunked(*pieces: bytes, content_type: str = JSON, lines: tuple[str, ...] = (), end: bytes = b"0\r\n\r\n") -> bytes:
    """An answer in chunks."""
    head = ["HTTP/1.1 200 OK", f"Content-Type: {content_type}", *lines, "Transfer-Encoding: chunked", "", ""]
    return "\r\n".join(head).encode() + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def events(*pieces: bytes, **rest: Any) -> bytes:
    """A stream."""
    return chunked(*pieces, content_type=EVENTS, **rest)


def post(body: bytes = CALL, *lines: str, session: str | None = SESSION, first: str = "POST /mcp HTTP/1.1") -> bytes:
    """A client's POST."""
    head = [first, "Host: localhost", "Content-Type: application/json", f"Accept: {JSON}, {EVENTS}"]
    head += [f"Mcp-Session-Id: {session}"] if session else []
    head += ["MCP-Protocol-Version: 2025-06-18", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


class CountingExpress(Express):
    """Counts what takes the lane."""

    trips = 0

    def send(self, *asked: Any) -> Trip | None:
        trip = super().send(*asked)
        self.trips += trip is not None
        return trip


def id_of(body: bytes) -> bytes:
    """The id of a request, as it stands there."""
    asked = re.search(rb'"id":\s*("[^"]*"|\d+)', body)
    assert asked is not None
    return asked[1]


def server(first: bytes | Play) -> Play:
    """An upstream that knows the session, and gives ``first`` to the first call of a tool or reading of a resource."""
    waiting = [first]
    sessions = -1

    async def play(talk: Conversation) -> None:
        nonlocal sessions
        body = await talk.read_body()
        if b'"initialize"' in body:
            sessions += 1
            minted = f"{sessions:x}{SESSION[1:]}" if sessions else SESSION
            await talk.send(
                answer(INITIALIZED.replace(b'"id":1', b'"id":' + id_of(body)), JSON, f"Mcp-Session-Id: {minted}")
            )
        elif b'"notifications/' in body or b'"id"' not in body:
            await talk.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        elif waiting and b'"ping"' not in body:
            given = waiting.pop()
            await (talk.send(given) if isinstance(given, bytes) else given(talk))
        else:
            await talk.send(answer(RESULT.replace(b'"id":7', b'"id":' + id_of(body))))

    return play


class Line:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def read(self) -> bytes:
        """The next whole answer, or what came of it before the end."""
        try:
            async with asyncio.timeout(5.0):
                head = await self._reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
                if length is not None:
                    return head + await self._some(int(length[1]))
                return head + await self._reader.readuntil(b"0\r\n\r\n") if b"chunked" in head else head
        except asyncio.IncompleteReadError as cut:
            return bytes(cut.partial) + b"<cut>"
        except ConnectionError:
            return b"<reset>"

    async def _some(self, size: int) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as cut:
            return bytes(cut.partial) + b"<cut>"

    async def ask(self, *pieces: bytes) -> bytes:
        """Send a request and read its answer."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0.01)
        return await self.read()


@dataclass(slots=True)
class Scene:
    """A sidecar whose client has a session, and whose upstream connection is free."""

    upstream: RawUpstream
    sidecar: WatchedSidecar
    express: CountingExpress

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Line]:
        """A connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.sidecar.port)
        try:
            yield Line(reader, writer)
        finally:
            writer.close()

    def served(self) -> list[tuple[str, int]]:
        """What was counted."""
        return [(fact.rpc_method, fact.status) for fact in self.sidecar.of(RequestServed)]


@asynccontextmanager
async def scene(first: bytes | Play, *, on_lane: bool = True, **settings: object) -> AsyncIterator[Scene]:
    """``first`` is what the upstream answers to the first call."""
    async with (
        RawUpstream(server(first)) as upstream,
        running_sidecar(upstream.url, **{**SETTINGS, **settings}) as sidecar,
    ):
        express = CountingExpress(sidecar._ingress)
        sidecar._server._common.door = Door(express) if on_lane else None
        it = Scene(upstream, sidecar, express)
        async with it.line() as line:
            assert b" 200 " in await line.ask(post(INITIALIZE, session=None))
        yield it


@dataclass(slots=True)
class Outcome:
    """What everybody saw."""

    answers: list[bytes]
    requests: list[bytes]
    served: list[tuple[str, int]]
    trips: int
    took_s: float


async def outcome(first: bytes | Play, *requests: tuple[bytes, ...], on_lane: bool, **settings: object) -> Outcome:
    """Send the requests on one connection, one after the other."""
    async with scene(first, on_lane=on_lane, **settings) as it, it.line() as line:
        started = now()
        answers = [await line.ask(*pieces) for pieces in requests]
        took_s = now() - started
        await eventually(it.served)
        host = b"Host: 127.0.0.1:%d\r\n" % it.upstream.port
        seen = [(each.head + bytes(each.body)).replace(host, b"Host: HOST\r\n") for each in it.upstream.requests]
        assert not it.sidecar.of(SidecarFault)
        return Outcome(
            [_named(each) for each in answers], sorted(map(_named, seen)), it.served(), it.express.trips, took_s
        )


def _named(data: bytes) -> bytes:
    """Without what is random."""
    return re.sub(rb"mcp-sidecar-(ping-[0-9]+|[0-9a-f]{16})", b"mcp-sidecar-NEW", data)


def _in_one_chunk(data: bytes) -> bytes:
    """An answer whose chunks are joined. How a stream is cut depends on how much of it was there at a time."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if b"\r\nTransfer-Encoding: chunked" not in head or not rest.endswith(LAST_CHUNK):
        return data
    body, _ = ChunkedBody().feed(rest)
    return head + end + body


async def same(
    first: bytes | Play, *requests: tuple[bytes, ...], is_handed_over: bool = False, **settings: object
) -> Outcome:
    """What both ways make of it. Silence, which ends every wait for more, takes neither longer than the other."""
    ordinary = await outcome(first, *requests, on_lane=False, **settings)
    express = await outcome(first, *requests, on_lane=True, **settings)
    assert express.requests == ordinary.requests
    assert express.took_s < ordinary.took_s + IDLE_S / 2
    seen, expected = express.answers, ordinary.answers
    if is_handed_over:
        seen, expected = [*map(_in_one_chunk, seen)], [*map(_in_one_chunk, expected)]
    assert seen == expected
    assert sorted(express.served) == sorted(ordinary.served)
    return express


def in_pieces(*pieces: bytes, pause_s: float = 0.01) -> Play:
    """An answer that comes bit by bit."""

    async def play(talk: Conversation) -> None:
        for piece in pieces:
            await talk.send(piece)
            await asyncio.sleep(pause_s)

    return play


def at_once(*pieces: bytes) -> Play:
    """An answer in several packets, one right after the other."""
    return in_pieces(*pieces, pause_s=STREAM_PATIENCE_S / 100)


def broken_after(data: bytes, *, reset: bool) -> Play:
    """An answer that is cut."""

    async def play(talk: Conversation) -> None:
        if data:
            await talk.send(data)
            await asyncio.sleep(0.01)
        talk.reset() if reset else talk.close()

    return play


async def silent(talk: Conversation) -> None:
    """No answer."""
    await talk.client_left.wait()


WHOLE = answer(RESULT)
HEAD = events(end=b"")
ONE_EVENT = events(EVENT % RESULT, end=b"")[len(HEAD) :]
TWO_CHUNKS = [b"%x\r\n%b\r\n" % (len(half), half) for half in ((EVENT % RESULT)[:40], (EVENT % RESULT)[40:])]

PLAIN = [
    pytest.param(WHOLE, id="JSON with a length"),
    pytest.param(chunked(RESULT), id="JSON in a chunk"),
    pytest.param(chunked(RESULT[:9], RESULT[9:20], RESULT[20:]), id="JSON in chunks"),
    pytest.param(answer(RESULT, JSON + "; charset=utf-8"), id="a charset"),
    pytest.param(answer(RESULT, JSON, f"mcp-session-id: {SESSION}", "Set-Cookie: a=b", "X-Y:z"), id="more headers"),
    pytest.param(answer(RESULT, JSON, "Connection: keep-alive", "Keep-Alive: timeout=5"), id="one hop's headers"),
    pytest.param(answer(b'{"jsonrpc":"2.0","id":8,"result":{}}'), id="another id"),
    pytest.param(answer(b"{nonsense"), id="no JSON"),
    pytest.param(in_pieces(WHOLE[:-30], WHOLE[-30:]), id="JSON in two pieces"),
    pytest.param(in_pieces(*(chunked(RESULT).partition(b"\r\n\r\n"))), id="head and chunk apart"),
    pytest.param(events(EVENT % RESULT), id="one event"),
    pytest.param(events(b"event: message\r\ndata: %b\r\n\r\n" % RESULT), id="one event with CRLF"),
    pytest.param(events(b"data: %b\n\n" % RESULT), id="one event without a name"),
    pytest.param(answer(EVENT % RESULT, EVENTS), id="one event with a length"),
    pytest.param(events(EVENT % RESULT, lines=(f"Mcp-Session-Id: {SESSION}", "Cache-Control: no-cache")), id="SDK"),
    pytest.param(at_once(HEAD, ONE_EVENT, b"0\r\n\r\n"), id="head, event, end"),
    pytest.param(at_once(HEAD, ONE_EVENT + b"0\r\n\r\n"), id="head, then the rest"),
    pytest.param(at_once(HEAD + ONE_EVENT, b"0\r\n\r\n"), id="the end last"),
    pytest.param(at_once(HEAD, ONE_EVENT[:1], ONE_EVENT[1:30], ONE_EVENT[30:], b"0", b"\r\n\r", b"\n"), id="in bits"),
    pytest.param(at_once(HEAD, *TWO_CHUNKS, b"0\r\n\r\n"), id="head, half an event, the other half, end"),
]

OTHER = [
    pytest.param(answer(ERROR), id="an error"),
    pytest.param(answer(LOST_IN_BAND), id="lost in band"),
    pytest.param(answer(LOST, status="404 Not Found"), id="lost"),
    pytest.param(answer(LOST, status="400 Bad Request"), id="lost with 400"),
    pytest.param(answer(b"not here", "text/plain", status="404 Not Found"), id="bare 404"),
    pytest.param(answer(b"", JSON, 'WWW-Authenticate: Bearer realm="x"', status="401 Unauthorized"), id="401"),
    pytest.param(answer(b"no", "text/plain", status="403 Forbidden"), id="403"),
    pytest.param(answer(b"oops", "text/plain", status="500 Internal Server Error"), id="500"),
    pytest.param(answer(b"away", "text/html", status="503 Service Unavailable"), id="503"),
    pytest.param(answer(b"", JSON, status="202 Accepted"), id="202"),
    pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
    pytest.param(answer(b"", JSON, "Location: /x", status="307 Temporary Redirect"), id="307"),
    pytest.param(answer(RESULT, JSON, "Content-Location: /x"), id="a URL"),
    pytest.param(answer(RESULT, JSON, "X-Twice: 1", "X-Twice: 2"), id="a name twice"),
    pytest.param(answer(RESULT, JSON, "X-Odd:   a  b  "), id="odd blanks"),
    pytest.param(answer(RESULT, JSON, "X-Odd:"), id="an empty header"),
    pytest.param(answer(RESULT, JSON, "Connection: close"), id="closes"),
    pytest.param(answer(RESULT, JSON, "Connection: x-y", "X-Y: z"), id="one hop's name"),
    pytest.param(answer(b"[%b]" % RESULT), id="an array"),
    pytest.param(answer(b""), id="nothing"),
    pytest.param(answer(RESULT, "text/plain"), id="another type"),
    pytest.param(answer(RESULT, JSON, "Content-Encoding: gzip"), id="encoded"),
    pytest.param(answer(b'{"jsonrpc":"2.0","id":7,"result":{"a":"%b"}}' % (b"x" * 100_000)), id="a large answer"),
    pytest.param(answer(RESULT, JSON, *(f"X-{n}: y" for n in range(100))), id="many headers"),
    pytest.param(answer(RESULT, JSON, "X-Long: " + "y" * 30_000), id="a long header"),
    pytest.param(WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0"),
    pytest.param(WHOLE.replace(b" OK", b""), id="no reason"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE, id="100 first"),
    pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + WHOLE, id="103 first"),
    pytest.param(WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", id="more than was asked"),
    pytest.param(WHOLE + b"\r\n", id="a line more"),
    pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
    pytest.param(chunked(RESULT, end=b"zz\r\n\r\n"), id="a broken chunk"),
    pytest.param(chunked(RESULT, end=b"0\r\nX-T: 1\r\n\r\n"), id="a trailer"),
    pytest.param(chunked(RESULT, end=b"0;a=b\r\n\r\n"), id="a chunk's extension"),
    pytest.param(chunked(RESULT) + b"x", id="a byte behind the last chunk"),
    pytest.param(chunked(RESULT) + chunked(RESULT), id="two answers in chunks"),
    pytest.param(chunked(*[RESULT[at : at + 1] for at in range(len(RESULT))], *[b" "] * MAX_CHUNKS), id="many chunks"),
    pytest.param(in_pieces(chunked(RESULT, end=b""), b"0\r\nX-T: 1\r\n\r\n"), id="a trailer that comes later"),
    pytest.param(in_pieces(WHOLE[:20], WHOLE[20:]), id="a head in two pieces"),
    pytest.param(in_pieces(b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE), id="100, then the rest"),
    pytest.param(events(), id="an empty stream"),
    pytest.param(events(b": hello\n\n", EVENT % RESULT), id="a comment first"),
    pytest.param(events(b"id: 5\n" + EVENT % RESULT), id="an event id"),
    pytest.param(events(b"retry: 5\n" + EVENT % RESULT), id="a retry"),
    pytest.param(events(EVENT % QUESTION, EVENT % RESULT), id="a question first"),
    pytest.param(events(EVENT % QUESTION), id="a question only"),
    pytest.param(events(EVENT % RESULT.replace(b":7", b":8")), id="another's response"),
    pytest.param(events(b"event: other\ndata: %b\n\n" % RESULT), id="another event"),
    pytest.param(events(b"data: {\ndata: %b\n\n" % RESULT[1:]), id="data in lines"),
    pytest.param(events(b"event: message\r\ndata: %b\n\n" % RESULT), id="mixed line ends"),
    pytest.param(in_pieces(events(EVENT % RESULT, end=b""), b"0\r\n\r\n"), id="an end that comes later"),
    pytest.param(in_pieces(*events(EVENT % RESULT).partition(b"\r\n\r\n")), id="the head of a stream first"),
    pytest.param(at_once(HEAD, events(EVENT % QUESTION, EVENT % RESULT)[len(HEAD) :]), id="head, then a question"),
    pytest.param(at_once(HEAD, ONE_EVENT[:-9], b"zz\r\n", b"\r\n"), id="head, event, then nonsense"),
    pytest.param(at_once(HEAD, ONE_EVENT, b"zz\r\n"), id="head, event, nonsense"),
    pytest.param(at_once(HEAD + ONE_EVENT[:60], ONE_EVENT[60:] + b"zz\r\n"), id="nonsense right behind the event"),
    pytest.param(in_pieces(events(b"data: 1\n\n", end=b"")[:-1], b"\nzz\r\n"), id="nonsense right behind a chunk"),
    pytest.param(in_pieces(events(EVENT % RESULT, end=b"")[:-1], b"\nzz\r\n"), id="nonsense behind the response"),
    pytest.param(at_once(HEAD, ONE_EVENT, b"0\r\nX-T: 1\r\n\r\n"), id="head, event, then a trailer"),
    pytest.param(at_once(HEAD, ONE_EVENT, ONE_EVENT, b"0\r\n\r\n"), id="head, event, then another"),
    pytest.param(at_once(HEAD, b"0\r\n\r\n"), id="head, then the end"),
    pytest.param(at_once(HEAD, b"6\r\n: ha\n\n\r\n", ONE_EVENT, b"0\r\n\r\n"), id="head, then a comment"),
    pytest.param(at_once(HEAD, ONE_EVENT, b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), id="head, event, then more"),
]

BREAKS = [
    pytest.param(broken_after(data, reset=reset), id=f"{name}, {'reset' if reset else 'closed'}")
    for name, data in {
        "nothing": b"",
        "half a head": WHOLE[:30],
        "a head": WHOLE[: WHOLE.index(b"{")],
        "half a body": WHOLE[:-10],
        "half a chunk": chunked(RESULT)[:-20],
        "a chunk": chunked(RESULT, end=b""),
        "a stream's head": events(end=b""),
        "half an event": events(EVENT % RESULT)[:-30],
        "an event": events(EVENT % RESULT, end=b""),
        "a body that ends with the connection": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + RESULT,
    }.items()
    for reset in (False, True)
]


@pytest.mark.parametrize("body", [pytest.param(CALL, id="unsafe"), pytest.param(SAFE, id="safe")])
@pytest.mark.parametrize("given", PLAIN)
async def test_a_plain_answer_passes_as_on_the_ordinary_way(given: bytes | Play, body: bytes) -> None:
    """Byte for byte the same, and both requests of the connection take the lane."""
    assert (await same(given, (post(body),), (post(body),))).trips == 2


@pytest.mark.long
@pytest.mark.parametrize("body", [pytest.param(CALL, id="unsafe"), pytest.param(SAFE, id="safe")])
@pytest.mark.parametrize("given", OTHER)
async def test_every_other_answer_is_handed_over(given: bytes | Play, body: bytes) -> None:
    """The ordinary way takes up what is under way: nothing is sent more often, and nothing is judged otherwise."""
    assert (await same(given, (post(body),), is_handed_over=True)).trips == 1


@pytest.mark.long
@pytest.mark.parametrize("body", [pytest.param(CALL, id="unsafe"), pytest.param(SAFE, id="safe")])
@pytest.mark.parametrize("given", BREAKS)
async def test_a_break_is_handed_over(given: Play, body: bytes) -> None:
    """A call whose answer broke is not sent again; what is harmless is, as often as on the ordinary way."""
    seen = await same(given, (post(body),))
    assert seen.trips == 1
    if body == CALL:
        assert sum(b"tools/call" in request for request in seen.requests) == 1


async def test_silence_is_handed_over() -> None:
    """An upstream that says nothing for ``upstream.idle_timeout`` has stalled on the lane, too."""
    seen = await same(silent, (post(),))
    assert b"outcome_unknown" in seen.answers[0]


NEXT = [
    pytest.param(True, (post(),), id="plain"),
    pytest.param(True, (post(first="POST /mcp/ HTTP/1.1"),), id="a slash more"),
    pytest.param(True, (post(CALL, "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https"),), id="forwarded"),
    pytest.param(True, (post(CALL, "X-Forwarded-Host: a.example", "x-lower:yes"),), id="forwarded host"),
    pytest.param(True, (post(CALL, "Connection: keep-alive", "Keep-Alive: x", "TE: gzip"),), id="one hop's"),
    pytest.param(True, (post(CALL, "Accept-Encoding: gzip", "Cookie: a=b; c=d"),), id="encodings"),
    pytest.param(True, (post()[:-20], post()[-20:]), id="a body in two pieces"),
    pytest.param(True, (post()[: -len(CALL)], CALL), id="head and body apart"),
    pytest.param(False, (post()[:40], post()[40:]), id="a head in two pieces"),
    pytest.param(False, (post(CALL, "Connection: close"),), id="closes"),
    pytest.param(False, (post(first="POST /mcp?x=y HTTP/1.1"),), id="a query"),
    pytest.param(False, (post(first="POST /mcp HTTP/1.0"),), id="HTTP/1.0"),
    pytest.param(False, (post(CALL, "X-Twice: a", "X-Twice: b"),), id="a name twice"),
    pytest.param(False, (post(CALL, f"Content-Length: {len(CALL)}"),), id="two lengths"),
    pytest.param(False, (post(CALL, "Transfer-Encoding: chunked"),), id="two framings"),
    pytest.param(False, (post(CALL, "X-Folded: a\r\n b"),), id="folded"),
    pytest.param(False, (post(CALL, "X-Odd : a"),), id="a blank before the colon"),
    pytest.param(False, (post(CALL, "X-Odd: \ta "),), id="blanks around"),
    pytest.param(False, (post(CALL, "X-Odd: caf\u00e9"),), id="beyond ASCII"),
    pytest.param(False, (post(CALL, "Expect: 100-continue"),), id="expects"),
    pytest.param(False, (post(CALL, "Upgrade: h2c"),), id="upgrades"),
    pytest.param(False, (post(CALL, "Content-Encoding: gzip"),), id="encoded"),
    pytest.param(False, (post(CALL, "Origin: http://localhost:1"),), id="an origin"),
    pytest.param(False, (post(CALL, "Origin: http://evil.example"),), id="another's origin"),
    pytest.param(False, (post().replace(b"localhost", b"evil.example"),), id="another's host"),
    pytest.param(False, (post().replace(b"Host: localhost\r\n", b""),), id="no host"),
    pytest.param(False, (post().replace(b"\r\n", b"\n", 1),), id="a bare line feed"),
    pytest.param(False, (post(session=None),), id="no session"),
    pytest.param(False, (post(session="f" * 32),), id="an unknown session"),
    pytest.param(False, (post(CALL, "Authorization: Bearer x"),), id="another principal"),
    pytest.param(False, (post(b"{nonsense"),), id="no JSON"),
    pytest.param(False, (post(b"[%b]" % CALL),), id="a batch"),
    pytest.param(False, (post(b'{"jsonrpc":"2.0","method":"notifications/x"}'),), id="a notification"),
    pytest.param(False, (post(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'),), id="a list"),
    pytest.param(False, (post(b'{"jsonrpc":"2.0","id":7,"result":{}}'),), id="a response"),
    pytest.param(False, (post(CALL).replace(b"2025-06-18", b"2026-07-28"),), id="a revision without sessions"),
    pytest.param(False, (post(CALL, "X-Long: " + "y" * 20_000),), id="a long head"),
    pytest.param(False, (post(CALL.replace(b'"a"', b'"%b"' % (b"a" * 70_000))),), id="a large body"),
]


@pytest.mark.parametrize(("on_lane", "pieces"), NEXT)
async def test_a_request_goes_as_on_the_ordinary_way(on_lane: bool, pieces: tuple[bytes, ...]) -> None:
    """What the upstream gets is the same, the first time and later on; only what is perfectly ordinary takes the lane."""
    assert (await same(WHOLE, pieces)).trips == on_lane
    if on_lane:
        assert (await same(WHOLE, *[pieces] * 4)).trips == 4


async def test_a_known_head_with_other_values_goes_as_on_the_ordinary_way() -> None:
    """Its length, its id and its trace are its own."""
    bodies = [CALL.replace(b'"a"', b'"%b"' % (b"a" * number)) for number in range(5)]
    lines = [(f"X-Request-Id: {number}", f"traceparent: 00-{number}-01", "X-Kept: a") for number in range(5)]
    requests = [(post(body, *more),) for body, more in zip(bodies, lines, strict=True)]
    assert (await same(WHOLE, *requests)).trips == 5


@pytest.mark.parametrize("setting", ["auto", "client", "mcp.example"])
async def test_the_host_is_the_one_of_the_ordinary_way(setting: str) -> None:
    """Whatever ``upstream.host_header`` says."""
    assert (await same(WHOLE, *[(post(),)] * 4, upstream__host_header=setting)).trips == 4


async def test_the_lane_is_open_behind_what_was_not_for_it() -> None:
    """Nothing of one request is held when the next one comes."""
    listing = post(b'{"jsonrpc":"2.0","id":7,"method":"tools/list"}')
    odd = (post()[:40], post()[40:])
    apart = (post()[: -len(CALL)], CALL)
    assert (await same(WHOLE, odd, (listing,), (post(),), odd, apart, (post(),), odd, (post(),), (post(),))).trips == 5


async def test_a_client_that_sends_heads_and_bodies_apart_takes_the_lane() -> None:
    """From its first call on, on the connection of its ``initialize``."""
    async with scene(WHOLE) as it, it.line() as line:
        for body, session in ((INITIALIZE, None), (b'{"jsonrpc":"2.0","method":"notifications/initialized"}', SESSION)):
            asked = post(body, session=session)
            await line.ask(asked[: -len(body)], asked[-len(body) :])
        for _ in range(3):
            assert RESULT in await line.ask(post()[: -len(CALL)], CALL)
        assert it.express.trips == 3


async def test_whoever_sends_on_gets_one_answer() -> None:
    """What comes while a request is on the lane is not interpreted, and the connection ends behind the answer."""
    gate = asyncio.Event()

    async def later(talk: Conversation) -> None:
        await gate.wait()
        await talk.send(WHOLE)

    async with scene(later) as it, it.line() as line:
        line.writer.write(post())
        await it.upstream.until(lambda upstream: len(upstream.requests) == 2)
        line.writer.write(post(CALL.replace(b":7,", b":8,")) + post(CALL.replace(b":7,", b":9,")))
        await eventually(lambda: next(iter(it.sidecar._server.connections)).is_last)  # type: ignore[attr-defined]
        gate.set()
        seen = await line.read()
        assert seen.endswith(RESULT)
        assert b"\r\nConnection: close\r\n" in seen
        assert await line.read() == b"<cut>"
        assert len(it.upstream.requests) == 2


@pytest.mark.parametrize("pieces", [pytest.param((b"",), id="at once"), pytest.param((WHOLE[:-9],), id="half-way")])
async def test_a_client_that_leaves_is_followed_at_once(pieces: tuple[bytes, ...]) -> None:
    """The upstream learns it, and the request counts as 499."""
    left = asyncio.Event()

    async def play(talk: Conversation) -> None:
        await talk.send(pieces[0])
        await talk.client_left.wait()
        left.set()

    async with scene(play) as it:
        async with it.line() as line:
            line.writer.write(post())
            await it.upstream.until(lambda upstream: len(upstream.requests) == 2)
        async with asyncio.timeout(2):
            await left.wait()
        await eventually(lambda: it.served()[-1] == ("tools/call", 499))
        assert it.sidecar._ingress._under_way == 0
        (session,) = it.sidecar.services.sessions.table
        assert (session.exchanges, session.posts) == (0, 0)


async def test_a_client_that_leaves_in_its_body_counts() -> None:
    """Nothing has reached the upstream."""
    async with scene(WHOLE) as it:
        async with it.line() as line:
            line.writer.write(post()[:-5])
            await eventually(lambda: it.sidecar._ingress._under_way == 1)
        await eventually(lambda: it.served()[-1] == ("other", 499))
        assert (len(it.upstream.requests), it.sidecar._ingress._under_way) == (1, 0)


@pytest.mark.parametrize(
    "pieces", [pytest.param((post(),), id="sent"), pytest.param((post()[:-5], post()[-5:]), id="half")]
)
async def test_a_drain_waits_for_what_is_on_the_lane(pieces: tuple[bytes, ...]) -> None:
    """Its answer is given, and then the connection closed."""
    gate = asyncio.Event()

    async def later(talk: Conversation) -> None:
        await gate.wait()
        await talk.send(WHOLE)

    async with scene(later) as it, it.line() as line:
        line.writer.write(pieces[0])
        await eventually(lambda: it.sidecar._ingress._under_way == 1)
        drain = asyncio.create_task(it.sidecar.drain())
        await asyncio.sleep(0.02)
        assert not drain.done()
        line.writer.write(b"".join(pieces[1:]))
        gate.set()
        assert (await line.read()).endswith(RESULT)
        async with asyncio.timeout(2):
            await drain
        assert await line.read() in (b"<cut>", b"<reset>")


async def test_a_drain_waits_for_what_is_handed_over() -> None:
    """A stream that comes in pieces goes on."""
    gate = asyncio.Event()

    async def later(talk: Conversation) -> None:
        await gate.wait()
        await talk.send(events(end=b""))
        await talk.send(events(EVENT % RESULT).partition(b"\r\n\r\n")[2])

    async with scene(later) as it, it.line() as line:
        line.writer.write(post())
        await it.upstream.until(lambda upstream: len(upstream.requests) == 2)
        drain = asyncio.create_task(it.sidecar.drain())
        await asyncio.sleep(0.02)
        gate.set()
        assert RESULT in await line.read()
        async with asyncio.timeout(2):
            await drain


@pytest.mark.parametrize("given", [pytest.param(WHOLE, id="plain"), pytest.param(answer(ERROR), id="handed over")])
async def test_a_session_that_ends_meanwhile_still_gets_its_answer(given: bytes) -> None:
    """The request was sent before its client's DELETE."""
    gate = asyncio.Event()

    async def later(talk: Conversation) -> None:
        await gate.wait()
        await talk.send(given)

    async with scene(later) as it, it.line() as line:
        line.writer.write(post())
        await it.upstream.until(lambda upstream: len(upstream.requests) == 2)
        async with it.line() as other:
            end = f"DELETE /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: {SESSION}\r\n\r\n".encode()
            await other.ask(end)
        gate.set()
        assert (await line.read()).endswith(given.partition(b"\r\n\r\n")[2])
        assert b" 404 " in await line.ask(post())


async def test_a_stale_upstream_connection_is_not_used() -> None:
    """Where none is free the ordinary way opens one."""
    async with scene(WHOLE) as it, it.line() as one, it.line() as other:
        answers = await asyncio.gather(one.ask(post()), other.ask(post()))
        assert all(RESULT in each for each in answers)
        assert it.express.trips == 1


async def test_what_the_lane_passed_is_not_kept() -> None:
    """The connection to the upstream is free again, and nothing counts as under way."""
    async with scene(WHOLE) as it, it.line() as line:
        for _ in range(20):
            assert RESULT in await line.ask(post())
        assert (it.express.trips, it.upstream.connections) == (20, 1)
        assert it.served()[1:] == [("tools/call", 200)] * 20
        (session,) = it.sidecar.services.sessions.table
        assert (session.exchanges, session.posts, it.sidecar._ingress._under_way) == (0, 0, 0)


@pytest.mark.long
async def test_a_server_whose_streams_last_is_not_tried_every_time() -> None:
    """After some trips in vain the lane is closed for a while, and then tried again."""

    async def slow(talk: Conversation) -> None:
        await talk.read_body()
        for piece in events(EVENT % RESULT).partition(b"\r\n\r\n"):
            await talk.send(piece)
            await asyncio.sleep(2 * STREAM_PATIENCE_S)

    async with scene(WHOLE) as it, it.line() as line:
        it.upstream.answer_with(slow)
        for _ in range(IN_VAIN + CLOSED_FOR):
            assert RESULT in await line.ask(post())
        assert it.express.trips == IN_VAIN
        it.upstream.answer_with(WHOLE)
        for _ in range(2):
            assert RESULT in await line.ask(post())
        assert it.express.trips == IN_VAIN + 2


@pytest.mark.parametrize(
    ("given", "is_passed"),
    [
        pytest.param(WHOLE, True, id="JSON"),
        pytest.param(events(EVENT % RESULT), True, id="an event"),
        pytest.param(answer(QUESTION), False, id="a question as JSON"),
        pytest.param(events(b"id: 3\n" + EVENT % RESULT), False, id="an event id"),
    ],
)
async def test_a_healed_session_takes_the_lane(given: bytes, is_passed: bool) -> None:
    """Where something must be written anew for a later generation it is."""
    lost = answer(LOST, status="404 Not Found")
    async with scene(lost) as it, it.line() as line:
        assert RESULT in await line.ask(post(SAFE))
        (session,) = it.sidecar.services.sessions.table
        assert session.generation == 2
        it.upstream.answer_with(given)
        trips = it.express.trips
        seen = await line.ask(post())
        assert it.express.trips == trips + 1
        assert (given.partition(b"\r\n\r\n")[2] in seen) is is_passed
        if not is_passed:
            assert session.record.tag.encode() in seen


async def test_the_lane_waits_for_the_words_after_a_heal() -> None:
    """Where the model is to be told it is told first, in an answer that the ordinary way gives."""
    lost = answer(LOST, status="404 Not Found")
    async with scene(lost, healing__announce="result") as it, it.line() as line:
        assert RESULT in await line.ask(post(SAFE))
        (session,) = it.sidecar.services.sessions.table
        assert (session.generation, session.told_restart) == (2, False)
        it.upstream.answer_with(WHOLE)
        trips = it.express.trips
        assert RESULT not in await line.ask(post())
        assert (it.express.trips, session.told_restart) == (trips, True)
        assert RESULT in await line.ask(post())
        assert it.express.trips == trips + 1


def peer_of(connection: object) -> object:
    """Where a connection comes from."""
    assert isinstance(connection, ClientConnection)
    return connection.transport.get_extra_info("peername") if connection.transport is not None else None


@pytest.mark.long
async def test_a_client_that_does_not_read_costs_no_memory() -> None:
    """While it has not taken an answer, no other is begun for it."""
    body = b'{"jsonrpc":"2.0","id":7,"result":{"text":"%b"}}' % (b"x" * 50_000)
    async with scene(WHOLE) as it:
        it.upstream.answer_with(answer(body))
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", it.sidecar.port))
        await eventually(lambda: [peer_of(each) for each in it.sidecar._server.connections] == [sock.getsockname()])
        (protocol,) = it.sidecar._server.connections
        assert isinstance(protocol, ClientConnection)
        asked = 0
        while not protocol.is_slow:
            await asyncio.get_running_loop().sock_sendall(sock, post())
            asked += 1
            await it.upstream.until(lambda upstream, asked=asked: len(upstream.requests) == 1 + asked)  # type: ignore[misc]
            await eventually(lambda: it.sidecar._ingress._under_way == 0 or protocol.is_slow)
        for _ in range(3):
            await asyncio.get_running_loop().sock_sendall(sock, post())
        await asyncio.sleep(0.05)
        assert len(it.upstream.requests) <= 2 + asked
        assert protocol.transport is not None
        assert protocol.transport.get_write_buffer_size() < 200_000
        sock.close()
        await eventually(lambda: it.sidecar._ingress._under_way == 0)


@pytest.mark.parametrize("mode", ["observe", "rewrite"])
async def test_the_lane_is_for_healing_only(mode: str) -> None:
    """The other modes have nothing to gain, and judge otherwise."""
    async with RawUpstream(server(WHOLE)) as upstream, running_sidecar(upstream.url, healing__mode=mode) as sidecar:
        assert sidecar._server._common.door is None
        assert door_to(sidecar._ingress) is None


async def test_a_client_that_leaves_between_the_two_ways_counts_once() -> None:
    """What was handed over, and nobody has turned to yet, is given up with its connection to the upstream."""
    async with through() as way:
        asked, handed_over = in_memory.posted(CALL), in_memory.answered(ERROR)
        await way.request(asked, handed_over)
        client, gate = way._client, way.sidecar._ingress
        client.data_received(asked)
        (session,) = gate.services.sessions.table
        assert (session.posts, session.exchanges, gate._under_way) == (1, 1, 1)
        way._upstream.data_received(handed_over)
        client.connection_lost(None)
        await asyncio.sleep(0)
        assert (session.posts, session.exchanges, gate._under_way) == (0, 0, 0)


async def test_a_request_on_the_lane_is_not_idle() -> None:
    """The time after which an idle connection is closed begins behind its answer."""
    async with through() as way:
        asked = in_memory.posted(CALL)
        await way.request(asked, in_memory.answered(RESULT))
        way._answer = b""
        way._client.data_received(asked)
        for now in (0.0, 1000.0, 2000.0):
            way._client.look(now)
        assert way._client._phase is Phase.PASSAGE


async def test_only_an_accepted_credential_takes_the_lane() -> None:
    """A refreshed token goes the ordinary way until the upstream has answered it; from then on it is as quick as the first.

    A key in the endpoint's query makes a request the ordinary way's in any case.
    """
    async with scene(answer(RESULT)) as it, it.line() as line:
        first, second = (f"Authorization: {alice()['Authorization']}" for _ in range(2))
        opened = await line.ask(post(INITIALIZE, first, session=None))
        session = re.search(rb"(?i)mcp-session-id: (\S+)", opened)
        assert session is not None
        trips = []
        for token in (first, second, second):
            assert b" 200 " in await line.ask(post(CALL, token, session=session[1].decode()))
            trips.append(it.express.trips)
        with_key = post(CALL, first, session=session[1].decode(), first="POST /mcp?key=1 HTTP/1.1")
        assert b" 200 " in await line.ask(with_key)
        trips.append(it.express.trips)
        assert trips == [1, 1, 2, 2]
