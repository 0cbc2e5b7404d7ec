"""`mcp-sidecar probe URL`: how a server behaves, and what the sidecar in front of it will do.

Everything it says of the sidecar comes from the proxy's own table and code. It only reads, unless told to restart the server.
Exit status 0: healable; 3: not, or not to be told; 4: no MCP server; 1: could not run; 2: a mistake in what was given.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mcp_sidecar.commands.probe.capture import entries
from mcp_sidecar.commands.probe.findings import Outcome, report_on
from mcp_sidecar.commands.probe.questions import Questions
from mcp_sidecar.commands.probe.report import as_json, may_colour, text
from mcp_sidecar.commands.probe.restart import Restarted, restart
from mcp_sidecar.config import SidecarConfig
from mcp_sidecar.ops import logs
from mcp_sidecar.settings import Loaded
from mcp_sidecar.wire.headers import Pair

COULD_NOT_RUN, MISTAKE = 1, 2
MIN_WIDTH, MAX_WIDTH = 60, 120


def run(arguments: Namespace, load: Callable[[Mapping[str, Sequence[str]]], Loaded | None]) -> int:
    """Probe, print, and give the exit status. ``load`` reads settings, and tells what is wrong with them."""
    loaded = load(
        {
            "upstream": [arguments.server],
            "listen": ["127.0.0.1:0"],
            "admin": ["off"],
            "store": ["memory:"],
            "log-level": ["error"],
        }
    )
    headers = _headers(arguments.header)
    if loaded is None or headers is None:
        return MISTAKE
    logs.configure("console", "error", colours=False)
    try:
        return asyncio.run(_run(arguments, loaded.config, headers))
    except OSError as error:
        return _complain(f"{error.filename or 'probe'}: {error.strerror or error}", COULD_NOT_RUN)
    finally:
        logs.close(1.0)


def _headers(given: Sequence[str]) -> list[Pair] | None:
    pairs = []
    for line in given:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or "\n" in line or "\r" in line:
            _complain(f"--header: must be NAME: VALUE, and begins with {name[:20]!r}", MISTAKE)
            return None
        pairs.append((name.strip(), value.strip()))
    return pairs


async def _run(arguments: Namespace, config: SidecarConfig, headers: list[Pair]) -> int:
    is_shown = sys.stderr.isatty() and not arguments.json
    seen = await Questions(config.upstream.url, headers, ca_file=config.upstream.ca_file).ask_all(
        lambda about: _progress(f"asking: {about}") if is_shown else None
    )
    _progress("") if is_shown else None
    report = report_on(seen)
    restarted: Restarted | None = None
    if arguments.restart and report.outcome is not Outcome.NO_MCP_SERVER:
        tell = _ignore if arguments.json else _step
        restarted = await restart(config, arguments.restart, headers, tell)
    if arguments.capture:
        _write(Path(arguments.capture), list(entries(seen)))
    if arguments.json:
        sys.stdout.write(as_json(seen, report, restarted))
    else:
        width = min(max(shutil.get_terminal_size((100, 24)).columns, MIN_WIDTH), MAX_WIDTH)
        coloured = may_colour(is_terminal=sys.stdout.isatty())
        sys.stdout.write(text(seen, report, restarted, width=width, coloured=coloured))
    if restarted is not None and not restarted.is_whole:
        return Outcome.NOT_HEALABLE.exit_status
    return report.outcome.exit_status


def _write(folder: Path, files: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files:
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    sys.stderr.write(f"{len(files)} answers written to {folder}; look through them before you hand them on\n")


def _progress(line: str) -> None:
    sys.stderr.write(f"\r\x1b[K{line}")
    sys.stderr.flush()


def _step(line: str) -> None:
    sys.stdout.write(f"  · {line}\n")
    sys.stdout.flush()


def _ignore(_: str) -> None:
    """In JSON the steps come with everything else."""


def _complain(line: str, status: int) -> int:
    sys.stderr.write(f"{line}\n")
    return status
