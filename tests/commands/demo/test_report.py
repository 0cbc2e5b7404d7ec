"""What the demo prints and when it claims success."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

pytest.importorskip("mcp", reason="the extra `demo` is not installed")

from mcp_sidecar.commands.demo.client import Call
from mcp_sidecar.commands.demo.report import Style, introduction, own_server, result
from mcp_sidecar.commands.demo.story import Half, Story

PLAIN = Style(coloured=False)


def ok(item: str, text: str, seconds: float = 0.005) -> Call:
    """A call that succeeded."""
    return Call(item=item, succeeded=True, text=text, seconds=seconds)


def failed(item: str, text: str = "Session terminated") -> Call:
    """A call that failed."""
    return Call(item=item, succeeded=False, text=text, seconds=0.005)


STUCK = Half(before=(ok("apples", "cart: apples"),), after=(failed("pears"), failed("plums")))
WELL = Half(
    before=(ok("apples", "cart: apples"),),
    after=(ok("pears", "cart: pears", seconds=0.021), ok("plums", "cart: pears, plums")),
)
NOT_RESTARTED = Half(before=(ok("apples", "cart: apples"),), after=(ok("pears", "cart: apples, pears"),))
LATE = Half(before=(ok("apples", "cart: apples"),), after=(ok("pears", "cart: pears"), failed("plums")))
NEVER = Half(before=(failed("apples"),), after=(failed("pears"), failed("plums")))
EMPTY = Half(before=(), after=())


@pytest.mark.parametrize(
    ("through", "healed"),
    [
        pytest.param(WELL, True, id="every call"),
        pytest.param(STUCK, False, id="stuck"),
        pytest.param(LATE, False, id="one call failed"),
        pytest.param(NOT_RESTARTED, False, id="the old process answered"),
        pytest.param(NEVER, False, id="never worked"),
        pytest.param(EMPTY, False, id="nothing was called"),
    ],
)
def test_healed_is_claimed_only_with_proof(through: Half, healed: bool) -> None:
    """Every call has to succeed, and the cart has to show that another process answered."""
    assert Story(direct=STUCK, through=through, heal_s=None).healed is healed


def test_the_halves_stand_side_by_side() -> None:
    """A row holds the same call without and with the sidecar, and the columns are aligned."""
    lines = result(Story(direct=STUCK, through=WELL, heal_s=0.012), PLAIN).splitlines()
    (header,) = (line for line in lines if "through mcp-sidecar" in line)
    (row,) = (line for line in lines if line.startswith("add_to_cart pears"))
    assert row.index("ERROR") == header.index("straight")
    assert row.index("ok ") == header.index("through")


def test_the_times_are_told() -> None:
    """The client's time for the first call after the restart, an ordinary one, and the sidecar's own figure."""
    text = result(Story(direct=STUCK, through=WELL, heal_s=0.012), PLAIN)
    assert "after the restart took 21 ms, an ordinary one 5 ms" in text
    assert "the heal itself took 12 ms" in text


@pytest.mark.parametrize(
    ("story", "said"),
    [
        pytest.param(Story(direct=STUCK, through=STUCK, heal_s=None), "NOT healed", id="failure"),
        pytest.param(Story(direct=STUCK, through=WELL, heal_s=None), "logged no heal", id="no figure"),
        pytest.param(Story(direct=WELL, through=WELL, heal_s=0.1), "got through by itself", id="direct worked"),
        pytest.param(Story(direct=EMPTY, through=STUCK, heal_s=None), "ERROR Session terminated", id="uneven halves"),
    ],
)
def test_what_did_not_go_as_expected_is_said(story: Story, said: str) -> None:
    """The text follows the result and not the script."""
    assert said in result(story, PLAIN)


def test_a_long_error_does_not_break_the_table() -> None:
    """An error's text takes one line of its column."""
    half = Half(before=(), after=(failed("pears", "line one\nline two " + "x" * 200),))
    rows = [
        line for line in result(Story(direct=half, through=half, heal_s=None), PLAIN).splitlines() if "line one" in line
    ]
    assert len(rows) == 1
    assert len(rows[0]) <= 100


@pytest.mark.parametrize(
    ("program", "python", "line"),
    [
        pytest.param("/on/path/mcp-sidecar", "/python", "mcp-sidecar", id="a program on PATH"),
        pytest.param("/else/mcp-sidecar", "/python", "/else/mcp-sidecar", id="a program elsewhere"),
        pytest.param(
            "/src/__main__.py", "{here}/.venvs/demo/bin/python", ".venvs/demo/bin/python -m mcp_sidecar", id="make"
        ),
        pytest.param(
            "/src/__main__.py", "/usr/bin/python3", "/usr/bin/python3 -m mcp_sidecar", id="a Python elsewhere"
        ),
    ],
)
def test_the_last_line_can_be_typed(program: str, python: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo ends with what starts the sidecar from where the reader is, the way the demo was started."""
    monkeypatch.setenv("PATH", os.pathsep.join(("/bin", "/on/path")))
    monkeypatch.setattr("sys.argv", [program])
    monkeypatch.setattr("sys.executable", python.format(here=Path.cwd()))
    assert own_server(PLAIN).splitlines()[-1].strip() == f"{line} --upstream http://127.0.0.1:9000/mcp"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Claim to be one."""
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "coloured"),
    [
        pytest.param(Terminal(), {}, True, id="terminal"),
        pytest.param(io.StringIO(), {}, False, id="pipe"),
        pytest.param(Terminal(), {"NO_COLOR": "1"}, False, id="NO_COLOR"),
        pytest.param(Terminal(), {"NO_COLOR": ""}, True, id="empty NO_COLOR means nothing"),
        pytest.param(Terminal(), {"TERM": "dumb"}, False, id="dumb terminal"),
    ],
)
def test_colours_only_where_they_are_wanted(
    stream: io.StringIO, environment: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal gets colours unless the user said no."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Style.of(stream).coloured is coloured
    assert ("\x1b[" in introduction(Style.of(stream))) is coloured
