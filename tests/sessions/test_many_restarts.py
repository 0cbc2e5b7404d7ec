"""Twenty restarts in a row under a client that listens, has subscribed and wants the log."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, HintDropped, RestoreRefused, SidecarFault
from tests.support.behaviour import Answers
from tests.support.client import Event, McpClient, Stream
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

RESTARTS = 20
URIS = ("fake://one", "fake://two")


async def listen(stream: Stream, events: list[Event]) -> None:
    while (event := await stream.next_event(30)) is not None:
        if event.data:
            events.append(event)


def params_of(events: list[Event], method: str) -> list[dict[str, Any]]:
    messages = [event.message for event in events]
    return [message["params"] for message in messages if message is not None and message["method"] == method]


@pytest.mark.long
@pytest.mark.parametrize(
    ("event_store", "calls", "restarts"),
    [
        pytest.param(True, True, RESTARTS, id="event ids, a call heals"),
        pytest.param(False, True, RESTARTS, id="no event ids, a call heals"),
        pytest.param(True, False, 4, id="event ids, the stream heals"),  # it comes back once a second at most
    ],
)
async def test_one_stream_over_many_restarts(event_store: bool, calls: bool, restarts: int) -> None:
    """One unbroken stream; every update and log message of every process arrives once; every event id is unique."""
    behaviour: dict[str, Any] = {"answers": Answers.SSE, "event_store": event_store}
    async with (
        FakeUpstream(**behaviour) as upstream,
        running_sidecar(upstream.url, healing__announce="off", healing__max_heals_per_minute=100) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        await client.call("logging/setLevel", {"level": "info"})
        for uri in URIS:
            await client.call("resources/subscribe", {"uri": uri})
        stream = await client.get_stream()
        events: list[Event] = []
        listening = asyncio.create_task(listen(stream, events))
        for n in range(restarts + 1):
            if n:
                await upstream.restart()
            if n and calls:
                assert (await client.tool("charge", n=n)).text == "charged 1"
            await eventually(lambda: is_restored(upstream))
            for uri in URIS:
                upstream.touch(uri)
            upstream.log("debug", f"not to be heard {n}")
            upstream.log("info", f"heard {n}")
            await eventually(partial(has_heard, events, n))
        await eventually(lambda: len(params_of(events, UPDATED)) >= 2 + 4 * restarts)
        assert not listening.done()
        logged = [params["data"] for params in params_of(events, MESSAGE)]
        assert logged == [f"heard {n}" for n in range(restarts + 1)]
        updates = Counter(params["uri"] for params in params_of(events, UPDATED))
        assert updates == dict.fromkeys(URIS, 1 + 2 * restarts)  # the server's own, and one of ours per restart
        ids = [event.event_id for event in events if event.event_id is not None]
        assert len(set(ids)) == len(ids) == (3 * (restarts + 1) if event_store else 0)
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED] * restarts
        assert len(upstream.ledger.initializes) == restarts + 1
        assert len(upstream.ledger.executions("charge")) == restarts * calls
        for kind in (SidecarFault, HintDropped, RestoreRefused):
            assert sidecar.of(kind) == []
        listening.cancel()
        stream.close()


MESSAGE = "notifications/message"
UPDATED = "notifications/resources/updated"


def has_heard(events: list[Event], n: int) -> bool:
    return {"level": "info", "data": f"heard {n}"} in params_of(events, MESSAGE)


def is_restored(upstream: FakeUpstream) -> bool:
    """Whether the server knows one session that has everything, and its client listens."""
    sessions = list(upstream.sessions.values())
    return (
        len(sessions) == 1
        and sessions[0].get_streams_open == 1
        and sessions[0].log_level == "info"
        and sessions[0].subscriptions == set(URIS)
    )
