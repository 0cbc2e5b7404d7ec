"""Where a body ends: what comes behind it is never taken for a part of it, wherever packets are cut."""

from __future__ import annotations

from random import Random

import pytest

from mcp_sidecar.wire.framing import (
    LAST_CHUNK,
    MAX_SIZE_LINE_BYTES,
    MAX_TRAILER_BYTES,
    BadFraming,
    BodyFraming,
    ChunkedBody,
    SizedBody,
    chunk,
)

BEHIND = b"GET / HTTP/1.1\r\n"


def read(framing: BodyFraming, *parts: bytes) -> tuple[bytes, bytes]:
    """The body, and what came behind it."""
    body = behind = b""
    for part in parts:
        came, rest = framing.feed(part)
        body += came
        behind += rest
    return body, behind


def cut(draw: Random, data: bytes) -> list[bytes]:
    """The same in parts."""
    at = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randrange(6)))
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


@pytest.mark.parametrize(
    ("parts", "body", "behind"),
    [
        pytest.param([b"abc"], b"abc", b"", id="whole"),
        pytest.param([b"a", b"b", b"c"], b"abc", b"", id="in parts"),
        pytest.param([b"abc" + BEHIND], b"abc", BEHIND, id="more"),
        pytest.param([b"abc", BEHIND], b"abc", BEHIND, id="more, later"),
        pytest.param([b"ab"], b"ab", b"", id="less"),
    ],
)
def test_a_body_with_a_length_ends_there(parts: list[bytes], body: bytes, behind: bytes) -> None:
    """Not a byte sooner or later."""
    framing = SizedBody(3)
    assert read(framing, *parts) == (body, behind)
    assert framing.is_whole is (len(body) == 3)
    assert framing.is_plain


@pytest.mark.parametrize(
    ("data", "is_plain"),
    [
        pytest.param(chunk(b"abc") + chunk(b"def") + LAST_CHUNK, True, id="plain"),
        pytest.param(b"0000003\r\nabc\r\n3\r\ndef\r\n000\r\n\r\n", True, id="zeros in front"),
        pytest.param(b"3;a=b\r\nabc\r\n3 ; c\r\ndef\r\n0\r\n\r\n", False, id="extensions"),
        pytest.param(chunk(b"abcdef") + b"0\r\nA: b\r\nC:\r\n\r\n", False, id="trailers"),
        pytest.param(chunk(b"abcdef") + b"0;last\r\n\r\n", False, id="an extension of the last one"),
    ],
)
def test_chunks_are_read_alike_wherever_they_are_cut(data: bytes, is_plain: bool) -> None:
    """Trailers and extensions are left out, and told."""
    draw = Random(7)
    for _ in range(300):
        framing = ChunkedBody()
        assert read(framing, *cut(draw, data + BEHIND)) == (b"abcdef", BEHIND)
        assert (framing.is_whole, framing.is_plain) == (True, is_plain)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\r\n", id="no size"),
        pytest.param(b"g\r\n", id="not hex"),
        pytest.param(b"-1\r\n", id="a sign"),
        pytest.param(b"0x1\r\n", id="0x"),
        pytest.param(b"1_0\r\n", id="an underscore"),
        pytest.param(b" 1\r\n", id="a blank in front"),
        pytest.param(b"1 \r\n", id="a blank behind"),
        pytest.param(b"1\n", id="a bare line feed"),
        pytest.param(b"f" * 16 + b"\r\n", id="16 digits"),
        pytest.param(b"1;" + b"a" * MAX_SIZE_LINE_BYTES, id="an endless extension"),
        pytest.param(b"1;a\rb\r\n", id="a bare CR in an extension"),
        pytest.param(b"1;a\nb\r\n", id="a bare line feed in an extension"),
        pytest.param(b"1\r\nab\r\n", id="more data than that"),
        pytest.param(b"1\r\na\n", id="a bare line feed behind data"),
        pytest.param(b"1\r\na\r\r\n", id="two CRs behind data"),
        pytest.param(b"0\r\nno colon\r\n\r\n", id="a trailer without a colon"),
        pytest.param(b"0\r\n: x\r\n\r\n", id="a trailer without a name"),
        pytest.param(b"0\r\nA : b\r\n\r\n", id="a blank before the colon"),
        pytest.param(b"0\r\nA: b\r\n folded\r\n\r\n", id="a folded trailer"),
        pytest.param(b"0\r\nA: b\n\r\n", id="a trailer with a bare line feed"),
        pytest.param(b"0\r\n" + b"A: b\r\n" * (MAX_TRAILER_BYTES // 6 + 1), id="endless trailers"),
        pytest.param(b"0\r\nA: " + b"b" * MAX_TRAILER_BYTES, id="an endless trailer"),
    ],
)
def test_what_two_readers_could_read_differently_is_not_read(data: bytes) -> None:
    """In one piece and in single bytes."""
    with pytest.raises(BadFraming):
        ChunkedBody().feed(data)
    framing = ChunkedBody()
    with pytest.raises(BadFraming):
        read(framing, *(bytes([byte]) for byte in data))
    assert not framing.is_whole
