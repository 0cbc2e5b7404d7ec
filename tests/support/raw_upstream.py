"""An upstream that answers with the bytes a test gives it. The rule: what arrived is kept byte for byte, nothing is added.

Where ``FakeUpstream`` is an MCP server, this is any server, and any nonsense: framing, spelling and timing are the test's.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

from tests.support.client import RawAnswer, raw_exchange
from tests.support.http1 import WatchedReader, reset_transport
from tests.support.listener import Loopback
from tests.support.pulse import Pulse
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import HANG_S

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(slots=True)
class RawRequest:
    """One request: its head and body as they stood on the wire. ``whole`` turns true when the body has ended."""

    head: bytes
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    broken: bool = False

    @property
    def line(self) -> bytes:
        """The request line."""
        return self.head.split(b"\r\n", 1)[0]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The headers as sent, in order."""
        lines = self.head.split(b"\r\n")[1:-2]
        pairs = (line.split(b":", 1) for line in lines)
        return [(name, value.strip()) for name, value in pairs]

    def values(self, name: str) -> list[bytes]:
        """Every value of one header."""
        return [value for key, value in self.fields if key.lower() == name.lower().encode()]


class Conversation:
    """One request and the connection that it came on, for a ``Play``."""

    def __init__(
        self,
        upstream: RawUpstream,
        request: RawRequest,
        reader: WatchedReader,
        writer: asyncio.StreamWriter,
        number: int,
        *,
        is_first: bool,
    ) -> None:
        """``number`` counts connections from 1 on; ``is_first`` is the first request on its own."""
        self.number = number
        self.is_first = is_first
        self._upstream = upstream
        self._reader = reader
        self._writer = writer
        self.request = request

    @property
    def client_left(self) -> asyncio.Event:
        """Set when the other side has closed the connection."""
        return self._reader.gone

    async def read_body(self) -> bytes:
        """The body as it stands on the wire, chunk sizes and all."""
        request = self.request
        try:
            if request.values("transfer-encoding"):
                while not request.body.endswith(b"0\r\n\r\n"):
                    await self.read_some()
            else:
                left = int((request.values("content-length") or [b"0"])[0])
                while len(request.body) < left:
                    await self.read_some()
        except ConnectionError:
            request.broken = True
            self._upstream.changed()
            raise
        request.whole = True
        self._upstream.changed()
        return bytes(request.body)

    async def read_some(self) -> bytes:
        """The next bytes of the body, as soon as there are any. Raises ``ConnectionError`` where there are no more."""
        data = await self._reader.read(65536)
        if not data:
            raise ConnectionResetError
        self.request.body += data
        self._upstream.changed()
        return data

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    async def closed(self) -> None:
        """Return when the connection is closed, as far as this side goes."""
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    def cut(self) -> None:
        """Close it without a word; over TLS that is without its close_notify."""
        self._writer.transport.abort()

    def reset(self) -> None:
        reset_transport(self._writer.transport)


Play = Callable[[Conversation], Awaitable[None]]


class RawUpstream:
    """See the module. Each request gets the next of ``answers``, the last one for ever. With ``tls`` it speaks https."""

    def __init__(self, *answers: bytes | Play, tls: ssl.SSLContext | None = None) -> None:
        self._answers = list(answers) or [OK]
        self._scheme = "https" if tls is not None else "http"
        self._listener = Loopback(self._converse, tls)
        self._pulse = Pulse()
        self.requests: list[RawRequest] = []

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def origin(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/mcp"

    @property
    def connections(self) -> int:
        """How many connections were ever accepted."""
        return self._listener.connections

    @property
    def last(self) -> RawRequest:
        return self.requests[-1]

    def answer_with(self, *answers: bytes | Play) -> None:
        """From now on these; for answers that need to know the upstream's own address."""
        self._answers = list(answers)

    def changed(self) -> None:
        """Something of a request has come."""
        self._pulse.fire()

    async def until(self, claim: Callable[[RawUpstream], bool], timeout_s: float = HANG_S) -> None:
        """Return once ``claim`` holds; ``TimeoutError`` else."""
        await self._pulse.until(lambda: claim(self), timeout_s)

    async def __aenter__(self) -> Self:
        await self._listener.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._listener.shut(), return_exceptions=True)
        self._listener.close()

    async def _converse(self, connection: int, reader: WatchedReader, writer: asyncio.StreamWriter) -> None:
        try:
            for place in itertools.count():
                request = RawRequest(await reader.readuntil(b"\r\n\r\n"))
                self.requests.append(request)
                self.changed()
                await self._play(Conversation(self, request, reader, writer, connection, is_first=not place))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _play(self, conversation: Conversation) -> None:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, bytes):
            await conversation.read_body()
            await conversation.send(answer)
        else:
            await answer(conversation)


@dataclass(frozen=True, slots=True)
class Passed:
    """What became of one raw request: what the upstream got, what the client got, and what the sidecar said."""

    requests: list[RawRequest]
    answer: RawAnswer
    sidecar: WatchedSidecar

    @property
    def request(self) -> RawRequest:
        """The only request that reached the upstream."""
        assert len(self.requests) == 1, [request.line for request in self.requests]
        return self.requests[0]

    @property
    def head(self) -> bytes:
        """The head of the client's answer, without the blank line."""
        return self.answer.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        """What the client got after the head, chunk sizes and all."""
        return self.answer.data.partition(b"\r\n\r\n")[2]


async def pass_through(request: bytes, *answers: bytes | Play, **settings: object) -> Passed:
    """Send raw bytes through a sidecar of their own. They should ask for ``Connection: close`` and name ``localhost``."""
    async with RawUpstream(*answers) as upstream, running_sidecar(upstream.url, **settings) as sidecar:
        return Passed(upstream.requests, await raw_exchange(sidecar.port, request), sidecar)
