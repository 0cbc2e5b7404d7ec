"""Sessions that a store knows: what is loaded, what is written, and what becomes of both where others write or it is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.facts import Fact, SessionEnd
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.principal import Identity, Principal, Principals
from mcp_sidecar.healing.record import ClientSessionId, UpstreamSessionId, encode
from mcp_sidecar.healing.session import Event, Session, State
from mcp_sidecar.sessions.keeper import Keeper, Saving
from mcp_sidecar.sessions.look_ups import MISS_REMEMBERED_S, MISSES_PER_S, Missing
from mcp_sidecar.sessions.rounds import Rounds
from mcp_sidecar.sessions.stores.sqlite import SqliteStore
from mcp_sidecar.sessions.stores.store import Claim, Entry, Key, Lease, StoreAway, StoreUnwritable, Times, Touch, Turn
from mcp_sidecar.sessions.table import SessionTable
from tests.healing import samples
from tests.support.sessions import HERE, a_record, keeper
from tests.support.waiting import eventually

ALICE, BOB = Principal(b"alice"), Principal(b"bob")
SID: Final = ClientSessionId("s")
HANDSHAKE: Final = Handshake.of({"clientInfo": {"name": "c"}}, {"protocolVersion": "2025-06-18"})
LIMITS: Final = SessionLimits(idle_ttl_s=100, max_lifetime_s=1000)


@dataclass(slots=True)
class Watched:
    """A store that counts, and that can be away or slow."""

    store: SqliteStore
    outlives_process: bool = True
    is_away: bool = False
    is_full: bool = False
    loses_reply: bool = False
    gate: asyncio.Event | None = None
    late: asyncio.Event | None = None
    takes_s: float = 0.0
    asked: list[str] = field(default_factory=list)

    async def _called(self, name: str) -> None:
        self.asked.append(name)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(self.takes_s)
        if self.is_away:
            raise StoreAway("away")

    async def open(self) -> None:
        await self.store.open()

    async def close(self) -> None:
        await self.store.close()

    async def get(self, session: bytes) -> Mapping[bytes, Entry]:
        await self._called("get")
        found, late = await self.store.get(session), self.late
        if late is not None:
            self.late = None
            await late.wait()
        return found

    async def put(
        self, key: Key, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        await self._called("put")
        standing = await self.store.put(key, entry, expected=expected, ttl_s=ttl_s, claim=claim)
        if self.loses_reply and standing is None:
            raise StoreAway("the reply is lost")
        return standing

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Key]:
        await self._called("touch")
        return await self.store.touch(touches)

    async def holder(self, claim: Claim) -> Key | None:
        await self._called("holder")
        return await self.store.holder(claim)

    async def lease(self, lease: Lease, *, ttl_s: float) -> Turn:
        await self._called("lease")
        if self.is_full:
            raise StoreUnwritable("full")
        return await self.store.lease(lease, ttl_s=ttl_s)

    async def give_back(self, lease: Lease) -> None:
        await self._called("give_back")
        await self.store.give_back(lease)

    async def secret(self, name: str, fresh: bytes, *, replaces: bytes | None = None) -> bytes:
        return await self.store.secret(name, fresh, replaces=replaces)

    async def sweep(self) -> None:
        await self._called("sweep")
        await self.store.sweep()


class Place:
    """One sidecar: its table, its keeper, the store that it shares. The clock is the test's."""

    def __init__(self, path: Path, name: str, clock: Clock, instance: str) -> None:
        self.clock = clock
        sqlite = SqliteStore(path, times=Times(clock.read, clock.read), max_entries=1000, ended_ttl_s=1000)
        self.store = Watched(sqlite)
        self.facts: list[Fact] = []
        self.keeper: Keeper = keeper(LIMITS, clock.read, self.store, instance=instance)
        self._name = name
        self._tags = 0
        self.table = SessionTable(
            LIMITS, self.facts.append, salt=b"salt", clock=clock.read, new_tag=self._new_tag, keeper=self.keeper
        )

    def _new_tag(self) -> str:
        self._tags += 1
        return f"{self._name}{self._tags}"

    async def opened(self, principal: Principal = ALICE) -> Session:
        session = self.table.open(SID, principal, HANDSHAKE)
        assert await self.table.save(session) is Saving.DONE
        return session

    async def loaded(self, principal: Principal = ALICE) -> Session:
        assert await self.load(SID, principal) is None
        session = self.table.find(SID, principal)
        assert session is not None
        return session

    async def load(self, client_id: ClientSessionId, principal: Principal) -> Missing | None:
        """Why there is none; ``None`` if there is one."""
        return await self.table.load(client_id, Identity(principal))


@dataclass(slots=True)
class Clock:
    now: float = 5000.0

    def read(self) -> float:
        return self.now


class Scene:
    """As many sidecars as a test makes, on one file."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self._path = path
        self._places: list[Place] = []

    async def place(self, instance: str = HERE) -> Place:
        place = Place(self._path, "abcdef"[len(self._places)], self.clock, instance)
        await place.store.open()
        await place.keeper.get_keys()
        self._places.append(place)
        return place

    async def close(self) -> None:
        for place in self._places:
            await place.store.close()


@asynccontextmanager
async def _scene(path: Path) -> AsyncIterator[Scene]:
    scene = Scene(path)
    try:
        yield scene
    finally:
        await scene.close()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with _scene(tmp_path / "state" / "sessions.db") as found:
        yield found


def healed(session: Session, upstream_id: str) -> None:
    session.fire(Event.LOSS_SEEN)
    session.repoint(UpstreamSessionId(upstream_id), tools_still_hold=True)


class TestLoading:
    """A session that is not in memory."""

    async def test_what_another_process_has_saved(self, scene: Scene) -> None:
        """It stands where its record says, with all that was learnt, and is asked for once."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        session.learnt(samples.request("logging/setLevel", level="info"))
        await one.table.save(session)
        found = await other.loaded()
        assert (found.upstream_id, found.state, found.handshake) == ("s", State.ESTABLISHED, HANDSHAKE)
        assert found.client_state.log_level == "info"
        assert await other.loaded() is found
        assert other.store.asked == ["get", "holder"]
        assert await other.table.save(found) is Saving.DONE
        assert other.store.asked == ["get", "holder"]

    async def test_at_another_instance(self, scene: Scene) -> None:
        """Nobody uses the id of another instance: there is none here until it is healed."""
        one, other = await scene.place(), await scene.place("http://other")
        await one.opened()
        found = await other.loaded()
        assert (found.upstream_id, found.displaced, found.state) == (None, True, State.LOST)
        healed(found, "o")
        assert await other.table.save(found) is Saving.DONE
        third = await (await scene.place("http://other")).loaded()
        assert (third.upstream_id, third.displaced) == ("o", False)
        assert {each.key for each in third.record.instances} == {HERE, "http://other"}

    async def test_an_id_that_was_minted_here_while_the_store_was_away(self, scene: Scene) -> None:
        """Whoever has just been given it stands on it, and not who stood there when the record was written."""
        await (await scene.place()).opened()
        place = await scene.place()
        place.store.is_away = True
        newcomer = place.table.open(SID, BOB, HANDSHAKE)
        assert await place.table.save(newcomer) is Saving.LATER
        place.store.is_away = False
        await place.keeper.back()
        found = await place.loaded()
        assert (found.upstream_id, found.displaced, newcomer.displaced) == (None, True, False)

    async def test_whose_it_is(self, scene: Scene) -> None:
        """Another principal gets nothing, and is told no more than that somebody has it."""
        one, other = await scene.place(), await scene.place()
        await one.opened(ALICE)
        assert await other.load(SID, BOB) is Missing.FOREIGN
        assert await other.load(ClientSessionId("invented"), ALICE) is Missing.UNKNOWN

    async def test_an_ended_one(self, scene: Scene) -> None:
        """An end is known everywhere, for its principal and, while nobody has a session of this id, for everybody."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        one.table.end(session, SessionEnd.TERMINATED)
        assert await one.load(SID, ALICE) is Missing.ENDED
        await one.keeper.flush()
        assert await other.load(SID, ALICE) is Missing.ENDED
        assert other.table.is_ended(SID, ALICE)
        assert await (await scene.place()).load(SID, BOB) is Missing.ENDED

    async def test_a_record_in_anothers_place(self, scene: Scene) -> None:
        """A record counts only for the principal that it names itself."""
        place = await scene.place()
        data = encode(a_record("s", principal=BOB, created_at=scene.clock.now))
        await place.store.put(place.keeper.key(SID, ALICE), Entry(1, b"x", data), expected=0, ttl_s=10)
        assert await place.load(SID, ALICE) is Missing.UNKNOWN

    @pytest.mark.parametrize("data", [b"", b"\x01garbage", b"\x02later"], ids=["nothing", "garbage", "later version"])
    async def test_a_record_that_cannot_be_read(self, scene: Scene, data: bytes) -> None:
        """It is unknown here, and stays as it is."""
        place = await scene.place()
        key = place.keeper.key(SID, ALICE)
        await place.store.put(key, Entry(1, b"x", data), expected=0, ttl_s=10)
        assert await place.load(SID, ALICE) is Missing.UNKNOWN
        assert (await place.store.get(key.session))[key.principal] == Entry(1, b"x", data)

    async def test_many_ask_at_a_time(self, scene: Scene) -> None:
        """One look-up serves all, and goes on although the first of them leaves."""
        one, other = await scene.place(), await scene.place()
        await one.opened()
        other.store.gate = asyncio.Event()
        asking = [asyncio.create_task(other.load(SID, ALICE)) for _ in range(20)]
        await eventually(lambda: bool(other.store.asked))
        asking[0].cancel()
        other.store.gate.set()
        assert await asyncio.gather(*asking[1:]) == [None] * 19
        assert other.store.asked.count("get") == 1 and len(other.table) == 1

    async def test_invented_ids(self, scene: Scene) -> None:
        """They cost the store one look-up a second; an id that is opened meanwhile is found all the same."""
        one, other = await scene.place(), await scene.place()
        for _ in range(10):
            assert await one.load(SID, ALICE) is Missing.UNKNOWN
        assert one.store.asked == ["get"]
        await other.opened()
        scene.clock.now += MISS_REMEMBERED_S
        assert await one.load(SID, ALICE) is None

    async def test_a_store_that_is_away(self, scene: Scene) -> None:
        """That is no answer: the session may well be known."""
        place = await scene.place()
        place.store.is_away = True
        assert await place.load(SID, ALICE) is Missing.STORE_AWAY

    async def test_what_is_in_memory_never_waits(self, scene: Scene) -> None:
        """A session that is here is found although the store hangs."""
        place = await scene.place()
        session = await place.opened()
        place.store.gate = asyncio.Event()
        assert await place.load(SID, ALICE) is None
        assert place.table.find(SID, ALICE) is session

    async def test_its_age(self, scene: Scene) -> None:
        """Of the lifetime what has passed has passed, whatever process saw it; a clock that was ahead makes nobody older."""
        one = await scene.place()
        await one.opened()
        scene.clock.now += 40
        assert (await (await scene.place()).loaded()).opened_at == scene.clock.now - 40
        scene.clock.now -= 600
        assert (await (await scene.place()).loaded()).opened_at == scene.clock.now

    async def test_its_lifetime(self, scene: Scene) -> None:
        """It ends for all processes at the same time, however busy it was."""
        one = await scene.place()
        data = encode(a_record("s", principal=ALICE, created_at=scene.clock.now - LIMITS.max_lifetime_s))
        await one.store.put(one.keeper.key(SID, ALICE), Entry(1, b"x", data), expected=0, ttl_s=10)
        assert await one.load(SID, ALICE) is Missing.ENDED

    async def test_what_is_idle_here_may_be_used_elsewhere(self, scene: Scene) -> None:
        """Only the store ends a session by idleness."""
        one, other = await scene.place(), await scene.place()
        await one.opened()
        used = await other.loaded()
        for _ in range(3):
            scene.clock.now += 60
            with other.table.using(used):
                pass
            await other.keeper.touch()
        assert await one.load(SID, ALICE) is None
        scene.clock.now += LIMITS.idle_ttl_s
        for place in (one, other):
            assert await place.load(SID, ALICE) is Missing.ENDED


class TestSaving:
    """What is written, and over what."""

    async def test_changes_come_together(self, scene: Scene) -> None:
        """However much was learnt: one write for all of it, and none where nothing was."""
        place = await scene.place()
        session = await place.opened()
        for uri in "abc":
            with place.table.using(session):
                session.learnt(samples.request("resources/subscribe", uri=uri))
        await place.keeper.flush()
        await place.keeper.flush()
        assert place.store.asked == ["put", "put"]
        assert place.keeper.unsaved == 0

    async def test_two_processes_learn(self, scene: Scene) -> None:
        """Neither loses what it learnt."""
        one, other = await scene.place(), await scene.place("http://other")
        session = await one.opened()
        again = await other.loaded()
        healed(again, "o")
        assert await other.table.save(again) is Saving.DONE
        session.learnt(samples.request("resources/subscribe", uri="a"))
        assert await one.table.save(session) is Saving.DONE
        third = await (await scene.place()).loaded()
        assert third.client_state.subscriptions == ("a",)
        assert {each.key: each.upstream_id for each in third.record.instances} == {HERE: "s", "http://other": "o"}

    async def test_two_processes_heal_at_one_instance(self, scene: Scene) -> None:
        """One commit wins; the other is told and overwrites nothing."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        healed(session, "mine")
        healed(again, "theirs")
        assert await other.table.save(again) is Saving.DONE
        assert await one.table.save(session) is Saving.OVERTAKEN
        assert (await (await scene.place()).loaded()).upstream_id == "theirs"

    async def test_overtaken_by_an_id_that_was_minted_again(self, scene: Scene) -> None:
        """What another process has healed it to may be another session's by now: it does not go on there."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        healed(again, "1")
        other.table.claim_upstream_id(UpstreamSessionId("1"), again)
        assert await other.table.save(again) is Saving.DONE
        later = one.table.open(ClientSessionId("later"), BOB, HANDSHAKE, UpstreamSessionId("1"))
        assert await one.table.save(later) is Saving.DONE
        session.learnt(samples.request("resources/subscribe", uri="a"))
        await one.table.save(session)
        assert session.displaced and session.record.at(HERE) is None
        assert (later.displaced, later.upstream_id) == (False, "1")
        assert one.table.has_claimed(UpstreamSessionId("1"), later)

    async def test_healed_here_and_overtaken_by_an_id_that_was_minted_again(self, scene: Scene) -> None:
        """Its own heal stands then."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        healed(again, "1")
        assert await other.table.save(again) is Saving.DONE
        later = one.table.open(ClientSessionId("later"), BOB, HANDSHAKE, UpstreamSessionId("1"))
        assert await one.table.save(later) is Saving.DONE
        healed(session, "2")
        assert await one.table.save(session) is Saving.DONE
        assert (session.upstream_id, session.displaced, later.displaced) == ("2", False, False)
        assert (await (await scene.place()).loaded()).upstream_id == "2"

    async def test_overtaken_by_an_id_of_one_that_the_store_does_not_know_yet(self, scene: Scene) -> None:
        """Nobody can say which of the two was given it last: neither uses it."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        healed(again, "1")
        assert await other.table.save(again) is Saving.DONE
        later = one.table.open(ClientSessionId("later"), BOB, HANDSHAKE, UpstreamSessionId("1"))
        session.learnt(samples.request("resources/subscribe", uri="a"))
        await one.table.save(session)
        assert session.displaced and later.displaced
        assert session.record.at(HERE) is later.record.at(HERE) is None

    async def test_an_end_while_others_are_written(self, scene: Scene) -> None:
        """A session that ends while a flush is at another one stays ended: its record is not written after its end."""
        place = await scene.place()
        place.store.is_away = True
        first, second = (place.table.open(ClientSessionId(name), ALICE, HANDSHAKE) for name in ("first", "second"))
        assert await place.table.save(first) is Saving.LATER
        place.store.is_away = False
        await place.keeper.back()
        place.store.gate = asyncio.Event()
        flush = asyncio.create_task(place.keeper.flush())
        await eventually(lambda: "put" in place.store.asked[1:])
        place.table.end(second, SessionEnd.TERMINATED)
        place.store.gate.set()
        await flush
        await place.keeper.flush()
        assert place.keeper.unsaved == 0
        assert await (await scene.place()).load(second.client_id, ALICE) is Missing.ENDED

    async def test_put_out_of_memory_while_it_is_written(self, scene: Scene) -> None:
        """Nothing of it stays here, and a newcomer whose id was not found free goes on under another one."""
        place = await scene.place()
        session = place.table.open(SID, ALICE, HANDSHAKE)
        place.store.gate = asyncio.Event()
        saving = asyncio.create_task(place.table.save(session))
        await eventually(lambda: "put" in place.store.asked)
        place.table.end(session, SessionEnd.EVICTED)
        place.store.gate.set()
        await saving
        assert place.keeper.stored(session) is None
        renamed = place.table.rename(session)
        assert place.table.find(renamed.client_id, ALICE) is renamed

    async def test_an_end_elsewhere(self, scene: Scene) -> None:
        """What ended stays so, whatever is learnt or healed meanwhile."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        other.table.end(await other.loaded(), SessionEnd.TERMINATED)
        await other.keeper.flush()
        healed(session, "mine")
        assert await one.table.save(session) is Saving.ENDED
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED

    async def test_one_in_use_that_the_store_takes_for_idle(self, scene: Scene) -> None:
        """No touch came through, or the host slept and only its wall clock went on: it is written again, and goes on."""
        place = await scene.place()
        session = await place.opened()
        for _ in range(2):
            scene.clock.now += 60
            assert place.table.find(SID, ALICE) is session
        await place.store.sweep()
        session.learnt(samples.request("resources/subscribe", uri="a"))
        assert await place.table.save(session) is Saving.DONE
        assert place.table.find(SID, ALICE) is session
        assert (await (await scene.place()).loaded()).client_state.subscriptions == ("a",)

    async def test_an_id_that_ended_is_opened_anew(self, scene: Scene) -> None:
        """A server that counts its sessions mints it again; the end of the former does not end the new one."""
        place = await scene.place()
        place.table.end(await place.opened(), SessionEnd.TERMINATED)
        session = await place.opened()
        await place.keeper.flush()
        assert (await (await scene.place()).loaded()).record.tag == session.record.tag

    async def test_an_id_that_another_process_knows(self, scene: Scene) -> None:
        """A newcomer with the same id and principal is another session: the former is not overwritten."""
        one, other = await scene.place(), await scene.place()
        former = await one.opened()
        newcomer = other.table.open(SID, ALICE, HANDSHAKE)
        assert await other.table.save(newcomer) is Saving.TAKEN
        assert (await (await scene.place()).loaded()).record.tag == former.record.tag

    async def test_an_id_that_was_idle_for_too_long(self, scene: Scene) -> None:
        """Nobody has ended it, so that its client may still come: it must not be in the newcomer's session then."""
        place = await scene.place()
        place.table.end(await place.opened(), SessionEnd.EVICTED)
        scene.clock.now += LIMITS.idle_ttl_s
        newcomer = place.table.open(SID, ALICE, HANDSHAKE)
        assert await place.table.save(newcomer) is Saving.TAKEN
        renamed = place.table.rename(newcomer)
        assert await place.table.save(renamed) is Saving.DONE
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED

    async def test_an_id_that_this_process_knew(self, scene: Scene) -> None:
        """The same where the former was put out of memory for others, although this process wrote its record itself."""
        place = await scene.place()
        former = await place.opened()
        place.table.end(former, SessionEnd.EVICTED)
        newcomer = place.table.open(SID, ALICE, HANDSHAKE)
        assert await place.table.save(newcomer) is Saving.TAKEN
        assert (await (await scene.place()).loaded()).record.tag == former.record.tag

    async def test_a_newcomer_in_the_place_of_one_that_goes_on_elsewhere(self, scene: Scene) -> None:
        """It takes nothing of what the other has become in another process."""
        one, other = await scene.place(), await scene.place()
        await one.opened()
        again = await other.loaded()
        healed(again, "theirs")
        assert await other.table.save(again) is Saving.DONE
        newcomer = one.table.open(SID, ALICE, HANDSHAKE, UpstreamSessionId("new"))
        assert await one.table.save(newcomer) is Saving.DONE
        found = await (await scene.place()).loaded()
        assert (found.record.tag, found.upstream_id, newcomer.upstream_id) == (newcomer.record.tag, "new", "new")

    async def test_a_newcomer_in_the_place_of_one_that_ended_elsewhere(self, scene: Scene) -> None:
        """The end was not its own."""
        one, other = await scene.place(), await scene.place()
        await one.opened()
        other.table.end(await other.loaded(), SessionEnd.TERMINATED)
        await other.keeper.flush()
        newcomer = one.table.open(SID, ALICE, HANDSHAKE)
        assert await one.table.save(newcomer) is Saving.DONE
        assert (await (await scene.place()).loaded()).record.tag == newcomer.record.tag

    async def test_a_store_that_was_put_back(self, scene: Scene) -> None:
        """Of a record that is older than what is known here nothing is taken: it names upstream sessions of then."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        healed(again, "then")
        assert await other.table.save(again) is Saving.DONE
        key = one.keeper.key(SID, ALICE)
        then = (await one.store.get(key.session))[key.principal]
        assert await one.table.take_turn(session)
        for upstream_id in ("later", "now"):
            healed(session, upstream_id)
            assert await one.table.save(session) is Saving.DONE
        standing = (await one.store.get(key.session))[key.principal]
        await one.store.store.put(key, then, expected=standing.revision, ttl_s=100)
        session.learnt(samples.request("resources/subscribe", uri="a"))
        assert await one.table.save(session) is Saving.DONE
        assert (session.upstream_id, session.displaced) == ("now", False)
        assert (await (await scene.place()).loaded()).upstream_id == "now"

    async def test_a_lost_reply(self, scene: Scene) -> None:
        """A write that was given up and done all the same is known as one's own."""
        place = await scene.place()
        session = await place.opened()
        healed(session, "mine")
        place.store.loses_reply = True
        assert await place.table.save(session) is Saving.LATER
        place.store.loses_reply = False
        await place.keeper.back()
        session.learnt(samples.request("resources/subscribe", uri="a"))
        assert await place.table.save(session) is Saving.DONE
        found = await (await scene.place()).loaded()
        assert (found.upstream_id, found.client_state.subscriptions) == ("mine", ("a",))

    async def test_a_lost_reply_to_an_end(self, scene: Scene) -> None:
        """It is over for everybody, and written again until the store says so."""
        place = await scene.place()
        session = await place.opened()
        place.table.end(session, SessionEnd.TERMINATED)
        place.store.loses_reply = True
        await place.table.settle_end(session)
        assert place.keeper.unsaved == 1
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED
        place.store.loses_reply = False
        await place.keeper.back()
        assert await place.keeper.flush()
        assert place.keeper.unsaved == 0
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED

    async def test_an_end_leaves_a_newcomer_alone(self, scene: Scene) -> None:
        """It is written again after its reply was lost; the id is by then that of a session opened anew elsewhere."""
        one, other = await scene.place(), await scene.place()
        one.table.end(await one.opened(), SessionEnd.TERMINATED)
        one.store.loses_reply = True
        assert not await one.keeper.flush()
        one.store.loses_reply = False
        newcomer = await other.opened()
        await one.keeper.back()
        assert await one.keeper.flush()
        assert one.keeper.unsaved == 0
        assert (await (await scene.place()).loaded()).record.tag == newcomer.record.tag
        newcomer.learnt(samples.request("resources/subscribe", uri="a"))
        assert await other.table.save(newcomer) is Saving.DONE

    async def test_an_end_of_what_was_healed_elsewhere(self, scene: Scene) -> None:
        """It is the same session, however often others have written it since it was read here."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        for upstream_id in ("then", "now"):
            healed(again, upstream_id)
            assert await other.table.save(again) is Saving.DONE
        one.table.end(session, SessionEnd.TERMINATED)
        assert await one.keeper.flush()
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED

    async def test_an_end_of_what_the_store_takes_for_idle(self, scene: Scene) -> None:
        """Its client has ended it: it does not come again."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        scene.clock.now += 60
        assert one.table.find(SID, ALICE) is session
        scene.clock.now += 60
        await other.store.sweep()
        one.table.end(session, SessionEnd.TERMINATED)
        assert await one.keeper.flush()
        assert await other.table.save(other.table.open(SID, ALICE, HANDSHAKE)) is Saving.DONE

    async def test_an_end_of_a_newcomer_whose_record_was_not_written(self, scene: Scene) -> None:
        """What it was to stand for ends with it: the client has left that one, too."""
        place = await scene.place()
        await place.opened()
        place.table.end(place.table.open(SID, ALICE, HANDSHAKE), SessionEnd.TERMINATED)
        assert await place.keeper.flush()
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED

    async def test_ends_of_one_id_that_come_together(self, scene: Scene) -> None:
        """The store was away when both were noted; neither of them is in it any more."""
        place = await scene.place()
        session = await place.opened()
        place.store.is_away = True
        for _ in range(2):
            place.table.end(session, SessionEnd.TERMINATED)
            assert not await place.keeper.flush()
            session = place.table.open(SID, ALICE, HANDSHAKE)
        place.table.end(session, SessionEnd.TERMINATED)
        place.store.is_away = False
        await place.keeper.back()
        assert await place.keeper.flush()
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED

    async def test_an_end_while_the_former_one_is_written(self, scene: Scene) -> None:
        """A session of the same id that ends before the reply to its forerunner's end has come ends as well."""
        place = await scene.place()
        place.table.end(await place.opened(), SessionEnd.TERMINATED)
        gate = place.store.gate = asyncio.Event()
        flush = asyncio.create_task(place.keeper.flush())
        await eventually(lambda: place.store.asked.count("put") > 1)
        place.store.gate = None
        place.table.end(await place.opened(), SessionEnd.TERMINATED)
        gate.set()
        await flush
        assert await place.keeper.flush()
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED

    @pytest.mark.parametrize("is_later", [False, True], ids=["former", "newcomer"])
    async def test_an_end_of_what_only_the_store_knows(self, scene: Scene, is_later: bool) -> None:
        """The upstream has ended it while the store was away: whatever is of that time is over, and what came later is not."""
        one, other = await scene.place(), await scene.place()
        if not is_later:
            await other.opened()
        scene.clock.now += 1
        one.table.end_unseen(SID, ALICE)
        scene.clock.now += 1
        if is_later:
            await other.opened()
        assert await one.keeper.flush()
        assert await (await scene.place()).load(SID, ALICE) is (None if is_later else Missing.ENDED)

    async def test_an_end_leaves_a_record_of_a_later_version_alone(self, scene: Scene) -> None:
        """Nobody here can say whose it is."""
        place = await scene.place()
        session = await place.opened()
        key, later = place.keeper.key(SID, ALICE), Entry(2, b"x", b"\x02later")
        await place.store.put(key, later, expected=1, ttl_s=10)
        place.table.end(session, SessionEnd.TERMINATED)
        assert await place.keeper.flush()
        assert (await place.store.get(key.session))[key.principal] == later

    async def test_a_store_that_is_away(self, scene: Scene) -> None:
        """Nothing is lost: records and ends are written when it is back."""
        place = await scene.place()
        session = place.table.open(SID, ALICE, HANDSHAKE)
        place.store.is_away = True
        assert await place.table.save(session) is Saving.LATER
        await place.keeper.flush()
        assert place.keeper.unsaved == 1
        place.store.is_away = False
        await place.keeper.back()
        await place.keeper.flush()
        assert place.keeper.unsaved == 0
        place.store.is_away = True
        place.table.end(session, SessionEnd.TERMINATED)
        await place.keeper.flush()
        assert place.keeper.unsaved == 1
        place.store.is_away = False
        await place.keeper.back()
        await place.keeper.flush()
        assert await (await scene.place()).load(SID, ALICE) is Missing.ENDED

    async def test_a_store_that_is_away_for_a_moment_at_the_end(self, scene: Scene) -> None:
        """A process that stops tries again for a moment: what it has not written nobody will."""
        place = await scene.place()
        sessions = [place.table.open(ClientSessionId(name), ALICE, HANDSHAKE) for name in "abc"]
        place.store.is_away = True
        stopping = asyncio.create_task(Rounds(place.keeper, Principals((), b"secret")).stop())
        await eventually(lambda: "put" in place.store.asked)
        place.store.is_away = False
        await stopping
        scene._places.remove(place)  # its store is closed
        other = await scene.place()
        assert [await other.load(session.client_id, ALICE) for session in sessions] == [None] * 3

    async def test_a_slow_store_at_the_end(self, scene: Scene) -> None:
        """However many there are to be written, all are, as long as it gets on."""
        place = await scene.place()
        sessions = [place.table.open(ClientSessionId(f"{n}"), ALICE, HANDSHAKE) for n in range(30)]
        place.store.takes_s = 0.2
        await Rounds(place.keeper, Principals((), b"secret")).stop()
        scene._places.remove(place)  # its store is closed
        other = await scene.place()
        assert [await other.load(session.client_id, ALICE) for session in sessions] == [None] * 30

    async def test_a_store_that_hangs(self, scene: Scene) -> None:
        """It costs its time-out, and the session goes on from memory."""
        place = await scene.place()
        session = place.table.open(SID, ALICE, HANDSHAKE)
        place.store.gate = asyncio.Event()
        place.keeper.store._timeout_s = 0.0
        assert await place.table.save(session) is Saving.LATER
        assert place.keeper.is_unsaved(session)

    async def test_a_record_of_a_later_version_is_left_alone(self, scene: Scene) -> None:
        """A sidecar that was rolled back does not overwrite what the newer one wrote."""
        place = await scene.place()
        session = await place.opened()
        key = place.keeper.key(SID, ALICE)
        later = Entry(2, b"x", b"\x02later")
        await place.store.put(key, later, expected=1, ttl_s=10)
        healed(session, "mine")
        assert await place.table.save(session) is Saving.LEFT_ALONE
        assert (await place.store.get(key.session))[key.principal] == later

    async def test_a_store_that_was_emptied(self, scene: Scene) -> None:
        """Who holds sessions fills it again with the next touch."""
        place = await scene.place()
        await place.opened()
        await place.store.store._do(lambda: place.store.store._file._current().execute("DELETE FROM records"))
        scene.clock.now += 2
        with place.table.using(place.table.find(SID, ALICE)):
            pass
        await place.keeper.touch()
        assert place.keeper.unsaved == 1
        await place.keeper.flush()
        assert await (await scene.place()).load(SID, ALICE) is None

    async def test_a_store_that_was_emptied_unseen(self, scene: Scene) -> None:
        """It shows with the next round, and then all are written again, used just now or not."""
        place = await scene.place()
        await place.opened()
        await place.keeper.get_keys()
        emptied = "DELETE FROM records; DELETE FROM secrets"
        await place.store.store._do(lambda: place.store.store._file._current().executescript(emptied))
        await place.keeper.touch()
        await place.keeper.flush()
        other = await scene.place()
        await other.keeper.get_keys()
        assert await other.load(SID, ALICE) is None

    async def test_after_an_outage_all_are_looked_at(self, scene: Scene) -> None:
        """A store that was away may have lost any of them, used just now or not."""
        place = await scene.place()
        await place.opened()
        place.store.is_away = True
        scene.clock.now += 2
        with place.table.using(place.table.find(SID, ALICE)):
            pass
        await place.keeper.touch()
        place.store.is_away = False
        await place.keeper.back()
        await place.store.store._do(lambda: place.store.store._file._current().execute("DELETE FROM records"))
        await place.keeper.touch()
        await place.keeper.flush()
        assert await (await scene.place()).load(SID, ALICE) is None

    async def test_a_session_in_use_is_touched_rarely(self, scene: Scene) -> None:
        """Not with each request: once in a hundredth of the time that it may be idle."""
        place = await scene.place()
        session = await place.opened()
        for _ in range(10):
            scene.clock.now += 0.09
            with place.table.using(session):
                pass
            await place.keeper.touch()
        assert place.store.asked == ["put"]
        scene.clock.now += 1
        with place.table.using(session):
            await place.keeper.touch()
        assert place.store.asked == ["put", "touch"]


class TestTurns:
    """Before a heal."""

    async def test_what_is_unchanged_is_not_read_again(self, scene: Scene) -> None:
        """However long ago it was read: the answer to whose turn it is tells."""
        one, other = await scene.place(), await scene.place()
        await one.opened()
        session = await other.loaded()
        scene.clock.now += 90
        assert await other.table.take_turn(session)
        assert other.store.asked == ["get", "holder", "lease"]

    async def test_what_another_process_has_written_is_taken_in(self, scene: Scene) -> None:
        """However lately it was read."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        healed(again, "theirs")
        assert await other.table.save(again) is Saving.DONE
        assert await one.table.take_turn(session)
        assert one.store.asked == ["put", "lease", "get", "holder"]
        assert (session.upstream_id, session.generation) == ("theirs", 2)

    async def test_an_answer_that_is_older_than_that_is_not_taken_for_it(self, scene: Scene) -> None:
        """Somebody else's look-up of this id may be under way, and bring what stood there before."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        one.store.late = late = asyncio.Event()
        look_up = asyncio.create_task(one.load(SID, BOB))
        await eventually(lambda: one.store.late is None)
        healed(again, "theirs")
        assert await other.table.save(again) is Saving.DONE
        turn = asyncio.create_task(one.table.take_turn(session))
        await eventually(lambda: turn.done() or one.store.asked[-1] == "lease")
        late.set()
        assert await turn
        await look_up
        assert session.upstream_id == "theirs"

    async def test_what_another_process_has_ended(self, scene: Scene) -> None:
        """There is nothing to heal."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        other.table.end(await other.loaded(), SessionEnd.TERMINATED)
        await other.keeper.flush()
        assert await one.table.take_turn(session)
        assert session.is_ended

    async def test_a_store_that_takes_no_lease_is_read(self, scene: Scene) -> None:
        """It is full: nobody is told whose turn it is, and others may have healed it before."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        again = await other.loaded()
        healed(again, "theirs")
        assert await other.table.save(again) is Saving.DONE
        one.store.is_full = True
        assert await one.table.take_turn(session)
        assert session.upstream_id == "theirs"

    async def test_a_store_that_is_away_is_not_waited_for(self, scene: Scene) -> None:
        """What is in memory is healed."""
        place = await scene.place()
        session = await place.opened()
        place.store.is_away = True
        assert await place.table.take_turn(session)
        assert not session.is_ended


async def test_only_hashes_and_no_credentials_are_keys(scene: Scene) -> None:
    """Neither ids nor principals stand in clear where records are found, and the two cannot be taken for each other."""
    place = await scene.place()
    key = place.keeper.key(ClientSessionId("alice"), ALICE)
    assert key.session != key.principal
    assert b"alice" not in key.session + key.principal


class TestInventedIds:
    """Ids that nobody knows load the store no more than it can bear, however many they are."""

    @pytest.mark.long
    async def test_they_are_bounded_in_sum(self, scene: Scene) -> None:
        """Beyond that an id is neither unknown nor known: whoever asks waits for a turn, and turns come one by one."""
        place = await scene.place()
        found = [await place.load(ClientSessionId(f"{n}"), ALICE) for n in range(3 * MISSES_PER_S)]
        assert len(place.store.asked) == found.count(Missing.UNKNOWN) <= MISSES_PER_S + 1
        assert set(found) == {Missing.UNKNOWN, Missing.STORE_AWAY}
        turns = [place.keeper.back() for _ in range(3)]
        assert not any(turn.done() for turn in turns)
        await asyncio.wait(turns)
        scene.clock.now += 10 / MISSES_PER_S
        more = [await place.load(ClientSessionId(f"more {n}"), ALICE) for n in range(20)]
        assert 9 <= more.count(Missing.UNKNOWN) <= 11

    @pytest.mark.long
    async def test_what_is_known_costs_nothing_of_that(self, scene: Scene) -> None:
        """A herd of real sessions is found at once; and what is in memory is looked at before a heal, flood or not."""
        one, other = await scene.place(), await scene.place()
        session = await one.opened()
        sessions = [one.table.open(ClientSessionId(f"real {n}"), ALICE, HANDSHAKE) for n in range(2 * MISSES_PER_S)]
        await one.keeper.flush()
        for each in sessions:
            assert await other.load(each.client_id, ALICE) is None
        for n in range(2 * MISSES_PER_S):
            await one.load(ClientSessionId(f"invented {n}"), ALICE)
        scene.clock.now += 0.5
        again = await other.loaded()
        healed(again, "theirs")
        assert await other.table.save(again) is Saving.DONE
        assert await one.table.take_turn(session)
        assert session.upstream_id == "theirs"

    @pytest.mark.long
    async def test_many_who_wait_for_one_look_up(self, scene: Scene) -> None:
        """It counts once."""
        place = await scene.place()
        await asyncio.gather(*(place.load(SID, ALICE) for _ in range(3 * MISSES_PER_S)))
        assert await place.load(ClientSessionId("another"), ALICE) is Missing.UNKNOWN
