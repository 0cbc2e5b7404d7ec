"""A stream on which nothing is to be done: no task works on it, and whatever happens to it is carried out all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import pytest

from mcp_sidecar import spans
from mcp_sidecar.facts import Fact, RequestServed, SidecarFault
from mcp_sidecar.healing.session import Event, UpstreamSessionId
from mcp_sidecar.settings import load
from mcp_sidecar.upstream.content import HIGH_BYTES
from mcp_sidecar.upstream.events import BATCH_PIECES
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Pair
from tests.streams.test_stream_memory import LAST_CHUNK, STREAM_HEAD, Listened, get
from tests.support.in_memory import SESSION, MemoryTransport
from tests.support.listening import attached, ends_cleanly, next_method, scene
from tests.support.sidecar import WatchedSidecar
from tests.support.waiting import eventually

T = TypeVar("T")

EVENT = b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/x"}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Wire(MemoryTransport):
    """Remembers what it was told, and fails to write where it is to."""

    def __init__(self, on_write: Callable[[bytes], object]) -> None:
        super().__init__(on_write)
        self.told: list[str] = []
        self.fails = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.fails:
            self.fails = False
            raise ZeroDivisionError
        super().write(data)

    def is_closing(self) -> bool:
        return bool({"close", "abort"}.intersection(self.told))

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")


class Parked(Listened):
    """A client that listens, with its stream, and both of its wires."""

    def __init__(self, sidecar: WatchedSidecar) -> None:
        super().__init__(sidecar)
        self.wire, self.upstream_wire = Wire(self._note), Wire(self._take)
        self._client.transport, self._upstream.transport = self.wire, self.upstream_wire

    async def begin(self, session_id: str) -> None:
        """Listen until the stream is there."""
        await self.listen(get(session_id))
        await settle()
        self._written.clear()

    def send(self, data: bytes) -> None:
        """The upstream sends this, all of it in one read."""
        self._upstream.data_received(data)

    def break_off(self) -> None:
        """The upstream's connection is gone."""
        self._upstream.connection_lost(ConnectionResetError())

    def leave(self) -> None:
        """The client is gone."""
        self._client.connection_lost(None)

    def hang_back(self) -> None:
        """The client takes nothing for now."""
        self._client.pause_writing()

    def catch_up(self) -> None:
        """It goes on."""
        self._client.resume_writing()

    @property
    def events(self) -> bytes:
        """What the client has got, without its framing."""
        return plain(self.written)


def plain(data: bytes) -> bytes:
    """A body out of its chunks."""
    parts = []
    while data and not data.startswith(LAST_CHUNK):
        size, _, data = data.partition(b"\r\n")
        parts.append(data[: int(size, 16)])
        data = data[int(size, 16) + 2 :]
    return b"".join(parts)


async def settle() -> None:
    """Let everybody go as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def memory(of: type[WatchedSidecar] = WatchedSidecar) -> AsyncIterator[WatchedSidecar]:
    options = {"upstream": ["http://127.0.0.1:9/mcp"], "listen": ["127.0.0.1:0"], "admin": ["off"]}
    sidecar = of(load(options, {}).config)
    await sidecar.start()
    try:
        yield sidecar
    finally:
        await sidecar.stop()


async def parked(sidecar: WatchedSidecar, session_id: str = SESSION) -> Parked:
    """A client that listens in a session of its own."""
    way = Parked(sidecar)
    await way.initialize(session_id)
    await way.begin(session_id)
    return way


def served(sidecar: WatchedSidecar) -> list[int]:
    """How the GETs ended."""
    return [fact.status for fact in sidecar.of(RequestServed) if fact.http_method == "GET"]


# -- nothing is to be done --------------------------------------------------------------------------------------------


async def test_parked_streams_hold_no_task() -> None:
    """However many they are."""
    async with memory() as sidecar:
        first = await parked(sidecar)
        before = len(asyncio.all_tasks())
        others = [await parked(sidecar, f"{number:032x}") for number in range(100)]
        assert sidecar.services.streams.open.get_streams == 1 + len(others)
        assert len(asyncio.all_tasks()) == before
        first.send(chunk(EVENT))
        assert len(asyncio.all_tasks()) == before


async def test_an_event_is_written_before_the_loop_turns() -> None:
    """One write for each read, behind what was said before."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        way.send(chunk(EVENT) + chunk(EVENT))
        assert way._written == [chunk(EVENT + EVENT)]


async def test_what_we_say_goes_before_an_event_that_comes_later() -> None:
    """Although what we say is sent by the end of the turn only."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        (session,) = sidecar.services.sessions.table
        listener = sidecar.services.streams.listening.listener_of(session)
        assert listener is not None
        telling = asyncio.create_task(listener.tell(b"data: ours\n\n"))
        await asyncio.sleep(0)
        way.send(chunk(EVENT))
        assert way.events == b"data: ours\n\n" + EVENT
        assert await telling


@pytest.mark.parametrize("size", [1, 2, 7, 40])
async def test_an_event_split_over_reads_is_passed_on_when_it_is_whole(size: int) -> None:
    """And not before; no task is made for it."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        before = len(asyncio.all_tasks())
        data = chunk(EVENT)
        for at in range(0, len(data) - 4, size):
            assert way.written == b""
            way.send(data[at : min(at + size, len(data) - 4)])
        way.send(data[-4:])
        assert way.events == EVENT
        assert len(asyncio.all_tasks()) == before
        assert sidecar.services.upstream.budget.used == 0


async def test_a_large_event_passes_in_pieces_and_is_not_commented_into() -> None:
    """As everywhere: comments and what we say wait for its end."""
    async with scene(limits__max_request_body=1024) as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.notify("notifications/large", {"text": "x" * 300_000})
        assert await next_method(stream) == "notifications/large"
        upstream.notify("notifications/small")
        assert await next_method(stream) == "notifications/small"
        assert sidecar.services.upstream.budget.used == 0


@pytest.mark.parametrize("event", [b"a\n\n", EVENT], ids=["less than a slice", "more than a slice"])
async def test_many_events_in_one_read_leave_the_loop_to_others(event: bytes) -> None:
    """All come, in order, and the loop turns between two batches."""
    count, turns = 10_000, 0
    async with memory() as sidecar:
        way = await parked(sidecar)
        data = b"".join(b"id: %d\n" % number + event for number in range(count))
        way.send(chunk(data))
        assert way.events.count(event) <= BATCH_PIECES
        while len(way.events) < len(data):
            turns += 1
            await asyncio.sleep(0)
        assert way.events == data
        assert turns >= count // BATCH_PIECES
        await settle()
        way.send(chunk(EVENT))
        assert way.events == data + EVENT


# -- a slow client ----------------------------------------------------------------------------------------------------


async def test_a_slow_client_stops_the_upstream_and_goes_on_when_it_has_caught_up() -> None:
    """What comes meanwhile is kept, up to a bound; then the stream is parked again."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        before = len(asyncio.all_tasks())
        way.hang_back()
        data = b"".join(b"id: %d\n" % number + EVENT for number in range(3 * HIGH_BYTES // len(EVENT)))
        at = 0
        while "pause" not in way.upstream_wire.told:
            way.send(chunk(data[at : at + 8192]))
            at += 8192
            await asyncio.sleep(0)
        assert at < 2 * HIGH_BYTES
        way.catch_up()
        await eventually(lambda: way.upstream_wire.told[-1] == "resume")
        way.send(chunk(data[at:]))
        await eventually(lambda: way.events == data)
        await settle()
        assert len(asyncio.all_tasks()) == before


async def test_a_slow_client_that_leaves_ends_its_stream() -> None:
    """What is kept for it is let go of."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        way.hang_back()
        way.send(chunk(EVENT))
        await settle()
        way.send(chunk(EVENT))
        way.leave()
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)
        assert served(sidecar) == [499]
        assert "abort" in way.upstream_wire.told


async def test_a_heal_that_ends_while_the_client_takes_the_head_is_noticed() -> None:
    """What comes of the former upstream session's stream would be nothing, for ever."""
    async with memory() as sidecar:
        way = Parked(sidecar)
        await way.initialize()
        (session,) = sidecar.services.sessions.table
        way.hang_back()
        await way.listen(get(SESSION))
        await settle()
        session.fire(Event.LOSS_SEEN)
        session.repoint(UpstreamSessionId("second"), tools_still_hold=True)
        sidecar.services.streams.listening.heal_ended(session)
        assert way.upstream_wire.told == []
        way.catch_up()
        await settle()
        assert "abort" in way.upstream_wire.told
        assert sidecar.services.streams.open.get_streams == 1


# -- the ends ---------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_ends_the_upstreams_stream_at_once() -> None:
    """No task is needed for it."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        way.leave()
        assert sidecar.services.streams.open.get_streams == 0
        assert served(sidecar) == [499]
        assert "abort" in way.upstream_wire.told
        assert [session.streams for session in sidecar.services.sessions.table] == [0]


@pytest.mark.parametrize("happens", [Parked.break_off, partial(Parked.send, data=LAST_CHUNK)], ids=["break", "end"])
async def test_a_client_that_leaves_before_a_task_begins_is_counted_once(happens: Callable[[Parked], None]) -> None:
    """The upstream's stream has ended in the very same turn."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        happens(way)
        way.leave()
        await settle()
        assert sidecar.services.streams.open.get_streams == 0
        assert served(sidecar) == [499]
        assert sidecar._ingress._under_way == 0


async def test_an_end_from_outside_before_a_task_begins_is_one() -> None:
    """The upstream's stream has ended in the very same turn."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        (session,) = sidecar.services.sessions.table
        way.break_off()
        sidecar.services.streams.listening.end_of(session)
        await settle()
        assert way.written == LAST_CHUNK
        assert served(sidecar) == [200]
        assert sidecar.services.streams.open.get_streams == 0


async def test_a_stream_that_is_replaced_is_closed_upstream_before_that_returns() -> None:
    """And ends cleanly."""
    async with memory() as sidecar:
        way = await parked(sidecar)
        (session,) = sidecar.services.sessions.table
        sidecar.services.streams.listening.end_of(session)
        assert "abort" in way.upstream_wire.told
        await settle()
        assert way.written == LAST_CHUNK
        assert served(sidecar) == [200]


async def test_a_connection_serves_on_behind_a_stream_that_has_ended() -> None:
    """The task that ends it goes on with what comes next."""
    async with memory() as sidecar:
        way = Parked(sidecar)
        await way.initialize()
        await way.begin("unknown")  # such a stream ends with the upstream's
        for _ in range(3):
            way.send(chunk(EVENT) + LAST_CHUNK)
            await settle()
            assert way.events == EVENT
            way._client.data_received(get("unknown"))
            await settle()
            assert STREAM_HEAD.partition(b"\r\n")[0] in way.written
            way._written.clear()
            assert sidecar.services.streams.open.get_streams == 1


async def test_a_drain_breaks_off_what_is_parked() -> None:
    """Whatever their number; each is counted."""
    async with memory() as sidecar:
        ways = [await parked(sidecar, f"{number:032x}") for number in range(5)]
        draining = asyncio.create_task(sidecar.drain())
        await settle()
        for way in ways:
            assert way.written == b""
            assert "close" in way.wire.told
            assert "abort" in way.upstream_wire.told
        assert served(sidecar) == [200] * 5
        await draining


async def test_the_end_of_the_process_ends_what_is_parked() -> None:
    """Every GET is counted, although nobody waits for its client to leave."""
    async with memory() as sidecar:
        ways = [await parked(sidecar, f"{number:032x}") for number in range(5)]
        await sidecar._server.close()
        assert served(sidecar) == [499] * 5
        assert all("abort" in way.wire.told for way in ways)
        assert sidecar.services.streams.open.get_streams == 0


async def test_a_bug_while_an_event_passes_concerns_that_stream_only() -> None:
    """It is told of once, the client is told, and the other goes on."""
    async with memory() as sidecar:
        way, other = await parked(sidecar), await parked(sidecar, "f" * 32)
        way.wire.fails = True
        way.send(chunk(EVENT))
        other.send(chunk(EVENT))
        await settle()
        assert [fact.error for fact in sidecar.of(SidecarFault)] == ["ZeroDivisionError"]
        assert b"failed to handle" in way.events
        assert way.written.endswith(LAST_CHUNK)
        assert "abort" in way.upstream_wire.told
        other.send(chunk(EVENT))
        assert other.events == EVENT + EVENT
        assert sidecar.services.streams.open.get_streams == 1


# -- traces -----------------------------------------------------------------------------------------------------------


class Attempt:
    """A message to the upstream."""

    def __init__(self, headers: Iterable[Pair]) -> None:
        self.headers = list(headers)

    def answered(self, status: int) -> None:
        """Nobody minds."""

    def failed(self, fault: Fault) -> None:
        """The same."""

    def end(self) -> None:
        """The same."""


class Trace:
    """That of one request, by the number of its ``begin``."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def during(self, _: object, work: Awaitable[T]) -> T:
        return await work

    def attempt(self, _method: str, _target: str, headers: Iterable[Pair]) -> Attempt:
        return Attempt(headers)


class Traced(WatchedSidecar):
    """Traces requests, and writes down in whose trace each GET ended."""

    begun = 0

    def begin(self, _: spans.Begun) -> None:
        self.begun += 1
        spans.CURRENT.set(Trace(self.begun))

    def _emit(self, fact: Fact) -> None:
        super()._emit(fact)
        trace = spans.CURRENT.get()
        if isinstance(fact, RequestServed) and fact.http_method == "GET":
            self.ended = [*getattr(self, "ended", []), trace.number if isinstance(trace, Trace) else None]


async def test_what_happens_to_a_parked_stream_happens_in_its_trace() -> None:
    """Whoever brings it: the transport of another one, the client that leaves, a task of somebody else."""
    async with memory(Traced) as sidecar:
        assert isinstance(sidecar, Traced)
        sidecar._ingress.tracer = sidecar
        ways = [await parked(sidecar, f"{number:032x}") for number in range(3)]
        first = sidecar.begun - 2 * 2  # an initialize and a GET of each
        ways[2].leave()
        sessions = {str(session.client_id): session for session in sidecar.services.sessions.table}
        sidecar.services.streams.listening.end_of(sessions[f"{0:032x}"])
        await settle()
        ways[1].send(LAST_CHUNK)
        await settle()
        ways[1].leave()
        await settle()
        assert sidecar.ended == [first + 4, first, first + 2]


# -- over the wire ----------------------------------------------------------------------------------------------------


async def test_a_delete_ends_a_parked_stream() -> None:
    """Cleanly, and upstream as well."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        assert (await client.delete()).status == 200
        await ends_cleanly(stream)
        assert sidecar.services.streams.open.get_streams == 0


async def test_a_parked_stream_follows_a_heal() -> None:
    """What comes on the new upstream session reaches the client on the stream that it has; nothing of it stays."""
    async with scene() as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        for name in ("one", "two", "three"):
            await upstream.restart()
            assert (await client.tool("echo", text=name)).text == name
            await attached(upstream)
            upstream.notify(f"notifications/{name}")
            assert await next_method(stream) == f"notifications/{name}"
        assert [session.streams for session in sidecar.services.sessions.table] == [1]
        assert served(sidecar) == []


async def test_a_parked_stream_outlives_breaks() -> None:
    """One after the other, without a call that would heal."""
    async with scene() as (upstream, _, client), await client.get_stream() as stream:
        for name in ("one", "two", "three"):
            await attached(upstream)
            upstream.notify(f"notifications/{name}")
            assert await next_method(stream) == f"notifications/{name}"
            await upstream.stop()
            await upstream.start()
