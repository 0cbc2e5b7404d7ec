"""The sidecar as a process: how it starts, what it tells, how it stops; TLS on both sides; what it never tells."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from mcp_sidecar import __version__
from tests.support.certificates import make_certificate
from tests.support.client import McpClient, raw_exchange
from tests.support.credentials import alice, bearer
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer as Says
from tests.support.faults import ResetAfterExecution
from tests.support.own_answers import is_error, is_not_found, is_unavailable
from tests.support.process import SidecarProcess, sidecar_process
from tests.support.sidecar import running_sidecar
from tests.support.waiting import HANG_S

PORTS = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)


@asynccontextmanager
async def serving(upstream: FakeUpstream, *options: str) -> AsyncIterator[tuple[SidecarProcess, str, str]]:
    """A process that listens, and the origins of its two listeners."""
    async with sidecar_process("--upstream", upstream.url, *PORTS, *options) as process:
        line = await process.line("listening")
        yield process, f"http://{line['address']}", f"http://{line['admin']}"


async def fetch(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return answer.status, await answer.text()


# -- starting ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="nobody tells here what a process has loaded")
async def test_what_reads_the_settings_is_gone_by_then() -> None:
    """A process that listens holds neither pydantic nor what other stores need, whatever is installed."""
    async with FakeUpstream() as upstream, serving(upstream, "--store", "memory:") as (process, _, _):
        loaded = await asyncio.to_thread(Path(f"/proc/{process.id}/maps").read_text)
    assert "libc" in loaded
    assert [name for name in ("pydantic_core", "_sqlite3", "cryptography") if f"/{name}" in loaded] == []


HEAVY = [
    "aiohttp",
    "yarl",
    "multidict",
    "aiosignal",
    "prometheus_client",
    "structlog",
    "pydantic",
    "pydantic_settings",
    "pydantic_core",
    "shtab",
    "redis",
    "cryptography",
    "opentelemetry",
    "sqlite3",
    "multiprocessing",
    "tomllib",
    "difflib",
    "http.client",
    "http.server",
    "http.cookies",
    "urllib.request",
    "email",
    "wsgiref",
    "html.entities",
    "encodings.idna",
    "stringprep",
]


async def test_a_process_that_serves_has_loaded_what_it_needs_and_no_more() -> None:
    """Neither at its start nor by calls, probes, a scrape and the status page: each of these takes a half to fifteen MiB."""
    code = (
        "import sys; from mcp_sidecar.__main__ import main; status = main(); "
        f"print(*sorted({set(HEAVY)} & sys.modules.keys())); sys.exit(status)"
    )
    async with FakeUpstream() as upstream:
        words = ("serve", "--upstream", upstream.url, *PORTS, "--store", "memory:", "--log-format", "json")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            line = json.loads(await asyncio.wait_for(process.stderr.readline(), HANG_S))
            async with McpClient(line["url"]) as client:
                await client.initialize()
                assert (await client.tool("charge")).text == "charged 1"
            for path in ("livez", "metrics", "sessions", ""):
                assert (await fetch(f"http://{line['admin']}/{path}"))[0] == 200
            process.send_signal(signal.SIGTERM)
            loaded, _ = await asyncio.wait_for(process.communicate(), HANG_S)
        finally:
            if process.returncode is None:
                process.kill()
    assert loaded.decode().split() == []
    assert process.returncode == 0


async def test_it_tells_where_it_listens() -> None:
    """Port 0 picks a free one; the line `listening` on stderr names both addresses, and they work by then."""
    async with (
        FakeUpstream() as upstream,
        serving(upstream) as (process, origin, admin),
        McpClient(f"{origin}/mcp") as client,
    ):
        await client.initialize()
        assert (await client.tool("charge")).text == "charged 1"
        assert await fetch(f"{admin}/livez") == (200, "ok\n")
        assert await fetch(f"{admin}/readyz") == (200, "ok\n")
        line = await process.line("listening")
        assert (line["level"], line["mode"]) == ("info", "heal")
        assert (line["url"], line["upstream"]) == (f"{origin}/mcp", upstream.url)


async def test_variables_of_a_service_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service of the sidecar's name puts them into every pod: no warning, and no setting is taken from them."""
    for name, value in (
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT", "80"),
        ("SERVICE_PORT_MCP_ADMIN", "9464"),
        ("PORT", "tcp://10.0.0.1:80"),
        ("PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("PORT_80_TCP_PROTO", "tcp"),
        ("PORT_80_TCP_PORT", "80"),
        ("PORT_80_TCP_ADDR", "10.0.0.1"),
        ("ADMIN_SERVICE_HOST", "10.0.0.2"),
        ("ADMIN_PORT", "tcp://10.0.0.2:9464"),
    ):
        monkeypatch.setenv(f"MCP_SIDECAR_{name}", value)
    async with FakeUpstream() as upstream, serving(upstream) as (process, _, admin):
        assert admin.startswith("http://127.0.0.1:")
        assert [line["event"] for line in process.log] == ["listening"]


async def test_a_terminal_is_told_what_to_do_next() -> None:
    """The URL for clients, the upstream and whether it answers, the store, the status page; nothing of descriptors."""
    async with (
        FakeUpstream() as upstream,
        sidecar_process("--upstream", upstream.url, *PORTS, log_format="console") as process,
    ):
        await process.text("upstream_answers")
        shown = process.stderr
        assert re.search(r"for clients  http://127\.0\.0\.1:\d+/mcp\n", shown)
        assert f"MCP server   {upstream.url}\n" in shown
        assert re.search(r"sessions in  \S+\n", shown)
        assert re.search(r"status       http://127\.0\.0\.1:\d+/\n", shown)
        assert "descriptor" not in shown


async def test_it_starts_without_its_upstream() -> None:
    """Whichever of the two starts first: the sidecar is ready, and the first connect waits for the server."""
    async with FakeUpstream() as upstream:
        await upstream.stop()
        async with serving(upstream) as (process, origin, admin), McpClient(f"{origin}/mcp") as client:
            assert (await fetch(f"{admin}/readyz"))[0] == 200
            opening = asyncio.create_task(client.initialize())
            await process.line("upstream_lost")
            await upstream.start()
            assert (await opening).status == 200


@pytest.mark.parametrize("listener", ["listen", "admin"])
async def test_a_port_that_is_taken_is_told(listener: str) -> None:
    """Exit status 1 and one line that names the setting, the address and the reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = [*PORTS, f"--{listener}", address]
        del options[options.index(f"--{listener}") : options.index(f"--{listener}") + 2]
        async with sidecar_process("--upstream", "http://127.0.0.1:9/mcp", *options) as process:
            assert await process.exit_status() == 1
            lines = process.stderr.splitlines()
            assert len(lines) == 1
            assert lines[0].startswith(f"{listener}.address {address}: ") and "in use" in lines[0]


# -- stopping ---------------------------------------------------------------------------------------------------------


@SIGNALS
async def test_it_stops_at_once_where_nothing_is_open(number: signal.Signals) -> None:
    """Exit status 0, even for a signal that comes right after the line `listening`; idle connections do not count."""
    async with (
        FakeUpstream() as upstream,
        serving(upstream) as (process, origin, _),
        McpClient(f"{origin}/mcp") as client,
    ):
        process.signal(number)
        assert await process.exit_status() == 0
        assert client.session_id is None
    async with (
        FakeUpstream() as upstream,
        serving(upstream) as (process, origin, _),
        McpClient(f"{origin}/mcp") as client,
    ):
        await client.initialize()
        process.signal(number)
        assert await process.exit_status() == 0
        assert [line["event"] for line in process.log][-2:] == ["draining", "stopped"]


@SIGNALS
async def test_a_drain_waits_for_calls_and_for_nothing_else(number: signal.Signals) -> None:
    """New clients are refused, readiness falls, GET streams break off at once, a call gets its answer; then exit 0."""
    async with (
        FakeUpstream() as upstream,
        serving(upstream) as (process, origin, admin),
        McpClient(f"{origin}/mcp") as client,
    ):
        await client.initialize()
        stream = await client.get_stream()
        assert stream.status == 200
        call = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        process.signal(number)
        await process.line("draining")
        assert (await stream.read()).broken is not None
        assert (await fetch(f"{admin}/readyz"))[0] == 503
        assert (await fetch(f"{admin}/livez"))[0] == 200
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*origin.removeprefix("http://").split(":"))
        assert not call.done()
        upstream.slow_gate.set()
        assert (await call).text == "at last"
        assert await process.exit_status() == 0


async def test_a_drain_closes_idle_connections_at_once() -> None:
    """A pooled connection, a fresh one and one with half a head: whoever used them would wait for nothing until the end."""
    async with (
        FakeUpstream() as upstream,
        serving(upstream) as (process, origin, _),
        McpClient(f"{origin}/mcp") as client,
    ):
        await client.initialize()
        call = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        host, port = origin.removeprefix("http://").split(":")
        readers = []
        for sent in (b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", b"GET /x HTTP/1.1\r\nHos"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(sent)
            if sent.endswith(b"\r\n\r\n"):
                await reader.readuntil(b"\r\n\r\n")
            readers.append((reader, writer))
        await fetch(f"{origin}/x")  # by now the process has seen those connections
        process.signal(signal.SIGTERM)
        async with asyncio.timeout(HANG_S):
            for reader, writer in readers:
                await reader.read()
                assert reader.at_eof()
                writer.close()
        assert not call.done()
        upstream.slow_gate.set()
        assert (await call).text == "at last"
        assert await process.exit_status() == 0


async def test_a_drain_answers_what_is_held() -> None:
    """Held requests get the "upstream away" answer instead of waiting on."""
    async with (
        FakeUpstream() as upstream,
        serving(upstream) as (process, origin, admin),
        McpClient(f"{origin}/mcp") as client,
        McpClient(f"{origin}/mcp") as other,
    ):
        await client.initialize()
        await upstream.stop()
        call = asyncio.create_task(client.call("ping", id=1))
        opening = asyncio.create_task(other.call("initialize", {}, id=2, bare=True))
        async with asyncio.timeout(HANG_S):
            while "mcp_sidecar_held_requests 2.0" not in (await fetch(f"{admin}/metrics"))[1]:
                pass
        process.signal(signal.SIGTERM)
        assert is_error(await call, 1, "upstream_unavailable")
        assert is_unavailable(await opening, 2)
        assert await process.exit_status() == 0


@pytest.mark.parametrize("signals", [1, 2], ids=["timeout", "second-signal"])
async def test_a_drain_has_an_end(signals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``drain_timeout``, or at a second signal, what is still open is cut; exit 0 all the same."""
    monkeypatch.setenv("MCP_SIDECAR_LISTEN__DRAIN_TIMEOUT", "0.2" if signals == 1 else "300")
    async with (
        FakeUpstream() as upstream,
        serving(upstream) as (process, origin, _),
        McpClient(f"{origin}/mcp") as client,
    ):
        await client.initialize()
        call = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == 1)
        process.signal(signal.SIGTERM)
        await process.line("draining")
        if signals == 2:
            process.signal(signal.SIGTERM)
        outcome = (await asyncio.gather(call, return_exceptions=True))[0]
        assert isinstance(outcome, BaseException) or outcome.broken is not None
        assert await process.exit_status() == 0


# -- what it tells ----------------------------------------------------------------------------------------------------

CONTRACT_METRICS = {
    "mcp_sidecar_requests_total": {"http_method", "rpc_method", "status"},
    "mcp_sidecar_request_seconds_count": {"rpc_method"},
    "mcp_sidecar_sessions": set[str](),
    "mcp_sidecar_sessions_lost_total": {"signature"},
    "mcp_sidecar_heals_total": {"outcome"},
    "mcp_sidecar_heal_seconds_count": set[str](),
    "mcp_sidecar_replays_total": {"cause"},
    "mcp_sidecar_answers_rewritten_total": {"from_status"},
    "mcp_sidecar_outcomes_unknown_total": {"rpc_method"},
    "mcp_sidecar_messages_dropped_total": {"kind"},
    "mcp_sidecar_observed_total": {"action"},
    "mcp_sidecar_held_requests": set[str](),
    "mcp_sidecar_streams": {"kind"},
    "mcp_sidecar_upstream_up": set[str](),
}


def labels_of(text: str) -> dict[str, set[str]]:
    """The label names of every series."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, labels = line.rpartition(" ")[0].partition("{")
            found[name] = {label.partition("=")[0] for label in labels.rstrip("}").split(",") if label}
    return found


async def test_the_admin_pages_tell_what_the_contract_names() -> None:
    """Metrics with their labels, and the sessions with exactly the fields of the contract."""
    async with FakeUpstream() as upstream, serving(upstream) as (_, origin, admin):
        async with McpClient(f"{origin}/mcp") as client:
            await client.initialize()
            await upstream.restart()
            await client.tool("charge")
            client.session_id, mine = "unknown", client.session_id
            assert is_not_found(await client.tool("charge"))
            client.session_id = mine
            stream = await client.get_stream()
            status, text = await fetch(f"{admin}/sessions")
            listed = json.loads(text)
            async with stream:
                metrics = (await fetch(f"{admin}/metrics"))[1]
        assert status == 200 and set(listed) == {"count", "sessions"} and listed["count"] == 1
        session = listed["sessions"][0]
        assert set(session) == {
            *("session", "age_seconds", "idle_seconds", "generation", "state", "protocol_version", "streams"),
            *("client", "server", "held", "last_heal"),
        }
        assert (session["generation"], session["state"], session["streams"]) == (2, "established", 1)
        found = labels_of(metrics)
        for name, labels in CONTRACT_METRICS.items():
            assert found[name] == labels, name
        for series in (
            "mcp_sidecar_sessions 1.0",
            'mcp_sidecar_heals_total{outcome="healed"} 1.0',
            'mcp_sidecar_sessions_lost_total{signature="python-404"} 1.0',
            'mcp_sidecar_replays_total{cause="session_lost"} 1.0',
            'mcp_sidecar_answers_rewritten_total{from_status="404"} 1.0',
            'mcp_sidecar_streams{kind="get"} 1.0',
            "mcp_sidecar_upstream_up 1.0",
            'mcp_sidecar_clients{name="other"} 1.0',
            f'mcp_sidecar_build_info{{mode="heal",store="sqlite",version="{__version__}"}} 1.0',
            'mcp_sidecar_calls_total{outcome="answered_after_heal",rpc_method="tools/call"} 1.0',
        ):
            assert series in metrics.splitlines(), series


async def test_the_time_of_the_last_good_answer_is_known() -> None:
    """None yet, then the wall clock's; an answer that is none of success, or that does not come, leaves it."""

    async def last(admin: str) -> float:
        name, text = "mcp_sidecar_upstream_last_answer_timestamp_seconds ", (await fetch(f"{admin}/metrics"))[1]
        return float(next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name))

    async with FakeUpstream() as upstream, serving(upstream) as (_, origin, admin):
        assert await last(admin) == 0
        begun = datetime.now(UTC)
        async with McpClient(f"{origin}/mcp") as client:
            await client.initialize()
            good = await last(admin)
            assert begun - timedelta(seconds=1) <= datetime.fromtimestamp(good, UTC) <= datetime.now(UTC)
            upstream.inject(Says(403, body=b"no"), tool="charge")
            assert (await client.tool("charge")).status == 403
            assert await last(admin) == pytest.approx(good, abs=1e-3)


async def test_a_heal_is_one_line() -> None:
    """At the usual level a restart costs one line, which tells cause, time and outcome."""
    async with (
        FakeUpstream() as upstream,
        serving(upstream) as (process, origin, _),
        McpClient(f"{origin}/mcp") as client,
    ):
        await client.initialize()
        await upstream.restart()
        await asyncio.gather(*(client.tool("charge") for _ in range(5)))
        process.signal(signal.SIGTERM)
        await process.exit_status()
        heals = [line for line in process.log if line["event"] == "heal_ended"]
        assert len(heals) == 1
        assert (heals[0]["outcome"], heals[0]["signature"], heals[0]["level"]) == ("healed", "python-404", "info")
        assert heals[0]["seconds"] > 0


async def test_no_id_no_credential_and_no_body_is_ever_told() -> None:
    """At level debug, over heals, refusals, faults and garbage: no secret in the log, the metrics or the session list."""
    marks = {"token": "tok3n-m4rk", "body": "b0dy-m4rk", "key": "k3y-m4rk", "id": "1d-m4rk", "path": "p4th-m4rk"}
    owner = {"X-API-Key": marks["key"], **bearer(marks["token"])}
    async with FakeUpstream() as upstream, serving(upstream, "--log-level", "debug") as (process, origin, admin):
        ids = [marks["id"]]
        async with McpClient(f"{origin}/mcp", headers=owner) as client:
            await client.initialize()
            assert client.session_id is not None
            stream = await client.get_stream()
            await upstream.restart()
            await client.call("tools/call", {"name": "echo", "arguments": {"text": marks["body"]}}, id=marks["id"])
            stranger = McpClient(client.url, headers=alice(sub=marks["key"]), http=client.http)
            stranger.session_id = client.session_id
            await stranger.tool("echo", text=marks["body"])
            stranger.session_id = marks["id"]
            await stranger.tool("echo", text=marks["body"])
            upstream.inject(Says(401, (("WWW-Authenticate", marks["token"]),), marks["body"].encode()), tool="charge")
            await client.tool("charge", text=marks["body"])
            upstream.inject(ResetAfterExecution(), tool="charge")
            await client.tool("charge", text=marks["body"])
            await client.call(marks["body"], {}, id=marks["id"])
            await client.post(f'{{"{marks["body"]}'.encode())
            await client.post(b"{}", headers={"Mcp-Session-Id": marks["id"] + "\xe9"})
            for beside in (
                f"https://u:{marks['token']}@a.example",
                f"https://a.example/{marks['path']}?{marks['key']}",
            ):
                await client.call("ping", headers={"Origin": beside})  # of an origin no more is told than that
            await fetch(f"{origin}/{marks['path']}?token={marks['token']}")
            host, port = origin.removeprefix("http://").split(":")
            for junk in (
                f"GET /{marks['path']}\r\n\r\n",
                f"POST /mcp HTTP/1.1\r\nAuthorization {marks['token']}\r\n\r\n",
            ):
                await raw_exchange(int(port), junk.encode(), host=host)
            stream.close()
            ids += [client.session_id, *upstream.sessions]
            pages = [(await fetch(f"{admin}/{page}"))[1] for page in ("metrics", "sessions", "")]
            await client.delete()
            pages += [(await fetch(f"{admin}/{page}"))[1] for page in ("metrics", "sessions", "")]
        process.signal(signal.SIGTERM)
        assert await process.exit_status() == 0
        told = "\n".join([process.stderr, *pages])
        assert "request_served" in told and "heal_ended" in told
        assert not [line for line in process.log if line["event"] == "sidecar_fault"]
        for secret in (*marks.values(), *ids):
            assert secret not in told


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that is its own authority, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def served_certificate(address: str) -> bytes:
    """What a new connection is shown, in DER form."""
    host, port = address.rsplit(":", 1)
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)), timeout=10))


async def test_a_hangup_reads_the_certificate_again(tmp_path: Path) -> None:
    """After SIGHUP new connections see the renewed certificate; files that cannot be used change nothing."""
    made, key = make_certificate(tmp_path)
    renewed, its_key = make_certificate(tmp_path, "renewed")
    expected = ssl.PEM_cert_to_DER_cert(renewed.read_text())
    files = ("MCP_SIDECAR_LISTEN__TLS_CERTIFICATE", str(made)), ("MCP_SIDECAR_LISTEN__TLS_KEY", str(key))
    with pytest.MonkeyPatch.context() as environment:
        for name, value in files:
            environment.setenv(name, value)
        async with FakeUpstream() as upstream, serving(upstream) as (process, origin, _):
            address = origin.removeprefix("http://")
            line = await process.line("listening")
            assert line["url"] == f"https://{address}/mcp"
            made.write_bytes(renewed.read_bytes())
            process.signal(signal.SIGHUP)  # the key is still the old one
            line = await process.line("tls_files_unusable")
            assert (line["key"], line["reason"]) == ("listen.tls_certificate", "KEY_VALUES_MISMATCH")
            assert await asyncio.to_thread(served_certificate, address) != expected
            key.write_bytes(its_key.read_bytes())
            process.signal(signal.SIGHUP)
            await process.line("tls_files_read")
            assert await asyncio.to_thread(served_certificate, address) == expected
            process.signal(signal.SIGTERM)
            assert await process.exit_status() == 0


async def test_both_sides_speak_tls(certificate: tuple[Path, Path]) -> None:
    """A sidecar that serves https, and one that has it as its upstream with the authority given: a heal through both."""
    made, key = certificate
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, listen__tls_certificate=made, listen__tls_key=key, mode="rewrite") as inner,
        running_sidecar(f"https://{inner.address}/mcp", upstream__ca_file=made) as outer,
        McpClient(outer.url) as client,
    ):
        await client.initialize()
        await upstream.restart()
        assert (await client.tool("charge")).text == "charged 1"
        assert upstream.ledger.arrivals[0].header("x-forwarded-proto") == "http"  # kept as the first one said
        trusted = ssl.create_default_context(cafile=str(made))
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"https://{inner.address}/echo/tls", ssl=trusted) as answer,
        ):
            seen = dict((await answer.json())["headers"])
        assert seen["X-Forwarded-Proto"] == "https"


async def test_an_upstream_that_is_not_trusted_is_away(certificate: tuple[Path, Path]) -> None:
    """Without its authority nothing is sent to it."""
    made, key = certificate
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, listen__tls_certificate=made, listen__tls_key=key) as inner,
        running_sidecar(f"https://{inner.address}/mcp", healing__connect_hold_timeout=0.1) as outer,
        McpClient(outer.url) as client,
    ):
        assert is_unavailable(await client.call("initialize", {}, id=1, headers=alice(), bare=True), 1)
        assert upstream.ledger.arrivals == []


async def test_a_drain_that_was_begun_on_the_admin_listener() -> None:
    """The process goes on, not ready, until it is told to end; then it has nothing more to wait for."""
    async with FakeUpstream() as upstream, serving(upstream) as (process, _, admin):
        async with aiohttp.ClientSession() as http, http.post(f"{admin}/drain") as answer:
            assert (answer.status, await answer.text()) == (200, "draining\n")
        assert await fetch(f"{admin}/readyz") == (503, "draining\n")
        assert await fetch(f"{admin}/livez") == (200, "ok\n")
        process.signal(signal.SIGTERM)
        assert await process.exit_status() == 0
