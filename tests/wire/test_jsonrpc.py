"""The peek into JSON-RPC bodies: what a message is, and how a copy of it is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire.jsonrpc import (
    MAX_DEPTH,
    MAX_MEMBERS,
    UNREAD,
    JsonRpcId,
    Kind,
    Message,
    NotJson,
    dump,
    error_object,
    finite_number,
    is_initialize_result,
    parse,
    renumbered,
    valid_id,
    with_id,
    with_progress_token,
    with_reported_token,
)

DEPTH = 100_000

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
ids = st.integers() | st.text(max_size=4) | st.floats(allow_nan=False, allow_infinity=False)
message_likes = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0"),
        "method": st.sampled_from(["tools/call", "ping", "notifications/progress"]) | json_values,
        "id": ids | json_values,
        "params": st.fixed_dictionaries(
            {}, optional={"_meta": st.fixed_dictionaries({}, optional={"progressToken": ids}) | json_values, "x": ids}
        )
        | json_values,
        "result": json_values,
        "error": json_values,
    },
)


def message(**members: Any) -> Message:
    return parse(json.dumps({"jsonrpc": "2.0", **members}).encode())


class TestKind:
    @pytest.mark.parametrize(
        ("body", "kind", "method", "id"),
        [
            pytest.param(b'{"method":"a","id":1}', Kind.REQUEST, "a", 1, id="request"),
            pytest.param(b'\xef\xbb\xbf\r\n\t {"method":"a","id":"x"} ', Kind.REQUEST, "a", "x", id="BOM and space"),
            pytest.param(b'{"method":"a","id":0}', Kind.REQUEST, "a", 0, id="zero is an id"),
            pytest.param(b'{"method":"a","id":""}', Kind.REQUEST, "a", "", id="the empty string is an id"),
            pytest.param(b'{"method":"a","id":1.5}', Kind.REQUEST, "a", 1.5, id="a float is an id"),
            pytest.param(b'{"method":"a"}', Kind.NOTIFICATION, "a", None, id="notification"),
            pytest.param(b'{"method":"a","id":null}', Kind.OTHER, None, None, id="null is no id"),
            pytest.param(b'{"method":"a","id":true}', Kind.OTHER, None, None, id="true is no id"),
            pytest.param(b'{"method":"a","id":{}}', Kind.OTHER, None, None, id="an object is no id"),
            pytest.param(b'{"method":7,"id":1}', Kind.OTHER, None, None, id="a number is no method"),
            pytest.param(b'{"method":7,"result":1}', Kind.OTHER, None, None, id="no method is no answer"),
            pytest.param(b'{"result":null,"id":1}', Kind.RESPONSE, None, 1, id="response"),
            pytest.param(b'{"error":{},"id":null}', Kind.RESPONSE, None, None, id="error without id"),
            pytest.param(b'{"error":{"code":1}}', Kind.RESPONSE, None, None, id="error, id missing"),
            pytest.param(b'{"error":"not found"}', Kind.OTHER, None, None, id="an error text is a gateway's"),
            pytest.param(b'{"code":-32016}', Kind.OTHER, None, None, id="an error without envelope"),
            pytest.param(b"{}", Kind.OTHER, None, None, id="empty object"),
            pytest.param(b"null", Kind.OTHER, None, None, id="null"),
            pytest.param(b'"method"', Kind.OTHER, None, None, id="text"),
            pytest.param(b"[]", Kind.BATCH, None, None, id="batch"),
        ],
    )
    def test_what_a_body_is(self, body: bytes, kind: Kind, method: str | None, id: JsonRpcId) -> None:
        """Method and id decide, and only where they are what JSON-RPC 2.0 says."""
        found = parse(body)
        assert (found.kind, found.method, found.id) == (kind, method, id)
        assert type(found.id) is type(id)

    def test_members_of_a_batch(self) -> None:
        """A batch is told member by member."""
        batch = parse(b'[{"method":"a","id":1},{"method":"b"},{"result":{},"id":2}]')
        kinds = [Kind.REQUEST, Kind.NOTIFICATION, Kind.RESPONSE]
        assert [member.kind for member in batch.members] == kinds
        assert [member.value for member in batch.members] == batch.value
        assert [request.id for request in batch.requests] == [1]
        assert [response.id for response in batch.responses] == [2]

    @pytest.mark.parametrize(
        ("body", "requests", "responses"),
        [(b'{"method":"a","id":1}', 1, 0), (b'{"result":{},"id":1}', 0, 1), (b'{"method":"a"}', 0, 0)],
    )
    def test_a_message_is_its_own_only_member(self, body: bytes, requests: int, responses: int) -> None:
        """Whoever asks for requests or responses need not tell a batch from a message."""
        found = parse(body)
        assert found.requests == (found,) * requests
        assert found.responses == (found,) * responses

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            pytest.param(b'{"jsonrpc":"2.0","error":{},"id":1}', True, id="envelope"),
            pytest.param(b'{"error":{"code":503,"message":"x"}}', False, id="a gateway's error page"),
            pytest.param(b'[{"method":"a"},{"jsonrpc":"2.0","method":"b"}]', True, id="a batch's member"),
            pytest.param(b"[]", False, id="empty batch"),
            pytest.param(b"7", False, id="number"),
        ],
    )
    def test_says_jsonrpc(self, body: bytes, says: bool) -> None:
        """The envelope tells an MCP server's answer from a gateway's."""
        assert parse(body).says_jsonrpc is says

    @given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
    def test_only_not_json_is_raised(self, body: bytes) -> None:
        """Any bytes are a message or NotJson, exactly as the standard parser has it."""
        try:
            value = json.loads(body.decode("utf-8-sig"), parse_constant=_refused)
        except ValueError:
            with pytest.raises(NotJson):
                parse(body)
        else:
            found = parse(body)
            assert found.is_unread or found.value == value

    @given(message_likes | st.lists(message_likes | json_values, max_size=3))
    def test_every_property_of_every_message(self, value: Any) -> None:
        """Members of a wrong type are as good as missing; nothing raises."""
        found = parse(json.dumps(value).encode())
        for name in [name for name in dir(found) if not name.startswith("_")]:
            getattr(found, name)


def _refused(literal: str) -> None:
    raise ValueError(literal)


class TestNotJson:
    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b"<html>", id="HTML"),
            pytest.param(b'{"a":NaN}', id="NaN"),
            pytest.param(b"[-Infinity]", id="infinity"),
            pytest.param(b'{"a":1} x', id="text after the end"),
            pytest.param(b'{"a":"\xff"}', id="not UTF-8"),
            pytest.param(b'"\xed\xa0\x80"', id="a surrogate in UTF-8"),
            pytest.param("{}".encode("utf-16"), id="UTF-16"),
        ],
    )
    def test_refused(self, body: bytes) -> None:
        """What is not JSON is refused, and the refusal does not quote it."""
        with pytest.raises(NotJson) as refusal:
            parse(body)
        assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def nested(depth: int, unit: bytes = b"[", end: bytes = b"]") -> bytes:
    return unit * depth + end * depth


class TestUnread:
    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b'{"method":"a","id":1,"params":%b}' % nested(DEPTH), id="deep"),
            pytest.param(nested(DEPTH), id="a deep array"),
            pytest.param(nested(DEPTH, b'{"a":', b"}").replace(b":}", b":1}"), id="deep objects"),
            pytest.param(b"[" * DEPTH, id="deep and cut"),
            pytest.param(nested(MAX_DEPTH + 1), id="just too deep"),
            pytest.param(b'{"method":"a","id":%b}' % (b"7" * 5000), id="a long integer"),
            pytest.param(b'[{"method":"a"},4]', id="a batch with a number"),
            pytest.param(b'[{"method":"a"},[{"method":"b"}]]', id="a batch in a batch"),
            pytest.param(b'[{"method":"a"},{}]', id="a batch with an empty object"),
            pytest.param(b"[%b]" % b",".join([b'{"method":"a"}'] * (MAX_MEMBERS + 1)), id="a long batch"),
        ],
    )
    def test_is_what_costs_too_much(self, body: bytes) -> None:
        """Hostile depth, length and number pass as something that nobody knows."""
        assert parse(body) == UNREAD
        assert parse(body).is_unread

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            pytest.param(
                b'{"method":"a","params":%b}' % nested(MAX_DEPTH - 1), Kind.NOTIFICATION, id="just not too deep"
            ),
            pytest.param(b'{"method":"a","params":[%b]}' % b",".join([b"[]"] * 600), Kind.NOTIFICATION, id="wide"),
            pytest.param(b"[%b]" % b",".join([b'{"method":"a"}'] * MAX_MEMBERS), Kind.BATCH, id="just not too many"),
            pytest.param(b"null", Kind.OTHER, id="null"),
            pytest.param(b"{}", Kind.OTHER, id="no message"),
        ],
    )
    def test_is_nothing_else(self, body: bytes, kind: Kind) -> None:
        """What can be read is, and what was read can be written."""
        found = parse(body)
        assert (found.kind, found.is_unread) == (kind, False)
        assert dump(found.value) == body

    @pytest.mark.long
    @pytest.mark.parametrize("member", [b"0", b"{}", b"[]", b'{"method":"a"}'], ids=bytes.decode)
    def test_a_long_batch_is_not_looked_at_member_by_member(self, member: bytes) -> None:
        """Of 1 MiB of members none is worth more than what the parser does with it."""
        body = b"[%b]" % b",".join([member] * (1024 * 1024 // (len(member) + 1)))
        assert calls_in(lambda: parse(body)) < 50


def calls_in(work: Callable[[], object]) -> int:
    """How many functions of the module it calls."""
    calls = 0

    def count_one(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_globals["__name__"] == parse.__module__

    sys.setprofile(count_one)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


class TestNumbers:
    @pytest.mark.parametrize(
        ("literal", "number"), [("1.5", 1.5), ("1e400", 10**309), ("-1e400", -(10**309)), ("1e-400", 0.0)]
    )
    def test_every_number_is_finite(self, literal: str, number: float) -> None:
        """A number beyond a double is still one that can be written again."""
        assert finite_number(literal) == number

    @pytest.mark.parametrize("value", [True, None, [], {}, float("inf"), float("nan")])
    def test_no_id(self, value: object) -> None:
        """JSON-RPC ids are strings and numbers."""
        assert valid_id(value) is None


class TestProperties:
    @pytest.mark.parametrize(
        ("members", "name", "value"),
        [
            pytest.param({"method": "tools/call", "params": {"name": "t"}}, "tool_name", "t", id="tool"),
            pytest.param({"method": "prompts/get", "params": {"name": "t"}}, "tool_name", None, id="no tool"),
            pytest.param({"method": "tools/call", "params": {"name": 1}}, "tool_name", None, id="no name"),
            pytest.param({"method": "tools/call", "params": ["t"]}, "tool_name", None, id="positional"),
            pytest.param({"method": "tools/call", "params": {"task": {}}}, "has_task", True, id="task"),
            pytest.param({"method": "tools/call", "params": {"task": None}}, "has_task", False, id="no task"),
            pytest.param({"method": "tools/list", "params": {"cursor": "c"}}, "cursor", "c", id="cursor"),
            pytest.param({"method": "tools/list"}, "cursor", None, id="no cursor"),
            pytest.param({"method": "a", "params": {"_meta": {"progressToken": 0}}}, "progress_token", 0, id="token"),
            pytest.param(
                {"method": "a", "params": {"_meta": {"progressToken": True}}}, "progress_token", None, id="true"
            ),
            pytest.param({"method": "a", "params": {"_meta": [1]}}, "progress_token", None, id="no meta"),
            pytest.param(
                {"method": "notifications/progress", "params": {"progressToken": "p"}},
                "reported_token",
                "p",
                id="reported",
            ),
            pytest.param({"method": "a", "params": {"progressToken": "p"}}, "reported_token", None, id="not reported"),
            pytest.param(
                {"method": "notifications/cancelled", "params": {"requestId": 3}}, "cancelled_id", 3, id="cancelled"
            ),
            pytest.param(
                {"method": "notifications/cancelled", "params": {"requestId": False}}, "cancelled_id", None, id="no id"
            ),
            pytest.param({"method": "a", "params": {"requestId": 3}}, "cancelled_id", None, id="not cancelled"),
            pytest.param({"method": "resources/read", "params": {"uri": "u:"}}, "uri", "u:", id="uri"),
            pytest.param({"method": "logging/setLevel", "params": {"level": "info"}}, "log_level", "info", id="level"),
            pytest.param({"result": {"a": 1}}, "result", {"a": 1}, id="result"),
            pytest.param({"result": 1}, "result", None, id="no object for a result"),
            pytest.param({"method": "a", "result": {}}, "result", None, id="a notification has no result"),
            pytest.param({"error": {"code": 1}}, "error", {"code": 1}, id="error"),
            pytest.param({"result": {}, "error": 7}, "error", None, id="no object for an error"),
            pytest.param({"method": "a", "error": {}}, "error", None, id="a notification has no error"),
            pytest.param({"result": {}, "params": {"uri": "u:"}}, "params", {}, id="a response has no params"),
        ],
    )
    def test_property(self, members: dict[str, Any], name: str, value: Any) -> None:
        """Each property looks at one member and takes it only in its right type and place."""
        assert getattr(message(**members), name) == value

    @pytest.mark.parametrize(
        ("meta", "version"),
        [
            pytest.param({"io.modelcontextprotocol/protocolVersion": "2026-07-28"}, "2026-07-28", id="told"),
            pytest.param({"io.modelcontextprotocol/protocolVersion": 1}, None, id="no string"),
            pytest.param({}, None, id="missing"),
            pytest.param(None, None, id="no meta"),
        ],
    )
    def test_meta_protocol_version(self, meta: Any, version: str | None) -> None:
        """A 2026-07-28 request is told by its body."""
        assert message(method="tools/call", id=1, params={"_meta": meta}).meta_protocol_version == version

    @pytest.mark.parametrize(
        ("members", "is_result"),
        [
            pytest.param({"result": {"protocolVersion": "v", "capabilities": {}, "serverInfo": {}}}, True, id="yes"),
            pytest.param({"result": {"protocolVersion": 1, "capabilities": {}, "serverInfo": {}}}, False, id="version"),
            pytest.param({"result": {"protocolVersion": "v", "serverInfo": {}}}, False, id="capabilities"),
            pytest.param({"result": {"protocolVersion": "v", "capabilities": {}}}, False, id="server info"),
            pytest.param({"error": {"code": 1}}, False, id="error"),
            pytest.param({"method": "initialize"}, False, id="request"),
        ],
    )
    def test_initialize_result(self, members: dict[str, Any], is_result: bool) -> None:
        """Only a whole InitializeResult opens a session."""
        assert is_initialize_result(message(**members, id=1)) is is_result


class TestWriting:
    def test_error_with_data(self) -> None:
        """An error carries its reason in data and the request's own id."""
        error = {"code": -32603, "message": "gone", "data": {"reason": "outcome_unknown"}}
        expected = {"jsonrpc": "2.0", "error": error, "id": "é"}
        assert error_object("é", -32603, "gone", {"reason": "outcome_unknown"}) == expected

    @given(json_values)
    def test_dump_law(self, value: Any) -> None:
        """What is written is ASCII and reads the same."""
        assert json.loads(dump(value).decode("ascii")) == value

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b'{"a":"\\ud800"}', id="a lone surrogate"),
            pytest.param(b'{"a":-1e400,"b":1e400}', id="numbers beyond a double"),
            pytest.param(b'{"a":"\\u0000\\u2028"}', id="control characters"),
        ],
    )
    def test_odd_values_can_be_written_again(self, body: bytes) -> None:
        """Whatever was parsed can be sent on in a copy."""
        assert parse(dump(parse(body).value)).value == parse(body).value

    def test_copies_leave_the_original_alone(self) -> None:
        """A parsed message is read only: every change makes a copy."""
        request = {"id": 1, "params": {"_meta": {"progressToken": 1, "x": 2}, "y": 3}}
        before = json.dumps(request)
        assert with_id(request, "n") == {**request, "id": "n"}
        assert with_progress_token(request, "n")["params"] == {"_meta": {"progressToken": "n", "x": 2}, "y": 3}
        assert with_reported_token({"params": {"progress": 1}}, 7) == {"params": {"progress": 1, "progressToken": 7}}
        assert json.dumps(request) == before


class TestRenumbering:
    def test_a_request(self) -> None:
        """A second try in a live session has a new id and a new token, and all else as it was."""
        numbers = count()
        original = message(method="tools/call", id=7, params={"name": "t", "_meta": {"progressToken": 7, "x": 1}})
        body, old_ids, old_tokens = renumbered(original, lambda old: f"retry-{next(numbers)}")
        assert json.loads(body) == {
            "jsonrpc": "2.0",
            "method": "tools/call",
            "id": "retry-0",
            "params": {"name": "t", "_meta": {"progressToken": "retry-1", "x": 1}},
        }
        assert (old_ids, old_tokens) == ({"retry-0": 7}, {"retry-1": 7})
        assert original.id == 7

    def test_a_batch(self) -> None:
        """Of a batch the requests change, each for itself; the others stay in their places."""
        batch = parse(b'[{"method":"a","id":1},{"method":"n"},{"method":"b","id":"1"}]')
        numbers = count()
        body, old_ids, old_tokens = renumbered(batch, lambda old: f"r{next(numbers)}")
        assert json.loads(body) == [{"method": "a", "id": "r0"}, {"method": "n"}, {"method": "b", "id": "r1"}]
        assert (old_ids, old_tokens) == ({"r0": 1, "r1": "1"}, {})

    @pytest.mark.parametrize("body", [b'{"method":"n"}', b"null"])
    def test_without_a_request_nothing_changes(self, body: bytes) -> None:
        """Only requests have ids of their own."""
        assert renumbered(parse(body), str) == (body, {}, {})

    @given(message_likes | st.lists(message_likes | json_values, max_size=3))
    def test_renumbering_law(self, value: Any) -> None:
        """A renumbered body has requests under new ids only, each of which leads to the client's own."""
        original = parse(json.dumps(value).encode())
        if original.is_unread:
            return
        numbers = count()
        body, old_ids, old_tokens = renumbered(original, lambda old: f"r{next(numbers)}")
        copy = parse(body)
        assert [old_ids[str(request.id)] for request in copy.requests] == [request.id for request in original.requests]
        assert len(old_ids) == len(original.requests)
        assert set(old_tokens) == {one.progress_token for one in copy.requests if one.progress_token is not None}
