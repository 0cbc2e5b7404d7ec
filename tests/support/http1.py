"""Just enough HTTP/1.1 for a server that has to misbehave. The rule: every byte that leaves goes through a ``Wire``.

Not a model of good manners: there is no limit, no timeout and no keep-alive policy here, only framing that can be broken
at any point.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

Headers = Sequence[tuple[str, str]]

_LINGER_ZERO = struct.pack("ii", 1, 0)
_BODYLESS = frozenset({204, 304})


class ConnectionCut(Exception):
    """The connection was broken on purpose; nothing more can be sent on it."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it arrived: header names in their original spelling, repeated headers kept, body decoded."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)


class WatchedReader(asyncio.StreamReader):
    """A reader that tells when the other side has gone, even while nobody reads. A half-close counts as gone."""

    def __init__(self) -> None:
        super().__init__(limit=1 << 20, loop=asyncio.get_running_loop())
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.gone.set()


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> HttpRequest | None:
    """The next request of a connection, ``None`` where it ended or sent something that is not HTTP."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1")[:-4].split("\r\n")
        method, target, _ = first.split(" ")
        headers = tuple(_header(line) for line in lines)
        request = HttpRequest(method, target, headers)
        if request.header("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return HttpRequest(method, target, headers, await _body(reader, request))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        return None


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError(line)
    return name, value.strip()


async def _body(reader: asyncio.StreamReader, request: HttpRequest) -> bytes:
    if "chunked" in (request.header("transfer-encoding") or "").lower():
        return await _chunked(reader)
    return await reader.readexactly(int(request.header("content-length") or 0))


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        continue
    return bytes(body)


def render_head(status: int, headers: Headers) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Wire:
    """The answering side of one connection. Subclasses break answers by overriding one of the steps of an answer."""

    def framed(self, status: int, headers: Headers, length: int | None) -> bytes:
        """The bytes of a head, after which the body is framed accordingly; ``length`` ``None`` means chunked."""
        raise NotImplementedError

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        """Send the status line and headers."""
        await self.raw(self.framed(status, headers, length))

    async def body(self, data: bytes) -> None:
        raise NotImplementedError

    async def event(self, block: bytes) -> None:
        """Send one SSE event block, its blank line included."""
        raise NotImplementedError

    async def after_event(self) -> None:
        """The event just sent has been accounted for: the moment to break between two events."""

    async def end(self) -> None:
        """Say that the body is whole."""
        raise NotImplementedError

    async def raw(self, data: bytes) -> None:
        """Send bytes outside any framing, and wait until the kernel has them."""
        raise NotImplementedError

    async def reset(self) -> None:
        """Break the connection with RST, then raise ``ConnectionCut``."""
        raise NotImplementedError

    async def close(self) -> None:
        """Break the connection with FIN, then raise ``ConnectionCut``."""
        raise NotImplementedError


class SocketWire(Wire):
    """A wire that behaves."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._chunked = False
        self._mute = False
        self._on_status: Callable[[int], None] = _ignore
        writer.transport.set_write_buffer_limits(0)

    def begin(self, request: HttpRequest, on_status: Callable[[int], None]) -> None:
        """A new exchange starts on the connection; ``on_status`` learns the status of its answer."""
        self._mute = request.method == "HEAD"
        self._on_status = on_status

    def framed(self, status: int, headers: Headers, length: int | None) -> bytes:
        self._chunked = length is None and status not in _BODYLESS
        framing = () if status in _BODYLESS else (_framing(length),)
        self._on_status(status)
        return render_head(status, [*headers, *framing])

    async def body(self, data: bytes) -> None:
        if data and not self._mute:
            await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def event(self, block: bytes) -> None:
        await self.body(block)

    async def end(self) -> None:
        if self._chunked and not self._mute:
            await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reset(self) -> None:
        reset_transport(self._writer.transport)
        raise ConnectionCut

    async def close(self) -> None:
        self._writer.close()
        raise ConnectionCut


class WireFilter(Wire):
    """A wire in front of another: passes every step on, for subclasses to spoil one of them."""

    def __init__(self, inner: Wire) -> None:
        self._inner = inner

    def framed(self, status: int, headers: Headers, length: int | None) -> bytes:
        return self._inner.framed(status, headers, length)

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        await self._inner.head(status, headers, length)

    async def body(self, data: bytes) -> None:
        await self._inner.body(data)

    async def event(self, block: bytes) -> None:
        await self._inner.event(block)

    async def after_event(self) -> None:
        await self._inner.after_event()

    async def end(self) -> None:
        await self._inner.end()

    async def raw(self, data: bytes) -> None:
        await self._inner.raw(data)

    async def reset(self) -> None:
        await self._inner.reset()

    async def close(self) -> None:
        await self._inner.close()


def reset_transport(transport: asyncio.BaseTransport) -> None:
    """End a connection with RST instead of FIN."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


def _ignore(_status: int) -> None:
    pass


def _framing(length: int | None) -> tuple[str, str]:
    return ("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))
