"""Revisions as data, and how 2026-07-28 traffic is told from older traffic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire.revisions import (
    ASSUMED_VERSION,
    FIRST_SESSIONLESS,
    REVISIONS,
    SESSION_METHODS,
    SESSIONLESS_METHODS,
    is_sessionless_request,
    is_sessionless_version,
    sends_version_header,
)


@pytest.mark.parametrize(
    ("version", "sessionless", "header"),
    [
        pytest.param("2024-11-05", False, False, id="the first"),
        pytest.param("2025-03-26", False, False, id="batches"),
        pytest.param("2025-06-18", False, True, id="the header"),
        pytest.param("2025-11-25", False, True, id="polling"),
        pytest.param("2026-07-28", True, True, id="no sessions"),
        pytest.param("2026-07-27", False, True, id="an unknown one, the day before"),
        pytest.param("2027-01-01", True, True, id="a later one"),
        pytest.param("2025-01-01", False, False, id="an unknown old one"),
        pytest.param("draft", True, True, id="draft"),
        pytest.param("DRAFT-2026-v1", False, True, id="a named draft"),
        pytest.param("", False, False, id="empty"),
        pytest.param("9999", False, True, id="no date"),
        pytest.param("2026-07-28 ", False, True, id="a blank"),
        pytest.param("\u0662026-07-28", False, True, id="other digits"),
    ],
)
def test_versions(version: str, sessionless: bool, header: bool) -> None:
    """Known revisions are rows; of others only a date or ``draft`` can be later than sessions."""
    assert is_sessionless_version(version) is sessionless
    assert sends_version_header(version) is header


def test_no_version() -> None:
    """A request without the header is of a revision with sessions."""
    assert not is_sessionless_version(None)
    assert REVISIONS[ASSUMED_VERSION].has_sessions


def test_the_table() -> None:
    """Rows are named by their version, and sessions end with one revision."""
    assert all(row.version == version for version, row in REVISIONS.items())
    assert [row.has_sessions for row in REVISIONS.values()] == [version < FIRST_SESSIONLESS for version in REVISIONS]


@pytest.mark.parametrize(
    ("meta_version", "method", "header_version", "sessionless"),
    [
        pytest.param("2026-07-28", "tools/call", None, True, id="said by the body"),
        pytest.param("2026-07-28", "ping", "2025-11-25", True, id="the body wins"),
        pytest.param("x", "tools/call", None, True, id="a version nobody knows, said by the body"),
        pytest.param(None, "server/discover", None, True, id="a new method"),
        pytest.param(None, "initialize", "2026-07-28", False, id="an old method under a new header"),
        pytest.param(None, "tools/call", "2026-07-28", True, id="said by the header"),
        pytest.param(None, "tools/call", "2025-11-25", False, id="an old header"),
        pytest.param(None, "tools/call", None, False, id="nothing said"),
        pytest.param(None, None, "2026-07-28", True, id="no message, a new header"),
        pytest.param(None, None, None, False, id="no message, nothing said"),
    ],
)
def test_requests(meta_version: str | None, method: str | None, header_version: str | None, sessionless: bool) -> None:
    """The body is the source of truth; the header decides where it says nothing."""
    assert is_sessionless_request(meta_version, method, header_version) is sessionless


def test_no_method_is_of_both() -> None:
    """A method tells the revision only if no other one has it."""
    assert not SESSION_METHODS & SESSIONLESS_METHODS


@given(st.none() | st.text(), st.none() | st.text(), st.none() | st.text())
def test_any_request(meta_version: str | None, method: str | None, header_version: str | None) -> None:
    """Whatever is said, an ``initialize`` without the new mark is of a revision with sessions."""
    assert is_sessionless_request(meta_version, method, header_version) in (True, False)
    assert not is_sessionless_request(None, "initialize", header_version)
    assert not sends_version_header(ASSUMED_VERSION)
