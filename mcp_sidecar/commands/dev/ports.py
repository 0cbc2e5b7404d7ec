"""Where a server listens: a free port to give it, and what it made of that."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import Final
from urllib.parse import urlsplit

import psutil

from mcp_sidecar.wire.origins import DEFAULT_PORTS

LOOPBACK: Final = "127.0.0.1"
_ANY: Final = {"0.0.0.0": LOOPBACK, "::": "[::1]", "::ffff:0.0.0.0": LOOPBACK}  # noqa: S104 - compared with

TRIES: Final = 100
CONNECT_PATIENCE_S: Final = 1.0

VARIABLES: Final = ("PORT", "FASTMCP_PORT", "UVICORN_PORT")
"""Who reads which: most of the world; FastMCP; the command line of uvicorn."""


def free_port() -> int:
    """A port that nobody has at this moment.

    Outgoing connections take theirs above 32,767, and might have it before the server does, which takes its time to start.
    """
    below = random.sample(range(20_000, 30_000), TRIES)
    return next(filter(_is_free, below), None) or _any_port()


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind((LOOPBACK, port))
        return True
    return False


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def listening(pid: int) -> list[tuple[str, int]]:
    """Where a process and its descendants accept connections: host as in a URL, and port; loopback for any address."""
    found: dict[tuple[str, int], None] = {}
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                for connection in each.net_connections(kind="tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        found[_host(connection.laddr.ip), connection.laddr.port] = None
    return list(found)


def _host(address: str) -> str:
    if address in _ANY:
        return _ANY[address]
    return f"[{address}]" if ":" in address else address


async def accepts(origin: str) -> bool:
    """Whether somebody takes connections there; waits as long as a connect takes."""
    place = urlsplit(origin)
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(place.hostname, place.port or DEFAULT_PORTS[place.scheme])
        writer.close()
        return True
    return False


async def is_in_use(origin: str) -> bool:
    """The same, for who would rather not wait: no where it is not known within a second."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_PATIENCE_S):
            return await accepts(origin)
    return False


def filled_in(command: list[str], port: int) -> list[str]:
    """The command with its port, where it has a place for it."""
    return [word.replace("{port}", str(port)) for word in command]
