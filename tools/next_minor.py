"""Try the next minor version of a library whose private parts are used.

    python -m tools.next_minor LIBRARY [-- PYTEST_ARGS...]

The one place where a version is chosen when installing, since that is the question. It warns and never fails: neither where
there is no such version yet, nor where the registry is away, nor where the tests fail with it. Exit status 0.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.environments import PIP, PROJECT, ROOT, VENVS, install, python

FETCH_TIMEOUT_S: Final = 120
TESTS_TIMEOUT_S: Final = 900


def beyond(library: str) -> str:
    """Return the requirement that begins where the project's own ends."""
    dependencies = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    pattern = re.compile(rf"{re.escape(library)}\b.*<(?P<bound>[\d.]+)")
    (bound,) = (found["bound"] for found in map(pattern.match, dependencies) if found)
    return f"{library}>={bound}"


def _fetch(requirement: str, interpreter: Path, folder: str) -> Path | None:
    """Download the wheel of the newest version that fits, or return None."""
    command = [str(interpreter), *PIP, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", folder]
    try:
        done = subprocess.run(
            [*command, requirement], check=False, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None
    return next(Path(folder).glob("*.whl"), None) if done.returncode == 0 else None


def attempt(library: str, pytest_arguments: Sequence[str]) -> str:
    """Run the tests with the next version, and return what a reader has to know."""
    requirement = beyond(library)
    folder = VENVS / f"next-{library}"
    if trouble := install(python(folder, ROOT / "requirements-dev.txt", editable=True)):
        return f"warning: not tried: {trouble}"
    interpreter = folder / "bin" / "python"
    with tempfile.TemporaryDirectory() as downloads:
        wheel = _fetch(requirement, interpreter, downloads)
        if wheel is None:
            return f"not tried: the registry has no {requirement}, or is away"
        (folder / ".pins").unlink(missing_ok=True)  # from now on it is not what the lock says
        replaced = [str(interpreter), *PIP, "install", "--quiet", "--no-deps", str(wheel)]
        if subprocess.run(replaced, check=False).returncode:
            return f"warning: {wheel.name} cannot be installed"
        try:
            done = subprocess.run(
                [str(interpreter), "-m", "pytest", "-q", *pytest_arguments],
                cwd=ROOT,
                check=False,
                timeout=TESTS_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return f"warning: the tests did not end within {TESTS_TIMEOUT_S} s with {wheel.name}"
    return f"the tests pass with {wheel.name}" if done.returncode == 0 else f"warning: tests fail with {wheel.name}"


def main(arguments: Sequence[str]) -> int:
    """Try it and say how it went; always exit status 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.next_minor", description="Try a library's next minor version."
    )
    parser.add_argument("library")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST_ARGS")
    given = parser.parse_args(arguments)
    print(f"next {given.library}: {attempt(given.library, given.pytest)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
