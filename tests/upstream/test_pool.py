"""Which connection a request goes on: none that has ended, none that is too old, none that is somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Pair, signs_in_connection
from tests.support.raw_upstream import OK, Conversation, Play, RawUpstream
from tests.upstream.sending import sender, sends, whole


def ok(*lines: bytes, status: bytes = b"200 OK", version: bytes = b"1.1") -> bytes:
    return b"HTTP/%b %b\r\n%bContent-Length: 2\r\n\r\nok" % (
        version,
        status,
        b"".join(line + b"\r\n" for line in lines),
    )


# -- connections that have ended --------------------------------------------------------------------------------------


def closing_on(event: asyncio.Event, closed: asyncio.Event, ending: Callable[[Conversation], None]) -> Play:
    """Answer, wait for the event, and end the connection in this way."""

    async def play(conversation: Conversation) -> None:
        await conversation.read_body()
        await conversation.send(OK)
        await event.wait()
        ending(conversation)
        await conversation.closed()
        closed.set()

    return play


@pytest.mark.parametrize("ending", [Conversation.close, Conversation.reset], ids=["FIN", "RST"])
async def test_an_end_that_nobody_saw_yet_is_looked_for(ending: Callable[[Conversation], None]) -> None:
    """What has come on a free connection counts from the moment on at which the kernel has it."""
    event, closed = asyncio.Event(), asyncio.Event()
    async with RawUpstream(closing_on(event, closed, ending), OK) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert upstream._pool is not None
        (connection,) = upstream._pool._all
        assert connection.transport is not None
        connection.transport.pause_reading()  # the loop sees nothing of it
        event.set()
        await closed.wait()
        assert connection.is_connected()
        assert await whole(await upstream.send("POST", "/", [], b"{}")) == b"ok"
        assert server.connections == 2


async def test_a_connection_that_breaks_before_a_byte_is_told_as_stale() -> None:
    """Only where it had served before: a server that accepts and closes is no matter of age."""

    async def once(conversation: Conversation) -> None:
        await conversation.read_body()
        await conversation.send(OK)

    async with RawUpstream(once, sends()) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        with pytest.raises(UpstreamFault) as reused:
            await upstream.send("GET", "/", [])
        with pytest.raises(UpstreamFault) as fresh:
            await upstream.send("GET", "/", [])
        assert [(each.value.fault, each.value.was_stale) for each in (reused, fresh)] == [
            (Fault.BROKEN, True),
            (Fault.BROKEN, False),
        ]


async def test_a_connection_that_breaks_within_the_head_is_not_stale() -> None:
    """A byte of the answer shows that the server was at work."""
    async with RawUpstream(OK, sends(b"HTTP/1.1 2")) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        with pytest.raises(UpstreamFault) as caught:
            await upstream.send("GET", "/", [])
        assert not caught.value.was_stale


async def test_a_fresh_connection_can_be_asked_for() -> None:
    """Free ones are left where they are."""
    async with RawUpstream() as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert await whole(await upstream.send("GET", "/", [], fresh=True)) == b"ok"
        assert server.connections == 2


# -- connections that are too old -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        pytest.param(ok(), 4.0, id="nothing said"),
        pytest.param(ok(b"Keep-Alive: timeout=5"), 4.0, id="Node and uvicorn"),
        pytest.param(ok(b"Keep-Alive: timeout=75, max=100"), 4.0, id="longer than it is kept"),
        pytest.param(ok(b"Keep-Alive: timeout=2"), 1.5, id="gunicorn"),
        pytest.param(ok(b"Keep-Alive: timeout=1"), 0.75, id="one second"),
        pytest.param(ok(b"Connection: keep-alive", b"Keep-Alive: timeout=2", version=b"1.0"), 1.5, id="HTTP/1.0"),
        pytest.param(ok(b"Keep-Alive: timeout=0"), 0.0, id="none"),
    ],
)
async def test_a_connection_is_kept_for_less_than_the_server_keeps_it(answer: bytes, seconds: float) -> None:
    """``Keep-Alive: timeout`` of the last answer, less a margin for what is under way."""
    async with RawUpstream(answer) as server, sender(server.origin) as upstream:
        before = asyncio.get_running_loop().time()
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        after = asyncio.get_running_loop().time()
        assert upstream._pool is not None
        ((_, until),) = upstream._pool._free
        assert before + seconds <= until <= after + seconds


async def test_a_server_that_keeps_nothing_gets_new_connections() -> None:
    """A time of none is honoured, too."""
    async with RawUpstream(ok(b"Keep-Alive: timeout=0")) as server, sender(server.origin) as upstream:
        for _ in range(3):
            assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert server.connections == 3


# -- answers that nothing may follow ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "first", "content"),
    [
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", b"", id="204 in chunks"),
        pytest.param("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", b"", id="304 with a length"),
        pytest.param("HEAD", ok(), b"", id="HEAD with a body"),
        pytest.param(
            "GET", b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\n" + ok(), b"ok", id="1xx with a length"
        ),
        pytest.param("GET", ok() + b"\0\0 no HTTP", b"ok", id="bytes behind it"),
        pytest.param("GET", ok() + ok(), b"ok", id="another answer"),
    ],
)
async def test_an_answer_with_more_behind_it_is_whole_and_the_last(method: str, first: bytes, content: bytes) -> None:
    """What comes late belongs to nobody: the next request goes on another connection and gets its own answer."""
    late = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.read_body()
        await conversation.send(first)
        await late.wait()
        await conversation.send(b"0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")

    async with RawUpstream(play, OK) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send(method, "/", [])) == content
        late.set()
        assert await whole(await upstream.send("POST", "/", [], b"{}")) == b"ok"
        assert server.connections == 2


# -- connections on which somebody was signed in ----------------------------------------------------------------------

PLAIN: list[Pair] = []
BEARER = [("Authorization", "Bearer x")]
NTLM = [("Authorization", "NTLM TlRMTVNTUAAB")]
CHALLENGED = ok(b"WWW-Authenticate: Negotiate", b"WWW-Authenticate: NTLM TlRMTVNTUAAC", status=b"401 Unauthorized")
ALICE, BOB = "of alice", "of bob"


@pytest.mark.parametrize(
    ("value", "signs_in"),
    [
        ("NTLM", True),
        ("ntlm TlRM", True),
        ("Negotiate YII=", True),
        ('Basic realm="a", NTLM', True),
        ("Bearer ntlm", False),
        ("Bearer x", False),
        ('Digest realm="negotiate"', False),
        ("NTLMX y", False),
        ("", False),
    ],
)
def test_which_schemes_sign_a_connection_in(value: str, signs_in: bool) -> None:
    """NTLM and Negotiate; every other scheme speaks for a request."""
    assert signs_in_connection(value) is signs_in


@pytest.mark.parametrize(
    ("asked", "answers", "connections"),
    [
        pytest.param([(PLAIN, ALICE), (PLAIN, BOB)], [OK], [1, 1], id="nobody signed in"),
        pytest.param([(BEARER, ALICE), (PLAIN, BOB)], [OK], [1, 1], id="a bearer"),
        pytest.param([(NTLM, ALICE), (PLAIN, BOB)], [OK], [1, 2], id="a credential"),
        pytest.param([(PLAIN, ALICE), (PLAIN, BOB)], [CHALLENGED, OK], [1, 2], id="a challenge"),
        pytest.param([(NTLM, ALICE), (PLAIN, ALICE), (PLAIN, ALICE)], [OK], [1, 1, 1], id="the same client"),
        pytest.param([(PLAIN, ALICE), (NTLM, ALICE), (NTLM, ALICE)], [CHALLENGED, OK], [1, 1, 1], id="a handshake"),
        pytest.param([(NTLM, ALICE), (NTLM, BOB), (PLAIN, ALICE), (PLAIN, BOB)], [OK], [1, 2, 1, 2], id="two clients"),
        pytest.param([(NTLM, None), (NTLM, None), (PLAIN, None)], [OK], [1, 2, 3], id="nobody knows whose"),
        pytest.param([(NTLM, ALICE), (PLAIN, None)], [OK], [1, 2], id="a request of our own"),
        pytest.param([(PLAIN, BOB), (NTLM, ALICE), (PLAIN, BOB)], [OK], [1, 1, 2], id="one that had served another"),
    ],
)
async def test_a_connection_with_somebody_signed_in_is_never_shared(
    asked: Sequence[tuple[list[Pair], str | None]], answers: Sequence[bytes], connections: list[int]
) -> None:
    """From the request or the challenge on it serves the client's connection that spoke it, or nobody."""
    seen: list[int] = []

    def noted(answer: bytes) -> Play:
        async def play(conversation: Conversation) -> None:
            await conversation.read_body()
            seen.append(conversation.number)
            await conversation.send(answer)

        return play

    async with RawUpstream(*map(noted, answers)) as server, sender(server.origin) as upstream:
        for headers, owner in asked:
            assert await whole(await upstream.send("GET", "/", headers, owner=owner)) == b"ok"
    assert seen == connections


async def test_a_clients_end_is_its_connections_end() -> None:
    """What nobody else may use is closed when its client has left."""
    left = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.send(OK)
        await conversation.client_left.wait()
        left.set()

    async with RawUpstream(play) as server, sender(server.origin) as upstream:
        assert await whole(await upstream.send("GET", "/", NTLM, owner=ALICE)) == b"ok"
        assert upstream.express(ALICE) is None
        upstream.release(BOB)
        upstream.release(ALICE)
        async with asyncio.timeout(5):
            await left.wait()


async def test_a_connection_of_one_client_grows_old_as_others_do() -> None:
    """A client that is idle for as long as connections are kept is forgotten, and signs in anew."""
    left = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.send(OK)
        await conversation.client_left.wait()
        left.set()

    async with RawUpstream(play) as server, sender(server.origin, keep_alive_s=0.05) as upstream:
        assert await whole(await upstream.send("GET", "/", NTLM, owner=ALICE)) == b"ok"
        async with asyncio.timeout(5):
            await left.wait()
        assert upstream._pool is not None
        assert not upstream._pool._bound
