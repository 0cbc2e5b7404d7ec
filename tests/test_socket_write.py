"""What is written past the loop: at once, in its order, and never into another's connection."""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mcp_sidecar import socket_write
from tests.support.certificates import make_certificate, serving
from tests.support.waiting import HANG_S

LARGE = 4 * 1024 * 1024


class Connected(asyncio.Protocol):
    """A protocol that notes what it is told."""

    def __init__(self) -> None:
        self.pauses = 0
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def pause_writing(self) -> None:
        """Its buffer is full."""
        self.pauses += 1

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is over."""
        self.lost.set_result(exc)


async def on_uvloop(work: Callable[[], Awaitable[None]]) -> None:
    """Run it on a loop of uvloop's, in a thread of its own."""
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        async with asyncio.timeout(HANG_S):
            await work()

    def in_thread() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())

    await asyncio.to_thread(in_thread)


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one connection; the first one does not block."""
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


async def connected(near: socket.socket) -> tuple[asyncio.Transport, Connected]:
    """A transport on one end."""
    return await asyncio.get_running_loop().create_connection(Connected, sock=near)


def is_readable(end: socket.socket) -> bool:
    """Whether something has come by now."""
    return bool(select.select([end], [], [], 0)[0])


async def test_it_is_sent_before_the_turn_ends() -> None:
    """The loop need not turn for it."""

    async def work() -> None:
        with pair() as (near, far):
            transport, _ = await connected(near)
            descriptor = socket_write.descriptor_of(transport)
            assert descriptor == near.fileno()
            socket_write.write(transport, descriptor, b"at once")
            assert is_readable(far)
            assert far.recv(100) == b"at once"
            transport.close()

    await on_uvloop(work)


async def test_what_a_slow_reader_gets_is_in_order() -> None:
    """Whether a piece is taken at once, in part, or not at all: none overtakes another, and the buffer tells of its limit."""

    async def work() -> None:
        chance, loop = random.Random(7), asyncio.get_running_loop()
        with pair() as (near, far):
            transport, protocol = await connected(near)
            descriptor = socket_write.descriptor_of(transport)
            sent, got = bytearray(), bytearray()
            while len(sent) < LARGE:
                piece = chance.randbytes(chance.choice((1, 300, 70_000, 400_000)))
                socket_write.write(transport, descriptor, piece)
                sent += piece
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                if chance.random() < 0.3 and is_readable(far):
                    got += far.recv(100_000)
            assert protocol.pauses > 0
            far.setblocking(False)
            while len(got) < len(sent):
                got += await loop.sock_recv(far, 1 << 20)
            assert got == sent
            transport.close()

    await on_uvloop(work)


async def test_nothing_goes_to_whoever_has_its_descriptor_now() -> None:
    """A descriptor is given to the next connection as soon as its transport is closed."""

    async def work() -> None:
        with pair() as (near, far):
            transport, protocol = await connected(near)
            descriptor = socket_write.descriptor_of(transport)
            assert descriptor is not None
            transport.abort()
            await protocol.lost
            near.close()
            other, others_far = socket.socketpair()
            with other, others_far:
                if other.fileno() != descriptor:
                    os.dup2(other.fileno(), descriptor)
                with pytest.raises(RuntimeError, match="closed"):
                    socket_write.write(transport, descriptor, b"for the one before")
                assert not is_readable(others_far)
                if other.fileno() != descriptor:
                    os.close(descriptor)
            assert far.recv(100) == b""

    await on_uvloop(work)


async def test_a_peer_that_has_left_is_met_by_the_transport() -> None:
    """What cannot be written is told as ever: by the end of the connection."""

    async def work() -> None:
        with pair() as (near, far):
            transport, protocol = await connected(near)
            descriptor = socket_write.descriptor_of(transport)
            transport.pause_reading()  # so that it does not learn of the end by itself
            far.close()
            socket_write.write(transport, descriptor, b"for nobody")
            assert isinstance(await protocol.lost, ConnectionError)

    await on_uvloop(work)


async def test_a_loop_that_writes_at_once_is_left_alone() -> None:
    """asyncio's own needs no help."""
    with pair() as (near, far):
        transport, protocol = await connected(near)
        assert socket_write.descriptor_of(transport) is None
        socket_write.write(transport, None, b"all the same")
        assert far.recv(100) == b"all the same"
        transport.close()
        await protocol.lost


async def test_nothing_goes_past_tls(tmp_path: Path) -> None:
    """What stands on the socket is not what is written."""
    serves = serving(make_certificate(tmp_path))
    believes = ssl.create_default_context()
    believes.check_hostname, believes.verify_mode = False, ssl.CERT_NONE

    async def work() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Connected, "127.0.0.1", 0, ssl=serves)
        transport, _ = await loop.create_connection(Connected, *server.sockets[0].getsockname(), ssl=believes)
        assert socket_write.descriptor_of(transport) is None
        transport.abort()
        server.close()

    await on_uvloop(work)
