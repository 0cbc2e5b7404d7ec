"""Whether a server that was started is up: it accepts connections somewhere, and answers `initialize` there.

The very answer may be a refusal: a server that wants a login is up. A server error, or no HTTP, is not. Where nobody knows
whether a port is the endpoint's, the answer has to be an MCP server's: debuggers and metrics listen, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mcp_sidecar.commands.dev import ports
from mcp_sidecar.commands.dev.lists import LISTS, Items, items_of
from mcp_sidecar.commands.mcp_client import (
    INITIALIZED,
    REQUEST_ID,
    SESSION_ID,
    McpClient,
    NoAnswer,
    Said,
    initialize,
    request,
)

LOOK_EVERY_S = 0.01
DISCOVER_EVERY_S, DISCOVER_SELDOM_S = 0.25, 2.0
"""How often to look where it listens in fact, which costs 6 ms: seldom where it has taken its port before."""
ANSWER_PATIENCE_S = 5.0
NO_SUCH_PATH = frozenset({404, 405})
WANTS_LOGIN = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Up:
    """A server that answers. ``origin`` is `http://host:port`; ``name`` what it calls itself, if it said so."""

    origin: str
    said: Said
    name: str = ""
    lists: Mapping[str, Items] = field(default_factory=dict)

    @property
    def is_elsewhere(self) -> bool:
        """Whether something answers, but not as an MCP endpoint does."""
        return self.said.status in NO_SUCH_PATH

    @property
    def is_mcp(self) -> bool:
        """Whether what answers speaks JSON-RPC here, or does not say because of who asks."""
        if self.is_elsewhere:
            return False
        return self.said.status in WANTS_LOGIN or any("jsonrpc" in message for message in self.said.messages)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An origin to try. ``is_certain``: it is the endpoint's whatever it answers, so that a 404 is about the path."""

    origin: str
    is_certain: bool


Candidates = Callable[[], list[Candidate]]
"""What to try now."""


async def wait_until_up(candidates: Candidates, path: str) -> Up:
    """Try until one answers. Waits for ever; whoever waits looks at the process."""
    while True:
        for candidate in candidates():
            up = await _try(candidate.origin, path)
            if up is not None and (candidate.is_certain or up.is_mcp):
                return up
        await asyncio.sleep(LOOK_EVERY_S)


async def _try(origin: str, path: str) -> Up | None:
    # Cheaper than a request, and it will fail most of the times.
    if origin.startswith("http://") and not await ports.accepts(origin):
        return None
    try:
        async with McpClient(f"{origin}{path}", timeout_s=ANSWER_PATIENCE_S) as client:
            said = await client.post(initialize(name="mcp-sidecar-dev"))
            return None if said.status >= 500 else Up(origin, said, _name_in(said))
    except (OSError, NoAnswer):
        return None


def _name_in(said: Said) -> str:
    info = (said.result_of(REQUEST_ID) or {}).get("serverInfo")
    name = info.get("name") if isinstance(info, dict) else None
    return name if isinstance(name, str) else ""


async def look_at_lists(up: Up, path: str) -> Mapping[str, Items]:
    """What the server has to offer, in the session of our own that it is up by; what cannot be had is left out."""
    result = up.said.result_of(REQUEST_ID)
    if result is None:
        return {}
    session_id, version = up.said.header(SESSION_ID), str(result.get("protocolVersion", ""))
    capabilities = result.get("capabilities")
    kinds = [kind for kind in LISTS if isinstance(capabilities, dict) and kind in capabilities]
    try:
        async with McpClient(f"{up.origin}{path}", timeout_s=ANSWER_PATIENCE_S) as client:
            await client.post(INITIALIZED, session_id, version)
            # Each under an id of its own: by that alone the Python SDK knows whose answer it is.
            asked = (client.post(request(LISTS[kind][0], id=kind), session_id, version) for kind in kinds)
            said = await asyncio.gather(*asked, return_exceptions=True)
    except NoAnswer:
        return {}
    listed = {kind: each.result_of(kind) for kind, each in zip(kinds, said, strict=True) if isinstance(each, Said)}
    return {
        kind: items_of(kind, each) for kind, each in listed.items() if each is not None and not each.get("nextCursor")
    }


async def leave(up: Up, path: str) -> None:
    """End the session of our own."""
    session_id = up.said.header(SESSION_ID)
    if session_id is not None:
        version = str((up.said.result_of(REQUEST_ID) or {}).get("protocolVersion", ""))
        with contextlib.suppress(NoAnswer):
            async with McpClient(f"{up.origin}{path}", timeout_s=ANSWER_PATIENCE_S) as client:
                await client.delete(session_id, version)
