"""The clients of a storm: each does everything that a client may do, at random, and knows what it is owed.

The rule: what a client is owed is written down before it asks, and whatever differs from that is a complaint, never a crash
of the storm. What goes wrong with the upstream meanwhile is in ``weather``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

import aiohttp

from tests.faults.traffic import Body, note
from tests.support.behaviour import SESSION_REVISIONS
from tests.support.client import Answer, McpClient, NoAnswer
from tests.support.credentials import alice

T = TypeVar("T")

CLIENT_HEADER: Final = "X-Client"
ANSWER_BOUND_S: Final = 9.0  # both holds, idle timeouts, and errors whose body does not come

_USERS: Final = 3
_OWN_REASONS: Final = {"upstream_unavailable", "outcome_unknown", "session_lost"}
_REASONS_OF_A_CANCEL: Final = _OWN_REASONS | {"cancelled", "Request cancelled"}
_LARGE_REQUEST_BYTES: Final = 900_000
_LARGE_ANSWER_BYTES: Final = 700_000  # less than max_buffered_answer: a longer JSON answer may break before the client


@dataclass(slots=True)
class Report:
    """What came of a storm. ``tally`` says that there was one, which is over after ``wanted`` answers."""

    wanted: int
    complaints: list[str] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)
    markers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def is_over(self) -> bool:
        return self.tally["answered 200"] >= self.wanted

    def complain(self, about: str, *evidence: object) -> None:
        self.complaints.append(f"{about}: {' '.join(repr(item)[:200] for item in evidence)}")


# -- what clients ask ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """A body, and the text that each of its requests is owed; ``None`` where any result will do."""

    body: Body
    owed: dict[str | int, str | None]


class Manner(Enum):
    """How a client waits for its answer."""

    PATIENT = "patient"
    LEAVES = "leaves"
    CANCELS = "cancels"


def _tool(client: McpClient, rng: random.Random, name: str, owed: str | None, **arguments: Any) -> Ask:
    request = client.request("tools/call", {"name": name, "arguments": arguments})
    if rng.random() < 0.5:
        request["id"] = f"s{request['id']}"
    return Ask(request, {request["id"]: owed})


def _plain(client: McpClient, method: str) -> Ask:
    request = client.request(method)
    return Ask(request, {request["id"]: None})


def _echo(client: McpClient, rng: random.Random, n: int) -> Ask:
    return _tool(client, rng, "echo", f"marked {n}", text=f"marked {n}")


def _put(client: McpClient, rng: random.Random, n: int) -> Ask:
    return _tool(client, rng, "put", f"K{n} is {n}", key=f"K{n}", value=n)


def _charge(client: McpClient, rng: random.Random, n: int) -> Ask:
    return _tool(client, rng, "charge", f"charged {n}", amount=n)


def _large_request(client: McpClient, rng: random.Random, n: int) -> Ask:
    return _tool(client, rng, "charge", f"charged {n}", amount=n, padding="x" * _LARGE_REQUEST_BYTES)


def _large_answer(client: McpClient, rng: random.Random, n: int) -> Ask:
    text = f"marked {n} " + "x" * rng.choice([1_000, 300_000, _LARGE_ANSWER_BYTES])
    return _tool(client, rng, "echo", text, text=text)


def _progress(client: McpClient, rng: random.Random, n: int) -> Ask:
    params = {"name": "progress", "arguments": {"steps": 3}, "_meta": {"progressToken": f"P{n}"}}
    request = client.request("tools/call", params)
    return Ask(request, {request["id"]: "3 steps"})


def _batch(client: McpClient, rng: random.Random, n: int) -> Ask:
    charges = [_charge(client, rng, n * 1_000_000 + part) for part in range(3)]
    messages: list[dict[str, Any]] = [charge.body for charge in charges if isinstance(charge.body, dict)]
    return Ask([*messages, note("roots/list_changed", n)], {k: v for charge in charges for k, v in charge.owed.items()})


_ASKS: Final[tuple[tuple[int, Callable[[McpClient, random.Random, int], Ask]], ...]] = (
    (14, _echo),
    (18, _charge),
    (5, _put),
    (4, _progress),
    (2, _batch),
    (2, _large_answer),
    (1, _large_request),
    (3, lambda client, _rng, _n: _plain(client, "ping")),
    (2, lambda client, _rng, _n: _plain(client, "tools/list")),
)
_MANNERS: Final = ((40, Manner.PATIENT), (5, Manner.LEAVES), (5, Manner.CANCELS))


def pick(rng: random.Random, table: tuple[tuple[int, T], ...]) -> T:
    return rng.choices([row for _, row in table], [weight for weight, _ in table])[0]


# -- what they make of the answer -----------------------------------------------------------------------------------------


def complaints_about(ask: Ask, answer: Answer, manner: Manner) -> Iterator[str]:
    """What is wrong with the answer to a session's POST."""
    if answer.broken is not None:
        yield f"broken off ({answer.broken!r})"
    elif answer.status not in (200, 404):  # a 404 says to start over, or is a router's about one unsafe call
        yield f"status {answer.status}"
    elif answer.status == 200:
        messages = list(_flat(answer.messages))
        told = {m["id"]: m for m in messages if "result" in m or "error" in m}
        yield from (f"an answer to somebody else's {id!r}" for id in told.keys() - ask.owed.keys())
        yield from (f"a foreign token in {m}" for m in messages if not _is_own_progress(ask, m))
        for id, owed in ask.owed.items():
            yield from _complaints_about_one(told.get(id), owed, answer, manner)


def _flat(messages: list[Any]) -> Iterator[dict[str, Any]]:
    """An event may hold an array, which answers a batch."""
    for message in messages:
        yield from message if isinstance(message, list) else [message]


def _complaints_about_one(
    told: dict[str, Any] | None, owed: str | None, answer: Answer, manner: Manner
) -> Iterator[str]:
    if told is None:
        if manner is not Manner.CANCELS and not _is_to_be_polled(answer):
            yield "no answer"
    elif "error" in told:
        if _reason(told) not in (_REASONS_OF_A_CANCEL if manner is Manner.CANCELS else _OWN_REASONS):
            yield f"the error {told['error']}"
    elif owed is not None and told["result"]["content"][0]["text"] != owed:
        yield f"{told['result']!r:.200} instead of {owed!r:.80}"


def _reason(told: dict[str, Any]) -> str:
    error = told["error"]
    return str((error.get("data") or {}).get("reason", error["message"]))


def _is_to_be_polled(answer: Answer) -> bool:
    """A stream that ends with an event id is what the server of 2025-11-25 says to mean `ask again`."""
    return answer.content_type == "text/event-stream" and any(event.event_id for event in answer.events)


def _is_own_progress(ask: Ask, message: dict[str, Any]) -> bool:
    if message.get("method") != "notifications/progress":
        return True
    return f'"{message["params"]["progressToken"]}"' in json.dumps(ask.body)


# -- clients --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Visitor:
    """One client, and whose it is: every fourth has no user. It starts over where it is told to, and never asks twice."""

    number: int
    url: str
    rng: random.Random
    report: Report
    _listening: list[asyncio.Task[None]] = field(default_factory=list)

    async def visit(self) -> None:
        """Ask until the storm is over."""
        version = self.rng.choice(SESSION_REVISIONS)
        async with McpClient(self.url, headers=self._headers(), version=version) as client:
            while not self.report.is_over:
                client.headers = self._headers()  # a fresh token of the same user
                await (self._ask(client) if client.session_id else self._open(client))
                await asyncio.sleep(self.rng.random() * 0.5)
            for task in self._listening:
                task.cancel()
            await asyncio.gather(*self._listening, return_exceptions=True)

    def _headers(self) -> dict[str, str]:
        user = alice(sub=f"user{self.number % _USERS}") if self.number % 4 else {}
        return {CLIENT_HEADER: f"c{self.number}", **user}

    async def _open(self, client: McpClient) -> None:
        answer = await self._bounded(client.call("initialize", _initialize_params(client), bare=True))
        if answer is None or answer.status != 200 or "result" not in answer.response:
            return  # 503 or an error: nobody is there, which an `initialize` is told
        client.session_id = answer.session_id
        client.version = answer.result["protocolVersion"]
        await self._bounded(client.notify("notifications/initialized"))
        await self._bounded(client.call("tools/list"))

    async def _ask(self, client: McpClient) -> None:
        match self.rng.random():
            case roll if roll < 0.05:
                self._listening.append(asyncio.create_task(self._listen(client)))
            case roll if roll < 0.07:
                await self._bounded(client.delete())
                client.session_id = None
            case _:
                ask = pick(self.rng, _ASKS)(client, self.rng, next(self.report.markers))
                await self._post(client, ask, pick(self.rng, _MANNERS))

    async def _post(self, client: McpClient, ask: Ask, manner: Manner) -> None:
        answer = await self._answer_to(client, ask, manner)
        if manner is Manner.LEAVES:
            return
        if answer is None:
            client.session_id = None
            return
        for complaint in complaints_about(ask, answer, manner):
            self.report.complain(complaint, manner, ask.body, answer.content_type, answer.body[-200:])
        if answer.status == 404 and b"-32001" in answer.body:
            client.session_id = None
        self.report.tally[f"answered {answer.status}"] += 1

    async def _answer_to(self, client: McpClient, ask: Ask, manner: Manner) -> Answer | None:
        asking = asyncio.create_task(client.post(ask.body))
        try:
            if manner is Manner.LEAVES:
                await asyncio.wait({asking}, timeout=self.rng.random() ** 2 * 0.3)
                return None
            if manner is Manner.CANCELS:
                await asyncio.wait({asking}, timeout=self.rng.random() ** 2 * 0.2)
                await self._bounded(client.notify("notifications/cancelled", {"requestId": next(iter(ask.owed))}))
            return await self._bounded(asking)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _listen(self, client: McpClient) -> None:
        """Hold a GET stream for a while; what it may be refused or broken with is not this storm's matter."""
        with suppress(NoAnswer, TimeoutError, aiohttp.ClientError, ConnectionError):
            async with asyncio.timeout(self.rng.random() * 3), await client.get_stream() as stream:
                self.report.tally[f"listened {stream.status}"] += 1
                while await stream.next_event() is not None:
                    pass

    async def _bounded(self, asking: Awaitable[Answer]) -> Answer | None:
        """The answer, or ``None`` and a complaint where none came in time."""
        try:
            async with asyncio.timeout(ANSWER_BOUND_S):
                return await asking
        except TimeoutError:
            self.report.complain(f"no answer to c{self.number} within {ANSWER_BOUND_S} s")
        except NoAnswer as error:
            self.report.complain("no HTTP answer", error, error.__cause__)
        return None


def _initialize_params(client: McpClient) -> dict[str, Any]:
    info = {"name": "test-client", "version": "1"}
    return {"protocolVersion": client.version, "capabilities": {}, "clientInfo": info}
