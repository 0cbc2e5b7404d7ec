"""Tokens that hold a session: what opens, what is rejected and why, and how long they are."""

from __future__ import annotations

import json
import random
import string
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.handshake import Difference, Handshake, differences
from mcp_sidecar.healing.principal import ANONYMOUS, Principal
from mcp_sidecar.healing.record import UpstreamSessionId
from mcp_sidecar.sessions.stores import sealed
from mcp_sidecar.sessions.stores.keys import Key, new_key, read_keys
from mcp_sidecar.sessions.stores.sealed import (
    EXPIRED,
    INSTANCE_BYTES,
    MAX_TOKEN_CHARS,
    OF_ANOTHER,
    PREFIX,
    UNKNOWN_KEY,
    UNREADABLE,
    Rejected,
    Sealed,
    Sealer,
    is_token,
)
from mcp_sidecar.sessions.stores.store import StoreUnusable
from tests.healing import samples

pytest.importorskip("cryptography")

OLD, NEW = new_key(), new_key()
SEALER: Final = Sealer(read_keys(OLD), "default")
NOW: Final = 1_800_000_000.0
ALICE: Final = Principal(b"alice's hash 16b")
RESULT: Final[dict[str, Any]] = {
    "protocolVersion": "2025-06-18",
    "serverInfo": {"name": "server", "version": "1.0.0"},
    "capabilities": {"logging": {}, "prompts": {"listChanged": False}, "tools": {"listChanged": True}},
    "instructions": None,
}
PARAMS: Final[dict[str, Any]] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"sampling": {}, "elicitation": {}, "roots": {"listChanged": True}},
    "clientInfo": {"name": "mcp", "version": "0.1.0"},
}
CONTENT: Final = Sealed(
    issued_at=NOW,
    lifetime_s=86_400,
    principal=ALICE,
    tag="0123456789ab",
    instance=b"i" * INSTANCE_BYTES,
    upstream_id=UpstreamSessionId("0190f7c0-1b0c-7cc6-8a3e-3f5a51ad5f8e"),
    handshake=Handshake.of(PARAMS, RESULT),
)


def alice(_: Key) -> Principal:
    return ALICE


def sealed_as(content: Sealed = CONTENT, sealer: Sealer = SEALER) -> str:
    token = sealer.seal(content)
    assert token is not None
    return token


TOKEN: Final = sealed_as()


class TestOpening:
    """Whole, or not at all."""

    def test_what_was_sealed(self) -> None:
        """Another process with the same keys has everything that a heal needs."""
        assert Sealer(read_keys(OLD), "default").open(TOKEN, alice, NOW) == CONTENT

    @given(
        st.builds(
            Sealed,
            issued_at=st.floats(0, 1e11),
            lifetime_s=st.integers(0, 2**32 - 1),
            principal=st.binary(max_size=16).map(Principal),
            tag=st.text(st.characters(codec="ascii"), max_size=12),
            instance=st.binary(min_size=INSTANCE_BYTES, max_size=INSTANCE_BYTES),
            upstream_id=st.none()
            | st.text(st.characters(codec="ascii"), min_size=1, max_size=40).map(UpstreamSessionId),
            handshake=st.builds(Handshake.of, samples.json_objects, st.just(RESULT)),
            cookies=st.sampled_from([(), (("route", ""),), (("AWSALB", "a+b/c=="), ("route", '"x"'))]),
        )
    )
    def test_any_session(self, content: Sealed) -> None:
        """Whatever a client has said of itself; a token can stand in a header."""
        token = SEALER.seal(content)
        assert token is not None and token.isascii() and token.isprintable() and " " not in token
        found = SEALER.open(token, lambda _: content.principal, content.issued_at - 1)
        assert found == content

    def test_no_two_are_the_same(self) -> None:
        """The session's random tag makes each another, from its first byte on, and nothing shows through."""
        other = sealed_as(replace(CONTENT, tag="0123456789ac"))
        start = len(PREFIX) + 8
        assert TOKEN[start : start + 8] != other[start : start + 8]
        assert "mcp" not in TOKEN[start:] and "0190" not in TOKEN[start:]

    def test_anonymous(self) -> None:
        """Who had no credentials is nobody's: with some it is another."""
        token = sealed_as(replace(CONTENT, principal=ANONYMOUS))
        assert isinstance(SEALER.open(token, lambda _: ANONYMOUS, NOW), Sealed)
        assert SEALER.open(token, alice, NOW) == OF_ANOTHER
        assert SEALER.open(TOKEN, lambda _: ANONYMOUS, NOW) == OF_ANOTHER

    @pytest.mark.parametrize(
        ("age", "is_over"), [(-600, False), (0, False), (86_399, False), (86_400, True), (1e9, True)]
    )
    def test_its_time(self, age: float, is_over: bool) -> None:
        """So long as it says, from its ``initialize`` on; a clock that is behind makes it no older."""
        assert (SEALER.open(TOKEN, alice, NOW + age) == EXPIRED) is is_over


class TestRejected:
    """Each for its reason, and without an exception."""

    def test_every_byte_flipped(self) -> None:
        """Not one of them opens."""
        for at in range(len(PREFIX), len(TOKEN)):
            for flipped in {"A", "b", "-", ".", "=", chr(ord(TOKEN[at]) ^ 1)} - {TOKEN[at]}:
                found = SEALER.open(TOKEN[:at] + flipped + TOKEN[at + 1 :], alice, NOW)
                assert found in (UNREADABLE, UNKNOWN_KEY), at

    def test_every_truncation(self) -> None:
        """Nor a part of one, nor one with something behind it."""
        for length in range(len(PREFIX), len(TOKEN)):
            assert isinstance(SEALER.open(TOKEN[:length], alice, NOW), Rejected)
        for more in ("A", "AAAA", ".", "=", "\n", " "):
            assert isinstance(SEALER.open(TOKEN + more, alice, NOW), Rejected)

    @given(st.text(max_size=60))
    def test_any_text(self, text: str) -> None:
        """Whatever a client makes up."""
        for token in (text, PREFIX + text, TOKEN[: len(PREFIX) + 7] + text):
            assert isinstance(SEALER.open(token, alice, NOW), Rejected)

    def test_of_another_namespace(self) -> None:
        """Two services with one key do not take each other's tokens."""
        assert Sealer(read_keys(OLD), "other").open(TOKEN, alice, NOW) == UNREADABLE

    def test_of_another_principal(self) -> None:
        """A token that was stolen is of no use without the credentials."""
        assert SEALER.open(TOKEN, lambda _: Principal(b"mallory's hash.."), NOW) == OF_ANOTHER

    def test_of_an_unknown_key(self) -> None:
        """Told apart, for that is what a rotation in the wrong order looks like."""
        assert Sealer(read_keys(NEW), "default").open(TOKEN, alice, NOW) == UNKNOWN_KEY

    @pytest.mark.parametrize("session_id", ["", "mcps2.abc.def", "1", "MCPS1.a.b", "mcps1"])
    def test_ids_of_upstreams(self, session_id: str) -> None:
        """They are none of ours, and a later version's token is no token here."""
        assert not is_token(session_id)


def test_rotation() -> None:
    """Append, move first, remove: at no step is there a token that a process of the step before or behind cannot open."""
    steps = [Sealer(read_keys(text), "default") for text in (OLD, f"{OLD}\n{NEW}", f"{NEW}\n{OLD}")]
    for one, other in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (0, 2)):
        assert steps[other].open(sealed_as(sealer=steps[one]), alice, NOW) == CONTENT


def test_the_principal_is_asked_for_under_the_tokens_key() -> None:
    """After a rotation a hash under the new key would be another's."""
    asked: list[Key] = []

    def principal(key: Key) -> Principal:
        asked.append(key)
        return ALICE

    Sealer(read_keys(f"{NEW}\n{OLD}"), "default").open(TOKEN, principal, NOW)
    assert asked == [read_keys(OLD).first]


class TestLength:
    """A token passes default proxies, or is not made."""

    def test_a_usual_client(self) -> None:
        """As measured for what clients say today; more would say that the dictionary does not fit any more."""
        assert len(TOKEN) < 260

    def test_cookies_that_do_not_fit(self) -> None:
        """They are left out: without them the session is healed, without a token it would be lost."""
        chance = random.Random(7)
        long = "".join(chance.choices(string.ascii_letters, k=MAX_TOKEN_CHARS))
        found = SEALER.open(sealed_as(replace(CONTENT, cookies=(("AWSALB", long),))), alice, NOW)
        assert found == CONTENT

    def test_what_a_server_says_at_length(self) -> None:
        """Of its instructions and its description a digest is kept, with which the same is still known as the same."""
        result = {
            **RESULT,
            "instructions": "Read this. " * 1000,
            "serverInfo": {"name": "server", "icons": ["x" * 5000]},
        }
        found = SEALER.open(sealed_as(replace(CONTENT, handshake=Handshake.of(PARAMS, result))), alice, NOW)
        assert isinstance(found, Sealed)
        assert differences(found.handshake, result) == frozenset()
        assert differences(found.handshake, {**result, "instructions": "Read that."}) == {Difference.INSTRUCTIONS}
        other = {**result, "serverInfo": {"name": "server", "icons": []}}
        assert Difference.SERVER_DETAILS in differences(found.handshake, other)
        assert Difference.SERVER_NAME not in differences(found.handshake, other)

    def test_pictures_of_a_client(self) -> None:
        """They are left out where there is no room; what else it says is kept."""
        icons = [
            {"src": "data:image/png;base64," + "".join(map(str, range(2000)))},
            {"src": "https://example.org/i.png"},
        ]
        params = {**PARAMS, "clientInfo": {**PARAMS["clientInfo"], "icons": icons}}
        found = SEALER.open(sealed_as(replace(CONTENT, handshake=Handshake.of(params, RESULT))), alice, NOW)
        assert isinstance(found, Sealed)
        assert json.loads(found.handshake.params)["clientInfo"] == {**PARAMS["clientInfo"], "icons": icons[1:]}

    @given(st.integers(0, 4000))
    def test_the_cap(self, size: int) -> None:
        """A client that says too much gets no token: its session lives in the process."""
        noise = "".join(f"{n * 7919 % 65536:x}" for n in range(size))
        params = {**PARAMS, "experimental": noise}
        token = SEALER.seal(replace(CONTENT, handshake=Handshake.of(params, RESULT)))
        assert token is None or len(token) <= MAX_TOKEN_CHARS
        assert (token is None) >= (size >= 3000)

    @pytest.mark.parametrize(
        "content",
        [
            replace(CONTENT, tag="x" * 256),
            replace(CONTENT, principal=Principal(b"x" * 256)),
            replace(CONTENT, upstream_id=UpstreamSessionId("x" * 70_000)),
            replace(CONTENT, handshake=Handshake(b"{}", "2025-06-18", b'{"capabilities":"%b"}' % (b"x" * 200_000))),
        ],
        ids=["tag", "principal", "upstream id", "capabilities"],
    )
    def test_what_cannot_be_packed(self, content: Sealed) -> None:
        """No token is made of it."""
        assert SEALER.seal(content) is None


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said at start."""
    monkeypatch.setattr(sealed, "AESSIV", None)
    with pytest.raises(StoreUnusable, match=r"mcp-sidecar\[sealed\]"):
        Sealer(read_keys(OLD), "default")
