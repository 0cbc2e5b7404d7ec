"""Who is compared, and how each is started in front of an upstream."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Final

from bench import interpreter, nginx, processes, work
from bench.environments import FASTMCP, MCP_PROXY, ROOT, SUPERGATEWAY
from bench.machine import Cores, on_core
from bench.processes import Running

UNLIMITED: Final = 10**9
OWN: Final = Path(sys.executable)
LOCKS: Final = Path(__file__).parent.resolve() / "requirements"


class Kind(Enum):
    """What a contender is compared as."""

    NONE = "no proxy"
    PROXY = "proxy"
    MCP_PROXY = "MCP proxy"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contender is started: its folder, the cores, and how many descriptors there are."""

    folder: Path
    cores: Cores
    descriptors: int


Start = Callable[["Contender", Place, str], Running]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One that stands in the way, as a row of every table."""

    name: str
    kind: Kind
    form: str
    """What it is in this run, for the reader."""
    start: Start
    needs: tuple[Path | str, ...] = ()
    """Files or commands without which it is left out."""
    python: Path | None = None
    """The Python that runs it, if one does."""
    lock: Path | None = None
    """What it needs of packages to be run by another."""
    asked: tuple[str, ...] = tuple(work.ASKED)
    """Kinds of request that it can be given; an MCP proxy chooses by itself how it answers."""
    heals: bool = False
    """Whether a session that the upstream has lost goes on."""
    max_sessions: int = UNLIMITED
    """Beyond it the machine suffers, not the contender: it starts a process per session."""
    environ: Mapping[str, str] = field(default_factory=dict)
    checkout: Path = ROOT

    @property
    def missing(self) -> list[str]:
        """What it needs and this machine has not."""
        return [str(need) for need in (*self.needs, self.python) if need is not None and not _is_there(need)]

    def on(self, python: Path) -> Contender:
        """Return the same run by another Python; raise ``NotMade`` if its packages cannot be installed for that."""
        return self if self.lock is None else replace(self, python=interpreter.environment(python, self.lock))

    def begin(self, place: Place, upstream_url: str) -> Running:
        """Start it on the proxy's core."""
        place.folder.mkdir(parents=True, exist_ok=True)
        with on_core(place.cores.proxy):
            return self.start(self, place, upstream_url)


def _is_there(need: Path | str) -> bool:
    return need.exists() if isinstance(need, Path) else shutil.which(need) is not None


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}{work.ENDPOINT}"


def _begin(contender: Contender, place: Place, command: list[str], port: int) -> Running:
    return processes.start(
        command,
        _url(port),
        place.folder / "log",
        cwd=contender.checkout,
        environ={**os.environ, **contender.environ},
        accepting=lambda: processes.accepts(port),
    )


def _start_sidecar(contender: Contender, place: Place, upstream_url: str) -> Running:
    log = place.folder / "log"
    # Its sessions are kept in a file, as by default, but not in that of whoever measures.
    environ = {**os.environ, "XDG_STATE_HOME": str(place.folder), **contender.environ}
    options = ["--upstream", upstream_url, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    running = processes.start(
        [str(contender.python), "-m", "mcp_sidecar", *options],
        "",
        log,
        cwd=contender.checkout,
        environ=environ,
        accepting=lambda: bool(listening_address(log.read_text(errors="replace"))),
    )
    running.url = f"http://{listening_address(log.read_text(errors='replace'))}{work.ENDPOINT}"
    return running


def listening_address(log: str) -> str:
    """Return the address that a sidecar says it listens on, or nothing."""
    for line in log.splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("event") == "listening":
                return str(entry["address"])
    return ""


def _start_nginx(contender: Contender, place: Place, upstream_url: str) -> Running:
    port = processes.free_port()
    config = place.folder / "nginx.conf"
    config.write_text(nginx.proxy(str(place.folder), port, upstream_url, place.descriptors))
    return _begin(contender, place, nginx_command(config), port)


def nginx_command(config: Path) -> list[str]:
    """Return how nginx is started with nothing but this file."""
    return ["nginx", "-p", str(config.parent), "-e", str(config.parent / "error.log"), "-c", str(config)]


def _start_plain(contender: Contender, place: Place, upstream_url: str) -> Running:
    port = processes.free_port()
    origin = upstream_url.removesuffix(work.ENDPOINT)
    return _begin(contender, place, [str(contender.python), "-m", "bench.plain_proxy", origin, str(port)], port)


def _start_fastmcp(contender: Contender, place: Place, upstream_url: str) -> Running:
    port = processes.free_port()
    script = Path(__file__).with_name("fastmcp_proxy.py")
    kept = ["kept"] if contender.name == FASTMCP_KEPT else []
    return _begin(contender, place, [str(contender.python), str(script), upstream_url, str(port), *kept], port)


def _echo(place: Place) -> list[str]:
    return [sys.executable, "-m", "bench.stdio_echo", str(place.cores.tools)]


def _start_mcp_proxy(contender: Contender, place: Place, upstream_url: str) -> Running:
    del upstream_url
    assert contender.python is not None
    port = processes.free_port()
    program = contender.python.with_name("mcp-proxy")
    options = ["--port", str(port), "--log-level", "WARNING", "--pass-environment", "--"]
    return _begin(contender, place, [str(program), *options, *_echo(place)], port)


def _start_supergateway(contender: Contender, place: Place, upstream_url: str) -> Running:
    del upstream_url
    port = processes.free_port()
    options = ["--stdio", shlex.join(_echo(place)), "--outputTransport", "streamableHttp", "--stateful"]
    options += ["--port", str(port), "--logLevel", "none"]
    return _begin(contender, place, ["node", str(SUPERGATEWAY.program("supergateway")), *options], port)


SIDECAR: Final = "sidecar"
NGINX: Final = "nginx"
DIRECT: Final = "direct"
PLAIN: Final = "plain aiohttp"
FASTMCP_KEPT: Final = "fastmcp, one session"
# Uploads of 20 MiB are part of the work.
LARGE_BODIES: Final = {"MCP_SIDECAR_LIMITS__MAX_REQUEST_BODY": "64MiB", "MCP_SIDECAR_LOG_FORMAT": "json"}


def sidecar(checkout: Path = ROOT, name: str = SIDECAR) -> Contender:
    """Return the sidecar of a checkout, as a user starts it: mode heal, metrics on, default log level."""
    return Contender(
        name=name,
        kind=Kind.PROXY,
        form="mode heal, metrics on, default logging, sessions kept in a file",
        start=_start_sidecar,
        python=OWN,
        lock=checkout / "requirements.txt",
        heals=True,
        environ=LARGE_BODIES,
        checkout=checkout,
    )


def _unused(contender: Contender, place: Place, upstream_url: str) -> Running:
    raise AssertionError(f"{contender.name} is not started: {place} {upstream_url}")


ALL: Final = (
    Contender(name=DIRECT, kind=Kind.NONE, form="the generator on the upstream", start=_unused, needs=("wrk",)),
    Contender(
        name=NGINX,
        kind=Kind.PROXY,
        form="one worker, connections to the upstream kept, no buffering",
        start=_start_nginx,
        needs=("nginx",),
    ),
    sidecar(),
    Contender(
        name=PLAIN,
        kind=Kind.PROXY,
        form="Application and ClientSession, a few lines, no connection limit",
        start=_start_plain,
        python=OWN,
        lock=ROOT / "requirements.txt",
    ),
    Contender(
        name="fastmcp",
        kind=Kind.MCP_PROXY,
        form="create_proxy(url): a new upstream session for every call",
        start=_start_fastmcp,
        python=FASTMCP.program("python"),
        lock=LOCKS / "fastmcp.txt",
        asked=(work.JSON,),
    ),
    Contender(
        name=FASTMCP_KEPT,
        kind=Kind.MCP_PROXY,
        form="create_proxy(connected client): all clients share one upstream session",
        start=_start_fastmcp,
        python=FASTMCP.program("python"),
        lock=LOCKS / "fastmcp.txt",
        asked=(work.JSON,),
    ),
    Contender(
        name="mcp-proxy",
        kind=Kind.MCP_PROXY,
        form="HTTP in front, one stdio echo behind",
        start=_start_mcp_proxy,
        python=MCP_PROXY.program("python"),
        lock=LOCKS / "mcp-proxy.txt",
        asked=(work.JSON,),
    ),
    Contender(
        name="supergateway",
        kind=Kind.MCP_PROXY,
        form="stateful: HTTP in front, a stdio echo per session behind",
        start=_start_supergateway,
        needs=("node", SUPERGATEWAY.program("supergateway")),
        asked=(work.JSON,),
        max_sessions=16,
    ),
)
