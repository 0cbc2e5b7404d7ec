"""Ids that carry their generation: what the client sees, and what of it comes back."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.marked_ids import FIRST as FIRST_GENERATION
from mcp_sidecar.healing.marked_ids import Mark, Marks, Renumbering, event_to_client, to_client
from mcp_sidecar.wire.jsonrpc import UNREAD, JsonRpcId, Message, parse
from mcp_sidecar.wire.sse import parse_event
from tests.healing import samples

TAG: Final = "t4g"


def mark_of(generation: int) -> Mark:
    """Its word is its number, to be read easily."""
    return Mark(TAG, generation, str(generation))


FIRST, SECOND, THIRD = (mark_of(generation) for generation in (1, 2, 3))
NONE: Final = Renumbering()
RENUMBERED: Final = Renumbering(ids={"new": 7}, tokens={"new-token": "old"})


class TestMark:
    """Put on and taken off."""

    @pytest.mark.parametrize(
        ("mark", "own", "seen"),
        [
            pytest.param(FIRST, 1, 1, id="the first generation passes"),
            pytest.param(FIRST, "a", "a", id="the first generation passes text"),
            pytest.param(SECOND, 1, "t4g.2.1", id="a number"),
            pytest.param(SECOND, "1", 't4g.2."1"', id="text is not a number"),
            pytest.param(SECOND, 1.5, "t4g.2.1.5", id="a fraction"),
            pytest.param(THIRD, "t4g.2.1", 't4g.3."t4g.2.1"', id="an id that looks marked"),
        ],
    )
    def test_an_id(self, mark: Mark, own: JsonRpcId, seen: JsonRpcId) -> None:
        """The type stays inside the mark, so that the upstream gets back what it gave."""
        assert mark.on_id(own) == seen
        assert mark.off_id(seen) == (True, own)

    @given(samples.ids, st.integers(1, 4), st.integers(1, 4))
    def test_an_id_belongs_to_its_generation_only(self, own: JsonRpcId, one: int, other: int) -> None:
        """Whatever an upstream calls its question, an answer to it reaches no other upstream session."""
        belongs, back = mark_of(other).off_id(mark_of(one).on_id(own))
        if one == other:
            assert (belongs, back, type(back)) == (True, own, type(own))
        elif one > 1:
            assert not belongs

    @given(st.text(max_size=8), st.integers(1, 4), st.integers(1, 4))
    def test_an_event_id_belongs_to_its_generation_only(self, own: str, one: int, other: int) -> None:
        """A resumption reaches the upstream session that minted the event's id, and no other (transports, "Resumability and Redelivery")."""
        back = mark_of(other).off_text(mark_of(one).on_text(own))
        if one == other:
            assert back == own
        elif other > 1 or one > 1:
            assert back is None

    @pytest.mark.parametrize(
        "seen",
        [
            pytest.param(1, id="unmarked"),
            pytest.param("a", id="unmarked text"),
            pytest.param(None, id="none"),
            pytest.param("t4g.1.1", id="the first generation marks nothing"),
            pytest.param("t4g.22.1", id="a generation to come"),
            pytest.param("other.2.1", id="another session's tag"),
            pytest.param("t4g.2.", id="nothing in it"),
            pytest.param("t4g.2.x", id="no JSON in it"),
            pytest.param("t4g.2.[1]", id="a list in it"),
            pytest.param("t4g.2.true", id="a truth in it"),
            pytest.param("t4g.2.null", id="null in it"),
            pytest.param("t4g.2.NaN", id="no number in it"),
            pytest.param("t4g.2.-Infinity", id="infinity in it"),
            pytest.param(f"t4g.2.{'[' * samples.DEPTH}", id="a bomb in it"),
            pytest.param(f"t4g.2.{'9' * 5000}", id="a number nobody can read in it"),
        ],
    )
    def test_what_a_client_makes_up(self, seen: JsonRpcId) -> None:
        """What bears our mark and was never an id, or bears another, goes nowhere; nothing raises."""
        assert SECOND.off_id(seen) == (False, None)

    @pytest.mark.parametrize(
        ("seen", "expected"),
        [(1, False), ("x", False), ("t4g.2.1", False), ("t4g.3.1", True), ("t4g.", True), (None, False)],
    )
    def test_the_mark_of_another_generation(self, seen: JsonRpcId, expected: bool) -> None:
        """Only what bears this session's tag is said to be of another generation."""
        assert SECOND.is_on_another(seen) is expected

    def test_a_mark_of_ours_is_none_of_the_first_generation(self) -> None:
        """Answers to later questions never reach an upstream session that marks nothing."""
        assert not FIRST.off_id("t4g.2.1")[0]
        assert FIRST.off_id(2) == (True, 2)

    @given(st.text(max_size=12), st.integers(1, 3))
    def test_any_text_can_be_asked(self, seen: str, generation: int) -> None:
        """No text makes it fail, with our tag in front or without."""
        for text in (seen, f"{TAG}.{seen}", f"{TAG}.{generation}.{seen}"):
            belongs, own = mark_of(generation).off_id(text)
            assert belongs or generation == 1 or own is None


class TestMarks:
    """The marks of one live session."""

    @given(st.integers(2, 1000), st.integers(2, 1000), st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8))
    def test_no_two_are_the_same(self, one: int, other: int, seed: str, other_seed: str) -> None:
        """Each upstream session has a word of its own, whichever process made it; the same is always the same."""
        first, second = Marks(TAG, seed).of(one), Marks(TAG, other_seed).of(other)
        assert (first.word == second.word) == ((one, seed) == (other, other_seed))
        assert Marks(TAG, seed).of(one) == first

    def test_only_the_first_is_unmarked(self) -> None:
        """What the upstream session of the client's own ``initialize`` says passes untouched."""
        marks = Marks(TAG, "seed")
        assert marks.of(FIRST_GENERATION).on_id(1) == 1
        assert marks.of(FIRST_GENERATION + 1).on_id(1) != 1

    def test_a_stored_word_is_readable_again(self) -> None:
        """Ids that a former process marked are taken back by the upstream session that still stands; later ones differ."""
        before = Marks(TAG, "former").of(7)
        marks = Marks(TAG, "seed").with_word(2, before.word)
        assert marks.of(2).off_id(before.on_id("a")) == (True, "a")
        assert marks.of(2).off_text(before.on_text("event")) == "event"
        assert marks.of(3).off_text(before.on_text("event")) is None
        assert marks.of(3).is_on_another(before.on_id("a"))


PROGRESS: Final = samples.notification("notifications/progress", progressToken="new-token", progress=1)
ASK: Final = samples.request("sampling/createMessage", id=3, x=1)
CANCEL: Final = samples.notification("notifications/cancelled", requestId=3, reason="r")


class TestToClient:
    """What is changed, and that nothing else is."""

    @pytest.mark.parametrize(
        ("message", "mark", "renumbering", "changed"),
        [
            pytest.param(ASK, SECOND, NONE, {"id": "t4g.2.3"}, id="a question"),
            pytest.param(
                samples.request("sampling/createMessage", id=3, _meta={"progressToken": 5, "a": 1}, x=1),
                SECOND,
                NONE,
                {"id": "t4g.2.3", "params": {"_meta": {"progressToken": "t4g.2.5", "a": 1}, "x": 1}},
                id="a question that wants to hear of progress",
            ),
            pytest.param(
                CANCEL, SECOND, NONE, {"params": {"requestId": "t4g.2.3", "reason": "r"}}, id="a cancellation"
            ),
            pytest.param(samples.response("new"), FIRST, RENUMBERED, {"id": 7}, id="an answer to a second try"),
            pytest.param(samples.response("new"), SECOND, RENUMBERED, {"id": 7}, id="the same after a heal"),
            pytest.param(
                PROGRESS, FIRST, RENUMBERED, {"params": {"progressToken": "old", "progress": 1}}, id="its progress"
            ),
            pytest.param(
                samples.request("notifications/progress", id=3, progressToken="new-token"),
                SECOND,
                RENUMBERED,
                {"id": "t4g.2.3"},
                id="a question with the name of a notification",
            ),
        ],
    )
    def test_changed(self, message: Message, mark: Mark, renumbering: Renumbering, changed: dict[str, Any]) -> None:
        """A question and its cancellation get the mark, answers and progress their old ids back."""
        assert to_client(message, mark, renumbering) == {**message.value, **changed}

    @pytest.mark.parametrize(
        ("message", "mark", "renumbering"),
        [
            pytest.param(ASK, FIRST, RENUMBERED, id="a question of the first generation"),
            pytest.param(CANCEL, FIRST, RENUMBERED, id="its cancellation"),
            pytest.param(samples.response(7), SECOND, RENUMBERED, id="an answer under its own id"),
            pytest.param(samples.response("x"), SECOND, RENUMBERED, id="an answer to somebody else"),
            pytest.param(samples.notification("notifications/message"), SECOND, RENUMBERED, id="a notification"),
            pytest.param(
                samples.notification("notifications/cancelled"), SECOND, RENUMBERED, id="a cancellation of nothing"
            ),
            pytest.param(
                samples.notification("notifications/cancelled", requestId=[1]), SECOND, NONE, id="of what has no id"
            ),
            pytest.param(
                samples.notification("notifications/progress", progressToken=1),
                SECOND,
                RENUMBERED,
                id="a number's progress",
            ),
            pytest.param(
                samples.notification("notifications/progress", progressToken="x"),
                SECOND,
                RENUMBERED,
                id="other progress",
            ),
            pytest.param(samples.notification("notifications/progress"), SECOND, RENUMBERED, id="progress of nothing"),
            pytest.param(samples.NO_MESSAGE, SECOND, RENUMBERED, id="no JSON-RPC"),
            pytest.param(UNREAD, SECOND, RENUMBERED, id="unread"),
            pytest.param(samples.batch(samples.response(7), samples.response(8)), SECOND, RENUMBERED, id="a batch"),
            pytest.param(samples.batch(), SECOND, RENUMBERED, id="an empty batch"),
        ],
    )
    def test_untouched(self, message: Message, mark: Mark, renumbering: Renumbering) -> None:
        """Everything else passes as the bytes that came."""
        assert to_client(message, mark, renumbering) is None

    def test_a_batch_keeps_its_other_members(self) -> None:
        """Of a batch only the members that need it are written anew."""
        others = [samples.notification("a").value, samples.response(4).value]
        batch = parse(json.dumps([others[0], ASK.value, others[1]]).encode())
        assert to_client(batch, SECOND, NONE) == [others[0], {**ASK.value, "id": "t4g.2.3"}, others[1]]

    @given(
        st.dictionaries(st.sampled_from(["method", "id", "params", "result", "error"]), samples.json_values),
        st.sampled_from([FIRST, SECOND]),
        st.sampled_from([NONE, RENUMBERED]),
    )
    def test_any_message(self, value: dict[str, Any], mark: Mark, renumbering: Renumbering) -> None:
        """Whatever an upstream sends can be mapped, and only id and params can change."""
        mapped = to_client(samples.message(**value), mark, renumbering)
        if mapped is not None:
            assert {key for key in mapped if mapped[key] != ({"jsonrpc": "2.0"} | value).get(key)} <= {"id", "params"}


class TestEvents:
    """An event of a later generation."""

    RAW: Final = b": c\r\nid: 5\r\nevent: message\r\ndata: {}\r\n\r\n"

    @pytest.mark.parametrize(
        ("raw", "mapped", "mark", "expected"),
        [
            pytest.param(RAW, None, FIRST, RAW, id="untouched"),
            pytest.param(RAW, None, SECOND, RAW.replace(b": 5", b": t4g.2.5"), id="its id"),
            pytest.param(RAW, {"a": 1}, FIRST, RAW.replace(b"{}", b'{"a":1}'), id="its message"),
            pytest.param(
                RAW, {"a": 1}, SECOND, RAW.replace(b": 5", b": t4g.2.5").replace(b"{}", b'{"a":1}'), id="both"
            ),
            pytest.param(b"id\ndata: {}\n\n", None, SECOND, b"id\ndata: {}\n\n", id="an id that resets"),
            pytest.param(b"data: {}\n\n", None, SECOND, b"data: {}\n\n", id="no id"),
            pytest.param(b": comment\n\n", None, SECOND, b": comment\n\n", id="a comment"),
        ],
    )
    def test_to_client(self, raw: bytes, mapped: Any, mark: Mark, expected: bytes) -> None:
        """Only the id and the message change; newlines, order and other fields stay."""
        assert event_to_client(raw, parse_event(raw), mapped, mark) == expected
