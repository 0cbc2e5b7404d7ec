"""What is seen on a response stream, and what its end means."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.marked_ids import Mark, Renumbering
from mcp_sidecar.healing.progress import Progress
from mcp_sidecar.healing.stream_watch import AfterEnd, Ending, StreamWatch, after_end, unanswered_ids
from mcp_sidecar.wire.jsonrpc import UNREAD, Message
from mcp_sidecar.wire.sse import Block, EventSplitter, Fragment, encode_event
from tests.healing import samples

FIRST, SECOND = (Mark("t", generation, str(generation)) for generation in (1, 2))
RESULT: Final = samples.response(1)
LIMIT: Final = 64


def watch(*, mark: Mark = FIRST, waiting: Any = (1,), **more: Any) -> StreamWatch:
    return StreamWatch(mark, unanswered=set(waiting), **more)


def event(value: Any, **fields: Any) -> Block:
    data = json.dumps(value.value if isinstance(value, Message) else value)
    return Block(encode_event(data, **fields))


def progress(value: Any) -> Message:
    return samples.notification("notifications/progress", progressToken="p", progress=value)


def relay(stream: StreamWatch, *pieces: Block | Fragment) -> bytes:
    return b"".join(stream.relay(piece)[0] for piece in pieces)


def fragments(data: bytes, cut: int = 10, *, head: bytes = b"", tail: bytes = b"") -> list[Block | Fragment]:
    """One event over the limit, as the splitter gives it."""
    splitter = EventSplitter(LIMIT)
    raw = head + b"data: " + data + b"\n" + tail + b"\n"
    return [piece for at in range(0, len(raw), cut) for piece in splitter.feed(raw[at : at + cut])]


def long_answer(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members, "result": {"text": "x" * 100}}).encode()


class TestRelay:
    """What the client gets, and what is remembered of it."""

    def test_bytes_pass_untouched(self) -> None:
        """In the first generation nothing is changed, comments and priming events included."""
        pieces = [Block(b": hi\n\n"), Block(b"id: 1\ndata:\n\n"), Block(b"retry: 5\r\rdata: {}\n\n"), event(RESULT)]
        assert relay(watch(), *pieces) == b"".join(piece.raw for piece in pieces)

    def test_later_generations_are_marked(self) -> None:
        """A question and its event id get the mark of their generation."""
        raw = relay(watch(mark=SECOND), event(samples.request("ping", id=3), id="9"))
        assert b"id: t.2.9\n" in raw
        assert b'"id":"t.2.3"' in raw

    def test_the_message_is_handed_over_once(self) -> None:
        """The caller learns from the message as the upstream sent it."""
        _, message = watch(mark=SECOND).relay(event(samples.request("ping", id=3)))
        assert message is not None
        assert message.id == 3

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"hello", id="text"),
            pytest.param(b"\xff\xfe", id="no UTF-8"),
            pytest.param(b'{"id":', id="cut"),
        ],
    )
    def test_no_message(self, data: bytes) -> None:
        """An event that holds no JSON passes, too."""
        block = Block(b"data: " + data + b"\n\n")
        assert watch().relay(block) == (block.raw, None)

    @pytest.mark.parametrize(
        ("pieces", "last", "retry_ms"),
        [
            pytest.param([b"data: {}\n\n"], None, None, id="none"),
            pytest.param([b"id: 1\ndata:\n\n"], "1", None, id="priming"),
            pytest.param([b"id: 1\ndata: {}\n\n", b"data: {}\n\n"], "1", None, id="kept"),
            pytest.param([b"id: 1\ndata: {}\n\n", b"id\ndata: {}\n\n"], None, None, id="reset"),
            pytest.param([b"id: 1\nretry: 10\n\n", b"id: 2\nretry: x\n\n"], "2", 10, id="retry"),
        ],
    )
    def test_where_the_stream_stands(self, pieces: list[bytes], last: str | None, retry_ms: int | None) -> None:
        """The last event id is the upstream's own, as a client keeps it."""
        stream = watch(mark=SECOND)
        relay(stream, *map(Block, pieces))
        assert (stream.last_event_id, stream.retry_ms, stream.blocks) == (last, retry_ms, len(pieces))


class TestAnswered:
    """Who still waits."""

    @pytest.mark.parametrize(
        ("message", "waiting", "left"),
        [
            pytest.param(RESULT, {1}, set(), id="a result"),
            pytest.param(samples.response(1, error={"code": 1, "message": "m"}), {1}, set(), id="an error"),
            pytest.param(samples.response("1"), {1}, {1}, id="text is not a number"),
            pytest.param(samples.response(2), {1}, {1}, id="somebody else's"),
            pytest.param(
                samples.message(id=None, error={"code": 1, "message": "m"}), {1}, {1}, id="an error without id"
            ),
            pytest.param(samples.batch(samples.response(1), samples.response(2)), {1, 2, 3}, {3}, id="a batch"),
            pytest.param(samples.request("ping", id=1), {1}, {1}, id="a question with the same id"),
        ],
    )
    def test_who_is_left(self, message: Message, waiting: set[Any], left: set[Any]) -> None:
        """Exactly the request with this id is answered."""
        stream = watch(waiting=waiting)
        stream.answer_whole(message)
        assert stream.unanswered == left
        assert stream.answered is (not left)

    def test_a_second_try(self) -> None:
        """The answer to the new id is the answer to the old one."""
        stream = watch(renumbered=Renumbering(ids={"new": 1}))
        assert stream.answer_whole(samples.response("new")) == {**RESULT.value, "id": 1}
        assert stream.answered

    @pytest.mark.parametrize("message", [UNREAD, samples.NO_MESSAGE], ids=["unread", "no message"])
    def test_what_was_not_read_may_be_the_answer(self, message: Message) -> None:
        """Then nobody knows who waits; under an id of ours the client could not take it, and is told at the end."""
        stream, renumbered = watch(), watch(renumbered=Renumbering(ids={"new": 1}))
        assert stream.answer_whole(message) is renumbered.answer_whole(message) is None
        assert stream.unanswered == (None if message is UNREAD else {1})
        assert renumbered.unanswered == {1}
        assert renumbered.misaddressed is (message is UNREAD)

    @pytest.mark.parametrize(
        ("message", "heard"),
        [
            pytest.param(RESULT, 1, id="an answer"),
            pytest.param(samples.response(2), 0, id="an answer to another"),
            pytest.param(samples.notification("notifications/progress", progressToken=1), 1, id="progress"),
            pytest.param(samples.notification("notifications/message"), 0, id="a log message"),
            pytest.param(samples.request("ping", id=1), 0, id="a question"),
        ],
    )
    def test_what_concerns_the_requests(self, message: Message, heard: int) -> None:
        """Only that shows that a resumed stream is the right one."""
        stream = watch()
        stream.relay(event(message))
        assert stream.heard == heard

    def test_unanswered_ids(self) -> None:
        """A POST waits for each of its requests."""
        assert unanswered_ids(samples.batch(samples.call(id=1), RESULT, samples.call(id="2"))) == {1, "2"}

    @pytest.mark.parametrize(
        ("message", "ids"),
        [
            pytest.param(samples.call(id=1), {1}, id="a request"),
            pytest.param(samples.notification("notifications/progress"), set(), id="a notification"),
            pytest.param(RESULT, set(), id="a response"),
            pytest.param(samples.NO_MESSAGE, None, id="no message"),
            pytest.param(UNREAD, None, id="unread"),
        ],
    )
    def test_whether_the_ids_are_known(self, message: Message, ids: set[Any] | None) -> None:
        """Nobody waits, or nobody knows: these are not the same."""
        assert unanswered_ids(message) == ids

    @pytest.mark.parametrize(
        "pieces", [[event(RESULT)], fragments(b"[" + long_answer(id=1) + b"]")], ids=["whole", "large"]
    )
    def test_unknown_ids_stay_unknown(self, pieces: list[Block | Fragment]) -> None:
        """Whoever else waits behind an answer is not known either."""
        stream = StreamWatch(FIRST, unanswered=None)
        relay(stream, *pieces)
        assert stream.unanswered is None
        assert not stream.answered


class TestCommitted:
    """After what the client has seen a request may not begin anew."""

    @pytest.mark.parametrize(
        ("piece", "committed"),
        [
            pytest.param(Block(b"id: 1\ndata:\n\n"), False, id="priming"),
            pytest.param(event(samples.notification("notifications/message")), False, id="a log message"),
            pytest.param(event(samples.notification("notifications/progress", progressToken=1)), True, id="progress"),
            pytest.param(event(samples.request("sampling/createMessage")), True, id="a question"),
            pytest.param(event(samples.batch(RESULT, samples.request("ping", id=9))), True, id="one in a batch"),
            pytest.param(fragments(long_answer(id=1))[0], True, id="a part of something large"),
        ],
    )
    def test_committed(self, piece: Block | Fragment, committed: bool) -> None:
        """Progress must not restart and a person must not be asked twice (basic, "Requests"; progress)."""
        stream = watch()
        stream.relay(piece)
        assert stream.committed is committed

    @pytest.mark.parametrize(
        ("piece", "committed"),
        [
            pytest.param(event(progress(1)), False, id="progress"),
            pytest.param(event(samples.batch(progress(1))), True, id="in a batch"),
            pytest.param(event(progress("far")), True, id="no number"),
            pytest.param(event(samples.notification("notifications/progress", progress=1)), True, id="of nothing"),
            pytest.param(event(samples.request("sampling/createMessage")), True, id="a question"),
        ],
    )
    def test_committed_where_progress_is_watched(self, piece: Block | Fragment, committed: bool) -> None:
        """What can be held back when it comes again does not keep a request from going again."""
        stream = watch(progress=Progress())
        stream.relay(piece)
        assert stream.committed is committed

    def test_what_would_go_back_is_held_back(self) -> None:
        """Of the next run only what is further than the one before."""
        stream = watch(progress=Progress())
        assert relay(stream, event(progress(1)), event(progress(2)))
        stream.mark = SECOND
        assert relay(stream, event(progress(1)), event(progress(2))) == b""
        assert b'"progress":2.5' in relay(stream, event(progress(2.5))).replace(b" ", b"")


class TestFragments:
    """An event too large to be held passes unread."""

    def test_nobody_knows_who_waits(self) -> None:
        """Any request may have been answered in it. Its bytes pass as they are."""
        stream = watch()
        data = long_answer(id=1)
        assert relay(stream, *fragments(data)) == b"data: " + data + b"\n\n"
        assert stream.unanswered is None
        assert not stream.in_fragment

    def test_what_does_not_end_answers_nobody(self) -> None:
        """Only at its end is there something to know."""
        stream = watch()
        relay(stream, *fragments(long_answer(id=1))[:-1])
        assert stream.unanswered == {1}

    @pytest.mark.parametrize(
        ("head", "tail", "last", "seen"),
        [
            pytest.param(b"id: 5\n", b"", "5", b"id: t.2.5\n", id="an id"),
            pytest.param(b"event: message\rid: 5\r", b"", "5", b"\rid: t.2.5\r", id="carriage returns"),
            pytest.param(b"id\n", b"", None, b"id\n", id="an id that resets"),
            pytest.param(b"", b"", "4", b"data: ", id="none"),
            pytest.param(b"", b"id: 5\n", "4", b"\nid: 5\n", id="behind the data: not seen, hence not resumed from"),
        ],
    )
    def test_its_id(self, head: bytes, tail: bytes, last: str | None, seen: bytes) -> None:
        """A large event's id counts and is marked as any other's, if it comes first, as servers send it."""
        stream = watch(mark=SECOND)
        stream.last_event_id = "4"
        raw = relay(stream, *fragments(long_answer(id=1), 40, head=head, tail=tail))
        assert seen in raw
        assert len(raw.splitlines()) == len((head + b"data: x\n" + tail + b"\n").splitlines())
        assert stream.last_event_id == last

    def test_its_retry(self) -> None:
        """So does its wish for a pause."""
        stream = watch()
        relay(stream, *fragments(long_answer(id=1), head=b"retry: 7\n"))
        assert stream.retry_ms == 7

    def test_a_second_try(self) -> None:
        """An answer in it bears an id that the client does not know: it still waits."""
        stream = watch(renumbered=Renumbering(ids={"new": 1}))
        relay(stream, *fragments(long_answer(id="new")))
        assert stream.unanswered == {1}
        assert stream.misaddressed

    def test_in_the_middle(self) -> None:
        """Between its pieces nothing else may be written."""
        stream = watch()
        seen = []
        for piece in fragments(long_answer(id=1)):
            stream.relay(piece)
            seen.append(stream.in_fragment)
        assert seen == [True] * (len(seen) - 1) + [False]

    @given(st.binary(min_size=LIMIT, max_size=3 * LIMIT), st.integers(1, 20))
    def test_any_bytes(self, data: bytes, cut: int) -> None:
        """Whatever comes passes."""
        stream = watch()
        pieces = fragments(data, cut)
        assert relay(stream, *pieces) == b"".join(piece.raw for piece in pieces)
        assert stream.unanswered in ({1}, None)


CLEAN, BROKEN = Ending
FINISH, RESUME, RESEND, TELL, ASK, CUT = AfterEnd

NOTHING: Final[dict[str, Any]] = {}
UNKNOWN: Final[dict[str, Any]] = {"unanswered": None}
ANSWERED: Final[dict[str, Any]] = {"unanswered": set()}
NUMBERED: Final[dict[str, Any]] = {"last_event_id": "5"}
RENUMBERED: dict[str, Any] = {"renumbered": Renumbering({"mcp-sidecar-1": 7}, {})}
COMMITTED: Final[dict[str, Any]] = {"committed": True}
MISADDRESSED: Final[dict[str, Any]] = {"misaddressed": True}
MIDDLE: Final[dict[str, Any]] = {"in_fragment": True}


class TestAfterEnd:
    """The end of a POST's stream."""

    @pytest.mark.parametrize(
        ("seen", "ending", "may", "after"),
        [
            pytest.param(ANSWERED, CLEAN, "", FINISH, id="answered"),
            pytest.param(ANSWERED, BROKEN, "", FINISH, id="answered, then broken"),
            pytest.param(ANSWERED | NUMBERED, BROKEN, "resume resend", FINISH, id="answered, whatever one may"),
            pytest.param(UNKNOWN, CLEAN, "", FINISH, id="unknown ids, a clean end"),
            pytest.param(UNKNOWN | NUMBERED, BROKEN, "resume resend", CUT, id="unknown ids, broken"),
            pytest.param(NUMBERED | MISADDRESSED, CLEAN, "resume resend", TELL, id="answered under a foreign id"),
            pytest.param(NUMBERED, CLEAN, "resume resend", FINISH, id="polling is no failure"),
            pytest.param(NUMBERED | RENUMBERED, CLEAN, "resume", RESUME, id="polling for an id that only we know"),
            pytest.param(NUMBERED | RENUMBERED, CLEAN, "", TELL, id="the same, and no resume"),
            pytest.param(NUMBERED, BROKEN, "resume", RESUME, id="broken, with an id"),
            pytest.param(NUMBERED, BROKEN, "resume resend", RESUME, id="resuming comes first"),
            pytest.param(NUMBERED | COMMITTED, BROKEN, "resume resend", RESUME, id="progress goes on where it was"),
            pytest.param(NUMBERED, BROKEN, "resend", RESEND, id="cannot be resumed"),
            pytest.param(NUMBERED, BROKEN, "", TELL, id="neither"),
            pytest.param(NOTHING, BROKEN, "resume", TELL, id="nothing to resume from"),
            pytest.param(NOTHING, BROKEN, "resume resend", RESEND, id="harmless"),
            pytest.param(NOTHING, CLEAN, "resend", RESEND, id="a clean end without id or answer"),
            pytest.param(NOTHING, CLEAN, "", TELL, id="a clean end without id or answer, unsafe"),
            pytest.param(COMMITTED, BROKEN, "resend", TELL, id="begun before the client's eyes"),
            pytest.param(MIDDLE, BROKEN, "resume resend", CUT, id="in the middle of an event"),
            pytest.param(MIDDLE | NUMBERED, CLEAN, "resume resend", CUT, id="a clean end in the middle of an event"),
            pytest.param(MIDDLE | ANSWERED, BROKEN, "", CUT, id="in the middle, answered"),
        ],
    )
    def test_after_end(self, seen: dict[str, Any], ending: Ending, may: str, after: AfterEnd) -> None:
        """A break is never passed on as if the stream were whole, and polling is none."""
        stream = watch()
        for name, value in seen.items():
            setattr(stream, name, value)
        assert after_end(stream, ending, may_resend="resend" in may, may_resume="resume" in may) is after

    @given(st.sampled_from(Ending), *[st.booleans()] * 6)
    def test_an_unanswered_break_is_never_an_end(
        self, ending: Ending, answered: bool, numbered: bool, committed: bool, middle: bool, resend: bool, resume: bool
    ) -> None:
        """Whoever waits gets an answer, an error, or a cut; only polling ends without."""
        stream = watch(waiting=() if answered else (1,))
        stream.last_event_id, stream.committed, stream.in_fragment = "5" if numbered else None, committed, middle
        after = after_end(stream, ending, may_resend=resend, may_resume=resume)
        if after is FINISH:
            assert answered or (ending is CLEAN and numbered)
        assert after is not RESEND or (resend and not committed)
        assert after is not RESUME or (resume and numbered and ending is BROKEN)
