"""What outlives the process: it is written and read without loss, and no bytes make a reader fail."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.client_state import ClientState
from mcp_sidecar.healing.handshake import MAX_PARAMS_BYTES, Handshake
from mcp_sidecar.healing.lists import DIGEST_BYTES, LISTINGS
from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.record import (
    MAX_INSTANCES,
    MAX_RECORD_BYTES,
    VERSION,
    Instance,
    LaterVersion,
    SessionRecord,
    Unreadable,
    UpstreamSessionId,
    decode,
    encode,
    rebased,
)
from tests.healing import samples
from tests.support.sessions import HERE, a_record

texts = st.text(st.characters(codec=None), max_size=6)  # lone surrogates, too: JSON can say them
seconds = st.floats(-1e12, 1e12)
cookies = st.dictionaries(st.sampled_from(["AWSALB", "route"]), st.text("ab.1", max_size=4)).map(
    lambda found: tuple(found.items())
)
instances = st.builds(Instance, texts, st.none() | texts.map(UpstreamSessionId), texts, cookies)
records = st.builds(
    SessionRecord,
    handshake=st.builds(
        Handshake.of,
        samples.json_objects,
        samples.json_objects.map(lambda more: {**more, "protocolVersion": "2025-06-18"}),
    ),
    principal=st.binary(max_size=16).map(Principal),
    tag=texts,
    created_at=seconds,
    last_used_at=seconds,
    instances=st.lists(instances, max_size=MAX_INSTANCES, unique_by=lambda one: one.key).map(tuple),
    client_state=st.builds(ClientState, st.none() | texts, st.lists(texts, max_size=3).map(tuple)),
    lists=st.dictionaries(st.sampled_from(sorted(LISTINGS)), st.integers(0, 256**DIGEST_BYTES - 1)).map(
        lambda found: tuple(found.items())
    ),
    safe_tools=st.frozensets(texts, max_size=3),
    is_used=st.booleans(),
    revision=st.integers(0, 2**63),
)
SAMPLE: Final = a_record(
    "u", safe_tools=frozenset({"read"}), client_state=ClientState("info", ("a",)), lists=(("tools/list", 7),)
)


def encoded(record: SessionRecord) -> bytes:
    data = encode(record)
    assert data is not None
    return data


def with_members(record: SessionRecord, **members: Any) -> bytes:
    """The record's bytes with some members as given; ``...`` leaves one out."""
    data = encoded(record)
    changed = {**json.loads(data[1:]), **members}
    return data[:1] + json.dumps({name: value for name, value in changed.items() if value is not ...}).encode()


@given(records)
def test_a_record_is_read_as_it_was_written(record: SessionRecord) -> None:
    """Whatever a client or a server has said of itself."""
    assert decode(encoded(record)) == record


@given(records, st.dictionaries(st.text(max_size=4).map("later-".__add__), samples.json_values, max_size=3))
def test_unknown_members_are_kept(record: SessionRecord, added: dict[str, Any]) -> None:
    """Old and new sidecars share a store during every roll-out: what the new one says survives the old one."""
    read = decode(with_members(record, **added))
    assert isinstance(read, SessionRecord)
    written = json.loads(encoded(replace(read, revision=read.revision + 1))[1:])
    assert {name: written[name] for name in added} == added


@given(st.binary(max_size=200))
def test_hostile_bytes(data: bytes) -> None:
    """Bytes that nobody wrote are refused as a value, whatever they are."""
    assert isinstance(decode(data), Unreadable | LaterVersion)
    assert isinstance(decode(bytes((VERSION,)) + data), Unreadable)


@given(st.data())
def test_damaged_records(data: st.DataObject) -> None:
    """A flipped byte is refused or changes some text; it is never an exception, nor a record that cannot be written again."""
    good = bytearray(encoded(SAMPLE))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    read = decode(bytes(good))
    assert isinstance(read, Unreadable | LaterVersion | SessionRecord)
    if isinstance(read, SessionRecord):
        assert decode(encoded(read)) == read


@given(st.sampled_from(sorted(json.loads(encoded(SAMPLE)[1:]))), samples.json_values)
def test_members_of_other_kinds(name: str, value: Any) -> None:
    """A member that is something else is refused, or is such a value by chance."""
    read = decode(with_members(SAMPLE, **{name: value}))
    if isinstance(read, SessionRecord):
        assert decode(encoded(read)) == read
    else:
        assert isinstance(read, Unreadable)


@pytest.mark.parametrize(
    "members",
    [
        *({name: ...} for name in json.loads(encoded(SAMPLE)[1:]) if name not in ("level", "cookies")),
        {"params": "{"},
        {"params": "[]"},
        {"params": '{"x":NaN}'},
        {"params": "{" + '"x":[' * 100_000},
        {"params": json.dumps({"x": "x" * MAX_PARAMS_BYTES})},
        {"result": "\ud800"},
        {"principal": "xy"},
        {"created": True},
        {"created": float("inf")},
        {"created": 10**400},
        {"revision": -1},
        {"revision": 1.5},
        {"instances": [["a", "b"]]},
        {"instances": [["a", 1, "w"]]},
        {"subscriptions": [1]},
        {"level": 1},
        {"lists": {"tools/list": "-1"}},
        {"lists": {"tools/list": "f" * 40}},
        {"lists": {"tools/list": "no"}},
        {"used": 1},
    ],
    ids=lambda members: str(members)[:40],
)
def test_what_is_refused(members: dict[str, Any]) -> None:
    """Each member must be there, of its kind and within its bounds; nothing of it is quoted."""
    read = decode(with_members(SAMPLE, **members))
    assert isinstance(read, Unreadable)
    assert len(read.reason) < 40


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", Unreadable("no version"), id="nothing"),
        pytest.param(b"\x00{}", Unreadable("no version"), id="version 0"),
        pytest.param(b"\x02anything", LaterVersion(2), id="the next version"),
        pytest.param(b"\xff", LaterVersion(255), id="the last version"),
        pytest.param(b"\x01" + b"[" * 100_000, Unreadable("not JSON"), id="deep"),
        pytest.param(b"\x01\xff", Unreadable("not JSON"), id="not UTF-8"),
        pytest.param(b"\x01[]", Unreadable("no JSON object"), id="no object"),
        pytest.param(b"\x01" + b" " * MAX_RECORD_BYTES, Unreadable("too large"), id="too large"),
    ],
)
def test_other_versions_and_no_records(data: bytes, expected: object) -> None:
    """The first byte is the version; of a later one nothing else is looked at."""
    assert decode(data) == expected


def test_a_list_that_is_not_compared_here() -> None:
    """A digest of a method that this version does not know is no reason to give the session up."""
    read = decode(with_members(SAMPLE, lists={"tools/list": "7", "later/list": "1"}))
    assert isinstance(read, SessionRecord)
    assert read.lists == (("tools/list", 7),)


def test_a_record_without_end_is_not_stored() -> None:
    """A server may name any number of tools: a session of such a one lives in this process only."""
    assert encode(replace(SAMPLE, safe_tools=frozenset(f"{n:01000d}" for n in range(1100)))) is None


def test_only_so_many_instances_are_kept() -> None:
    """The newest; a roll-out every hour does not make the record grow."""
    record = SAMPLE
    for number in range(3 * MAX_INSTANCES):
        record = record.standing_at(Instance(f"i{number}", UpstreamSessionId("u"), "w"))
    assert [one.key for one in record.instances] == [f"i{3 * MAX_INSTANCES - 1 - n}" for n in range(MAX_INSTANCES)]
    again = record.standing_at(Instance("i40", UpstreamSessionId("v"), "w"))
    assert (again.instances[0].upstream_id, len(again.instances)) == ("v", MAX_INSTANCES)


class TestCookies:
    """They lead to one upstream session, and are for no other."""

    LED = a_record("u", instances=(Instance(HERE, UpstreamSessionId("u"), "w", (("AWSALB", "a"),)),))

    def test_a_sidecar_that_knew_none_has_healed_it(self) -> None:
        """It kept them as they were, beside another upstream session: they count for nothing any more."""
        read = decode(with_members(self.LED, instances=[[HERE, "v", "x"]]))
        assert isinstance(read, SessionRecord)
        assert read.instances == (Instance(HERE, UpstreamSessionId("v"), "x"),)

    def test_a_record_without_them(self) -> None:
        """Those who wrote it knew none."""
        read = decode(with_members(self.LED, cookies=...))
        assert isinstance(read, SessionRecord)
        assert read.instances[0].cookies == ()

    @pytest.mark.parametrize(
        "damaged", [[[HERE, "u", "w", {"a": "b\r\nc"}]], [[HERE, "u", "w", {"a b": ""}]], [[1]], 7]
    )
    def test_what_is_no_cookie(self, damaged: Any) -> None:
        """Nothing of it goes into a header."""
        assert isinstance(decode(with_members(self.LED, cookies=damaged)), Unreadable)

    def test_they_are_shown_nowhere(self) -> None:
        """Not even where a record is printed."""
        assert "AWSALB" not in repr(self.LED)


class TestRebased:
    """Two processes have written from the same base: neither loses what it learnt."""

    def test_each_keeps_what_it_changed(self) -> None:
        """Theirs, with what was changed here; of the instances only our own."""
        theirs = replace(
            SAMPLE.standing_at(Instance("there", UpstreamSessionId("t"), "w")),
            client_state=ClientState("debug", ("a",)),
            revision=5,
        )
        mine = replace(SAMPLE.standing_at(Instance(HERE, UpstreamSessionId("m"), "x")), safe_tools=frozenset({"new"}))
        merged = rebased(mine, SAMPLE, theirs, HERE)
        assert {one.key: one.upstream_id for one in merged.instances} == {HERE: "m", "there": "t"}
        assert merged.client_state.log_level == "debug"
        assert merged.safe_tools == {"new"}
        assert merged.revision == 5

    def test_an_id_that_was_given_up_here(self) -> None:
        """It is not brought back by what another wrote."""
        merged = rebased(SAMPLE.not_at(HERE), SAMPLE, replace(SAMPLE, revision=2), HERE)
        assert merged.at(HERE) is None

    @given(records, records)
    def test_what_was_not_changed_is_theirs(self, base: SessionRecord, theirs: SessionRecord) -> None:
        """Who has nothing to say only moves on."""
        merged = rebased(base, base, theirs, HERE)
        later = max(base.last_used_at, theirs.last_used_at)
        assert merged == replace(theirs, last_used_at=later, is_used=base.is_used or theirs.is_used)
