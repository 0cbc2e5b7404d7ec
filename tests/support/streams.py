"""The upstream's memory: sessions, and the event logs of their streams.

The rule: a message is written to a log, never to a connection; connections only follow logs. So a cut connection changes
nothing about what runs, and a resumed one continues where the other stopped.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.ledger import Execution
from tests.support.pulse import Pulse

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. ``message`` is ``None`` for the priming event; ``answers`` is the execution whose response it is."""

    event_id: str
    message: Message | None
    answers: Execution | None = None


@dataclass(slots=True)
class StreamLog:
    """The events of one stream, in order, until it is finished."""

    name: str
    entries: list[Entry] = field(default_factory=list)
    finished: bool = False
    _hang_ups: int = 0
    _pulse: Pulse = field(default_factory=Pulse)

    def append(self, message: Message | None, answers: Execution | None = None) -> None:
        self.entries.append(Entry(f"{self.name}-{len(self.entries)}", message, answers))
        self._pulse.fire()

    def finish(self) -> None:
        self.finished = True
        self._pulse.fire()

    def hang_up(self) -> None:
        """Whoever follows the log now stops; the log itself goes on."""
        self._hang_ups += 1
        self._pulse.fire()

    async def follow(self, start: int) -> AsyncIterator[Entry]:
        """Every entry from ``start`` on, as they come, until the log is finished or hangs up."""
        hang_ups = self._hang_ups
        while True:
            while start < len(self.entries):
                yield self.entries[start]
                start += 1
            if self.finished or self._hang_ups != hang_ups:
                return
            await self._pulse.wait()

    async def until_finished(self) -> None:
        while not self.finished:
            await self._pulse.wait()

    def position_after(self, event_id: str) -> int | None:
        """Where a resumed connection goes on, ``None`` for an id that is not of this stream."""
        return next((n for n, entry in enumerate(self.entries, 1) if entry.event_id == event_id), None)


@dataclass(slots=True)
class Session:
    """One session. Ids of questions to the client start at 0 in every session, as in real servers: an answer that is sent to
    a newer session would be taken for the answer to another question."""

    id: str
    process: int
    protocol_version: str
    authorization: str | None
    initialized: bool = False
    log_level: str | None = None
    subscriptions: set[str] = field(default_factory=set)
    get_streams_open: int = 0
    standalone: StreamLog = field(default_factory=lambda: StreamLog("get"))
    streams: list[StreamLog] = field(default_factory=list)
    questions: dict[object, asyncio.Future[Message]] = field(default_factory=dict)
    _question_ids: itertools.count[int] = field(default_factory=itertools.count)

    def new_stream(self) -> StreamLog:
        log = StreamLog(f"post{len(self.streams)}")
        self.streams.append(log)
        return log

    def find_event(self, event_id: str) -> tuple[StreamLog, int] | None:
        for log in (self.standalone, *self.streams):
            position = log.position_after(event_id)
            if position is not None:
                return log, position
        return None

    async def ask(self, log: StreamLog, method: str, params: Message) -> Message:
        """Put a question to the client on a stream and wait for its JSON-RPC response."""
        question_id = next(self._question_ids)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.questions[question_id] = future
        log.append({"jsonrpc": "2.0", "id": question_id, "method": method, "params": params})
        return await future

    def answered(self, message: Message) -> bool:
        """Take a JSON-RPC response of the client; ``False`` where nobody asked."""
        future = self.questions.pop(message.get("id"), None)
        if future is None or future.done():
            return False
        future.set_result(message)
        return True


def render_event(entry: Entry, *, with_id: bool, newline: str, retry_ms: int | None = None) -> bytes:
    """One SSE block. The retry field goes with the priming event only."""
    lines = [f"id: {entry.event_id}"] if with_id else []
    if entry.message is None:
        lines += [f"retry: {retry_ms}"] if retry_ms is not None else []
        lines.append("data: ")
    else:
        lines += ["event: message", f"data: {json.dumps(entry.message, separators=(',', ':'))}"]
    return (newline.join(lines) + newline * 2).encode()
