"""The listener's TLS files: when they count as changed, and what a bad pair does."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from mcp_sidecar.downstream.tls import ServerTls
from tests.support.certificates import make_certificate


def test_a_change_is_seen_until_it_is_read(tmp_path: Path) -> None:
    """Either file may change, in place or by a link; what could not be used is not tried again before the next change."""
    made, key = make_certificate(tmp_path)
    other, its_key = make_certificate(tmp_path, "other")
    tls = ServerTls(str(made), str(key))
    assert not tls.has_changed()
    made.unlink()
    assert tls.has_changed()
    made.symlink_to(other)
    with pytest.raises(ssl.SSLError):
        tls.read_again()
    assert not tls.has_changed()
    key.write_bytes(its_key.read_bytes())
    assert tls.has_changed()
    tls.read_again()
    assert not tls.has_changed()


def test_files_that_are_gone_are_told(tmp_path: Path) -> None:
    """A missing file is an OSError like every other reason."""
    made, key = make_certificate(tmp_path)
    tls = ServerTls(str(made), str(key))
    key.unlink()
    with pytest.raises(FileNotFoundError):
        tls.read_again()
