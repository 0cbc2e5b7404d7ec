"""Behind a break: whether the session lives, and if so what the server may have forgotten without saying so.

Some servers take any id: a restart of theirs cannot be seen but by the streams that broke (mcp-go's default). What the client
had set is said again and its lists are compared; there is no `initialize`, and nobody is told of a restart. It is done in the
background with the credentials of the request at hand, once per break, bounded in time, and it never fails anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from mcp_sidecar.healing.session import Session, State, UpstreamSessionId
from mcp_sidecar.sessions.heal import HealServices
from mcp_sidecar.sessions.list_check import ListCheck
from mcp_sidecar.sessions.own_requests import OwnRequests, Trigger
from mcp_sidecar.sessions.ping import ping
from mcp_sidecar.sessions.restore import Restore
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.verdicts.refusals import PingAnswer, PingVerdict
from mcp_sidecar.wire import headers

MAX_AT_A_TIME = 8
"""Like comparing lists, this is never urgent."""

TIMEOUT_S = 60.0
"""How long one session's refresh may take, its wait for a turn included."""

PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Between the pings behind a break that nobody listens to; then the session is left as it is."""

_UNSETTLED = frozenset({PingVerdict.AWAY, PingVerdict.GATEWAY, PingVerdict.BUSY})

Work = Callable[[Session, Trigger], Coroutine[Any, Any, None]]


class SessionRefresher:
    """Refreshes sessions, each once per break."""

    def __init__(self, tools: HealServices, list_check: ListCheck) -> None:
        """Nothing is under way yet."""
        self._tools = tools
        self._list_check = list_check
        self._slots = asyncio.Semaphore(MAX_AT_A_TIME)
        self._under_way: dict[Session, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        """How many sessions are refreshed now."""
        return len(self._under_way)

    async def ping(self, session: Session, trigger: Trigger) -> PingAnswer:
        """Ask on the session, as it stands now, whether it lives."""
        generation, own = session.generation, OwnRequests(self._tools.upstream, session, trigger)
        follow = partial(self.follows, session, generation, trigger=trigger)
        return await ping(own, session.upstream_id, self._tools.policy.signatures, heads=follow)

    def asked(self, session: Session, found: PingVerdict, trigger: Trigger) -> None:
        """A listening stream is there again behind a break, and a `ping` has shown this of its session."""
        if found is PingVerdict.ALIVE:
            self._begin(session, self._refresh, trigger)
        elif found in _UNSETTLED:
            self._begin(session, self._refresh_if_alive, trigger)

    def broke(self, session: Session, generation: int, trigger: Trigger) -> None:
        """The stream of a POST, sent under ``generation``, has broken, and nobody listens who would notice more."""
        if generation == session.generation:
            self._begin(session, self._refresh_if_alive, trigger)

    def follows(self, session: Session, generation: int, answer: Answer, trigger: Trigger) -> bool:
        """Go on under the id of an answer, where the upstream has opened another session by itself. True if it has.

        ``generation`` is the one that the request was sent under.
        """
        shown = answer.header(headers.SESSION_ID)
        if shown is None or shown == session.upstream_id or not 200 <= answer.status < 300:
            return False
        if not self._tools.policy.heals or generation != session.generation or not headers.is_valid_session_id(shown):
            return False
        if not self._tools.table.move(session, UpstreamSessionId(shown)):
            return False
        self._tools.notifier.tell(session, session.hints_after_heal(missed_nothing=True), may_wait=True)
        self._tools.streams.heal_ended(session)
        self._begin(session, self._refresh, trigger)
        return True

    async def stop(self) -> None:
        """Refresh nothing any more."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- in the background --------------------------------------------------------------------------------------------

    def _begin(self, session: Session, work: Work, trigger: Trigger) -> None:
        """What was begun before this break counts for nothing."""
        if not (self._tools.policy.heals and self._tools.policy.refresh_after_break):
            return
        former = self._under_way.pop(session, None)
        if former is not None:
            former.cancel()
        task = asyncio.create_task(work(session, trigger))
        self._under_way[session] = task
        task.add_done_callback(lambda done: self._forget(session, done))

    def _forget(self, session: Session, task: asyncio.Task[None]) -> None:
        if self._under_way.get(session) is task:
            del self._under_way[session]

    async def _refresh_if_alive(self, session: Session, trigger: Trigger) -> None:
        generation = session.generation
        for pause_s in PAUSES_S:
            if not _is_at(session, generation):
                return
            verdict = (await self.ping(session, trigger)).verdict
            if verdict is PingVerdict.ALIVE:
                await self._refresh(session, trigger)
            if verdict not in _UNSETTLED:
                return
            await asyncio.sleep(pause_s)

    async def _refresh(self, session: Session, trigger: Trigger) -> None:
        with contextlib.suppress(UpstreamFault, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S), self._slots:
                await self._say_again(session, trigger)
                if session.list_check_due:
                    self._list_check.answered(session, session.generation, trigger)
                else:
                    await self._list_check.look_again(session, trigger)

    async def _say_again(self, session: Session, trigger: Trigger) -> None:
        """What is refused was perhaps never forgotten: that is no news."""
        generation, upstream_id = session.generation, session.upstream_id
        if upstream_id is None or not _is_at(session, generation):
            return
        own = OwnRequests(self._tools.upstream, session, trigger)
        restore = Restore(own, self._tools.policy.signatures, self._tools.max_answer_bytes, lambda _: None)
        await restore.run(upstream_id, session.handshake.capabilities, lambda: _is_at(session, generation))


def _is_at(session: Session, generation: int) -> bool:
    return session.generation == generation and session.state is State.ESTABLISHED and not session.displaced
