"""Set up what the interoperability suite runs: SDK servers and clients, each in an environment of its own.

    python -m tools.interop_env [python] [node] [rust] [conformance] [all]

A tool that is missing on this machine (node, npm, cargo) is said and is no failure, since the tests that need it are skipped
with that reason; a failed installation is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Final

from tools.environments import ROOT, VENVS, Environment, cargo, install_all, npm, python

SUITE: Final = ROOT / "tests" / "interop"

SETS: Final[dict[str, Callable[[], list[Environment]]]] = {
    "python": lambda: [python(VENVS / lock.stem, lock) for lock in sorted((SUITE / "requirements").glob("*.txt"))],
    "node": lambda: [npm("node", SUITE / "node")],
    "rust": lambda: [cargo("rust", SUITE / "rust")],
    # With the newer node that it wants.
    "conformance": lambda: [npm("conformance", SUITE / "node" / "conformance")],
}


def main(names: Iterable[str]) -> int:
    """Install the named sets; exit status 1 if an installation failed, 2 for an unknown set."""
    wanted = list(SETS) if "all" in (chosen := list(names)) else chosen
    if not wanted or set(wanted) - SETS.keys():
        print(f"usage: python -m tools.interop_env [{'|'.join(SETS)}|all] ...", file=sys.stderr)
        return 2
    environments = [environment for name in wanted for environment in SETS[name]()]
    for environment in environments:
        if environment.lacking:
            missing = " and ".join(environment.lacking)
            print(f"{environment.name}: {missing} not found; the tests that need it are skipped")
    troubles = install_all(environment for environment in environments if not environment.lacking)
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
