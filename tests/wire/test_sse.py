"""The event stream codec: exact to the byte on every split, bounded, and faithful to what clients read."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire.sse import (
    KEEP_ALIVE,
    NO_FIELDS,
    Block,
    Event,
    EventSplitter,
    Fragment,
    encode_event,
    parse_event,
    with_data,
    with_id,
)
from tests.wire.recorded_streams import RECORDED, Recorded

NEWLINES = [pytest.param("\n", id="lf"), pytest.param("\r\n", id="crlf"), pytest.param("\r", id="cr")]
STREAMS = [pytest.param(recorded, id=recorded.source.split(",")[0]) for recorded in RECORDED]
AMPLE = 1 << 20

# Small alphabets make what matters frequent: newlines, field names, colons, and marks of the beginning.
stream_bytes = st.lists(
    st.sampled_from(
        [b"\n", b"\r", b"\r\n", b":", b" ", b"data", b"data:", b"id: 1", b"x", b"\xef\xbb\xbf", b"\xff", b"\0"]
    )
).map(b"".join)
cuts = st.lists(st.integers(0, 60), max_size=6)
texts = st.text(st.sampled_from("\n\rab :\ufeff\0\ud800é"), max_size=12)


def chunks_of(stream: bytes, cut_at: Iterable[int]) -> list[bytes]:
    places = [0, *sorted(min(place, len(stream)) for place in cut_at), len(stream)]
    return [stream[start:end] for start, end in pairwise(places)]


def split(chunks: Iterable[bytes], limit_bytes: int = AMPLE) -> tuple[list[Block | Fragment], EventSplitter]:
    splitter = EventSplitter(limit_bytes)
    return [piece for chunk in chunks for piece in splitter.feed(chunk)], splitter


def events_of(pieces: Iterable[Block | Fragment]) -> tuple[Event, ...]:
    events = (parse_event(piece.raw) for piece in pieces)
    return tuple(event for event in events if event != Event())


def joined(pieces: Iterable[Block | Fragment], splitter: EventSplitter) -> bytes:
    return b"".join(piece.raw for piece in pieces) + splitter.pending


def long_events(pieces: Iterable[Block | Fragment]) -> list[bytes]:
    """Each whole event that came as fragments."""
    raw, whole = b"", []
    for piece in pieces:
        if isinstance(piece, Fragment):
            raw += piece.raw
            if piece.last:
                whole.append(raw)
                raw = b""
    return whole


def fragmented_events_of(pieces: Iterable[Block | Fragment]) -> list[Event]:
    return [event for raw in long_events(pieces) if (event := parse_event(raw)) != Event()]


class TestSplitting:
    @pytest.mark.parametrize("newline", NEWLINES)
    @pytest.mark.parametrize("recorded", STREAMS)
    def test_every_split_gives_the_same_events_and_bytes(self, recorded: Recorded, newline: str) -> None:
        """Where a stream is cut into chunks changes neither its events nor one byte; nothing stays behind."""
        stream = recorded.text.replace("\n", newline).encode()
        for place in range(len(stream) + 1):
            pieces, splitter = split(chunks_of(stream, [place]))
            assert joined(pieces, splitter) == stream
            assert events_of(pieces) == recorded.events
            assert not splitter.pending

    @pytest.mark.parametrize("newline", NEWLINES)
    @pytest.mark.parametrize("recorded", STREAMS)
    def test_one_byte_at_a_time(self, recorded: Recorded, newline: str) -> None:
        """A chunk may be a single byte."""
        stream = recorded.text.replace("\n", newline).encode()
        pieces, splitter = split(stream[i : i + 1] for i in range(len(stream)))
        assert (events_of(pieces), joined(pieces, splitter)) == (recorded.events, stream)

    @pytest.mark.parametrize("newline", NEWLINES)
    @pytest.mark.parametrize("recorded", STREAMS)
    @pytest.mark.parametrize("limit_bytes", [0, 1, 5, 20, 60])
    def test_every_split_of_events_over_the_limit(self, recorded: Recorded, newline: str, limit_bytes: int) -> None:
        """An event over the limit comes as fragments, a shorter one as one block."""
        stream = recorded.text.replace("\n", newline).encode()
        whole, _ = split([stream])
        measured = [(piece.raw, len(piece.raw) - piece.raw.endswith(b"\r\n")) for piece in whole]
        long = [raw for raw, size in measured if size > limit_bytes and parse_event(raw) != Event()]
        for place in range(len(stream) + 1):
            pieces, splitter = split(chunks_of(stream, [place]), limit_bytes)
            assert joined(pieces, splitter) == stream
            assert fragmented_events_of(pieces) == [parse_event(raw) for raw in long]

    @pytest.mark.parametrize("stream", [b"a\r\n\r\n:c\r\r\nb\n\r\n\n", b"\xef\xbb\xbfa\r\r\n\r:\n\rb"])
    def test_every_three_chunks_of_mixed_newlines(self, stream: bytes) -> None:
        """All three newlines may be mixed in one stream, and any of them be cut."""
        expected = None
        for places in combinations_with_replacement(range(len(stream) + 1), 2):
            pieces, splitter = split(chunks_of(stream, places))
            blocks = [piece.raw.strip(b"\r\n") for piece in pieces]
            told = [raw for raw in blocks if raw and not raw.startswith((b":", b"\xef"))]
            expected = told if expected is None else expected
            assert told == expected
            assert joined(pieces, splitter) == stream

    @given(stream_bytes, cuts, st.integers(0, 30))
    def test_pieces_and_pending_are_the_stream(self, stream: bytes, cut_at: list[int], limit_bytes: int) -> None:
        """Whatever comes, no byte is lost, doubled or moved, and no more than the limit is held."""
        splitter = EventSplitter(limit_bytes)
        passed_on = taken = b""
        for chunk in chunks_of(stream, cut_at):
            pieces = splitter.feed(chunk)
            passed_on += b"".join(piece.raw for piece in pieces)
            taken += chunk
            assert passed_on + splitter.pending == taken
            assert len(splitter.pending) <= max(limit_bytes, 2)
            assert not any(piece.raw == b"" for piece in pieces)

    @given(stream_bytes, cuts, st.integers(0, 30))
    def test_events_do_not_depend_on_the_chunks(self, stream: bytes, cut_at: list[int], limit_bytes: int) -> None:
        """An event is a block or fragments by its length alone."""
        whole, _ = split([stream], limit_bytes)
        parts, _ = split(chunks_of(stream, cut_at), limit_bytes)
        assert events_of(p for p in parts if isinstance(p, Block)) == events_of(
            p for p in whole if isinstance(p, Block)
        )
        assert fragmented_events_of(parts) == fragmented_events_of(whole)


class TestPromptness:
    @pytest.mark.parametrize(
        ("chunks", "released"),
        [
            pytest.param([b"data: x\n", b"\n"], [[], [b"data: x\n\n"]], id="at its blank line"),
            pytest.param(
                [b"data: x\r\n\r", b"\ndata: y\r\n\r\n"],
                [[b"data: x\r\n\r"], [b"\n", b"data: y\r\n\r\n"]],
                id="before the line feed of its blank line",
            ),
            pytest.param([b"data: x\r\r", b"\n"], [[b"data: x\r\r"], [b"\n"]], id="a stray line feed at once"),
            pytest.param([b"data: x\r", b"\n", b"\r\n"], [[], [], [b"data: x\r\n\r\n"]], id="cut CRLF is one newline"),
            pytest.param([b": ping\n"], [[b": ping\n"]], id="a comment without a blank line"),
            pytest.param([b": pi", b"ng\r", b"\n"], [[], [b": ping\r"], [b"\n"]], id="a cut comment"),
            pytest.param([b": a\n\n: b\ndata: x\n\n"], [[b": a\n\n: b\n", b"data: x\n\n"]], id="comments go first"),
            pytest.param([b"data: x\n: c\n", b"\n"], [[], [b"data: x\n: c\n\n"]], id="a comment inside stays inside"),
            pytest.param([b": a\n: b", b"\n"], [[b": a\n"], [b": b\n"]], id="a whole comment before a cut one"),
            pytest.param([b": a\ndata", b":\n\n"], [[b": a\n"], [b"data:\n\n"]], id="a comment before a cut event"),
            pytest.param([b"\n\n"], [[b"\n\n"]], id="blank lines"),
            pytest.param([b"\xef", b"\xbb\xbf"], [[], [b"\xef\xbb\xbf"]], id="a byte order mark"),
            pytest.param([b"\xef", b"x\n\n"], [[], [b"\xefx\n\n"]], id="no byte order mark"),
            pytest.param([b"", b"\xef\xbb\xbf:\n"], [[], [b"\xef\xbb\xbf", b":\n"]], id="a comment behind the mark"),
            pytest.param([b"\n\xef\xbb\xbf:\n\n"], [[b"\n", b"\xef\xbb\xbf:\n\n"]], id="a mark elsewhere is a field"),
        ],
    )
    def test_a_piece_goes_as_soon_as_it_is_whole(self, chunks: list[bytes], released: list[list[bytes]]) -> None:
        """Nothing waits for bytes that it does not need."""
        splitter = EventSplitter(AMPLE)
        assert [[piece.raw for piece in splitter.feed(chunk)] for chunk in chunks] == released
        assert not splitter.pending

    @pytest.mark.parametrize(
        ("chunk", "pending"),
        [
            pytest.param(b"data: x\n", b"data: x\n", id="an event"),
            pytest.param(b": x", b": x", id="a comment"),
            pytest.param(b"\xef\xbb", b"\xef\xbb", id="half a byte order mark"),
        ],
    )
    def test_what_is_not_whole_is_pending(self, chunk: bytes, pending: bytes) -> None:
        """A stream that ends inside an event says so and gives back what it held."""
        pieces, splitter = split([chunk])
        assert (pieces, splitter.pending) == ([], pending)


class TestLongEvents:
    def test_fragments_follow_one_another_until_the_blank_line(self) -> None:
        """Over the limit an event is passed on as it comes; the next one is a block again."""
        splitter = EventSplitter(12)
        assert splitter.feed(b"id: 1\ndata:") == []
        assert splitter.feed(b" abc") == [Fragment(b"id: 1\ndata: abc", last=False)]
        assert splitter.pending == b""
        assert splitter.feed(b"def\nda") == [Fragment(b"def\nda", last=False)]
        assert splitter.feed(b"ta: g\n\n: c\n") == [Fragment(b"ta: g\n\n", last=True), Block(b": c\n")]
        assert not splitter.pending
        assert splitter.feed(b"data: x\n\n") == [Block(b"data: x\n\n")]

    def test_a_cut_newline_in_a_fragment_is_one(self) -> None:
        """A CRLF cut between two fragments does not end the event."""
        pieces, splitter = split([b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n"], limit_bytes=3)
        assert long_events(pieces) == [b"data: a\r\ndata: b\r\n\r"]
        assert pieces[-1] == Block(b"\n")
        assert not splitter.pending

    @pytest.mark.parametrize("chunks", [[b"data: 12\r\n\r\n"], [b"data: 12\r\n\r", b"\n"], [b"data: 12\r", b"\n\r\n"]])
    @pytest.mark.parametrize(("limit_bytes", "kind"), [(11, Block), (10, Fragment)])
    def test_the_limit_is_exact(self, chunks: list[bytes], limit_bytes: int, kind: type) -> None:
        """An event of just the limit is a block; the last line feed of a CRLF, which may be cut off, is not counted."""
        pieces, _ = split(chunks, limit_bytes)
        assert isinstance(pieces[0], kind)

    def test_an_endless_comment_is_passed_on(self) -> None:
        """A comment has no end to wait for either; it carries no data and ends with its line."""
        splitter = EventSplitter(4)
        assert splitter.feed(b": abc") == [Fragment(b": abc", last=False)]
        assert splitter.feed(b"data: d\n: e\n") == [Fragment(b"data: d\n", last=True), Block(b": e\n")]

    @pytest.mark.parametrize(
        "chunk",
        [
            pytest.param(b"data: xxxxxxxxxx", id="line"),
            pytest.param(b"data: x\n" * 2, id="small lines"),
            pytest.param(b"data: x\r\n" * 2, id="small lines with CRLF"),
            pytest.param(b"data: x\r" * 2, id="small lines with CR"),
            pytest.param(b"data", id="a name that never ends"),
            pytest.param(b"id: 1\n", id="ids"),
            pytest.param(b"\0\xff" * 10, id="no text"),
        ],
    )
    @pytest.mark.parametrize("at_a_time", [1, 7, 1000])
    def test_memory_is_bounded_against_endless_events(self, chunk: bytes, at_a_time: int) -> None:
        """An event that never ends is held up to the limit only, and nothing of what has passed is kept."""
        splitter = EventSplitter(1000)
        stream = chunk * (20_000 // len(chunk))
        held = []
        for place in range(0, len(stream), at_a_time):
            pieces = splitter.feed(stream[place : place + at_a_time])
            held.append(len(splitter.pending))
        assert max(held) <= 1000
        assert all(isinstance(piece, Fragment) and not piece.last for piece in pieces)
        assert len(pickle.dumps(splitter)) < 3000

    @pytest.mark.parametrize(
        ("chunk", "is_event"),
        [
            pytest.param(b": " + b"x" * 50, True, id="a comment"),
            pytest.param(b": x\n", False, id="comments"),
            pytest.param(b"\n", False, id="line feeds"),
            pytest.param(b"\r", False, id="carriage returns"),
            pytest.param(b"\r\n", False, id="both"),
        ],
    )
    def test_memory_is_bounded_where_no_event_comes(self, chunk: bytes, is_event: bool) -> None:
        """What stands between two events goes at once; a comment without an end as an event would."""
        splitter = EventSplitter(1000)
        for _ in range(2000):
            splitter.feed(chunk)
        assert len(splitter.pending) <= 1000
        assert isinstance(splitter.feed(chunk)[0], Fragment) is is_event
        assert len(pickle.dumps(splitter)) < 3000


@pytest.mark.parametrize("line", [b"\n", b"\r\n", b"\r", b":\n", b": keep-alive\r\n\r\n"])
def test_what_says_nothing_is_looked_at_once(line: bytes) -> None:
    """Blank lines and comments that come together are one piece, and its lines are not read one by one."""
    pieces, _ = split([line * 10_000, b"data: x\n\n"])
    (nothing, event) = (piece for piece in pieces if isinstance(piece, Block) and len(piece.raw) > 1)
    assert nothing.event is NO_FIELDS
    assert event.event.data == "x"


@given(stream_bytes, cuts)
def test_a_piece_says_what_its_lines_say(stream: bytes, cut_at: list[int]) -> None:
    """Whether a piece has fields is told by its first byte; a look at every line finds the same."""
    pieces, _ = split(chunks_of(stream, cut_at))
    assert all(piece.event == parse_event(piece.raw) for piece in pieces if isinstance(piece, Block))


class TestParseEvent:
    @pytest.mark.parametrize(
        ("raw", "event"),
        [
            pytest.param(b"\n", Event(), id="nothing"),
            pytest.param(KEEP_ALIVE, Event(), id="the keep-alive says nothing"),
            pytest.param(b"data\n\n", Event(data=""), id="a name without a colon"),
            pytest.param(b"data:a\ndata: b\ndata:  c\n\n", Event(data="a\nb\n c"), id="one space is not data"),
            pytest.param(b"id: a\nid: b\n\n", Event(id="b"), id="the last id"),
            pytest.param(b"id: a\nid: b\0\n\n", Event(id="a"), id="an id with NUL is ignored"),
            pytest.param(b"id\n\n", Event(id=""), id="an empty id resets"),
            pytest.param(b"event: a\revent: b\r\n\n", Event(event="b"), id="mixed newlines"),
            pytest.param(b"retry: 10\n\n", Event(retry=10), id="retry"),
            pytest.param(b"retry: 1.5\nretry: -1\nretry:\n\n", Event(), id="no retry"),
            pytest.param(b"retry: " + b"9" * 5000 + b"\n\n", Event(), id="a retry of many digits"),
            pytest.param("retry: ٣\n\n".encode(), Event(), id="digits are ASCII"),
            pytest.param(b"data: \xff\xe4\n\n", Event(data="\ufffd\ufffd"), id="not UTF-8"),
            pytest.param(b"\xef\xbb\xbfdata: a\n\n", Event(data="a"), id="byte order mark"),
            pytest.param(b"\ndata: a\n\n", Event(data="a"), id="a stray line feed ahead"),
            pytest.param(b"data: a", Event(data="a"), id="cut off"),
            pytest.param(b" data: a\nData: b\n\n", Event(), id="names are exact"),
        ],
    )
    def test_fields_as_a_client_reads_them(self, raw: bytes, event: Event) -> None:
        """Field syntax follows the HTML standard; what is missing is None."""
        assert parse_event(raw) == event

    @given(st.binary(max_size=60) | stream_bytes)
    def test_never_raises(self, raw: bytes) -> None:
        """Any bytes are some event, and what it says can be encoded again."""
        event = parse_event(raw)
        (event.data or "").encode()
        assert event.id is None or "\0" not in event.id

    @given(stream_bytes.filter(lambda raw: not raw.startswith(b"\xef\xbb\xbf")))
    def test_a_long_event_is_read_like_a_short_one(self, raw: bytes) -> None:
        """A comment in front changes nothing, however long it is."""
        assert parse_event(b":" + b"x" * 5000 + b"\n" + raw) == parse_event(raw)


class TestChangingEvents:
    @pytest.mark.parametrize(
        ("raw", "data", "changed"),
        [
            pytest.param(b"id:1\r\ndata:a\r\n:c\r\n\r\n", "b", b"id:1\r\ndata: b\r\n:c\r\n\r\n", id="in its place"),
            pytest.param(b"data: a\rdata: b\r\r", "c\nd\r\ne", b"data: c\rdata: d\rdata: e\r\r", id="many lines"),
            pytest.param(b"data: a\nid: 1\ndata: b\n\n", "", b"data: \nid: 1\n\n", id="lines between stay"),
            pytest.param(b"id: 1\n\n", "a", b"id: 1\ndata: a\n\n", id="added at the end"),
            pytest.param(b"\r\n", "a", b"data: a\r\n\r\n", id="added to nothing"),
            pytest.param(b"", "a", b"data: a\n", id="no bytes"),
            pytest.param(b"id: 1", "a", b"id: 1\ndata: a", id="added to a cut line"),
            pytest.param(b"data: 1", "a\nb", b"data: a\ndata: b", id="a cut line"),
            pytest.param(b"\xef\xbb\xbfdata: a\n\n", "b", b"\xef\xbb\xbfdata: b\n\n", id="byte order mark"),
            pytest.param(b"data: a\n\n", "\ud800", b"data: ?\n\n", id="a lone surrogate cannot be sent"),
        ],
    )
    def test_with_data(self, raw: bytes, data: str, changed: bytes) -> None:
        """Only the data lines change; order, newline style and everything else stay."""
        assert with_data(raw, data) == changed

    @pytest.mark.parametrize(
        ("raw", "changed"),
        [
            pytest.param(b"id:1\r\ndata:a\r\n\r\n", b"id: g\r\ndata:a\r\n\r\n", id="in its place"),
            pytest.param(b"id: 1\ndata: a\nid: 2\n\n", b"id: g\ndata: a\n\n", id="only one remains"),
            pytest.param(b"data: a\r\r", b"data: a\rid: g\r\r", id="added"),
        ],
    )
    def test_with_id(self, raw: bytes, changed: bytes) -> None:
        """Only the id changes."""
        assert with_id(raw, "g") == changed

    def test_an_event_of_many_lines(self) -> None:
        """Each line is looked at once: with the square of their number this would not end."""
        lines = b"data: x\n" * 300_000
        assert with_data(b"id: 1\n" + lines + b"\n", "a") == b"id: 1\ndata: a\n\n"

    @given(stream_bytes, texts)
    def test_with_data_law(self, raw: bytes, data: str) -> None:
        """The new event reads as the old one with the new data, and all other lines are the same bytes."""
        changed = with_data(raw, data)
        old, new = parse_event(raw), parse_event(changed)
        sent = re.sub("\r\n?", "\n", data).encode(errors="replace").decode()
        assert new == Event(old.event, sent, old.id, old.retry)
        assert other_lines(changed, b"data") == other_lines(raw, b"data")

    @given(stream_bytes, texts)
    def test_with_id_law(self, raw: bytes, new_id: str) -> None:
        """The new event reads as the old one with the new id; what cannot be an id is refused."""
        if set(new_id) & set("\n\r\0"):
            with pytest.raises(ValueError, match="newline or NUL"):
                with_id(raw, new_id)
            return
        changed = with_id(raw, new_id)
        old, new = parse_event(raw), parse_event(changed)
        assert new == Event(old.event, old.data, new_id.encode(errors="replace").decode(), old.retry)
        assert other_lines(changed, b"id") == other_lines(raw, b"id")


def other_lines(raw: bytes, name: bytes) -> list[bytes]:
    lines = re.split(rb"\r\n?|\n", raw.removeprefix(b"\xef\xbb\xbf"))
    return [line for line in lines if line and line.partition(b":")[0] != name]


class TestEncodeEvent:
    @pytest.mark.parametrize(
        ("encoded", "raw"),
        [
            pytest.param(encode_event("{}"), b"event: message\ndata: {}\n\n", id="a message"),
            pytest.param(encode_event(b"a\nb", event=None), b"data: a\ndata: b\n\n", id="bytes, two lines, no name"),
            pytest.param(encode_event("", id="7"), b"event: message\nid: 7\ndata: \n\n", id="priming"),
        ],
    )
    def test_an_event_of_our_own(self, encoded: bytes, raw: bytes) -> None:
        """Our own events look like those of the SDKs."""
        assert encoded == raw

    @pytest.mark.parametrize("field", ["a\nb", "a\r", "\0"])
    def test_a_field_is_one_line(self, field: str) -> None:
        """A name or id can smuggle no other field in."""
        with pytest.raises(ValueError, match="newline or NUL"):
            encode_event("{}", event=field)
        with pytest.raises(ValueError, match="newline or NUL"):
            encode_event("{}", id=field)

    @given(texts)
    def test_encoded_is_one_block_that_reads_the_same(self, data: str) -> None:
        """What is encoded comes out of a splitter as one block with the same data."""
        raw = encode_event(data, id="1")
        assert EventSplitter(AMPLE).feed(raw) == [Block(raw)]
        assert parse_event(raw).data == re.sub("\r\n?", "\n", data).encode(errors="replace").decode()
