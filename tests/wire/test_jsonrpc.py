"""The peek into JSON-RPC bodies: what a message is, and how a copy of it is made."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire.json_scan import TopLevelScan
from mcp_sidecar.wire.jsonrpc import (
    JsonRpcId,
    Kind,
    Message,
    NotJson,
    dump,
    error_body,
    error_object,
    from_scan,
    is_initialize_result,
    mapped_back,
    parse,
    renumbered,
    with_id,
    with_progress_token,
    with_reported_token,
)

DEPTH = 100_000
DEEP = b"[" * DEPTH + b"]" * DEPTH
VERSION_KEY = b'"io.modelcontextprotocol/protocolVersion"'

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
        """A batch is told member by member; what is no object in it is no message."""
        batch = parse(b'[{"method":"a","id":1},{"method":"b"},{"result":{},"id":2},[{"method":"c","id":3}],4]')
        kinds = [Kind.REQUEST, Kind.NOTIFICATION, Kind.RESPONSE, Kind.OTHER, Kind.OTHER]
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
            pytest.param(b'[{},{"jsonrpc":"2.0"}]', True, id="a batch's member"),
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
            assert parse(body).value == value

    @given(message_likes | st.lists(message_likes | json_values, max_size=3))
    def test_every_property_of_every_message(self, value: Any) -> None:
        """Members of a wrong type are as good as missing; nothing raises; a scan comes to the same verdict."""
        body = json.dumps(value).encode()
        found = parse(body)
        for name in [name for name in dir(found) if not name.startswith("_")]:
            getattr(found, name)
        scan = TopLevelScan()
        scan.feed(body)
        scan.finish()
        told = from_scan(scan)
        assert (told.kind, told.method, told.id) == (found.kind, found.method, found.id)
        assert told.meta_protocol_version == found.meta_protocol_version

    @pytest.mark.parametrize(
        ("rest", "kind", "id"),
        [
            pytest.param(b"", Kind.REQUEST, None, id="not ended"),
            pytest.param(b',"id":7', Kind.OTHER, None, id="an id that may go on"),
            pytest.param(b',"id":7}', Kind.REQUEST, 7, id="a request"),
            pytest.param(b"}", Kind.NOTIFICATION, None, id="a notification"),
        ],
    )
    def test_an_id_may_come_last(self, rest: bytes, kind: Kind, id: int | None) -> None:
        """Only an end without an id makes a notification: until then somebody may wait."""
        scan = TopLevelScan()
        scan.feed(b'{"method":"m","params":{},"jsonrpc":"2.0"' + rest)
        assert (from_scan(scan).kind, from_scan(scan).id) == (kind, id)


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
            pytest.param(b"[" * DEPTH, id="deep and cut"),
            pytest.param(b"[" + DEEP + b",{]", id="deep, wrong brackets"),
            pytest.param(b"[" + DEEP + b",{1:2}]", id="deep, with a member that is no JSON"),
            pytest.param(b'{"a":' + DEEP + b',"b":NaN}', id="deep, with NaN"),
        ],
    )
    def test_refused(self, body: bytes) -> None:
        """What is not JSON is refused, and the refusal does not quote it."""
        with pytest.raises(NotJson) as refusal:
            parse(body)
        assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


class TestTooMuchForTheParser:
    @pytest.mark.parametrize(
        "filler", [pytest.param(DEEP, id="deep"), pytest.param(b"[" + b"7" * 5000 + b"]", id="a long integer")]
    )
    def test_told_by_its_top_level_keys(self, filler: bytes) -> None:
        """Hostile depth and length hide neither what a message is nor its id."""
        body = b'{"method":"tools/call","params":{"name":"t","a":%b,"_meta":{%b:"v"}},"id":5}' % (filler, VERSION_KEY)
        found = parse(body)
        assert found == Message(Kind.REQUEST, "tools/call", 5, meta_protocol_version="v")
        assert found.is_opaque
        assert (found.tool_name, found.params, found.says_jsonrpc) == (None, {}, False)

    def test_members_of_a_batch(self) -> None:
        """One deep member hides no other: each request of the batch is still owed an answer."""
        body = b'[{"method":"a","id":1},{"method":"b","id":2,"params":%b},%b,{"result":{},"id":3}]' % (DEEP, DEEP)
        found = parse(body)
        assert [(one.method, one.id, one.is_opaque) for one in found.requests] == [("a", 1, False), ("b", 2, True)]
        assert [member.kind for member in found.members] == [Kind.REQUEST, Kind.REQUEST, Kind.OTHER, Kind.RESPONSE]

    def test_a_deep_array_is_an_empty_batch_of_nothing(self) -> None:
        """Arrays in arrays are no messages, at any depth."""
        assert [member.kind for member in parse(DEEP).members] == [Kind.OTHER]

    def test_cannot_be_renumbered(self) -> None:
        """A copy of what is not known would lose it."""
        with pytest.raises(ValueError, match="opaque"):
            renumbered(parse(b'{"method":"a","id":1,"params":%b}' % DEEP), str)
        with pytest.raises(ValueError, match="opaque"):
            renumbered(parse(b"[%b]" % DEEP), str)

    def test_scanned_batch(self) -> None:
        """Of a batch that is streamed through only the kind is known."""
        scan = TopLevelScan()
        scan.feed(b'[{"id":1,')
        assert from_scan(scan) == Message(Kind.BATCH)


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
    def test_the_404_of_the_contract(self) -> None:
        """Clients look for this text; its form is fixed to the byte."""
        expected = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'
        assert error_body(None, -32001, "Session not found") == expected

    def test_error_with_data(self) -> None:
        """An error carries its reason in data and the request's own id."""
        error = {"code": -32603, "message": "gone", "data": {"reason": "outcome_unknown"}}
        expected = {"jsonrpc": "2.0", "error": error, "id": "é"}
        assert error_object("é", -32603, "gone", {"reason": "outcome_unknown"}) == expected
        assert json.loads(error_body("é", -32603, "gone", {"reason": "outcome_unknown"})) == expected

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

    @pytest.mark.parametrize("unit", [{"a": None, "b": 1}, [None, 1]], ids=["objects", "arrays"])
    def test_depth_does_not_stop_it(self, unit: Any) -> None:
        """A value that the parser took with a shallow stack is written with a deep one, too."""
        value: Any = "x"
        depth = 5000
        for _ in range(depth):
            value = {**unit, "a": value} if isinstance(unit, dict) else [value, 1]
        opening, closing = (b'{"a":', b',"b":1}') if isinstance(unit, dict) else (b"[", b",1]")
        assert dump(value) == opening * depth + b'"x"' + closing * depth

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
        batch = parse(b'[{"method":"a","id":1},{"method":"n"},7,{"method":"b","id":"1"}]')
        numbers = count()
        body, old_ids, old_tokens = renumbered(batch, lambda old: f"r{next(numbers)}")
        assert json.loads(body) == [{"method": "a", "id": "r0"}, {"method": "n"}, 7, {"method": "b", "id": "r1"}]
        assert (old_ids, old_tokens) == ({"r0": 1, "r1": "1"}, {})

    @pytest.mark.parametrize("body", [b'{"method":"n"}', b"null"])
    def test_without_a_request_nothing_changes(self, body: bytes) -> None:
        """Only requests have ids of their own."""
        assert renumbered(parse(body), str) == (body, {}, {})

    @pytest.mark.parametrize(
        ("answer", "mapped"),
        [
            pytest.param({"id": "r0", "result": {"id": "r0"}}, {"id": 7, "result": {"id": "r0"}}, id="response"),
            pytest.param({"id": "r0", "error": {}}, {"id": 7, "error": {}}, id="error"),
            pytest.param(
                {"method": "notifications/progress", "params": {"progressToken": "r1", "progress": 1}},
                {"method": "notifications/progress", "params": {"progressToken": "t", "progress": 1}},
                id="progress",
            ),
            pytest.param(
                [{"id": "r0", "result": 1}, {"id": 3, "result": 2}, 4],
                [{"id": 7, "result": 1}, {"id": 3, "result": 2}, 4],
                id="array",
            ),
        ],
    )
    def test_mapped_back(self, answer: Any, mapped: Any) -> None:
        """The client sees the id and token that it used."""
        assert mapped_back(answer, {"r0": 7}, {"r1": "t"}) == mapped

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param({"id": "other", "result": {}}, id="another request's answer"),
            pytest.param({"id": 7, "result": {}}, id="an id that is no string"),
            pytest.param({"id": "r0", "method": "ping"}, id="a question of the server"),
            pytest.param({"method": "notifications/progress", "params": {"progressToken": 1}}, id="another token"),
            pytest.param({"method": "notifications/progress", "params": {"progressToken": "x"}}, id="other text"),
            pytest.param([{"id": 7, "result": {}}, "r0"], id="array"),
            pytest.param("r0", id="text"),
        ],
    )
    def test_what_is_not_ours_is_the_same_object(self, answer: Any) -> None:
        """Bytes that need no change can be passed on as they came."""
        assert mapped_back(answer, {"r0": 7}, {"r1": "t"}) is answer

    @given(message_likes | st.lists(message_likes | json_values, max_size=3))
    def test_renumbering_law(self, value: Any) -> None:
        """Answers to a renumbered body, mapped back, carry exactly the ids that the client used."""
        original = parse(json.dumps(value).encode())
        numbers = count()
        body, old_ids, old_tokens = renumbered(original, lambda old: f"r{next(numbers)}")
        copy = parse(body)
        answers: list[Any] = [{"id": request.id, "result": {}} for request in copy.requests]
        returned = mapped_back(answers, old_ids, old_tokens)
        assert [answer["id"] for answer in returned] == [request.id for request in original.requests]
        assert len(old_ids) == len(original.requests)
        assert set(old_tokens) == {one.progress_token for one in copy.requests if one.progress_token is not None}
