"""Which Python runs a contender, and how that Python was built: what a slow build costs is not the proxy's doing.

``python -m bench.interpreter`` tells of the one that runs it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.environments import ROOT, VENVS

NOT_KNOWN: Final = "not known"
ASKING_TIMEOUT_S: Final = 20


class NotMade(Exception):
    """There is no such Python, or no environment could be made for it."""


def built(variables: Mapping[str, object]) -> dict[str, str]:
    """Return whether PGO and LTO were used, as far as ``sysconfig.get_config_vars()`` tells.

    What is not among the options of ``configure`` was not used, unless somebody has taken the build's flags out of what is
    installed: Debian does, and optimises without such an option.
    """
    options = _options(str(variables.get("CONFIG_ARGS") or ""))
    otherwise = "no" if variables.get("PGO_PROF_USE_FLAG") else NOT_KNOWN
    return {
        "PGO": options.get("--enable-optimizations", otherwise),
        "LTO": options.get("--with-lto", otherwise),
    }


def _options(arguments: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in shlex.split(arguments))
    return {name: "no" if value == "no" else "yes" for name, _, value in pairs}


def description(python: Path | str) -> dict[str, str]:
    """Return version and build of a Python by asking it; raise ``NotMade`` if it does not answer."""
    command = [str(python), "-m", "bench.interpreter"]
    try:
        done = subprocess.run(  # noqa: S603 - the Python that the user has named
            command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=ASKING_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as trouble:
        raise NotMade(f"{python}: {trouble}") from trouble
    found: dict[str, str] = json.loads(done.stdout)
    return found


def environment(python: Path, lock: Path) -> Path:
    """Return the Python of an environment of this lock, made by ``python`` unless it is there; raise ``NotMade``."""
    name = hashlib.sha256(f"{python}\n{lock}".encode()).hexdigest()[:8]
    folder = VENVS / f"bench-{lock.stem}-{name}"
    # It makes its own, so that what the lock says for its version and platform is installed.
    command = [str(python), "-m", "tools.environments", str(folder), str(lock)]
    try:
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)  # noqa: S603 - as above
    except (OSError, subprocess.SubprocessError) as trouble:
        raise NotMade(f"{python}: {trouble}") from trouble
    return folder / "bin" / "python"


if __name__ == "__main__":
    print(json.dumps({"python": platform.python_version(), **built(sysconfig.get_config_vars())}))
