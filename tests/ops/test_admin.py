"""The admin listener, over real loopback sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from mcp_sidecar import facts
from mcp_sidecar.ops.access import Access, is_loopback
from mcp_sidecar.ops.admin import MAX_STATUS_STREAMS, SESSIONS_PER_SLICE, Admin
from mcp_sidecar.ops.metrics import Metrics
from mcp_sidecar.settings import Mistakes, load
from mcp_sidecar.token_file import TokenFile
from tests.support.waiting import eventually

SESSION = {
    "session": "ab12",
    "age_seconds": 3.5,
    "idle_seconds": 0.5,
    "generation": 1,
    "state": "established",
    "protocol_version": "2025-11-25",
    "streams": 1,
}


class Sessions:
    """The sessions of ``Sidecar``."""

    def __init__(self) -> None:
        self.all: list[Mapping[str, object]] = []

    def __len__(self) -> int:
        return len(self.all)

    def rows(self, *, after: str = "", limit: int | None = None) -> Iterator[Mapping[str, object]]:
        return iter([row for row in self.all if str(row["session"]) > after][:limit])


class Sidecar:
    """What the admin listener looks at."""

    def __init__(self, access: Access | None = None) -> None:
        self.metrics = Metrics()
        self.sessions = Sessions()
        self.is_accepting = True
        self.is_there = True
        self.drains = 0
        self.shown = "<p>all is well</p>"
        self.failures: list[Exception] = []
        self.admin = Admin(
            self.metrics,
            self,
            access or Access(),
            clock=lambda: 0.0,
            note_failed=self.failures.append,
            allowed_hosts=["Ops.example"],
        )
        self.address = ("", 0)

    async def upstream_is_there(self) -> bool:
        return self.is_there

    def begin_drain(self) -> None:
        self.drains += 1

    def status(self) -> str:
        return self.shown

    def settings(self) -> str:
        return 'url = "http://<a>/mcp"'


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
    sidecar.is_accepting = False
    assert (await ask("/livez")).status == 200


async def test_ready_while_it_accepts(sidecar: Sidecar, ask: Ask) -> None:
    """``/readyz`` is 200 while new requests are taken and 503 while it drains."""
    assert (await ask("/readyz")).status == 200
    sidecar.is_accepting = False
    assert (await ask("/readyz")).status == 503


async def test_ready_with_an_upstream_where_that_is_asked(sidecar: Sidecar, ask: Ask) -> None:
    """``/readyz?upstream=1`` is 503 while it is away; ``/readyz`` alone does not care: requests are held."""
    assert (await ask("/readyz?upstream=1")).status == 200
    sidecar.is_there = False
    assert (await ask("/readyz?upstream=1")).status == 503
    assert (await ask("/readyz")).status == 200


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
    rows = sidecar.sessions.all = [SESSION | {"session": f"{place:06}"} for place in range(number)]
    answer = await ask("/sessions")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(await answer.read()) == {"count": number, "sessions": rows}


async def test_sessions_come_in_pages(sidecar: Sidecar, ask: Ask) -> None:
    """``limit`` of them behind ``after``; the count is of all."""
    sidecar.sessions.all = [SESSION | {"session": name} for name in "abcde"]
    page = await (await ask("/sessions?limit=2&after=b")).json()
    assert (page["count"], [row["session"] for row in page["sessions"]]) == (5, ["c", "d"])
    for limit in ("-1", "x", "1e3", "9" * 40, "²"):
        assert (await ask(f"/sessions?limit={limit}")).status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/", 200, id="root"),
        pytest.param("GET", "/drain", 405, id="drain-by-get"),
        pytest.param("POST", "/", 405, id="post-root"),
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
    """GET and HEAD on a few paths, POST on one; other paths are 404, other methods 405."""
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
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("h", False),
    ],
)
def test_loopback_is_told_by_name_or_address(host: str, loopback: bool) -> None:
    """Only what this machine alone can call is loopback."""
    assert is_loopback(host) is loopback


# -- who may ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A file with a token, for its owner only."""
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    path.chmod(0o600)
    return path


GUARDED = pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/sessions"), ("POST", "/drain")])


@GUARDED
@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
async def test_what_a_proxy_passes_on_is_not_this_machine_s(
    sidecar: Sidecar, ask: Ask, method: str, path: str, header: str
) -> None:
    """Whoever stands behind it has connected from elsewhere; without a token file that is the end."""
    assert (await ask(path, method)).status == 200
    refused = await ask(path, method, **{header: "1.2.3.4"})
    assert (refused.status, await refused.text()) == (403, "only for this machine, unless admin.token_file is set\n")
    assert sidecar.drains == (1 if path == "/drain" else 0)


@GUARDED
@pytest.mark.parametrize(
    ("credentials", "status"),
    [
        (None, 401),
        ("Bearer s3cret", 200),
        ("bearer  s3cret", 200),
        ("Basic " + base64.b64encode(b"ops:s3cret").decode(), 200),
        ("Bearer s3cre", 401),
        ("Bearer ", 401),
        ("Basic !", 401),
        ("Basic " + base64.b64encode(b"s3cret").decode(), 401),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), 401),
        ("s3cret", 401),
    ],
)
async def test_a_token_lets_others_in(
    token_file: Path, method: str, path: str, credentials: str | None, status: int
) -> None:
    """As bearer, or as the password that a browser asks for; what is refused says nothing but how to ask."""
    watched = Sidecar(Access(TokenFile(str(token_file))))
    _, port = await watched.admin.start("127.0.0.1", 0)
    headers = {"X-Forwarded-For": "1.2.3.4"} | ({"Authorization": credentials} if credentials else {})
    try:
        async with (
            aiohttp.ClientSession() as client,
            client.request(method, f"http://127.0.0.1:{port}{path}", headers=headers) as answer,
        ):
            assert answer.status == status
            assert ("WWW-Authenticate" in answer.headers) is (status == 401)
            assert b"s3cret" not in await answer.read()
    finally:
        await watched.admin.stop()
    assert watched.drains == (path == "/drain" and status == 200)


def test_a_token_file_that_is_not_in_order_lets_nobody_in(token_file: Path) -> None:
    """It is read again when it changes, and believed only as the start would believe it."""
    token = TokenFile(str(token_file))
    assert token.accepts("s3cret")
    token_file.write_text("")
    assert not token.accepts("")
    token_file.write_text("renewed")
    assert token.accepts("renewed")
    token_file.chmod(0o644)
    assert not token.accepts("renewed")
    token_file.unlink()
    assert not token.accepts("renewed")


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (b"", 0o600, "is empty"),
        (b" \n", 0o600, "is empty"),
        (b"s3cret", 0o644, "must not be readable by everybody"),
        (b"two words", 0o600, "one token"),
        (b"\xff", 0o600, "one token"),
        (b"x" * 5000, 0o600, "one token"),
    ],
)
def test_a_bad_token_file_is_said_at_the_start(tmp_path: Path, content: bytes, mode: int, complaint: str) -> None:
    """With the key's name and why, and without what is in it."""
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(Mistakes) as caught:
        load({"upstream": ["http://127.0.0.1:9/mcp"]}, {"MCP_SIDECAR_ADMIN__TOKEN_FILE": str(path)})
    line = str(caught.value)
    assert "admin.token_file" in line
    assert complaint in line
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_no_page_of_elsewhere_starts_a_drain(
    sidecar: Sidecar, ask: Ask, headers: dict[str, str], status: int
) -> None:
    """A browser on this machine would send it with the operator's own credentials."""
    port = sidecar.address[1]
    sent = {name: value.replace("{port}", str(port)) for name, value in headers.items()}
    assert (await ask("/drain", "POST", **sent)).status == status
    assert sidecar.drains == (status == 200)


# -- the page ---------------------------------------------------------------------------------------------------------


async def test_the_page_is_whole_without_its_script(ask: Ask) -> None:
    """What is shown is in it from the start, escaped, and it may load nothing but its live part."""
    answer = await ask("/")
    text = await answer.text()
    assert "<p>all is well</p>" in text
    assert "http://&lt;a&gt;/mcp" in text
    assert not re.search(r'(src|href)="(?!data:|metrics|sessions|readyz)', text)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy


async def test_the_live_part_is_sent_when_it_changes(sidecar: Sidecar) -> None:
    """As server-sent events, one line each."""
    host, port = sidecar.address
    async with aiohttp.ClientSession() as client, client.get(f"http://{host}:{port}/status") as stream:
        assert await stream.content.readuntil(b"\n\n") == b"data: <p>all is well</p>\n\n"
        sidecar.shown = "<p>away</p>"
        assert await stream.content.readuntil(b"\n\n") == b"data: <p>away</p>\n\n"


async def test_a_thousand_status_streams_are_bounded(sidecar: Sidecar) -> None:
    """One page takes so many as there are; the next ones are refused, and there is room again when they have gone."""
    host, port = sidecar.address
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        answers = await asyncio.gather(*(client.get(f"http://{host}:{port}/status") for _ in range(100)))
        assert sorted(answer.status for answer in answers) == [200] * MAX_STATUS_STREAMS + [503] * (
            100 - MAX_STATUS_STREAMS
        )
        for answer in answers:
            answer.close()
    sidecar.shown = "<p>changed, so that they learn who has left</p>"
    await eventually(lambda: not sidecar.admin._streams)


# -- what must not happen ---------------------------------------------------------------------------------------------


async def test_a_bug_is_answered_and_told(sidecar: Sidecar, ask: Ask) -> None:
    """With 500, so that nobody takes it for a broken network; the next request is served."""

    class Broken(Sessions):
        def rows(self, *, after: str = "", limit: int | None = None) -> Iterator[Mapping[str, object]]:
            raise ZeroDivisionError

    sidecar.sessions = Broken()
    assert (await ask("/sessions")).status == 500
    assert [type(error) for error in sidecar.failures] == [ZeroDivisionError]
    assert (await ask("/livez")).status == 200


async def test_what_is_no_http_gets_400(sidecar: Sidecar) -> None:
    """In a few words, and the connection is closed."""
    reader, writer = await asyncio.open_connection(*sidecar.address)
    writer.write(b"nonsense\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_its_end_is_the_end_of_status_streams(sidecar: Sidecar) -> None:
    """They last for ever, and nobody waits for them."""
    reader, writer = await asyncio.open_connection(*sidecar.address)
    writer.write(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"</p>"), 10)
    await asyncio.wait_for(sidecar.admin.stop(), 10)
    with suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10)
    assert not sidecar.admin._streams
    writer.close()
