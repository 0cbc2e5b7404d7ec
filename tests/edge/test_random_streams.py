"""Many clients at a time with random streams: what each gets is its own, and nothing runs that was refused."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from random import Random

import pytest

from mcp_sidecar.downstream.connection import Phase
from tests.edge.echo import Echo, Run, Wire, settle
from tests.edge.readers import answers_in, requests_in

REQUESTS = int(os.environ.get("EDGE_REQUESTS", "100000"))
SHARES = 8
CLIENTS_AT_A_TIME = 20
SEED = 20261127

REFUSED = [
    b"GET /x HTTP/2.0\r\nHost: a\r\n\r\n",
    b"GET  /x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /x\r\nHost: a\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: a\nX-Mark: smuggled\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\nX-Mark: sm\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST /x HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
]


@dataclass(slots=True)
class Sent:
    """One message of a stream. ``is_refused``: nothing of it may run. ``ends``: nothing behind it is served."""

    data: bytes
    mark: bytes
    body: bytes
    is_refused: bool = False
    ends: bool = False


def message(draw: Random, mark: bytes) -> Sent:
    """A request, mostly a good one."""
    kind = draw.random()
    if kind < 0.03:
        return Sent(draw.choice(REFUSED), mark, b"", is_refused=True, ends=True)
    body = draw.randbytes(draw.choice((0, 1, 5, 40, 300) if draw.random() < 0.999 else (200_000,)))
    head = b"POST /%b HTTP/1.1\r\nHost: a\r\nX-Mark: %b\r\n" % (mark, mark)
    if kind < 0.1:
        head += b"Connection: close\r\n"
    if kind < 0.3:
        return Sent(b"GET /%b HTTP/1.1\r\nHost: a\r\nX-Mark: %b\r\n\r\n" % (mark, mark), mark, b"")
    if kind < 0.6:
        return Sent(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body), mark, body, ends=kind < 0.1)
    trailers = b"X-Mark: of-%b\r\nAuthorization: of-%b\r\n" % (mark, mark) if kind < 0.65 else b""
    extension = b";a=b" if kind > 0.97 else b""
    cut = draw.randrange(len(body) + 1)
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in (body[:cut], body[cut:]) if part)
    ends = bool(trailers) or (bool(extension) and bool(body))
    data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"
    return Sent(data, mark, body, ends=ends)


def pieces(draw: Random, data: bytes) -> list[bytes]:
    """The same bytes, in packets."""
    cuts = sorted({draw.randrange(1, len(data)) for _ in range(draw.choice((0, 0, 1, 2, 5)))})
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class Stream:
    """One client: some messages, sent one after the other or, from some point on, without waiting for answers."""

    def __init__(self, draw: Random, echo: Echo, number: int, count: int) -> None:
        self._draw = draw
        self._echo = echo
        self.messages = [message(draw, b"%d.%d" % (number, index)) for index in range(count)]
        self.impatient_from = draw.randrange(count) if draw.random() < 0.3 else count
        self.protocol, self.wire = echo.connect(number)
        self.said = b""

    async def run(self) -> None:
        """Send all of it, as long as the connection is open."""
        for sent in self.messages[: self.impatient_from]:
            await self._say(sent.data)
            await self._until_it_is_our_turn()
            if self._is_over:
                break
        if not self._is_over and self.impatient_from < len(self.messages):
            await self._say(b"".join(each.data for each in self.messages[self.impatient_from :]))
        await self._until_it_is_our_turn()
        await settle(4)

    @property
    def _is_over(self) -> bool:
        return self.wire.has_ended

    async def _say(self, data: bytes) -> None:
        for piece in pieces(self._draw, data):
            if self.wire.is_cut:
                return
            self.said += piece
            self.protocol.data_received(piece)
            if self._draw.random() < 0.3:
                await asyncio.sleep(0)

    async def _until_it_is_our_turn(self) -> None:
        for _ in range(2000):
            assert not self.wire.is_deaf
            if self._is_over or self.protocol._phase is Phase.IDLE:
                return
            await asyncio.sleep(0)
        raise AssertionError("a client hangs")


def check(stream: Stream, runs: list[Run]) -> int:
    """Every answer is its request's, what ran is the beginning of what was sent, and h11 reads no less."""
    answers = answers_in(bytes(stream.wire.written))
    expected = 0
    for index, answer in enumerate(answers):
        sent = stream.messages[index]
        if answer.status == 200:
            assert (answer.mark, answer.body) in ((sent.mark, sent.body), (sent.mark, sent.body or b"empty"))
            assert not sent.is_refused
            expected += 1
        else:
            assert sent.is_refused or b"zz" in sent.data
        if sent.ends or index >= stream.impatient_from:
            assert index == len(answers) - 1, "served behind what ends a connection"
            assert stream.wire.has_ended or index == len(stream.messages) - 1
    assert [run.value(b"x-mark") for run in runs if run.is_whole] == [m.mark for m in stream.messages[:expected]]
    for run, sent in zip(runs, stream.messages, strict=False):
        assert run.value(b"authorization") is None
        assert sent.body.startswith(run.body)
    return len(answers)


def check_against_h11(stream: Stream, runs: list[Run]) -> None:
    """What ran is what h11 reads of the same bytes, or less."""
    read = requests_in(stream.said)
    assert len(runs) <= len(read)
    for run, other in zip(runs, read, strict=False):
        assert (run.method, run.target, run.body) == (other.method, other.target, other.body)
        assert [(name.lower(), value) for name, value in run.fields] == other.fields


@pytest.mark.parametrize("share", range(SHARES))
async def test_no_answer_reaches_another_request(share: int) -> None:
    """Twenty clients at a time, cut and pipelined at random; every request and answer bears a mark."""
    draw = Random(SEED + share)
    done = number = 0
    while done < REQUESTS // SHARES:
        echo = Echo(draw=draw)
        count = draw.randrange(20, 60)
        streams = [Stream(draw, echo, number + each, count) for each in range(CLIENTS_AT_A_TIME)]
        number += len(streams)
        await asyncio.gather(*(stream.run() for stream in streams))
        by_client: dict[bytes, list[Run]] = {}
        for run in echo.runs:
            by_client.setdefault((run.value(b"x-mark") or b"").partition(b".")[0], []).append(run)
        for stream in streams:
            runs = by_client.pop(b"%d" % stream.wire.number, [])
            done += max(1, check(stream, runs))
            if stream.wire.number % 10 == 0:
                check_against_h11(stream, runs)
        assert all(run.value(b"x-mark") is None for left in by_client.values() for run in left)
        assert echo.failures == []
        await echo.server.close()


def test_a_stream_in_one_piece_is_read_as_in_many() -> None:
    """The generator of packets loses nothing."""
    draw = Random(SEED)
    sent = [message(draw, b"%d" % index) for index in range(200)]
    assert all(b"".join(pieces(draw, each.data)) == each.data for each in sent)
    assert isinstance(Wire(1), asyncio.Transport)
