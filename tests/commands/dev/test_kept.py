"""The last calls on the status page of `dev`: shown to this machine with all that was said, and sent again on demand."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mcp_sidecar.commands.dev.calls import Ended
from mcp_sidecar.commands.dev.kept import MAX_CALLS, MAX_TEXT, KeptCalls
from mcp_sidecar.wire.jsonrpc import Message, parse
from tests.commands.dev.running import DevProcess, Folder, developing
from tests.support.client import McpClient
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import running_sidecar

ELSEWHERE: tuple[dict[str, str], ...] = (
    {"Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"X-Forwarded-For": "192.0.2.1"},
    {"Host": "evil.example"},
)


def called(**params: Any) -> Message:
    """A call of a tool."""
    return parse(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode())


def kept(*messages: Message, result: object = None, problem: str = "") -> KeptCalls:
    """Calls that have ended so."""
    calls = KeptCalls(lambda: 0.0)
    for message in messages:
        calls.keep(message, Ended(str(message.params.get("name")), 0.01, problem), {"result": result})
    return calls


def test_a_call_is_shown_with_what_was_asked_and_answered() -> None:
    """In JSON that can be read, with how it ended."""
    shown = kept(called(name="add", arguments={"x": 1}), result={"sum": 2}, problem="boom").newer(0)
    assert "add 10 ms boom" in shown and "&quot;x&quot;: 1" in shown and "&quot;sum&quot;: 2" in shown


def test_nothing_that_is_shown_is_markup() -> None:
    """Names, arguments and results are others' words."""
    evil = "<script>alert(1)</script>"
    shown = kept(called(name=evil, arguments={"a": evil}), result=evil, problem=evil).newer(0)
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 4


def test_what_is_no_text_is_shown_all_the_same() -> None:
    """Half a surrogate pair can be said in JSON."""
    kept(called(name="\ud800", arguments={"a": "\ud800"}), result="\ud800").newer(0).encode()


def test_only_the_last_ones_are_kept_and_not_more_than_fits() -> None:
    """A developer's afternoon fills no memory; what was cut is no call that could be sent again."""
    calls = kept(*(called(name=f"t{n}", arguments={}) for n in range(MAX_CALLS + 5)))
    assert calls.newer(0).count("<details") == MAX_CALLS and calls.newer(MAX_CALLS + 4).count("<details") == 1
    assert calls.newer(MAX_CALLS + 5) == ""
    shown = kept(called(name="big", arguments={"a": "x" * MAX_TEXT * 2}), result="y" * MAX_TEXT * 2).newer(0)
    assert len(shown) < 3 * MAX_TEXT and "more characters" in shown and "<button" not in shown


async def test_what_is_not_kept_any_more_cannot_be_sent() -> None:
    """And is said."""
    assert await kept().again(7) == "it is not kept any more"


@pytest.mark.parametrize("modern", [False, True])
async def test_a_call_is_sent_again_through_the_sidecar(modern: bool) -> None:
    """In a session of its own that is ended behind it, or without one where the client had none."""
    meta = {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}} if modern else {}
    message = called(name="echo", arguments={"text": "x"}, **meta)
    async with FakeUpstream(modern=True) as server, running_sidecar(server.url) as sidecar:
        calls = kept(message)
        calls.url = sidecar.url
        assert (await calls.again(1)).startswith("ok after ")
        assert len(server.ledger.executions("echo")) == 1
        assert server.sessions == {}


# -- on the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """The status page of a running `dev`."""

    dev: DevProcess
    client: McpClient
    http: aiohttp.ClientSession
    url: str

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text."""
        async with self.http.get(f"{self.url}{path}", headers=headers) as answer:
            return answer.status, await answer.text()

    async def post(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text."""
        async with self.http.post(f"{self.url}{path}", headers=headers) as answer:
            return answer.status, await answer.text()


@asynccontextmanager
async def looking(folder: Path, admin: str = "127.0.0.1:0") -> AsyncIterator[Page]:
    """Run `dev` with a server and a client, and look at its page."""
    Folder(folder)
    async with (
        developing(folder, admin=admin) as dev,
        McpClient(await dev.url()) as client,
        aiohttp.ClientSession() as http,
    ):
        await dev.line("up in")
        await client.initialize()
        url = (await dev.line("  status")).split()[-1].replace("0.0.0.0", "127.0.0.1")
        yield Page(dev, client, http, url)


@pytest.mark.skipif(sys.platform != "linux", reason="as all of dev")
async def test_the_page_shows_calls_and_sends_one_again(tmp_path: Path) -> None:
    """What a developer wants to know of the last call, and the same once more; the log has nothing of it."""
    async with looking(tmp_path) as page:
        await page.client.tool("echo", text="a secret of mine")
        status, shown = await page.get("")
        assert status == 200 and "a secret of mine" in shown and "Send again" in shown
        assert "<code>http://127.0.0.1:1/" not in shown, "the server of this moment is shown, with its port"
        number = re.findall(r'data-number="(\d+)"', shown)[0]
        assert (await page.post(f"calls/again?number={number}"))[1].startswith("ok after")
        assert (await page.get(f"calls?after={number}"))[1].count("a secret of mine") == 1
        assert not any("secret" in line for line in page.dev.lines)


@pytest.mark.skipif(sys.platform != "linux", reason="as all of dev")
async def test_nobody_else_sees_calls_or_sends_them(tmp_path: Path) -> None:
    """Neither web pages of other origins, nor whom a proxy passes on; and not at all where others could reach the page."""
    async with looking(tmp_path) as page:
        await page.client.tool("echo", text="a secret of mine")
        for headers in ELSEWHERE:
            assert (await page.get("calls?after=0", **headers))[0] == 403
            assert (await page.post("calls/again?number=1", **headers))[0] == 403
    async with looking(tmp_path, admin="0.0.0.0:0") as page:
        await page.client.tool("echo", text="a secret of mine")
        assert "a secret of mine" not in (await page.get(""))[1]
        assert (await page.get("calls?after=0"))[0] == 404
