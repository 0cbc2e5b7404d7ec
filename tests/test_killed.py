"""The sidecar as a process that is killed without a warning: its clients go on with the next one, whatever the order of deaths."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.client import Answer, McpClient, NoAnswer
from tests.support.fake_upstream import FakeUpstream
from tests.support.process import SidecarProcess, sidecar_process
from tests.support.waiting import eventually

CLIENTS, CALLS = 10, 20


@asynccontextmanager
async def serving(upstream: FakeUpstream, *options: str) -> AsyncIterator[tuple[SidecarProcess, str]]:
    """A process with the store that it has by default, and the URL for its clients."""
    async with sidecar_process("--listen", "127.0.0.1:0", "--admin", "off", upstream.url, *options) as process:
        line = await process.line("listening")
        yield process, line["url"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user's sidecars keep what outlives them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_store_without_a_word_of_configuration(state: Path) -> None:
    """It is a file of this user's alone, named by the upstream and told in the first line; nothing else is left anywhere."""
    async with FakeUpstream() as upstream:
        async with serving(upstream) as (process, _):
            store = (await process.line("listening"))["store"]
            process.signal(signal.SIGTERM)
            assert await process.exit_status() == 0
        [file] = _files(state)
        assert store == f"sqlite:{file}"
        assert file.parent == state / "mcp-sidecar" and f"127.0.0.1-{upstream.port}-mcp" in file.name
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("mode", ["rewrite", "observe"])
async def test_what_heals_nothing_keeps_nothing(state: Path, mode: str) -> None:
    """Modes that heal nothing have no use for it."""
    async with FakeUpstream() as upstream, serving(upstream, "--mode", mode) as (process, _):
        assert (await process.line("listening"))["store"] == "memory:"
    assert _files(state) == []


async def test_without_a_place_for_it(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves from memory, and says so."""
    (state / "mcp-sidecar").write_text("in the way")
    async with FakeUpstream() as upstream, serving(upstream) as (process, _):
        assert (await process.line("listening"))["store"].startswith("memory: (")


@pytest.mark.parametrize("kind", ["foreign", "open to others"])
async def test_a_file_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    """What somebody has asked for by name is refused with the reason in one line: exit status 1."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    if kind == "foreign":
        (folder / "sessions.db").write_text("somebody's notes")
    else:
        folder.chmod(0o777)
    options = ("--listen", "127.0.0.1:0", "--admin", "off", "--store", f"sqlite:{folder}/sessions.db")
    async with sidecar_process("http://127.0.0.1:9/mcp", *options) as process:
        assert await process.exit_status() == 1
        [line] = process.stderr.splitlines()
        assert line.startswith("sessions.store: ") and str(folder) in line


class Load:
    """A client that calls all the time; what ran twice, and what got no answer from a sidecar that lives, is told."""

    def __init__(self, client: McpClient, number: int) -> None:
        self.client = client
        self.number = number
        self.cut = 0
        self.answers: list[str] = []

    async def _answer(self, amount: int) -> Answer | None:
        """``None`` where the process died before all of it was here."""
        try:
            answer = await self.client.tool("charge", amount=amount)
        except NoAnswer:
            return None
        return answer if answer.broken is None else None

    async def run(self, url: asyncio.Future[str]) -> None:
        """Go on calling where the sidecar is by now."""
        for call in range(CALLS):
            answer = await self._answer(self.number * 1000 + call)
            if answer is None:
                self.cut += 1
                self.client.url = await url
                continue
            self.answers.append(answer.text if "result" in answer.response else str(answer.response))


@pytest.mark.parametrize("order", ["the sidecar", "sidecar, server", "server, sidecar"])
async def test_killed_under_load(state: Path, order: str) -> None:
    """Only calls that were under way in the killed process fail; nothing runs twice; everybody keeps the id."""
    async with FakeUpstream() as upstream:
        url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        async with serving(upstream) as (process, first_url):
            loads = [Load(await McpClient(first_url).__aenter__(), number) for number in range(CLIENTS)]
            for load in loads:
                await load.client.initialize()
            running = [asyncio.create_task(load.run(url)) for load in loads]
            await eventually(lambda: sum(len(load.answers) for load in loads) > 3 * CLIENTS)
            if order == "server, sidecar":
                upstream.crash()
            process.signal(signal.SIGKILL)
            await process.exit_status()
        if order == "sidecar, server":
            upstream.crash()
        if order != "the sidecar":
            await upstream.start()
        async with serving(upstream) as (_, second_url):
            url.set_result(second_url)
            await asyncio.gather(*running)
        ran = [each.arguments["amount"] for each in upstream.ledger.executions("charge")]
        assert len(ran) == len(set(ran))
        for load in loads:
            assert load.cut <= 1
            assert all(text.startswith("charged") or "outcome_unknown" in text for text in load.answers)
            assert sum(text.startswith("charged") for text in load.answers) >= CALLS - 2
            assert set(load.client.seen_session_ids) == {load.client.session_id}
            await load.client.__aexit__(None, None, None)
        assert len(upstream.ledger.initializes) == CLIENTS * (1 if order == "the sidecar" else 2)
        assert {file.parent for file in _files(state)} == {state / "mcp-sidecar"}
