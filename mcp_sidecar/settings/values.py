"""How one setting is written and what it means: pure parsers from what an operator wrote to a value.

The law of this file: a parser takes whatever TOML, the environment or the command line can hold, returns the value or
raises ``ValueError`` with the end of a sentence that begins with the key. It never quotes a URL, because a URL may hold
a password.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

_DURATION = re.compile(r"([+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,3})?)\s*(ms|s|m|h)?", re.ASCII)
_SECONDS_PER = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]{1,15})\s*(B|KiB|MiB|GiB)?", re.ASCII | re.IGNORECASE)
_UNITS = {"b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?", re.ASCII
)
# A password in a URL, and a parameter whose name says that it is one.
_USER_INFO = re.compile(r"(?<=://)[^/?#\s]*@")
_SECRET_PARAMETER = re.compile(r"(?i)(?<=[?&])([^=&#\s]*(?:password|passwd|secret|token|key)[^=&#\s]*)=[^&#\s]*")
_PATH = re.compile(r"(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)+", re.ASCII)
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\\]+)", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LAST_PORT = 65_535
_LOOPBACK, _ALL = "127.0.0.1", "0.0.0.0"  # noqa: S104 - what `:8080` asks for

_SECONDS = "must be a number of seconds or a duration in ms, s, m or h, such as 0.5 or 2m"
_BYTES = "must be a number of bytes or a size in KiB, MiB or GiB, such as 16MiB"
_HOST_PORT = "must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, or a port"
_ORIGINS = "must hold origins without a path, such as https://app.example.com"
_ORIGIN_FORM = "must be an origin without a path, such as https://mcp.example.com"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener is bound. ``host`` has no brackets; port 0 lets the system pick one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """An ``http`` or ``https`` URL taken apart. ``path`` is as it was written, possibly empty; ``port`` always known."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """``scheme://host[:port]`` as a browser writes it: lower case, the scheme's own port left out."""
        return f"{self.scheme}://{_authority(self.host, self.port, _DEFAULT_PORTS[self.scheme])}"

    def __str__(self) -> str:
        return self.origin + self.path


def masked(text: str) -> str:
    """Hide credentials that a URL may hold: user info, and parameters named like a secret."""
    return _SECRET_PARAMETER.sub(r"\1=***", _USER_INFO.sub("***@", text))


def shown(value: object) -> str:
    """Quote a wrong value in a message: one line, at most 40 characters of it, credentials hidden."""
    text = masked(repr(value))
    return text if len(text) <= 40 else f"{text[:37]}..."


def lower(value: object) -> object:
    """Let a word be written in any case."""
    return value.strip().lower() if isinstance(value, str) else value


def number(value: object) -> object:
    """Refuse what Python takes for a number and people do not."""
    if isinstance(value, bool):
        raise ValueError(f"must be a whole number, not {value}")  # noqa: TRY004 - one kind of error for every mistake
    return value


def seconds(*, zero: bool) -> Callable[[object], float]:
    """Make a parser of a duration; ``zero`` says whether 0 has a meaning for that key."""
    bound = "not negative" if zero else "more than 0"

    def parse(value: object) -> float:
        number = _seconds(value)
        if number is None or not math.isfinite(number):
            raise ValueError(f"{_SECONDS}, not {shown(value)}")
        if number < 0 or (number == 0 and not zero):
            raise ValueError(f"must be a number of seconds that is {bound}, not {shown(value)}")
        return number

    return parse


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        return float(match[1]) * _SECONDS_PER[match[2]] if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # TOML integers have no bound
        return None


def size(minimum: int) -> Callable[[object], int]:
    """Make a parser of a size in bytes.

    Decimal units are refused, not guessed at: ``16MB`` means 16,000,000 to some and 16,777,216 to others.
    """

    def parse(value: object) -> int:
        number = _bytes(value)
        if number is None:
            raise ValueError(f"{_BYTES}, not {shown(value)}")
        if number < minimum:
            raise ValueError(f"must be at least {size_text(minimum)}, not {shown(value)}")
        return number

    return parse


def _bytes(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(match[1]) * _UNITS[(match[2] or "B").lower()] if match else None


def size_text(number: int) -> str | int:
    """Write a size the way people do: ``16MiB`` where that is exact, else the bytes."""
    for unit in ("GiB", "MiB", "KiB"):
        if number and number % _UNITS[unit.lower()] == 0:
            return f"{number // _UNITS[unit.lower()]}{unit}"
    return number


def seconds_text(number: float) -> float | int:
    """Write a duration without an idle ``.0``."""
    return int(number) if number.is_integer() else number


def items(value: object) -> list[object]:
    """Read a list; the environment may write it comma-separated or as JSON."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        raise ValueError(f"must be a list, not {shown(value)}")  # noqa: TRY004 - see number()
    if value.lstrip().startswith("["):
        return _json_array(value)
    return [item.strip() for item in value.split(",") if item.strip()]


def _json_array(text: str) -> list[object]:
    try:
        array = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("must be a list: comma-separated or a JSON array, and this is not JSON") from error
    assert isinstance(array, list)  # it begins with a bracket
    return array


def each(parse: Callable[[object], str]) -> Callable[[object], tuple[str, ...]]:
    """Make a parser of a list whose items ``parse`` reads; an item that is named twice counts once."""

    def parse_all(value: object) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse(item) for item in items(value)))

    return parse_all


def words(parse: Callable[[str], str]) -> Callable[[object], str]:
    """Make a parser of text from one that may rely on getting text without blanks around it."""

    def parse_text(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be a string, not {shown(value)}")  # noqa: TRY004 - see number()
        return parse(value.strip())

    return parse_text


def header_name(text: str) -> str:
    """Read the name of a header that tells principals apart. Never ``Cookie``: it changes within one principal."""
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError(f"must name HTTP headers, and {shown(text)} cannot be one")
    if text.lower() == "cookie":
        raise ValueError("must not name Cookie: its value changes while the principal stays the same")
    return text


def cookie_name(text: str) -> str:
    """Read the name of a cookie, or with ``*`` at its end what names begin with."""
    if not _HEADER_NAME.fullmatch(text) or "*" in text[:-1]:
        raise ValueError(f"must name cookies, perhaps with * at the end, and {shown(text)} cannot be one")
    return text


def network(text: str) -> str:
    """Read the addresses of proxies: one, or a range such as ``10.0.0.0/8``."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"must hold addresses or ranges, such as 10.0.0.0/8, not {shown(text)}") from error


def store_url(text: str) -> str:
    """Read where sessions are kept. What a URL may hold beyond its scheme is the store's business."""
    scheme, colon, rest = text.partition(":")
    if text.lower() in {"auto", "memory:", "sealed:"}:
        return text.lower()
    if scheme.lower() in {"redis", "rediss", "redis+unix", "redis+sentinel"} and rest.startswith("//"):
        return f"{scheme.lower()}:{rest}"
    if scheme.lower() == "sqlite" and colon and rest and not rest.endswith("/"):
        return f"sqlite:{rest}"
    raise ValueError("must be auto, memory:, sqlite:PATH, sealed: or redis://HOST")


def namespace(text: str) -> str:
    """Read a namespace: it becomes a part of keys."""
    if not _NAMESPACE.fullmatch(text):
        raise ValueError("must be 1 to 64 letters, digits, and any of . _ -")
    return text


def upstream_host(text: str) -> str:
    """Read what the upstream gets as ``Host``: a literal, or one of two words."""
    return text.lower() if text.lower() in {"auto", "client"} else host_header(text)


def endpoint(text: str) -> str:
    """Read the path of the MCP endpoint."""
    if not text.startswith("/"):
        raise ValueError(f"must be a path that begins with /, not {shown(text)}")
    return _checked_path(text)


def _checked_path(path: str) -> str:
    if "?" in path or "#" in path:
        raise ValueError("must not hold a query or a fragment")
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError("must have a path of plain URL characters, without . and .. as steps")
    return path


def http_url(text: str) -> HttpUrl:
    """Take a URL apart. Whatever a URL can hold beyond scheme, host, port and path is a mistake here."""
    parts = _split(text)
    if parts.scheme not in _DEFAULT_PORTS or not text[len(parts.scheme) :].startswith("://"):
        raise ValueError("must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("must not hold user info (credentials belong to the client's headers)")
    if "?" in text or "#" in text:
        raise ValueError("must not hold a query or a fragment")
    host, port = _host_and_port(parts.netloc, "must name a host and perhaps a port, such as http://127.0.0.1:9000/mcp")
    if port == 0:
        raise ValueError(f"must have a port from 1 to {_LAST_PORT}")
    path = _checked_path(parts.path) if parts.path else ""
    return HttpUrl(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], path)


def _split(text: str) -> SplitResult:
    # The library drops tabs and newlines without a word, and would read a URL that nobody wrote.
    if any(not "!" <= character <= "~" for character in text):
        raise ValueError("must be a URL of ASCII characters without blanks")
    try:
        return urlsplit(text)
    except ValueError as error:
        raise ValueError("must be a URL, such as http://127.0.0.1:9000/mcp") from error


def _host_and_port(authority: str, complaint: str) -> tuple[str, int | None]:
    host, bracket, rest = authority.rpartition("]")
    if bracket:
        if not host.startswith("[") or (rest and not rest.startswith(":")):
            raise ValueError(complaint)
        return _ipv6(host[1:]), _port(rest[1:], complaint) if rest[1:] else None
    name, _, digits = authority.partition(":")
    name = name.lower()
    if not _HOST_NAME.fullmatch(name) or (name.replace(".", "").isdigit() and not _is_ipv4(name)):
        raise ValueError(complaint)
    return name, _port(digits, complaint) if digits else None


def _ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise ValueError(f"must hold an IPv6 address between the brackets, not {shown(text)}") from error


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _port(digits: str, complaint: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", digits, re.ASCII):
        raise ValueError(complaint)
    if int(digits) > _LAST_PORT:
        raise ValueError(f"must have a port of at most {_LAST_PORT}")
    return int(digits)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _authority(host: str, port: int | None, default_port: int | None) -> str:
    return _bracketed(host) if port in (None, default_port) else f"{_bracketed(host)}:{port}"


def address(value: object) -> Address:
    """Read ``HOST:PORT``; an IPv6 host stands in brackets. Port 0 lets the system pick one.

    A port alone is on loopback, one behind a colon on all IPv4 addresses.
    """
    if isinstance(value, Address):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = words(str)(value)
    if text.count(":") > 1 and not text.startswith("["):
        raise ValueError(f"{_HOST_PORT}; an IPv6 host stands in brackets")
    if text.isdigit() or text.startswith(":"):
        port_alone = text.removeprefix(":")
        return Address(_LOOPBACK if text == port_alone else _ALL, _port(port_alone, f"{_HOST_PORT}, not {shown(text)}"))
    host, port = _host_and_port(text, f"{_HOST_PORT}, not {shown(text)}")
    if port is None:
        raise ValueError(f"{_HOST_PORT}, not {shown(text)}")
    return Address(host, port)


def address_or_off(value: object) -> Address | None:
    """Read ``HOST:PORT``, or ``off`` for no listener."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "off"):
        return None
    try:
        return address(value)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from error


def origin(text: str) -> str:
    """Read what a browser sends as ``Origin``; other schemes than http are for editors that embed a web view."""
    match = _ORIGIN.fullmatch(text.lower())
    if not match:
        raise ValueError(_ORIGINS)
    host, port = _host_and_port(match[2], _ORIGINS)
    return f"{match[1]}://{_authority(host, port, _DEFAULT_PORTS.get(match[1]))}"


def host_header(text: str) -> str:
    """Read a value of ``Host`` to accept: a host, which then means any port, or ``HOST:PORT``."""
    host, port = _host_and_port(text, "must hold hosts with or without a port, such as mcp.example.com")
    return _authority(host, port, None)


def public_origin(text: str) -> str:
    """Read the origin under which clients know the sidecar."""
    url = http_url(text)
    if url.path not in ("", "/"):
        raise ValueError(_ORIGIN_FORM)
    return url.origin
