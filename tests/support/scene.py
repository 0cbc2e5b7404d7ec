"""What nearly every test of the proxy begins with: a fake upstream, a sidecar in front of it, and a client with a session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.client import McpClient
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import WatchedSidecar, running_sidecar


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, McpClient]]:
    """A client with a session. Options with two underscores (``healing__hold_timeout=0.2``) and ``mode`` are the sidecar's
    settings; the others say what kind of server the upstream is."""
    settings = {name: value for name, value in options.items() if "__" in name or name == "mode"}
    behaviour = {name: value for name, value in options.items() if name not in settings}
    async with (
        FakeUpstream(**behaviour) as upstream,
        running_sidecar(upstream.url, **settings) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client
