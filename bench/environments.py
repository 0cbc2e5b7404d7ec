"""What the bench needs and the project does not: Debian's nginx and wrk, and proxies in environments of their own.

``python -m bench setup`` installs it; nothing else ever does. An environment whose pins have not changed is left alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
HERE: Final = Path(__file__).resolve().parent
VENVS: Final = ROOT / ".venvs"
INSTALL_TIMEOUT_S: Final = 600
DEBIAN_PACKAGES: Final = {"nginx": "nginx-light", "wrk": "wrk"}


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder with programs, made from pins."""

    name: str
    pins: Path
    programs: Path
    stamp: Path
    commands: tuple[tuple[str, ...], ...]
    folder: Path = ROOT
    needs: tuple[str, ...] = ()

    def program(self, name: str) -> Path:
        """Return where a program of it is, whether it is installed or not."""
        return self.programs / name

    @property
    def fingerprint(self) -> str:
        """Name the state that the pins ask for."""
        return hashlib.sha256(sys.version.encode() + self.pins.read_bytes()).hexdigest()

    @property
    def is_ready(self) -> bool:
        """Whether it is installed as its pins say."""
        return self.stamp.is_file() and self.stamp.read_text() == self.fingerprint


def _venv(name: str) -> Environment:
    folder, pins = VENVS / f"bench-{name}", HERE / "requirements" / f"{name}.txt"
    python = str(folder / "bin" / "python")
    return Environment(
        name=name,
        pins=pins,
        programs=folder / "bin",
        stamp=folder / ".pins",
        commands=(
            (sys.executable, "-m", "venv", "--clear", str(folder)),
            (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(pins)),
        ),
    )


TOOLS: Final = _venv("tools")
FASTMCP: Final = _venv("fastmcp")
MCP_PROXY: Final = _venv("mcp-proxy")
SUPERGATEWAY: Final = Environment(
    name="supergateway",
    pins=HERE / "node" / "package.json",
    programs=HERE / "node" / "node_modules" / ".bin",
    stamp=HERE / "node" / "node_modules" / ".pins",
    commands=(("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"),),
    folder=HERE / "node",
    needs=("node", "npm"),
)
ENVIRONMENTS: Final = (TOOLS, FASTMCP, MCP_PROXY, SUPERGATEWAY)


def set_up(say: Callable[[str], None]) -> bool:
    """Install what is missing, telling what goes wrong; return whether ``make bench`` can run."""
    has_programs = _install_packages(say)
    for environment in ENVIRONMENTS:
        _install(environment, say)
    if not TOOLS.is_ready:
        say("without uvloop the generator is slower and more rounds will be flagged")
    return has_programs


def missing_programs() -> list[str]:
    """Return the programs of Debian's that are not there."""
    return [program for program in DEBIAN_PACKAGES if shutil.which(program) is None]


def _install_packages(say: Callable[[str], None]) -> bool:
    missing = missing_programs()
    if not missing:
        return True
    packages = [DEBIAN_PACKAGES[program] for program in missing]
    by_hand = f"install {' and '.join(packages)} by hand, then run this again"
    if shutil.which("apt-get") is None:
        say(f"no apt-get here: {by_hand}")
        return False
    before = ["sudo", "-n"] if os.getuid() != 0 and shutil.which("sudo") else []
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        trouble = _run((*before, "apt-get", *arguments), ROOT)
        if trouble:
            say(f"{trouble}\n{by_hand}")
            return False
    if "nginx" in missing:
        say("Debian starts nginx as a service where it can; the benchmark starts its own and does not need that one")
    return not missing_programs()


def _install(environment: Environment, say: Callable[[str], None]) -> None:
    lacking = [tool for tool in environment.needs if shutil.which(tool) is None]
    if lacking:
        say(f"{environment.name}: {' and '.join(lacking)} not found; it is left out of the comparison")
    elif not environment.is_ready:
        say(f"{environment.name}: installing")
        environment.stamp.unlink(missing_ok=True)
        for command in environment.commands:
            if trouble := _run(command, environment.folder):
                say(f"{environment.name} is left out of the comparison: {trouble}")
                return
        environment.stamp.write_text(environment.fingerprint)


def _run(command: tuple[str, ...], folder: Path) -> str | None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(  # noqa: S603 - package managers, which is the job
            command, check=False, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, env=environ
        )
    except (subprocess.TimeoutExpired, OSError) as trouble:
        return f"{command[0]}: {trouble}"
    return None if done.returncode == 0 else f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}"
