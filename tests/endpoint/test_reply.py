"""The event stream of a POST: passed on at once, continued where it broke, and asked on by the right server only."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcp_sidecar.facts import DroppedKind, MessageDropped, OutcomeUnknown
from tests.support.client import McpClient, Stream
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer as Says
from tests.support.faults import Break, CutStream, EndStream, ResetAfterExecution, SlowHeaders
from tests.support.listening import Says as SaysStream
from tests.support.scene import connected
from tests.support.sidecar import WatchedSidecar

HOWS = pytest.mark.parametrize("how", Break, ids=lambda how: how.value)


@asynccontextmanager
async def learned(**behaviour: Any) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, McpClient]]:
    """A client that has seen which tools are harmless."""
    async with connected(**behaviour) as (upstream, sidecar, client):
        await client.call("tools/list")
        yield upstream, sidecar, client


def progress(steps: int, *, wait: bool = False) -> dict[str, Any]:
    """A tool call that reports its progress."""
    return {"name": "progress", "arguments": {"steps": steps, "wait": wait}, "_meta": {"progressToken": "token"}}


def told_apart(body: bytes) -> bytes:
    """A stream without what differs between two runs: the number of the stream and that of the execution."""
    return re.sub(rb'post\d+|"execution":\d+', b"", body)


def says_json(message: dict[str, Any]) -> Says:
    """An answer that the server would not give."""
    return Says(200, (("Content-Type", "application/json"),), json.dumps(message).encode())


# -- passed on --------------------------------------------------------------------------------------------------------


async def test_events_pass_at_once() -> None:
    """An event can be read while the server still works on the next one."""
    async with learned() as (upstream, _, client), await client.open_call("tools/call", progress(1, wait=True)) as s:
        first = await s.next_message()
        assert first is not None
        assert first["method"] == "notifications/progress"
        upstream.slow_gate.set()
        last = await s.next_message()
        assert last is not None
        assert last["result"]["content"][0]["text"] == "1 steps"
        assert await s.next_event() is None


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
async def test_a_stream_passes_byte_for_byte(newline: str) -> None:
    """Nothing of a stream is changed: ids, retry fields, priming events, line ends."""
    async with (
        learned(event_ids=True, retry_ms=50, newline=newline) as (upstream, _, client),
        McpClient(upstream.url) as direct,
    ):
        direct.session_id = client.session_id
        through = await client.call("tools/call", progress(2), id=1)
        without = await direct.call("tools/call", progress(2), id=1)
        assert told_apart(through.body) == told_apart(without.body)


# -- broken -----------------------------------------------------------------------------------------------------------


@HOWS
async def test_what_came_before_a_break_is_passed_on(how: Break) -> None:
    """Events that arrived together with the break reach the client, then the error comes in their order."""
    async with learned() as (upstream, sidecar, client):
        upstream.inject(CutStream(2, event_ids=False, how=how), tool="progress")
        answer = await client.call("tools/call", progress(3), id=4)
        assert answer.broken is None
        steps = [message["params"]["progress"] for message in answer.messages[:-1]]
        assert steps == [1, 2]
        assert answer.response["id"] == 4
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert len(upstream.ledger.executions("progress")) == 1
        assert len(sidecar.of(OutcomeUnknown)) == 1


@HOWS
async def test_the_response_itself_may_come_with_the_break(how: Break) -> None:
    """A stream that breaks behind its response was whole for the client."""
    async with learned() as (upstream, sidecar, client):
        upstream.inject(CutStream(1, event_ids=False, how=how), tool="charge")
        answer = await client.tool("charge")
        assert (answer.text, answer.broken) == ("charged 1", None)
        assert len(answer.messages) == 1
        assert sidecar.of(OutcomeUnknown) == []


@HOWS
@pytest.mark.parametrize("mid_event", [False, True], ids=["between", "inside"])
async def test_a_broken_stream_is_continued(how: Break, mid_event: bool) -> None:
    """One GET with the last event id, on the same session with the same credentials; nothing is missing or doubled."""
    async with learned(event_store=True) as (upstream, _, client):
        client.headers = {"Authorization": "Bearer one"}
        await client.initialize()
        upstream.inject(CutStream(2, event_ids=True, mid_event=mid_event, how=how), tool="progress")
        answer = await client.call("tools/call", progress(4), id=4)
        assert [m["params"]["progress"] for m in answer.messages[:-1]] == [1, 2, 3, 4]
        assert answer.text == "4 steps"
        [resumed] = upstream.ledger.arrived(http_method="GET")
        assert resumed.header("last-event-id") == answer.events[1].event_id
        assert resumed.header("authorization") == "Bearer one"
        assert resumed.session_id == client.session_id
        assert upstream.ledger.count(tool="progress") == 1


async def test_a_stream_may_break_more_than_once() -> None:
    """As long as something new came, it is continued again."""
    async with learned(event_store=True, healing__refresh_after_break=False) as (upstream, _, client):
        upstream.inject(CutStream(1, event_ids=True), times=3)
        answer = await client.call("tools/call", progress(4), id=4)
        assert answer.text == "4 steps"
        assert upstream.ledger.count("GET") == 3


async def test_a_stream_that_brings_nothing_new_is_given_up() -> None:
    """A continued stream that breaks at once is not asked for again."""
    async with learned(event_store=True) as (upstream, _, client):
        upstream.inject(CutStream(1, event_ids=True), tool="progress")
        upstream.inject(CutStream(0, event_ids=True), http_method="GET", times=None)
        answer = await client.call("tools/call", progress(4), id=4)
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert upstream.ledger.count("GET") == 1


@pytest.mark.parametrize("talks", [False, True], ids=["silent", "notifies"])
async def test_a_resumed_stream_that_brings_nothing_of_ours_is_given_up(talks: bool) -> None:
    """A server without an event store takes the GET for a listener: its notifications are no sign of the answer."""
    async with connected(event_ids=True, resume_status=None, second_get_status=None, healing__hold_timeout=0.3) as (
        upstream,
        _,
        client,
    ):
        upstream.inject(CutStream(1, event_ids=True), tool="progress")
        call = asyncio.create_task(client.call("tools/call", progress(2), id=4))
        await upstream.ledger.wait_for(lambda ledger: ledger.count("GET") == 1)
        async with asyncio.timeout(5):
            while not call.done():
                if talks:
                    upstream.notify("notifications/message", {"level": "info", "data": "tick"})
                await asyncio.wait({call}, timeout=0.02)
        answer = call.result()
        assert answer.messages[-1]["error"]["data"] == {"reason": "outcome_unknown"}
        assert upstream.ledger.count("GET") == 1


async def test_a_resumed_stream_that_brought_something_may_take_its_time() -> None:
    """Progress shows that it is the right stream: it is waited for as long as any other."""
    async with connected(event_store=True, healing__hold_timeout=0.2) as (upstream, _, client):
        upstream.inject(CutStream(1, event_ids=True), tool="progress")
        async with await client.open_call("tools/call", progress(2, wait=True), id=4) as stream:
            for step in (1, 2):
                message = await stream.next_message()
                assert message is not None
                assert message["params"]["progress"] == step
            assert upstream.ledger.count("GET") == 1
            with pytest.raises(TimeoutError):
                await stream.next_message(0.5)
            upstream.slow_gate.set()
            assert (await stream.next_message() or {})["result"]["content"][0]["text"] == "2 steps"


async def test_a_harmless_request_is_begun_anew_where_it_cannot_be_continued() -> None:
    """Without an event store the GET is refused; a harmless request goes again, on the same stream of the client."""
    async with learned() as (upstream, _, client):
        upstream.inject(CutStream(1, event_ids=True), tool="echo")
        answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": "a"}}, id=4)
        assert (answer.text, answer.response["id"]) == ("a", 4)
        assert upstream.ledger.count("GET") == 1
        assert upstream.ledger.count(tool="echo") == 2


async def test_an_answer_that_is_none_ends_the_stream_with_an_error() -> None:
    """On a stream that is open already the client must get a response, whatever the second attempt brought."""
    async with learned() as (upstream, _, client):
        upstream.inject(CutStream(0, event_ids=False), tool="echo")
        upstream.inject(says_json({"status": "fine"}), tool="echo")
        answer = await client.tool("echo", text="a")
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert len(answer.messages) == 1


async def test_polling_passes() -> None:
    """A clean end behind an event id is the server's wish: the stream ends, and the client comes back with a GET."""
    async with learned(event_store=True) as (upstream, _, client):
        upstream.inject(EndStream(1, event_ids=True), tool="charge")
        answer = await client.tool("charge")
        [event] = answer.events
        assert (answer.broken, answer.messages) == (None, [])
        assert upstream.ledger.count("GET") == 0
        async with await client.get_stream(last_event_id=event.event_id) as stream:
            message = await stream.next_message()
        assert message is not None
        assert message["result"]["content"][0]["text"] == "charged 1"


@pytest.mark.parametrize("healed_by", ["the poll", "another call"])
async def test_polling_for_a_call_of_a_lost_session_is_told(healed_by: str) -> None:
    """The client polls for a call that died with its server: it gets that call's error, and the stream ends."""
    async with learned(event_store=True) as (upstream, sidecar, client):
        upstream.inject(EndStream(1, event_ids=True), tool="charge")
        answer = await client.call("tools/call", {"name": "charge", "arguments": {"amount": 5}}, id="mine")
        [event] = answer.events
        await upstream.restart()
        if healed_by == "another call":
            assert (await client.tool("echo", text="on")).text == "on"
        async with await client.get_stream(last_event_id=event.event_id) as stream:
            assert stream.status == 200
            message = await stream.next_message()
            assert message is not None
            assert (message["id"], message["error"]["data"]) == ("mine", {"reason": "outcome_unknown"})
            assert await stream.next_event() is None
        assert len(upstream.ledger.executions("charge")) == 1
        assert len(sidecar.of(OutcomeUnknown)) == 1


async def test_polling_ends_with_the_answer() -> None:
    """The stream of a client that polled for one call ends with it: it is not the session's listening stream."""
    async with learned(event_store=True) as (upstream, _, client):
        upstream.inject(EndStream(1, event_ids=True), tool="charge")
        [event] = (await client.tool("charge")).events
        async with await client.get_stream(last_event_id=event.event_id) as stream:
            assert await stream.next_message() is not None
            upstream.end_get_streams()
            assert await stream.next_event() is None
        assert upstream.ledger.count("GET") == 1


async def test_a_second_attempt_is_polled_for_here() -> None:
    """A client would not know the answer to an id of ours: the sidecar fetches it, and maps it back."""
    async with learned(event_store=True) as (upstream, _, client):
        upstream.inject(ResetAfterExecution(), tool="echo")
        upstream.inject(EndStream(1, event_ids=True), tool="echo")
        answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": "a"}}, id="mine")
        assert (answer.response["id"], answer.text) == ("mine", "a")
        assert upstream.ledger.count("GET") == 1


@pytest.mark.parametrize("event_ids", [True, False], ids=["after-an-id", "without-id"])
async def test_a_second_attempt_owes_nothing_to_the_first(event_ids: bool) -> None:
    """An event id of the first stream does not make a clean end of the second one polling."""
    async with learned() as (upstream, _, client):
        upstream.inject(CutStream(1 if event_ids else 0, event_ids=event_ids), tool="echo")
        upstream.inject(EndStream(0, event_ids=False), tool="echo", times=None)
        answer = await client.tool("echo", text="a")
        assert answer.error["data"] == {"reason": "outcome_unknown"}


async def test_a_restart_under_a_stream_is_told() -> None:
    """The server dies in the middle of an unsafe call: its error comes on the open stream, the next call heals."""
    async with learned() as (upstream, _, client):
        async with await client.open_call("tools/call", progress(1, wait=True), id=6) as stream:
            assert await stream.next_message() is not None
            await upstream.restart()
            last = await stream.next_message()
            assert last is not None
            assert (last["id"], last["error"]["data"]) == (6, {"reason": "outcome_unknown"})
            assert await stream.next_event() is None
        assert (await client.tool("charge")).text == "charged 1"
        assert len(upstream.ledger.initializes) == 2


async def test_a_restart_under_a_harmless_call_is_not_noticed() -> None:
    """A call that only reads is begun anew on the healed session, and its answer comes on the open stream."""
    async with (
        learned(event_ids=True) as (upstream, _, client),
        await client.open_call("tools/call", {"name": "slow_read"}, id=6) as stream,
    ):
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow_read")) == 1)
        await upstream.restart()
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow_read", process=2)) == 1)
        upstream.slow_gate.set()
        last = await stream.next_message()
        assert last is not None
        assert (last["id"], last["result"]["content"][0]["text"]) == (6, "at last")
        assert len(upstream.ledger.initializes) == 2


# -- questions of the server ------------------------------------------------------------------------------------------


async def asked(stream: Stream) -> dict[str, Any]:
    """The next question on a stream, past what says that an older one is over."""
    message = await stream.next_message()
    while message is not None and message["method"] == "notifications/cancelled":
        message = await stream.next_message()
    assert message is not None
    assert message["method"] == "elicitation/create"
    return message


ASK = {"name": "ask", "arguments": {}}


async def test_an_answer_reaches_the_server_that_asked() -> None:
    """Inside the first session nothing is changed: the id is the server's own."""
    async with learned() as (upstream, _, client), await client.open_call("tools/call", ASK) as stream:
        question = await asked(stream)
        assert question["id"] == 0
        assert (await client.respond(question["id"], {"action": "accept"})).status == 202
        assert (await stream.next_message() or {})["result"]["content"][0]["text"] == "the client said ['action']"
        assert [reply.expected for reply in upstream.ledger.replies] == [True]


async def test_an_old_answer_never_meets_a_new_question() -> None:
    """The new server counts from 0 again: its question has a marked id, and only an answer to that one reaches it."""
    async with learned() as (upstream, sidecar, client):
        async with await client.open_call("tools/call", ASK) as stream:
            old = await asked(stream)
            await upstream.restart()
        async with await client.open_call("tools/call", ASK) as stream:
            new = await asked(stream)
            assert new["id"] != old["id"]
            late = await client.respond(old["id"], {"action": "old"})
            assert (late.status, late.body) == (202, b"")
            assert upstream.ledger.replies == []
            assert [fact.kind for fact in sidecar.of(MessageDropped)] == [DroppedKind.RESPONSE]
            await client.respond(new["id"], {"new": True})
            assert (await stream.next_message() or {})["result"]["content"][0]["text"] == "the client said ['new']"
        assert [(reply.rpc_id, reply.expected) for reply in upstream.ledger.replies] == [(0, True)]


LARGE = "x" * 200_000
SMALL_LIMITS = {"limits__max_buffered_answer": "64KiB"}


async def test_a_large_answer_belongs_to_its_question() -> None:
    """An old answer meets no new question, however large it is."""
    async with connected(**SMALL_LIMITS) as (upstream, sidecar, client):
        async with await client.open_call("tools/call", ASK) as stream:
            old = await asked(stream)
            await upstream.restart()
        async with await client.open_call("tools/call", ASK) as stream:
            new = await asked(stream)
            late = await client.respond(old["id"], {"old": LARGE})
            assert (late.status, late.body) == (202, b"")
            assert upstream.ledger.replies == []
            assert [fact.kind for fact in sidecar.of(MessageDropped)] == [DroppedKind.RESPONSE]
            await client.respond(new["id"], {"new": LARGE})
            assert (await stream.next_message() or {})["result"]["content"][0]["text"] == "the client said ['new']"
        assert [(reply.rpc_id, reply.expected) for reply in upstream.ledger.replies] == [(0, True)]


async def test_a_large_answer_of_the_first_session_passes() -> None:
    """As it is."""
    async with connected(**SMALL_LIMITS) as (upstream, _, client):
        async with await client.open_call("tools/call", ASK) as stream:
            question = await asked(stream)
            assert (await client.respond(question["id"], {"a": LARGE})).status == 202
        assert [reply.expected for reply in upstream.ledger.replies] == [True]


@pytest.mark.parametrize("body", [b'{"id":1,"result":{"a":"%b"}', b'[{"a":"%b"},]'], ids=["cut", "no-json"])
async def test_a_large_answer_that_is_no_json_is_refused(body: bytes) -> None:
    """As any other body."""
    async with connected(**SMALL_LIMITS) as (upstream, _, client):
        await upstream.restart()
        await client.call("ping")
        assert (await client.post(body % LARGE.encode())).status == 400


async def test_a_large_question_is_marked() -> None:
    """In a later session a question bears its mark however large it is, and its answer reaches it."""
    async with connected(**SMALL_LIMITS) as (upstream, _, client):
        await upstream.restart()
        await client.call("ping")
        async with await client.get_stream() as stream:
            session = next(iter(upstream.sessions))
            asking = asyncio.create_task(upstream.ask(session, "sampling/createMessage", {"text": LARGE}))
            question = await stream.next_message()
            assert question is not None
            assert question["id"] != 0
            await client.respond(question["id"], {"a": 1})
            await asking


async def test_a_large_answer_to_a_second_attempt_bears_the_clients_id() -> None:
    """However large it is, and although the stream has event ids."""
    async with connected(event_ids=True, **SMALL_LIMITS) as (upstream, _, client):
        await client.call("tools/list")
        upstream.inject(ResetAfterExecution(), tool="big")
        answer = await client.call("tools/call", {"name": "big", "arguments": {"bytes": 200_000}}, id=56)
        assert [message["id"] for message in answer.messages] == [56]
        assert "result" in answer.response


async def test_an_answer_too_large_to_get_its_id_back_is_told() -> None:
    """Beyond the bound it goes by under an id that the client does not know: an error follows, event id or not."""
    async with connected(event_ids=True, **SMALL_LIMITS, limits__max_request_body="64KiB") as (upstream, _, client):
        await client.call("tools/list")
        upstream.inject(ResetAfterExecution(), tool="big")
        answer = await client.call("tools/call", {"name": "big", "arguments": {"bytes": 200_000}}, id=56)
        assert answer.messages[-1]["id"] == 56
        assert answer.messages[-1]["error"]["data"] == {"reason": "outcome_unknown"}


async def test_an_answer_that_meets_the_loss_goes_nowhere() -> None:
    """The first that the client sends after the restart is its old answer: 202, and nothing is healed for it."""
    async with learned() as (upstream, sidecar, client):
        async with await client.open_call("tools/call", ASK) as stream:
            old = await asked(stream)
            await upstream.restart()
            answer = await client.respond(old["id"], {"action": "old"})
        assert (answer.status, answer.body) == (202, b"")
        assert upstream.ledger.replies == []
        assert len(upstream.ledger.initializes) == 1
        assert [fact.kind for fact in sidecar.of(MessageDropped)] == [DroppedKind.RESPONSE]


async def test_an_answer_that_cannot_be_read_goes_nowhere_later() -> None:
    """It may be for any question: in the first session it passes, in a newer one the client has to start over."""
    odd = b'{"jsonrpc":"2.0","id":%s,"result":{"n":' + b"1" * 5000 + b"}}"
    async with learned() as (upstream, _, client):
        await client.post(odd % b"0")
        assert upstream.ledger.arrivals[-1].body == odd % b"0"
        await upstream.restart()
        await client.call("ping")
        async with await client.open_call("tools/call", ASK) as stream:
            question = await asked(stream)
            for rpc_id in (0, question["id"]):
                assert (await client.post(odd % json.dumps(rpc_id).encode())).status == 404
                assert upstream.ledger.arrivals[-1].rpc_methods == ("tools/call",)


async def test_a_question_can_be_taken_back() -> None:
    """A server's ``notifications/cancelled`` names its question as the client saw it."""
    async with learned() as (upstream, _, client):
        await upstream.restart()
        await client.call("ping")
        async with await client.get_stream() as stream:
            session = next(iter(upstream.sessions))
            asking = asyncio.create_task(upstream.ask(session, "roots/list", {}))
            question = await stream.next_message()
            upstream.notify("notifications/cancelled", {"requestId": 0}, session)
            cancelled = await stream.next_message()
            asking.cancel()
        assert question is not None
        assert cancelled is not None
        assert cancelled["params"]["requestId"] == question["id"] != 0


# -- a byte order mark in the middle --------------------------------------------------------------------------------------

MARK = b"\xef\xbb\xbf"


def marked(*messages: dict[str, Any]) -> bytes:
    """A stream that begins with a byte order mark."""
    return MARK + b"".join(b"id: e%d\ndata: %b\n\n" % (n, json.dumps(one).encode()) for n, one in enumerate(messages))


async def test_a_byte_order_mark_passes_at_the_beginning_only() -> None:
    """In the middle it would be part of a field's name, and the event behind it be lost to the client."""
    noted = {"jsonrpc": "2.0", "method": "notifications/noted"}
    done = {"jsonrpc": "2.0", "id": 7, "result": {"content": []}}
    async with learned() as (upstream, _, client):
        upstream.inject(SaysStream((marked(noted),), is_cut=True), tool="charge")
        upstream.inject(SaysStream((marked(done),)), http_method="GET")
        answer = await client.call("tools/call", {"name": "charge"}, id=7)
        assert answer.body == marked(noted) + marked(done).removeprefix(MARK)


@pytest.mark.parametrize("ahead", ["hints", "comments"])
async def test_a_byte_order_mark_behind_something_of_ours(ahead: str) -> None:
    """What the sidecar has said ahead of the answer is the stream's beginning."""
    done = {"jsonrpc": "2.0", "id": 7, "result": {"content": []}}
    async with connected(healing__early_stream_after=0.01 if ahead == "comments" else 0) as (upstream, _, client):
        await client.call("resources/subscribe", {"uri": "fake://one"})
        upstream.forget()
        if ahead == "comments":
            upstream.inject(SlowHeaders(pieces=3, pause_s=0.1), rpc_method="initialize")
        upstream.inject(SaysStream((marked(done),)), skip=1, tool="charge")
        answer = await client.call("tools/call", {"name": "charge"}, id=7)
        assert answer.body.count(MARK) == 0
        assert answer.messages[-1] == done
