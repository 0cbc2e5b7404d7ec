"""The status page in a real browser, where there is one: live, alone, and readable in both themes."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.commands.dev.running import Folder, developing
from tests.support.client import McpClient
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import running_sidecar
from tests.support.waiting import HANG_S

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("STATUS_PAGE_SHOTS")
"""A folder for screenshots that somebody wants to look at."""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium")

CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => { for (let at = node; at; at = at.parentElement) {
    const found = rgb(getComputedStyle(at).backgroundColor); if (found[3] === 255) return found; } return [255, 255, 255, 255]; };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()) || !node.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${node.tagName} ${node.className} ${ratio.toFixed(2)}`);
  }
  return JSON.stringify(low);
})()
"""


class Page:
    """One page of the browser, over its debugging protocol. ``events`` are what it has told."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told.get("result", told))
            else:
                self.events.append(told)

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await asyncio.wait_for(answer, HANG_S)

    async def value(self, expression: str) -> Any:
        """What it evaluates to, or promises."""
        answer = await self.ask("Runtime.evaluate", expression=expression, awaitPromise=True)
        return answer["result"].get("value")

    async def shows(self, text: str) -> None:
        """Return when the page does."""
        looks = f"document.body.innerText.includes({json.dumps(text)}) ? done(true) : setTimeout(look, 50)"
        async with asyncio.timeout(HANG_S):  # while it loads another document there is nobody to promise anything
            while not await self.value(f"new Promise((done) => {{ const look = () => {looks}; look() }})"):
                pass

    async def shoot(self, name: str) -> None:
        if SHOTS is not None:
            shot = await self.ask("Page.captureScreenshot", captureBeyondViewport=True)
            await asyncio.to_thread(Path(SHOTS, f"{name}.png").write_bytes, base64.b64decode(shot["data"]))


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """A browser of our own, with one empty page."""
    assert BROWSER is not None
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    command = [BROWSER, *options, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        told = await asyncio.wait_for(process.stderr.readuntil(b"/devtools/browser/"), HANG_S)
        port = told.rpartition(b"ws://127.0.0.1:")[2].partition(b"/")[0].decode()
        draining = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
                [target] = [each for each in await answer.json() if each["type"] == "page"]
            async with http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await page.ask(f"{domain}.enable")
                yield page
                listening.cancel()
                draining.cancel()
    finally:
        process.kill()
        await process.wait()


async def test_it_shows_an_outage_as_it_happens(tmp_path: Path) -> None:
    """The server goes and comes back; no error in the console, no request to elsewhere, contrast enough (WCAG AA)."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, admin="127.0.0.1:0", healing__hold_timeout=1) as sidecar,
        McpClient(sidecar.url) as client,
        browsing(tmp_path) as page,
    ):
        await client.initialize()
        for _ in range(20):
            await client.tool("echo", text="x")
        await page.ask("Emulation.setDeviceMetricsOverride", width=900, height=1400, deviceScaleFactor=1, mobile=False)
        await page.ask("Page.navigate", url=f"http://{sidecar.admin_address}/")
        await page.shows("live")
        await upstream.stop()
        await client.tool("echo", text="x")
        await page.shows("away since")
        await page.shows("unavailable after")
        for theme in ("light", "dark"):
            await page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            assert await page.value(CONTRAST) == "[]"
            await page.shoot(theme)
        await upstream.restart()
        await client.tool("echo", text="x")
        await page.shows("up since")
        await page.shows("healed in")
        assert await page.value("document.querySelectorAll('svg rect').length") > 0
        await page.ask("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
        assert await page.value("document.documentElement.scrollWidth") <= 360
        await page.shoot("phone")
        asked = [
            event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
        ]
        assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {sidecar.admin_address}
        wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        assert [event for event in page.events if event["method"] in wrong] == []


async def test_a_developer_sends_a_call_again(tmp_path: Path) -> None:
    """Under `dev` the page shows the last calls as they come, and a button sends one once more; nothing is loaded but the page's own."""
    Folder(tmp_path)
    async with (
        developing(tmp_path, admin="127.0.0.1:0") as dev,
        McpClient(await dev.url()) as client,
        browsing(tmp_path / "browser") as page,
    ):
        await dev.line("up in")
        await client.initialize()
        await page.ask("Emulation.setDeviceMetricsOverride", width=900, height=1400, deviceScaleFactor=1, mobile=False)
        await page.ask("Page.navigate", url=(await dev.line("  status")).split()[-1])
        await page.shows("None yet.")
        await client.tool("echo", text="said once")
        await page.shows("echo")
        await page.value("document.querySelector('#calls details').open = true")
        await page.shows("said once")
        await page.value("document.querySelector('#calls button').click()")
        await page.shows("ok after")
        again = "document.querySelectorAll('#calls details').length === 2 ? done(true) : setTimeout(look, 50)"
        assert await page.value(f"new Promise((done) => {{ const look = () => {again}; look() }})")
        assert await page.value("document.querySelectorAll('#calls details')[1].open")
        for theme in ("light", "dark"):
            await page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            assert await page.value(CONTRAST) == "[]"
            await page.shoot(f"calls-{theme}")
        wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        assert [event for event in page.events if event["method"] in wrong] == []
