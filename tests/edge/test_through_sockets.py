"""The same streams over sockets and through the whole sidecar: what reaches the upstream is what h11 reads, or less."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from mcp_sidecar.facts import SidecarFault
from tests.edge.echo import Echo
from tests.edge.readers import Answer, Read, answers_in, requests_in
from tests.edge.test_random_streams import SEED, Sent, message, pieces
from tests.support.raw_upstream import Conversation, RawUpstream
from tests.support.sidecar import WatchedSidecar, running_sidecar

CLIENTS = 60
MESSAGES = 12
GIVE_UP_S = 20.0


async def echo(talk: Conversation) -> None:
    """Answer with the request's mark, and what it brought."""
    await talk.read_body()
    (mark,) = talk.request.values("x-mark")
    head = b"HTTP/1.1 200 OK\r\nX-Mark: %b\r\nContent-Length: %d\r\n\r\n"
    (read,) = requests_in(talk.request.head + bytes(talk.request.body))
    await talk.send(head % (mark, len(read.body)) + read.body)


class Client:
    """One connection; patient up to some point."""

    def __init__(self, draw: Random, number: int) -> None:
        self._draw = draw
        self.messages = [message(draw, b"%d.%d" % (number, index)) for index in range(MESSAGES)]
        self.patient = draw.randrange(1, MESSAGES) if draw.random() < 0.4 else MESSAGES
        self.got = b""
        self.said = b""

    async def run(self, port: int) -> None:
        """Until the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(GIVE_UP_S):
                for sent in self.messages[: self.patient]:
                    await self._say(writer, sent.data)
                    if not await self._read_one(reader):
                        return
                await self._say(writer, b"".join(each.data for each in self.messages[self.patient :]))
                if self.patient < MESSAGES:
                    self.got += await reader.read(-1)
        except ConnectionError:
            pass  # closed while it was still sending
        finally:
            writer.close()

    async def _read_one(self, reader: asyncio.StreamReader) -> bool:
        """Whether the connection goes on."""
        before = len(self._answers())
        while len(self._answers()) == before:
            data = await reader.read(65536)
            if not data:
                return False
            self.got += data
        return not self._answers()[-1].closes

    def _answers(self) -> list[Answer]:
        try:
            return answers_in(self.got)
        except (ValueError, IndexError):
            return []

    async def _say(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        for piece in pieces(self._draw, data) if data else []:
            self.said += piece
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)


def check(client: Client, reached: dict[bytes, Read]) -> None:
    """Each answer is its request's, and what reached the upstream of it is what h11 reads."""
    read = {dict(each.fields)[b"x-mark"]: each for each in requests_in(client.said) if b"x-mark" in dict(each.fields)}
    for sent, answer in zip(client.messages, answers_in(client.got), strict=False):
        assert answer.status in ({400} if sent.is_refused else {200}), (sent.data, answer)
        if answer.status == 200:
            assert (answer.mark, answer.body) == (sent.mark, sent.body)
    for sent in client.messages:
        arrived = reached.pop(sent.mark, None)
        if arrived is not None:
            assert not sent.is_refused
            other = read[sent.mark]
            assert (arrived.method, arrived.target, arrived.body) == (other.method, other.target, other.body)
            assert b"authorization" not in dict(arrived.fields)


async def _run(clients: list[Client]) -> tuple[list[Read], WatchedSidecar]:
    async with RawUpstream(echo) as upstream, running_sidecar(upstream.url, listen__allowed_hosts="a") as sidecar:
        await asyncio.gather(*(client.run(sidecar.port) for client in clients))
        arrived = []
        for request in upstream.requests:
            if request.whole:
                (read,) = requests_in(request.head + bytes(request.body))
                arrived.append(read)
        return arrived, sidecar


async def test_what_reaches_the_upstream_is_what_h11_reads() -> None:
    """Of some hundred requests of sixty clients, each with its mark."""
    draw = Random(SEED)
    clients = [Client(draw, number) for number in range(CLIENTS)]
    arrived, sidecar = await _run(clients)
    check_all(clients, arrived)
    assert sidecar.of(SidecarFault) == []


def check_all(clients: list[Client], arrived: list[Read]) -> None:
    """Everything that arrived is a client's, once."""
    marks = [dict(each.fields)[b"x-mark"] for each in arrived]
    assert len(set(marks)) == len(marks), "sent twice"
    assert len(marks) > len(clients)
    reached = dict(zip(marks, arrived, strict=True))
    for client in clients:
        check(client, reached)
    assert reached == {}


async def _at_the_edge(clients: list[Client]) -> Echo:
    echo = Echo()
    _, port = await echo.server.start("127.0.0.1", 0)
    await asyncio.gather(*(client.run(port) for client in clients))
    await echo.server.close()
    return echo


LOOPS = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param("uvloop", id="uvloop"),
]


@pytest.mark.parametrize("module", LOOPS)
def test_the_edge_is_the_same_on_either_loop(module: str) -> None:
    """Their transports are not alike in everything."""
    loops = pytest.importorskip(module)
    draw = Random(SEED + 1)
    clients = [Client(draw, number) for number in range(CLIENTS)]
    with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
        echo = runner.run(_at_the_edge(clients))
    whole = [run for run in echo.runs if run.is_whole]
    arrived = [
        Read(run.method, run.target, [(name.lower(), value) for name, value in run.fields], run.body) for run in whole
    ]
    check_all(clients, arrived)
    assert echo.failures == []


def test_the_streams_are_of_all_kinds() -> None:
    """Refused ones, such as end their connection, and plain ones."""
    draw = Random(SEED)
    sent: list[Sent] = [message(draw, b"x") for _ in range(400)]
    assert {(each.is_refused, each.ends) for each in sent} == {(True, True), (False, True), (False, False)}
