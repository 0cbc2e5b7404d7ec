"""What is released, and how: `python -m tools.release dist|release`, run by the release environment's Python.

``dist`` makes ``dist/`` anew: sdist, wheel, and a bill of materials (CycloneDX) of the wheel on the runtime's lock. It fails
unless the first two come out byte for byte the same when they are made again (the wheel also from the sdist), hold what they
should and nothing else, have metadata that an index takes, and the wheel runs on what the lock names.

``release`` does that, dates the changelog, commits and tags; it pushes nothing. The version is the one that stands in
``mcp_sidecar/__init__.py``.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tools.environments import PIP, ROOT, VENVS, install, python

PACKAGE: Final = "mcp_sidecar"
PACKAGED_SUFFIXES: Final = frozenset({".py", ".typed"})
"""What a wheel may hold of the package; how tools are configured is nothing that users install."""
UNRELEASED: Final = "## [Unreleased]\n"
DIST: Final = ROOT / "dist"


class NotReleasable(Exception):
    """A sentence about what stands in the way."""


def version(root: Path = ROOT) -> str:
    """Return the version that the checkout has."""
    text = (root / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise NotReleasable(f"{PACKAGE}/__init__.py has no __version__")
    return found[1]


def dated(changelog: str, released: str, day: dt.date) -> str:
    """Return the changelog with what was unreleased under this version, and an empty section for what comes."""
    head, unreleased, rest = changelog.partition(UNRELEASED)
    section, next_heading, older = rest.partition("\n## ")
    if not unreleased or not section.strip():
        raise NotReleasable("CHANGELOG.md tells nothing under [Unreleased]")
    if f"\n## [{released}]" in changelog:
        raise NotReleasable(f"CHANGELOG.md has {released} already")
    return f"{head}{UNRELEASED}\n## [{released}] - {day.isoformat()}\n{section}{next_heading}{older}"


def unexpected(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Return what a wheel should not hold, and what it lacks of the package's files."""
    held = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    wanted = {name for name in tracked if Path(name).suffix in PACKAGED_SUFFIXES}
    return sorted(held ^ wanted)


def build(source: Path, target: Path, *kinds: str) -> list[Path]:
    """Build these kinds (``wheel``, ``sdist``) of a source tree, dated as ``SOURCE_DATE_EPOCH`` says or by its last commit.

    Where there is neither, as in an unpacked archive, the date is the one that the build system has for that.
    """
    environ = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    if epoch := os.environ.get("SOURCE_DATE_EPOCH") or _epoch():
        environ["SOURCE_DATE_EPOCH"] = epoch
    wanted = [word for kind in kinds for word in ("--target", kind)]
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target), *wanted]
    subprocess.run(command, cwd=source, env=environ, check=True, capture_output=True, text=True)
    return sorted(target.iterdir())


def _epoch() -> str | None:
    try:
        return _git("log", "-1", "--format=%ct").strip()
    except NotReleasable:  # no git, no repository, or one of somebody else's
        return None


def _git(*arguments: str, root: Path = ROOT) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as trouble:
        raise NotReleasable(f"git {arguments[0]}: {(trouble.stderr or trouble.stdout).strip()}") from trouble
    except OSError as trouble:
        raise NotReleasable(f"git: {trouble}") from trouble


def tracked_files(root: Path = ROOT) -> list[str]:
    """Return the package's files that are under version control."""
    return _git("ls-files", PACKAGE, root=root).split()


def dist() -> list[Path]:
    """Make and check what is released; return its files."""
    check_tag()
    shutil.rmtree(DIST, ignore_errors=True)
    files = build(ROOT, DIST, "sdist", "wheel")
    _check_again(files)
    (wheel,) = (file for file in files if file.suffix == ".whl")
    with zipfile.ZipFile(wheel) as opened:
        if wrong := unexpected(opened.namelist(), tracked_files()):
            raise NotReleasable(f"{wheel.name} holds or lacks: {', '.join(wrong)}")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], check=True)
    return [*files, _bill_of_materials(_check_it_runs(wheel))]


def _check_again(files: Sequence[Path]) -> None:
    """Compare with what comes out a second time: both from the checkout, and the wheel from the sdist."""
    (sdist,) = (file for file in files if file.suffix == ".gz")
    with tempfile.TemporaryDirectory() as folder:
        again, unpacked, inside = (Path(folder) / name for name in ("again", "unpacked", "inside"))
        with tarfile.open(sdist) as opened:
            opened.extractall(unpacked, filter="data")
        (source,) = unpacked.iterdir()
        for other in (*build(ROOT, again, "sdist", "wheel"), *build(source, inside, "wheel")):
            if other.read_bytes() != (DIST / other.name).read_bytes():
                raise NotReleasable(f"{other.name} is another one each time it is made")


def _check_it_runs(wheel: Path) -> Path:
    """Run the wheel on what the lock names; return the Python that has both and nothing else."""
    environment = python(VENVS / "wheel", ROOT / "requirements.txt")
    if trouble := install(environment):
        raise NotReleasable(trouble)
    inside = [str(environment.program("python")), *PIP]
    environment.stamp.unlink()  # the wheel is not in its lock
    subprocess.run([*inside, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    subprocess.run([*inside, "check"], check=True, stdout=subprocess.DEVNULL)
    program = [str(environment.program("mcp-sidecar"))]
    with tempfile.TemporaryDirectory() as elsewhere:
        said = subprocess.run([*program, "--version"], cwd=elsewhere, check=True, capture_output=True, text=True).stdout
    if version() not in said:
        raise NotReleasable(f"the wheel says that it is {said.strip()}")
    subprocess.run([*inside, "uninstall", "--quiet", "--yes", "pip"], check=True)  # what is left is what users run
    return environment.program("python")


def _bill_of_materials(runtime: Path) -> Path:
    target = DIST / f"{PACKAGE}-{version()}.cdx.json"
    outputs = ["--output-reproducible", "--output-format", "JSON", "--output-file", str(target)]
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", "pyproject.toml", *outputs]
    subprocess.run([*command, str(runtime)], cwd=ROOT, check=True)
    return target


def tag(day: dt.date, root: Path = ROOT) -> str:
    """Date the changelog, commit that, and return the tag that was made."""
    released = version(root)
    name = f"v{released}"
    changelog = root / "CHANGELOG.md"
    before = changelog.read_text(encoding="utf-8")
    changelog.write_text(dated(before, released, day), encoding="utf-8")
    try:
        _git("commit", "--quiet", "--message", f"Release {released}", "CHANGELOG.md", root=root)
    except NotReleasable:
        changelog.write_text(before, encoding="utf-8")
        raise
    _git("tag", "--annotate", "--message", f"mcp-sidecar {released}", name, root=root)
    return name


def check_ready(root: Path = ROOT) -> None:
    """Raise ``NotReleasable`` where the work tree is not clean, or the version has been released."""
    if _git("status", "--porcelain", root=root).strip():
        raise NotReleasable("there are changes that are not committed")
    if _git("tag", "--list", f"v{version(root)}", root=root).strip():
        raise NotReleasable(f"v{version(root)} has been tagged: raise __version__ in {PACKAGE}/__init__.py first")


def check_tag(root: Path = ROOT) -> None:
    """Raise ``NotReleasable`` where the commit is tagged as another version: somebody else would get it under that name."""
    tags = _git("tag", "--points-at", "HEAD", "--list", "v*", root=root).split()
    if tags and f"v{version(root)}" not in tags:
        raise NotReleasable(f"this is tagged {', '.join(tags)}, and says that it is {version(root)}")


def release() -> None:
    """Check, tag, make what is released of the tag, and say what is left to do."""
    check_ready()
    dist()
    name = tag(dt.datetime.now(dt.UTC).date())
    _told(dist())
    print(f"\n{name} is tagged here and nowhere else. The rest is: git push origin HEAD {name}")


def _told(files: Iterable[Path]) -> None:
    for file in files:
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size:,} bytes")


def main(arguments: Sequence[str]) -> int:
    """Run the one command that was named; exit status 1 where something stands in the way, 2 for an unknown one."""
    if list(arguments) not in (["dist"], ["release"]):
        print("usage: python -m tools.release dist|release", file=sys.stderr)
        return 2
    try:
        if arguments[0] == "dist":
            _told(dist())
        else:
            release()
    except (NotReleasable, subprocess.CalledProcessError) as trouble:
        print(f"release: {trouble}", getattr(trouble, "stderr", None) or "", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
