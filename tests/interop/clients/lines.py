"""The line protocol of the client drivers: one JSON command a line in, one JSON answer a line out, in any order.

A driver runs inside the environment of its SDK and imports nothing of the project.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

Outcome = tuple[str, str]
"""What became of a command: its kind (result, tool_error, error, timeout, dead) and a text."""


class Session(Protocol):
    """What the drivers use of either SDK's client."""

    async def list_tools(self) -> Any:
        """List the tools."""

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call a tool."""

    async def subscribe_resource(self, uri: Any) -> Any:
        """Ask to hear of a resource."""

    async def set_logging_level(self, level: Any) -> Any:
        """Say what to log."""


@dataclass(slots=True)
class Ids:
    """What came from the server beside the results: session IDs of successful answers and messages, oldest first.

    A question of the server is answered at the next ``released``. A client that ``follows`` lists the tools anew whenever it
    hears that they changed; ``listed`` is what it got.
    """

    follows: bool = False
    listed: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    heard: list[dict[str, Any]] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def note(self, answer: Any) -> None:
        """Remember the ID of one answer; an event hook of httpx."""
        session_id = answer.headers.get("mcp-session-id")
        if session_id and answer.is_success and session_id not in self.seen:
            self.seen.append(session_id)

    async def question_answered(self) -> None:
        """Wait until the person in front of the client says something."""
        await self.released.wait()
        self.released.clear()


Opening = Callable[[str, Ids], AbstractAsyncContextManager[Session]]


@dataclass(slots=True)
class HeldRequest:
    """One open connection: a task owns its context managers, because anyio wants them closed where they were opened."""

    ids: Ids
    session: asyncio.Future[Session]
    closing: asyncio.Event
    owner: asyncio.Task[None]


async def _own(opening: Opening, url: str, ids: Ids, session: asyncio.Future[Session], closing: asyncio.Event) -> None:
    try:
        async with opening(url, ids) as opened:
            session.set_result(opened)
            await closing.wait()
    except BaseException as error:
        if session.done():
            raise
        session.set_exception(error if isinstance(error, Exception) else ConnectionError("cancelled"))


def _described(error: BaseException) -> str:
    while isinstance(nested := getattr(error, "exceptions", None), tuple) and nested:
        error = nested[0]
    return f"{type(error).__name__}: {error}"


class Driver:
    """Carries out commands on named connections."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._held: dict[str, HeldRequest] = {}

    async def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry one command out and describe what became of it; never raises."""
        started = time.monotonic()
        kind, text = await self._bounded(command)
        held = self._held.get(command["name"])
        ids = held.ids.seen if held else []
        return {
            "id": command["id"],
            "kind": kind,
            "text": text,
            "seconds": time.monotonic() - started,
            "session_id": ids[0] if ids else None,
            "seen_ids": ids,
        }

    async def _bounded(self, command: dict[str, Any]) -> Outcome:
        work = asyncio.ensure_future(getattr(self, f"_{command['op']}")(command))
        held = self._held.get(command["name"])
        rivals = {work, held.owner} if held and command["op"] != "close" else {work}
        await asyncio.wait(rivals, timeout=command["timeout"], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            dead = held is not None and held.owner.done()
            work.cancel()
            return ("dead", "the client's transport has ended") if dead else ("timeout", "")
        if work.cancelled():
            return "dead", "cancelled"
        error = work.exception()
        return work.result() if error is None else ("error", _described(error))

    async def _connect(self, command: dict[str, Any]) -> Outcome:
        ids = Ids(follows=command["follows"])
        session: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        closing = asyncio.Event()
        owner = asyncio.ensure_future(_own(self._opening, command["url"], ids, session, closing))
        await session
        self._held[command["name"]] = HeldRequest(ids, session, closing, owner)
        return "result", ""

    async def _tools(self, command: dict[str, Any]) -> Outcome:
        listed = await (await self._held[command["name"]].session).list_tools()
        return "result", " ".join(tool.name for tool in listed.tools)

    async def _listed(self, command: dict[str, Any]) -> Outcome:
        return "result", " ".join(self._held[command["name"]].ids.listed)

    async def _call(self, command: dict[str, Any]) -> Outcome:
        session = await self._held[command["name"]].session
        result = await session.call_tool(command["tool"], command["arguments"])
        failed = getattr(result, "isError", None) or getattr(result, "is_error", None)
        text = "".join(getattr(part, "text", "") for part in result.content)
        return ("tool_error" if failed else "result"), text

    async def _subscribe(self, command: dict[str, Any]) -> Outcome:
        await (await self._held[command["name"]].session).subscribe_resource(command["uri"])
        return "result", ""

    async def _level(self, command: dict[str, Any]) -> Outcome:
        await (await self._held[command["name"]].session).set_logging_level(command["level"])
        return "result", ""

    async def _heard(self, command: dict[str, Any]) -> Outcome:
        return "result", json.dumps(self._held[command["name"]].ids.heard)

    async def _answer(self, command: dict[str, Any]) -> Outcome:
        self._held[command["name"]].ids.released.set()
        return "result", ""

    async def _close(self, command: dict[str, Any]) -> Outcome:
        held = self._held.pop(command["name"])
        held.closing.set()
        await asyncio.wait({held.owner})
        return "result", ""


async def _commands() -> AsyncIterator[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


async def _serve(opening: Opening) -> None:
    driver, running = Driver(opening), set[asyncio.Task[None]]()

    async def reply(command: dict[str, Any], work: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        print(json.dumps(await work(command)), flush=True)

    async for command in _commands():
        coroutine: Coroutine[Any, Any, None] = reply(command, driver.answer)
        task = asyncio.create_task(coroutine)
        running.add(task)
        task.add_done_callback(running.discard)


def serve(opening: Opening) -> None:
    """Serve commands until the end of the input."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(opening))
