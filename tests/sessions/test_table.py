"""What is remembered of sessions, for how long, and what of those that ended."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.facts import Fact, SessionEnd, SessionEnded, SessionOpened
from mcp_sidecar.healing.handshake import MAX_PARAMS_BYTES, Difference, Handshake, differences
from mcp_sidecar.healing.principal import ANONYMOUS, Identity, Principal
from mcp_sidecar.healing.session import ClientSessionId, Session, State, UpstreamSessionId
from mcp_sidecar.sessions.handshakes import MAX_BYTES
from mcp_sidecar.sessions.keeper import Saving
from mcp_sidecar.sessions.look_ups import Missing
from mcp_sidecar.sessions.table import NOT_FOUND, FoundSession, SessionTable
from tests.support.sessions import keeper

ALICE, BOB = Principal(b"alice"), Principal(b"bob")
HANDSHAKE = Handshake.of({"clientInfo": {"name": "c"}}, {"protocolVersion": "2025-06-18", "serverInfo": {"name": "s"}})


@dataclass(slots=True)
class Watched:
    """A store with a clock that the test turns."""

    limits: SessionLimits
    now: float = 1000.0
    facts: list[Fact] = field(default_factory=list)
    table: SessionTable = field(init=False)

    def __post_init__(self) -> None:
        tags = map(str, itertools.count())
        self.table = SessionTable(
            self.limits,
            self.facts.append,
            salt=b"salt",
            clock=self.clock,
            new_tag=lambda: next(tags),
            keeper=keeper(self.limits, self.clock),
        )

    def clock(self) -> float:
        return self.now

    def open(self, name: str, principal: Principal = ANONYMOUS, handshake: Handshake = HANDSHAKE) -> Session:
        return self.table.open(ClientSessionId(name), principal, handshake)

    def find(self, name: str, principal: Principal = ANONYMOUS) -> Session | None:
        return self.table.find(ClientSessionId(name), principal)

    def is_ended(self, name: str, principal: Principal = ANONYMOUS) -> bool:
        return self.table.is_ended(ClientSessionId(name), principal)

    @property
    def ends(self) -> list[SessionEnd]:
        return [fact.reason for fact in self.facts if isinstance(fact, SessionEnded)]


def watched(**limits: float) -> Watched:
    return Watched(SessionLimits(**limits))  # type: ignore[arg-type] # max_sessions is given as a whole number


def test_a_session_is_found_by_its_own_principal_only() -> None:
    """Id and principal together; everybody learns no more than that somebody holds the id."""
    place = watched()
    session = place.open("s", ALICE)
    assert place.find("s", ALICE) is session
    assert place.find("s", BOB) is None and place.find("s") is None
    assert place.table.is_held(ClientSessionId("s")) and not place.table.is_held(ClientSessionId("t"))


def token(name: str) -> Identity:
    """An opaque bearer token."""
    return Identity(Principal(name.encode()), Principal(b"the very " + name.encode()), (("bearer", b"", b""),))


def test_a_session_is_claimed_until_the_upstream_has_spoken() -> None:
    """A newer token is found with the session once it was accepted there; until then it does not keep it from its end."""
    place, an_id = watched(idle_ttl_s=10.0), ClientSessionId("s")
    session = place.open("s", token("old").principal)
    assert place.table.look_up(an_id, token("new")) == NOT_FOUND  # whose token the old one was is not known
    session.accept(token("old"))
    assert place.table.look_up(an_id, token("old")) == FoundSession(session)
    place.now += 6
    assert place.table.look_up(an_id, token("new")) == FoundSession(claimed=session)
    session.accept(token("new"))
    assert place.table.look_up(an_id, token("new")) == FoundSession(session)
    place.now += 6
    assert place.table.look_up(an_id, token("newer")) == FoundSession(claimed=session)
    place.now += 6
    assert place.table.look_up(an_id, token("newer")) == NOT_FOUND
    assert place.ends == [SessionEnd.EXPIRED]


def test_one_of_several_is_not_guessed() -> None:
    """Where two hold the id, and the token may be either one's successor, it is nobody's; its own session goes first."""
    place, an_id = watched(), ClientSessionId("s")
    for name in ("one", "two"):
        place.open("s", token(name).principal).accept(token(name))
    assert place.table.look_up(an_id, token("three")) == NOT_FOUND
    own = place.table.look_up(an_id, token("two")).session
    assert own is not None and own.principal == token("two").principal


def test_two_principals_hold_the_same_id() -> None:
    """Each finds its own, and the one that stood on the id upstream is displaced by the newer."""
    place = watched()
    old, new = place.open("s", ALICE), place.open("s", BOB)
    assert (place.find("s", ALICE), place.find("s", BOB)) == (old, new)
    assert (old.displaced, new.displaced) == (True, False)
    assert len(place.table) == 2


def test_a_newcomer_gets_an_id_that_its_principal_does_not_hold() -> None:
    """Its own where it can, else one that says the same upstream; another principal may hold the same one."""
    place = watched()
    assert place.table.id_for_newcomer(UpstreamSessionId("s"), ALICE) == "s"
    place.open("s", ALICE)
    given = place.table.id_for_newcomer(UpstreamSessionId("s"), ALICE)
    assert given != "s"
    assert given.endswith(".s")
    assert place.table.id_for_newcomer(UpstreamSessionId("s"), BOB) == "s"


async def test_without_a_store_nothing_is_loaded() -> None:
    """What is not in memory is unknown, or ended, at once."""
    place = watched()
    session = place.open("s", ALICE)
    assert await place.table.load(ClientSessionId("s"), Identity(ALICE)) is None
    assert not place.table.may_be_loaded(ClientSessionId("s"), BOB)
    assert await place.table.load(ClientSessionId("s"), Identity(BOB)) is Missing.UNKNOWN
    place.table.end(session, SessionEnd.TERMINATED)
    assert await place.table.load(ClientSessionId("s"), Identity(ALICE)) is Missing.ENDED
    assert await place.table.save(session) is Saving.DONE


def test_the_same_principal_with_the_same_id_replaces() -> None:
    """The upstream minted the id anew for it: the former session is over, and the id is not an ended one."""
    place = watched()
    old = place.open("s")
    new = place.open("s")
    assert place.find("s") is new
    assert (old.state, place.ends) == (State.ENDED, [SessionEnd.REPLACED])
    assert not place.is_ended("s")


def test_a_heal_may_take_an_id_that_another_stood_on() -> None:
    """Ids that upstream gives out again displace whoever had them, each in turn, and nobody twice."""
    place = watched()
    first, second = place.open("one", ALICE), place.open("two", BOB)
    place.table.release_upstream_id(first.upstream_id, first)
    first.upstream_id = UpstreamSessionId("two")
    place.table.claim_upstream_id(first.upstream_id, first)
    assert second.displaced and not first.displaced
    place.table.release_upstream_id(second.upstream_id, second)
    second.upstream_id = UpstreamSessionId("one")
    place.table.claim_upstream_id(second.upstream_id, second)
    assert not first.displaced


def test_an_id_is_claimed_before_there_is_a_session_for_it() -> None:
    """The upstream takes requests under it from then on; whoever was given it later has it."""
    displaced: list[Session] = []
    place = watched()
    place.table._on_displaced = displaced.append
    former, healing = place.open("one", ALICE), place.open("two", BOB)
    place.table.claim_upstream_id(UpstreamSessionId("one"), healing)
    assert displaced == [former] and former.displaced
    assert place.table.has_claimed(UpstreamSessionId("one"), healing)
    place.table.claim_upstream_id(UpstreamSessionId("one"), None)
    assert not place.table.has_claimed(UpstreamSessionId("one"), healing)
    assert displaced == [former]
    place.table.claim_upstream_id(None, healing)
    assert place.table.has_claimed(None, healing)


def test_idle_sessions_expire() -> None:
    """``idle_ttl`` after its last request a session is over and its id ended; every request puts that off."""
    place = watched(idle_ttl_s=10)
    session = place.open("s")
    for _ in range(5):
        place.now += 9.9
        assert place.find("s") is session
    place.now += 10
    assert place.find("s") is None
    assert (place.ends, place.is_ended("s")) == ([SessionEnd.EXPIRED], True)


def test_a_running_exchange_is_use() -> None:
    """Who waits or listens is not idle; once that is over, the time runs from then on."""
    place = watched(idle_ttl_s=10)
    listening = [place.open(f"s{number}") for number in range(3)]
    place.open("idle")
    with ExitStack() as exchanges:
        for session in (*listening, *listening):
            exchanges.enter_context(place.table.using(session))
        for _ in range(5):
            place.now += 9
            place.table.sweep()
        assert [session.client_id for session in place.table] == ["s0", "s1", "s2"]
    place.now += 9
    assert place.find("s0") is listening[0]
    place.now += 10
    place.table.sweep()
    assert (len(place.table), place.is_ended("s0")) == (0, True)


def test_no_session_outlives_its_lifetime() -> None:
    """``max_lifetime`` after its initialize a session is over, however busy it is."""
    place = watched(idle_ttl_s=10, max_lifetime_s=25)
    session = place.open("s")
    with place.table.using(session):
        for _ in range(4):
            place.now += 6
            assert place.find("s") is session
        place.now += 1
        place.table.sweep_old()
        assert place.ends == [SessionEnd.EXPIRED]
        assert place.find("s") is None
    assert place.ends == [SessionEnd.EXPIRED]
    with place.table.using(None):
        assert place.find("s") is None


@pytest.mark.parametrize("limits", [{"idle_ttl_s": 10.0}, {"max_lifetime_s": 10.0}], ids=["idle", "lifetime"])
def test_a_sweep_removes_all_that_expired(limits: dict[str, float]) -> None:
    """And nothing else, whatever the order of use."""
    place = watched(**limits)
    for number in range(100):
        place.open(f"old-{number}")
    place.now += 5
    for number in range(100):
        place.open(f"new-{number}")
    place.now += 5
    place.table.sweep()
    place.table.sweep_old()
    assert {session.client_id for session in place.table} == {f"new-{number}" for number in range(100)}
    assert place.ends == [SessionEnd.EXPIRED] * 100


def test_the_longest_unused_is_evicted() -> None:
    """Beyond ``max_sessions`` the one that was not used for longest is forgotten: unknown, not ended."""
    place = watched(max_sessions=3)
    for name in "abc":
        place.open(name)
    place.find("a")
    place.open("d")
    assert [session.client_id for session in place.table] == ["c", "a", "d"]
    assert (place.ends, place.is_ended("b"), place.table.is_held(ClientSessionId("b"))) == (
        [SessionEnd.EVICTED],
        False,
        False,
    )


def test_an_ended_id_stays_ended() -> None:
    """For whoever held it and for everybody, until it is opened anew."""
    place = watched()
    place.table.end(place.open("s", ALICE), SessionEnd.TERMINATED)
    assert place.is_ended("s", ALICE) and place.is_ended("s", BOB)
    place.open("s", BOB)
    assert place.is_ended("s", ALICE) and not place.is_ended("s", BOB)
    place.open("s", ALICE)
    assert not place.is_ended("s", ALICE)


def test_ending_twice_is_ending_once() -> None:
    """A late end of a session that was replaced does not touch its successor."""
    place = watched()
    old = place.open("s")
    new = place.open("s")
    place.table.end(old, SessionEnd.TERMINATED)
    assert place.find("s") is new
    place.table.end(new, SessionEnd.TERMINATED)
    place.table.end(new, SessionEnd.TERMINATED)
    assert place.ends == [SessionEnd.REPLACED, SessionEnd.TERMINATED]


def test_only_so_many_ended_ids_are_remembered() -> None:
    """As many as there may be sessions; the oldest are forgotten first, and none is kept in clear."""
    place = watched(max_sessions=10)
    for number in range(30):
        place.table.end(place.open(f"s{number}"), SessionEnd.TERMINATED)
    assert [number for number in range(30) if place.is_ended(f"s{number}")] == list(range(20, 30))
    assert not any(b"s29" in hashed for hashed, _ in place.table._ended._latest)


def test_nothing_is_left_of_sessions_that_are_over() -> None:
    """After a thousand openings and ends every index is empty."""
    place = watched(max_sessions=50, idle_ttl_s=10)
    for number in range(1000):
        session = place.open(f"s{number % 70}", ALICE if number % 3 else BOB)
        if number % 5 == 0:
            place.table.end(session, SessionEnd.TERMINATED)
        assert len(place.table) <= 50
    place.now += 10
    place.table.sweep()
    store = place.table
    assert not (store._by_use or store._holders or store._by_upstream_id)
    assert len(store._ended) <= 50


def test_equal_handshakes_are_kept_once() -> None:
    """Ten thousand sessions of one client program hold one handshake."""
    place = watched()
    made = [
        place.open(f"s{number}", handshake=Handshake.of({"clientInfo": {}}, {"protocolVersion": "2025-06-18"}))
        for number in range(100)
    ]
    assert len({id(session.handshake) for session in made}) == 1


def test_labels_are_salted_hashes() -> None:
    """Short, the same for the same id in one process, another in another, and without a trace of the id."""
    place = watched()
    session = place.open("secret-id")
    assert session.label == place.table.label("secret-id")
    assert len(session.label) == 12 and "secret" not in session.label
    other = SessionTable(
        SessionLimits(),
        place.facts.append,
        salt=b"other",
        clock=place.clock,
        new_tag=lambda: "t",
        keeper=keeper(SessionLimits(), place.clock),
    )
    assert other.label("secret-id") != session.label
    assert [fact.session for fact in place.facts if isinstance(fact, SessionOpened)] == [session.label]


def test_ended_ids_are_bounded_by_whose_they_were() -> None:
    """A server that mints one id for all does not make the process remember everybody who ever came."""
    place = watched(max_sessions=3)
    everybody = [Principal(f"p{number}".encode()) for number in range(5)]
    for principal in everybody:
        place.table.end(place.open("s", principal), SessionEnd.TERMINATED)
    assert len(place.table._ended) == 3
    place.open("s", ALICE)
    assert [place.is_ended("s", principal) for principal in everybody] == [False, False, True, True, True]
    for name in ("a", "b", "c"):
        place.table.end(place.open(name), SessionEnd.TERMINATED)
    assert not place.is_ended("s", everybody[-1])
    assert len(place.table._ended._of) == 3


def test_what_clients_say_of_themselves_is_bounded() -> None:
    """Said once, however many sessions say it; of too much of it the longest unused sessions go, and nobody else's."""
    place = watched()
    for number in range(20):
        place.open(f"alike {number}", handshake=Handshake(b"x" * 1000, "2025-06-18", b"{}"))
    assert place.table._handshakes.size == 1002
    large = MAX_PARAMS_BYTES - 100
    fit = MAX_BYTES // large
    for number in range(fit + 100):
        place.open(f"new {number}", handshake=Handshake(b"%0*d" % (large, number), "2025-06-18", b"{}"))
    assert place.table._handshakes.size <= MAX_BYTES
    assert place.find("alike 0") is place.find("new 0") is None
    assert place.find(f"new {fit + 99}") is not None
    assert set(place.ends) == {SessionEnd.EVICTED}
    for session in list(place.table):
        place.table.end(session, SessionEnd.TERMINATED)
    del session
    assert place.table._handshakes.size == 0


def test_what_a_server_says_at_length_is_kept_as_a_digest() -> None:
    """It is only compared, and the digest tells another text from the same."""
    result = {"protocolVersion": "2025-06-18", "serverInfo": {"name": "s"}, "instructions": "i" * 100_000}
    place = watched()
    session = place.open("s", handshake=Handshake.of({"clientInfo": {"name": "c"}}, result))
    assert place.table._handshakes.size < 1000
    assert differences(session.handshake, result) == frozenset()
    other = {**result, "instructions": "j" * 100_000}
    assert differences(session.handshake, other) == {Difference.INSTRUCTIONS}
