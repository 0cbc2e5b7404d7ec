"""Make the terminal pictures of docs/development-proxy.md anew, each from a real run: `python -m tools.pictures`.

The rule of this file: nothing stands between the marks but what a terminal showed. Only the folder's path, colours and the
access log of the server are left out.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from tools.environments import ROOT

PAGE: Final = ROOT / "docs" / "development-proxy.md"
SERVER: Final = """\
import os
from mcp.server.fastmcp import FastMCP

mcp = FastMCP("notes", port=int(os.environ.get("PORT", 8000)), log_level="WARNING")


@mcp.tool()
def search(text: str) -> str:
    return f"nothing about {text}"


mcp.run("streamable-http")
"""
TOOL: Final = "@mcp.tool()\ndef add(title: str, text: str) -> str:\n    return title\n\n\nmcp.run"
DEV: Final = (sys.executable, "-m", "mcp_sidecar", "dev", "--admin", "off", "--listen")
NOISE: Final = re.compile(r"INFO: ")


class Run:
    """A `dev` under way; ``shown`` is what it has written."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        """It is read from now on."""
        self.server = folder / "server.py"
        self.shown: list[str] = []
        self._process = process
        self._folder = folder

    async def until(self, words: str) -> str:
        """Read on to the line with these words."""
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            if not NOISE.search(line):
                self.shown.append(line.rstrip().replace(str(self._folder), "~/notes").replace(sys.executable, "python"))
            if words in line:
                return line
        raise RuntimeError("\n".join(self.shown))


@asynccontextmanager
async def running(listen: str) -> AsyncIterator[Run]:
    """Run `dev` on a project of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "notes"
        folder.mkdir()
        (folder / "server.py").write_text(SERVER, encoding="utf-8")
        command = (*DEV, listen, "--", sys.executable, "server.py")
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=PIPE, stderr=STDOUT)
        try:
            yield Run(folder, process)
        finally:
            process.terminate()
            await process.wait()


async def edits() -> str:
    """A call, a tool that is added, a broken save, a mended one."""
    async with running("8080") as run:
        url = (await run.until("for clients")).split()[-1]
        await run.until("up in")
        async with streamable_http_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            await session.list_tools()
            await session.call_tool("search", {"text": "figs"})
            run.server.write_text(SERVER.replace("mcp.run", TOOL), encoding="utf-8")
            await run.until("→ up in")
            await session.call_tool("add", {"title": "figs", "text": "ripe"})
            run.server.write_text(SERVER.replace("mcp.run", f"{TOOL[:20]}"), encoding="utf-8")
            await run.until("goes on answering")
            await session.call_tool("search", {"text": "figs"})
            await run.until("search  ")
            run.server.write_text(SERVER.replace("mcp.run", TOOL), encoding="utf-8")
            await run.until("→ up in")
        return "\n".join(run.shown)


async def accepting(port: int) -> None:
    """Wait until somebody accepts connections there."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.05)


async def probe() -> str:
    """What `probe` says of the same server, without a sidecar in front of it."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "server.py").write_text(SERVER, encoding="utf-8")
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "server.py"), cwd=name, env={**os.environ, "PORT": "9000"}
        )
        try:
            await accepting(9000)
            command = (sys.executable, "-m", "mcp_sidecar", "probe", "http://127.0.0.1:9000/mcp")
            asking = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env={"COLUMNS": "110"})
            said, _ = await asking.communicate()
            return said.decode().rstrip()
        finally:
            server.terminate()
            await server.wait()


PICTURES: Final = {"edits": edits, "probe": probe}


def main() -> None:
    """Put each picture between its marks."""
    page = PAGE.read_text(encoding="utf-8")
    for name, make in PICTURES.items():
        begin, end = f"<!-- picture: {name} -->", "<!-- end of picture -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n```text\n{asyncio.run(make())}\n```\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
