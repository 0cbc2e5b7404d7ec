"""A server that closes its connection behind each answer and does not say so, as a process of its own would be."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mcp_sidecar.facts import OutcomeUnknown
from tests.support.sidecar import running_sidecar

CALLS = 720
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_INITIALIZED = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "s", "version": "1"},
}


class ClosingServer:
    """Answers in threads, and closes when it is told to, whatever the sidecar's loop is at."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        self.executed: list[object] = []
        self._may_close = threading.Semaphore(0)
        self._has_closed = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            head, body = b"", b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(65536)
                if not data:
                    return
                head += data
            head, _, body = head.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            while length is not None and len(body) < int(length[1]):
                body += sock.recv(65536)
            sock.sendall(self._answer(json.loads(body) if body else {}))
            self._may_close.acquire()
        self._has_closed.release()

    def _answer(self, message: dict[str, object]) -> bytes:
        if "id" not in message:
            return b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
        is_call = message["method"] == "tools/call"
        if is_call:
            self.executed.append(message["id"])
        result = {"content": []} if is_call else _INITIALIZED
        said = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: s\r\nContent-Length: %d\r\n\r\n"
        return head % len(said) + said

    def close_connection(self) -> None:
        """Close the one that was answered last. Returns when it is closed, and lets no loop run meanwhile."""
        self._may_close.release()
        assert self._has_closed.acquire(timeout=30), "nothing was sent on it"

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._may_close.release(CALLS)


@contextmanager
def closing_server() -> Iterator[ClosingServer]:
    server = ClosingServer()
    try:
        yield server
    finally:
        server.close()


class Client:
    """One connection to the sidecar."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: dict[str, object]) -> None:
        """Returns when the sidecar's socket has it."""
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        head = (
            "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nMcp-Session-Id: s\r\n"
            f"Accept: application/json, text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)

    def close(self) -> None:
        self._writer.close()

    async def answer(self) -> bytes:
        """The next one, head and body."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        return head + await self._reader.readexactly(int(length[1]) if length is not None else 0)


@pytest.mark.long
async def test_a_connection_whose_end_has_come_takes_no_call() -> None:
    """Of 720 calls of a tool that must not run twice, each of which meets a connection whose end is there and was not
    seen yet, next to none may end in doubt, and each runs once."""
    with closing_server() as server:
        async with running_sidecar(f"http://127.0.0.1:{server.port}/mcp") as sidecar:
            client = Client(*await asyncio.open_connection("127.0.0.1", sidecar.port))
            client.send({"id": 0, "method": "initialize", "params": _INITIALIZED | {"clientInfo": {}}})
            assert b" 200 OK" in await client.answer()
            for number in range(1, CALLS + 1):
                client.send({"id": number, "method": "tools/call", "params": {"name": "charge", "arguments": {}}})
                server.close_connection()  # behind the call's bytes, and ahead of whoever reads them
                await client.answer()
            client.close()
            assert len(sidecar.of(OutcomeUnknown)) <= CALLS / 100
            assert len(server.executed) == len(set(server.executed)) >= CALLS * 0.99
