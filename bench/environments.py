"""What the bench needs and the project does not: Debian's nginx and wrk, and proxies in environments of their own.

``python -m bench setup`` installs it; nothing else ever does. An environment whose pins have not changed is left alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.environments import ROOT, VENVS, Environment, install, install_debian, npm, python

__all__ = [
    "DEBIAN_PACKAGES",
    "FASTMCP",
    "MCP_PROXY",
    "ROOT",
    "SUPERGATEWAY",
    "TOOLS",
    "VENVS",
    "missing_programs",
    "set_up",
]

HERE: Final = Path(__file__).resolve().parent
DEBIAN_PACKAGES: Final = {"nginx": "nginx-light", "wrk": "wrk"}


def _venv(name: str) -> Environment:
    return python(VENVS / f"bench-{name}", HERE / "requirements" / f"{name}.txt")


TOOLS: Final = _venv("tools")
FASTMCP: Final = _venv("fastmcp")
MCP_PROXY: Final = _venv("mcp-proxy")
SUPERGATEWAY: Final = npm("supergateway", HERE / "node")
ENVIRONMENTS: Final = (TOOLS, FASTMCP, MCP_PROXY, SUPERGATEWAY)


def set_up(say: Callable[[str], None]) -> bool:
    """Install what is missing, telling what goes wrong; return whether ``make bench`` can run."""
    had_nginx = shutil.which("nginx") is not None
    has_programs = install_debian(DEBIAN_PACKAGES, say)
    if has_programs and not had_nginx:
        say("Debian starts nginx as a service where it can; the benchmark starts its own and does not need that one")
    for environment in ENVIRONMENTS:
        if environment.lacking:
            say(f"{environment.name}: {' and '.join(environment.lacking)} not found; it is left out of the comparison")
        elif trouble := install(environment):
            say(f"it is left out of the comparison: {trouble}")
    if not TOOLS.is_ready:
        say("without uvloop the generator is slower and more rounds will be flagged")
    return has_programs


def missing_programs() -> list[str]:
    """Return the programs of Debian's that are not there."""
    return [program for program in DEBIAN_PACKAGES if shutil.which(program) is None]
