"""Settings written as TOML."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mcp_sidecar.settings import KEYS, Settings, effective, example, load
from mcp_sidecar.settings.values import masked

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
UNCOMMENTED = tuple(f"#{key} = " for keys in KEYS.values() for key in keys)


def settings_of(path: Path) -> Settings:
    """Load one file alone."""
    return load({"config": [str(path)]}, {}).settings


def test_the_example_is_what_the_settings_say() -> None:
    """``config.example.toml`` is made by ``python -m mcp_sidecar.settings``; run it again after a change."""
    made = subprocess.run([sys.executable, "-m", "mcp_sidecar.settings"], check=True, capture_output=True, timeout=60)
    assert EXAMPLE.read_text(encoding="utf-8") == made.stdout.decode() == example()


def test_the_example_works_and_changes_nothing() -> None:
    """A copy of the example is a configuration, and it means the defaults."""
    assert settings_of(EXAMPLE) == load({"upstream": ["http://127.0.0.1:9000/mcp"]}, {}).settings


def test_the_example_shows_every_key(tmp_path: Path) -> None:
    """Every key of every section is there, with a value that can be used or, for files, one that looks like it."""
    lines = example().splitlines()
    uncommented = "\n".join(line[1:] if line.startswith(UNCOMMENTED) else line for line in lines)
    tables = tomllib.loads(uncommented)
    assert {section: frozenset(table) for section, table in tables.items()} == KEYS
    without_files = "\n".join(line for line in uncommented.splitlines() if "_file" not in line and "tls_" not in line)
    path = tmp_path / "sidecar.toml"
    path.write_text(without_files)
    assert settings_of(path).healing.signatures[0].name == "my-gateway"


def test_every_key_is_described() -> None:
    """No key is left without a sentence on what it means."""
    for section in Settings.model_fields.values():
        for field in section.annotation.model_fields.values():  # type: ignore[union-attr]
            assert (field.description or "").endswith(".")


def test_effective_settings_can_be_read_back(tmp_path: Path) -> None:
    """What ``check-config`` prints is a configuration with the same meaning."""
    path = tmp_path / "first.toml"
    path.write_text("""
        [upstream]
        url = "https://up.example/mcp"
        [healing]
        hold_timeout = 0.25
        signatures = [{ status = 400, text = 'say "bye"\\b', methods = ["POST"] }]
        [limits]
        max_request_body = 1000
    """)
    first = settings_of(path)
    path.write_text(effective(first))
    assert settings_of(path) == first


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("redis://:pw@host:6379/0", "redis://***@host:6379/0", id="password"),
        pytest.param("redis://me:p/w@host", "redis://me:p/w@host", id="not-a-password-in-a-url"),
        pytest.param("https://h/?a=1&api_token=x&b=2", "https://h/?a=1&api_token=***&b=2", id="parameter"),
        pytest.param("https://h/mcp", "https://h/mcp", id="nothing-to-hide"),
    ],
)
def test_credentials_are_hidden(text: str, shown: str) -> None:
    """User info and parameters named like secrets are not shown, wherever a URL stands."""
    assert masked(text) == shown
