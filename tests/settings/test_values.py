"""How single settings are read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.settings import values

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()), st.just({})
)


PARSERS: dict[str, Callable[[object], object]] = {
    "seconds": values.seconds(zero=True),
    "size": values.size(1),
    "items": values.items,
    "address": values.address,
    "address_or_off": values.address_or_off,
    "endpoint": values.words(values.endpoint),
    "http_url": values.words(lambda text: str(values.http_url(text))),
    "origins": values.each(values.words(values.origin)),
    "hosts": values.each(values.words(values.host_header)),
    "header_names": values.each(values.words(values.header_name)),
    "cookie_names": values.each(values.words(values.cookie_name)),
    "upstream_host": values.words(values.upstream_host),
    "public_origin": values.words(values.public_origin),
}


@pytest.mark.parametrize("name", PARSERS)
@given(value=ANYTHING)
def test_anything_is_read_or_told(name: str, value: object) -> None:
    """A parser gives a value or raises ValueError; nothing that can be written makes it fail otherwise."""
    complaint = "must "
    try:
        PARSERS[name](value)
    except ValueError as error:
        complaint = str(error)
    assert complaint.startswith("must ")


@pytest.mark.parametrize(
    ("parser", "written", "meant"),
    [
        pytest.param("seconds", 15, 15.0, id="seconds-whole"),
        pytest.param("seconds", "0.5", 0.5, id="seconds-text"),
        pytest.param("seconds", "1e3", 1000.0, id="seconds-exponent"),
        pytest.param("seconds", 0, 0.0, id="seconds-zero"),
        pytest.param("seconds", "500ms", 0.5, id="seconds-ms"),
        pytest.param("seconds", "15s", 15.0, id="seconds-s"),
        pytest.param("seconds", " 1.5 m ", 90.0, id="seconds-m"),
        pytest.param("seconds", "1h", 3600.0, id="seconds-h"),
        pytest.param("size", 100, 100, id="size-bytes"),
        pytest.param("size", "100", 100, id="size-bytes-text"),
        pytest.param("size", "64KiB", 65_536, id="size-kib"),
        pytest.param("size", "16 mib", 16_777_216, id="size-mib-any-case"),
        pytest.param("size", "1GiB", 1_073_741_824, id="size-gib"),
        pytest.param("items", "a, b,,c ", ["a", "b", "c"], id="items-commas"),
        pytest.param("items", '["a", 1]', ["a", 1], id="items-json"),
        pytest.param("items", "[]", [], id="items-none"),
        pytest.param("address", "127.0.0.1:8080", values.Address("127.0.0.1", 8080), id="address-ipv4"),
        pytest.param("address", "[::1]:8080", values.Address("::1", 8080), id="address-ipv6"),
        pytest.param("address", "LocalHost:0", values.Address("localhost", 0), id="address-free-port"),
        pytest.param("address", "8080", values.Address("127.0.0.1", 8080), id="address-port"),
        pytest.param("address", 8080, values.Address("127.0.0.1", 8080), id="address-number"),
        pytest.param("address", ":8080", values.Address("0.0.0.0", 8080), id="address-all"),
        pytest.param("address_or_off", "OFF", None, id="address-off"),
        pytest.param("address_or_off", "[::]:9", values.Address("::", 9), id="address-not-off"),
        pytest.param("endpoint", "/", "/", id="endpoint-root"),
        pytest.param("endpoint", "/a/b%20c/", "/a/b%20c/", id="endpoint"),
        pytest.param("http_url", "HTTP://Host.Example:80/MCP", "http://host.example/MCP", id="url-lower-host"),
        pytest.param("http_url", "http://my_service:9000", "http://my_service:9000", id="url-compose-name"),
        pytest.param("http_url", "https://[::1]:9000/mcp/", "https://[::1]:9000/mcp/", id="url-ipv6"),
        pytest.param("http_url", "http://h:/", "http://h/", id="url-empty-port"),
        pytest.param("origins", "https://A.example:443,vscode-webview://x1", ("https://a.example", "vscode-webview://x1"), id="origins"),
        pytest.param("origins", ["http://a:1", "http://a:1"], ("http://a:1",), id="origins-once"),
        pytest.param("hosts", "MCP.example, mcp.example:80", ("mcp.example", "mcp.example:80"), id="hosts"),
        pytest.param("header_names", "Authorization,X-API-Key", ("Authorization", "X-API-Key"), id="header-names"),
        pytest.param("cookie_names", "AWSALB*, route", ("AWSALB*", "route"), id="cookie-names"),
        pytest.param("upstream_host", "Client", "client", id="host-of-the-client"),
        pytest.param("upstream_host", "Mcp.Example:80", "mcp.example:80", id="host-literal"),
        pytest.param("public_origin", "https://mcp.example.com/", "https://mcp.example.com", id="public-origin"),
    ],
)  # fmt: skip
def test_what_is_written_is_what_is_meant(parser: str, written: object, meant: object) -> None:
    """Each way of writing a value that the contract names is read as that value."""
    assert PARSERS[parser](written) == meant


@pytest.mark.parametrize(
    ("parser", "written", "sentence"),
    [
        pytest.param("seconds", "15 sec", "must be a number of seconds or a duration in ms, s, m or h, such as 0.5 or 2m, not '15 sec'", id="seconds-unit"),
        pytest.param("seconds", "1_0", "must be a number of seconds or a duration in ms, s, m or h, such as 0.5 or 2m, not '1_0'", id="seconds-underscore"),
        pytest.param("seconds", "nan", "must be a number of seconds or a duration in ms, s, m or h, such as 0.5 or 2m, not 'nan'", id="seconds-nan"),
        pytest.param("seconds", float("inf"), "must be a number of seconds or a duration in ms, s, m or h, such as 0.5 or 2m, not inf", id="seconds-inf"),
        pytest.param("seconds", -1, "must be a number of seconds that is not negative, not -1", id="seconds-negative"),
        pytest.param(
            "seconds", 10**400, f"must be a number of seconds or a duration in ms, s, m or h, such as 0.5 or 2m, not 1{'0' * 36}...", id="seconds-beyond-floats"
        ),
        pytest.param("address", "[::1]x", "must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, or a port, not '[::1]x'", id="address-after-brackets"),
        pytest.param("address", "[::1]", "must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, or a port, not '[::1]'", id="address-without-port"),
        pytest.param("seconds", "1e999", "must be a number of seconds or a duration in ms, s, m or h, such as 0.5 or 2m, not '1e999'", id="seconds-huge"),
        pytest.param(
            "size", "16MB", "must be a number of bytes or a size in KiB, MiB or GiB, such as 16MiB, not '16MB'", id="size-decimal-unit"
        ),
        pytest.param("size", 0, "must be at least 1, not 0", id="size-small"),
        pytest.param("items", 3, "must be a list, not 3", id="items-number"),
        pytest.param("items", "[1", "must be a list: comma-separated or a JSON array, and this is not JSON", id="items-json"),
        pytest.param("address", "80800", "must have a port of at most 65535", id="address-port-alone"),
        pytest.param("address", ":", "must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, or a port, not ':'", id="address-nothing"),
        pytest.param("address", "http://me:pw@h:80", "must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, or a port; an IPv6 host stands in brackets", id="address-url"),
        pytest.param(
            "address", "::1:8080", "must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, or a port; an IPv6 host stands in brackets", id="address-ipv6"
        ),
        pytest.param("address", "[1.2.3.4]:1", "must hold an IPv6 address between the brackets, not '1.2.3.4'", id="address-brackets"),
        pytest.param("address", "h:65536", "must have a port of at most 65535", id="address-port"),
        pytest.param("address", "1.2.3:80", "must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, or a port, not '1.2.3:80'", id="address-short-ipv4"),
        pytest.param("endpoint", "mcp", "must be a path that begins with /, not 'mcp'", id="endpoint-relative"),
        pytest.param("endpoint", "/a?b", "must not hold a query or a fragment", id="endpoint-query"),
        pytest.param(
            "endpoint", "/a/../b", "must have a path of plain URL characters, without . and .. as steps", id="endpoint-steps"
        ),
        pytest.param("http_url", "h:9000/mcp", "must begin with http:// or https://", id="url-no-scheme"),
        pytest.param("http_url", "http:h", "must begin with http:// or https://", id="url-no-slashes"),
        pytest.param("http_url", "unix:/run/mcp.sock", "must begin with http:// or https://", id="url-unix"),
        pytest.param("http_url", "http://u:p@h/", "must not hold user info (credentials belong to the client's headers)", id="url-user"),
        pytest.param("http_url", "http://h/mcp?", "must not hold a query or a fragment", id="url-empty-query"),
        pytest.param("http_url", "http://h/#x", "must not hold a query or a fragment", id="url-fragment"),
        pytest.param("http_url", "http://h/%zz", "must have a path of plain URL characters, without . and .. as steps", id="url-percent"),
        pytest.param("endpoint", "/mcp%2", "must have a path of plain URL characters, without . and .. as steps", id="endpoint-percent"),
        pytest.param("http_url", "http:///mcp", "must name a host and perhaps a port, such as http://127.0.0.1:9000/mcp", id="url-no-host"),
        pytest.param(
            "http_url", "http://me:p/w@h", "must name a host and perhaps a port, such as http://127.0.0.1:9000/mcp", id="url-port-not-quoted"
        ),
        pytest.param("http_url", "http://h:0/", "must have a port from 1 to 65535", id="url-port-zero"),
        pytest.param("http_url", "http://h:65536/", "must have a port of at most 65535", id="url-port"),
        pytest.param("http_url", "http://[::g]/", "must be a URL, such as http://127.0.0.1:9000/mcp", id="url-ipv6"),
        pytest.param("http_url", "http://h/\tmcp", "must be a URL of ASCII characters without blanks", id="url-tab"),
        pytest.param("origins", "*", "must hold origins without a path, such as https://app.example.com", id="origins-any"),
        pytest.param("origins", "https://a/", "must hold origins without a path, such as https://app.example.com", id="origins-path"),
        pytest.param("hosts", "https://a", "must hold hosts with or without a port, such as mcp.example.com", id="hosts-url"),
        pytest.param("cookie_names", ["a*b"], "must name cookies, perhaps with * at the end, and 'a*b' cannot be one", id="cookie-names"),
        pytest.param("upstream_host", "a b", "must hold hosts with or without a port, such as mcp.example.com", id="host-literal"),
        pytest.param("header_names", ["X Y"], "must name HTTP headers, and 'X Y' cannot be one", id="header-names"),
        pytest.param(
            "header_names", "cookie", "must not name Cookie: its value changes while the principal stays the same", id="header-names-cookie"
        ),
        pytest.param("header_names", [3], "must be a string, not 3", id="header-names-number"),
        pytest.param(
            "public_origin", "https://h/mcp", "must be an origin without a path, such as https://mcp.example.com", id="public-origin"
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_told(parser: str, written: object, sentence: str) -> None:
    """A value that cannot be meant is answered with what the key must be."""
    with pytest.raises(ValueError, match=r"^must ") as raised:
        PARSERS[parser](written)
    assert str(raised.value) == sentence


def test_a_password_is_not_quoted() -> None:
    """A URL in the wrong place may hold one."""
    assert values.shown("http://me:pw@h:80") == "'http://***@h:80'"


def test_a_long_value_is_cut_in_a_message() -> None:
    """A message stays readable whatever was written."""
    assert len(values.shown("x" * 10_000)) == 40


@given(number=st.integers(min_value=0, max_value=2**40))
def test_a_size_survives_being_written(number: int) -> None:
    """What ``size_text`` writes, ``size`` reads."""
    assert values.size(0)(values.size_text(number)) == number


@given(number=st.floats(min_value=0, max_value=1e9))
def test_a_duration_survives_being_written(number: float) -> None:
    """What ``seconds_text`` writes, ``seconds`` reads."""
    assert values.seconds(zero=True)(values.seconds_text(number)) == number
