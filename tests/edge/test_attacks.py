"""What two readers could read differently, told row by row: what the client gets, and what runs.

A row says which requests may run (by their mark, or ``-`` where they bear none) and which statuses the client sees. In all
of them h11 reads the same requests or more, and a bystander's connection is as well afterwards as before.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from mcp_sidecar.downstream.connection import MAX_LEFTOVER_BYTES, Phase
from mcp_sidecar.downstream.upload import MAX_UNREAD_BYTES
from tests.edge.echo import MAX_HEADER_BYTES, Echo, settle
from tests.edge.readers import answers_in, requests_in


def post(mark: str, *headers: str, body: bytes = b"", version: str = "1.1", method: str = "POST") -> bytes:
    """A request with exactly these headers."""
    lines = [f"{method} /{mark} HTTP/{version}", "Host: a", f"X-Mark: {mark}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def sized(mark: str, body: bytes, *headers: str) -> bytes:
    """A request with a length."""
    return post(mark, f"Content-Length: {len(body)}", *headers, body=body)


def chunks(mark: str, *parts: bytes, end: bytes = b"0\r\n\r\n", lines: tuple[str, ...] = ()) -> bytes:
    """A request in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return post(mark, "Transfer-Encoding: chunked", *lines, body=body + end)


B = post("B", method="GET")
CHUNKED = "Transfer-Encoding: chunked"


@dataclass(frozen=True, slots=True)
class Row:
    """``packets`` and what follows from them; the client waits for its answer behind each packet where it ``waits``."""

    packets: tuple[bytes, ...]
    runs: tuple[str, ...]
    statuses: tuple[int, ...]
    waits: bool = True


def row(name: str, *packets: bytes, runs: str = "", statuses: tuple[int, ...] = (400,), waits: bool = True) -> object:
    return pytest.param(Row(packets, tuple(runs.split()), statuses, waits), id=name)


ROWS = [
    # -- a message that ends somewhere else than it seems
    row("length and chunks", post("A", "Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + B)),
    row("chunks and length", post("A", CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n" + B)),
    row("two lengths", post("A", "Content-Length: 3", "Content-Length: 4", body=b"abcd" + B)),
    row("the same length twice", post("A", "Content-Length: 3", "Content-Length: 3", body=b"abc" + B)),
    row("a list of lengths", post("A", "Content-Length: 3, 3", body=b"abc" + B)),
    row("a signed length", post("A", "Content-Length: +3", body=b"abc" + B)),
    row("a negative length", post("A", "Content-Length: -3", body=b"abc" + B)),
    row("a length in hex", post("A", "Content-Length: 0x3", body=b"abc" + B)),
    row("a length with an underscore", post("A", "Content-Length: 1_0", body=b"0123456789" + B)),
    row("a huge length", post("A", "Content-Length: " + "9" * 30, body=b"abc")),
    row("an empty length", post("A", "Content-Length:", body=B)),
    row("codings twice", post("A", CHUNKED, CHUNKED, body=b"0\r\n\r\n" + B)),
    row("another coding last", post("A", "Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n" + B)),
    row("an unknown coding", post("A", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + B)),
    row("identity", post("A", "Transfer-Encoding: identity", "Content-Length: 0", body=B)),
    row("identity alone", post("A", "Transfer-Encoding: identity", body=b"abc")),
    row("chunks twice", post("A", "Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n" + B)),
    row("letters that only look like chunked", post("A", "Transfer-Encoding: chun\u212aed", body=b"0\r\n\r\n" + B)),
    row("a coding below", post("A", "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n" + B), statuses=(501,)),
    row("chunks in HTTP/1.0", post("A", CHUNKED, version="1.0", body=b"0\r\n\r\n" + B)),
    row("a coding with a tab", post("A", "Transfer-Encoding:\tchunked", body=b"0\r\n\r\n"), runs="A", statuses=(200,)),
    row("a coding with a vertical tab", post("A", "Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + B)),
    row("a blank before the colon", post("A", "Content-Length : 3", body=b"abc" + B)),
    # -- chunks
    row("chunk size of 17 digits", post("A", CHUNKED, body=b"F" * 17 + b"\r\nabc")),
    row("chunk size with a sign", post("A", CHUNKED, body=b"+3\r\nabc\r\n0\r\n\r\n")),
    row("chunk size in 0x", post("A", CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n")),
    row("chunk size with a blank in front", post("A", CHUNKED, body=b" 3\r\nabc\r\n0\r\n\r\n")),
    row("no chunk size", post("A", CHUNKED, body=b"\r\nabc\r\n0\r\n\r\n")),
    row("a chunk that is longer", post("A", CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n")),
    row("bare line feeds", post("A", CHUNKED, body=b"3\nabc\n0\n\n")),
    row("a bare line feed behind data", post("A", CHUNKED, body=b"3\r\nabc\n0\r\n\r\n")),
    row("a bare CR behind a size", post("A", CHUNKED, body=b"3\rabc\r\n0\r\n\r\n")),
    row("a line feed in an extension", post("A", CHUNKED, body=b"3;a\nb\r\nabc\r\n0\r\n\r\n")),
    row("an endless extension", post("A", CHUNKED, body=b"3;" + b"a" * 5000)),
    row("an extension", chunks("A", end=b"3;a=b\r\nabc\r\n0\r\n\r\n"), B, runs="A", statuses=(200,)),
    row("a last chunk of zeros", chunks("A", b"abc", end=b"000\r\n\r\n"), B, runs="A B", statuses=(200, 200)),
    row("trailers", chunks("A", b"abc", end=b"0\r\nX-Mark: T\r\n\r\n"), B, runs="A", statuses=(200,)),
    row(
        "trailers and more",
        chunks("A", b"abc", end=b"0\r\nAuthorization: T\r\n\r\n") + chunks("C"),
        runs="A",
        statuses=(200,),
    ),
    row("an odd trailer", chunks("A", b"abc", end=b"0\r\nX Y: T\r\n\r\n")),
    row("a folded trailer", chunks("A", b"abc", end=b"0\r\nX: T\r\n b\r\n\r\n")),
    row("endless trailers", chunks("A", b"abc", end=b"0\r\n" + b"X: y\r\n" * 9000)),
    # -- request lines
    row("no version", b"POST /mcp\r\nHost: a\r\nX-Mark: A\r\n\r\n"),
    row("HTTP/2.0", post("A", version="2.0")),
    row("HTTP/1.2", post("A", version="1.2")),
    row("HTTP/0.9", post("A", version="0.9")),
    row("HTTP/1.10", post("A", version="1.10")),
    row("two blanks", post("A").replace(b" /A", b"  /A")),
    row("two blanks before the version", post("A").replace(b" HTTP", b"  HTTP")),
    row("a tab", post("A").replace(b" /A", b"\t/A")),
    row("a blank behind", post("A").replace(b"1.1\r\n", b"1.1 \r\n")),
    row("a blank in front", b" " + post("A")),
    row("lower case", post("A", method="post")),
    row("an unknown method", post("A", method="NONSENSE")),
    row("bytes beyond ASCII", post("A").replace(b"/A", b"/A\xff")),
    row("a NUL in the target", post("A").replace(b"/A", b"/A\0")),
    row("two empty lines in front", b"\r\n\r\n" + post("A")),
    row("an empty line in front", b"\r\n" + post("A")),
    row("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 100),
    row("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    row("CONNECT", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    row("CONNECT with a body", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(B), B)),
    row("CONNECT and more, later", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", B),
    row("CONNECT without a target", b"CONNECT  HTTP/1.1\r\nHost: a\r\n\r\n"),
    row("CONNECT to a path", b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n"),
    row("another host in the target", post("A").replace(b" /A", b" http://a@b/A")),
    # -- headers
    row("bare line feeds in the head", post("A").replace(b"\r\n", b"\n")),
    row("one bare line feed", post("A", "X: a\nX-Mark: S")),
    row("a bare CR", post("A", "X: a\rX-Mark: S")),
    row("a NUL", post("A", "X: a\0b")),
    row("a folded line", post("A", "X: a\r\n folded")),
    row("a folded length", post("A", "Content-Length:\r\n 3", body=b"abc")),
    row("a first line that is folded", post("A").replace(b"Host", b" Host")),
    row("no colon", post("A", "NoColon")),
    row("no name", post("A", ": x")),
    row("a blank in a name", post("A", "X Y: z")),
    row("no host", b"GET /A HTTP/1.1\r\nX-Mark: A\r\n\r\n"),
    row("two hosts", post("A", "Host: b")),
    row(
        "an upgrade that is declined",
        post("A", "Connection: Upgrade", "Upgrade: websocket"),
        B,
        runs="A B",
        statuses=(200, 200),
    ),
    row(
        "an upgrade, and frames",
        post("A", "Connection: Upgrade", "Upgrade: websocket") + b"\x81\x05hello",
        runs="A",
        statuses=(200,),
    ),
    # -- bounds
    row("a long header", post("A", "X: " + "a" * MAX_HEADER_BYTES), statuses=(431,)),
    row("many short ones", post("A", *["X: y"] * 300), statuses=(431,)),
    row("all of them together", post("A", *["X: " + "a" * 3000] * 4), statuses=(431,)),
    row("a long target", post("A" * (MAX_HEADER_BYTES + 1)), statuses=(431,)),
    row("a head without end", b"GET /A HTTP/1.1\r\n" + b"X: a\r\n" * 3000, statuses=(431,)),
    row("a line without end", b"GET /" + b"a" * 20_000, statuses=(431,)),
    # -- what comes before the answer
    row("pipelined", post("A", method="GET") + B, runs="A", statuses=(200,)),
    row("half a head behind", post("A", method="GET") + B[:10], B[10:], runs="A", statuses=(200,)),
    row("a line end behind a body", sized("A", b"abc") + b"\r\n", B, runs="A", statuses=(200,)),
    row("a line end behind an answer", sized("A", b"abc"), b"\r\n", B, runs="A B", statuses=(200, 200)),
    row("line ends, and the next", sized("A", b"abc"), b"\r\n\r\n" + B, runs="A B", statuses=(200, 200)),
    row("a bare LF behind an answer", sized("A", b"abc"), b"\n" + B, runs="A", statuses=(200, 400)),
    row("a refused one behind", sized("A", b"abc") + b"nonsense\r\n\r\n", runs="A", statuses=(200,)),
    row("a good one behind a refused one", b"nonsense\r\n\r\n" + B),
    row("a good one in the next packet behind a refused one", b"nonsense\r\n\r\n", B),
    row(
        "part of A, the rest and B in chunks, C, D",
        sized("A", b"abcdef")[:-3],
        b"def" + chunks("B", b"b"),
        post("C", method="GET"),
        post("D", method="GET"),
        runs="A",
        statuses=(200,),
    ),
    row(
        "A in chunks in three packets, then B",
        chunks("A", b"abc", b"def")[:-14],
        chunks("A", b"abc", b"def")[-14:-3],
        chunks("A", b"abc", b"def")[-3:],
        B,
        runs="A B",
        statuses=(200, 200),
    ),
    row("the end of connection asked for", post("A", "Connection: close"), B, runs="A", statuses=(200,)),
    row("the end asked for, and more", post("A", "Connection: close") + B, runs="A", statuses=(200,)),
]


async def played(it: Row, echo: Echo) -> bytes:
    """What the client gets."""
    bystander, others = echo.connect(2)
    protocol, wire = echo.connect(1)
    for packet in it.packets:
        if not wire.is_cut:
            protocol.data_received(packet)
        await settle()
    bystander.data_received(post("bystander", method="GET"))
    await settle()
    (answer,) = answers_in(bytes(others.written))
    assert (answer.status, answer.mark) == (200, b"bystander")
    assert echo.runs.pop().value(b"x-mark") == b"bystander"
    assert echo.failures == []
    return bytes(wire.written)


@pytest.mark.parametrize("it", ROWS)
async def test_a_row(it: Row) -> None:
    """The client sees these statuses, and this runs; h11 reads no less."""
    echo = Echo()
    answers = answers_in(await played(it, echo))
    assert tuple(answer.status for answer in answers) == it.statuses
    whole = [run for run in echo.runs if run.is_whole]
    assert [(run.value(b"x-mark") or b"-").decode() for run in whole] == list(it.runs)
    assert all(run.value(b"authorization") is None for run in echo.runs)
    for run, other in zip(whole, requests_in(b"".join(it.packets)), strict=False):
        assert (run.method, run.target, run.body) == (other.method, other.target, other.body)
    if it.statuses == (400,) and not echo.runs:
        assert echo.unread == [400]
    await echo.server.close()


@pytest.mark.parametrize("it", ROWS)
async def test_a_row_in_single_bytes(it: Row) -> None:
    """Wherever packets are cut, no more runs than in one piece, and nothing hangs."""
    echo = Echo()
    protocol, wire = echo.connect(1)
    for byte in b"".join(it.packets)[:12_000]:
        if wire.is_cut:
            break
        protocol.data_received(bytes([byte]))
        if wire.written and not wire.has_ended:
            await settle(4)
    await settle()
    answers = answers_in(bytes(wire.written))
    assert {answer.status for answer in answers} <= {200, *it.statuses}
    ran = [run.value(b"x-mark") for run in echo.runs if run.is_whole]
    assert set(ran) <= ({b"A", b"B", b"C", b"D"} if it.runs else set())
    await echo.server.close()


# -- floods -----------------------------------------------------------------------------------------------------------


async def test_headers_while_a_request_is_under_way_take_no_memory() -> None:
    """What is not interpreted is not kept either, however much it is."""
    echo = Echo(gate=asyncio.Event())
    protocol, wire = echo.connect()
    protocol.data_received(post("A", method="GET"))
    await settle()
    for _ in range(300):
        protocol.data_received(b"X: " + b"a" * 60_000 + b"\r\n")
    assert protocol._begun == b""
    assert echo.gate is not None
    echo.gate.set()
    await settle()
    (answer,) = answers_in(bytes(wire.written))
    assert (answer.mark, answer.closes, wire.has_ended) == (b"A", True, True)
    await echo.server.close()


async def test_a_body_that_nobody_reads_is_not_taken() -> None:
    """Behind its head the client is not read from before somebody waits for more, nor is it while that one is at work."""
    echo = Echo(reads=False, gate=asyncio.Event())
    protocol, wire = echo.connect()
    protocol.data_received(post("A", "Content-Length: 100000000"))
    assert wire.is_paused
    upload = protocol._upload
    assert upload is not None
    chunks = upload.chunks()
    for size in (10, MAX_UNREAD_BYTES + 1):
        reading = asyncio.ensure_future(anext(chunks))
        await settle()
        assert not wire.is_paused
        protocol.data_received(b"a" * size)
        assert len(await reading) == size
    protocol.data_received(b"a" * (MAX_UNREAD_BYTES + 1))
    assert wire.is_paused
    await echo.server.close()


@pytest.mark.parametrize("reads", [pytest.param(True, id="read"), pytest.param(False, id="not read")])
async def test_a_large_body_that_is_whole_leaves_nobody_deaf(reads: bool) -> None:
    """However much of it came at a time: the client may leave, and its next request is heard."""
    echo = Echo(reads=reads)
    protocol, wire = echo.connect()
    for _ in range(3):
        protocol.data_received(sized("A", b"a" * (3 * MAX_UNREAD_BYTES)))
        assert not wire.is_paused
        await settle()
    assert len(answers_in(bytes(wire.written))) == 3
    await echo.server.close()


async def test_a_body_that_breaks_leaves_nobody_deaf() -> None:
    """Nor one whose framing is wrong behind a part that nobody has taken."""
    echo = Echo(reads=False, gate=asyncio.Event())
    protocol, wire = echo.connect()
    protocol.data_received(chunks("A", b"a" * (2 * MAX_UNREAD_BYTES), end=b""))
    await settle()
    assert wire.is_paused
    protocol.data_received(b"zz\r\n")  # what was read already
    assert not wire.is_paused
    await echo.server.close()


async def test_what_comes_behind_the_last_answer_is_read_for_a_while() -> None:
    """So that a reset does not take the answer from a client that still sends; but not for ever."""
    echo = Echo()
    protocol, wire = echo.connect()
    protocol.data_received(b"nonsense\r\n\r\n")
    assert (echo.unread, wire.has_ended, wire.is_cut) == ([400], True, False)
    for _ in range(MAX_LEFTOVER_BYTES // 50_000 + 1):
        protocol.data_received(b"a" * 50_000)
    assert wire.is_cut
    await settle()
    assert echo.unread == [400]
    await echo.server.close()


async def test_the_rest_of_a_body_that_nobody_wanted_is_read_to_its_end() -> None:
    """Then the connection is closed at once."""
    echo = Echo(reads=False)
    protocol, wire = echo.connect()
    body = b"a" * 300_000
    request = sized("A", body)
    protocol.data_received(request[:1000])
    await settle()
    assert (protocol._phase, wire.is_cut) == (Phase.LINGERING, False)
    protocol.data_received(request[1000:])
    assert wire.is_cut
    assert len(echo.runs) == 1
    await echo.server.close()
