"""`mcp-sidecar dev`, as a developer runs it: real servers, real saves, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path

import pytest

from mcp_sidecar.commands.dev.child import RUNNING, Guard, Server, start
from mcp_sidecar.commands.dev.ports import free_port
from mcp_sidecar.commands.mcp_client import McpClient as SidecarClient
from mcp_sidecar.commands.mcp_client import request
from tests.commands.dev.running import IGNORES_SIGTERM, DevProcess, Folder, developing, gone, is_running
from tests.support.client import McpClient
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

WRITES_ITS_PID = "import os, pathlib; pathlib.Path('pid').write_text(str(os.getpid()))"
HAS_A_CHILD = """\
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path('child').write_text(str(child.pid))"""
LEAVES_A_CHILD = """\
import os, signal
heard, tell = os.pipe()
if not os.fork():
    signal.signal(signal.SIGTERM, lambda *_: print("the child was told to end", flush=True))
    print("bad news", flush=True)
    os.write(tell, b".")
    while True:
        signal.pause()
os.read(heard, 1)
os._exit(3)"""
GOES_ITS_OWN_WAY = """\
import functools, subprocess
subprocess.Popen = functools.partial(subprocess.Popen, start_new_session=True)"""
HAS_JOBS = """\
import os, pathlib, signal, subprocess, sys, termios, time
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
modes = termios.tcgetattr(0)
job = subprocess.Popen(sys.argv[1:], process_group=0)
os.tcsetpgrp(0, job.pid)
os.waitpid(job.pid, os.WUNTRACED)
os.tcsetpgrp(0, os.getpgrp())
termios.tcsetattr(0, termios.TCSADRAIN, modes)
os.kill(job.pid, signal.SIGCONT)
print("shell: bg", flush=True)
while not pathlib.Path("fg").exists():
    time.sleep(0.01)
typed = input()
os.tcsetpgrp(0, job.pid)
while termios.tcgetattr(0)[3] & termios.ICANON:
    time.sleep(0.01)
print("shell: fg, read", typed, flush=True)
sys.exit(job.wait())"""


async def tools_of(client: McpClient) -> list[str]:
    """What the client is given as the list of tools."""
    return [tool["name"] for tool in (await client.call("tools/list")).result["tools"]]


def pid_in(path: Path) -> int:
    """A number that a server has written."""
    return int(path.read_text(encoding="utf-8"))


def saved(dev: DevProcess, expected: str = "→ up in") -> Coroutine[None, None, str]:
    """The line about the save that comes next; to be asked for before saving."""
    return dev.line(expected, behind=len(dev.lines))


# -- a save -----------------------------------------------------------------------------------------------------------


async def test_a_save_brings_a_new_tool_and_loses_nobody(folder: Folder) -> None:
    """The session goes on in the new server, its client hears that the tools changed, and the terminal says what did."""
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await dev.line("up in .* 1 tool")
        opened = await client.initialize()
        assert opened.result["capabilities"]["tools"]["listChanged"] is True
        assert await tools_of(client) == ["echo"]
        before = (await client.tool("echo")).text
        async with await client.get_stream() as stream:
            telling = saved(dev)
            folder.has_tools("echo", "add")
            told = await telling
            assert "server.py changed" in told
            heard = await stream.next_message()
            assert heard is not None and heard["method"] == "notifications/tools/list_changed"
        assert "1 session healed" in told
        assert await dev.line(r"tools: \+add\(text\)")
        assert await tools_of(client) == ["echo", "add"]
        after = (await client.tool("echo")).text
        assert before != after and after.startswith("echo of")
        assert await dev.line("echo  .*ok")


async def test_a_server_is_up_before_it_has_said_its_lists(folder: Folder) -> None:
    """Some load half of themselves for that: the line does not wait, and what has changed is told when it is known."""
    async with developing(folder.path) as dev:
        await dev.line("up in .* 1 tool")
        telling = saved(dev)
        folder.has_tools("echo", "add", lists_gate="said")
        assert "tools:" not in await telling
        (folder.path / "said").touch()
        assert re.fullmatch(r"tools: \+add\(text\)", await dev.line("add"))


async def test_a_save_while_a_server_takes_over_leaves_no_former_one(folder: Folder) -> None:
    """It gives up what was still to be told, and not the end of the servers before."""
    folder.has_tools("echo", does=WRITES_ITS_PID)
    async with developing(folder.path) as dev:
        await dev.line("up in")
        first = pid_in(folder.path / "pid")
        telling = saved(dev)
        folder.has_tools("echo", lists_gate="never", does=WRITES_ITS_PID)
        await telling
        second = pid_in(folder.path / "pid")
        telling = saved(dev, r"tools: \+add")
        folder.has_tools("echo", "add")
        await telling
        await gone(first, second)


async def test_a_client_without_sessions_is_shown_as_any_other(folder: Folder) -> None:
    """2026-07-28 knows no `initialize`: the client is named in its `server/discover`, and its calls are told as they end."""
    version, info = "io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientInfo"
    meta = {version: "2026-07-28", info: {"name": "modern", "version": "4"}}
    async with developing(folder.path) as dev:
        url = await dev.url()
        await dev.line("up in")
        async with SidecarClient(url) as client:
            for method, params in (("server/discover", {}), ("tools/call", {"name": "echo", "arguments": {}})):
                said = await client.post(request(method, params | {"_meta": meta}), None, "2026-07-28")
                assert said.status == 200
        await dev.line("modern 4 connected")
        await dev.line("echo .* ok")


async def test_a_client_that_cannot_connect_is_told(folder: Folder) -> None:
    """With the server's own words; one that has one transport for its whole life has had its only `initialize` of `dev`."""
    text = folder.server.read_text(encoding="utf-8")
    folder.server.write_text(text.replace("ONE_CLIENT = False", "ONE_CLIENT = True"), encoding="utf-8")
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await dev.line("up in")
        assert (await client.initialize()).status == 400
        await dev.line("could not connect: HTTP 400 Invalid Request: Server already initialized")
        await dev.line("a transport of its own")


async def test_calls_go_on_while_saves_come(folder: Folder) -> None:
    """Every other save is broken: no call fails, and the session stays the same."""
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await client.initialize()
        session, texts = client.session_id, set[str]()
        is_over = False

        async def call() -> None:
            while not is_over:
                texts.add((await client.tool("echo")).text)
                assert client.session_id == session

        calling = asyncio.create_task(call())
        for number in range(4):
            broken = number % 2 == 1
            telling = saved(dev, "does not start" if broken else "→ up in")
            folder.is_broken() if broken else folder.has_tools("echo", f"t{number}")
            await telling
        is_over = True
        await calling
        assert len(texts) == 3 and all(text.startswith("echo of") for text in texts)


async def test_a_broken_save_is_told_and_the_last_good_server_goes_on(folder: Folder) -> None:
    """In one line with the server's own last words; the next save that works takes over."""
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await client.initialize()
        before = (await client.tool("echo")).text
        telling = saved(dev, "does not start")
        folder.is_broken()
        assert "(exit status 1): SyntaxError: invalid syntax" in await telling
        assert (await client.tool("echo")).text == before
        telling = saved(dev)
        folder.has_tools("echo")
        await telling
        assert (await client.tool("echo")).text != before


async def test_without_any_good_server_calls_end_with_its_words(folder: Folder) -> None:
    """A client is told why at once, not after a hold, and connects as soon as the file is mended."""
    folder.is_broken()
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await dev.line("does not start")
        refused = await client.call("initialize", {}, id=1, bare=True)
        assert refused.status == 503
        assert refused.error["data"] == {"reason": "server_failed_to_start"}
        assert "SyntaxError: invalid syntax" in refused.error["message"]
        folder.has_tools("echo")
        await dev.line("→ up in")
        assert (await client.initialize()).status == 200


async def test_a_server_that_does_not_start_is_told_before_its_children_are_ended(folder: Folder) -> None:
    """Who waits is told at once, however long what it has left behind takes to end."""
    folder.server.write_text(LEAVES_A_CHILD, encoding="utf-8")
    async with developing(folder.path) as dev:
        await dev.line("the child was told to end")
        told = [line for line in dev.lines if "does not start" in line or "the child was told" in line]
        assert "does not start (exit status 3): bad news" in told[0]


async def test_a_server_with_a_port_of_its_own_is_stopped_first(folder: Folder) -> None:
    """It is found by itself; calls wait while it restarts, and a broken save ends them with the server's words."""
    port = free_port()
    folder.does(f"import os; os.environ['PORT'] = '{port}'")
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await dev.line(f"listens on http://127.0.0.1:{port} and not")
        await dev.line("up in")
        await client.initialize()
        before = (await client.tool("echo")).text
        telling = saved(dev, "does not start")
        folder.is_broken()
        await telling
        refused = await client.tool("echo")
        assert (refused.status, refused.error["data"]) == (200, {"reason": "server_failed_to_start"})
        assert "SyntaxError" in refused.error["message"]
        telling = saved(dev)
        folder.does(f"import os; os.environ['PORT'] = '{port}'")
        await telling
        assert (await client.tool("echo")).text not in (before, "")


@pytest.mark.parametrize("status", [200, 400])
async def test_another_port_of_the_server_is_not_taken_for_the_endpoint(folder: Folder, status: int) -> None:
    """A debugger's (`node --inspect` answers 400) or one for metrics is there first, and answers what is no MCP."""
    folder.does(
        "import pathlib, threading, time\n"
        "from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer\n"
        "ASKED = threading.Event()\n"
        "class Other(BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        f"        self.send_response({status})\n"
        "        self.end_headers()\n"
        "        self.wfile.write(b'WebSockets request was expected')\n"
        "        ASKED.set()\n"
        "threading.Thread(target=ThreadingHTTPServer(('127.0.0.1', 0), Other).serve_forever, daemon=True).start()\n"
        "ASKED.wait()"
    )
    async with developing(folder.path) as dev:
        assert await dev.line("up in") == await dev.line("small up in .* 1 tool")
        assert not any("listens on" in line for line in dev.lines)


async def test_the_upstream_may_be_said(folder: Folder) -> None:
    """With ``--upstream`` the server's port is the one in the URL, and nothing is looked for."""
    port = free_port()
    async with (
        developing(folder.path, "--upstream", f"http://127.0.0.1:{port}/mcp", PORT=str(port)) as dev,
        McpClient(await dev.url()) as client,
    ):
        await dev.line("up in")
        await client.initialize()
        assert (await client.tool("echo")).text.startswith("echo of")


async def test_somebody_elses_server_on_the_port_is_told(folder: Folder) -> None:
    """A server that an earlier run has left answers for the new one, which cannot have the port: old code, and no word of it."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        async with developing(folder.path, "--upstream", f"http://127.0.0.1:{port}/mcp", PORT=str(port)) as dev:
            await dev.line(f"http://127.0.0.1:{port} is in use by what dev has not started")


async def test_a_port_that_is_taken_is_told(folder: Folder) -> None:
    """In one line, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with developing(folder.path, admin=address) as dev:
            assert await dev.exit_status() == 1
        assert dev.lines[0].lower() == f"admin.address {address}: address already in use"
        assert "--listen 0" in dev.lines[1]


async def test_calls_under_way_end_on_a_server_that_is_stopped_first(folder: Folder) -> None:
    """A call that has begun before a save is answered, also where SIGTERM ends the server at once; what comes behind it waits."""
    port = free_port()
    folder.has_tools("echo", "slow")
    async with (
        developing(folder.path, "--upstream", f"http://127.0.0.1:{port}/mcp", PORT=str(port)) as dev,
        McpClient(await dev.url()) as client,
    ):
        await dev.line("up in")
        await client.initialize()
        telling, slow = saved(dev), asyncio.create_task(client.tool("slow"))
        await dev.line("serving")
        folder.has_tools("echo")
        assert (await slow).text.startswith("slow of")
        await telling
        assert (await client.tool("echo")).text.startswith("echo of")


async def test_a_save_while_a_server_is_stopped_first_cuts_no_call(folder: Folder) -> None:
    """An editor that saves several files, or a formatter behind it: the call that has begun before the first save is answered."""
    port = free_port()
    folder.has_tools("echo", "slow")
    waits = "Path('begun').touch()\n                while not Path('go').exists(): time.sleep(0.01)"
    text = folder.server.read_text(encoding="utf-8").replace("time.sleep(SLOW_S)", waits)
    folder.server.write_text(text, encoding="utf-8")
    async with (
        developing(folder.path, "--upstream", f"http://127.0.0.1:{port}/mcp", PORT=str(port)) as dev,
        McpClient(await dev.url()) as client,
    ):
        await dev.line("up in")
        await client.initialize()
        telling, slow = saved(dev), asyncio.create_task(client.tool("slow"))
        await eventually((folder.path / "begun").exists)
        for number in range(4):
            (folder.path / f"file{number}.py").write_text("", encoding="utf-8")
            await asyncio.sleep(0.15)  # nothing tells that one was seen; those that come at once are one
        (folder.path / "go").touch()
        assert (await slow).text.startswith("slow of")
        await telling


async def test_a_port_in_the_command_is_filled_in(folder: Folder) -> None:
    """``{port}`` in the command is the port that the server got."""
    async with developing(folder.path, command=(sys.executable, "server.py", "--at", "{port}")) as dev:
        assert re.fullmatch(r"  │ serving --at \d+", await dev.line("serving"))


async def test_a_server_says_what_matters_at_every_save(folder: Folder) -> None:
    """It has no banner where it can be told so, and its lines come as they are written; the developer's own word counts."""
    folder.does("import os; print(os.environ['FASTMCP_SHOW_SERVER_BANNER'], os.environ['PYTHONUNBUFFERED'])")
    async with developing(folder.path) as dev:
        await dev.line("│ false 1")
    async with developing(folder.path, FASTMCP_SHOW_SERVER_BANNER="true") as dev:
        await dev.line("│ true 1")


async def test_a_reloader_in_the_command_is_told(folder: Folder) -> None:
    """At once, since what it does to calls is seen at a broken save only."""
    async with developing(folder.path, command=(sys.executable, "server.py", "--reload")) as dev:
        await dev.line("--reload restarts the server by itself: leave it out")


async def test_a_servers_lines_fit_beside_what_stands_before_them(folder: Folder) -> None:
    """FastMCP's log and its tracebacks are drawn as wide as COLUMNS says, else for 80; without a terminal nobody says it."""
    folder.does("import os; print('columns', os.environ.get('COLUMNS'))")
    wide = ("sh", "-c", 'unset COLUMNS; stty cols 100; exec "$@"', "sh")
    async with developing(folder.path, at_terminal=True, shell=wide, NO_COLOR="1") as dev:
        await dev.line("columns 96$")
    none = ("env", "-u", "COLUMNS")
    async with developing(folder.path, shell=none) as dev:
        await dev.line("columns None$")


async def test_files_of_no_interest_restart_nothing(folder: Folder) -> None:
    """What git ignores, and what is no source, is the server's own business: a restart for it would never end."""
    (folder.path / ".gitignore").write_text("made_*.py\n", encoding="utf-8")
    async with developing(folder.path, "--watch", "*.txt", "--ignore", "notes.txt") as dev:
        await dev.line("up in")
        for name in ("data.db", "made_up.py", "notes.txt"):
            (folder.path / name).write_text("1", encoding="utf-8")
        telling = saved(dev)
        (folder.path / "prompt.txt").write_text("1", encoding="utf-8")
        assert "prompt.txt changed" in await telling


async def test_keys_do_what_they_say(folder: Folder) -> None:
    """At a terminal: one restarts, one shows how clients connect, one opens the status page, one ends; any other does nothing."""
    async with developing(folder.path, at_terminal=True, NO_COLOR="1") as dev:
        await dev.line("keys .*r restart · c how clients connect · o status page · q quit")
        url = await dev.url()
        await dev.line("up in")
        telling = saved(dev, "restart → up in")
        dev.press("xr")
        await telling
        dev.press("c")
        await dev.line(f"claude mcp add --transport http .* {url}")
        dev.press("o")
        await dev.line("there is no status page: --admin is off")
        dev.press("q")
        assert await dev.exit_status() == 0
        assert not any(line.startswith("x") for line in dev.lines)  # nothing is echoed


async def test_it_goes_on_in_the_background(folder: Folder) -> None:
    """Behind Ctrl-Z and `bg` what is typed is the shell's and stops nobody; behind `fg` keys do what they say again."""
    shell = (sys.executable, "-c", HAS_JOBS)
    async with (
        developing(folder.path, at_terminal=True, shell=shell, NO_COLOR="1") as dev,
        McpClient(await dev.url()) as client,
    ):
        await dev.line("up in")
        await client.initialize()
        dev.press("\x1a")
        await dev.line("shell: bg")
        dev.press("typed\n")
        await dev.line("typed")  # echoed, and waits to be read
        for _ in range(20):
            assert (await client.call("ping")).status == 200
        (folder.path / "fg").touch()
        await dev.line("shell: fg, read typed")
        telling = saved(dev, "restart → up in")
        dev.press("r")
        await telling
        dev.press("q")
        assert await dev.exit_status() == 0


# -- bad input --------------------------------------------------------------------------------------------------------


async def test_a_command_that_does_not_exist_is_told(folder: Folder) -> None:
    """In one line that names it; with ``--once`` the status is that of a shell."""
    async with developing(folder.path, "--once", command=("no-such-program",)) as dev:
        assert await dev.exit_status() == 127
        assert await dev.line(r"does not start \(exit status 127\): no-such-program: No such file or directory")
        assert not any("keys" in line for line in dev.lines)  # there is no terminal


async def test_once_gives_the_status_of_the_server(folder: Folder) -> None:
    """Where it ends by itself, and nothing has changed for it."""
    folder.server.write_text("raise SystemExit(5)", encoding="utf-8")
    async with developing(folder.path, "--once") as dev:
        assert await dev.exit_status() == 5


async def test_a_server_that_ends_is_told_and_waits_for_a_save(folder: Folder) -> None:
    """Its clients get its last words at once, and the next save brings it back with their sessions."""
    folder.does(WRITES_ITS_PID)
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await client.initialize()
        telling = saved(dev, "has ended")
        os.kill(pid_in(folder.path / "pid"), signal.SIGKILL)
        assert "exit status 137" in await telling
        assert (await client.tool("echo")).error["data"] == {"reason": "server_failed_to_start"}
        telling = saved(dev)
        folder.has_tools("echo")
        await telling
        assert (await client.tool("echo")).text.startswith("echo of")


async def test_a_server_that_goes_into_the_background_is_fetched_back(folder: Folder) -> None:
    """It leaves its group and its parent: it is ended all the same, and the developer is told to run it in the foreground."""
    folder.server.write_text(
        "import os, pathlib, time\n"
        "if os.fork():\n    os._exit(0)\n"
        "os.setsid()\npathlib.Path('pid').write_text(str(os.getpid()))\n"
        "os.close(1)\nos.close(2)\ntime.sleep(600)\n",
        encoding="utf-8",
    )
    async with developing(folder.path) as dev:
        await dev.line("does not start")
        if (folder.path / "pid").exists():
            await gone(pid_in(folder.path / "pid"))


async def test_a_flood_of_output_is_left_out_and_blocks_nobody(folder: Folder) -> None:
    """The server gets on with its work; of its lines a part is shown, and the rest is counted."""
    folder.does("for n in range(100_000): print('line', n)")
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await dev.line("up in")
        await client.initialize()
        assert (await client.tool("echo")).text.startswith("echo of")
        assert sum("  │ line" in line for line in dev.lines) < 50_000


async def test_a_thousand_saves_are_one(folder: Folder) -> None:
    """A branch that is checked out restarts the server a few times at most, and the last one counts."""
    async with developing(folder.path) as dev:
        await dev.line("up in")
        telling = saved(dev, r"more changed → up in")
        for number in range(1_000):
            (folder.path / f"module_{number}.py").write_text("", encoding="utf-8")
        await telling
        assert sum("→ up in" in line for line in dev.lines) < 20


@pytest.mark.long
async def test_a_server_that_never_listens_is_told(folder: Folder) -> None:
    """With where it listens instead, if anywhere; clients hear it at once from then on, and the next save tries again."""
    folder.server.write_text("import threading; threading.Event().wait()", encoding="utf-8")
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await dev.line(r"no answer to initialize on port \d+ for 30 s; it listens nowhere \(still waiting\)")
        refused = await client.call("initialize", {}, id=1, bare=True)
        assert (refused.status, refused.error["data"]) == (503, {"reason": "server_failed_to_start"})
        telling = saved(dev)
        folder.has_tools("echo")
        await telling
        assert (await client.initialize()).status == 200


@pytest.mark.long
async def test_a_save_is_seen_among_fifty_thousand_files(folder: Folder) -> None:
    """Folders are watched and not files, so that a large project starts and restarts like a small one."""
    for number in range(500):
        part = folder.path / f"part_{number}"
        part.mkdir()
        for module in range(100):
            (part / f"m{module}.py").touch()
    async with developing(folder.path) as dev:
        await dev.line("up in")
        for name in (folder.server, folder.path / "part_499" / "m99.py"):
            telling = saved(dev, f"{name.relative_to(folder.path)} changed → up in")
            name.write_text(name.read_text(encoding="utf-8") + "\n", encoding="utf-8")
            await telling


async def test_a_server_that_writes_a_source_as_it_starts_comes_up(folder: Folder) -> None:
    """Its own writing gives no start up for ever, and the line says how to leave that file out; the developer's saves count."""
    folder.does("import pathlib, time; pathlib.Path('made.py').write_text(f'STAMP = {time.time()}')")
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await dev.line(r"made\.py changes while the server starts.*--ignore made\.py")
        await dev.line("up in")
        await client.initialize()
        telling = saved(dev, r"tools: \+add\(text\)")
        folder.has_tools("echo", "add")
        await telling


async def test_a_clock_that_jumps_changes_nothing(folder: Folder) -> None:
    """A save from last year, or from next year, is a save: what counts is that the file changed."""
    async with developing(folder.path) as dev:
        await dev.line("up in")
        for moment in (86_400.0, 4_000_000_000.0):
            telling = saved(dev)
            draft = folder.path / "draft"
            draft.write_text(folder.server.read_text(encoding="utf-8") + "\n", encoding="utf-8")
            os.utime(draft, (moment, moment))
            draft.replace(folder.server)
            assert "server.py changed" in await telling


def test_a_command_is_needed(capfd: pytest.CaptureFixture[str]) -> None:
    """Without one there is a line that says how it is given."""
    from mcp_sidecar.cli import main

    assert main(["dev"]) == 2
    assert "mcp-sidecar dev -- python server.py" in capfd.readouterr().err


# -- nothing is left behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "habit"),
    [
        *((number, "") for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)),
        *((number, IGNORES_SIGTERM) for number in (signal.SIGTERM, signal.SIGKILL)),
        *((number, GOES_ITS_OWN_WAY) for number in (signal.SIGTERM, signal.SIGKILL)),
    ],
)
async def test_no_process_is_left(folder: Folder, number: signal.Signals, habit: str) -> None:
    """However the sidecar ends, the server and its children end, too, also where they ignore SIGTERM or left its group."""
    folder.does(f"{habit}\n{HAS_A_CHILD}\n{WRITES_ITS_PID}")
    async with developing(folder.path) as dev:
        await dev.line("up in")
        pids = pid_in(folder.path / "pid"), pid_in(folder.path / "child")
        assert all(map(is_running, pids))
        dev.process.send_signal(number)
        assert await dev.exit_status() == (-9 if number is signal.SIGKILL else 0)
        await gone(*pids)


@pytest.mark.parametrize("habit", [IGNORES_SIGTERM, GOES_ITS_OWN_WAY], ids=["stubborn", "of its own group"])
async def test_a_former_server_ends_with_its_children(folder: Folder, habit: str) -> None:
    """What a save has replaced is gone once its calls have ended."""
    folder.does(f"{habit}\n{HAS_A_CHILD}\n{WRITES_ITS_PID}")
    async with developing(folder.path) as dev:
        await dev.line("up in")
        pids = pid_in(folder.path / "pid"), pid_in(folder.path / "child")
        folder.has_tools("echo")
        await dev.line("→ up in")
        await gone(*pids)
        assert dev.process.returncode is None


async def test_a_broken_save_ends_nothing_of_the_last_good_server(folder: Folder) -> None:
    """What it has put into the background in its own group is still its own."""
    folder.does(
        "import pathlib, subprocess\n"
        "subprocess.run('sleep 600 & echo $! > child', shell=True)\n"
        "import os; pathlib.Path('pid').write_text(str(os.getpid()))"
    )
    async with developing(folder.path) as dev, McpClient(await dev.url()) as client:
        await dev.line("up in")
        await client.initialize()
        child, telling = pid_in(folder.path / "child"), saved(dev, "the last good server")
        folder.is_broken()
        await telling
        telling = saved(dev, "the last good server")
        folder.server.write_text("broken again(:", encoding="utf-8")
        await telling
        assert is_running(child)
    await gone(child)


async def test_the_developers_browser_goes_on(folder: Folder) -> None:
    """Neither a save that does not start nor the end takes what the key `o` has opened for a server's child."""
    browser, pid_file = folder.path / "browser", folder.path / "browser.pid"
    browser.write_text(f"#!/bin/sh\necho $$ > {pid_file}\nexec sleep 600\n", encoding="utf-8")
    browser.chmod(0o755)
    async with developing(folder.path, at_terminal=True, admin="127.0.0.1:0", BROWSER=f"{browser} %s &") as dev:
        await dev.line("up in")
        dev.press("o")
        await eventually(lambda: pid_file.exists() and pid_file.read_text(encoding="utf-8").strip() != "")
        pid = pid_in(pid_file)
        try:
            telling = saved(dev, "the last good server")
            folder.is_broken()
            await telling
            telling = saved(dev)
            folder.has_tools("echo")
            await telling
            dev.press("q")
            assert await dev.exit_status() == 0
            assert is_running(pid) and not any("background" in line for line in dev.lines)
        finally:
            os.kill(pid, signal.SIGKILL)


async def test_what_a_former_server_has_left_behind_ends_with_it(folder: Folder) -> None:
    """Not only at the end: a helper without a parent is told by its environment, and what the next server has left is not meant."""
    leaves_a_helper = (
        "import subprocess, sys\n"
        "helper = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "code = f'import subprocess; print(subprocess.Popen({helper}, start_new_session=True, stdout=2).pid)'\n"
        "with open(NAME, 'w') as file:\n    subprocess.run([sys.executable, '-c', code], stdout=file)"
    )
    folder.does(leaves_a_helper.replace("NAME", "'first'"))
    async with developing(folder.path) as dev:
        await dev.line("up in")
        first = pid_in(folder.path / "first")
        assert is_running(first)
        telling = saved(dev)
        folder.does(leaves_a_helper.replace("NAME", "'second'"))
        await telling
        second = pid_in(folder.path / "second")
        await gone(first)
        telling = saved(dev, "the last good server")
        folder.is_broken()
        await telling
        telling = saved(dev, "the last good server")
        folder.server.write_text("broken again(:", encoding="utf-8")
        await telling
        assert is_running(second)
    await gone(second)


async def test_a_start_that_is_cancelled_leaves_nothing_in_care() -> None:
    """At whatever step: a group that is gone may be somebody else's by the time at which the guard ends what is left."""
    for steps in range(8):
        async with Guard() as guard:
            starting = asyncio.create_task(start(["sleep", "600"], os.environ, guard, print))
            for _ in range(steps):
                await asyncio.sleep(0)
            starting.cancel()
            (server,) = await asyncio.gather(starting, return_exceptions=True)
            if isinstance(server, Server):
                await server.end()
            assert not RUNNING


async def test_a_save_during_a_start_begins_anew(folder: Folder) -> None:
    """The start that is out of date is given up, and its process with it."""
    folder.does(f"{WRITES_ITS_PID}; import threading; threading.Event().wait()")
    async with developing(folder.path) as dev:
        await eventually(lambda: (folder.path / "pid").exists() and (folder.path / "pid").read_text(encoding="utf-8"))
        pid = pid_in(folder.path / "pid")
        folder.has_tools("echo")
        await dev.line("→ up in")
        await gone(pid)
