"""Every fault at every moment for every message: the client gets what the contract promises, and nothing runs twice.

One test is one fault at one moment for one kind of session; in it every message of the table goes through one sidecar.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from mcp_sidecar.facts import SidecarFault
from tests.faults.evidence import CASES, Case, Evidence
from tests.faults.promises import Knowledge, Moment, Promise, Scene, breaches, promised
from tests.faults.traffic import TRAFFIC, Body, Kind, Traffic
from tests.support.behaviour import Answers, SessionMode
from tests.support.client import McpClient, NoAnswer, new_http
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Fault, Stage
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.stores import Settings
from tests.support.waiting import eventually

BOUND_S = 5.0
"""No client waits longer than this for a definite answer."""

SHORT_HOLD_S, PROBED_HOLD_S = 0.05, 0.5
"""How long a request is held where nothing will come; longer where first a ping and an ``initialize`` have to be denied."""

IDLE_TIMEOUT_S = 0.1

PATIENCE = 10
"""So much longer is everything waited for where the clock is the real one, and the machine may be slow."""


@dataclass(frozen=True, slots=True)
class ThenLost:
    """A fault, after which the server knows no session any more; nothing can arrive in between."""

    fault: Fault
    upstream: FakeUpstream

    @property
    def executes(self) -> bool:
        return self.fault.executes

    async def play(self, stage: Stage) -> None:
        try:
            await self.fault.play(stage)
        finally:
            self.upstream.forget()


@dataclass(frozen=True, slots=True)
class Stood:
    """One fault, one kind of session: a server, a sidecar, and what is to be tried between them."""

    upstream: FakeUpstream
    sidecar: WatchedSidecar
    http: aiohttp.ClientSession
    case: Case
    knowledge: Knowledge
    moment: Moment
    former: WatchedSidecar | None = None
    """Where the sessions were opened, if that is another sidecar: this one finds them in the store that both share."""
    remembers_hints: bool = True

    async def try_all(self) -> list[str]:
        """Send everything, one after the other or, where a fault lasts, all at once. Returns what went wrong."""
        if self.moment.lasts:
            return await self._try_at_once()
        found: list[str] = []
        for marker, traffic in enumerate(TRAFFIC, 1):
            actor = await self._actor(marker, traffic)
            fault = ThenLost(self.case.fault, self.upstream) if self.moment.loses else self.case.fault
            self.upstream.inject(fault)
            found += await actor.act()
            await self.upstream.clear()
        return found

    async def _try_at_once(self) -> list[str]:
        actors = [await self._actor(marker, traffic) for marker, traffic in enumerate(TRAFFIC, 1)]
        self.upstream.inject(self.case.fault, times=None)
        tasks = [asyncio.create_task(actor.act()) for actor in actors]
        if self.moment is not Moment.FOREVER:
            await self._until_all_wait(tasks)
            if self.moment.loses:
                self.upstream.forget()
            await self.upstream.clear()
        return [problem for problems in await asyncio.gather(*tasks) for problem in problems]

    async def _until_all_wait(self, tasks: list[asyncio.Task[list[str]]]) -> None:
        await eventually(lambda: len(self.sidecar.services.holds) + sum(task.done() for task in tasks) >= len(tasks))
        if self.case.evidence is Evidence.ROUTE and self.knowledge is Knowledge.BOUND:
            # Whoever waits has learned that not even an ``initialize`` finds the route; from then on one asks for all.
            await self.upstream.ledger.wait_for(
                lambda ledger: (
                    sum(a.answer_status == 404 for a in ledger.initializes) >= len(self.sidecar.services.holds)
                )
            )

    async def _actor(self, marker: int, traffic: Traffic) -> Actor:
        client = McpClient(self.sidecar.url, http=self.http, version="2025-03-26")
        if self.knowledge is Knowledge.UNKNOWN:
            client.url = self.upstream.url
        if self.former is not None:
            client.url = self.former.url
        await client.initialize()
        client.url = self.sidecar.url if self.former is None else self.former.url
        if self.knowledge is Knowledge.BOUND:
            await client.call("tools/list")
        if self.former is not None:
            await self.former.services.sessions.rounds.keeper.flush()
            client.url = self.sidecar.url
        scene = Scene(self.case, traffic, self.knowledge, self.moment, trust_annotations=self.remembers_hints)
        return Actor(scene, marker, client, self.upstream, 1 if self.former is None else PATIENCE)


@dataclass(frozen=True, slots=True)
class Actor:
    """A client with one message to send."""

    scene: Scene
    marker: int
    client: McpClient
    upstream: FakeUpstream
    patience: int = 1

    async def act(self) -> list[str]:
        """Send it, and compare what comes of it with the promise."""
        body = self.scene.traffic.build(self.client, self.marker)
        bare = self.scene.traffic.kind is Kind.INITIALIZE
        self.client.seen_session_ids.clear()
        try:
            async with asyncio.timeout(BOUND_S * self.patience):
                answer = await self.client.post(body, bare=bare)
        except (NoAnswer, TimeoutError) as error:
            return [self._named(f"no answer: {error!r}")]
        found = [*breaches(self.scene, body, answer), *self._run_too_often(body)]
        if not bare and not set(self.client.seen_session_ids) <= {self.client.session_id}:
            found.append("another session id was shown")
        return [self._named(problem) for problem in found]

    def _run_too_often(self, body: Body) -> Iterator[str]:
        counts = self._counts()
        often = max(counts.values(), default=0)
        if not self.scene.safe and often > 1:
            yield f"ran more than once: {counts}"
        if often > 3 and self.scene.case.evidence is not Evidence.GATEWAY:
            yield f"was sent too often: {counts}"
        said_not_to_have_run = promised(self.scene) in (Promise.UNAVAILABLE, Promise.START_OVER)
        if said_not_to_have_run and not self.scene.safe and often:
            yield f"ran, and was said not to have run: {counts}"

    def _counts(self) -> dict[str, int]:
        ledger = self.upstream.ledger
        ran = [e.name for e in ledger.executions() if e.arguments.get("marker") == self.marker]
        ran += ["response" for reply in ledger.replies if reply.rpc_id == self.marker]
        return {name: ran.count(name) for name in set(ran)}

    def _named(self, problem: str) -> str:
        return f"{self.scene.traffic.name}: {problem}"


@asynccontextmanager
async def standing(
    case: Case, knowledge: Knowledge, moment: Moment, answers: Answers, store: Settings | None = None
) -> AsyncIterator[Stood]:
    """Everything that one test needs; with a ``store`` sessions are opened at another sidecar."""
    mode = SessionMode.STATELESS if knowledge is Knowledge.NONE else SessionMode.MANY
    asks = (Evidence.ROUTE, Evidence.BUSY, Evidence.ERROR)
    short_s = PROBED_HOLD_S if case.evidence in asks else SHORT_HOLD_S
    hold_s = short_s if moment is Moment.FOREVER else BOUND_S
    patience = 1 if store is None else PATIENCE
    settings = {"upstream__idle_timeout": IDLE_TIMEOUT_S * patience} if case.evidence is Evidence.STALLED else {}
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream(answers=answers, sessions=mode, **case.behaviour))
        holds = dict.fromkeys(("healing__hold_timeout", "healing__connect_hold_timeout"), hold_s * patience)
        sidecar = await stack.enter_async_context(running_sidecar(upstream.url, **holds, **settings, **(store or {})))
        http = await stack.enter_async_context(new_http())
        if store is None:
            yield Stood(upstream, sidecar, http, case, knowledge, moment)
            return
        former = await stack.enter_async_context(running_sidecar(upstream.url, **store))
        await McpClient(sidecar.url, http=http).initialize()  # it has met the server, too
        yield Stood(
            upstream, sidecar, http, case, knowledge, moment, former, remembers_hints=store["store"] != "sealed:"
        )


def _cells() -> Iterator[pytest.ParameterSet]:
    for case, knowledge, moment in itertools.product(CASES, Knowledge, Moment):
        if case.evidence is Evidence.NOT_SENT and not moment.lasts:
            continue  # connects are refused until they are not
        if case.evidence is Evidence.POLLING and moment is not Moment.ONCE:
            continue  # nothing follows
        if case.evidence is Evidence.STALLED and not moment.lasts and knowledge is not Knowledge.BOUND:
            continue  # each waits for itself, which takes its time
        if knowledge is Knowledge.NONE and moment.loses:
            continue  # no session, nothing to lose
        both = knowledge is Knowledge.BOUND and not case.spoils_answers  # a spoiler brings its own form along
        for answers in Answers if both else (Answers.JSON,):
            name = f"{case.name}-{knowledge.value}-{moment.name.lower()}-{answers.value}"
            yield pytest.param(case, knowledge, moment, answers, id=name)


@pytest.mark.parametrize(("case", "knowledge", "moment", "answers"), list(_cells()))
async def test_every_promise_is_kept(case: Case, knowledge: Knowledge, moment: Moment, answers: Answers) -> None:
    """Whatever breaks, whenever: a definite answer, the promised one, and no unsafe message ran twice."""
    async with standing(case, knowledge, moment, answers) as stood:
        problems = await stood.try_all()
        problems += [f"fault of the sidecar: {fact}" for fact in stood.sidecar.of(SidecarFault)]
    assert not problems, "\n" + "\n".join(problems)
