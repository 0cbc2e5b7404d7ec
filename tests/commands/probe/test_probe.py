"""`mcp-sidecar probe`: what it says of servers that are known, and what it leaves alone."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_sidecar.cli import COMMANDS, command_in, parse
from mcp_sidecar.commands.mcp_client import Said
from mcp_sidecar.commands.probe.capture import entries, without_secrets
from mcp_sidecar.commands.probe.findings import Level, Outcome, Report, judged, report_on
from mcp_sidecar.commands.probe.questions import Answered, Questions, Seen, Sender, made_up
from mcp_sidecar.commands.probe.report import as_json, text
from mcp_sidecar.commands.probe.restart import restart
from mcp_sidecar.config import SidecarConfig
from mcp_sidecar.settings import load
from mcp_sidecar.verdicts.classify import Verdict
from tests.support import corpus
from tests.support.behaviour import Answers, SessionMode
from tests.support.certificates import make_certificate
from tests.support.dialects import DIALECTS
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import running_sidecar


async def probed(url: str, **headers: str) -> tuple[Seen, Report]:
    """Ask, and say what it means."""
    seen = await Questions(url, list(headers.items())).ask_all(lambda _: None)
    return seen, report_on(seen)


def said_of(report: Report, topic: str) -> str:
    """What was found about one thing."""
    return next(finding.text for finding in report.findings if finding.topic == topic)


# -- servers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_server_of_a_known_kind_is_recognised(dialect: str) -> None:
    """The row is the one that the proxy would name, and a ping is proof."""
    async with FakeUpstream(dialect=dialect) as server:
        seen, report = await probed(server.url)
        judgement = judged(seen.answers["made-up-post"])
        assert judgement is not None
        row = judgement.signature if judgement.verdict is Verdict.SESSION_LOST else None
        assert (f"`{row.name}`" if row is not None else "asks with a ping") in said_of(report, "lost sessions")
        assert report.outcome is Outcome.HEALABLE
        assert "in the same words" in said_of(report, "ping")
        assert str(seen.answers["made-up-post"].sender.id) not in as_json(seen, report, None)


async def test_it_calls_no_tool_and_leaves_no_session() -> None:
    """Read-only means so: nothing ran, nothing was set, and every session that it opened is gone."""
    async with FakeUpstream() as server:
        await probed(server.url)
        assert {method for arrival in server.ledger.arrivals for method in arrival.rpc_methods} <= {
            *("initialize", "notifications/initialized", "ping", "tools/list", "server/discover")
        }
        assert server.sessions == {}


@pytest.mark.parametrize(
    ("changes", "topic", "said"),
    [
        ({"answers": Answers.JSON}, "answers", "JSON"),
        ({"answers": Answers.SSE, "event_ids": True}, "answers", "an event stream; events bear ids"),
        ({"get_streams": False}, "listening stream", "none (405)"),
        ({"get_streams": True}, "listening stream", "yes"),
        ({"modern": True}, "revisions", "2026-07-28"),
        ({"check_host": True}, "Host", "421"),
    ],
)
async def test_what_a_server_has_is_told(changes: dict[str, Any], topic: str, said: str) -> None:
    """In the words of an operator."""
    async with FakeUpstream(**changes) as server:
        _, report = await probed(server.url)
        assert said in said_of(report, topic)


async def test_a_server_without_sessions_has_nothing_to_lose() -> None:
    """It is healable in the sense that a restart costs its clients nothing."""
    async with FakeUpstream(sessions=SessionMode.STATELESS) as server:
        _, report = await probed(server.url)
        assert report.outcome is Outcome.HEALABLE
        assert "nothing to heal" in report.summary


async def test_a_server_that_wants_a_login_is_not_judged() -> None:
    """Without a credential nobody can tell; with it everything can be told."""
    async with FakeUpstream(authorization=frozenset({"Bearer right"})) as server:
        _, report = await probed(server.url)
        assert (report.outcome, "login" in report.summary) == (Outcome.UNKNOWN, True)
        seen, report = await probed(server.url, Authorization="Bearer right")
        assert report.outcome is Outcome.HEALABLE
        _, refused_one = await probed(server.url, Authorization="Bearer wrong")
        assert refused_one.summary == "the credential is refused"
        assert "a wrong token gets 401" in said_of(report, "credentials")
        assert "right" not in as_json(seen, report, None).replace("right token", "")


async def test_nobody_there_is_told() -> None:
    """With the address and the reason."""
    async with FakeUpstream() as server:
        url = server.url
    _, report = await probed(url)
    assert (report.outcome.exit_status, report.summary) == (4, "nobody answers (no connection)")


@asynccontextmanager
async def ending_all(tls: ssl.SSLContext | None, *, at_once: bool) -> AsyncIterator[str]:
    """The origin of a server that takes connections, reads a little, and ends them."""

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", at_once, 0))
        writer.close()

    async with await asyncio.start_server(end, "127.0.0.1", 0, ssl=tls) as server:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"


async def test_a_reset_is_not_a_server_that_is_away() -> None:
    """Somebody is there: whoever starts the server again would look in the wrong place."""
    async with ending_all(None, at_once=True) as url:
        _, report = await probed(url)
    assert (report.outcome.exit_status, report.summary) == (4, "nobody answers (the connection was reset)")


async def test_a_certificate_of_ones_own_is_trusted_where_it_is_named(tmp_path: Path) -> None:
    """As the sidecar trusts it, by ``upstream.ca_file``; else the advice names the setting."""
    certificate, key = make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with ending_all(tls, at_once=False) as url:
        _, report = await probed(url)
        assert report.summary == "nobody answers (its certificate is not trusted)"
        assert "upstream.ca_file" in report.findings[0].advice
        seen = await Questions(url, ca_file=str(certificate)).ask_all(lambda _: None)
    assert "certificate" not in report_on(seen).summary


async def test_a_sidecar_in_front_is_told() -> None:
    """What the server itself says to lost sessions cannot be seen through one."""
    async with FakeUpstream() as server, running_sidecar(server.url) as sidecar:
        _, report = await probed(sidecar.url)
        assert "answer of a sidecar" in said_of(report, "sidecar")


async def test_a_server_that_takes_any_id_has_nothing_to_heal() -> None:
    """Its clients go on after a restart by themselves; that it never tells of one is said."""
    async with FakeUpstream(sessions=SessionMode.ADOPTING) as server:
        _, report = await probed(server.url)
    assert report.outcome.exit_status == 0 and "takes any session id" in report.summary
    assert "never says that it has forgotten" in said_of(report, "lost sessions")


# -- what answers mean --------------------------------------------------------------------------------------------------


def answer(status: int, value: object, *headers: tuple[str, str]) -> Said:
    """A JSON answer."""
    return Said(status, (("Content-Type", "application/json"), *headers), json.dumps(value).encode())


def result(value: object, *headers: tuple[str, str]) -> Said:
    """A success."""
    return answer(200, {"jsonrpc": "2.0", "id": "mcp-sidecar-1", "result": value}, *headers)


def refused(status: int, message: str) -> Said:
    """A JSON-RPC error that is addressed to nobody."""
    return answer(status, {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": message}})


Row = tuple[str, str, Said]


def made_of(*rows: Row) -> Seen:
    """What was seen, by hand."""
    answers = {
        kind: Answered("POST", "ping" if "ping" in kind else "tools/list", Sender(session, "5f0c", None), said)
        for kind, session, said in rows
    }
    return Seen("http://127.0.0.1:9000/mcp", answers)


def live(*headers: tuple[str, str]) -> tuple[Row, ...]:
    """A handshake with a session."""
    opened = {"protocolVersion": "2025-11-25", "serverInfo": {"name": "s", "version": "1"}, "capabilities": {}}
    return (("initialize", "none", result(opened, ("Mcp-Session-Id", "5f0c"), *headers)),)


@pytest.mark.parametrize(
    ("said", "pinged", "status", "topic", "words"),
    [
        pytest.param(
            refused(418, "who are you"), refused(418, "who are you"), 0, "lost sessions", "asks with a ping", id="asked"
        ),
        pytest.param(refused(418, "who are you"), refused(418, "not me"), 0, "ping", "may have run", id="other words"),
        pytest.param(refused(418, "who are you"), result({}), 3, "ping", "cannot tell", id="a ping that lies"),
        pytest.param(refused(401, "log in"), refused(401, "log in"), 3, "lost sessions", "about a login", id="401"),
    ],
)
def test_the_meaning_of_refusals(said: Said, pinged: Said, status: int, topic: str, words: str) -> None:
    """What no row knows is asked about; what could be a login is not, and then there is something to do."""
    report = report_on(made_of(*live(), ("made-up-post", "made-up", said), ("made-up-ping", "made-up", pinged)))
    assert report.outcome.exit_status == status
    assert words in said_of(report, topic)


@pytest.mark.parametrize(
    ("cookie", "words"),
    [("AWSALB=a1b2; Path=/", "AWSALB: a balancer's"), ("theme=dark", "upstream.affinity_cookies")],
)
def test_cookies_of_a_balancer_are_told(cookie: str, words: str) -> None:
    """By the names that the proxy itself goes by, and never their values."""
    lost = refused(404, "Session not found")
    rows = ("made-up-post", "made-up", lost), ("made-up-ping", "made-up", lost)
    said = said_of(report_on(made_of(*live(("Set-Cookie", cookie)), *rows)), "cookies")
    assert words in said
    assert cookie.partition("=")[2] not in said


def test_who_is_told_to_come_back_later_is_told() -> None:
    """A rate limit shows in a few questions, and a heal waits for it."""
    busy = Said(429, (("Retry-After", "3"),))
    rows = ("made-up-post", "made-up", busy), ("made-up-ping", "made-up", busy)
    assert said_of(report_on(made_of(*live(), *rows)), "Retry-After") == "said to: made-up-ping, made-up-post"


def test_several_servers_behind_one_address_are_told() -> None:
    """A live session that some connections do not know."""
    lost = refused(404, "Session not found")
    pings = tuple((f"ping-{n}", "live", lost if n % 2 else result({})) for n in range(8))
    report = report_on(made_of(*live(), ("made-up-post", "made-up", lost), ("made-up-ping", "made-up", lost), *pings))
    assert "4 of 8 pings" in said_of(report, "replicas")


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (Said(200, (("Content-Type", "text/html"),), b"<html>"), 4, "no MCP endpoint"),
        (Said(308, (("Location", "https://x/mcp"),)), 3, "redirects to https://x/mcp"),
        (Said(307, (("Location", "/v2/mcp"),)), 3, "redirects to http://127.0.0.1:9000/v2/mcp"),
        (refused(400, "Unsupported protocol version"), 4, "refuses the handshake"),
        (Said(502, (("Content-Type", "text/html"),), b"<html>"), 4, "a gateway without its server"),
    ],
)
def test_what_is_no_handshake(said: Said, status: int, words: str) -> None:
    """A web server, a redirect, a refusal: each in its own words."""
    report = report_on(made_of(("initialize", "none", said)))
    assert report.outcome.exit_status == status and words in report.summary


def test_the_older_transport_is_told() -> None:
    """A server of HTTP+SSE refuses the POST at its stream's address; its own GET says what it is."""
    stream = Said(200, (("Content-Type", "text/event-stream; charset=utf-8"),))
    report = report_on(made_of(("initialize", "none", Said(405)), ("plain-get", "none", stream)))
    assert report.outcome.exit_status == 4 and "HTTP+SSE transport (2024-11-05)" in report.summary


def test_only_2026_needs_no_healing() -> None:
    """A server without the older handshake has no sessions."""
    seen = made_of(("initialize", "none", refused(400, "no")), ("discover", "none", result({"serverInfo": {}})))
    report = report_on(seen)
    assert report.outcome is Outcome.HEALABLE and "2026-07-28" in report.summary


# -- ids and secrets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["8f14e45f-ceea-467a-9d1c-2b7c3a5e6f70", "ABCdef.12_9", "mcp-session-42"])
def test_a_made_up_id_has_the_form_of_the_real_one(key: str) -> None:
    """A server that checks the form must not tell it by that."""
    other = made_up([key], random.Random(1))

    def form(text: str) -> list[tuple[bool, bool, bool]]:
        return [(each.isdigit(), each.isalpha(), each.isupper()) for each in text]

    assert other != key and form(other) == form(key)


@pytest.mark.parametrize(
    ("ids", "form"),
    [
        (["mcp-session-8f14e45f", "mcp-session-01aaf3d9"], r"mcp-session-[0-9a-f]{8}"),
        (["session_1", "session_2"], r"session_[0-9]{8}"),
        (["0198a5c2-1f00-7b", "0198a5c2-1e77-7c"], r"0198a5c2-[0-9a-f]{4}-[0-9a-f]{2}[0-9a-f-]*"),
        (["abcd1", "abce2"], r"[a-f]{4}[0-9][a-f]{4}[0-9]"),
        (["same-1a2b3c4d", "same-1a2b3c4d"], r"[a-z]{4}-[0-9a-z]{8}"),
    ],
)
def test_what_all_ids_begin_with_is_kept(ids: list[str], form: str) -> None:
    """mcp-go takes every id with the right beginning; what is made up behind it is nobody's."""
    assert re.fullmatch(form, other := made_up(ids, random.Random(1))) and other not in ids


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer abcdefghijkl",
        '{"access_token":"abcdefghijkl"}',
        "api_key=abcdefghijkl",
        "eyJabcdefghijkl.eyJabcdefghijkl.abcdefghijkl",
    ],
)
def test_tokens_are_not_written(secret: str) -> None:
    """Whatever looks like one is replaced."""
    assert "abcdefghijkl" not in without_secrets(f"x {secret} y", None, set())


async def test_what_is_captured_is_an_entry_of_the_corpus() -> None:
    """It reads back to the same verdict, and no id of a session is in it."""
    async with FakeUpstream() as server:
        seen, _ = await probed(server.url)
    written = dict(entries(seen))
    assert len(written) == 9
    for name, content in written.items():
        entry = corpus.parse(content.encode())
        answered = seen.answers[entry.kind]
        judgement = judged(answered)
        assert name == f"{entry.id}.txt" and judgement is not None and entry.expect is judgement.verdict
        assert str(seen.session_id) not in content and str(answered.sender.id) not in content


async def test_nothing_that_is_printed_holds_an_id() -> None:
    """Neither for people nor for scripts."""
    async with FakeUpstream() as server:
        seen, report = await probed(server.url)
    for printed in (text(seen, report, None, width=80, coloured=False), as_json(seen, report, None)):
        assert str(seen.session_id) not in printed and str(seen.answers["made-up-post"].sender.id) not in printed
        json.loads(printed) if printed.startswith("{") else None


@pytest.mark.parametrize("width", [60, 80, 120])
async def test_lines_fit_the_terminal(width: int) -> None:
    """However narrow it is."""
    async with FakeUpstream() as server:
        seen, report = await probed(server.url)
    assert max(map(len, text(seen, report, None, width=width, coloured=False).splitlines())) <= width
    assert any(finding.level is Level.GOOD for finding in report.findings)


# -- a restart ----------------------------------------------------------------------------------------------------------


def sidecar_config(server: FakeUpstream) -> SidecarConfig:
    """Of a sidecar in front of it."""
    return load({"upstream": [server.url], "listen": ["127.0.0.1:0"], "admin": ["off"]}, {}).config


async def test_a_restart_is_shown_step_by_step() -> None:
    """The session of before goes on; every step is the proxy's own fact."""
    steps: list[str] = []
    async with FakeUpstream() as server:

        def tell(line: str) -> None:
            steps.append(line)
            if line.startswith("session open"):
                server.forget()

        restarted = await restart(sidecar_config(server), "true", [], tell)
    assert restarted.is_whole and list(restarted.steps) == steps
    shown = "\n".join(steps)
    for words in (
        "restarted with: true (exit status 0)",
        "forgotten the session: 404",
        "healed",
        "tools/list sent again",
    ):
        assert words in shown


async def test_a_command_that_restarts_nothing_is_no_heal() -> None:
    """The call succeeds, and no loss is told."""
    steps: list[str] = []
    async with FakeUpstream() as server:
        assert (await restart(sidecar_config(server), "exit 3", [], steps.append)).is_whole
    assert "exit status 3" in "\n".join(steps) and "forgotten" not in "\n".join(steps)


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["probe", "ftp://x"], 2, "must begin with http"),
        (["probe", "http://127.0.0.1:1/mcp", "--header", "no-colon"], 2, "must be NAME: VALUE"),
        (["probe", "http://127.0.0.1:1/mcp"], 4, ""),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked where nothing can be."""
    command, rest = command_in(words)
    assert command in COMMANDS
    run: Callable[[Any], int] = command.run
    assert run(parse(command, rest)) == status
    assert told in capsys.readouterr().err
