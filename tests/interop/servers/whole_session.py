"""An MCP server on ``mcp`` 1.x that remembers what a session has told it: subscriptions, the log level, open questions.

Run inside the environment of that SDK: ``whole_session.py PORT``. All of it is lost with the process, the event store too.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")


def event_store(base: type[Any]) -> Any:
    """Return an event store in memory, as the SDK's interface wants it."""

    class Store(base):
        """The events of all streams, numbered from 1."""

        def __init__(self) -> None:
            self._events: list[tuple[str, Any]] = []

        async def store_event(self, stream_id: str, message: Any) -> str:
            """Keep one event."""
            self._events.append((stream_id, message))
            return str(len(self._events))

        async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
            """Send what came after one event on its stream."""
            number = int(last_event_id)
            if number > len(self._events):
                return None
            stream_id = self._events[number - 1][0]
            message_of = importlib.import_module("mcp.server.streamable_http").EventMessage
            for later, (owner, message) in enumerate(self._events[number:], number + 1):
                if owner == stream_id and message is not None:
                    await send_callback(message_of(message, str(later)))
            return stream_id

    return Store()


class Told:
    """What one process has been told, by session."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.uris: dict[Any, set[str]] = {}
        self.levels: dict[Any, str] = {}
        server.subscribe_resource()(self.subscribe)
        server.set_logging_level()(self.set_level)

    @property
    def session(self) -> Any:
        """The session of the request that is being served."""
        return self._server.request_context.session

    async def subscribe(self, uri: Any) -> None:
        """Remember who wants to hear of a resource."""
        self.uris.setdefault(self.session, set()).add(str(uri))

    async def set_level(self, level: str) -> None:
        """Remember what a session wants to hear."""
        self.levels[self.session] = level

    async def touch(self, uri: str) -> str:
        """Tell the session that a resource changed, if it has subscribed to it."""
        if uri in self.uris.get(self.session, ()):
            await self.session.send_resource_updated(uri)
        return "touched"

    async def log(self) -> str:
        """Log at every level that the session has asked for; nothing to a session that asked for none."""
        least = LEVELS.index(self.levels.get(self.session, "emergency"))
        for level in LEVELS[least:-1]:
            await self.session.send_log_message(level, f"at {level}")
        return "logged"

    async def announce(self) -> str:
        """Say something to whoever listens, whatever level it wants."""
        await self.session.send_log_message("alert", "announced")
        return "announced"

    async def ask(self) -> str:
        """Ask the person in front of the client."""
        request_id = self._server.request_context.request_id
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        answer = await self.session.elicit("Who are you?", schema, request_id)
        return str(answer.action)


def add_to_ledger(key: str) -> str:
    """Append a line to the ledger: the proof that it ran."""
    with Path(os.environ["INTEROP_LEDGER"]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{key}\n")
    return key


def promise_subscriptions(server: Any) -> None:
    """Say in the handshake that resources can be subscribed to: the SDK never does by itself."""
    usual = server.get_capabilities

    def capabilities(*arguments: Any) -> Any:
        promised = usual(*arguments)
        promised.resources.subscribe = True
        return promised

    server.get_capabilities = capabilities


def main(port: int) -> None:
    """Serve."""
    store = event_store(importlib.import_module("mcp.server.streamable_http").EventStore)
    fastmcp = importlib.import_module("mcp.server.fastmcp").FastMCP("whole", port=port, event_store=store)
    told = Told(fastmcp._mcp_server)
    promise_subscriptions(fastmcp._mcp_server)
    fastmcp.resource("fake://one", name="one")(lambda: "the first")
    for tool in (told.touch, told.log, told.announce, told.ask, add_to_ledger):
        fastmcp.tool()(tool)
    fastmcp.run("streamable-http")


if __name__ == "__main__":
    main(int(sys.argv[1]))
