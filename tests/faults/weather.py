"""The weather of a storm: what goes wrong with an upstream. The rule: only what the contract has an answer to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from tests.faults.storm import Report, pick
from tests.support.behaviour import Answers
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import (
    CloseBeforeHeaders,
    CutStream,
    EndStream,
    Fault,
    GarbageHeaders,
    IngressPage,
    ResetAfterExecution,
    ResetBeforeExecution,
    RoutePage,
    Router,
    SlowHeaders,
    Stall,
    StallAt,
    TruncateJson,
)
from tests.support.script import Planted

_FAULTS_IN_WAIT: Final = 6


def _fault(rng: random.Random) -> Fault:
    """Some way in which one answer fails."""
    ids = rng.choice([None, True, False])
    faults: list[Fault] = [
        ResetAfterExecution(),
        ResetBeforeExecution(),
        CloseBeforeHeaders(executes=rng.random() < 0.5),
        TruncateJson(after_bytes=rng.randrange(60), chunked=rng.random() < 0.5),
        CutStream(after_events=rng.randrange(3), event_ids=ids, mid_event=rng.random() < 0.3),
        EndStream(after_events=rng.randrange(2), event_ids=bool(ids)),
        RoutePage(rng.choice(list(Router))),
        IngressPage(rng.choice([502, 503, 504]), executes=rng.random() < 0.3),
        GarbageHeaders(),
        SlowHeaders(),
        Stall(rng.choice(list(StallAt))),
    ]
    return rng.choice(faults)


@dataclass(slots=True)
class Weather:
    """What goes wrong with the upstream, one thing after the other, until the storm is over."""

    upstream: FakeUpstream
    rng: random.Random
    report: Report
    _in_wait: list[Planted] = field(default_factory=list)

    async def rage(self) -> None:
        kinds: tuple[tuple[int, Callable[[], Awaitable[None]]], ...] = (
            (12, self._restart),
            (8, self._outage),
            (6, self._crash),
            (10, self._forgotten_session),
            (4, self._another_server),
            (2, self._ended_get_streams),
            (3, self._ingress_pages),
            (55, self._spoiled_answer),
        )
        while not self.report.is_over:
            await asyncio.sleep(self.rng.random() * 0.25)
            kind = pick(self.rng, kinds)
            self.report.tally[kind.__name__] += 1
            await kind()

    async def clear_up(self) -> None:
        """No fault is left, and the upstream is there."""
        self.upstream.release()
        await self.upstream.clear()

    async def _restart(self) -> None:
        await self.upstream.restart()

    async def _outage(self) -> None:
        await self.upstream.stop()
        await asyncio.sleep(self.rng.random() * self.rng.choice([0.2, 0.5, 1.6]))
        await self.upstream.restart()

    async def _crash(self) -> None:
        self.upstream.crash()
        await asyncio.sleep(self.rng.random() * 0.4)
        await self.upstream.start()

    async def _forgotten_session(self) -> None:
        if self.upstream.sessions:
            self.upstream.forget(self.rng.choice(list(self.upstream.sessions)))

    async def _another_server(self) -> None:
        ids, store = self.rng.random() < 0.5, self.rng.random() < 0.5
        self.upstream.become(answers=self.rng.choice(list(Answers)), event_ids=ids, event_store=store)

    async def _ended_get_streams(self) -> None:
        self.upstream.end_get_streams()

    async def _ingress_pages(self) -> None:
        pages: list[Fault] = [IngressPage(502), IngressPage(503), RoutePage(Router.NGINX)]
        planted = self.upstream.inject(self.rng.choice(pages), times=None)
        await asyncio.sleep(self.rng.random() * 0.8)
        planted.times = 0

    async def _spoiled_answer(self) -> None:
        if sum(not planted.hits for planted in self._in_wait) >= _FAULTS_IN_WAIT:
            await self.upstream.clear()
            self._in_wait.clear()
        http_method = self.rng.choice([None, "POST", "POST", "GET"])
        self._in_wait.append(
            self.upstream.inject(_fault(self.rng), http_method=http_method, skip=self.rng.randrange(4))
        )
