"""The container image, as far as it can be judged without a container engine."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
COMPOSE: Final = ROOT / "deploy" / "compose.yaml"
README: Final = ROOT / "README.md"
HOST: Final = "host.docker.internal"
PROBES: Final = {"livenessProbe": "/livez", "readinessProbe": "/readyz"}
PROBE_TIMEOUT_S: Final = 20


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, comments out and continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def _last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def _only(word: str) -> str:
    (value,) = (rest for name, rest in _last_stage() if name == word)
    return value


def _environment() -> dict[str, str]:
    return dict(item.split("=", 1) for item in shlex.split(_only("ENV")))


def _probe() -> list[str]:
    """The health check's command, run by this checkout instead of the image's."""
    command: list[str] = json.loads(_only("HEALTHCHECK").partition("CMD")[2])
    assert command[0] == "/opt/mcp-sidecar/bin/mcp-sidecar"
    return [sys.executable, "-m", "mcp_sidecar", *command[1:]]


def test_two_stages_on_a_slim_image() -> None:
    """The tools that build are not in the image that runs."""
    images = [rest for word, rest in instructions() if word == "FROM"]
    assert len(images) == 2
    assert all("-slim" in image for image in images)
    assert [word for word, _ in _last_stage() if word == "RUN"] == []


def test_code_and_what_it_needs_are_layers_of_their_own() -> None:
    """A new version of the sidecar is a small layer on top of those that are there already; the last is where sessions are kept."""
    copied = [tuple(rest.split()[-2:]) for word, rest in _last_stage() if word == "COPY"]
    assert copied == [
        ("/opt/mcp-sidecar", "/opt/mcp-sidecar"),
        ("/code/opt/mcp-sidecar", "/opt/mcp-sidecar"),
        ("/state", "/var/lib/mcp-sidecar"),
    ]


def test_the_user_is_a_number_and_not_root() -> None:
    """`runAsNonRoot` can be checked without the image's user table."""
    uid, gid = _only("USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0


@pytest.mark.parametrize("word", ["ENTRYPOINT", "HEALTHCHECK"])
def test_no_shell_is_needed(word: str) -> None:
    """Exec form: signals reach the sidecar, and an image without a shell would do."""
    command = json.loads(_only(word).rpartition("CMD ")[2])
    assert command[0].startswith("/opt/mcp-sidecar/bin/")


def test_it_listens_where_a_container_has_to() -> None:
    """Both listeners are reachable from outside of the container, and their ports are declared."""
    environment = _environment()
    assert environment["MCP_SIDECAR_LISTEN"] == "0.0.0.0:8080"
    assert environment["MCP_SIDECAR_ADMIN"] == "0.0.0.0:9464"
    assert _only("EXPOSE").split() == ["8080", "9464"]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    """Every COPY from the checkout names files that are there and that .dockerignore lets through."""
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert {f"!{source.removeprefix('./')}" for source in copied} <= set(ignore)


class _Admin(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


class _BrokenAdmin(_Admin):
    status = 503


@pytest.fixture
def admin(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of something that answers ``/readyz``."""
    with HTTPServer(("127.0.0.1", 0), request.param) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


@pytest.mark.parametrize(
    ("admin", "healthy"),
    [pytest.param(_Admin, True, id="ready"), pytest.param(_BrokenAdmin, False, id="not ready")],
    indirect=["admin"],
)
def test_the_health_check_asks_whether_it_is_ready(admin: int, healthy: bool) -> None:
    """Healthy is what answers 200 on the port of MCP_SIDECAR_ADMIN, whatever proxy the environment names."""
    environment = {
        "MCP_SIDECAR_ADMIN": f"0.0.0.0:{admin}",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(_probe(), env=environment, timeout=PROBE_TIMEOUT_S, check=False)
    assert (done.returncode == 0) is healthy


def test_what_starts_it_says_how_to_see_its_health() -> None:
    """Builders that write OCI images drop the image's own check: compose has it, and a pod has probes of its own."""
    check = json.loads(_only("HEALTHCHECK").partition("CMD")[2])
    compose = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    assert f"test: {json.dumps(['CMD', *check])}" in compose
    for name in ("component/sidecar.yaml", "standalone/deployment.yaml"):
        manifest = (ROOT / "deploy" / "kubernetes" / name).read_text(encoding="utf-8")
        assert all(f"{probe}: {{httpGet: {{path: {path}" in manifest for probe, path in PROBES.items())


def test_compose_leaves_no_way_past_the_sidecar() -> None:
    """The server is not published, the sidecar on this machine only; both come back, and the sidecar's root is read-only."""
    _, server, sidecar = re.split(
        r"^  (?:server|mcp-sidecar):$", COMPOSE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert "ports:" not in server and "expose:" in server
    assert 'ports: ["127.0.0.1:8080:8080"]' in sidecar and "9464" not in sidecar
    assert "read_only: true" in sidecar and "cap_drop: [ALL]" in sidecar
    assert "restart: unless-stopped" in server and "restart: unless-stopped" in sidecar


def test_the_readme_starts_it_as_the_image_is_checked() -> None:
    """The name of the host works on Linux, too; pages of the published address may ask; and the image check uses the same."""
    [command] = re.findall(r"docker run (.*?) mcp-sidecar\n", README.read_text(encoding="utf-8").replace("\\\n", " "))
    words = shlex.split(command)
    assert "--add-host=host.docker.internal:host-gateway" in words
    given = dict(word.split("=", 1) for word in words if word.startswith("MCP_SIDECAR_"))
    published = words[words.index("-p") + 1].rpartition(":")[0].rpartition(":")[2]
    assert given["MCP_SIDECAR_LISTEN__PUBLIC_URL"] == f"http://localhost:{published}"
    tried = (ROOT / "tools" / "image_check.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in tried for name in given) and f'HOST: Final = "{HOST}"' in tried
    assert given["MCP_SIDECAR_UPSTREAM"].startswith(f"http://{HOST}:")


def test_pip_stays_behind() -> None:
    """A fifth of the image would be a program that nobody runs there."""
    made = [rest for word, rest in instructions() if word == "RUN" and "venv" in rest]
    assert all(
        "/opt/mcp-sidecar" not in part or "--without-pip" in part
        for rest in made
        for part in rest.split("&&")
        if "-m venv" in part
    )


def test_the_health_check_fails_where_nobody_listens() -> None:
    """A process that does not accept is not healthy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = subprocess.run(
        _probe(),
        env={"MCP_SIDECAR_ADMIN": f"0.0.0.0:{port}"},
        timeout=PROBE_TIMEOUT_S,
        check=False,
        capture_output=True,
    )
    assert done.returncode != 0
