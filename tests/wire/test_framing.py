"""Where a message ends: what comes behind it is never taken for a part of it."""

from __future__ import annotations

import pytest

from mcp_sidecar.wire.framing import Extent

HEAD = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"
CHUNKED = HEAD + b"3\r\nabc\r\n0\r\n\r\n"


def extent_of(*parts: bytes) -> Extent:
    extent = Extent()
    for part in parts:
        extent.add(part)
    return extent


@pytest.mark.parametrize(
    ("parts", "ends"),
    [
        pytest.param([HEAD + b"abc"], True, id="whole"),
        pytest.param([HEAD, b"a", b"bc"], True, id="in parts"),
        pytest.param([HEAD + b"ab"], False, id="too short"),
        pytest.param([HEAD + b"abcH"], False, id="more"),
        pytest.param([HEAD + b"abc", b"HTTP/1.1 200 OK\r\n"], False, id="another head begins"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"abc"], False, id="100 first"),
        pytest.param([HEAD[:9], HEAD[9:] + b"abc"], False, id="a head in two parts is not looked for"),
        pytest.param([b""], False, id="nothing"),
    ],
)
def test_a_body_with_a_length_ends_where_it_says(parts: list[bytes], ends: bool) -> None:
    """Known only where the head came in one part."""
    assert extent_of(*parts).ends_after(3) is ends


def test_a_head_may_be_all() -> None:
    """Answers to HEAD, and those that never have a body."""
    assert extent_of(HEAD).ends_after(0)
    assert not extent_of(HEAD + b"H").ends_after(0)


@pytest.mark.parametrize(
    ("parts", "ends"),
    [
        pytest.param([CHUNKED], True, id="whole"),
        pytest.param([HEAD + b"0\r\n\r\n"], True, id="empty"),
        pytest.param([CHUNKED[:-1]], False, id="one byte is missing"),
        pytest.param([CHUNKED[:-5] + b"0\r\nX-Trailer: y\r\n\r\n"], False, id="a trailer"),
        pytest.param([CHUNKED[:-5] + b"0;x=y\r\n\r\n"], False, id="an extension"),
        pytest.param([CHUNKED[:-5] + b"00\r\n\r\n"], False, id="two zeros"),
        pytest.param([CHUNKED + b"H"], False, id="more"),
        pytest.param([CHUNKED, b"HTTP/1.1 200 OK\r\n"], False, id="another head begins"),
        *(pytest.param([CHUNKED[:at], CHUNKED[at:]], True, id=f"cut at {at}") for at in range(1, len(CHUNKED))),
        pytest.param([bytes([byte]) for byte in CHUNKED], True, id="byte by byte"),
    ],
)
def test_a_body_in_chunks_ends_plainly_or_not(parts: list[bytes], ends: bool) -> None:
    """Trailers are no plain end, and neither is what follows the end."""
    assert extent_of(*parts).ends_with_chunks is ends
