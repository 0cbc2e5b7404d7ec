"""What the demo prints: plain text, the two halves side by side.

The rule of this file: it only formats. Colours are for terminals, and never where NO_COLOR is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final, TextIO

from mcp_sidecar.commands.demo.client import Call
from mcp_sidecar.commands.demo.story import Story

LABEL_WIDTH: Final = 20
CELL_WIDTH: Final = 38
MS_PER_S: Final = 1000
SHOWN_LOG_LINES: Final = 10
TABLE_WIDTH: Final = LABEL_WIDTH + 2 * CELL_WIDTH


@dataclass(frozen=True, slots=True)
class Style:
    """Whether to colour. An escape sequence is put around text that already has its final width."""

    coloured: bool

    @classmethod
    def of(cls, stream: TextIO) -> Style:
        """Colour for a terminal that can, unless the user said no (https://no-color.org)."""
        return cls(stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")

    def good(self, text: str) -> str:
        """Green."""
        return self._painted("32", text)

    def bad(self, text: str) -> str:
        """Red."""
        return self._painted("31", text)

    def heading(self, text: str) -> str:
        """Bold."""
        return self._painted("1", text)

    def quiet(self, text: str) -> str:
        """Dim."""
        return self._painted("2", text)

    def _painted(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.coloured else text


def introduction(style: Style, *, restarts_sidecar: bool = False) -> str:
    """Say what is about to happen."""
    who = "The server, and with it the sidecar, is" if restarts_sidecar else "The server is"
    return "\n".join(
        (
            style.heading("mcp-sidecar demo"),
            "A small MCP server with a cart in memory and a client, both on the official Python SDK.",
            f"{who} killed (SIGKILL) and started again on its port while the client is connected.",
            "",
        )
    )


def progress(step: str, style: Style) -> str:
    """One line while the demo runs."""
    return style.quiet(step)


def result(story: Story, style: Style) -> str:
    """The table and what it means."""
    return "\n".join(("", *_table(story, style), "", *_meaning(story, style)))


def _table(story: Story, style: Style) -> Iterator[str]:
    yield style.heading(_row("", "straight to the server", "through mcp-sidecar"))
    for direct, through in zip_longest(story.direct.before, story.through.before):
        yield _calls(direct, through, style)
    who = "server and sidecar" if story.restarted_sidecar else "server"
    yield style.quiet(f" {who} killed and started again ".center(TABLE_WIDTH, "-"))
    for direct, through in zip_longest(story.direct.after, story.through.after):
        yield _calls(direct, through, style)


def _row(label: str, left: str, right: str) -> str:
    return f"{label:<{LABEL_WIDTH}}{left:<{CELL_WIDTH}}{right}".rstrip()


def _calls(direct: Call | None, through: Call | None, style: Style) -> str:
    item = next(call.item for call in (direct, through) if call is not None)
    cells = "".join(_cell(call, style) for call in (direct, through))
    return f"{f'add_to_cart {item}':<{LABEL_WIDTH}}{cells}".rstrip()


def _cell(call: Call | None, style: Style) -> str:
    if call is None:
        return " " * CELL_WIDTH
    text = f"{'ok   ' if call.succeeded else 'ERROR'} {_shortened(call.text, CELL_WIDTH - 8)}"
    paint = style.good if call.succeeded else style.bad
    return paint(text) + " " * (CELL_WIDTH - len(text))


def _shortened(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _meaning(story: Story, style: Style) -> Iterator[str]:
    yield f"Without: {_direct_meaning(story)}"
    if not story.healed:
        yield style.bad("With:    NOT healed. The calls through the sidecar should all have succeeded.")
        yield "         The end of the sidecar's log:"
        yield from (f"    {line}" for line in story.log[-SHOWN_LOG_LINES:])
        return
    ordinary, healed = story.through.before[-1], story.through.after[0]
    yield style.good("With:    healed. The client noticed nothing and kept its session.")
    yield f"         The first call after the restart took {_ms(healed.seconds)}, an ordinary one {_ms(ordinary.seconds)};"
    yield f"         {_heal_time(story.heal_s)}."
    yield "         The new process has an empty cart: the session is restored, the server's memory is not."


def own_server(style: Style) -> str:
    """Say how to go on from here: the line that puts the sidecar in front of the reader's own server."""
    line = f"{_invocation(Path(sys.argv[0]), Path(sys.executable))} --upstream http://127.0.0.1:9000/mcp"
    return "\n".join(("", "In front of a server of your own, here one on port 9000:", f"    {style.heading(line)}"))


def _invocation(program: Path, python: Path) -> str:
    """Return what starts the sidecar where the demo was started so, as short as it can be typed in this folder."""
    if program.name != "__main__.py":
        return program.name if str(program.parent) in os.get_exec_path() else str(program)
    here = Path.cwd()
    return f"{python.relative_to(here) if python.is_relative_to(here) else python} -m mcp_sidecar"


def _direct_meaning(story: Story) -> str:
    if any(call.succeeded for call in story.direct.after):
        return "this client got through by itself."
    return "the server no longer knows the session, and every call of this client fails from now on."


def _heal_time(heal_s: float | None) -> str:
    return "the sidecar logged no heal" if heal_s is None else f"the heal itself took {_ms(heal_s)} of it"


def _ms(seconds: float) -> str:
    return f"{seconds * MS_PER_S:.0f} ms"
