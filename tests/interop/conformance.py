"""The official conformance suite, directly against a server and through the sidecar, and what differs.

    python -m tests.interop.conformance

No scenario may come out worse through the sidecar; exit status 1 says that one did.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.catalogue import NODE_MODULES, SERVERS, SUITE, ServerSpec
from tests.interop.processes import DEFAULT_STORE, Server, Sidecar, StoreOptions

CONFORMANCE_MODULES = SUITE / "node" / "conformance" / "node_modules"
NODE = CONFORMANCE_MODULES / ".bin" / "node"
"""The newer node that the suite wants comes with it where the registry has one for this machine; elsewhere it is the machine's."""
PROGRAM = CONFORMANCE_MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
SUITE_TIMEOUT_S = 120
RANKS = {"INFO": 0, "SKIPPED": 1, "SUCCESS": 2, "WARNING": 3, "FAILURE": 4}
"""From saying nothing to the worst; up to SUCCESS nothing is wrong."""
MISSING = "not checked"

Statuses = dict[tuple[str, str], str]
"""The worst status of each check, by scenario and check."""


def conformance_server() -> ServerSpec:
    """Return our own server, which has what every scenario asks for."""
    script = str(SUITE / "node" / "conformance_server.mjs")
    return ServerSpec(
        name="conformance-server",
        loses_sessions_with="404 JSON",
        command=lambda port: ["node", script, str(port)],
        needs=(NODE_MODULES / ".pins", CONFORMANCE_MODULES / ".pins"),
        installed_by="node conformance",
    )


TARGETS = (
    conformance_server(),
    *(spec for spec in SERVERS if spec.name in {"server-everything", "mcp-1.30.0", "mcp-2.3.0"}),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One check that came out differently."""

    scenario: str
    check: str
    direct: str
    through: str

    @property
    def worse(self) -> bool:
        """Whether the sidecar made it worse."""
        return _harm(self.through) > _harm(self.direct)

    def __str__(self) -> str:
        return f"{self.scenario} / {self.check}: {self.direct} directly, {self.through} through the sidecar"


def _harm(status: str) -> int:
    return max(0, RANKS.get(status, len(RANKS)) - RANKS["SUCCESS"])


def run_suite(url: str, folder: Path) -> Statuses:
    """Run every scenario against one endpoint."""
    command = [
        str(NODE) if NODE.exists() else "node",
        str(PROGRAM),
        "server",
        "--suite",
        "all",
        "--url",
        url,
        "--output-dir",
        str(folder),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SUITE_TIMEOUT_S)
    statuses = dict(_statuses(folder))
    if not statuses:
        raise RuntimeError(f"the conformance suite gave no result:\n{(done.stdout + done.stderr)[-2000:]}")
    return statuses


def _statuses(folder: Path) -> Iterator[tuple[tuple[str, str], str]]:
    worst: Statuses = {}
    for file in sorted(folder.glob("*/checks.json")):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT.*$", "", file.parent.name)
        for check in json.loads(file.read_text()):
            key = scenario, str(check["id"])
            worst[key] = max(worst.get(key, "INFO"), check["status"], key=lambda status: RANKS[status])
    yield from worst.items()


def differences(direct: Statuses, through: Statuses) -> list[Difference]:
    """Return the checks that came out differently; one that only one side got to counts."""
    keys = sorted(direct.keys() | through.keys())
    found = (Difference(*key, direct.get(key, MISSING), through.get(key, MISSING)) for key in keys)
    return [difference for difference in found if difference.direct != difference.through]


@contextmanager
def endpoints(spec: ServerSpec, folder: Path, kept_in: StoreOptions = DEFAULT_STORE) -> Iterator[tuple[str, str]]:
    """Start a server and a sidecar; yield both URLs."""
    server = Server(spec, folder / "ledger", {})
    server.start()
    try:
        sidecar = Sidecar(server.url, store=kept_in)
        try:
            yield server.url, sidecar.url
        finally:
            sidecar.stop()
    finally:
        server.kill()


def compare(spec: ServerSpec, kept_in: StoreOptions = DEFAULT_STORE) -> tuple[Statuses, list[Difference]]:
    """Run the suite both ways; return the direct statuses and what differs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with endpoints(spec, folder, kept_in) as (direct_url, through_url):
            direct = run_suite(direct_url, folder / "direct")
            through = run_suite(through_url, folder / "through")
    return direct, differences(direct, through)


def summary(direct: Statuses) -> str:
    """Return how the server does by itself."""
    passed = sum(_harm(status) == 0 for status in direct.values())
    return f"{len({scenario for scenario, _ in direct})} scenarios, {passed} of {len(direct)} checks passed directly"


def main() -> int:
    """Compare on every target that is installed."""
    worse = False
    for spec in TARGETS:
        if reason := spec.missing:
            print(f"{spec.name}: skipped, {reason}")
            continue
        direct, found = compare(spec)
        print(f"{spec.name}: {summary(direct)}; {len(found)} differences")
        for difference in found:
            print(f"  {'WORSE ' if difference.worse else ''}{difference}")
        worse = worse or any(difference.worse for difference in found)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
