"""Debian's `redis-server` as a process of the tests: on a port of its own, with nothing on disk unless a test says so."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from redis import asyncio as redis

from mcp_sidecar.commands.dev.ports import free_port

PROGRAM: Final = shutil.which("redis-server") or shutil.which("valkey-server")
NEEDS_REDIS: Final = pytest.mark.skipif(
    PROGRAM is None, reason="there is no redis-server: apt-get install redis-server"
)


class RedisServer:
    """One server, to be killed, stopped and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self._options = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options)
        self._process: asyncio.subprocess.Process | None = None
        self.ready_line = "Ready to accept connections"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        assert PROGRAM is not None, "skipped without it"
        self._process = await asyncio.create_subprocess_exec(
            PROGRAM, *self._options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        assert self._process.stdout is not None
        lines = []
        while line := await self._process.stdout.readline():
            lines.append(line.decode())
            if self.ready_line in lines[-1]:
                return
        raise AssertionError("".join(lines))

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """No warning, and nothing written."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            await self._process.wait()

    async def say(self, *words: str) -> str:
        """One command on a connection of its own, and the first line of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"*{len(words)}\r\n".encode() + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
        answer = (await reader.readline()).decode().rstrip()
        writer.close()
        return answer

    async def info(self, section: str) -> str:
        """A section of what it says of itself."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"INFO {section}\r\n".encode())
        length = int((await reader.readline())[1:])
        text = (await reader.readexactly(length)).decode()
        writer.close()
        return text

    async def keys(self, pattern: str) -> list[str]:
        """The names of all keys that match."""
        client = redis.Redis(port=self.port, decode_responses=True)
        try:
            return [str(key) for key in await client.keys(pattern)]
        finally:
            await client.aclose()


@asynccontextmanager
async def redis_server(folder: Path, *options: str) -> AsyncIterator[RedisServer]:
    server = RedisServer(folder, *options)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
