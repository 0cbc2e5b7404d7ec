"""After a heal, once the client has its answer: look whether the new server still lists what the client saw.

It is done in the background with the credentials of the request at hand, bounded in pages, bytes and time, and it
never fails anybody: what cannot be had now is compared after the next heal.
"""

from __future__ import annotations

import asyncio
import contextlib

from mcp_sidecar.facts import ListKind, ListsChanged, SessionEnd
from mcp_sidecar.healing.hints import list_changed
from mcp_sidecar.healing.lists import EMPTY, Listing, Pages, is_promised
from mcp_sidecar.healing.policy import OnServerChange
from mcp_sidecar.healing.session import Session, State
from mcp_sidecar.sessions.heal import HealServices
from mcp_sidecar.sessions.own_requests import OwnRequests, Trigger, read_rpc_answer
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.wire.jsonrpc import Message, dump

MAX_AT_A_TIME = 8
"""Comparing is never urgent: after a restart it must not crowd out the clients' own requests."""

TIMEOUT_S = 30.0
"""How long one session's comparison may take, its wait for a turn included."""

MAX_PAGES = 100
"""Per list; each page has ``limits.max_buffered_answer`` at most."""

OWN_ID = "mcp-sidecar-list"

METHOD_NOT_FOUND = -32601


class _NotComparable(Exception):
    """The list cannot be had, or not whole."""


class ListCheck:
    """Compares the lists of sessions that were healed, each once per heal."""

    def __init__(self, tools: HealServices) -> None:
        """Nothing is under way yet."""
        self._tools = tools
        self._slots = asyncio.Semaphore(MAX_AT_A_TIME)
        self._under_way: dict[Session, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        """How many comparisons are under way."""
        return len(self._under_way)

    def answered(self, session: Session, generation: int, trigger: Trigger) -> None:
        """A request that was sent under ``generation`` has its answer; ``trigger`` is this request."""
        if not session.list_check_due or generation != session.generation:
            return
        session.list_check_begins()
        stale = list(session.lists.stale(generation)) if session.lists is not None else []
        if not stale or not self._tools.policy.compare_lists:
            return
        former = self._under_way.pop(session, None)
        if former is not None:
            former.cancel()
        task = asyncio.create_task(self._compare(session, stale, trigger))
        self._under_way[session] = task
        task.add_done_callback(lambda done: self._forget(session, done))

    async def look_again(self, session: Session, trigger: Trigger) -> None:
        """Compare all that the client has seen; the session lives, and no policy ends it."""
        stale = list(session.lists.stale(session.generation + 1)) if session.lists is not None else []
        if stale and self._tools.policy.compare_lists:
            await self._compare(session, stale, trigger, is_healed=False)

    def listens(self, session: Session, generation: int, trigger: Trigger) -> None:
        """A stream is attached under ``generation``; while a POST is under way, that one is answered first."""
        if not session.posts:
            self.answered(session, generation, trigger)

    async def stop(self) -> None:
        """Compare nothing any more."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, session: Session, task: asyncio.Task[None]) -> None:
        if self._under_way.get(session) is task:
            del self._under_way[session]

    async def _compare(
        self, session: Session, stale: list[Listing], trigger: Trigger, *, is_healed: bool = True
    ) -> None:
        asking = _Asking(self._tools, session, trigger)
        changed: dict[ListKind, None] = {}
        with contextlib.suppress(UpstreamFault, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S), self._slots:
                for listing in stale:
                    if await _has_changed(session, listing, asking, is_healed=is_healed):
                        changed[listing.kind] = None
        if asking.is_current and changed:
            await self._tell(session, list(changed), trigger, may_reset=is_healed)

    async def _tell(self, session: Session, changed: list[ListKind], trigger: Trigger, *, may_reset: bool) -> None:
        promises = self._tools.policy.promises_lists
        promised = {kind: promises or is_promised(session.handshake, kind) for kind in changed}
        for kind in changed:
            self._tools.emit(ListsChanged(session.label, kind, promised[kind]))
        resets = may_reset and self._tools.policy.on_server_change is OnServerChange.RESET
        if resets and not all(promised.values()):
            await self._give_up(session, trigger)
            return
        self._tools.notifier.tell(session, [list_changed(kind) for kind in changed if promised[kind]], may_wait=False)

    async def _give_up(self, session: Session, trigger: Trigger) -> None:
        """The client is to start over. Upstream the session is ended, too, unless a call may still be running in it."""
        self._tools.table.end(session, SessionEnd.INCOMPATIBLE)
        self._tools.streams.end_of(session)
        if not session.posts:
            await OwnRequests(self._tools.upstream, session, trigger).discard(session.upstream_id)


async def _has_changed(session: Session, listing: Listing, asking: _Asking, *, is_healed: bool) -> bool:
    """Whether the client saw another list; it may have asked again meanwhile."""
    try:
        digest = await asking.digest_of(listing)
    except _NotComparable:
        return False
    seen_before = asking.generation if is_healed else asking.generation + 1
    return session.lists is not None and session.lists.differs(listing, digest, seen_before)


class _Asking:
    """Our own list requests to one upstream session."""

    def __init__(self, tools: HealServices, session: Session, trigger: Trigger) -> None:
        self._session = session
        self._requests = OwnRequests(tools.upstream, session, trigger)
        self._max_answer_bytes = tools.max_answer_bytes
        self._asked = 0
        self.generation = session.generation

    @property
    def is_current(self) -> bool:
        """Whether the upstream session that is asked is still the one behind the client's."""
        session = self._session
        return session.generation == self.generation and session.state is State.ESTABLISHED and not session.displaced

    async def digest_of(self, listing: Listing) -> int:
        """The digest of a whole list. Raises ``UpstreamFault`` and ``_NotComparable``."""
        pages = Pages(EMPTY, None)
        for number in range(MAX_PAGES):
            answer = await self._page(listing, pages.next_cursor)
            if number == 0 and answer.error is not None and answer.error.get("code") == METHOD_NOT_FOUND:
                return EMPTY
            turned = pages.turned(listing, answer.result or {})
            if turned is None:
                raise _NotComparable
            if turned.next_cursor is None:
                return turned.digest
            pages = turned
        raise _NotComparable

    async def _page(self, listing: Listing, cursor: str | None) -> Message:
        if not self.is_current:
            raise _NotComparable
        self._asked += 1
        own_id = f"{OWN_ID}-{self._asked}"
        params = {} if cursor is None else {"params": {"cursor": cursor}}
        body = dump({"jsonrpc": "2.0", "id": own_id, "method": listing.method, **params})
        async with await self._requests.post(body, self._session.upstream_id, in_session=True) as answer:
            if not 200 <= answer.status < 300:
                raise _NotComparable
            message = await read_rpc_answer(answer, own_id, self._max_answer_bytes)
        if message is None:
            raise _NotComparable
        return message
