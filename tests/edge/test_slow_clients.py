"""Clients that are silent in their turn, or take nothing: each is given up, and nobody else is. Time is told, not waited for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from mcp_sidecar.downstream.common import MAX_LONG_IDLE, Patience
from tests.edge.echo import Echo, Wire, settle
from tests.edge.readers import answers_in

PATIENCE = Patience()
LATER = 1000.0
GET = b"GET /A HTTP/1.1\r\nHost: a\r\nX-Mark: A\r\n\r\n"
POST = b"POST /A HTTP/1.1\r\nHost: a\r\nX-Mark: A\r\n"
SIZED = POST + b"Content-Length: 10\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Slow:
    """What it sends, how long it may wait then, and the statuses that it sees."""

    sends: tuple[bytes, ...]
    patience_s: float = PATIENCE.client_s
    statuses: tuple[int, ...] = ()
    echo: dict[str, object] = field(default_factory=dict)
    untaken: int = 0


SLOW = [
    pytest.param(Slow((), PATIENCE.idle_s), id="says nothing"),
    pytest.param(Slow((b"GE",), statuses=(408,)), id="a part of a method"),
    pytest.param(Slow((GET[:20],), statuses=(408,)), id="a part of a head"),
    pytest.param(Slow((GET[:-2],), statuses=(408,)), id="all but the end of a head"),
    pytest.param(Slow((SIZED,), statuses=(400,)), id="a head without its body"),
    pytest.param(Slow((SIZED + b"abc",), statuses=(400,)), id="a part of a body"),
    pytest.param(Slow((CHUNKED + b"5",), statuses=(400,)), id="a part of a chunk's size"),
    pytest.param(Slow((CHUNKED + b"5\r\nab",), statuses=(400,)), id="a part of a chunk"),
    pytest.param(Slow((CHUNKED + b"2\r\nab\r\n",), statuses=(400,)), id="no last chunk"),
    pytest.param(Slow((CHUNKED + b"2\r\nab\r\n0\r\nX: y\r\n",), statuses=(400,)), id="trailers without an end"),
    pytest.param(
        Slow((POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n",), statuses=(400,)), id="asked to go on"
    ),
    pytest.param(Slow((GET,), PATIENCE.idle_s, (200,)), id="nothing behind an answer"),
    pytest.param(Slow((GET,), statuses=(200,), untaken=10), id="takes nothing of an answer"),
    pytest.param(
        Slow((GET,), PATIENCE.stream_s, (), {"is_stream": True, "gate": None}, untaken=10),
        id="takes nothing of a stream",
    ),
    pytest.param(Slow((b"nonsense\r\n\r\n",), PATIENCE.linger_s, (400,)), id="lingers over a refusal"),
    pytest.param(Slow((SIZED + b"abc",), PATIENCE.linger_s, (200,), {"reads": False}), id="never ends its body"),
    pytest.param(
        Slow((b"GET /A HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",), statuses=(200,), untaken=10),
        id="a last answer",
    ),
]


class Streaming(Echo):
    """Keeps its stream open."""

    async def _answer(self, *asked: object) -> None:
        await super()._answer(*asked)  # type: ignore[arg-type]
        if self.is_stream:
            await asyncio.Event().wait()


@pytest.mark.parametrize("slow", SLOW)
async def test_it_is_given_up(slow: Slow) -> None:
    """Not before its time, and soon after it; whoever sent a byte of it has all of the time again."""
    echo = Streaming(**slow.echo)  # type: ignore[arg-type]
    protocol, wire = echo.connect()
    wire.untaken = slow.untaken
    for packet in slow.sends:
        protocol.data_received(packet)
    await settle()
    protocol.look(LATER)  # from now on it is known to be silent
    protocol.look(LATER + slow.patience_s - 0.1)
    await settle()
    assert not wire.is_cut
    seen = len(wire.written)
    protocol.look(LATER + slow.patience_s + 0.1)
    await settle()
    assert wire.has_ended
    protocol.look(LATER * 2)
    protocol.look(LATER * 3)  # whoever lingers over that
    await settle()
    assert wire.is_cut
    assert (echo.under_way, echo.failures, protocol._task) == (0, [], None)
    assert protocol not in echo.server.connections
    if not slow.echo.get("is_stream"):
        assert tuple(answer.status for answer in answers_in(bytes(wire.written))) == slow.statuses
    assert seen <= len(wire.written)
    await echo.server.close()


async def test_line_ends_keep_no_connection() -> None:
    """They are no request, nor the beginning of one."""
    echo = Echo()
    protocol, wire = echo.connect()
    protocol.data_received(GET)
    await settle()
    protocol.look(LATER)
    protocol.data_received(b"\r\n")
    protocol.look(LATER + PATIENCE.idle_s + 0.1)
    await settle()
    assert wire.has_ended
    assert [answer.status for answer in answers_in(bytes(wire.written))] == [200]
    await echo.server.close()


async def test_an_edge_closes_its_idle_connections_itself() -> None:
    """It keeps them for longer than we would; one that we close as its next request comes is a 502 for somebody, or a lost call."""
    echo = Echo(patience=Patience(is_edge="127.0.0.1".__eq__))
    protocol, wire = echo.connect()
    protocol.data_received(GET)
    await settle()
    protocol.look(LATER)
    protocol.look(LATER + 4000.0)  # as long as any of the known ones can be told to
    assert not wire.has_ended
    protocol.look(LATER + PATIENCE.edge_idle_s + 0.1)
    assert wire.has_ended
    await echo.server.close()


async def test_an_edge_that_has_never_asked_has_no_more_time_than_others() -> None:
    """It keeps what it has used: a connection without any request is a client that counts as one by its address."""
    echo = Echo(patience=Patience(is_edge="127.0.0.1".__eq__))
    protocol, wire = echo.connect()
    protocol.look(LATER)
    protocol.look(LATER + PATIENCE.idle_s + 0.1)
    assert wire.has_ended
    await echo.server.close()


async def test_idle_connections_of_an_edge_are_bounded() -> None:
    """Beyond so many nobody's are kept for longer: each takes one of the descriptors that calls need."""
    echo = Echo(patience=Patience(is_edge="127.0.0.1".__eq__))
    common, wires = echo.server._common, list[Wire]()

    async def ask() -> None:
        protocol, wire = echo.connect()
        protocol.data_received(GET)
        await settle()
        wires.append(wire)

    for _ in range(MAX_LONG_IDLE):
        await ask()
    common.look(LATER)
    common.look(LATER + PATIENCE.idle_s + 0.1)
    assert not any(wire.has_ended for wire in wires)
    await ask()
    common.look(LATER + PATIENCE.idle_s + 0.2)
    assert all(wire.has_ended for wire in wires[:-1]) and not wires[-1].has_ended
    await echo.server.close()


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(GET, id="a head"),
        pytest.param(SIZED + b"0123456789", id="a body"),
        pytest.param(CHUNKED + b"2\r\nab\r\n0\r\n\r\n", id="chunks"),
    ],
)
async def test_whoever_goes_on_has_its_time_anew(whole: bytes) -> None:
    """A byte now and then is slow, and no reason to give up."""
    echo = Echo()
    protocol, wire = echo.connect()
    now = LATER
    for byte in whole:
        protocol.data_received(bytes([byte]))
        for step in (0.0, 0.9):
            protocol.look(now + step * PATIENCE.client_s)
        now += PATIENCE.client_s
    await settle()
    assert [answer.status for answer in answers_in(bytes(wire.written))] == [200]
    await echo.server.close()


async def test_a_client_that_takes_a_little_is_not_given_up() -> None:
    """As long as something of the answer leaves."""
    echo = Echo()
    protocol, wire = echo.connect()
    wire.untaken = 1000
    protocol.data_received(GET)
    await settle()
    for step in range(50):
        wire.untaken -= 10
        protocol.look(LATER + step * PATIENCE.client_s * 0.9)
    assert not wire.is_cut
    await echo.server.close()


@pytest.mark.parametrize(
    ("asked", "echo"),
    [
        pytest.param(GET, {"gate": True}, id="an answer that takes long"),
        pytest.param(SIZED + b"0123456789", {"gate": True}, id="behind a whole body"),
        pytest.param(
            POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n",
            {"reads": False, "gate": True},
            id="nobody has asked for the body",
        ),
        pytest.param(GET, {"is_stream": True}, id="a silent stream"),
    ],
)
async def test_it_is_not_always_the_clients_turn(asked: bytes, echo: dict[str, object]) -> None:
    """A client that waits for us is not slow."""
    gate = asyncio.Event() if echo.pop("gate", False) else None
    it = Streaming(gate=gate, **echo)  # type: ignore[arg-type]
    protocol, wire = it.connect()
    protocol.data_received(asked)
    await settle()
    for step in range(10):
        protocol.look(LATER * step)
    assert not wire.has_ended
    await it.server.close()


async def test_one_timer_looks_after_all_of_them() -> None:
    """It runs only while somebody is connected."""
    echo = Echo()
    assert echo.server._common._timer is None
    clients = [echo.connect(number) for number in range(3)]
    timer = echo.server._common._timer
    assert timer is not None
    for protocol, wire in clients:
        wire.abort()
        await settle(2)
        assert protocol not in echo.server.connections
    echo.server._common._look()
    assert echo.server._common._timer is None
    timer.cancel()
    await echo.server.close()
