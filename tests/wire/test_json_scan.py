"""The incremental scan: the same facts as a parser tells, from any chunks, in bounded memory and time."""

from __future__ import annotations

import json
import time
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire.json_scan import (
    DECODER,
    MAX_KEPT_BYTES,
    META_PROTOCOL_VERSION,
    NotJson,
    TopLevelScan,
    array_members,
    finite_number,
    valid_id,
)

MIB = 1024 * 1024
CHUNK_BYTES = 64 * 1024
SECONDS_PER_MIB = 6.0  # for a busy machine under coverage; real figures are 0.01 to 1

keys = st.sampled_from(
    ["method", "id", "result", "error", "params", "_meta", META_PROTOCOL_VERSION, "a", "", '"\\', "é"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
messages = st.dictionaries(keys, values | st.dictionaries(keys, st.dictionaries(keys, values)), max_size=7)
cuts = st.lists(st.integers(0, 200), max_size=8)
TOKENS = [*'{}[],:"\\1-e', "true", "nul", "é", '"a"', '"id":1,', '"method":"x"', '{"a":1}', "\n"]


def scanned(body: bytes, cut_at: list[int] | None = None) -> TopLevelScan:
    scan = TopLevelScan()
    places = [0, *sorted(min(place, len(body)) for place in cut_at or ()), len(body)]
    for start, end in pairwise(places):
        scan.feed(body[start:end])
    scan.finish()
    return scan


def facts(scan: TopLevelScan) -> dict[str, Any]:
    names = "is_array is_object method id has_method has_id has_result has_error error_is_object meta_protocol_version"
    return {name: getattr(scan, name) for name in names.split()}


def facts_of(value: Any) -> dict[str, Any]:
    """The facts as a parser tells them."""
    top = value if isinstance(value, dict) else {}
    params = top.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    version = meta.get(META_PROTOCOL_VERSION) if isinstance(meta, dict) else None
    return {
        "is_array": isinstance(value, list),
        "is_object": isinstance(value, dict),
        "method": top.get("method") if isinstance(top.get("method"), str) else None,
        "id": valid_id(top.get("id")),
        "has_method": "method" in top,
        "has_id": "id" in top,
        "has_result": "result" in top,
        "has_error": "error" in top,
        "error_is_object": isinstance(top.get("error"), dict),
        "meta_protocol_version": version if isinstance(version, str) else None,
    }


def outcome(body: bytes, cut_at: list[int]) -> dict[str, Any] | None:
    try:
        return facts(scanned(body, cut_at))
    except NotJson:
        return None


class TestFacts:
    @pytest.mark.parametrize(
        ("body", "told"),
        [
            pytest.param(b'{"method":"a","id":1}', {"method": "a", "id": 1}, id="request"),
            pytest.param(b'\xef\xbb\xbf \r\n{ "id" : "x" , "result" : { } } \t', {"id": "x"}, id="space and a BOM"),
            pytest.param(b'{"\\u006dethod":"\\u0061"}', {"method": "a"}, id="escaped key and value"),
            pytest.param(rb'{"id":"\"}\\","a":"\\\"","b":["\\","\"]"]}', {"id": '"}\\'}, id="escaped quotes"),
            pytest.param(b'{"id":-1.5e1}', {"id": -15.0}, id="a float id"),
            pytest.param(b'{"id":1e400}', {"id": 10**309}, id="an id beyond a double"),
            pytest.param(b'{"id":true}', {"id": None, "has_id": True}, id="true is no id"),
            pytest.param(b'{"id":{"a":1}}', {"id": None, "has_id": True}, id="an object is no id"),
            pytest.param(b'{"id":1,"id":[2]}', {"id": None}, id="the last id counts"),
            pytest.param(
                b'{"method":"a","method":{}}', {"method": None, "has_method": True}, id="the last method counts"
            ),
            pytest.param(
                b'{"error":{},"error":"x"}', {"error_is_object": False, "has_error": True}, id="the last error"
            ),
            pytest.param(b'{"error":{"a":[]}}', {"error_is_object": True}, id="error object"),
            pytest.param(
                b'{"a":{"method":"b","error":{}}}', {"has_method": False, "has_error": False}, id="nested keys"
            ),
            pytest.param(
                b'{"params":{"method":"b","error":{}}}', {"has_method": False, "error_is_object": False}, id="params"
            ),
            pytest.param(b'["]",{"method":"a"}]', {"is_array": True, "has_method": False}, id="array"),
            pytest.param(b'"text"', {"is_object": False}, id="text"),
            pytest.param(b"17", {"is_object": False}, id="number"),
            pytest.param(b'{"method":"' + b"m" * 4096 + b'"}', {"method": "m" * 4096}, id="a method just short enough"),
            pytest.param(
                b'{"method":"' + b"m" * 4097 + b'"}', {"method": None, "has_method": True}, id="too long a method"
            ),
            pytest.param(b'{"id":' + b"1" * 5000 + b"}", {"id": None, "has_id": True}, id="too long a number"),
            pytest.param(b'{"' + b"k" * 5000 + b'":{"method":1},"id":2}', {"id": 2}, id="too long a key"),
        ],
    )
    def test_facts(self, body: bytes, told: dict[str, Any]) -> None:
        """The top-level members of one JSON text are told, wherever it is cut."""
        for place in range(0, len(body) + 1, max(1, len(body) // 100)):
            found = facts(scanned(body, [place]))
            assert {name: found[name] for name in told} == told

    @pytest.mark.parametrize(
        ("params", "version"),
        [
            pytest.param('{"_meta":{"%s":"v"}}', "v", id="told"),
            pytest.param('{"_meta":{"x":{},"%s":"v","y":[1]},"arguments":{"_meta":{}}}', "v", id="among others"),
            pytest.param('{"_meta":{"%s":7}}', None, id="no string"),
            pytest.param('{"_meta":{"%s":"v","%s":[]}}', None, id="the last one counts"),
            pytest.param('{"_meta":{"%s":"v"},"_meta":{}}', None, id="the last _meta counts"),
            pytest.param('{"_meta":{"%s":"v"}},"params":[]', None, id="the last params counts"),
            pytest.param('[{"_meta":{"%s":"v"}}]', None, id="positional"),
            pytest.param('{"_meta":[{"%s":"v"}]}', None, id="_meta no object"),
            pytest.param('{"a":{"_meta":{"%s":"v"}}}', None, id="elsewhere"),
        ],
    )
    def test_meta_protocol_version(self, params: str, version: str | None) -> None:
        """A 2026-07-28 request is told by its body alone."""
        body = f'{{"params":{params},"id":1}}'.replace("%s", META_PROTOCOL_VERSION).encode()
        for place in range(len(body) + 1):
            assert scanned(body, [place]).meta_protocol_version == version

    def test_facts_are_told_as_they_pass(self) -> None:
        """A streamed request has its method and id before its end."""
        scan = TopLevelScan()
        scan.feed(b'{"method":"tools/call","id":3,"params":{"')
        assert (scan.method, scan.id, scan.complete) == ("tools/call", 3, False)
        scan.feed(b'a":1}}')
        assert scan.complete

    @given(messages | values, cuts, st.booleans())
    def test_tells_what_a_parser_tells(self, value: Any, cut_at: list[int], ascii_only: bool) -> None:
        """On every JSON text and every chunking the facts are those of the whole, parsed."""
        body = json.dumps(value, ensure_ascii=ascii_only).encode(errors="replace")
        told = facts_of(json.loads(body))
        assert facts(scanned(body, cut_at)) == told
        assert facts(scanned(body, list(range(len(body))))) == told

    @given(
        st.lists(st.sampled_from(TOKENS), max_size=25),
        cuts,
    )
    def test_any_text_has_one_outcome(self, tokens: list[str], cut_at: list[int]) -> None:
        """Chunks do not matter for text that is no JSON either, and what a parser takes the scan takes."""
        body = "".join(tokens).encode()
        told = outcome(body, cut_at)
        assert told == outcome(body, [])
        assert told == outcome(body, list(range(len(body))))
        try:
            value = DECODER.decode(body.decode())
        except ValueError:
            return
        assert told == facts_of(value)


class TestNotJson:
    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b" \n", id="space"),
            pytest.param(b"<html>", id="HTML"),
            pytest.param(b"{", id="cut object"),
            pytest.param(b'{"a', id="cut key"),
            pytest.param(b'{"a":[1', id="cut array"),
            pytest.param(b'{"a":"x\\', id="cut escape"),
            pytest.param(b"tru", id="cut literal"),
            pytest.param(b"{} x", id="text after the end"),
            pytest.param(b'{"a":1]', id="wrong bracket"),
            pytest.param(b'{"a":[1}}', id="wrong bracket inside"),
            pytest.param(b"]", id="closed before opened"),
            pytest.param(b"{,}", id="comma for a key"),
            pytest.param(b'{"a":1,}', id="no key after a comma"),
            pytest.param(b'{"a" 1}', id="no colon"),
            pytest.param(b'{"a":}', id="no value"),
            pytest.param(b'{"a":1 "b":2}', id="no comma"),
            pytest.param(b'{"id":NaN}', id="NaN"),
            pytest.param(b'{"id":-Infinity}', id="infinity"),
            pytest.param(b'{"id":1-2}', id="no number"),
            pytest.param(b'{"a":[x]}', id="no JSON inside"),
            pytest.param(b'{"a\nb":1}', id="a newline in a key"),
            pytest.param(b'{"id":"\xff"}', id="not UTF-8"),
            pytest.param(b'{"id":"\xed\xa0\x80"}', id="a surrogate in UTF-8"),
            pytest.param(b'"\xc3', id="cut UTF-8"),
            pytest.param("{}".encode("utf-16"), id="UTF-16"),
            pytest.param(b"\xef\xbb\xbf\xef\xbb\xbf{}", id="two byte order marks"),
        ],
    )
    def test_refused(self, body: bytes) -> None:
        """What cannot be JSON is refused, wherever it is cut, without being quoted."""
        for place in range(len(body) + 1):
            with pytest.raises(NotJson) as refusal:
                scanned(body, [place])
            assert refusal.value.__suppress_context__ or refusal.value.__context__ is None

    @given(st.binary(max_size=80), cuts)
    def test_any_bytes(self, body: bytes, cut_at: list[int]) -> None:
        """Random bytes raise NotJson or nothing."""
        assert outcome(body, cut_at) == outcome(body, [])


LARGE = 4 * MIB
LARGE_BODIES = [
    pytest.param(b'{"params":{"a":"' + b"QUJD" * (LARGE // 4) + b'"},"id":1}', id="base64"),
    pytest.param(b'{"params":{"a":[' + b"1," * (LARGE // 2) + b'1]},"id":1}', id="small numbers"),
    pytest.param(b'{"params":{"a":[' + b'"a",' * (LARGE // 4) + b'1]},"id":1}', id="small strings"),
    pytest.param(b'{"params":{"a":[' + b"[1]," * (LARGE // 4) + b'1]},"id":1}', id="small arrays"),
    pytest.param(b'{"a":' + b"[" * (LARGE // 2) + b"]" * (LARGE // 2) + b',"id":1}', id="deep"),
    pytest.param(b"{" + b'"a":[{}],' * (LARGE // 9) + b'"id":1}', id="many keys"),
    pytest.param(b"{" + b'"\\u0061":[[]],' * (MIB // 56) + b'"id":1}', id="many escaped keys"),
    pytest.param(b'{"a":"' + b"\\n" * (LARGE // 2) + b'","id":1}', id="escapes"),
    pytest.param(b'{"a":1' + b" " * LARGE + b',"id":1}', id="space"),
]


class TestBounds:
    @pytest.mark.parametrize("body", LARGE_BODIES)
    def test_time_is_linear_and_short(self, body: bytes) -> None:
        """No shape of text takes more than proportional time; the bound allows a busy machine."""
        scan = TopLevelScan()
        started = time.process_time()
        for start in range(0, len(body), CHUNK_BYTES):
            scan.feed(body[start : start + CHUNK_BYTES])
        scan.finish()
        assert time.process_time() - started < SECONDS_PER_MIB * len(body) / MIB
        assert scan.id == 1

    @pytest.mark.parametrize("body", LARGE_BODIES)
    def test_memory_is_bounded(self, body: bytes) -> None:
        """What a scan keeps depends on its chunks, not on the length of the text."""
        body = body[: MIB // 2]
        scan = TopLevelScan()
        tracemalloc.start()
        for start in range(0, len(body), 4096):
            scan.feed(body[start : start + 4096])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * MIB

    def test_many_names_are_not_kept(self) -> None:
        """Names that nobody asks for are not remembered."""
        scan = TopLevelScan()
        tracemalloc.start()
        scan.feed(b"{")
        for number in range(3000):
            scan.feed(b'"\\u0061%d%b":1,' % (number, b"k" * 1000))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < MAX_KEPT_BYTES * 20


class TestArrayMembers:
    @given(st.lists(values, max_size=5))
    def test_cut_at_the_commas_of_the_array(self, members: list[Any]) -> None:
        """Each member is cut out whole, whatever brackets and commas it holds."""
        body = json.dumps(members).encode()
        assert [json.loads(text) for text in array_members(body)] == json.loads(body)

    @pytest.mark.parametrize("body", [b"[]", b" [ \n] "])
    def test_an_empty_array_has_none(self, body: bytes) -> None:
        """Space is no member."""
        assert array_members(body) == []


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
