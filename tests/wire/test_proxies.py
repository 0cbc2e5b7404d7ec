"""What a proxy in front says of the client, and whose word counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.config import NEAR_NETWORKS
from mcp_sidecar.wire.headers import Fields, Pair
from mcp_sidecar.wire.proxies import REMEMBERED_PEERS, TrustedProxies, told_origin


def fields(*pairs: Pair) -> Fields:
    """Headers as they came."""
    return Fields(list(pairs))


@pytest.mark.parametrize(
    ("peer", "is_near"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("172.31.255.255", True),
        ("172.32.0.1", False),
        ("192.168.0.1", True),
        ("fd00::1", True),
        ("::ffff:10.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("8.8.8.8", False),
        ("2001:db8::1", False),
        ("", False),
        ("nonsense", False),
        (None, False),
    ],
)
def test_loopback_and_private_ranges_are_near(peer: str | None, is_near: bool) -> None:
    """They are what an edge has, unless the operator says so more exactly."""
    assert TrustedProxies(NEAR_NETWORKS).holds(peer) is is_near
    assert not TrustedProxies(()).holds(peer)


def test_peers_are_remembered_and_bounded() -> None:
    """Whoever connects from a million addresses takes no memory, and is told apart as before."""
    proxies = TrustedProxies(["10.0.0.0/8"])
    for number in range(3 * REMEMBERED_PEERS):
        assert proxies.holds(f"10.0.{number // 256}.{number % 256}")
        assert not proxies.holds(f"11.0.{number // 256}.{number % 256}")


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([], (None, None)),
        ([("X-Forwarded-Proto", "https")], ("https", None)),
        ([("X-Forwarded-Proto", "HTTPS"), ("X-Forwarded-Host", "mcp.example.com:8443")], ("https", "mcp.example.com:8443")),
        ([("X-Forwarded-Proto", "javascript"), ("X-Forwarded-Host", "a b")], (None, None)),
        ([("X-Forwarded-Host", "evil.example/path")], (None, None)),
        ([("X-Forwarded-Host", "user@evil.example")], (None, None)),
        ([("X-Forwarded-Host", "evil.example, edge.example")], (None, "edge.example")),
        ([("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Host", "edge.example")], (None, "edge.example")),
        ([("X-Forwarded-Host", "evil.example,")], (None, None)),
        ([("Forwarded", "for=1.2.3.4;proto=https;host=mcp.example.com")], ("https", "mcp.example.com")),
        ([("Forwarded", 'for="[2001:db8::1]:4711" ; Proto=https ;host="mcp.example.com:8443"')], ("https", "mcp.example.com:8443")),
        ([("Forwarded", "host=evil.example;proto=http, host=edge.example;proto=https")], ("https", "edge.example")),
        ([("Forwarded", "proto=https"), ("Forwarded", "for=10.0.0.1")], (None, None)),
        ([("Forwarded", "proto=https;host")], (None, None)),
        ([("Forwarded", 'proto="https')], (None, None)),
        ([("Forwarded", "proto=http;host=a.example"), ("X-Forwarded-Proto", "https")], ("https", "a.example")),
    ],
)  # fmt: skip
def test_what_the_last_proxy_says(pairs: list[Pair], told: tuple[str | None, str | None]) -> None:
    """The last value is its own; what is not in order is not said."""
    assert told_origin(fields(*pairs)) == told


@given(st.lists(st.sampled_from(["X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"])), st.text(max_size=40))
def test_any_text(names: list[str], text: str) -> None:
    """No text makes it fail, and only a host and one of two schemes come out of it."""
    said = text.replace("\n", "").replace("\r", "")
    scheme, host = told_origin(Fields([(name, said) for name in names]))
    assert scheme in (None, "http", "https")
    assert host is None or not set(host) & set("/?#@ ")
