"""What is kept of a handshake, what is said again, and which differences matter."""

from __future__ import annotations

import copy
import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.handshake import (
    INCOMPATIBLE,
    INITIALIZED,
    MAX_PARAMS_BYTES,
    Difference,
    Handshake,
    differences,
    is_same_server,
)
from mcp_sidecar.healing.policy import OnServerChange
from mcp_sidecar.wire.jsonrpc import MAX_DEPTH, parse
from tests.healing import samples

PARAMS: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"roots": {"listChanged": True}},
    "clientInfo": {"name": "é", "version": "1"},
    "_meta": {"x": 1},
}
RESULT: Final[dict[str, Any]] = {
    "protocolVersion": "2025-06-18",
    "serverInfo": {"name": "s", "version": "1"},
    "capabilities": {
        "tools": {"listChanged": True},
        "resources": {"subscribe": True, "listChanged": True},
        "logging": {},
        "prompts": {"listChanged": False},
        "experimental": {"x": {"mode": "a", "deep": {"on": True}}},
    },
    "instructions": "Be kind.",
    "_meta": {"trace": "1"},
}
UNLISTED: Final[dict[str, Any]] = {**RESULT, "capabilities": {"tools": {"listChanged": True}}}
RECORDED: Final = Handshake.of(PARAMS, RESULT)

NAME, VERSION, DETAILS = Difference.SERVER_NAME, Difference.PROTOCOL_VERSION, Difference.SERVER_DETAILS
REMOVED, LISTS, SAID = Difference.CAPABILITY_REMOVED, Difference.UNANNOUNCED_LISTS, Difference.INSTRUCTIONS


def changed(base: dict[str, Any], *path: str, to: Any = ...) -> dict[str, Any]:
    """A copy with one member changed or, without ``to``, removed."""
    copied = copy.deepcopy(base)
    inner = copied
    for name in path[:-1]:
        inner = inner[name]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return copied


class TestHandshake:
    """The client's own words, but for the version."""

    def test_the_request_of_a_heal(self) -> None:
        """The negotiated version is offered, not the client's newest; all else is as the client said it (lifecycle, "Version Negotiation")."""
        request = parse(RECORDED.initialize_request("id-1"))
        assert (request.method, request.id) == ("initialize", "id-1")
        assert request.params == {**PARAMS, "protocolVersion": "2025-06-18"}

    def test_what_is_kept_is_compact(self) -> None:
        """Only what is compared is kept of the result, without a blank."""
        assert set(json.loads(RECORDED.result)) == {"serverInfo", "capabilities", "instructions"}
        assert b": " not in RECORDED.params + RECORDED.result

    def test_initialized(self) -> None:
        """The second message of the handshake has no params and no id."""
        assert json.loads(INITIALIZED) == {"jsonrpc": "2.0", "method": "notifications/initialized"}

    @given(samples.json_objects, samples.json_objects)
    def test_any_params_survive(self, params: dict[str, Any], result: dict[str, Any]) -> None:
        """Whatever a client said is said again, and compares equal to itself."""
        result = {**result, "protocolVersion": "2025-06-18"}
        handshake = Handshake.of(params, result)
        assert parse(handshake.initialize_request("i")).params == {**params, "protocolVersion": "2025-06-18"}
        assert differences(handshake, result) == set()

    def test_deep_params_survive(self) -> None:
        """What is read at all can be written, however deep."""
        deep: list[Any] = []
        for _ in range(MAX_DEPTH):
            deep = [deep]
        params = {"capabilities": {"experimental": {"x": deep}}}
        assert Handshake.of(params, RESULT).initialize_request("i").count(b"[") == MAX_DEPTH + 1


class TestDifferences:
    """Spec §4, row by row."""

    @pytest.mark.parametrize(
        ("base", "result", "found"),
        [
            pytest.param(RESULT, RESULT, set(), id="nothing"),
            pytest.param(RESULT, dict(reversed(RESULT.items())), set(), id="order"),
            pytest.param(RESULT, changed(RESULT, "_meta"), set(), id="_meta"),
            pytest.param(RESULT, changed(RESULT, "protocolVersion", to="2025-03-26"), {VERSION}, id="version"),
            pytest.param(RESULT, changed(RESULT, "protocolVersion"), {VERSION}, id="no version"),
            pytest.param(
                UNLISTED, changed(UNLISTED, "serverInfo", "name", to="t"), {NAME, DETAILS}, id="another server's name"
            ),
            pytest.param(UNLISTED, changed(UNLISTED, "serverInfo", to=None), {NAME, DETAILS}, id="no server info"),
            pytest.param(
                UNLISTED, changed(UNLISTED, "serverInfo", "version", to="2"), {DETAILS}, id="another server's version"
            ),
            pytest.param(UNLISTED, changed(UNLISTED, "serverInfo", "title", to="T"), {DETAILS}, id="a title"),
            pytest.param(
                RESULT, changed(RESULT, "serverInfo", "version", to="2"), {DETAILS, LISTS}, id="a list never announced"
            ),
            pytest.param(RESULT, changed(RESULT, "instructions", to="Be rude."), {SAID}, id="instructions"),
            pytest.param(RESULT, changed(RESULT, "instructions"), {SAID}, id="no instructions"),
            pytest.param(
                changed(RESULT, "instructions"), changed(RESULT, "instructions", to=""), set(), id="empty ones"
            ),
            pytest.param(RESULT, changed(RESULT, "capabilities", "completions", to={}), set(), id="added"),
            pytest.param(RESULT, changed(RESULT, "capabilities", "tools", "x", to=True), set(), id="widened"),
            pytest.param(RESULT, changed(RESULT, "capabilities", "logging"), {REMOVED}, id="logging removed"),
            pytest.param(RESULT, changed(RESULT, "capabilities", to=None), {REMOVED}, id="all removed"),
            pytest.param(
                RESULT, changed(RESULT, "capabilities", "resources", "subscribe"), {REMOVED}, id="subscribe removed"
            ),
            pytest.param(
                RESULT, changed(RESULT, "capabilities", "resources", "subscribe", to=False), {REMOVED}, id="denied"
            ),
            pytest.param(
                RESULT, changed(RESULT, "capabilities", "tools", "listChanged"), {REMOVED}, id="no more announcements"
            ),
            pytest.param(
                RESULT, changed(RESULT, "capabilities", "logging", to=True), {REMOVED}, id="no object any more"
            ),
            pytest.param(
                RESULT,
                changed(RESULT, "capabilities", "experimental", "x", "deep", "on"),
                {REMOVED},
                id="a removed experiment",
            ),
            pytest.param(
                RESULT, changed(RESULT, "capabilities", "experimental", "x", "mode", to="b"), set(), id="another value"
            ),
            pytest.param(
                RESULT, changed(RESULT, "capabilities", "prompts", "listChanged"), set(), id="what was never promised"
            ),
            pytest.param(
                changed(RESULT, "capabilities", "completions", to=None), RESULT, set(), id="null promises nothing"
            ),
        ],
    )
    def test_found(self, base: dict[str, Any], result: dict[str, Any], found: set[Difference]) -> None:
        """Parsed objects are compared; what is added, or says nothing, is no difference."""
        assert differences(Handshake.of(PARAMS, base), result) == found

    def test_deep_capabilities(self) -> None:
        """Comparing does not recurse."""
        old: dict[str, Any] = {}
        for _ in range(300):
            old = {"x": old}
        assert differences(Handshake.of({}, {**RESULT, "capabilities": old}), {**RESULT, "capabilities": {}}) == {
            REMOVED
        }

    @given(samples.json_objects)
    def test_any_result_can_be_compared(self, result: dict[str, Any]) -> None:
        """Whatever a new server says, comparing it does not fail."""
        result = dict(zip([*RESULT, "x"], result.values(), strict=False))
        assert differences(RECORDED, result) <= set(Difference)


class TestWhatEndsASession:
    """Two policies, one table."""

    @pytest.mark.parametrize(
        ("difference", "adapt", "reset"),
        [
            pytest.param(VERSION, True, True, id="protocol version"),
            pytest.param(NAME, True, True, id="server name"),
            pytest.param(REMOVED, False, True, id="capability removed"),
            pytest.param(LISTS, False, True, id="unannounced lists"),
            pytest.param(SAID, False, True, id="instructions"),
            pytest.param(DETAILS, False, False, id="server version"),
        ],
    )
    def test_incompatible(self, difference: Difference, adapt: bool, reset: bool) -> None:
        """Adapt ends a session only where going on would be wrong, reset as strictly as the specification allows."""
        assert (difference in INCOMPATIBLE[OnServerChange.ADAPT]) is adapt
        assert (difference in INCOMPATIBLE[OnServerChange.RESET]) is reset

    @pytest.mark.parametrize(
        ("found", "same"),
        [
            pytest.param(set(), True, id="equal"),
            pytest.param({SAID, REMOVED}, True, id="the same version"),
            pytest.param({DETAILS}, False, id="another version"),
            pytest.param({NAME, DETAILS}, False, id="another server"),
        ],
    )
    def test_what_was_said_of_tools(self, found: set[Difference], same: bool) -> None:
        """Hints hold for the server and version that gave them (tools, annotations)."""
        assert is_same_server(frozenset(found)) is same


@pytest.mark.parametrize(("size", "too_large"), [(100, False), (MAX_PARAMS_BYTES, True)], ids=["usual", "too large"])
def test_what_a_client_says_of_itself_is_bounded(size: int, too_large: bool) -> None:
    """Every session keeps it, so there is a size from which on it is not kept."""
    params = {"capabilities": {"experimental": {"x": "y" * size}}}
    assert Handshake.of(params, {"protocolVersion": "2025-06-18"}).is_too_large is too_large


@given(st.text(max_size=5))
def test_any_id_can_be_asked_under(request_id: str) -> None:
    """The id of our request is a JSON string, whatever it holds."""
    assert parse(RECORDED.initialize_request(request_id)).id == request_id
