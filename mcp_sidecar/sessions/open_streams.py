"""The open GET streams: who serves them, and on which of them a session's client listens.

A drain breaks all of them off at once, a DELETE those of its session, a client's next GET the one before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from mcp_sidecar.healing.session import Session, UpstreamSessionId
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.waiting.slots import ReturnQueue


class ListenerPort(Protocol):
    """The stream on which a client listens, as far as others need to know it."""

    async def tell(self, events: bytes) -> bool:
        """Send whole events of our own; false where the stream cannot carry them now."""

    async def open_ahead(self, upstream_id: UpstreamSessionId, generation: int) -> None:
        """A heal has a new upstream session: begin to listen to it, before it is the client's."""

    def is_behind(self, event_id: str) -> bool:
        """Whether the client, coming back behind this event, comes back for this very stream."""

    def heal_ended(self) -> None:
        """Go where the session stands now: to what was opened ahead, or back from it."""


class GetStreams:
    """Knows whose task serves an open stream, and who listens for a session."""

    def __init__(self) -> None:
        """No streams yet."""
        self._serving: dict[asyncio.Task[object], Session | None] = {}
        self._of_session: dict[Session, tuple[asyncio.Task[object], ...]] = {}
        self._listening: dict[Session, tuple[tuple[ListenerPort, asyncio.Task[object]], ...]] = {}
        self._ending: set[asyncio.Task[object]] = set()
        self._awaited: dict[asyncio.Task[object], asyncio.Future[None]] = {}
        self.returning = ReturnQueue()
        self.cuts = False  # whether what is ended from here is broken off

    def __len__(self) -> int:
        """How many streams are open."""
        return len(self._serving)

    async def serve(self, work: Awaitable[None]) -> None:
        """Do the work of one stream in this task, until it is over or ended from here."""
        self.enter()
        try:
            await work
        except asyncio.CancelledError:
            if not self.ends_this():
                raise
        finally:
            self.leave()

    def enter(self, session: Session | None = None) -> None:
        """This task serves a stream from now on, until ``leave``."""
        task = _this_task()
        self._serving[task] = session
        if session is not None:
            _add(self._of_session, session, task)

    def ends_this(self) -> bool:
        """Whether it was from here that this task's stream was cancelled; it then is not cancelled any more."""
        task = _this_task()
        if task not in self._ending:
            return False
        task.uncancel()
        return True

    def leave(self) -> None:
        """The stream of this task is over."""
        task = _this_task()
        session = self._serving.pop(task)
        self._ending.discard(task)
        awaited = self._awaited.pop(task, None)
        if awaited is not None and not awaited.done():
            awaited.set_result(None)
        if session is not None:
            _discard(self._of_session, session, task)

    # -- where a client listens ---------------------------------------------------------------------------------------

    def listens(self, session: Session, listener: ListenerPort) -> None:
        """From now on this stream is where the client of the session listens."""
        _add(self._listening, session, (listener, _this_task()))

    async def takes_over(self, session: Session, listener: ListenerPort) -> bool:
        """The same, and those before it end; upstream they are closed when this returns. True if there were any.

        To be called by the task that serves the newer stream.
        """
        former = [task for _, task in self._listening.get(session, ()) if task in self._serving]
        self.listens(session, listener)
        self._end(former)
        gone = [self._awaited.setdefault(task, asyncio.get_running_loop().create_future()) for task in former]
        if gone:
            await asyncio.wait(gone)
        return bool(gone)

    def leaves(self, session: Session, listener: ListenerPort) -> None:
        """This task's stream is over."""
        _discard(self._listening, session, (listener, _this_task()))

    def listener_of(self, session: Session) -> ListenerPort | None:
        """Where the client of the session listens, if it does: on the stream that it opened last."""
        listeners = self._listening.get(session)
        return listeners[-1][0] if listeners else None

    async def open_ahead(self, session: Session, upstream_id: UpstreamSessionId | None) -> None:
        """A heal has a new upstream session for this one: its listener, if there is one, begins to listen to it."""
        listener = self.listener_of(session)
        if listener is not None and upstream_id is not None:
            await listener.open_ahead(upstream_id, session.generation + 1)

    def heal_ended(self, session: Session) -> None:
        """Whatever came of the heal, the listener goes where the session stands now."""
        for listener, _ in self._listening.get(session, ()):
            listener.heal_ended()

    # -- ending -------------------------------------------------------------------------------------------------------

    def cut_all(self) -> None:
        """End every open stream in the way after which most clients open another: by a break.

        After a clean end rmcp 0.15 never does; python, TypeScript and rmcp all do after a break.
        """
        self.cuts = True
        self._end(list(self._serving))

    def end_of(self, session: Session) -> None:
        """End the streams of a session that is over: nothing will ever come on them."""
        self._end(self._of_session.get(session, ()))

    def _end(self, tasks: Iterable[asyncio.Task[object]]) -> None:
        for task in tasks:
            if task not in self._ending:
                self._ending.add(task)
                task.cancel()


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None, "an exchange runs in a task"
    return task


K = TypeVar("K")
V = TypeVar("V")


def _add(groups: dict[K, tuple[V, ...]], key: K, member: V) -> None:
    """Put it behind those that are there."""
    groups[key] = (*groups.get(key, ()), member)


def _discard(groups: dict[K, tuple[V, ...]], key: K, member: V) -> None:
    """Take it out, if it is there. A key without members is not kept."""
    others = tuple(other for other in groups.get(key, ()) if other != member)
    if others:
        groups[key] = others
    else:
        groups.pop(key, None)


@dataclass(slots=True)
class OpenCounts:
    """What is open now, for the gauges."""

    get_streams: int = 0
    post_streams: int = 0

    @contextmanager
    def post(self, *, is_stream: bool) -> Iterator[None]:
        """While the block runs the answer to a POST is passed on, and counts if it is a stream."""
        self.post_streams += is_stream
        try:
            yield
        finally:
            self.post_streams -= is_stream


class UpstreamStreams:
    """The open streams of the upstream, by session."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        self._open: dict[Session, tuple[Answer, ...]] = {}

    @contextmanager
    def holding(self, session: Session | None, answer: Answer) -> Iterator[None]:
        """While the block runs the answer is the session's; at once broken off where its id is another's already."""
        self.add(session, answer)
        try:
            yield
        finally:
            self.discard(session, answer)

    def add(self, session: Session | None, answer: Answer) -> None:
        """From now on, until ``discard``."""
        if session is None:
            return
        if session.displaced:
            answer.break_off()
        _add(self._open, session, answer)

    def discard(self, session: Session | None, answer: Answer) -> None:
        """Nobody reads it any more."""
        if session is not None:
            _discard(self._open, session, answer)

    def break_off(self, session: Session) -> None:
        """The session's upstream id is another session's now: whoever reads meets a break, and nothing more."""
        for answer in self._open.get(session, ()):
            answer.break_off()


@dataclass(frozen=True, slots=True)
class OpenStreams:
    """Both ends of what is open: where clients listen, and what the upstream sends."""

    listening: GetStreams = field(default_factory=GetStreams)
    upstream: UpstreamStreams = field(default_factory=UpstreamStreams)
    open: OpenCounts = field(default_factory=OpenCounts)
