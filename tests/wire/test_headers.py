"""Which headers pass in which direction, and what is read in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire.headers import (
    HOP_BY_HOP,
    NOT_FOR_UPSTREAM,
    Fields,
    Pair,
    accepts,
    encoded_head,
    is_valid_session_id,
    media_type,
    one_hop_names,
    read_fields,
    value,
    values,
)

KEPT: Final = [
    ("Accept", "application/json"),
    ("accept", "text/event-stream"),
    ("Authorization", "Bearer x"),
    ("Origin", "http://a"),
    ("Set-Cookie", "a=1"),
    ("Set-Cookie", "b=2"),
    ("X-Custom", " kept as it is "),
]


def fields(pairs: Iterable[Pair]) -> Fields:
    """Headers as a reader tells them."""
    return Fields(list(pairs))


def for_upstream(pairs: Iterable[Pair], *, without: frozenset[str] = frozenset()) -> list[Pair]:
    """What is left of a client's headers, without what the sidecar says of itself."""
    *kept, proto = fields(pairs).for_upstream(without=without, peer=None, scheme="http", host=None)
    assert proto == ("X-Forwarded-Proto", "http")
    return kept


def for_client(pairs: Iterable[Pair], *, without: frozenset[str] = frozenset()) -> list[Pair]:
    """What is left of an upstream's headers."""
    return fields(pairs).for_client(without)


class TestDirections:
    """One table, two directions."""

    @pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
    @pytest.mark.parametrize("spelling", [str.lower, str.title, str.upper], ids=["lower", "title", "upper"])
    def test_hop_by_hop(self, name: str, spelling: type[str]) -> None:
        """What is about one hop passes in no direction, however it is spelt (RFC 9110 §7.6.1)."""
        pair = (spelling(name), "x")
        assert for_upstream([*KEPT, pair]) == for_client([*KEPT, pair]) == KEPT

    @pytest.mark.parametrize("name", sorted(NOT_FOR_UPSTREAM - HOP_BY_HOP))
    def test_not_for_upstream(self, name: str) -> None:
        """The upstream's own host, and the length of what is really sent; answers keep theirs."""
        pair = (name.title(), "x")
        assert for_upstream([*KEPT, pair]) == KEPT
        assert for_client([*KEPT, pair]) == [*KEPT, pair]

    def test_repeated_headers_keep_their_order(self) -> None:
        """Nothing is merged, sorted or spelt anew."""
        assert for_upstream(KEPT) == for_client(KEPT) == KEPT

    @pytest.mark.parametrize(
        ("connection", "dropped"),
        [
            pytest.param(["close"], set(), id="close"),
            pytest.param(["X-Custom"], {"x-custom"}, id="one"),
            pytest.param([" x-CUSTOM ,, Set-Cookie,"], {"x-custom", "set-cookie"}, id="a list with holes"),
            pytest.param(["X-Custom", "Set-Cookie"], {"x-custom", "set-cookie"}, id="two headers"),
            pytest.param([""], set(), id="empty"),
            pytest.param(['"X-Custom"'], set(), id="quoted is no name"),
        ],
    )
    def test_connection_listed(self, connection: list[str], dropped: set[str]) -> None:
        """Whatever Connection names is about this hop, too, in all its repetitions."""
        pairs = [("Connection", text) for text in connection] + KEPT
        expected = [pair for pair in KEPT if pair[0].lower() not in dropped]
        assert for_upstream(pairs) == for_client(pairs) == expected

    def test_without(self) -> None:
        """The caller's own names go, too."""
        assert for_upstream(KEPT, without=frozenset({"accept", "origin"})) == KEPT[2:3] + KEPT[4:]
        assert for_client(KEPT, without=frozenset({"set-cookie"})) == [*KEPT[:4], KEPT[6]]

    @given(st.lists(st.tuples(st.sampled_from(["Connection", "TE", "A", "b", "B", "Host"]), st.text(max_size=6))))
    def test_nothing_is_added(self, pairs: list[Pair]) -> None:
        """What passes is a part of what came, in its order, and nothing that is about one hop."""
        for kept in (for_upstream(pairs), for_client(pairs)):
            remaining = iter(pairs)
            assert all(pair in remaining for pair in kept)
            assert not {name.lower() for name, _ in kept} & one_hop_names(pairs)


class TestValues:
    """Reading one header."""

    def test_all_in_order(self) -> None:
        """Names are compared without case."""
        assert list(values(KEPT, "ACCEPT")) == ["application/json", "text/event-stream"]
        assert list(values(KEPT, "nothing")) == []

    def test_first(self) -> None:
        """The first value, or none."""
        assert value(KEPT, "set-cookie") == "a=1"
        assert value(KEPT, "nothing") is None
        assert value([("A", "")], "a") == ""


class TestForwarding:
    """Who asked, how, and for which host."""

    @pytest.mark.parametrize(
        ("pairs", "peer", "host", "expected"),
        [
            pytest.param(
                [],
                "10.0.0.1",
                "sidecar:8080",
                [("X-Forwarded-For", "10.0.0.1"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "sidecar:8080")],
                id="a direct client",
            ),
            pytest.param(
                [("x-forwarded-for", "1.1.1.1"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "example.com")],
                "10.0.0.1",
                "sidecar:8080",
                [
                    ("X-Forwarded-Proto", "https"),
                    ("X-Forwarded-Host", "example.com"),
                    ("X-Forwarded-For", "1.1.1.1, 10.0.0.1"),
                ],
                id="behind an edge",
            ),
            pytest.param(
                [("X-Forwarded-For", "1.1.1.1, 2.2.2.2"), ("A", "b"), ("X-Forwarded-For", "3.3.3.3")],
                "::1",
                None,
                [("A", "b"), ("X-Forwarded-For", "1.1.1.1, 2.2.2.2, 3.3.3.3, ::1"), ("X-Forwarded-Proto", "http")],
                id="a chain in two headers, no host",
            ),
            pytest.param([], None, None, [("X-Forwarded-Proto", "http")], id="no peer, no host"),
        ],
    )
    def test_with_forwarding(self, pairs: list[Pair], peer: str | None, host: str | None, expected: list[Pair]) -> None:
        """The peer is appended; what an edge in front has said of the client stays."""
        assert fields(pairs).for_upstream(without=frozenset(), peer=peer, scheme="http", host=host) == expected


class TestFields:
    """Headers as they came on the wire."""

    @given(st.lists(st.tuples(st.text("aB-", min_size=1), st.binary(max_size=9)), max_size=4))
    def test_bytes_survive(self, raw: list[tuple[str, bytes]]) -> None:
        """Whatever a value holds comes out as it went in, less the blanks around it, and names keep their spelling."""
        lines = b"".join(b"%b:%b\r\n" % (name.encode(), value) for name, value in raw)
        read = read_fields(lines.decode("utf-8", "surrogateescape"))
        if read is None:
            assert any(set(value) & {*range(9), *range(10, 32), 127} for _, value in raw)
            return
        found = [(name, value.encode("utf-8", "surrogateescape")) for name, value in read.pairs]
        assert found == [(name, value.strip(b" \t")) for name, value in raw]
        assert read.names == [name.lower() for name, _ in raw]

    def test_values(self) -> None:
        """All values of one name, in order."""
        assert fields(KEPT).values("accept") == ["application/json", "text/event-stream"]
        assert fields(KEPT).values("nothing") == fields([]).values("accept") == []

    def test_the_first_value(self) -> None:
        """It is what counts where there is to be one."""
        assert fields(KEPT).value("accept") == "application/json"
        assert fields(KEPT).value("nothing") is None

    def test_options(self) -> None:
        """A list of words may be spread over several headers."""
        assert fields([("Connection", "Close, x"), ("connection", "\tUPGRADE ,")]).options("connection") == [
            "close",
            "x",
            "upgrade",
            "",
        ]


class TestEncodedHead:
    """A head as it goes on the wire."""

    def test_lines(self) -> None:
        """Lines end in CRLF, the head in an empty one; bytes that are not UTF-8 go as they came."""
        assert encoded_head(["GET / HTTP/1.1", "A: caf\udce9"]) == b"GET / HTTP/1.1\r\nA: caf\xe9\r\n\r\n"

    @pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\r\nb: c", "a\0b"])
    def test_no_line_becomes_two(self, bad: str) -> None:
        """What another parser would read as a line of its own is refused."""
        with pytest.raises(ValueError, match="line break"):
            encoded_head(["GET / HTTP/1.1", f"A: {bad}"])


class TestSessionId:
    """Visible ASCII, of any length that a header can have."""

    @pytest.mark.parametrize(
        ("session_id", "valid"),
        [
            pytest.param("a", True, id="one"),
            pytest.param("!~", True, id="both ends of the range"),
            pytest.param("eyJ.eyJ.sig-_=", True, id="a JWT"),
            pytest.param("a" * 1024**2, True, id="as long as a header can be made"),
            pytest.param("", False, id="empty"),
            pytest.param("a b", False, id="a blank"),
            pytest.param("a\tb", False, id="a tab"),
            pytest.param("a\x7f", False, id="DEL"),
            pytest.param("\x00", False, id="NUL"),
            pytest.param("é", False, id="Latin"),
            pytest.param("\udce9", False, id="a raw byte"),
        ],
    )
    def test_is_valid(self, session_id: str, valid: bool) -> None:
        """An id is hostile input until it has passed here."""
        assert is_valid_session_id(session_id) is valid

    @given(st.text(max_size=5))
    def test_valid_ids_are_visible_ascii(self, session_id: str) -> None:
        """What passes can stand in a header, a log and a map."""
        assert is_valid_session_id(session_id) is (
            bool(session_id) and session_id.isascii() and session_id.isprintable() and " " not in session_id
        )


@pytest.mark.parametrize(
    ("content_type", "bare"),
    [
        pytest.param(None, "", id="none"),
        pytest.param("", "", id="empty"),
        pytest.param("Application/JSON ; charset=utf-8", "application/json", id="parameters"),
        pytest.param("text/event-stream;", "text/event-stream", id="a semicolon"),
        pytest.param(";text/plain", "", id="parameters only"),
    ],
)
def test_media_type(content_type: str | None, bare: str) -> None:
    """Parameters and spelling do not count."""
    assert media_type(content_type) == bare


@pytest.mark.parametrize(
    ("accept", "is_accepted"),
    [
        pytest.param([], False, id="nothing"),
        pytest.param(["text/event-stream"], True, id="that"),
        pytest.param(["application/json, Text/Event-Stream"], True, id="among others"),
        pytest.param(["application/json", "text/event-stream"], True, id="in two headers"),
        pytest.param(["text/event-stream; charset=utf-8;q=0.1"], True, id="with parameters"),
        pytest.param(["text/event-stream;q=0"], False, id="refused"),
        pytest.param(["text/event-stream; Q=0.000"], False, id="refused at length"),
        pytest.param(["text/event-stream;q=0, text/event-stream"], True, id="both"),
        pytest.param(["*/*, text/*"], False, id="wildcards"),
        pytest.param(["text/event-streams"], False, id="something else"),
        pytest.param([",;,q=0;"], False, id="nonsense"),
    ],
)
def test_accepts(accept: list[str], is_accepted: bool) -> None:
    """Only a type that is named, and not with the weight 0, is one that the client can read (RFC 9110 §12.5.1)."""
    assert accepts([("Accept", value) for value in accept], "text/event-stream") is is_accepted
