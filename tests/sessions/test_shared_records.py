"""Records that several sidecars share, under any order of what can happen: a state machine beside a model of the servers.

Two sidecars stand in front of one server, a third has a server of its own, which counts its sessions from 1 after each restart.
Steps of a heal may be far apart, replies of the store get lost, leases run out. The model knows whose each upstream session is.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcp_sidecar.facts import SessionEnd
from mcp_sidecar.healing.principal import Identity
from mcp_sidecar.healing.record import ClientSessionId, UpstreamSessionId
from mcp_sidecar.healing.session import Event, Session, State
from mcp_sidecar.sessions.keeper import Saving
from mcp_sidecar.sessions.stores.store import Key
from tests.sessions.test_keeper import ALICE, HANDSHAKE, Clock, Place
from tests.support.sessions import HERE

T = TypeVar("T")

THERE: Final = "http://there"


class Store(Enum):
    """How the store takes what one rule asks of it."""

    WORKS = "works"
    LOSES_REPLIES = "does what it is asked, and nobody hears of it"
    IS_AWAY = "is away"


@dataclass(slots=True)
class Server:
    """One upstream instance: its sessions, and whose each is. ``counts``: ids come again after a restart."""

    name: str
    counts: bool
    sessions: dict[str, str] = field(default_factory=dict)
    minted: set[str] = field(default_factory=set)
    next_number: int = 1

    def mint(self, owner: str) -> UpstreamSessionId:
        upstream_id = f"{self.name}{self.next_number}"
        self.next_number += 1
        self.sessions[upstream_id] = owner
        self.minted.add(upstream_id)
        return UpstreamSessionId(upstream_id)

    def restart(self) -> None:
        self.sessions.clear()
        if self.counts:
            self.next_number = 1


@dataclass(slots=True)
class Begun:
    """A heal whose server has answered ``initialize``; the rest of it is to come."""

    place: int
    session: Session
    upstream_id: UpstreamSessionId
    generation: int


SIDECARS: Final = st.sampled_from([0, 1, 2, 2])
STORES: Final = st.sampled_from([*[Store.WORKS] * 6, Store.LOSES_REPLIES, Store.IS_AWAY])


def _stop_healing(session: Session) -> None:
    if session.state is State.HEALING:
        session.not_healed(is_counted=True)


class SharedRecords(RuleBasedStateMachine):
    """``owners`` has for each client id who was given it; a client is a name that only the model knows. ``unsaved`` are
    those of whom the store may not have heard yet, and the sidecar that has.
    """

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.servers = [Server("h", counts=False)] * 2 + [Server("t", counts=True)]
        self.places: list[Place] = []
        self.clients: list[ClientSessionId] = []
        self.owners: dict[ClientSessionId, str] = {}
        self.ended: set[ClientSessionId] = set()
        self.unsaved: dict[ClientSessionId, int] = {}
        self.begun: list[Begun] = []
        self.words: set[str] = set()
        self.revisions: dict[Key, int] = {}
        self._names = itertools.count(1)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def teardown(self) -> None:
        for place in self.places:
            self.run(place.store.close())
        self._runner.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @initialize()
    def start(self) -> None:
        self.places = [self._started(number) for number in range(3)]

    def _started(self, number: int) -> Place:
        name = f"p{next(self._names)}."
        place = Place(self._folder / "state" / "s.db", name, self.clock, HERE if number < 2 else THERE)
        self.run(place.store.open())
        self.run(place.keeper.get_keys())
        return place

    def _at(self, number: int, store: Store) -> Place:
        place = self.places[number]
        if not place.keeper.store.is_up:
            place.store.is_away = place.store.loses_reply = False
            self.run(self._is_back(place))
        place.store.is_away, place.store.loses_reply = store is Store.IS_AWAY, store is Store.LOSES_REPLIES
        return place

    @staticmethod
    async def _is_back(place: Place) -> None:
        await asyncio.wait({place.keeper.store.back()})

    def _session(self, place: Place, client: ClientSessionId) -> Session | None:
        self.run(place.table.load(client, Identity(ALICE)))
        return place.table.find(client, ALICE)

    # -- what can happen ----------------------------------------------------------------------------------------------

    @rule(number=SIDECARS, store=STORES)
    def a_client_comes(self, number: int, store: Store) -> None:
        """Who is given an id that another client has would be in its session."""
        place, server, name = self._at(number, store), self.servers[number], f"client {next(self._names)}"
        upstream_id = server.mint(name)
        place.table.claim_upstream_id(upstream_id, None)
        session = place.table.open(place.table.id_for_newcomer(upstream_id, ALICE), ALICE, HANDSHAKE, upstream_id)
        if self.run(place.table.save(session)) is not Saving.DONE:
            session = place.table.rename(session)
            self.run(place.table.save(session))
        if place.keeper.is_unsaved(session):
            self.unsaved[session.client_id] = number
        assert session.client_id not in self.owners or session.client_id in self.ended
        self.ended.discard(session.client_id)
        self.owners[session.client_id] = name
        self.clients.append(session.client_id)

    @precondition(lambda self: self.clients)
    @rule(number=SIDECARS, store=STORES, data=st.data())
    def a_client_calls(self, number: int, store: Store, data: st.DataObject) -> None:
        """Under an id of this server, in nobody else's session; one that has ended is found nowhere anew."""
        place, server = self._at(number, store), self.servers[number]
        client = data.draw(st.sampled_from(self.clients[-3:]))
        was_there = place.table.find(client, ALICE) is not None
        session = self._session(place, client)
        if session is None:
            return
        assert was_there or client not in self.ended
        if session.displaced or session.upstream_id is None:
            return
        assert session.upstream_id in server.minted
        assert server.sessions.get(session.upstream_id, self.owners[client]) == self.owners[client]

    @precondition(lambda self: self.clients)
    @rule(number=SIDECARS, store=STORES, data=st.data())
    def a_heal_begins(self, number: int, store: Store, data: st.DataObject) -> None:
        """Where a session is lost, or was never here; whether or not another process is at it."""
        place, server = self._at(number, store), self.servers[number]
        client = data.draw(st.sampled_from(self.clients[-3:]))
        session = self._session(place, client)
        if session is None or session.state is State.HEALING:
            return
        if not session.displaced and session.upstream_id in server.sessions:
            return
        session.fire(Event.LOSS_SEEN)
        generation = session.generation
        self.run(place.table.take_turn(session))
        if session.is_ended or session.generation > generation:
            _stop_healing(session)
            return
        upstream_id = server.mint(self.owners[client])
        place.table.claim_upstream_id(upstream_id, session)
        self.begun.append(Begun(number, session, upstream_id, generation))

    @precondition(lambda self: self.begun)
    @rule(store=STORES, data=st.data())
    def a_heal_commits(self, store: Store, data: st.DataObject) -> None:
        """Its upstream session stands, or is ended; its mark was nobody's before."""
        begun = data.draw(st.sampled_from(self.begun))
        self.begun.remove(begun)
        place, server, session = self._at(begun.place, store), self.servers[begun.place], begun.session
        is_ours = place.table.has_claimed(begun.upstream_id, session)
        if session.is_ended or session.generation > begun.generation or not is_ours:
            self._abandon(begun)
            return
        place.table.release_upstream_id(session.upstream_id, session)
        session.repoint(begun.upstream_id, tools_still_hold=True)
        word = session.mark_of(session.generation).word
        assert word not in self.words
        self.words.add(word)
        place.table.claim_upstream_id(begun.upstream_id, session)
        outcome = self.run(place.table.save(session))
        if outcome is Saving.OVERTAKEN:
            server.sessions.pop(begun.upstream_id, None)
            assert session.upstream_id != begun.upstream_id
        self.run(place.table._keeper.give_turn_back(session))

    @precondition(lambda self: self.clients)
    @rule(number=SIDECARS, data=st.data())
    def a_client_ends(self, number: int, data: st.DataObject) -> None:
        """From then on nobody who asks the store finds the session."""
        place = self._at(number, Store.WORKS)
        client = data.draw(st.sampled_from(self.clients[-3:]))
        session = self._session(place, client)
        if session is None:
            return
        place.table.end(session, SessionEnd.TERMINATED)
        self.run(place.table.settle_end(session))
        self.ended.add(client)

    @rule(number=SIDECARS, store=STORES)
    def a_round(self, number: int, store: Store) -> None:
        place = self._at(number, store)
        self.run(place.keeper.touch())
        self.run(place.keeper.flush())
        if not place.keeper.unsaved:
            self.unsaved = {client: at for client, at in self.unsaved.items() if at != number}

    @rule(number=SIDECARS, of_server=st.booleans(), of_sidecar=st.booleans())
    def a_restart(self, number: int, of_server: bool, of_sidecar: bool) -> None:
        """What a sidecar had not written is gone, and its heals with it. A server knows no session then."""
        if of_server:
            self.servers[number].restart()
            self.begun = [begun for begun in self.begun if self._gives_up(begun, number)]
        if of_sidecar:
            self.run(self.places[number].store.close())
            self.begun = [begun for begun in self.begun if begun.place != number]
            for client in [client for client, at in self.unsaved.items() if at == number]:
                self._is_forgotten(client)
            self.places[number] = self._started(number)

    def _is_forgotten(self, client: ClientSessionId) -> None:
        """No store may ever have heard of it: whoever is given its id is a newcomer."""
        del self.unsaved[client], self.owners[client]
        self.clients = [one for one in self.clients if one != client]

    def _gives_up(self, begun: Begun, number: int) -> bool:
        if self.servers[begun.place] is not self.servers[number]:
            return True
        self._abandon(begun)
        return False

    def _abandon(self, begun: Begun) -> None:
        """What a heal does that comes to nothing: a server that counts may have given it the id that its session stands on."""
        table, session = self.places[begun.place].table, begun.session
        if table.has_claimed(begun.upstream_id, session):
            if begun.upstream_id == session.upstream_id and not session.is_ended:
                table.displace(session)
            self.servers[begun.place].sessions.pop(begun.upstream_id, None)
            table.release_upstream_id(begun.upstream_id, session)
        _stop_healing(session)

    @rule(seconds=st.sampled_from([0.5, 1.5, 6.0]))
    def time_passes(self, seconds: float) -> None:
        """Not so much that a session ends by itself."""
        self.clock.now += seconds
        for place in self.places:
            for session in place.table:
                session.last_used_at = self.clock.now
                self.run(place.keeper.touch())

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def no_commit_from_a_stale_revision(self) -> None:
        """What stands in the store never gets an older revision."""
        if not self.places:
            return
        place = self._at(0, Store.WORKS)
        for client in self.clients:
            key = place.keeper.key(client, ALICE)
            entry = self.run(place.store.store.get(key.session)).get(key.principal)
            revision = entry.revision if entry is not None else 0
            assert revision >= self.revisions.get(key, 0)
            self.revisions[key] = revision


TestSharedRecords = pytest.mark.long(SharedRecords.TestCase)
TestSharedRecords.__doc__ = (
    "In any order of steps: marks are unique, commits are not stale, ends stay, and sessions never mix."
)
TestSharedRecords.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
