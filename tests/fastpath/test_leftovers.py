"""What stands behind a message never becomes a part of the next one, which may be somebody else's."""

from __future__ import annotations

import pytest

from tests.fastpath.test_lane import CALL, EVENT, RESULT, answer, chunked, events, post, scene

OF_ALICE = b"Set-Cookie: sid=of-alice"
NEXT = [pytest.param(True, id="lane"), pytest.param(False, id="ordinary")]


@pytest.mark.parametrize("on_lane", NEXT)
@pytest.mark.parametrize(
    "given",
    [
        pytest.param(events(EVENT % RESULT, end=b"0\r\n%b\r\n\r\n" % OF_ALICE), id="a trailer of a stream"),
        pytest.param(chunked(RESULT, end=b"0\r\n%b\r\n\r\n" % OF_ALICE), id="a trailer of a JSON answer"),
        pytest.param(answer(RESULT) + b"HTTP/1.1 200 OK\r\n%b\r\n" % OF_ALICE, id="half a head behind an answer"),
        pytest.param(answer(b"no", status="404 Not Found") + OF_ALICE, id="a few bytes behind an error"),
    ],
)
async def test_what_follows_an_answer_is_in_nobodys_next(given: bytes, on_lane: bool) -> None:
    """Two readers may see another end of such an answer: its connection is not used again."""
    async with scene(given, on_lane=on_lane) as it, it.line() as alice, it.line() as bob:
        before = it.upstream.connections
        await alice.ask(post())
        for line in (bob, alice, bob):
            seen = await line.ask(post())
            assert b"of-alice" not in seen
            assert RESULT in seen
        assert it.upstream.connections == before + 1


@pytest.mark.parametrize("on_lane", NEXT)
@pytest.mark.parametrize("is_pipelined", [pytest.param(True, id="pipelined"), pytest.param(False, id="later")])
async def test_a_trailer_of_a_request_is_not_in_the_next_one(on_lane: bool, is_pipelined: bool) -> None:
    """Behind a balancer the next request on a connection may be another user's: the connection ends with this one."""
    plain = post().replace(b"Content-Length: %d" % len(CALL), b"Transfer-Encoding: chunked").removesuffix(CALL)
    request = plain + b"%x\r\n%b\r\n0\r\nAuthorization: Bearer of-alice\r\n\r\n" % (len(CALL), CALL)
    async with scene(answer(RESULT), on_lane=on_lane) as it:
        async with it.line() as line:
            line.writer.write(request + post() if is_pipelined else request)
            assert RESULT in await line.read()
            assert RESULT not in await line.read()
        async with it.line() as line:
            assert RESULT in await line.ask(post())
        assert not any(b"of-alice" in seen.head for seen in it.upstream.requests)
        assert sum(b"tools/call" in bytes(seen.body) for seen in it.upstream.requests) == 2


@pytest.mark.parametrize("pieces", [1, 2, 5], ids=lambda count: f"in {count}")
async def test_a_request_in_chunks_keeps_its_connection(pieces: int) -> None:
    """Where its end is plain, wherever the packets are cut."""
    head = post().replace(b"Content-Length: %d" % len(CALL), b"Transfer-Encoding: chunked").removesuffix(CALL)
    request = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(CALL), CALL)
    step = -(-len(request) // pieces)
    async with scene(answer(RESULT)) as it, it.line() as line:
        for _ in range(3):
            assert RESULT in await line.ask(*(request[at : at + step] for at in range(0, len(request), step)))
        assert RESULT in await line.ask(post())


async def test_answers_that_end_plainly_keep_their_connection() -> None:
    """With a length, in chunks, without a body; in one packet or several."""
    async with scene(answer(RESULT), on_lane=False) as it, it.line() as line:
        await line.ask(post())
        before = it.upstream.connections
        for given in (
            answer(RESULT),
            chunked(RESULT),
            events(EVENT % RESULT),
            answer(b"", status="202 Accepted"),
            b"HTTP/1.1 204 No Content\r\n\r\n",
        ):
            it.upstream.answer_with(given)
            await line.ask(post())
        assert it.upstream.connections == before
