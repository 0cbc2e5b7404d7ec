"""One client session across upstream sessions: its states, its generations, its budget."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.facts import HintKind
from mcp_sidecar.healing.polled_streams import MAX_POLLED_ID_CHARS, MAX_POLLED_IDS, MAX_POLLED_STREAMS
from mcp_sidecar.healing.record import Instance
from mcp_sidecar.healing.session import (
    TRANSITIONS,
    Event,
    InvalidTransition,
    Session,
    State,
    UpstreamSessionId,
    diagram,
)
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Message
from tests.healing import samples
from tests.support.sessions import HERE, a_session

ARCHITECTURE: Final = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
PATHS: Final = {
    State.ESTABLISHED: [],
    State.HEALING: [Event.LOSS_SEEN],
    State.LOST: [Event.LOSS_SEEN, Event.NOT_HEALED],
    State.ENDED: [Event.ENDED],
}


def session_in(state: State = State.ESTABLISHED) -> Session:
    session = a_session("first")
    for event in PATHS[state]:
        session.fire(event)
    return session


class TestStates:
    """The table is the whole truth about states."""

    @pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
    def test_each_event_in_each_state(self, state: State, event: Event) -> None:
        """An event leads where the table says; one that cannot happen is an error and changes nothing."""
        session = session_in(state)
        after = TRANSITIONS.get((state, event))
        if after is None:
            with pytest.raises(InvalidTransition, match=f"^{event.value} while {state.value}$"):
                session.fire(event)
        else:
            session.fire(event)
        assert session.state is (after or state)

    def test_what_ended_stays_so(self) -> None:
        """There is no way out of the end; a heal under way may still report to it."""
        assert {after for (before, _), after in TRANSITIONS.items() if before is State.ENDED} == {State.ENDED}

    def test_every_state_is_reached_and_can_end(self) -> None:
        """No state is decoration."""
        assert {after for _, after in TRANSITIONS.items()} == set(State)
        assert all(TRANSITIONS[state, Event.ENDED] is State.ENDED for state in State)

    def test_only_a_heal_leads_out_of_a_loss(self) -> None:
        """A lost session is whole again only by way of a heal."""
        entries = {before for (before, _), after in TRANSITIONS.items() if after is State.ESTABLISHED}
        assert entries == {State.HEALING}


class TestDiagram:
    """The documentation shows the table."""

    def test_it_is_the_one_in_the_documentation(self) -> None:
        """After a change to the table: paste what ``diagram()`` gives."""
        assert f"```mermaid\n{diagram()}\n```" in ARCHITECTURE.read_text(encoding="utf-8")

    def test_it_shows_every_change(self) -> None:
        """Each transition into another state is an edge that names its event."""
        edges = {}
        for line in diagram().splitlines()[2:-1]:
            states, _, events = line.strip().partition(": ")
            before, _, after = states.partition(" --> ")
            edges.update({(State(before), Event(event)): State(after) for event in events.split(", ")})
        assert edges == {key: after for key, after in TRANSITIONS.items() if key[0] is not after}


class TestGenerations:
    """The client's id stays; what stands behind it changes in one place."""

    def test_the_first_upstream_id_is_the_clients(self) -> None:
        """The sidecar mints no ids."""
        session = session_in()
        assert (session.upstream_id, session.generation) == ("first", 1)

    @pytest.mark.parametrize(
        ("upstream_id", "tools_still_hold", "safe_tools"),
        [
            pytest.param("second", True, {"read"}, id="the same server"),
            pytest.param("second", False, set(), id="another version: what it said of its tools is void"),
            pytest.param(None, True, {"read"}, id="stateless from now on"),
        ],
    )
    def test_repoint(self, upstream_id: str | None, tools_still_hold: bool, safe_tools: set[str]) -> None:
        """A heal changes the upstream's id and raises the generation, and nothing that the client sees."""
        session = session_in(State.HEALING)
        session.learnt_tools({"tools": [{"name": "read", "annotations": {"readOnlyHint": True}}]}, is_first_page=True)
        session.displace()
        new = UpstreamSessionId(upstream_id) if upstream_id is not None else None
        session.repoint(new, tools_still_hold=tools_still_hold)
        assert (session.client_id, session.upstream_id, session.generation) == ("first", upstream_id, 2)
        assert (session.state, session.displaced, set(session.safe_tools)) == (State.ESTABLISHED, False, safe_tools)

    def test_polled_streams(self) -> None:
        """Who waits behind which event is remembered, of the latest streams only."""
        session = session_in()
        assert session.polled_from(None) == session.polled_from("event-0") == ()
        for number in range(MAX_POLLED_STREAMS + 1):
            session.note_polled(f"event-{number}", [number])
        assert session.polled_from("event-0") == ()
        assert session.polled_from("event-1") == (1,)
        assert session.polled_from(f"event-{MAX_POLLED_STREAMS}") == (MAX_POLLED_STREAMS,)

    @pytest.mark.parametrize(
        "waiting",
        [
            pytest.param(range(MAX_POLLED_IDS + 1), id="too many"),
            pytest.param(["x" * (MAX_POLLED_ID_CHARS + 1)], id="too long"),
        ],
    )
    def test_polled_streams_of_any_size(self, waiting: Iterable[JsonRpcId]) -> None:
        """What a client waits for may be a batch of thousands, or an id of a megabyte: that is not kept."""
        session = session_in()
        session.note_polled("event", waiting)
        assert session.polled_from("event") == ()

    def test_hints_after_a_heal(self) -> None:
        """The dead questions, then every resource that is subscribed to; what is said again by the next heal, once more."""
        session = session_in(State.HEALING)
        for uri in ("a", "b"):
            session.learnt(samples.request("resources/subscribe", uri=uri))
        session.heard(samples.request("ping", id=0), session.mark_of(session.generation))
        session.repoint(UpstreamSessionId("second"), tools_still_hold=True)
        kinds = [HintKind.CANCELLED, HintKind.UPDATED, HintKind.UPDATED]
        assert [hint.kind for hint in session.hints_after_heal()] == kinds
        assert [hint.kind for hint in session.hints_after_heal()] == kinds[1:]

    def test_an_end_during_the_heal_wins(self) -> None:
        """A heal that comes too late repoints nothing."""
        session = session_in(State.HEALING)
        session.fire(Event.ENDED)
        session.repoint(UpstreamSessionId("second"), tools_still_hold=True)
        assert session.is_ended
        assert (session.upstream_id, session.generation) == ("first", 1)

    @pytest.mark.parametrize("state", [State.ESTABLISHED, State.HEALING, State.LOST])
    def test_displaced(self, state: State) -> None:
        """Whose upstream id was given to another session must be healed before it is used again."""
        session = session_in(state)
        session.displace()
        assert session.displaced
        assert session.state is not State.ESTABLISHED
        assert not session.is_ended


class TestRecord:
    """What is learnt goes to the record, and a session goes on from it."""

    def test_a_session_that_stands_here(self) -> None:
        """After a restart of the process it goes on in its upstream session, with what was learnt."""
        session = session_in(State.HEALING)
        session.learnt(samples.request("logging/setLevel", level="info"))
        session.learnt_list("tools/list", None, {"tools": [{"name": "a"}]}, session.generation)
        session.repoint(UpstreamSessionId("second"), tools_still_hold=True)
        question = session.mark_of(session.generation).on_id(1)
        again = a_session("first", session.record)
        assert (again.upstream_id, again.state, again.displaced) == ("second", State.ESTABLISHED, False)
        assert again.mark_of(again.generation).off_id(question) == (True, 1)
        assert again.client_state.log_level == "info"
        assert again.lists is not None and list(again.lists.stale(again.generation + 1))
        assert not list(again.lists.stale(again.generation))

    def test_a_session_that_was_never_healed(self) -> None:
        """It is unmarked before a restart of the process and behind it."""
        again = a_session("first", session_in().record)
        assert (again.generation, again.upstream_id) == (1, "first")
        assert again.mark_of(again.generation).on_id(1) == 1

    def test_a_session_that_stands_elsewhere(self) -> None:
        """An instance that has minted no id for it heals before it sends anything, and marks what comes then."""
        record = session_in().record.not_at(HERE).standing_at(Instance("elsewhere", UpstreamSessionId("first"), ""))
        session = a_session("first", record)
        assert (session.state, session.displaced, session.upstream_id) == (State.LOST, True, None)
        assert not session.mark_of(session.generation).off_id(1)[0]
        session.fire(Event.LOSS_SEEN)
        session.repoint(UpstreamSessionId("here-1"), tools_still_hold=True)
        assert session.mark_of(session.generation).on_id(1) != 1
        assert [one.key for one in session.record.instances] == [HERE, "elsewhere"]

    def test_what_was_displaced_is_not_kept(self) -> None:
        """No later process may use an id that is another session's by now."""
        session = session_in()
        session.displace()
        assert session.record.at(HERE) is None

    @pytest.mark.parametrize(
        ("message", "is_used"),
        [
            pytest.param(samples.call(), True, id="a call"),
            pytest.param(samples.batch(samples.request("ping"), samples.call()), True, id="a call in a batch"),
            pytest.param(samples.request("tools/list"), False, id="a look"),
            pytest.param(samples.notification("notifications/initialized"), False, id="a notification"),
        ],
    )
    def test_used(self, message: Message, is_used: bool) -> None:
        """Only a call can have left state in the server that a new one lacks."""
        session = session_in()
        session.post_begins(message)
        session.post_ends()
        assert (session.record.is_used, session.posts) == (is_used, 0)


class TestBudget:
    """Heals are counted in a moving window."""

    @given(st.lists(st.floats(0, 1000), max_size=20), st.floats(0.001, 100), st.floats(0, 100))
    def test_heals_within(self, times: list[float], period_s: float, later_s: float) -> None:
        """Counted is what is younger than the period; what is older is forgotten, so that memory stays bounded."""
        session = session_in()
        for at in sorted(times):
            session.note_heal(at)
        now = max(times, default=0.0) + later_s
        young = [at for at in times if now - at < period_s]
        assert session.heals_within(period_s, now) == len(young)
        assert len(session.heals.recent) == len(young)
