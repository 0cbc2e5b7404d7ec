"""Run the tests on each Python that the package promises, as far as this machine has it, and name those that it has not.

    python -m tools.matrix [--others] [-- PYTEST_ARGS...]

A Python is looked for in ``PYTHONS`` (paths, separated like PATH), as ``python3.X`` on PATH, and where pyenv and uv keep
theirs; the first that runs is taken. ``--others`` leaves out the one that runs this. Exit status 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tools.environments import ROOT, VENVS
from tools.locks import promised_pythons

KEPT_BY: Final = (
    (os.environ.get("PYENV_ROOT", "~/.pyenv"), "versions/{version}.*/bin/python{version}"),
    (os.environ.get("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python"), "cpython-{version}.*/bin/python{version}"),
)
START_TIMEOUT_S: Final = 20
ASK: Final = "import sys; print(*sys.version_info[:2], sep='.')"
RUNNING: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


def candidates(version: str) -> Iterator[str]:
    """Yield programs that may be this Python, the likeliest first."""
    if version == RUNNING:
        yield sys.executable
    yield from filter(None, os.environ.get("PYTHONS", "").split(os.pathsep))
    if found := shutil.which(f"python{version}"):
        yield found
    for folder, pattern in KEPT_BY:
        yield from map(str, sorted(Path(folder).expanduser().glob(pattern.format(version=version))))


def find(version: str) -> str | None:
    """Return a program that is this Python and starts, or None."""
    return next((program for program in candidates(version) if _said_by(program) == version), None)


def _said_by(program: str) -> str | None:
    command = [program, "-c", ASK]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=START_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def test(version: str, program: str, pytest_arguments: Sequence[str]) -> str:
    """Run the tests on one Python, in an environment of its own, and return how that went in a word or a few."""
    folder = VENVS / f"python{version}"
    command = (program, "-m", "tools.environments", str(folder), "requirements-dev.txt", "--editable")
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        return "FAILED to install"
    tests = [str(folder / "bin" / "python"), "-m", "pytest", "-q", *pytest_arguments]
    return "FAILED" if subprocess.run(tests, cwd=ROOT, check=False).returncode else "passed"


def main(arguments: Sequence[str]) -> int:
    """Test every promised Python, and tell the results in a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.matrix", description="Run the tests on each promised Python."
    )
    parser.add_argument("--others", action="store_true", help="leave out the Python that runs this")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST_ARGS")
    given = parser.parse_args(arguments)
    results = {}
    for version in promised_pythons():
        program = find(version)
        if given.others and version == RUNNING:
            results[version] = f"left out: {program} runs this"
        elif program is None:
            results[version] = "not tested: not on this machine"
        else:
            print(f"\n-- Python {version}: {program}", flush=True)
            results[version] = f"{test(version, program, given.pytest)} ({program})"
    print("\nPython matrix:")
    for version, result in results.items():
        print(f"  {version}  {result}")
    return 1 if any(result.startswith("FAILED") for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
