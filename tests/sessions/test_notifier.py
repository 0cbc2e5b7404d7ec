"""How hints reach a client, and what becomes of those that cannot."""

from __future__ import annotations

import asyncio
from typing import cast

from mcp_sidecar.facts import Fact, HintDropped
from mcp_sidecar.healing.hints import Hint, resource_updated
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.notifier import MAX_WAITING, Notifier
from mcp_sidecar.sessions.open_streams import GetStreams
from mcp_sidecar.wire.sse import encode_event
from tests.support.sessions import a_session

ONE, TWO, THREE = (resource_updated(name) for name in ("one", "two", "three"))


class Ear:
    """A stream that takes what it is told as soon as it is ``open``; ``deaf`` takes nothing."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.open = asyncio.Event()
        self.deaf = False

    async def tell(self, events: bytes) -> bool:
        await self.open.wait()
        if not self.deaf:
            self.heard.append(events)
        return not self.deaf


class Streams:
    """Where a client listens."""

    ear: Ear | None = None

    def listener_of(self, _: Session) -> Ear | None:
        return self.ear


class Scene:
    """One session, and who listens in it."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.streams = Streams()
        self.notifier = Notifier(cast(GetStreams, self.streams), self.facts.append)
        self.session = a_session()

    def listen(self, *, is_open: bool = True) -> Ear:
        self.streams.ear = ear = Ear()
        if is_open:
            ear.open.set()
        return ear

    def tell(self, *hints: Hint, may_wait: bool = True) -> None:
        self.notifier.tell(self.session, hints, may_wait=may_wait)

    @property
    def dropped(self) -> int:
        return sum(isinstance(fact, HintDropped) for fact in self.facts)


def events(*hints: Hint) -> bytes:
    return b"".join(encode_event(hint.body) for hint in hints)


async def passing() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_listens_is_told_at_once() -> None:
    """All hints of one heal together."""
    scene = Scene()
    ear = scene.listen()
    scene.tell(ONE, TWO)
    scene.tell()
    await passing()
    assert (ear.heard, scene.session.hints, scene.dropped) == ([events(ONE, TWO)], (), 0)


async def test_what_may_wait_is_said_once() -> None:
    """However many heals say it, on the next answer or stream, in its order."""
    scene = Scene()
    scene.tell(ONE, TWO)
    scene.tell(TWO, THREE)
    assert scene.notifier.take_waiting(scene.session) == events(ONE, TWO, THREE)
    assert scene.notifier.take_waiting(scene.session) == b""
    scene.tell(ONE)
    ear = scene.listen()
    scene.notifier.tell_waiting(scene.session)
    await passing()
    assert (ear.heard, scene.session.hints, scene.dropped) == ([events(ONE)], (), 0)


async def test_what_nobody_can_carry_is_counted() -> None:
    """What may not wait, and what the answer could not carry."""
    scene = Scene()
    scene.tell(ONE, may_wait=False)
    assert scene.dropped == 1
    scene.tell(ONE, TWO)
    scene.notifier.give_up_waiting(scene.session)
    assert (scene.dropped, scene.session.hints) == (3, ())


async def test_nobody_waits_for_a_client_that_reads_slowly() -> None:
    """One batch is under way; what comes meanwhile follows if it may wait, and is dropped if not."""
    scene = Scene()
    ear = scene.listen(is_open=False)
    scene.tell(ONE)
    scene.tell(TWO)
    scene.tell(THREE, may_wait=False)
    await passing()
    assert (ear.heard, scene.dropped) == ([], 1)
    ear.open.set()
    await passing()
    assert ear.heard == [events(ONE), events(TWO)]


async def test_a_stream_that_cannot_carry_them_leaves_them_waiting() -> None:
    """It has not begun, or is about to end: the next one may."""
    scene = Scene()
    scene.listen().deaf = True
    scene.tell(ONE)
    scene.tell(TWO, may_wait=False)
    await passing()
    assert (scene.session.hints, scene.dropped) == ((ONE,), 1)
    assert scene.notifier.take_waiting(scene.session) == events(ONE)


async def test_who_has_begun_to_listen_meanwhile_is_told() -> None:
    """The stream before it ended without them, and nothing else would bring them to the newer one."""
    scene = Scene()
    former = scene.listen(is_open=False)
    scene.tell(ONE)
    await passing()
    newer = scene.listen()
    scene.notifier.tell_waiting(scene.session)
    former.deaf = True
    former.open.set()
    await passing()
    assert (newer.heard, scene.session.hints, scene.dropped) == ([events(ONE)], (), 0)


async def test_an_answer_drops_nothing_that_a_stream_will_carry() -> None:
    """What waits behind a batch that is under way is on its way to somebody who listens."""
    scene = Scene()
    ear = scene.listen(is_open=False)
    scene.tell(ONE)
    scene.tell(TWO)
    scene.notifier.give_up_waiting(scene.session)
    ear.open.set()
    await passing()
    assert (ear.heard, scene.dropped) == ([events(ONE), events(TWO)], 0)


async def test_what_waits_is_bounded() -> None:
    """The latest are kept, the others counted."""
    scene = Scene()
    scene.tell(*(resource_updated(str(n)) for n in range(MAX_WAITING + 5)))
    assert (len(scene.session.hints), scene.dropped) == (MAX_WAITING, 5)
    assert scene.session.hints[0] == resource_updated("5")


async def test_at_the_end_nobody_is_waited_for() -> None:
    """What is under way is abandoned."""
    scene = Scene()
    scene.listen(is_open=False)
    scene.tell(ONE)
    await scene.notifier.stop()
