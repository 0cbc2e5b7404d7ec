"""Load balancers' cookies: which of them belong to an upstream session, and how they go with its requests.

A balancer sends the requests of a session to the server that holds it by a cookie that it set on the ``initialize``
answer. Where that ``initialize`` was the sidecar's own, no client has the cookie. RFC 6265 §4, §5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mcp_sidecar.wire.headers import Pair, values

MAX_COOKIES = 16
MAX_COOKIE_BYTES = 4096
"""Of one, with its name: what RFC 6265 §6.1 asks a browser to take."""

_PAIR = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=([!#-+\--:<-\[\]-~]*|\"[!#-+\--:<-\[\]-~]*\")")
_PAST = re.compile(r"max-age\s*=\s*(?:-\d+|0+)\s*", re.IGNORECASE)

Cookies = tuple[Pair, ...]
"""Names and values, each name once."""


def affinity_cookies(headers: Iterable[Pair], patterns: Iterable[str], known: Cookies = ()) -> Cookies:
    """What is kept with an upstream session once an answer with these headers has come.

    ``patterns`` are names, case and all, perhaps with a ``*`` at the end. Later ones replace ``known`` ones of the same name;
    ``Max-Age=0`` takes one back. What is no cookie as RFC 6265 §4.1.1 has it, or is too large, is passed over.
    """
    wanted = tuple(patterns)
    kept = dict(known)
    for line in values(headers, "set-cookie"):
        pair, *attributes = line.split(";")
        found = _PAIR.fullmatch(pair.strip())
        if found is None or len(found[0]) > MAX_COOKIE_BYTES or not is_named(found[1], wanted):
            continue
        kept.pop(found[1], None)
        if not any(_PAST.fullmatch(attribute.strip()) for attribute in attributes):
            kept[found[1]] = found[2]
    return tuple(kept.items())[:MAX_COOKIES]


def is_cookie(name: str, value: str) -> bool:
    """Whether it may stand in a ``Cookie`` line: RFC 6265 §4.1.1 has it so, and it is not too large."""
    return _PAIR.fullmatch(f"{name}={value}") is not None and len(name) + len(value) < MAX_COOKIE_BYTES


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of the patterns'."""
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in patterns)


def with_cookies(headers: list[Pair], cookies: Cookies) -> list[Pair]:
    """These headers with the cookies that the client does not send itself, in its ``Cookie`` line if it has one."""
    lines = list(values(headers, "cookie"))
    sent = {pair.partition("=")[0].strip() for line in lines for pair in line.split(";")}
    added = "; ".join(f"{name}={value}" for name, value in cookies if name not in sent)
    if not added:
        return headers
    if not lines:
        return [*headers, ("Cookie", added)]
    merged, has_merged = [], False
    for name, value in headers:
        if name.lower() == "cookie" and not has_merged:
            merged.append((name, f"{value.rstrip('; ')}; {added}" if value.strip("; ") else added))
            has_merged = True
        else:
            merged.append((name, value))
    return merged
