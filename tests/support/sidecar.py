"""A sidecar for tests: the real one, on a free port, with every fact that it emitted kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from mcp_sidecar.app import Sidecar
from mcp_sidecar.facts import Fact
from mcp_sidecar.settings import load

F = TypeVar("F")


class WatchedSidecar(Sidecar):
    """Keeps its facts, so that a test can ask what happened."""

    facts: list[Fact]

    def _emit(self, fact: Fact) -> None:
        if not hasattr(self, "facts"):
            self.facts = []
        self.facts.append(fact)
        super()._emit(fact)

    def of(self, kind: type[F]) -> list[F]:
        """The facts of one kind, in order."""
        return [fact for fact in getattr(self, "facts", []) if isinstance(fact, kind)]

    @property
    def url(self) -> str:
        """Where a client connects."""
        return f"http://{self.address}/mcp"

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.address.rpartition(":")[2])


@asynccontextmanager
async def running_sidecar(upstream_url: str, **settings: object) -> AsyncIterator[WatchedSidecar]:
    """Start a sidecar and stop it. ``settings`` are keys such as ``healing__hold_timeout=0.2``."""
    environ = {f"MCP_SIDECAR_{name.upper()}": str(value) for name, value in settings.items()}
    options = {"upstream": [upstream_url]}
    if "listen" not in settings:
        options["listen"] = ["127.0.0.1:0"]
    if "admin" not in settings:
        options["admin"] = ["off"]
    sidecar = WatchedSidecar(load(options, environ).config, asyncio.get_running_loop().time)
    await sidecar.start()
    try:
        yield sidecar
    finally:
        await sidecar.stop()
