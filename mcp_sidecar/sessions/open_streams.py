"""The open GET streams: who serves them, and on which of them a session's client listens.

A drain breaks all of them off at once, a DELETE those of its session, a client's next GET the one before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from mcp_sidecar.healing.session import Session, UpstreamSessionId
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.waiting.slots import ReturnQueue


class Served(Protocol):
    """An open stream, whether a task works on it or not."""

    def end(self) -> None:
        """End it from outside; it leaves then or there, or as soon as the loop turns."""


class ListenerPort(Served, Protocol):
    """The stream on which a client listens, as far as others need to know it."""

    async def tell(self, events: bytes) -> bool:
        """Send whole events of our own; false where the stream cannot carry them now."""

    async def open_ahead(self, upstream_id: UpstreamSessionId, generation: int) -> None:
        """A heal has a new upstream session: begin to listen to it, before it is the client's."""

    def is_behind(self, event_id: str) -> bool:
        """Whether the client, coming back behind this event, comes back for this very stream."""

    def heal_ended(self) -> None:
        """Go where the session stands now: to what was opened ahead, or back from it."""


class _InTask:
    """A stream that is served by a task as long as it is open."""

    def __init__(self) -> None:
        """By the present one."""
        task = asyncio.current_task()
        assert task is not None, "an exchange runs in a task"
        self.task = task
        self.is_ended = False

    def end(self) -> None:
        """See ``Served``."""
        if not self.is_ended:
            self.is_ended = True
            self.task.cancel()


class GetStreams:
    """Knows the open streams, and who listens for a session."""

    def __init__(self) -> None:
        """No streams yet."""
        self._serving: dict[Served, Session | None] = {}
        self._of_session: Groups[Session, Served] = {}
        self._listening: Groups[Session, ListenerPort] = {}
        self._awaited: dict[Served, asyncio.Future[None]] = {}
        self.returning = ReturnQueue()
        self.cuts = False  # whether what is ended from here is broken off

    def __len__(self) -> int:
        """How many streams are open."""
        return len(self._serving)

    async def serve(self, work: Awaitable[None]) -> None:
        """Do the work of one stream in this task, until it is over or ended from here."""
        stream = _InTask()
        self.enter(stream)
        try:
            await work
        except asyncio.CancelledError:
            if not stream.is_ended:
                raise
            stream.task.uncancel()
        finally:
            self.leave(stream)

    def enter(self, stream: Served, session: Session | None = None) -> None:
        """The stream is open from now on, until ``leave``."""
        self._serving[stream] = session
        if session is not None:
            _add(self._of_session, session, stream)

    def leave(self, stream: Served) -> None:
        """The stream is over."""
        session = self._serving.pop(stream)
        awaited = self._awaited.pop(stream, None)
        if awaited is not None and not awaited.done():
            awaited.set_result(None)
        if session is not None:
            _discard(self._of_session, session, stream)

    # -- where a client listens ---------------------------------------------------------------------------------------

    async def takes_over(self, session: Session, listener: ListenerPort) -> bool:
        """From now on this stream, which is open, is where the client of the session listens. Those before it end.

        Upstream they are closed when this returns. True if there were any.
        """
        former = _members(self._listening, session)
        _add(self._listening, session, listener)
        for stream in former:
            stream.end()
        gone = [
            self._awaited.setdefault(stream, asyncio.get_running_loop().create_future())
            for stream in former
            if stream in self._serving
        ]
        if gone:
            await asyncio.wait(gone)
        return bool(former)

    def leaves(self, session: Session, listener: ListenerPort) -> None:
        """The client does not listen on this stream any more."""
        _discard(self._listening, session, listener)

    def listener_of(self, session: Session) -> ListenerPort | None:
        """Where the client of the session listens, if it does: on the stream that it opened last."""
        listeners = _members(self._listening, session)
        return listeners[-1] if listeners else None

    async def open_ahead(self, session: Session, upstream_id: UpstreamSessionId | None) -> None:
        """A heal has a new upstream session for this one: its listener, if there is one, begins to listen to it."""
        listener = self.listener_of(session)
        if listener is not None and upstream_id is not None:
            await listener.open_ahead(upstream_id, session.generation + 1)

    def heal_ended(self, session: Session) -> None:
        """Whatever came of the heal, the listener goes where the session stands now."""
        for listener in _members(self._listening, session):
            listener.heal_ended()

    # -- ending -------------------------------------------------------------------------------------------------------

    def cut_all(self) -> None:
        """End every open stream in the way after which most clients open another: by a break.

        After a clean end rmcp 0.15 never does; python, TypeScript and rmcp all do after a break.
        """
        self.cuts = True
        for stream in list(self._serving):
            stream.end()

    def end_of(self, session: Session) -> None:
        """End the streams of a session that is over: nothing will ever come on them."""
        for stream in _members(self._of_session, session):
            stream.end()


K = TypeVar("K")
V = TypeVar("V")


Groups = dict[K, V | tuple[V, ...]]
"""Members by a key. Almost always there is one, and it stands there alone: there may be thousands of keys."""


def _members(groups: Groups[K, V], key: K) -> tuple[V, ...]:
    """In the order in which they came."""
    found = groups.get(key, ())
    return found if isinstance(found, tuple) else (found,)


def _add(groups: Groups[K, V], key: K, member: V) -> None:
    """Put it behind those that are there."""
    groups[key] = (*_members(groups, key), member) if key in groups else member


def _discard(groups: Groups[K, V], key: K, member: V) -> None:
    """Take it out, if it is there. A key without members is not kept."""
    others = tuple(other for other in _members(groups, key) if other != member)
    if others:
        groups[key] = others if len(others) > 1 else others[0]
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
        self._open: Groups[Session, Answer] = {}

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
        for answer in _members(self._open, session):
            answer.break_off()


@dataclass(frozen=True, slots=True)
class OpenStreams:
    """Both ends of what is open: where clients listen, and what the upstream sends."""

    listening: GetStreams = field(default_factory=GetStreams)
    upstream: UpstreamStreams = field(default_factory=UpstreamStreams)
    open: OpenCounts = field(default_factory=OpenCounts)
