"""Commands that restart the server by themselves: under `dev` a broken save would take the last good server, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

OPTIONS = frozenset({"--reload", "--watch", "--watch-path", "--hot"})
"""uvicorn's, gunicorn's and FastMCP's; node's, tsx's, bun's and deno's."""
PROGRAMS = frozenset(
    {"nodemon", "node-dev", "ts-node-dev", "tsnd", "watchexec", "watchfiles", "watchmedo", "air", "gow", "reflex"}
)
VERBS = frozenset({("tsx", "watch"), ("cargo", "watch"), ("dotnet", "watch")})


def reloader_in(command: Sequence[str]) -> str | None:
    """The words of a command that make it a reloader; ``None`` where there are none."""
    names = [PurePath(word).name for word in command]
    for word, name, following in zip(command, names, [*names[1:], ""], strict=True):
        if name in PROGRAMS:
            return name
        if (name, following) in VERBS:
            return f"{name} {following}"
        if word.partition("=")[0] in OPTIONS:
            return word.partition("=")[0]
    return None
