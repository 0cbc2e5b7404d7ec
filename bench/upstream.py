"""An MCP server that does as it is told: forgets its sessions, goes away and comes back, sends events at a rate.

A process of its own, ``python -m bench.upstream``, asked over stdin (see ``bench.lines``). It answers calls as JSON or as a
short event stream by the name of the tool, and keeps count of what it was sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from bench import lines, work
from bench.http1 import Message, Reader

BACKLOG: Final = 4096
JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"
DOWNLOAD_BYTES: Final = 20 * 2**20
PIECE_BYTES: Final = 65536
LOST: Final = b'{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Session not found"}}'
LARGE_ID: Final = re.compile(rb'"id": ?(\d+)')


class Server:
    """Its sessions, open connections and listening streams, which outlive an outage or not, as told."""

    def __init__(self) -> None:
        self.sessions: set[bytes] = set()
        self.connections: set[Connection] = set()
        self.streams: set[Connection] = set()
        self.seen: Counter[str] = Counter()
        self.port = 0
        self._listener: asyncio.Server | None = None

    async def up(self, *, port: int = 0) -> dict[str, Any]:
        """Accept; answer with the port and with the moment from which connections are accepted."""
        create = asyncio.get_running_loop().create_server
        self._listener = await create(
            lambda: Connection(self), "127.0.0.1", port or self.port, backlog=BACKLOG, reuse_address=True
        )
        moment = time.monotonic()
        self.port = self._listener.sockets[0].getsockname()[1]
        return {"port": self.port, "at": moment}

    async def down(self) -> dict[str, Any]:
        """End as a killed process does: the port is closed, connections are reset, sessions are gone."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.sessions.clear()
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)
        return {}

    async def forget(self) -> dict[str, Any]:
        """Lose all sessions and go on."""
        self.sessions.clear()
        return {}

    async def stats(self) -> dict[str, Any]:
        """Answer with the number of requests by their method, of sessions and of open streams."""
        return {"seen": dict(self.seen), "sessions": len(self.sessions), "streams": len(self.streams)}

    async def events(self, *, rate: float, seconds: float) -> dict[str, Any]:
        """Send events at a rate to each of the open streams, one after the other; answer with their number."""
        loop = asyncio.get_running_loop()
        streams = list(self.streams)
        begin, count = loop.time(), int(rate * seconds * len(streams))
        for number in range(count):
            await asyncio.sleep(max(0.0, begin + number / rate / len(streams) - loop.time()))
            streams[number % len(streams)].send_event(number)
        return {"sent": count}


class Connection(Reader):
    """One connection of a client or a proxy."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)

    def closed(self, message: Message | None) -> None:
        del message
        self._server.connections.discard(self)
        self._server.streams.discard(self)
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def abort(self) -> None:
        """Cut the connection."""
        if self.transport is not None:
            self.transport.abort()

    def message_came(self, message: Message) -> None:
        session = message.headers.get(b"mcp-session-id")
        if session is not None and session not in self._server.sessions:
            self._server.seen["lost"] += 1
            self._write(404, JSON, LOST)
        elif message.method == b"POST":
            self._post(message)
        elif message.method == b"GET":
            self._server.seen["GET"] += 1
            self._begin_chunks(EVENTS)
            self._server.streams.add(self)
        else:
            self._write(200, JSON, b"")

    def _post(self, message: Message) -> None:
        if message.size > len(message.body):
            found = LARGE_ID.search(message.body[:200])
            self._count_and_answer({"id": int(found[1]) if found else 0, "params": {"name": "upload"}}, message)
        else:
            self._count_and_answer(json.loads(message.body), message)

    def _count_and_answer(self, rpc: dict[str, Any], message: Message) -> None:
        method = rpc.get("method", "tools/call")
        self._server.seen[method] += 1
        if "id" not in rpc:
            self._write(202, JSON, b"")
        elif method == "initialize":
            session = uuid.uuid4().hex.encode()
            self._server.sessions.add(session)
            self._write(200, JSON, work.response(rpc["id"], work.SERVER), b"Mcp-Session-Id: " + session + b"\r\n")
        elif method == "tools/call":
            tool = rpc["params"]["name"]
            ANSWERS.get(tool, Connection.answer_json)(self, rpc["id"], message)
        else:
            self._write(200, JSON, work.response(rpc["id"], work.tools() if method == "tools/list" else {}))

    def answer_json(self, id: int, message: Message) -> None:
        """Answer with about 600 bytes."""
        del message
        self._write(200, JSON, work.answer(id))

    def answer_sse(self, id: int, message: Message) -> None:
        """Answer the same as the only event of a stream."""
        del message
        self._begin_chunks(EVENTS)
        self.chunk(b"event: message\r\ndata: " + work.answer(id) + b"\r\n\r\n")
        self.chunk(b"")

    def answer_sse_in_pieces(self, id: int, message: Message) -> None:
        """Answer the same as servers in Python do: head, event and end each in a packet of its own."""
        del message
        loop = asyncio.get_running_loop()

        def go_on() -> None:
            self.chunk(b"event: message\r\ndata: " + work.answer(id) + b"\r\n\r\n")
            loop.call_soon(self.chunk, b"")

        self._begin_chunks(EVENTS)
        loop.call_soon(go_on)

    def answer_ten_events(self, id: int, message: Message) -> None:
        """Answer with nine events of progress and the response, head, events and end each in a packet of its own."""
        del message
        loop = asyncio.get_running_loop()
        events = [*(work.progress(id, done) for done in range(1, 10)), work.answer(id)]
        chunks = iter([*(b"event: message\r\ndata: " + event + b"\r\n\r\n" for event in events), b""])

        def go_on() -> None:
            if (chunk := next(chunks, None)) is not None:
                self.chunk(chunk)
                loop.call_soon(go_on)

        self._begin_chunks(EVENTS)
        loop.call_soon(go_on)

    def answer_upload(self, id: int, message: Message) -> None:
        """Say how many bytes came."""
        self._write(200, JSON, work.answer(id, str(message.size)))

    def answer_download_json(self, id: int, message: Message) -> None:
        """Answer with one large JSON text."""
        del message
        head, tail = work.answer(id, "#").split(b"#")
        pieces = DOWNLOAD_BYTES // PIECE_BYTES
        size = len(head) + pieces * PIECE_BYTES + len(tail)
        self._write_head(200, JSON, b"Content-Length: %d\r\n" % size)
        self._pump([head, *([b"x" * PIECE_BYTES] * pieces), tail], self._write_raw)

    def answer_download_sse(self, id: int, message: Message) -> None:
        """Answer with as many bytes of notifications, then with the response."""
        del message
        note = {
            "jsonrpc": "2.0",
            "method": "notifications/message",
            "params": {"level": "info", "data": "x" * PIECE_BYTES},
        }
        event = b"event: message\r\ndata: " + json.dumps(note).encode() + b"\r\n\r\n"
        last = b"event: message\r\ndata: " + work.answer(id) + b"\r\n\r\n"
        self._begin_chunks(EVENTS)
        self._pump([*([event] * (DOWNLOAD_BYTES // PIECE_BYTES)), last, b""], self.chunk)

    def answer_tiny_events(self, id: int, message: Message, pieces: int = 1) -> None:
        """Answer with pieces of as many events as 64 KiB can hold, then with the response."""
        del message
        piece = b"data: {}\n\n" * (PIECE_BYTES // 10)
        self._begin_chunks(EVENTS)
        last = b"data: " + work.answer(id) + b"\n\n"
        self._pump([*([piece] * pieces), last, b""], self.chunk)

    def send_event(self, number: int) -> None:
        """Send one notification that says when it was sent."""
        note = {"number": number, "sent_ns": time.monotonic_ns(), "text": work.TEXT[:200]}
        event = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": note}}
        self.chunk(b"event: message\r\ndata: " + json.dumps(event).encode() + b"\r\n\r\n")

    # -- writing ------------------------------------------------------------------------------------------------------

    def _pump(self, pieces: list[bytes], write: Callable[[bytes], None]) -> None:
        async def run() -> None:
            for piece in pieces:
                await self._may_write.wait()
                write(piece)

        self._sending = asyncio.get_running_loop().create_task(run())

    def _begin_chunks(self, content_type: bytes) -> None:
        self._write_head(200, content_type, b"Transfer-Encoding: chunked\r\n")

    def chunk(self, piece: bytes) -> None:
        """Write a chunk; an empty one ends the answer."""
        self._write_raw(b"%x\r\n%b\r\n" % (len(piece), piece))

    def _write_head(self, status: int, content_type: bytes, more: bytes) -> None:
        head = b"HTTP/1.1 %d X\r\nContent-Type: %b\r\nCache-Control: no-cache\r\n" % (status, content_type)
        self._write_raw(head + more + b"\r\n")

    def _write(self, status: int, content_type: bytes, body: bytes, more: bytes = b"") -> None:
        self._write_raw(
            b"HTTP/1.1 %d X\r\nContent-Type: %b\r\nContent-Length: %d\r\n" % (status, content_type, len(body))
            + more
            + b"\r\n"
            + body
        )

    def _write_raw(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)


ANSWERS: Final[dict[str, Callable[[Connection, int, Message], None]]] = {
    "sse": Connection.answer_sse,
    "sse-pieces": Connection.answer_sse_in_pieces,
    "ten-events": Connection.answer_ten_events,
    "upload": Connection.answer_upload,
    "download-json": Connection.answer_download_json,
    "download-sse": Connection.answer_download_sse,
    "tiny-events": Connection.answer_tiny_events,
    "more-tiny-events": partial(Connection.answer_tiny_events, pieces=4),
}


async def main() -> None:
    """Answer until stdin ends."""
    server = Server()
    await lines.answer_lines(
        {"up": server.up, "down": server.down, "forget": server.forget, "stats": server.stats, "events": server.events}
    )


if __name__ == "__main__":
    lines.run_on_fast_loop(main)
