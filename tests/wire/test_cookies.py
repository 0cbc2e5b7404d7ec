"""Load balancers' cookies: what is kept of an answer, and what goes with a request."""

from __future__ import annotations

import pytest

from mcp_sidecar.config import AFFINITY_COOKIES
from mcp_sidecar.wire.cookies import MAX_COOKIE_BYTES, MAX_COOKIES, Cookies, affinity_cookies, is_named, with_cookies
from mcp_sidecar.wire.headers import Pair

ALB = "AWSALB=abc+/=; Expires=Fri, 04 Dec 2026 10:00:00 GMT; Path=/"


def set_by(*lines: str) -> list[Pair]:
    return [("Content-Type", "application/json"), *(("set-cookie", line) for line in lines)]


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        pytest.param([ALB], (("AWSALB", "abc+/="),), id="an expiry with a comma"),
        pytest.param([ALB, "AWSALBCORS=abc; SameSite=None"], (("AWSALB", "abc+/="), ("AWSALBCORS", "abc")), id="AWS"),
        pytest.param(['GCLB="CIa"; path=/; HttpOnly'], (("GCLB", '"CIa"'),), id="a quoted value stays quoted"),
        pytest.param(["route=1.2|x", "INGRESSCOOKIE=y"], (("route", "1.2|x"), ("INGRESSCOOKIE", "y")), id="nginx"),
        pytest.param(["BIGipServer~a~p_80=1.2.3"], (("BIGipServer~a~p_80", "1.2.3"),), id="F5"),
        pytest.param(["SERVERID=; path=/"], (("SERVERID", ""),), id="an empty value"),
        pytest.param(["  SERVERID=s1  ; path=/"], (("SERVERID", "s1"),), id="blanks"),
        pytest.param(["session=secret", "XAWSALB=1", "awsalb=1", "routes=1", "JSESSIONID=1.n1"], (), id="of others"),
        pytest.param(["route=a", "route=b"], (("route", "b"),), id="the last one counts"),
        pytest.param(["route=a", "route=; Max-Age=0"], (), id="taken back"),
        pytest.param(["route=a; max-age = -1"], (), id="never given"),
        pytest.param(["route=a; Max-Age=60"], (("route", "a"),), id="for a minute"),
        pytest.param(["route", "=a", "route=a b", 'route="a', "route=a\x00", "route=\xe9"], (), id="no cookies"),
        pytest.param(["route=" + "a" * MAX_COOKIE_BYTES], (), id="too large"),
    ],
)
def test_only_a_balancers_cookies_are_kept(lines: list[str], kept: Cookies) -> None:
    """By name; any other cookie may be a user's credential, and those are never kept."""
    assert affinity_cookies(set_by(*lines), AFFINITY_COOKIES) == kept


def test_later_answers_renew_what_is_known() -> None:
    """AWS sets a new value with every answer."""
    known = affinity_cookies(set_by("AWSALB=1", "route=a"), AFFINITY_COOKIES)
    known = affinity_cookies(set_by("AWSALB=2"), AFFINITY_COOKIES, known)
    assert dict(known) == {"AWSALB": "2", "route": "a"}
    assert affinity_cookies(set_by(), AFFINITY_COOKIES, known) == known


def test_there_is_a_bound() -> None:
    """However many names a pattern lets pass."""
    assert len(affinity_cookies(set_by(*(f"AWSALB{n}=1" for n in range(99))), AFFINITY_COOKIES)) == MAX_COOKIES


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [("a", "a", True), ("A", "a", False), ("ab", "a", False), ("ab", "a*", True), ("a", "a*", True), ("x", "*", True)],
)
def test_a_pattern_may_end_with_a_star(name: str, pattern: str, fits: bool) -> None:
    """And has no other wildcard; names have case (RFC 6265 §5.3)."""
    assert is_named(name, [pattern]) is fits


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param([], [("Cookie", "route=a; SERVERID=s")], id="none"),
        pytest.param([("cookie", "x=1")], [("cookie", "x=1; route=a; SERVERID=s")], id="others"),
        pytest.param([("Cookie", "x=1;")], [("Cookie", "x=1; route=a; SERVERID=s")], id="with an end"),
        pytest.param([("Cookie", "")], [("Cookie", "route=a; SERVERID=s")], id="an empty line"),
        pytest.param([("Cookie", "route=mine; x")], [("Cookie", "route=mine; x; SERVERID=s")], id="one of them"),
        pytest.param([("Cookie", "SERVERID=1"), ("Cookie", "route=2")], None, id="all, in two lines"),
        pytest.param(
            [("Cookie", "a=1"), ("Cookie", "route=2")],
            [("Cookie", "a=1; SERVERID=s"), ("Cookie", "route=2")],
            id="two lines",
        ),
    ],
)
def test_the_clients_own_cookies_count(sent: list[Pair], expected: list[Pair] | None) -> None:
    """What it sends under a name is what the balancer gets; the rest is added to its line."""
    headers = [("Accept", "*/*"), *sent]
    cookies = (("route", "a"), ("SERVERID", "s"))
    assert with_cookies(headers, cookies) == [("Accept", "*/*"), *(sent if expected is None else expected)]


def test_without_cookies_nothing_changes() -> None:
    """The usual case."""
    headers = [("Cookie", "x=1")]
    assert with_cookies(headers, ()) is headers
