"""Answers that are no plain HTTP: as none, and said so."""

from __future__ import annotations

import pytest

from mcp_sidecar.facts import AnswerUnreadable
from mcp_sidecar.wire import response
from tests.support.client import raw_exchange, raw_post
from tests.support.raw_upstream import RawUpstream
from tests.support.sidecar import running_sidecar
from tests.upstream.sending import sends

CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"charge"}}'
CHUNKED = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\n%b%b\r\n2\r\n{}\r\n0\r\n\r\n" % (CHUNKED, CHUNKED), response.BAD_CODING, id="twice"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n%b\r\n2\r\n{}0\r\n\r\n" % CHUNKED, response.BAD_CHUNK, id="in its body"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", response.NO_STATUS_LINE, id="TLS"),
    ],
)
async def test_why_an_answer_could_not_be_read_is_told(answer: bytes, why: str) -> None:
    """A server that frames its answers badly is up and answers nobody: only its bytes tell which header it is."""
    async with RawUpstream(sends(answer, then="wait")) as upstream, running_sidecar(upstream.url) as sidecar:
        got = await raw_exchange(sidecar.port, raw_post(sidecar.port, CALL))
        assert b'"outcome_unknown"' in got.data
        assert sidecar.of(AnswerUnreadable) == [AnswerUnreadable(why)]
