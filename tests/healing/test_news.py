"""What passes at a glance is what passes unchanged where it is read; the other way round nothing is promised."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from mcp_sidecar.healing.marked_ids import Mark, Renumbering
from mcp_sidecar.healing.position import Position
from mcp_sidecar.healing.stream_watch import StreamWatch
from mcp_sidecar.wire import news
from mcp_sidecar.wire.jsonrpc import Kind
from mcp_sidecar.wire.news import is_news
from mcp_sidecar.wire.sse import Block, EventSplitter
from tests.support.sessions import a_session

pytestmark = pytest.mark.skipif(not news.CAN_TELL, reason="msgspec is not installed")

NEWS = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}\n\n'
METHODS = (
    '"notifications/message"',
    '"notifications/tools/list_changed"',
    '"notifications/cancelled"',
    '"notifications/progress"',
    '"notifications/pro\\u0067ress"',
    '"ping"',
    '""',
    "null",
    "1",
    '"\\ud83d"',
)
NAMES = ('"jsonrpc"', '"method"', '"m\\u0065thod"', '"id"', '"\\u0069d"', '"params"', '"result"', '"error"', '"x"')
VALUES = (
    *("1", '"a"', "null", "true", "{}", "[]", "{", "1e999", "NaN", '"\\ud83d"', '"\xff"', "9" * 5000),
    *('{"requestId":1}', '{"progressToken":"new","progress":1}', '{"id":1}', "[" * 600 + "]" * 600),
)
LINES = (
    "",
    "event: message\n",
    "event: message\r\n",
    "event: other\n",
    "event:message\n",
    "id: 7\n",
    "retry: 1\n",
    ":\n",
)
ENDS = ("\n\n", "\r\n\r\n", "\n\r\n", "\r\r", "\r\n\r", "\n", "\n\n\n", "", "\ndata: {}\n\n", "\n\ndata: {}\n\n")


def events(count: int) -> Iterator[bytes]:
    """Random events of what they are made of, mostly whole."""
    luck = random.Random(7)
    for _ in range(count):
        names = luck.choices(NAMES, k=luck.randint(0, 4))
        members = [f"{name}:{luck.choice(METHODS if 'hod' in name else VALUES)}" for name in names]
        data = "{" + ",".join(members) + luck.choices(("}", "}}", "", "} ", "},{}"), (9, 1, 1, 1, 1))[0]
        begin = luck.choices(("data: ", "data:", "data:  ", "data: [", "dat: "), (9, 1, 1, 1, 1))[0]
        end = luck.choice(ENDS) if luck.random() < 0.4 else "\n\n"
        yield (luck.choice(LINES) + begin + data + end).encode("latin-1")


@pytest.mark.parametrize("generation", [1, 2])
def test_what_is_known_at_a_glance_changes_nothing_and_is_not_changed(generation: int) -> None:
    """In no session, healed or not, whatever was sent again in it."""
    known = 0
    for event in [NEWS, *events(40_000)]:
        if not is_news(event):
            continue
        known += 1
        splitter, session = EventSplitter(100_000), a_session()
        splitter.feed(b": hello\n\n")
        assert splitter.feed(event) == [Block(event)]
        session.progress.renumber(Renumbering({"a": 1, "new": 2}, {"new": "old"}))
        watch = StreamWatch(Mark("tag", generation, "word"), unanswered={1, 2}, progress=session.progress)
        raw, message = watch.relay(Block(event))
        assert raw == event
        assert (watch.last_event_id, watch.retry_ms, watch.heard) == (None, None, 0)
        if message is not None and not message.is_unread:
            assert message.kind is Kind.NOTIFICATION
            assert (watch.unanswered, watch.committed) == ({1, 2}, False)
            session.heard(message, watch.mark)
            session.progress.note_elsewhere(message)
            assert session.talk.questions is not None
            assert len(session.talk.questions) == 0
            assert session.progress.elsewhere == set()
        position = Position(session, None)
        position.advance(watch)
        assert position.last_seen is None
    assert known > 300


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(NEWS, id="LF"),
        pytest.param(NEWS.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(b"event: message\r\n" + NEWS.replace(b"\n", b"\r\n"), id="with its type"),
    ],
)
def test_what_servers_send_is_known(event: bytes) -> None:
    """In the spellings of the SDKs."""
    assert is_news(event)


def test_only_between_two_events_is_one_let_pass() -> None:
    """At the beginning there may be a mark; within an event or a comment it is a part of that; a long one comes in pieces."""
    splitter = EventSplitter(len(NEWS))
    assert not splitter.lets_pass(NEWS)
    assert splitter.feed(NEWS) == [Block(NEWS)]
    assert splitter.lets_pass(NEWS)
    for begun in (b"data: x\n", b": comment", b"d"):
        begun_splitter = EventSplitter(len(NEWS))
        begun_splitter.feed(NEWS)
        begun_splitter.feed(begun)
        assert not begun_splitter.lets_pass(NEWS)
    assert not EventSplitter(len(NEWS) - 1).lets_pass(NEWS)
    splitter.feed(b"data: x\r\r")
    assert splitter.lets_pass(NEWS)
    assert splitter.feed(b"\n") == [Block(b"\n")]
