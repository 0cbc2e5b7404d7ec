"""The parts of `dev` that need no process: what counts as a change, what is shown of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from watchfiles import Change, awatch

from mcp_sidecar.commands.dev import patient, ports
from mcp_sidecar.commands.dev.calls import LEFT, answer_in, client_of, problem_in, title_of
from mcp_sidecar.commands.dev.child import MAX_LINE_BYTES, MAX_LINES_AT_ONCE, Lines
from mcp_sidecar.commands.dev.clients import snippets
from mcp_sidecar.commands.dev.files import changes, told, watched
from mcp_sidecar.commands.dev.lists import counted, difference, items_of
from mcp_sidecar.commands.dev.ports import filled_in
from mcp_sidecar.commands.dev.reloaders import reloader_in
from mcp_sidecar.commands.dev.screen import MAX_LINES_PER_SECOND, Flood
from mcp_sidecar.commands.dev.supervisor import LONGEST_START_S, cause_in
from mcp_sidecar.settings import load
from mcp_sidecar.wire.jsonrpc import parse
from tests.support.waiting import HANG_S

NOBODY = 65534

# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("server.py", True),
        ("deep/in/module.ts", True),
        ("pyproject.toml", True),
        (".env", True),
        ("data.json", False),
        ("app.log", False),
        ("wanted.json5", True),
        ("generated.py", False),
        ("build/module.py", False),
        ("deep/secret.py", False),
        ("deep/kept.py", True),
        ("passed_over.py", False),
        ("node_modules/x/index.js", False),
        (".venv/lib/x.py", False),
        (".git/config.py", False),
        ("named.json", True),
    ],
)
def test_what_counts_as_a_change(tmp_path: Path, path: str, counts: bool) -> None:
    """Sources, and what was named; neither what git ignores, in whatever folder it says so, nor what tools write."""
    (tmp_path / "deep").mkdir()
    (tmp_path / ".gitignore").write_text("generated.py\n/build/\n", encoding="utf-8")
    (tmp_path / "deep" / ".gitignore").write_text("secret.py\n", encoding="utf-8")
    (tmp_path / "named.json").write_text("", encoding="utf-8")
    _, wanted = watched(tmp_path, ["*.json5", "named.json"], ["passed_over.py"])
    assert wanted(Change.modified, str(tmp_path / path)) is counts


def test_a_changed_gitignore_counts_at_once(tmp_path: Path) -> None:
    """It restarts nothing itself."""
    _, wanted = watched(tmp_path, [], [])
    assert wanted(Change.modified, str(tmp_path / "a.py"))
    (tmp_path / ".gitignore").write_text("a.py", encoding="utf-8")
    assert not wanted(Change.modified, str(tmp_path / ".gitignore"))
    assert not wanted(Change.modified, str(tmp_path / "a.py"))


def test_a_path_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    """A pattern may match nothing yet, a path may not."""
    watched(tmp_path, ["*.none"], [])
    with pytest.raises(FileNotFoundError):
        watched(tmp_path, ["none.py"], [])


@contextlib.contextmanager
def as_an_ordinary_user(folder: Path) -> Iterator[None]:
    """Permissions count for the block, also where the tests are run by root."""
    if os.geteuid() != 0:
        yield
        return
    for place in (folder, *folder.rglob("*")):
        os.chown(place, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere folders are not watched one by one")
async def test_a_folder_that_may_not_be_read_hides_no_other() -> None:
    """Such as a database's, beside the sources or among them; and folders that come later are watched, too."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folder in ("a", "b", "c", "d"):
            (root / folder / "inner").mkdir(parents=True)
            (root / folder / "data").mkdir(mode=0)
        paths, wanted = watched(root, (), ())
        seen: set[Path] = set()

        async def watch() -> None:
            async for batch in changes(paths, wanted):
                seen.update(batch)

        async def save(place: Path) -> None:
            """Again and again until it is seen: nobody tells from when on it would be."""
            async with asyncio.timeout(HANG_S):
                while place not in seen and not watching.done():
                    place.write_text(place.name + str(len(seen)), encoding="utf-8")  # noqa: ASYNC240 - small
                    await asyncio.sleep(0.05)

        async for _ in awatch(root, yield_on_timeout=True, rust_timeout=1):
            break  # so that all is loaded that an ordinary user may not load
        with as_an_ordinary_user(root):
            watching = asyncio.create_task(watch())
            try:
                for folder in ("", "a", "b/inner", "c/inner", "d"):
                    await save(root / folder / "one.py")
                (root / "b" / "new").mkdir()
                await save(root / "b" / "new" / "one.py")
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching


def test_changes_are_told_in_a_few_words(tmp_path: Path) -> None:
    """By the path as the developer knows it."""
    assert told({tmp_path / "a" / "b.py"}, tmp_path) == "a/b.py"
    assert told({tmp_path / "b.py", tmp_path / "a.py", tmp_path / "c.py"}, tmp_path) == "a.py and 2 more"


# -- lists ------------------------------------------------------------------------------------------------------------


def tool(name: str, *parameters: str, **more: Any) -> dict[str, Any]:
    """One of a list of tools."""
    return {"name": name, "inputSchema": {"properties": {key: {} for key in parameters}}, **more}


def tools(*items: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was seen of a server."""
    return {"tools": items_of("tools", {"tools": list(items)})}


def test_an_edit_is_told_by_what_it_did() -> None:
    """What is new with its parameters, what is another now, what is gone; nothing where nothing changed."""
    before = tools(tool("search", "q"), tool("old"), tool("same"))
    after = tools(tool("add", "x", "y"), tool("search", "query"), tool("same"))
    assert difference(before, after) == "tools: +add(x, y) ~search −old"
    assert difference(before, before) == ""
    assert difference({}, after) == ""


def test_a_large_edit_is_cut_short() -> None:
    """A line stays one."""
    assert difference(tools(), tools(*(tool(f"t{n}") for n in range(9)))).endswith("+t5() and 3 more")


def test_what_there_is_is_counted() -> None:
    """In words that are right for one."""
    lists = {**tools(tool("a"), tool("b")), "prompts": {"p": {}}, "resources": {}}
    assert counted(lists) == "2 tools, 1 prompt"


def test_a_list_that_is_none_has_no_items() -> None:
    """A server may say anything."""
    assert items_of("tools", {"tools": "x"}) == items_of("tools", {"tools": [1, {}]}) == {}


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        pytest.param(200, b'{"id":1,"result":{"content":[]}}', "", id="result"),
        pytest.param(200, b'{"id":1,"error":{"code":-1,"message":"no\\nway"}}', "no way", id="error"),
        pytest.param(
            200,
            b'{"id":1,"result":{"isError":true,"content":[{"type":"text","text":"boom"}]}}',
            "tool error: boom",
            id="tool",
        ),
        pytest.param(200, b'event: message\ndata: {"id":1,"error":{"message":"late"}}\n\n', "late", id="stream"),
        pytest.param(200, b'data: {"id":2,"error":{"message":"x"}}\n\n', "", id="another's"),
        pytest.param(404, b"", "HTTP 404", id="status"),
        pytest.param(200, b"{", "", id="cut"),
    ],
)
def test_why_a_call_failed(status: int, body: bytes, problem: str) -> None:
    """As its client was told; where nobody can tell it counts as a success."""
    assert problem_in(status, answer_in(body, 1)) == problem


def test_a_client_that_leaves_with_its_answer_has_got_it() -> None:
    """The Python SDK leaves a stream as soon as its answer is there."""
    stream = b'data: {"id":1,"result":{}}\n\n'
    assert problem_in(200, answer_in(stream, 1), is_whole=False) == ""
    assert problem_in(200, answer_in(stream, 2), is_whole=False) == LEFT


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ({"method": "tools/call", "params": {"name": "add"}}, "add"),
        ({"method": "resources/read", "params": {"uri": "file:///a"}}, "file:///a"),
        ({"method": "tools/call", "params": {"name": 1}}, "tools/call"),
        ({"method": "tools/list"}, None),
        ({"method": "ping"}, None),
    ],
)
def test_what_a_call_is_shown_as(message: dict[str, Any], title: str | None) -> None:
    """By what was asked for; lists and pings are no news."""
    assert title_of(parse(json.dumps({"jsonrpc": "2.0", "id": 1, **message}).encode())) == title


@pytest.mark.parametrize(
    ("info", "shown"),
    [({"name": "inspector", "version": "1.2"}, "inspector 1.2"), ({"name": 1}, "a client"), ("x", "a client")],
)
def test_what_a_client_calls_itself(info: object, shown: str) -> None:
    """Its own words, if it has any."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"clientInfo": info}}
    assert client_of(parse(json.dumps(message).encode())) == shown


# -- output -----------------------------------------------------------------------------------------------------------


def test_output_is_cut_into_lines_however_it_comes() -> None:
    """What has no end yet waits for it."""
    lines = Lines()
    assert [*lines.feed(b"a\nb"), *lines.feed(b"c\r\n\xff"), *lines.rest()] == ["a", "bc", "\ufffd"]


def test_a_line_without_end_is_cut_off_once() -> None:
    """A server that writes no line ends fills no memory."""
    lines = Lines()
    fed = [line for _ in range(9) for line in lines.feed(b"x" * MAX_LINE_BYTES)]
    assert [line[-2:] for line in fed] == [" …"] and lines.feed(b"\nnext\n") == ["next"]


def test_of_a_flood_only_so_much_is_looked_at() -> None:
    """The first lines and the last ones of what comes at once; the others are counted."""
    lines = Lines()
    whole = lines.feed(b"".join(b"%d\n" % number for number in range(10_000)))
    assert whole == [str(number) for number in (*range(MAX_LINES_AT_ONCE), *range(10_000 - MAX_LINES_AT_ONCE, 10_000))]
    assert lines.left_out == 10_000 - len(whole)
    assert lines.feed(b"one\ntwo") == ["one"]


def test_a_flood_is_counted() -> None:
    """So many lines a second pass; the others are told with the next one that does."""
    now = 0.0
    flood = Flood(lambda: now)
    passed = [flood.lets_pass()[0] for _ in range(MAX_LINES_PER_SECOND + 5)]
    assert passed.count(True) == MAX_LINES_PER_SECOND
    now = 1.5
    assert flood.lets_pass() == (True, 5)


@pytest.mark.parametrize(
    ("command", "reloader"),
    [
        ("python server.py", None),
        ("uvicorn app:app --reload", "--reload"),
        ("python -m uvicorn app:app --reload-dir src", None),
        ("node --watch=src server.js", "--watch"),
        ("npx nodemon server.js", "nodemon"),
        ("/opt/bin/watchexec -- python server.py", "watchexec"),
        ("npx tsx watch server.ts", "tsx watch"),
        ("npx tsx watch.ts", None),
        ("cargo run", None),
    ],
)
def test_a_command_that_reloads_is_told_by_its_words(command: str, reloader: str | None) -> None:
    """Two that restart one server get in each other's way; what only sounds like it is no reloader."""
    assert reloader_in(command.split()) == reloader


def test_the_port_is_filled_in() -> None:
    """Wherever the command has a place for it."""
    assert filled_in(["run", "--bind=0:{port}", "{port}"], 81) == ["run", "--bind=0:81", "81"]


def test_calls_wait_out_every_start() -> None:
    """They end with a server's own words rather than with the sidecar's; who sets how long they wait is heeded."""
    usual, shorter = (
        patient(load({"upstream": ["http://127.0.0.1:1"]}, environment).settings).policy()
        for environment in ({}, {"MCP_SIDECAR_HEALING__HOLD_TIMEOUT": "3"})
    )
    assert usual.hold_timeout_s == usual.connect_hold_timeout_s > LONGEST_START_S == 40
    assert (shorter.hold_timeout_s, shorter.connect_hold_timeout_s) == (3, usual.hold_timeout_s)


def test_snippets_name_the_url() -> None:
    """For every client; what is JSON is JSON."""
    text = snippets("http://127.0.0.1:8080/mcp", "my-server")
    assert text.count("http://127.0.0.1:8080/mcp") == 6
    for line in text.splitlines():
        start, end = line.find("{"), line.rfind("}")
        if start >= 0:
            json.loads(line[start : end + 1])


@pytest.mark.parametrize(
    ("last_words", "cause"),
    [
        ("Traceback:\n  x\nSyntaxError: invalid syntax\n", "SyntaxError: invalid syntax"),
        ("ERROR: address already in use\nINFO: shutdown complete", "ERROR: address already in use"),
        ("bye\n\n", "bye"),
        ("", ""),
    ],
)
def test_the_line_that_says_why(last_words: str, cause: str) -> None:
    """A server may say more behind its error; where nothing speaks of one, its last line is all there is."""
    assert cause_in(last_words) == cause


def test_a_port_for_a_server_is_below_those_of_outgoing_connections() -> None:
    """A browser opens connections all the time, and one of them could have it before the server does."""
    assert all(20_000 <= ports.free_port() < 30_000 for _ in range(20))
