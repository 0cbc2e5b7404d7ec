"""The admin listener, over real loopback sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import aiohttp
import pytest

from mcp_sidecar import facts
from mcp_sidecar.ops.admin import SESSIONS_PER_SLICE, Admin, is_loopback
from mcp_sidecar.ops.metrics import Metrics

SESSION = {
    "session": "ab12",
    "age_seconds": 3.5,
    "idle_seconds": 0.5,
    "generation": 1,
    "state": "established",
    "protocol_version": "2025-11-25",
    "streams": 1,
}


class Sidecar:
    """What the admin listener looks at."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.sessions: list[Mapping[str, object]] = []
        self.accepting = True
        self.admin = Admin(self.metrics, lambda: self.sessions, lambda: self.accepting, allowed_hosts=["Ops.example"])
        self.address = ("", 0)


Ask = Callable[..., Awaitable[aiohttp.ClientResponse]]


@pytest.fixture
async def sidecar() -> AsyncIterator[Sidecar]:
    """An admin listener on a free loopback port."""
    watched = Sidecar()
    watched.address = await watched.admin.start("127.0.0.1", 0)
    yield watched
    await watched.admin.stop()


@pytest.fixture
async def ask(sidecar: Sidecar) -> AsyncIterator[Ask]:
    """Send one request to the listener."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as client:

        async def send(path: str, method: str = "GET", **headers: str) -> aiohttp.ClientResponse:
            host, port = sidecar.address
            answer = await client.request(method, f"http://{host}:{port}{path}", headers=headers)
            await answer.read()
            return answer

        yield send


async def test_live_while_it_runs(sidecar: Sidecar, ask: Ask) -> None:
    """``/livez`` is 200 also while draining: a restart would cut what drains."""
    sidecar.accepting = False
    assert (await ask("/livez")).status == 200


async def test_ready_while_it_accepts(sidecar: Sidecar, ask: Ask) -> None:
    """``/readyz`` is 200 while new requests are taken and 503 while it drains."""
    assert (await ask("/readyz")).status == 200
    sidecar.accepting = False
    assert (await ask("/readyz")).status == 503


async def test_metrics_by_accept(sidecar: Sidecar, ask: Ask) -> None:
    """``/metrics`` is Prometheus text, or OpenMetrics where that is accepted."""
    sidecar.metrics.record(facts.RequestServed("GET", "none", 200, 0.1))
    plain, open_metrics = await ask("/metrics"), await ask("/metrics", Accept="application/openmetrics-text")
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'mcp_sidecar_requests_total{http_method="GET",rpc_method="none",status="200"} 1.0' in await plain.text()
    assert open_metrics.headers["Content-Type"].startswith("application/openmetrics-text")


@pytest.mark.parametrize("number", [0, 1, SESSIONS_PER_SLICE, 2 * SESSIONS_PER_SLICE + 1])
async def test_sessions_are_listed(sidecar: Sidecar, ask: Ask, number: int) -> None:
    """``/sessions`` is JSON with the count and every session, however many slices it is written in."""
    sidecar.sessions = [SESSION | {"generation": place} for place in range(number)]
    answer = await ask("/sessions")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(await answer.read()) == {"count": number, "sessions": sidecar.sessions}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/", 404, id="root"),
        pytest.param("GET", "/livez/", 404, id="slash"),
        pytest.param("GET", "/metrics/x", 404, id="below"),
        pytest.param("POST", "/nothing", 404, id="post-elsewhere"),
        pytest.param("POST", "/sessions", 405, id="post"),
        pytest.param("DELETE", "/sessions", 405, id="delete"),
        pytest.param("OPTIONS", "/metrics", 405, id="options"),
        pytest.param("HEAD", "/livez", 200, id="head-livez"),
        pytest.param("HEAD", "/metrics", 200, id="head-metrics"),
        pytest.param("HEAD", "/sessions", 200, id="head-sessions"),
    ],
)
async def test_nothing_else_is_there(ask: Ask, method: str, path: str, status: int) -> None:
    """GET and HEAD on four paths; other paths are 404, other methods 405."""
    answer = await ask(path, method)
    assert answer.status == status
    assert method != "HEAD" or await answer.read() == b""


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/sessions", "/nothing"])
@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        pytest.param("localhost", True, id="localhost"),
        pytest.param("LOCALHOST:1", True, id="forwarded-port"),
        pytest.param("127.0.0.1:9464", True, id="loopback"),
        pytest.param("[::1]:9464", True, id="loopback-ipv6"),
        pytest.param("ops.example", True, id="listed"),
        pytest.param("ops.example:443", True, id="listed-any-port"),
        pytest.param("evil.example", False, id="rebound"),
        pytest.param("127.0.0.1.evil.example", False, id="looks-like-loopback"),
        pytest.param("evil.example@localhost", False, id="user-info"),
        pytest.param("localhost:x", False, id="nonsense-port"),
        pytest.param("", False, id="empty"),
    ],
)
async def test_a_web_page_cannot_read_it(ask: Ask, path: str, host: str, allowed: bool) -> None:
    """On loopback a Host that is not loopback, own or listed is 403: DNS rebinding ends here."""
    answer = await ask(path, Host=host)
    assert (answer.status != 403) is allowed


async def test_any_host_elsewhere() -> None:
    """A listener that others can reach anyway does not look at Host: probes call it by the pod's address."""
    watched = Sidecar()
    _, port = await watched.admin.start("0.0.0.0", 0)
    try:
        url, headers = f"http://127.0.0.1:{port}/livez", {"Host": "10.1.2.3:9464"}
        async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
            assert answer.status == 200
    finally:
        await watched.admin.stop()


async def test_no_host_at_all_passes(sidecar: Sidecar) -> None:
    """HTTP/1.0 probes send none, and no browser leaves it out."""
    reader, writer = await asyncio.open_connection(*sidecar.address)
    writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.split(b" ", 2)[1] == b"200"


async def test_a_port_that_is_taken_is_told(sidecar: Sidecar) -> None:
    """The second listener on a port raises OSError, and can be stopped like one that never started."""
    second = Sidecar()
    with pytest.raises(OSError, match="address already in use"):
        await second.admin.start(*sidecar.address)
    await second.admin.stop()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("h", False),
    ],
)
def test_loopback_is_told_by_name_or_address(host: str, loopback: bool) -> None:
    """Only what this machine alone can call is loopback."""
    assert is_loopback(host) is loopback
