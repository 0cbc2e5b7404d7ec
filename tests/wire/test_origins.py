"""Origins and hosts that may ask, and URLs that would lead past the sidecar."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire.origins import Move, canonical, host_of, is_allowed_host, is_allowed_origin, is_loopback

OWN: Final = ("http://127.0.0.1:8080", "https://mcp.example.com")
LISTED: Final = ("https://app.example.com", "http://tools.example.com:3000", "HTTPS://Upper.Example.com:443/")

ANYWHERE: Final = [
    pytest.param("http://127.0.0.1:8080", id="own"),
    pytest.param("https://mcp.example.com", id="own, public"),
    pytest.param("https://mcp.example.com:443", id="own, with its default port"),
    pytest.param("HTTPS://MCP.Example.COM", id="own, spelling"),
    pytest.param("https://mcp.example.com/", id="own, a slash"),
    pytest.param("https://app.example.com", id="listed"),
    pytest.param("http://tools.example.com:3000", id="listed, with a port"),
    pytest.param("https://upper.example.com", id="listed, spelling and port"),
]
LOOPBACK_ONLY: Final = [
    pytest.param("http://localhost", id="localhost"),
    pytest.param("http://localhost:5173", id="localhost, any port"),
    pytest.param("https://LOCALHOST", id="localhost, spelling"),
    pytest.param("http://127.0.0.1:6274", id="127.0.0.1"),
    pytest.param("http://127.9.9.9", id="another loopback address"),
    pytest.param("http://[::1]:3000", id="IPv6"),
    pytest.param("http://[0:0:0:0:0:0:0:1]", id="IPv6, spelt out"),
]
NOWHERE: Final = [
    pytest.param("null", id="null: a sandboxed page"),
    pytest.param("", id="empty"),
    pytest.param("*", id="a star"),
    pytest.param("https://evil.com", id="another"),
    pytest.param("http://mcp.example.com", id="another scheme"),
    pytest.param("https://mcp.example.com:8443", id="another port"),
    pytest.param("http://127.0.0.1.evil.com", id="a name that begins like ours"),
    pytest.param("https://evil.com.mcp.example.com", id="a subdomain"),
    pytest.param("https://mcp.example.com.evil.com", id="a name that goes on"),
    pytest.param("https://mcp.example.com@evil.com", id="ours as user"),
    pytest.param("https://evil.com@mcp.example.com", id="a user at ours"),
    pytest.param("http://user:pw@localhost", id="a user at loopback"),
    pytest.param("https://mcp.example.com/path", id="a path"),
    pytest.param("http://localhost?x", id="a query"),
    pytest.param("http://localhost#x", id="a fragment"),
    pytest.param("https://mcp.example.com, https://evil.com", id="two origins"),
    pytest.param("https://mcp.example.com https://evil.com", id="two origins, as RFC 6454 had it"),
    pytest.param("//localhost", id="no scheme"),
    pytest.param("localhost", id="no origin"),
    pytest.param("localhost:8080", id="a host for a scheme"),
    pytest.param("file://", id="no host"),
    pytest.param("http://", id="nothing behind the scheme"),
    pytest.param("http://[::1", id="half a bracket"),
    pytest.param("http://[::1]evil.com", id="more behind the bracket"),
    pytest.param("http://localhost:80:80", id="two ports"),
    pytest.param("http://localhost:99999", id="a port that is none"),
    pytest.param("http://localhost:-1", id="a negative port"),
    pytest.param("http://localhost\\.evil.com", id="a backslash"),
    pytest.param("http://sub.localhost", id="a name below localhost"),
    pytest.param("http://0.0.0.0", id="any address"),
    pytest.param("http://2130706433", id="an address in disguise"),
    pytest.param("http://127.1", id="a short address"),
    pytest.param("http://[::ffff:8.8.8.8]", id="a mapped address"),
    pytest.param("http://10.0.0.1", id="the private network"),
]


class TestOrigins:
    """Whose page may ask (2025-11-25 transports, "Security Warning")."""

    @pytest.mark.parametrize("origin", ANYWHERE)
    @pytest.mark.parametrize("on_loopback", [True, False])
    def test_own_and_listed(self, origin: str, on_loopback: bool) -> None:
        """The sidecar's own origins and listed ones may ask of any listener."""
        assert is_allowed_origin(origin, OWN, LISTED, on_loopback=on_loopback)

    @pytest.mark.parametrize("origin", LOOPBACK_ONLY)
    def test_loopback(self, origin: str) -> None:
        """A page of this machine may ask of a listener that only this machine reaches."""
        assert is_allowed_origin(origin, OWN, LISTED, on_loopback=True)
        assert not is_allowed_origin(origin, OWN, LISTED, on_loopback=False)

    @pytest.mark.parametrize("origin", NOWHERE)
    @pytest.mark.parametrize("on_loopback", [True, False])
    def test_others(self, origin: str, on_loopback: bool) -> None:
        """Everybody else, and whatever two parsers may read in two ways, is refused."""
        assert not is_allowed_origin(origin, OWN, LISTED, on_loopback=on_loopback)

    def test_what_is_listed_wrongly_allows_nothing(self) -> None:
        """A listed entry that is no origin does not open the door to what is none either."""
        assert not is_allowed_origin("null", ["null"], ["null", "*", ""], on_loopback=True)

    @given(st.text(max_size=30), st.booleans())
    def test_any_text(self, origin: str, on_loopback: bool) -> None:
        """No text makes it fail."""
        assert is_allowed_origin(origin, OWN, LISTED, on_loopback=on_loopback) in (True, False)

    @given(st.sampled_from(["http://", "https://", "//", ""]), st.text("abc.:@/?#[]\\%1 localhost", max_size=25))
    def test_what_is_allowed_is_plain(self, scheme: str, rest: str) -> None:
        """Whatever passes is an allowed origin by its canonical form, without anything besides."""
        origin = scheme + rest
        if is_allowed_origin(origin, OWN, LISTED, on_loopback=True):
            seen = canonical(origin)
            assert seen is not None
            assert is_allowed_origin(seen, OWN, LISTED, on_loopback=True)
            assert not set("@?#\\") & set(origin)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        pytest.param("http://A.example:80/x?y", "http://a.example", id="default port"),
        pytest.param("https://a.example:80", "https://a.example:80", id="another scheme's port"),
        pytest.param("http://a.example:0", "http://a.example:0", id="port 0"),
        pytest.param("http://a.example:", "http://a.example", id="no port behind the colon"),
        pytest.param("http://[FE80::1]:81", "http://[fe80::1]:81", id="IPv6"),
        pytest.param(" http://a.example ", "http://a.example", id="blanks"),
        pytest.param("ws://a.example:80", "ws://a.example:80", id="a scheme without a default"),
        pytest.param("/x", None, id="relative"),
        pytest.param("http://a.example:x", None, id="no port"),
        pytest.param("http://a.example:080", None, id="a port in disguise"),
        pytest.param("http://user@a.example", None, id="a user"),
    ],
)
def test_canonical(url: str, origin: str | None) -> None:
    """Two spellings of an origin are one."""
    assert canonical(url) == origin


LISTED_HOSTS = ["gateway.internal", "exact.internal:9999", "usual.internal:443"]


class TestHosts:
    """What may be asked of a loopback listener: after DNS rebinding a page's own name stands here."""

    @pytest.mark.parametrize(
        ("authority", "allowed"),
        [
            pytest.param("localhost", True, id="localhost"),
            pytest.param("LocalHost:8080", True, id="localhost, a port"),
            pytest.param("localhost.", True, id="localhost, rooted"),
            pytest.param("127.0.0.1:8080", True, id="an address"),
            pytest.param("[::1]:8080", True, id="IPv6"),
            pytest.param(" localhost ", True, id="blanks"),
            pytest.param("mcp.example.com", True, id="own"),
            pytest.param("gateway.internal:99", True, id="listed, any port"),
            pytest.param("Exact.internal:9999", True, id="listed with its port"),
            pytest.param("exact.internal:1234", False, id="listed with another port"),
            pytest.param("exact.internal", False, id="listed with a port, asked without"),
            pytest.param("usual.internal", True, id="listed with the port that goes without saying"),
            pytest.param("usual.internal:443", True, id="the same, said"),
            pytest.param("evil.com", False, id="another"),
            pytest.param("localhost.evil.com", False, id="begins like ours"),
            pytest.param("evil.com@localhost", False, id="a user"),
            pytest.param("localhost@evil.com", False, id="ours as user"),
            pytest.param("localhost/evil.com", False, id="a path"),
            pytest.param("localhost?evil.com", False, id="a query"),
            pytest.param("localhost#evil.com", False, id="a fragment"),
            pytest.param("localhost, evil.com", False, id="two"),
            pytest.param("[::1]evil.com", False, id="more behind the bracket"),
            pytest.param("[::1]@evil.com", False, id="an address as user"),
            pytest.param("localhost:80:80", False, id="two ports"),
            pytest.param("localhost:http", False, id="no port"),
            pytest.param("localhost\\evil.com", False, id="a backslash"),
            pytest.param("local\thost", False, id="a tab"),
            pytest.param("::1", False, id="IPv6 without brackets"),
            pytest.param("[::1", False, id="half a bracket"),
            pytest.param("", False, id="empty"),
            pytest.param(":8080", False, id="only a port"),
            pytest.param("0.0.0.0", False, id="any address"),
        ],
    )
    def test_allowed(self, authority: str, allowed: bool) -> None:
        """Loopback, the sidecar's own, and listed names."""
        assert is_allowed_host(authority, OWN, LISTED_HOSTS) is allowed

    @given(st.text(max_size=20))
    def test_any_text(self, authority: str) -> None:
        """No text makes it fail, and an empty host is nobody's."""
        assert is_allowed_host(authority, OWN, [""]) is (
            bool(host_of(authority)) and is_allowed_host(authority, OWN, [])
        )

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            pytest.param("localhost", True, id="localhost"),
            pytest.param("127.0.0.53", True, id="IPv4"),
            pytest.param("::1", True, id="IPv6"),
            pytest.param("0.0.0.0", False, id="any"),
            pytest.param("::", False, id="any, IPv6"),
            pytest.param("example.com", False, id="a name"),
            pytest.param("", False, id="empty"),
        ],
    )
    def test_loopback(self, host: str, loopback: bool) -> None:
        """Addresses are asked, not guessed from their text."""
        assert is_loopback(host) is loopback


class TestMove:
    """URLs of the upstream become URLs of the sidecar."""

    MOVE: Final = Move("http://10.0.0.5:9000", "https://mcp.example.com")

    @pytest.mark.parametrize(
        ("url", "moved"),
        [
            pytest.param("http://10.0.0.5:9000/mcp/?a=b#c", "https://mcp.example.com/mcp/?a=b#c", id="the upstream's"),
            pytest.param("HTTP://10.0.0.5:9000", "https://mcp.example.com", id="spelling"),
            pytest.param("http://10.0.0.5:9000/%2F;x=1?a=%20", "https://mcp.example.com/%2F;x=1?a=%20", id="escapes"),
            pytest.param("http://10.0.0.5/mcp", "http://10.0.0.5/mcp", id="another port"),
            pytest.param("https://10.0.0.5:9000/mcp/", "https://mcp.example.com/mcp/", id="the scheme of the edge"),
            pytest.param("ftp://10.0.0.5:9000/mcp", "ftp://10.0.0.5:9000/mcp", id="another scheme"),
            pytest.param("https://login.example.com/", "https://login.example.com/", id="another host"),
            pytest.param("/mcp/", "/mcp/", id="relative"),
            pytest.param("//10.0.0.5:9000/mcp?a", "https://mcp.example.com/mcp?a", id="without a scheme"),
            pytest.param("//10.0.0.5/mcp", "//10.0.0.5/mcp", id="another port, without a scheme"),
            pytest.param("//evil.com\\@10.0.0.5:9000/", "//evil.com\\@10.0.0.5:9000/", id="a backslash"),
            pytest.param("http://u:p@10.0.0.5:9000/x", "https://u:p@mcp.example.com/x", id="a user"),
            pytest.param("http://a@b@10.0.0.5:9000/x", "http://a@b@10.0.0.5:9000/x", id="two users"),
            pytest.param("http://10.0.0.5:9000@evil.com/x", "http://10.0.0.5:9000@evil.com/x", id="ours as user"),
            pytest.param("", "", id="empty"),
            pytest.param("http://[", "http://[", id="no URL"),
            pytest.param("http://10.0.0.5:x/", "http://10.0.0.5:x/", id="no port"),
        ],
    )
    def test_url(self, url: str, moved: str) -> None:
        """Only the origin changes, and only the upstream's."""
        assert self.MOVE.url(url) == moved

    @pytest.mark.parametrize(
        ("origin", "also", "url", "is_moved"),
        [
            ("http://server", (), "https://server/mcp/", True),
            ("http://server", (), "https://server:80/mcp/", True),
            ("https://server", (), "http://server:443/mcp/", True),
            ("http://server", (), "https://server:8443/mcp/", False),
            ("http://host.docker.internal:9000", ("localhost:9000",), "http://localhost:9000/mcp/", True),
            ("http://host.docker.internal:9000", ("localhost:9000",), "https://localhost:9000/mcp/", True),
            ("http://host.docker.internal:9000", ("localhost:9000",), "http://localhost/mcp/", False),
            ("http://10.0.0.5:9000", ("[::1]:9000",), "http://[::1]:9000/x", True),
            ("http://10.0.0.5:9000", ("not a host",), "http://10.0.0.5:9000/x", True),
        ],
    )
    def test_whatever_the_upstream_takes_for_itself(
        self, origin: str, also: tuple[str, ...], url: str, is_moved: bool
    ) -> None:
        """It has its scheme from the edge, its name from ``Host``, and leaves out the port of either scheme."""
        assert (Move(origin, "https://mcp.example.com", also).url(url) != url) is is_moved

    @pytest.mark.parametrize(
        ("challenge", "moved"),
        [
            (
                'Bearer resource_metadata="http://10.0.0.5:9000/.well-known/x/mcp", error="invalid_token"',
                'Bearer resource_metadata="https://mcp.example.com/.well-known/x/mcp", error="invalid_token"',
            ),
            (
                "Bearer error=x, Resource_Metadata = https://10.0.0.5:9000/m",
                "Bearer error=x, Resource_Metadata = https://mcp.example.com/m",
            ),
            ('Bearer resource_metadata="https://login.example.com/x"',) * 2,
            ('Bearer realm="http://10.0.0.5:9000/"',) * 2,
            ('Bearer my_resource_metadata="http://10.0.0.5:9000/x"',) * 2,
            ('Bearer resource_metadata="',) * 2,
            ("Negotiate",) * 2,
        ],
    )
    def test_challenge(self, challenge: str, moved: str) -> None:
        """Of a challenge only the URL of the resource's metadata (RFC 9728 §5.1), and only where it is the upstream's."""
        assert self.MOVE.headers([("WWW-Authenticate", challenge)]) == [("WWW-Authenticate", moved)]

    def test_headers(self) -> None:
        """Of all headers only those that say where something is are read."""
        url = "http://10.0.0.5:9000/x"
        pairs = [("location", url), ("Content-Location", url), ("Link", url), ("X", "y")]
        assert self.MOVE.headers(pairs) == [
            ("location", "https://mcp.example.com/x"),
            ("Content-Location", "https://mcp.example.com/x"),
            ("Link", url),
            ("X", "y"),
        ]

    @given(st.text(max_size=40))
    def test_any_text(self, url: str) -> None:
        """No text makes it fail, and what is not the upstream's stays."""
        assert self.MOVE.url(url) == url or "10.0.0.5:9000" in url
