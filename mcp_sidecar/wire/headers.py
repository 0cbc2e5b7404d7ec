"""Header names, and what passes in which direction.

Headers are handled as pairs throughout: names may repeat, their case and order are the sender's.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from functools import lru_cache

Pair = tuple[str, str]

SESSION_ID = "Mcp-Session-Id"
LAST_EVENT_ID = "Last-Event-ID"

A_MOMENT_S = 1.0

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
"""RFC 9110 §7.6.1 and RFC 2616 §13.5.1, with two that never were standard hop-by-hop names but are only about one hop."""

NOT_FOR_UPSTREAM = HOP_BY_HOP | {"host", "expect", "content-length"}
"""``Host`` is the upstream's own (python servers answer 421, rmcp 403 to another); ``Expect`` was met by the sidecar;
the length is set anew from the body that is sent."""

NOT_AS_IT_IS = NOT_FOR_UPSTREAM | {"x-forwarded-for"}
"""The same, and what ``forwarding`` writes anew."""

MAX_FIELDS = 256
"""What ``limits.max_header_bytes`` of headers may be split into."""

FIELD_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
FIELD_VALUE = r"[^\x00-\x08\x0a-\x1f\x7f]*+"
_FIELD_LINES = re.compile(rf"(?:{FIELD_NAME}:{FIELD_VALUE}\r\n)*+")
_FIELD = re.compile(r"([^:\r]++):[ \t]*+([^\r]*+)\r\n")

_SIGNS_IN_CONNECTION = re.compile(r"(?:\A|,)[ \t]*(?:ntlm|negotiate)(?![^ \t,])")

_SAYS_NO_NAME = frozenset({"keep-alive", "Keep-Alive"})


@lru_cache(maxsize=64)
def _union(fixed: frozenset[str], without: frozenset[str]) -> frozenset[str]:
    """There are few of them, and they are asked for with every request."""
    return fixed | without


class Fields:
    """Headers as they came on the wire, read once: ``pairs``, and beside them their ``names`` in lower case.

    Bytes that are not UTF-8 survive the way there and back.
    """

    __slots__ = ("names", "pairs")

    def __init__(self, pairs: list[Pair]) -> None:
        """``pairs`` are not changed any more."""
        self.pairs = pairs
        self.names = "\n".join([pair[0] for pair in pairs]).lower().split("\n") if pairs else []

    def for_upstream(
        self, *, without: frozenset[str], peer: str | None, scheme: str, host: str | None, is_trusted: bool = True
    ) -> list[Pair]:
        """The client's headers as the upstream gets them, with those of ``forwarding``.

        What a peer that is not trusted says of those before it is left out.
        """
        names: Container[str] = self.names
        hops = self.values("x-forwarded-for")
        if not is_trusted and self.may_be_forwarded:
            without, names, hops = without.union(filter(is_forwarding, self.names)), (), []
        pairs = self._less(_union(NOT_AS_IT_IS, without))
        return pairs + forwarding(names, hops, peer=peer, scheme=scheme, host=host)

    @property
    def may_be_forwarded(self) -> bool:
        """Whether a header may say where the request has come from; quick, and sometimes wrongly so."""
        return "forwarded" in "\n".join(self.names)

    def for_client(self, without: frozenset[str] = frozenset()) -> list[Pair]:
        """The upstream's headers as the client gets them, less ``without`` (lower case)."""
        return self._less(_union(HOP_BY_HOP, without))

    def values(self, name: str) -> list[str]:
        """All values of one header (lower case), in order."""
        if name not in self.names:
            return []
        return [pair[1] for known, pair in zip(self.names, self.pairs, strict=True) if known == name]

    def value(self, name: str) -> str | None:
        """The first value of one header (lower case)."""
        return self.pairs[self.names.index(name)][1] if name in self.names else None

    def options(self, name: str) -> list[str]:
        """The members, in lower case, of all values of one header (lower case) that holds a list of words."""
        return [option.strip(" \t").lower() for value in self.values(name) for option in value.split(",")]

    def _less(self, dropped: frozenset[str]) -> list[Pair]:
        if "connection" in self.names and not _SAYS_NO_NAME.issuperset(self.values("connection")):
            dropped |= one_hop_names(self.pairs)
        return [pair for name, pair in zip(self.names, self.pairs, strict=True) if name not in dropped]


NO_FIELDS = Fields([])
"""In place of those that nobody will ask for again."""


def read_fields(lines: str) -> Fields | None:
    """The headers in the lines of a head, each with its CRLF; ``None`` where two readers could read one differently.

    RFC 9112 §5 and RFC 9110 §5.5: no folded line, no blank before a colon, no control byte.
    """
    if _FIELD_LINES.fullmatch(lines) is None:
        return None
    pairs = _FIELD.findall(lines)
    if " \r\n" in lines or "\t\r\n" in lines:
        pairs = [(name, value.rstrip(" \t")) for name, value in pairs]
    return Fields(pairs)


def is_forwarding(name: str) -> bool:
    """Whether a header (lower case) says where a request has come from: ``Forwarded``, or one of ``X-Forwarded-*``."""
    return name == "forwarded" or name.startswith("x-forwarded-")


def forwarding(
    names: Container[str], hops: list[str], *, peer: str | None, scheme: str, host: str | None
) -> list[Pair]:
    """``X-Forwarded-For``, ``-Proto`` and ``-Host`` for a request that bears ``names`` and has come over ``hops``.

    The peer is appended to a list that is already there. The other two are kept where an edge in front has set them: it
    saw the client, the sidecar only sees the edge.
    """
    hops = [*hops, peer] if peer else hops
    pairs = [("X-Forwarded-For", ", ".join(hops))] if hops else []
    if "x-forwarded-proto" not in names:
        pairs.append(("X-Forwarded-Proto", scheme))
    if host is not None and "x-forwarded-host" not in names:
        pairs.append(("X-Forwarded-Host", host))
    return pairs


def one_hop_names(pairs: Iterable[Pair]) -> frozenset[str]:
    """The lower-case names that must not be forwarded: the fixed set and whatever ``Connection`` lists."""
    listed = {
        option.strip().lower()
        for name, value in pairs
        if name.lower() == "connection"
        for option in value.split(",")
        if option.strip()
    }
    return HOP_BY_HOP | listed


def values(pairs: Iterable[Pair], name: str) -> Iterator[str]:
    """All values of one header, in order."""
    wanted = name.lower()
    return (value for key, value in pairs if key.lower() == wanted)


def value(pairs: Iterable[Pair], name: str) -> str | None:
    """The first value of one header."""
    return next(values(pairs, name), None)


def encoded_head(lines: list[str]) -> bytes:
    """A message's first line and headers as they go on the wire, bytes that are not UTF-8 as they came.

    Raises ValueError on what would be read as more lines than these.
    """
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
        raise ValueError("a header with a line break or a NUL in it")
    return (text + "\r\n\r\n").encode("utf-8", "surrogateescape")


def is_valid_session_id(session_id: str) -> bool:
    """Visible ASCII (2025-03-26 transports, "Session Management" 1); how long it may be, the limit on headers says."""
    return bool(session_id) and session_id.isascii() and session_id.isprintable() and " " not in session_id


def accepts(pairs: Iterable[Pair], wanted: str) -> bool:
    """Whether ``Accept`` names this media type; a wildcard is no promise to understand it."""
    listed = (entry for value in values(pairs, "accept") for entry in value.split(","))
    return any(media_type(entry) == wanted and not _is_refused(entry) for entry in listed)


def _is_refused(entry: str) -> bool:
    """Whether an entry of ``Accept`` has the weight 0."""
    parameters = [parameter.strip().lower() for parameter in entry.split(";")[1:]]
    return any(re.fullmatch(r"q=0(\.0*)?", parameter) is not None for parameter in parameters)


def signs_in_connection(value: str) -> bool:
    """Whether ``Authorization`` or ``WWW-Authenticate`` names a scheme that holds for the whole connection.

    NTLM and Negotiate do (RFC 4559 §6).
    """
    text = value.lower()  # a look for two words is a tenth of a search through a long token
    return ("ntlm" in text or "negotiate" in text) and _SIGNS_IN_CONNECTION.search(text) is not None


def retry_after_s(value: str | None) -> float | None:
    """The pause that ``Retry-After`` names, in seconds: a moment where it names a date (RFC 9110 §10.2.3)."""
    if value is None:
        return None
    return float(value.strip()) if value.strip().isdecimal() else A_MOMENT_S


@lru_cache(maxsize=256)
def media_type(content_type: str | None) -> str:
    """The bare lower-case media type, empty if there is none."""
    return (content_type or "").partition(";")[0].strip().lower()
