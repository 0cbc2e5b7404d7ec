"""Set up what the interoperability suite runs: SDK servers and clients, each in an environment of its own.

    python -m tools.interop_env [python] [node] [rust] [go] [charts] [conformance] [all]

A tool that is missing on this machine (node, npm, cargo, go) is said and is no failure, since the tests that need it are
skipped with that reason; neither is a Go that is too old, or whose module proxy cannot be reached. A failed installation is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Final

from tools.environments import ROOT, VENVS, Environment, cargo, go, install_all, install_debian, npm, python

SUITE: Final = ROOT / "tests" / "interop"
GO_BUILDS: Final = SUITE / "go" / "target"
NOT_HERE: Final = re.compile(
    r": (dial tcp|proxyconnect|net/http: TLS handshake timeout|module lookup disabled by GOPROXY=off|.*requires go >= )"
)
"""How the go command says that it cannot reach its module proxy, or that it is too old."""

CHARTS: Final = ROOT / "tools" / "charts"
CHART_TOOLS: Final = ("helm.sh/helm/v3/cmd/helm", "sigs.k8s.io/kustomize/kustomize/v5")
DEBIAN_PACKAGES: Final = {"redis-server": "redis-server", "promtool": "prometheus"}

SETS: Final[dict[str, Callable[[], list[Environment]]]] = {
    "python": lambda: [python(VENVS / lock.stem, lock) for lock in sorted((SUITE / "requirements").glob("*.txt"))],
    "node": lambda: [npm("node", SUITE / "node")],
    "rust": lambda: [cargo("rust", SUITE / "rust")],
    "go": lambda: [
        go("mcp-go 0.43", SUITE / "go" / "mcp_go", GO_BUILDS / "mcp_go_0_43", modfile="v0_43.mod"),
        go("mcp-go 1", SUITE / "go" / "mcp_go", GO_BUILDS / "mcp_go_1"),
        go("go-sdk", SUITE / "go" / "go_sdk", GO_BUILDS / "go_sdk"),
    ],
    # What the chart, the kustomizations and the rules are checked with.
    "charts": lambda: [
        python(VENVS / "charts", ROOT / "tools" / "requirements" / "charts.txt"),
        go("helm and kustomize", CHARTS, VENVS / "chart-tools", packages=CHART_TOOLS),
    ],
    # With the newer node that it wants.
    "conformance": lambda: [npm("conformance", SUITE / "node" / "conformance")],
}


def main(names: Iterable[str]) -> int:
    """Install the named sets; exit status 1 if an installation failed, 2 for an unknown set."""
    wanted = list(SETS) if "all" in (chosen := list(names)) else chosen
    if not wanted or set(wanted) - SETS.keys():
        print(f"usage: python -m tools.interop_env [{'|'.join(SETS)}|all] ...", file=sys.stderr)
        return 2
    install_debian(DEBIAN_PACKAGES, print)  # without them the tests of that store and of the rules are skipped
    environments = [environment for name in wanted for environment in SETS[name]()]
    for environment in environments:
        if environment.lacking:
            missing = " and ".join(environment.lacking)
            print(f"{environment.name}: {missing} not found; the tests that need it are skipped")
    troubles = install_all(environment for environment in environments if not environment.lacking)
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    not_here = [trouble for trouble in troubles if NOT_HERE.search(trouble)]
    if not_here:
        print("no Go module proxy can be reached, or this go is too old; the tests that need it are skipped")
    return 1 if len(troubles) > len(not_here) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
