"""The closed-loop generator: wrk with as many connections as asked, each sending its next call when it has its answer."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import work

SCRIPT: Final = Path(__file__).with_name("wrk.lua")
FIRST_UNIQUE: Final = 2**47
"""Below it the numbers begin that make requests unique: no two rounds begin with the same."""
MARK: Final = "bench "


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw."""

    requests: int
    seconds: float
    errors: int
    p50_us: float
    p99_us: float

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0


def write_calls(file: Path, host: str, sessions: Sequence[str], kind: str) -> None:
    """Write the calls that wrk shall send, each with its length before it in eight characters."""
    with file.open("wb") as out:
        for number in range(len(sessions) * work.IDS):
            call = work.call_request(host, sessions, kind, number)
            out.write(b"%8d" % len(call) + call)


def run(url: str, calls: Path, connections: int, seconds: float) -> Load:
    """Run one round; raises ``CalledProcessError`` if wrk cannot connect at all."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    command += ["-s", str(SCRIPT), url, "--", str(calls), work.UNIQUE, str(secrets.randbelow(FIRST_UNIQUE))]
    done = subprocess.run(  # noqa: S603 - our own options
        command, check=True, capture_output=True, text=True, timeout=seconds + 30
    )
    return parse(done.stdout)


def parse(output: str) -> Load:
    """Read the line of the script out of what wrk prints; raise ``ValueError`` if it is not there."""
    for line in output.splitlines():
        if line.startswith(MARK):
            seen = json.loads(line.removeprefix(MARK))
            return Load(
                requests=seen["requests"],
                seconds=seen["duration_us"] / 1e6,
                errors=sum(seen[kind] for kind in ("connect", "read", "write", "status", "timeout")),
                p50_us=seen["p50_us"],
                p99_us=seen["p99_us"],
            )
    raise ValueError(f"wrk gave no result: {output[-500:]!r}")
