"""The upstream's side by itself: one request, one answer, and every way in which that can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator

import pytest

from mcp_sidecar.config import UpstreamConfig
from mcp_sidecar.upstream.connect import WATCHED, Connector, is_connected_to_itself
from mcp_sidecar.upstream.content import CHUNK_BYTES, HIGH_BYTES, UpstreamFault
from mcp_sidecar.wire.faults import Fault
from tests.support.raw_upstream import OK, Conversation, Play, RawUpstream
from tests.support.waiting import HANG_S, eventually
from tests.upstream.sending import fault_of, sender, sends, to_the_fault, whole

OK_CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
IDLE_S = 0.1


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.long
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_connect_that_fails_leaves_no_error_behind(host: str) -> None:
    """Nor whoever called: Python 3.13.0 links the frame that an error came through to all that were waiting for it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        connector = Connector(
            UpstreamConfig(origin=f"http://{host}:{taken.getsockname()[1]}", connect_timeout_s=HANG_S)
        )
        gc.collect()
        gc.disable()
        try:
            alive: list[int] = []
            while len(alive) < 4:
                alive.append(errors_alive())
                with contextlib.suppress(UpstreamFault):
                    pytest.fail(f"connected to {await connector.open(asyncio.Protocol)}")
            assert alive[-1] == alive[1]  # the loop keeps the last one
        finally:
            gc.enable()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_localhost_is_either_loopback_address(address: str) -> None:
    """Whatever the hosts file says: Node listens on ``::1`` alone where it is told ``localhost``, others on ``127.0.0.1``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listening = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("a machine without that family")
    with listening:
        origin = f"http://localhost:{listening.getsockname()[1]}"
        await Connector(UpstreamConfig(origin=origin, connect_timeout_s=HANG_S)).open(_Reached)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_the_system_looks_whether_the_other_end_is_still_there(name: str) -> None:
    """A node that dies sends no FIN: else a request is sent again for a quarter of an hour, and a stream waits for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        origin = f"http://{name}:{listening.getsockname()[1]}"
        protocol = await Connector(UpstreamConfig(origin=origin)).open(_Reached)
        assert protocol.options[socket.SOL_SOCKET, socket.SO_KEEPALIVE]
        for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"):
            if hasattr(socket, option):
                assert protocol.options[socket.IPPROTO_TCP, getattr(socket, option)] == WATCHED[option]


class _Reached(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        tcp = [(socket.IPPROTO_TCP, getattr(socket, name)) for name in WATCHED if hasattr(socket, name)]
        asked = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *tcp]
        self.options = {option: sock.getsockopt(*option) for option in asked}
        transport.abort()  # type: ignore[attr-defined]


def errors_alive() -> int:
    """How many failed calls of the system are referred to by somebody."""
    return sum(isinstance(each, OSError) for each in gc.get_objects())


async def test_a_connection_to_itself_is_told_apart() -> None:
    """Linux may give a connect to a closed port that very port, and both ends are then one socket."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.connect(sock.getsockname())
    _, writer = await asyncio.open_connection(sock=sock)
    assert is_connected_to_itself(writer)
    writer.transport.abort()
    async with RawUpstream() as upstream:
        _, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        assert not is_connected_to_itself(writer)
        writer.transport.abort()


# -- what goes wrong before or with the head --------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    """A refused connect is the one fault after which the request has certainly not arrived."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    async with sender(f"http://127.0.0.1:{sock.getsockname()[1]}") as upstream:
        assert await fault_of(lambda: upstream.send("GET", "/", [])) is Fault.UNREACHABLE
    sock.close()


@pytest.mark.parametrize(
    ("play", "fault"),
    [
        pytest.param(sends(), Fault.BROKEN, id="closed without a word"),
        pytest.param(sends(then="reset"), Fault.BROKEN, id="reset without a word"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\nConte"), Fault.BROKEN, id="closed within the head"),
        pytest.param(sends(b"HTTP/1.1 100 Continue\r\n\r\n"), Fault.BROKEN, id="closed after an interim answer"),
        pytest.param(sends(b"SSH-2.0-x\r\n\r\n", then="wait"), Fault.GARBLED, id="no HTTP"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\nA b\r\n\r\n", then="wait"), Fault.GARBLED, id="a bad header"),
        pytest.param(
            sends(b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000 + b"\r\n\r\n", then="wait"), Fault.GARBLED, id="too large"
        ),
        pytest.param(
            sends(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n", then="wait"), Fault.GARBLED, id="too many"
        ),
        pytest.param(
            sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", then="wait"),
            Fault.GARBLED,
            id="an upgrade",
        ),
        pytest.param(sends(then="wait"), Fault.STALLED, id="silence"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\n", then="wait"), Fault.STALLED, id="silence within the head"),
    ],
)
async def test_a_head_that_does_not_come_is_a_fault(play: Play, fault: Fault) -> None:
    """Each way of not answering has its name, and the connection is gone afterwards."""
    async with RawUpstream(play, OK) as server, sender(server.origin, idle_timeout_s=IDLE_S) as upstream:
        assert await fault_of(lambda: upstream.send("POST", "/mcp", [], b"{}")) is fault
        assert await whole(await upstream.send("POST", "/mcp", [], b"{}")) == b"ok"
        assert server.connections == 2


async def test_interim_answers_are_not_the_answer() -> None:
    """What begins with 1 announces an answer and is none."""
    play = sends(b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, then="wait")
    async with RawUpstream(play) as server, sender(server.origin) as upstream:
        answer = await upstream.send("POST", "/mcp", [], b"{}")
        assert answer.status == 200
        assert await whole(answer) == b"ok"


# -- what goes wrong with the body ------------------------------------------------------------------------------------

LENGTH_9 = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("play", "fault"),
    [
        pytest.param(sends(LENGTH_9 + b"some"), Fault.BROKEN, id="shorter than announced"),
        pytest.param(sends(LENGTH_9 + b"some", then="reset"), Fault.BROKEN, id="reset"),
        pytest.param(sends(LENGTH_9, b"some", then="wait"), Fault.STALLED, id="stalled"),
        pytest.param(sends(CHUNKED + b"4\r\nsome\r\n"), Fault.BROKEN, id="chunks without an end"),
        pytest.param(sends(CHUNKED + b"4\r\nsome\r\n", b"zz\r\n", then="wait"), Fault.BROKEN, id="a bad chunk"),
        pytest.param(sends(CHUNKED, b"4\r\nsome\r\nzz\r\n", then="wait"), Fault.BROKEN, id="a bad chunk behind data"),
        pytest.param(sends(TO_THE_END, b"some", then="reset"), Fault.BROKEN, id="without a length, reset"),
        pytest.param(sends(TO_THE_END, b"some", then="wait"), Fault.STALLED, id="without a length, stalled"),
    ],
)
async def test_what_came_before_a_break_is_handed_out_first(play: Play, fault: Fault) -> None:
    """The part of a body that arrived is the client's; then comes the fault, and it stays."""
    async with RawUpstream(play) as server, sender(server.origin, idle_timeout_s=IDLE_S) as upstream:
        answer = await upstream.send("POST", "/mcp", [], b"{}")
        got, met = await to_the_fault(answer)
        assert (got, met) == (b"some", fault)
        with pytest.raises(UpstreamFault):
            await answer.peek(1)
        answer.close()


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    """HTTP/1.0's way: a clean end is the end of the body, and the connection is not used again."""
    async with RawUpstream(sends(TO_THE_END, b"some", b" text"), OK) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"some text"
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert server.connections == 2


async def test_a_broken_off_answer_ends_for_whoever_reads() -> None:
    """Breaking off wakes the reader with a fault, and what had arrived unread is lost."""
    play = sends(LENGTH_9 + b"some", then="wait")
    async with RawUpstream(play) as server, sender(server.origin) as upstream:
        answer = await upstream.send("POST", "/mcp", [], b"{}")
        chunks = answer.chunks()
        assert await anext(chunks) == b"some"
        reading = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        answer.break_off()
        with pytest.raises(UpstreamFault):
            await reading
        answer.close()


@pytest.mark.parametrize(
    ("method", "head"),
    [
        pytest.param("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", id="HEAD"),
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", id="204 with a length of none"),
        pytest.param("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", id="304"),
        pytest.param("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", id="a length of none"),
    ],
)
async def test_an_answer_without_a_body_is_whole_at_once(method: str, head: bytes) -> None:
    """Nobody waits for a body that does not come, and the connection serves the next request."""
    async with RawUpstream(head, OK) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send(method, "/", [])) == b""
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert server.connections == 1


# -- connections that are used again ----------------------------------------------------------------------------------


async def test_a_connection_is_used_again() -> None:
    """One after the other, requests need one connection; at the same time, one each."""
    async with RawUpstream() as server, sender(server.origin) as upstream:
        for _ in range(3):
            assert await whole(await upstream.send("POST", "/mcp", [], b"{}")) == b"ok"
        assert server.connections == 1
        first, second = await upstream.send("GET", "/", []), await upstream.send("GET", "/", [])
        assert server.connections == 2
        assert await whole(first) + await whole(second) == b"okok"


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(OK_CLOSING, id="the server says that it closes"),
        pytest.param(OK + OK, id="two answers"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", id="HTTP/1.0"),
    ],
)
async def test_a_connection_that_is_not_fit_is_not_used_again(first: bytes) -> None:
    """The next request goes on a new connection, and gets its own answer."""
    second = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"
    async with RawUpstream(first, second) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert await whole(await upstream.send("GET", "/", [])) == b"second"
        assert server.connections == 2


async def test_what_comes_unasked_closes_a_free_connection() -> None:
    """A server that talks on a free connection (a 408, say) must not be heard as the answer to the next request."""
    late = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.send(OK)
        await late.wait()
        await conversation.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await conversation.client_left.wait()

    async with RawUpstream(play, OK) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        late.set()
        assert upstream._pool is not None
        connection = upstream._pool._free[0][0]
        await eventually(lambda: not connection.is_connected())
        answer = await upstream.send("GET", "/", [])
        assert (answer.status, await whole(answer), server.connections) == (200, b"ok", 2)


async def test_a_connection_that_the_server_closed_is_not_used() -> None:
    """A free connection whose end has been seen is passed over, and nothing fails."""
    async with RawUpstream(sends(OK), OK) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert upstream._pool is not None
        connection = upstream._pool._free[0][0]
        await eventually(lambda: not connection.is_connected())
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert server.connections == 2


async def test_a_free_connection_is_closed_in_time() -> None:
    """Before the server would close it: a request sent into a closing connection could not be told from one that ran."""
    left = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.send(OK)
        await conversation.client_left.wait()
        left.set()

    async with RawUpstream(play) as server, sender(server.origin, keep_alive_s=0.05) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        async with asyncio.timeout(5):
            await left.wait()


async def test_an_answer_that_is_left_unread_closes_its_connection() -> None:
    """The upstream learns at once that nobody listens any more."""
    left = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.send(LENGTH_9 + b"some")
        await conversation.client_left.wait()
        left.set()

    async with RawUpstream(play) as server, sender(server.origin) as upstream:
        async with await upstream.send("GET", "/", []) as answer:
            assert answer.status == 200
        async with asyncio.timeout(5):
            await left.wait()


async def test_a_sender_that_is_cancelled_closes_its_connection() -> None:
    """A client that leaves before the answer begins takes the upstream's connection with it."""
    left = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.client_left.wait()
        left.set()

    async with RawUpstream(play) as server, sender(server.origin) as upstream:
        sending = asyncio.ensure_future(upstream.send("GET", "/", []))
        await server.until(lambda it: bool(it.requests))
        sending.cancel()
        async with asyncio.timeout(5):
            await left.wait()
        assert sending.cancelled() or sending.cancelling()
        await asyncio.gather(sending, return_exceptions=True)


# -- request bodies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body", "framing", "sent"),
    [
        pytest.param([], None, (b"0", None), b"", id="none"),
        pytest.param([], b"", (b"0", None), b"", id="empty"),
        pytest.param([], b"abc", (b"3", None), b"abc", id="held"),
        pytest.param([], b"a" * (3 * CHUNK_BYTES), (str(3 * CHUNK_BYTES).encode(), None), None, id="held and large"),
        pytest.param([], ("ab", "", "c"), (None, b"chunked"), b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", id="streamed"),
        pytest.param([("Content-Length", "3")], ("ab", "", "c"), (b"3", None), b"abc", id="streamed, with a length"),
    ],
)
async def test_a_body_is_framed_as_it_comes(
    headers: list[tuple[str, str]],
    body: bytes | tuple[str, ...] | None,
    framing: tuple[bytes | None, bytes | None],
    sent: bytes | None,
) -> None:
    """A held body has its length; a streamed one has the announced length or goes in chunks, none of them empty."""
    outgoing = pieces(*(part.encode() for part in body)) if isinstance(body, tuple) else body
    async with RawUpstream() as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("POST", "/mcp", headers, outgoing)) == b"ok"
        request = server.last
        assert request.values("content-length") == ([framing[0]] if framing[0] is not None else [])
        assert request.values("transfer-encoding") == ([framing[1]] if framing[1] is not None else [])
        assert bytes(request.body) == (body if sent is None else sent)
        assert await whole(await upstream.send("POST", "/mcp", [], b"{}")) == b"ok"
        assert server.connections == 1


@pytest.mark.long
async def test_a_slow_upstream_slows_the_body_down() -> None:
    """Of an endless body no more is taken than the sockets hold, while the upstream does not read."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += CHUNK_BYTES
            yield b"a" * CHUNK_BYTES

    async def play(conversation: Conversation) -> None:
        await conversation.client_left.wait()

    async with RawUpstream(play) as server, sender(server.origin) as upstream:
        sending = asyncio.ensure_future(upstream.send("POST", "/mcp", [], endless()))
        await server.until(lambda it: bool(it.requests))
        before = -1
        while before != taken:
            before = taken
            await asyncio.sleep(0.1)  # long enough for everything that goes without the server
        assert taken < 64 * 1024 * 1024
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_an_answer_before_the_end_of_the_body_is_an_answer() -> None:
    """An upstream that has said everything need not hear the rest; the connection is closed behind it."""
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await never.wait()

    async def play(conversation: Conversation) -> None:
        await conversation.read_some()
        await conversation.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await conversation.client_left.wait()

    async with RawUpstream(play, OK) as server, sender(server.origin) as upstream:
        answer = await upstream.send("POST", "/mcp", [], slow())
        assert (answer.status, await whole(answer)) == (413, b"no")
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert server.connections == 2


async def test_a_body_that_breaks_off_is_never_made_to_look_whole() -> None:
    """Where the client's body fails there is no end of it for the upstream, and no answer to wait for."""

    async def play(conversation: Conversation) -> None:
        with contextlib.suppress(ConnectionError):
            await conversation.read_body()

    async with RawUpstream(play) as server, sender(server.origin) as upstream:

        async def failing() -> AsyncIterator[bytes]:
            yield b"a"
            await server.until(lambda it: bool(it.requests))
            raise ValueError

        assert await fault_of(lambda: upstream.send("POST", "/mcp", [], failing())) is Fault.BROKEN
        await server.until(lambda it: it.last.broken)
        assert not server.last.whole


async def test_silence_counts_from_the_end_of_the_body() -> None:
    """A client that sends slowly is not the upstream's silence."""

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(IDLE_S / 2)
            yield b"a"

    async with RawUpstream() as server, sender(server.origin, idle_timeout_s=IDLE_S) as upstream:
        assert await whole(await upstream.send("POST", "/mcp", [], slow())) == b"ok"


@pytest.mark.long
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_upstream_that_takes_nothing_of_a_body_is_silent(is_streamed: bool) -> None:
    """It is as stuck as one that says nothing, however much of the body is still to be sent."""
    body = bytes(32 * 1024 * 1024)

    async def play(conversation: Conversation) -> None:
        await conversation.client_left.wait()

    async with RawUpstream(play) as server, sender(server.origin, idle_timeout_s=IDLE_S) as upstream:
        sent = pieces(*[bytes(CHUNK_BYTES)] * 512) if is_streamed else body
        assert await fault_of(lambda: upstream.send("POST", "/mcp", [], sent)) is Fault.STALLED


@pytest.mark.long
async def test_an_upstream_that_takes_a_little_of_a_body_is_not_silent() -> None:
    """As long as something of it goes; the time without any begins anew with each part."""
    size, part = 32 * 1024 * 1024, 4 * 1024 * 1024

    async def play(conversation: Conversation) -> None:
        for step in range(1, 6):
            await asyncio.sleep(0.8 * IDLE_S)
            while len(conversation.request.body) < step * part:
                await conversation.read_some()
        await conversation.read_body()
        await conversation.send(OK)

    async with RawUpstream(play) as server, sender(server.origin, idle_timeout_s=IDLE_S) as upstream:
        assert await whole(await upstream.send("POST", "/mcp", [], bytes(size))) == b"ok"


@pytest.mark.long
async def test_a_slow_reader_is_not_the_upstreams_silence() -> None:
    """Reading stops at a bound while nobody takes what came, and the time that passes is not counted."""
    size = 16 * 1024 * 1024
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size

    async with RawUpstream(head + b"a" * size) as server, sender(server.origin, idle_timeout_s=IDLE_S) as upstream:
        answer = await upstream.send("GET", "/", [])
        await asyncio.sleep(3 * IDLE_S)
        assert answer._content._size <= HIGH_BYTES + 256 * 1024
        assert len(await whole(answer)) == size


async def test_a_stream_may_idle_where_it_is_said_to() -> None:
    """A GET stream may be silent for ever."""
    late = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await late.wait()
        await conversation.send(OK)

    async with RawUpstream(play) as server, sender(server.origin, idle_timeout_s=IDLE_S / 4) as upstream:
        sending = asyncio.ensure_future(upstream.send("GET", "/", [], may_idle=True))
        await asyncio.sleep(IDLE_S)
        assert not sending.done()
        late.set()
        assert await whole(await sending) == b"ok"


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\r\nX: y", "a\0b"])
async def test_a_header_cannot_become_two(bad: str) -> None:
    """What would be read as a line of its own is refused before anything is sent."""
    async with RawUpstream() as server, sender(server.origin) as upstream:
        with pytest.raises(ValueError, match="line break"):
            await upstream.send("GET", "/", [("X-A", bad)])
        assert not server.requests


async def test_the_host_line_names_the_upstream() -> None:
    """Host comes first and is the upstream's own, an IPv6 address in brackets."""
    async with RawUpstream() as server, sender(server.origin) as upstream:
        await whole(await upstream.send("GET", "/x?y=%20z", [("X-A", "b")]))
        assert server.last.head == b"GET /x?y=%%20z HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nX-A: b\r\n\r\n" % server.port
    async with sender("http://[::1]:9") as upstream:
        assert upstream.host_line == "Host: [::1]:9"
