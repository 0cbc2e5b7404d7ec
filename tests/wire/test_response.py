"""Where a response begins and ends, however its bytes are cut, and what is not read at all."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire import response
from mcp_sidecar.wire.response import MAX_CHUNK_LINE_BYTES, NotHttp, ResponseReader, read_head

MAX_HEAD = 4096
LENGTH_2 = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(*parts: bytes, to_head: bool = False) -> tuple[ResponseReader, bytes]:
    """A reader that has got these parts, and what it made of the body."""
    reader = ResponseReader(to_head=to_head, max_head_bytes=MAX_HEAD)
    return reader, b"".join([reader.feed(part) for part in parts])


def head(*lines: str, first: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode()


# -- heads ------------------------------------------------------------------------------------------------------------


def test_a_head_is_told_as_it_came() -> None:
    """Names, values, their order and their bytes are the sender's; blanks around a value are nobody's."""
    data = b"HTTP/1.1 207 \xc3\xbcber\xff so\r\nA:b\r\na: \t c d \t\r\nX-E:\r\n\r\n"
    found = read_head(data)
    assert (found.status, found.reason) == (207, "über\udcff so")
    assert found.fields.pairs == [("A", "b"), ("a", "c d"), ("X-E", "")]
    assert found.fields.names == ["a", "a", "x-e"]


@pytest.mark.parametrize(
    ("first", "reason"), [("HTTP/1.1 200", ""), ("HTTP/1.1 200 ", ""), ("HTTP/1.0 200 a  b", "a  b")]
)
def test_a_reason_may_be_missing(first: str, reason: str) -> None:
    """RFC 9112 §4: it may be empty, and some leave out the blank before it as well."""
    assert read_head(head(first=first)).reason == reason


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok", id="a bare LF behind the status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 2\r\n\r\nok", id="a bare LF behind a field"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\rContent-Length: 2\r\n\r\nok", id="a bare CR"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\nok", id="a blank line of bare LFs"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", id="a folded line"),
        pytest.param(b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n", id="a blank before the first field"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", id="a blank before the colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA b\r\n\r\n", id="no colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\n: b\r\n\r\n", id="no name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA\x00: b\r\n\r\n", id="a NUL in a name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\x00c\r\n\r\n", id="a NUL in a value"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\x0bc\r\n\r\n", id="a vertical tab"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\xc3\xa4: b\r\n\r\n", id="a name that is no token"),
        pytest.param(head("Content-Length: 2", "Content-Length: 3"), id="two lengths"),
        pytest.param(head("Content-Length: 2", "content-length: 2"), id="one length twice"),
        pytest.param(head("Content-Length: 2, 2"), id="a list of lengths"),
        pytest.param(head("Content-Length: +2"), id="a sign"),
        pytest.param(head("Content-Length: 0x2"), id="a length in hex"),
        pytest.param(head("Content-Length: ٢"), id="a digit of another script"),
        pytest.param(head("Content-Length:"), id="an empty length"),
        pytest.param(head("Content-Length: -1"), id="a negative length"),
        pytest.param(head("Content-Length: 2", "Transfer-Encoding: chunked"), id="two framings"),
        pytest.param(head("Transfer-Encoding: gzip, chunked"), id="a coding that would be lost"),
        pytest.param(head("Transfer-Encoding: identity"), id="a coding that is none"),
        pytest.param(head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), id="chunks twice"),
        pytest.param(head("Transfer-Encoding: \x0bchunked"), id="a coding in disguise"),
        pytest.param(head(first="HTTP/1.1 101 Switching Protocols"), id="another protocol"),
        pytest.param(head(first="HTTP/2.0 200 OK"), id="another version"),
        pytest.param(head(first="HTTP/1.1 20 OK"), id="a short status"),
        pytest.param(head(first="HTTP/1.1 2000 OK"), id="a long status"),
        pytest.param(head(first="HTTP/1.1 000 OK"), id="no status"),
        pytest.param(head(first="HTTP/1.1  200 OK"), id="two blanks"),
        pytest.param(b"\r\nHTTP/1.1 200 OK\r\n\r\n", id="a blank line first"),
        pytest.param(b"SSH-2.0-x\r\n", id="not HTTP"),
        pytest.param(head("A: " + "a" * MAX_HEAD), id="too large"),
        pytest.param(head(*["A: b"] * 257), id="too many"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_HEAD, id="too large without an end"),
    ],
)
def test_what_could_be_read_in_two_ways_is_not_read(data: bytes) -> None:
    """Whoever reads on would read something else than another reader, and that is where answers change their clients."""
    for parts in ([data], [data[at : at + 1] for at in range(len(data))]):
        reader, content = read(*parts)
        assert reader.is_broken
        assert (reader.head, content, reader.may_be_followed) == (None, b"", False)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x46", response.NO_STATUS_LINE),
        (b"HTTP/2.0 200 OK\r\n\r\n", response.NO_STATUS_LINE),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", response.NO_STATUS_LINE),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", response.BAD_LINE),
        (b"HTTP/1.1 200 OK\nA: b\n\n", response.BAD_LINE),
        (head(*["A: b"] * 257), response.TOO_MANY_FIELDS),
        (head("A: " + "a" * MAX_HEAD), response.TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_HEAD, response.TOO_LARGE),
        (head("Content-Length: 2", "Transfer-Encoding: chunked"), response.TWO_FRAMINGS),
        (head("Content-Length: 2", "Content-Length: 2"), response.BAD_LENGTH),
        (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), response.BAD_CODING),
        (head("Transfer-Encoding: identity", "Content-Length: 2"), response.TWO_FRAMINGS),
        (head(first="HTTP/1.1 101 Switching Protocols"), response.ANOTHER_PROTOCOL),
        (CHUNKED + b"zz\r\n", response.BAD_CHUNK),
    ],
)
def test_it_is_said_why_an_answer_is_not_read(data: bytes, why: str) -> None:
    """Else nobody can tell a server that sends a header twice from one that is broken."""
    for parts in ([data], [data[at : at + 1] for at in range(len(data))]):
        assert read(*parts)[0].why_broken == why


def test_a_head_that_is_not_whole_is_waited_for() -> None:
    """Every beginning of a good head may still become one."""
    data = head("A: b", "Content-Length: 0")
    reader = ResponseReader(to_head=False, max_head_bytes=MAX_HEAD)
    for at in range(len(data)):
        assert (reader.head, reader.is_broken) == (None, False)
        reader.feed(data[at : at + 1])
    assert reader.has_ended


@pytest.mark.parametrize(
    ("first", "lines", "persists"),
    [
        ("HTTP/1.1 200 OK", [], True),
        ("HTTP/1.1 200 OK", ["Connection: close"], False),
        ("HTTP/1.1 200 OK", ["Connection: x, CLOSE"], False),
        ("HTTP/1.1 200 OK", ["Connection: keep-alive", "Connection: close"], False),
        ("HTTP/1.0 200 OK", [], False),
        ("HTTP/1.0 200 OK", ["Connection: Keep-Alive"], True),
    ],
)
def test_who_keeps_a_connection(first: str, lines: list[str], persists: bool) -> None:
    """RFC 9112 §9.3."""
    reader, content = read(head("Content-Length: 2", *lines, first=first) + b"ok")
    assert (content, reader.has_ended, reader.may_be_followed) == (b"ok", True, persists)


@pytest.mark.parametrize(
    ("lines", "idle_time_s"),
    [
        ([], None),
        (["Keep-Alive: timeout=5"], 5),
        (["Keep-Alive: max=100, Timeout = 2"], 2),
        (['Keep-Alive: timeout="7"'], 7),
        (["Keep-Alive: max=3", "Keep-Alive: timeout=0"], 0),
        (["Keep-Alive: xtimeout=5"], None),
        (["Keep-Alive: timeout=soon"], None),
    ],
)
def test_how_long_a_connection_is_kept(lines: list[str], idle_time_s: float | None) -> None:
    """What the server says of it, whichever other parameters stand there."""
    assert read_head(head(*lines)).idle_time_s == idle_time_s


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "content"),
    [
        pytest.param(LENGTH_2 + b"ok", b"ok", id="a length"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"ok", id="chunks"),
        pytest.param(CHUNKED + b"1 ;a=b\r\no\r\n01\r\nk\r\n0;x\r\n\r\n", b"ok", id="extensions"),
        pytest.param(CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", id="hex"),
        pytest.param(
            b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\n" + LENGTH_2 + b"ok", b"ok", id="1xx"
        ),
        pytest.param(head(first="HTTP/1.1 204 No Content"), b"", id="204"),
        pytest.param(head("Content-Length: 0", first="HTTP/1.1 204 No Content"), b"", id="204 with a length of none"),
        pytest.param(head(first="HTTP/1.1 304 Not Modified"), b"", id="304"),
    ],
)
def test_an_answer_ends_where_it_says(data: bytes, content: bytes) -> None:
    """In one piece, byte by byte, and cut in two anywhere; another answer may come behind it."""
    ways = [[data], [data[at : at + 1] for at in range(len(data))]]
    ways += [[data[:at], data[at:]] for at in range(1, len(data))]
    for parts in ways:
        reader, found = read(*parts)
        assert (found, reader.has_ended, reader.may_be_followed, reader.is_broken) == (content, True, True, False)


@pytest.mark.parametrize(
    ("data", "content", "to_head"),
    [
        pytest.param(LENGTH_2 + b"okHTTP/1.1 200 OK\r\n\r\n", b"ok", False, id="another answer"),
        pytest.param(LENGTH_2 + b"ok\r\n", b"ok", False, id="a line end"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\n\r\n\0", b"ok", False, id="a byte behind chunks"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\nA: b\r\n\r\n", b"ok", False, id="trailers"),
        pytest.param(head("Content-Length: 9", first="HTTP/1.1 204 No Content"), b"", False, id="204 with a length"),
        pytest.param(
            head("Transfer-Encoding: chunked", first="HTTP/1.1 204 No Content"), b"", False, id="204 in chunks"
        ),
        pytest.param(
            head("Transfer-Encoding: chunked", first="HTTP/1.1 204 No Content") + b"0\r\n\r\n",
            b"",
            False,
            id="204, chunks",
        ),
        pytest.param(head("Content-Length: 9", first="HTTP/1.1 304 Not Modified"), b"", False, id="304 with a length"),
        pytest.param(head("Content-Length: 2"), b"", True, id="HEAD with a length"),
        pytest.param(head("Content-Length: 2") + b"ok", b"", True, id="HEAD with a body"),
        pytest.param(head("Transfer-Encoding: chunked"), b"", True, id="HEAD in chunks"),
        pytest.param(
            head("Content-Length: 2", first="HTTP/1.1 100 Continue") + LENGTH_2 + b"ok",
            b"ok",
            False,
            id="1xx with a length",
        ),
        pytest.param(
            head("Transfer-Encoding: chunked", first="HTTP/1.0 200 OK") + b"0\r\n\r\n", b"", False, id="old chunks"
        ),
    ],
)
def test_an_answer_that_is_whole_and_the_last(data: bytes, content: bytes, to_head: bool) -> None:
    """What two readers may tell apart from the next answer leaves this one whole, and ends the connection."""
    for parts in ([data], [data[at : at + 1] for at in range(len(data))]):
        reader, found = read(*parts, to_head=to_head)
        assert (found, reader.has_ended, reader.may_be_followed, reader.is_broken) == (content, True, False, False)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(b"2\r\nok\r\nzz\r\n", id="no size"),
        pytest.param(b"2\r\nok\r\n\r\n", id="an empty size"),
        pytest.param(b"2\r\nok\r\n-1\r\n", id="a sign"),
        pytest.param(b"2\r\nok\r\n0x1\r\n", id="a prefix"),
        pytest.param(b"2\r\nok\r\n1_0\r\n", id="an underscore"),
        pytest.param(b"2\r\nok\r\n" + b"f" * 16 + b"\r\n", id="too large a size"),
        pytest.param(b"2\r\nok\r\n1\nx\r\n", id="a bare LF behind a size"),
        pytest.param(b"2\r\nok\r\n1;a\x00\r\nx", id="a NUL in an extension"),
        pytest.param(b"2\r\nok\n0\r\n\r\n", id="a bare LF behind a chunk"),
        pytest.param(b"2\r\nokk\r\n0\r\n\r\n", id="a chunk that is longer"),
        pytest.param(b"2\r\nok\r\n0\r\nA b\r\n\r\n", id="a bad trailer"),
        pytest.param(b"2\r\nok\r\n0\r\nA: b\n\r\n", id="a bare LF in a trailer"),
        pytest.param(b"2\r\nok\r\n0\r\nA: " + b"a" * MAX_HEAD + b"\r\n\r\n", id="too large a trailer"),
        pytest.param(b"2\r\nok\r\n1;" + b"a" * MAX_CHUNK_LINE_BYTES + b"\r\nx\r\n", id="too large an extension"),
    ],
)
def test_bad_chunks_break_the_body_and_spoil_nothing_before(chunks: bytes) -> None:
    """What came before the fault is content."""
    for parts in ([CHUNKED + chunks], [CHUNKED, *(chunks[at : at + 1] for at in range(len(chunks)))]):
        reader, found = read(*parts)
        assert (found, reader.is_broken, reader.has_ended, reader.may_be_followed) == (b"ok", True, False, False)


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    """It is content to its last byte, and nothing can follow."""
    reader, found = read(b"HTTP/1.1 200 OK\r\n\r\n", b"some", b"HTTP/1.1 200 OK\r\n\r\n")
    assert found == b"someHTTP/1.1 200 OK\r\n\r\n"
    assert reader.ends_with_connection
    assert not reader.has_ended
    assert not reader.may_be_followed


# -- beside another reader --------------------------------------------------------------------------------------------

LINES = [b"A: b\r\n", b"Content-Type: text/plain\r\n", b"Connection: keep-alive\r\n", b"Date: x\r\n"]
FRAMINGS = [
    (b"Content-Length: 3\r\n", b"abc"),
    (b"Content-Length: 0\r\n", b""),
    (b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: Chunked\r\n", b"1\r\na\r\n2;x=y\r\nbc\r\n0\r\nT: u\r\n\r\n"),
]
PUT = [b"", b" ", b"\r", b"\n", b"\r\n", b"\x00", b"\x7f", b"\xff", b":", b";", b"\t", b"0", b"3", b","]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Mostly good answers, some with bytes changed at random."""
    framing, body = draw(st.sampled_from(FRAMINGS))
    lines = draw(st.permutations([framing, *draw(st.lists(st.sampled_from(LINES), max_size=3))]))
    first = draw(st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 404 Not Found\r\n", b"HTTP/1.1 204 No\r\n"]))
    data = first + b"".join(lines) + b"\r\n" + body
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(PUT)) + data[at + draw(st.integers(0, 2)) :]
    return data


def as_h11_reads(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Status, body and what stands behind the answer; ``None`` where h11 refuses it or waits for more."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body = 0, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return None
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return status, body, bytes(connection.trailing_data[0])
        elif event is h11.NEED_DATA:
            return None


@given(answers(), st.lists(st.integers(0, 120), max_size=4))
def test_nothing_is_read_otherwise_than_h11_reads_it(data: bytes, cuts: list[int]) -> None:
    """An answer that may be followed is the same for both readers, to its last byte; h11 is the more lenient of them."""
    places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    reader, content = read(*(data[start:end] for start, end in pairwise(places)))
    if reader.may_be_followed:
        assert reader.head is not None
        assert as_h11_reads(data) == (reader.head.status, content, b"")


def test_a_head_is_refused_as_an_error() -> None:
    """For whoever reads a head alone."""
    with pytest.raises(NotHttp):
        read_head(b"HTTP/1.1 200 OK\nA: b\r\n\r\n")
