"""Table of MCP revisions: what each one means for a proxy that keeps sessions.

Revisions are data: a new one is a row, never a branch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PROTOCOL_VERSION_HEADER = "MCP-Protocol-Version"
ASSUMED_VERSION = "2025-03-26"
"""What a request without a version header is taken for (2025-06-18 transports, "Protocol Version Header")."""


@dataclass(frozen=True, slots=True)
class Revision:
    """What one revision has, as far as healing is concerned."""

    version: str
    has_sessions: bool
    sends_version_header: bool


REVISIONS = {
    row.version: row
    for row in (
        Revision("2024-11-05", has_sessions=True, sends_version_header=False),
        Revision("2025-03-26", has_sessions=True, sends_version_header=False),
        Revision("2025-06-18", has_sessions=True, sends_version_header=True),
        Revision("2025-11-25", has_sessions=True, sends_version_header=True),
        Revision("2026-07-28", has_sessions=False, sends_version_header=True),
    )
}

FIRST_SESSIONLESS = "2026-07-28"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

SESSIONLESS_METHODS = frozenset({"server/discover", "subscriptions/listen", "tasks/update"})
"""Methods that exist only without sessions (2026-07-28)."""

SESSION_METHODS = frozenset(
    {
        "initialize",
        "notifications/initialized",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/list",
        "tasks/result",
    }
)
"""Methods that 2026-07-28 removed, hence always of an older revision."""


def is_sessionless_version(version: str | None) -> bool:
    """Whether a version string names a revision without sessions. Dates compare as strings; ``draft`` is newest."""
    if version is None:
        return False
    known = REVISIONS.get(version)
    if known is not None:
        return not known.has_sessions
    return version == "draft" or (_DATE.fullmatch(version) is not None and version >= FIRST_SESSIONLESS)


def sends_version_header(version: str) -> bool:
    """Whether requests after ``initialize`` carry the version header in this revision (2025-06-18 and later)."""
    known = REVISIONS.get(version)
    return known.sends_version_header if known is not None else version > "2025-03-26"


def is_sessionless_request(meta_version: str | None, method: str | None, header_version: str | None) -> bool:
    """Tell 2026-07-28 traffic by the request itself; the body is the source of truth, the header decides the rest.

    ``Mcp-Method`` and ``Mcp-Name`` prove nothing: they were drafted while sessions still existed.
    """
    if meta_version is not None:
        return True
    if method in SESSION_METHODS:
        return False
    if method in SESSIONLESS_METHODS:
        return True
    return is_sessionless_version(header_version)
