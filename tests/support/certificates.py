"""Certificates for localhost, made by the openssl command; a test that needs one is skipped where there is none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path, name: str = "tls") -> tuple[Path, Path]:
    """A certificate for localhost that is its own authority, and its key, as ``name.crt`` and ``name.key``."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-out", str(made), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return made, key
