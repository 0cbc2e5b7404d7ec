"""What a release consists of: the same bytes each time, the package and nothing else, and a changelog that says when."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tools import release
from tools.environments import ROOT

DAY: Final = dt.date(2026, 2, 3)
CHANGELOG: Final = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- New.\n\n## [0.1.0] - 2025-01-01\n\n- Old.\n"
AUTHOR: Final = {f"GIT_{who}_{what}": "somebody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def _forget_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hook, git names the repository that it runs for: what follows would be done to that one."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a version that has not been released."""
    _forget_repository(monkeypatch)
    for name, value in (AUTHOR | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mcp_sidecar").mkdir()
    (tmp_path / "mcp_sidecar" / "__init__.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message", "Begin")
    return tmp_path


class TestChangelog:
    def test_what_was_unreleased_gets_version_and_day(self) -> None:
        """An empty section is left for what comes, and nothing else changes."""
        assert release.dated(CHANGELOG, "0.2.0", DAY) == CHANGELOG.replace(
            "## [Unreleased]\n", "## [Unreleased]\n\n## [0.2.0] - 2026-02-03\n"
        )

    @pytest.mark.parametrize(
        ("changelog", "version"),
        [
            pytest.param(CHANGELOG.replace("\n### Added\n\n- New.\n", ""), "0.2.0", id="nothing to tell"),
            pytest.param(CHANGELOG.replace("## [Unreleased]\n", ""), "0.2.0", id="no such section"),
            pytest.param(CHANGELOG, "0.1.0", id="released before"),
        ],
    )
    def test_a_release_without_news_is_none(self, changelog: str, version: str) -> None:
        """A release says what is new, once."""
        with pytest.raises(release.NotReleasable):
            release.dated(changelog, version, DAY)

    def test_the_project_has_one_that_can_be_dated(self) -> None:
        """What stands in the way of a release is seen long before it."""
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        if release.UNRELEASED + "\n## " not in text:
            assert "\n## [99.0.0] - 2026-02-03\n" in release.dated(text, "99.0.0", DAY)


class TestTag:
    def test_it_commits_and_tags_the_dated_changelog(self, checkout: Path) -> None:
        """The tag's tree tells its own version and day."""
        assert release.tag(DAY, checkout) == "v0.2.0"
        assert "## [0.2.0] - 2026-02-03" in _git(checkout, "show", "v0.2.0:CHANGELOG.md")
        assert _git(checkout, "status", "--porcelain") == ""

    def test_a_clean_checkout_is_ready(self, checkout: Path) -> None:
        """Nothing else is asked for."""
        release.check_ready(checkout)

    def test_uncommitted_changes_are_not_released(self, checkout: Path) -> None:
        """What is tagged is what was built."""
        (checkout / "CHANGELOG.md").write_text(f"{CHANGELOG}\n")
        with pytest.raises(release.NotReleasable, match="not committed"):
            release.check_ready(checkout)

    def test_a_version_is_released_once(self, checkout: Path) -> None:
        """The next release needs another version."""
        release.tag(DAY, checkout)
        with pytest.raises(release.NotReleasable, match="has been tagged"):
            release.check_ready(checkout)

    def test_what_git_refuses_is_told_and_changes_nothing(self, checkout: Path) -> None:
        """Without an author, or with a hook that says no, there is no release and no trace of one."""
        hook = checkout / ".git" / "hooks" / "pre-commit"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
        hook.chmod(0o755)
        with pytest.raises(release.NotReleasable, match="not today"):
            release.tag(DAY, checkout)
        assert _git(checkout, "status", "--porcelain") == ""

    def test_a_tag_is_its_version(self, checkout: Path) -> None:
        """Nothing is made of a commit that is tagged as another version."""
        release.check_tag(checkout)
        _git(checkout, "tag", "v0.3.0")
        with pytest.raises(release.NotReleasable, match=r"v0\.3\.0"):
            release.check_tag(checkout)
        _git(checkout, "tag", "v0.2.0")
        release.check_tag(checkout)


def test_an_unpacked_archive_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no repository, or no git, a wheel has another date and the same files."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "")
    (first,) = release.build(ROOT, tmp_path / "first", "wheel")
    monkeypatch.setenv("PATH", str(tmp_path))
    (second,) = release.build(ROOT, tmp_path / "second", "wheel")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        pytest.param("mcp_sidecar/wire/ruff.toml", ["mcp_sidecar/wire/ruff.toml"], id="a tool's configuration"),
        pytest.param("tests/test_app.py", ["tests/test_app.py"], id="a test"),
        pytest.param("mcp_sidecar/app.py", [], id="a module"),
        pytest.param("mcp_sidecar-0.2.0.dist-info/METADATA", ["mcp_sidecar/app.py"], id="a module is missing"),
    ],
)
def test_what_does_not_belong_into_a_wheel_is_found(name: str, wrong: list[str]) -> None:
    """Too much is found, and too little."""
    tracked = ["mcp_sidecar/app.py"]
    names = {name, "mcp_sidecar/app.py"} if "dist-info" not in name else {name}
    assert release.unexpected(names, tracked) == wrong


def test_the_wheel_holds_the_package_and_is_the_same_each_time(tmp_path: Path) -> None:
    """Whoever builds it again gets the same bytes, and finds the package's modules in it and nothing else."""
    first, second = (release.build(ROOT, tmp_path / name, "wheel")[0] for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    files = (file for file in (ROOT / release.PACKAGE).rglob("*") if "__pycache__" not in file.parts)
    with zipfile.ZipFile(first) as opened:
        assert release.unexpected(opened.namelist(), [str(file.relative_to(ROOT)) for file in files]) == []
