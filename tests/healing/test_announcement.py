"""The text block that tells the model of a heal: where it goes, and where it never does."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mcp_sidecar.healing.announcement import Announcement, calls_in, with_block
from mcp_sidecar.healing.hints import RESTARTED, restarted
from mcp_sidecar.healing.marked_ids import Mark, Renumbering
from mcp_sidecar.healing.policy import Announce
from mcp_sidecar.healing.session import Event, Session, UpstreamSessionId
from mcp_sidecar.healing.stream_watch import StreamWatch
from mcp_sidecar.wire.jsonrpc import dump, parse
from mcp_sidecar.wire.sse import Block, parse_event
from tests.healing import samples
from tests.support.sessions import a_session

BLOCK: Final = {"type": "text", "text": RESTARTED}
TEXT: Final = {"type": "text", "text": "done"}


def answer(id: Any = 1, **result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": {"content": [TEXT], **result}}


def healed_session() -> Session:
    session = a_session("s")
    heal(session)
    return session


def heal(session: Session) -> None:
    session.fire(Event.LOSS_SEEN)
    session.repoint(UpstreamSessionId("t"), tools_still_hold=True)


@pytest.mark.parametrize(
    "result",
    [
        pytest.param({}, id="plain"),
        pytest.param({"isError": False}, id="no error"),
        pytest.param({"structuredContent": {"x": 1}, "_meta": {}}, id="structured"),
        pytest.param({"content": []}, id="nothing said"),
    ],
)
def test_a_successful_result_carries_it(result: dict[str, Any]) -> None:
    """One block more at the end; every other member stays."""
    before = answer(**result)
    after = with_block(before, {1})
    assert after is not None
    assert after["result"].pop("content") == [*before["result"]["content"], BLOCK]
    assert after == {**before, "result": {k: v for k, v in before["result"].items() if k != "content"}}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(answer(isError=True), id="isError"),
        pytest.param(answer(id=2), id="another request"),
        pytest.param(answer(id=True), id="no id"),
        pytest.param(answer(id=[1]), id="a list for an id"),
        pytest.param(answer(content=None), id="no content"),
        pytest.param(answer(content="done"), id="content is no list"),
        pytest.param({"jsonrpc": "2.0", "id": 1, "result": {"task": {"taskId": "t"}}}, id="a task"),
        pytest.param({"jsonrpc": "2.0", "id": 1, "result": None}, id="no result"),
        pytest.param({"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no"}}, id="error"),
        pytest.param({"jsonrpc": "2.0", "id": 1, "method": "ping", "result": {"content": []}}, id="a question"),
        pytest.param([[answer()]], id="a batch in a batch"),
        pytest.param([], id="empty batch"),
        pytest.param(None, id="not parsed"),
        pytest.param(7, id="a number"),
    ],
)
def test_nothing_else_does(value: Any) -> None:
    """Never in an error, a result that failed, or what is no tool result."""
    assert with_block(value, {1}) is None


def test_one_result_of_a_batch() -> None:
    """The first that can carry it, and no other."""
    batch = [answer(1, isError=True), answer(9), answer(2), answer(3)]
    after = with_block(batch, {1, 2, 3})
    assert after == [batch[0], batch[1], answer(2, content=[TEXT, BLOCK]), batch[3]]


def test_which_requests_wait_for_a_tool_result() -> None:
    """Tool calls, and not those that run as tasks."""
    requests = [samples.call(id=1), samples.call(id=2, task={}), samples.request("tasks/result", id=3)]
    assert calls_in(requests) == {1}


class TestOncePerHeal:
    """The block goes out once for each heal."""

    def test_only_the_first_result(self) -> None:
        """The second result passes untouched, until the next heal."""
        session = healed_session()
        announcing = Announcement(session, frozenset({1}))
        assert announcing.added_to(answer(isError=True), 2) is None
        assert announcing.added_to(answer(), 2) is not None
        assert announcing.added_to(answer(), 2) is None
        heal(session)
        assert announcing.added_to(answer(), 3) is not None
        assert announcing.added_to(answer(), 3) is None

    def test_not_before_a_heal(self) -> None:
        """A session that was never healed has nothing to tell."""
        session = healed_session()
        session.note_told_restart()
        assert Announcement(session, frozenset({1})).added_to(answer(), 2) is None

    def test_not_in_an_older_server_s_result(self) -> None:
        """What the old server still answers is no news of the new one."""
        assert Announcement(healed_session(), frozenset({1})).added_to(answer(), 1) is None

    def test_under_the_client_s_own_id(self) -> None:
        """A call that was sent again under an id of ours is known by the client's."""
        session = healed_session()
        watch = StreamWatch(
            Mark("tag", 2, "2"), Renumbering({"ours": 1}), {1}, announcement=Announcement(session, frozenset({1}))
        )
        assert watch.answer_whole(parse(dump(answer("ours")))) == answer(1, content=[TEXT, BLOCK])

    def test_in_an_event(self) -> None:
        """Only the data of the event changes, and a mapping that is due anyway stays."""
        session = healed_session()
        watch = StreamWatch(Mark("tag", 2, "2"), unanswered={1}, announcement=Announcement(session, frozenset({1})))
        raw = b"id: 7\nevent: message\ndata: " + dump(answer()) + b"\n\n"
        data, _ = watch.relay(Block(raw))
        event = parse_event(data)
        assert event.id == "tag.2.7"
        assert parse((event.data or "").encode()).value == answer(content=[TEXT, BLOCK])
        assert watch.answered


@pytest.mark.parametrize(
    ("announce", "level", "is_told"),
    [
        *[pytest.param(Announce.LOG, level, True, id=level) for level in ("debug", "info", "notice", "warning")],
        *[pytest.param(Announce.LOG, level, False, id=level) for level in ("error", "critical", "alert", "emergency")],
        pytest.param(Announce.LOG, None, False, id="no level"),
        pytest.param(Announce.LOG, "loud", False, id="unknown level"),
        pytest.param(Announce.RESULT, "info", True, id="result"),
        pytest.param(Announce.OFF, "debug", False, id="off"),
    ],
)
def test_who_reads_warnings_is_told_in_the_log(announce: Announce, level: str | None, is_told: bool) -> None:
    """A log message goes only to a client that set a level which lets warnings through."""
    messages = [parse(hint.body).value for hint in restarted(announce, level)]
    params = {"level": "warning", "logger": "mcp-sidecar", "data": RESTARTED}
    assert messages == ([{"jsonrpc": "2.0", "method": "notifications/message", "params": params}] if is_told else [])
