"""The command line: which command, its arguments, its exit status. What a command does stands elsewhere.

Exit status 0: done; 1: could not run; 2: a mistake in the arguments or settings, told in one line per mistake on stderr. A
command may have more. Nothing of the proxy is loaded before a command needs it: `--version` and completions are quick.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from mcp_sidecar import __version__
from mcp_sidecar.aside import made_aside
from mcp_sidecar.ops import standard_streams

if TYPE_CHECKING:
    from mcp_sidecar.config import SidecarConfig
    from mcp_sidecar.settings import Loaded

PROGRAM = "mcp-sidecar"
SERVE, DEMO, CHECK_CONFIG, NEW_KEY = "serve", "demo", "check-config", "new-key"
COULD_NOT_RUN, MISTAKE, INTERRUPTED = 1, 2, 130
SHELLS = ("bash", "zsh", "fish")

# Option, what stands for its value, help. The values themselves are read by the settings, so that every mistake is told.
SETTINGS = (
    ("upstream", "URL", "the MCP server's URL, as clients use it today; the URL by itself means the same"),
    ("listen", "HOST:PORT", "where clients connect (default 127.0.0.1:8080; 8080 is on loopback, port 0 any free one)"),
    ("admin", "HOST:PORT|off", "probes, metrics and the list of sessions (default 127.0.0.1:9464)"),
    ("mode", "MODE", "heal (default), rewrite: only answer with the right 404, or observe: only count"),
    ("store", "URL", "where sessions are remembered: auto (default), memory:, sqlite:PATH, redis://HOST, sealed:"),
    ("config", "FILE", "TOML file with any of the settings"),
    ("log-format", "FORMAT", "console or json (default: console on a terminal, else json)"),
    ("log-level", "LEVEL", "debug, info (default), warning or error"),
)
_SETTINGS_EPILOG = """\
Every option is also a variable, such as MCP_SIDECAR_UPSTREAM;
config.example.toml lists all settings."""
_DEV_EPILOG = f"""\
{PROGRAM} dev -- python server.py

The server gets a free port in PORT (FASTMCP_PORT, UVICORN_PORT), and in place
of {{port}} in its command. On every save a new one is started beside it and
takes its place when it answers; a server with a port of its own is found, and
is stopped before the next one starts."""
_PROBE_EPILOG = """\
It calls no tool. Exit status 0: healable; 3: not, or not to be told;
4: no MCP server."""
_EPILOG = f"""\
`{PROGRAM} http://127.0.0.1:9000/mcp` is all that is needed to stand
in front of a server. `{PROGRAM} COMMAND --help` tells the options of a
command; without a command it is `{SERVE}`."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Tell a mistake in the one-line form that mistakes in settings have."""
        self.exit(MISTAKE, f"{message} (see {self.prog} --help)\n")


@dataclass(frozen=True, slots=True)
class Command:
    """One word of the command line. ``arguments`` adds what it takes to its parser, ``run`` gives the exit status."""

    name: str
    summary: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    epilog: str = ""


def add_settings(parser: ArgumentParser, names: Iterable[str] | None = None) -> None:
    """The options that are settings; each collects all its values: two different ones are told, not silently dropped."""
    for name, value, meaning in SETTINGS:
        if names is None or name in names:
            parser.add_argument(f"--{name}", metavar=value, help=meaning, action="append", default=[])


def given_settings(arguments: Namespace) -> dict[str, list[str]]:
    """What ``settings.load`` reads: every value of every option, and the URL by itself."""
    given = {name: list(getattr(arguments, name.replace("-", "_"), ())) for name, _, _ in SETTINGS}
    given["upstream"] += getattr(arguments, "url", [])
    return given


# -- from words to a command ------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (by default the process's) and return the exit status."""
    standard_streams.repair()
    try:
        return _run(sys.argv[1:] if argv is None else list(argv), is_whole_process=argv is None)
    except SystemExit as leaving:  # argparse leaves by itself after --help, --version and its own mistakes
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        standard_streams.flush()


def _run(words: list[str], *, is_whole_process: bool) -> int:
    if words[:1] and words[0] in ("--version", "--help", "-h"):
        whole_parser().parse_args(words[:1])
    command, rest = command_in(words)
    arguments = parse(command, rest)
    arguments.is_whole_process = is_whole_process
    return command.run(arguments)


def command_in(words: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that is named, wherever among its options, and the other words. Leaves with a line where it is unknown.

    The upstream's URL may stand by itself, and then serving is meant. Nothing behind ``--`` is looked at.
    """
    known = {command.name: command for command in COMMANDS}
    for place, word in _bare(words):
        if word in known:
            return known[word], [*words[:place], *words[place + 1 :]]
        if "://" not in word:
            whole_parser().error(f"unknown command: {word}{_nearest_command(word)}")
    return known[SERVE], list(words)


def _bare(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The words that are neither options nor their values, up to the first option that serving does not know."""
    takes_value = {f"--{name}" for name, _, _ in SETTINGS}
    is_value = False
    for place, word in enumerate(words):
        if is_value:
            is_value = False
        elif word.startswith("-"):
            if word.partition("=")[0] not in takes_value:
                return
            is_value = "=" not in word
        else:
            yield place, word


def parse(command: Command, words: Sequence[str]) -> Namespace:
    """Read what a command was given. Leaves with a line where it takes no such thing."""
    parser = _parser_of(command)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if options:
            parser.error(f"unknown option: {' '.join(options)}{_nearest_option(options[0], command)}")
        if not hasattr(arguments, "url") or any("://" not in word for word in unknown):
            parser.error(f"{command.name} takes nothing more: {' '.join(unknown)}")
        arguments.url += unknown  # behind an option, where argparse does not look for it any more
    return arguments


def _parser_of(command: Command) -> ArgumentParser:
    parser = _Parser(
        prog=f"{PROGRAM} {command.name}",
        description=command.summary[:1].upper() + command.summary[1:] + ".",
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    return parser


def whole_parser() -> ArgumentParser:
    """All commands in one parser: for the list of them, and for completions."""
    parser = _Parser(
        prog=PROGRAM,
        description="A reverse proxy that heals the sessions of the MCP server behind it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.arguments(commands.add_parser(command.name, help=command.summary, description=command.summary))
    return parser


def options_of(command: Command) -> set[str]:
    """Every option that a command takes."""
    return {option for action in _parser_of(command)._actions for option in action.option_strings}  # noqa: SLF001


def _nearest_command(word: str) -> str:
    from mcp_sidecar.settings.sources import nearest

    if any(sign in word for sign in ".:/"):
        return f"; did you mean the URL http://{word.lstrip('/:')}?"
    names = [command.name for command in COMMANDS]
    return nearest(word, names, cutoff=0.6) or f"; there are {', '.join(names)}"


def _nearest_option(word: str, command: Command) -> str:
    from mcp_sidecar.settings.sources import nearest

    return nearest(word, options_of(command), "--", cutoff=0.6)


# -- the commands -----------------------------------------------------------------------------------------------------


def _nothing(_: ArgumentParser) -> None:
    """Takes no arguments."""


def _serving(parser: ArgumentParser) -> None:
    parser.add_argument("url", nargs="*", metavar="URL", help="the MCP server's URL; the same as --upstream URL")
    add_settings(parser)


def _serve(arguments: Namespace) -> int:
    def read() -> tuple[SidecarConfig, tuple[str, ...]] | None:
        loaded = load_settings(given_settings(arguments))
        return None if loaded is None else (loaded.config, loaded.warnings)

    # Who called us with arguments of its own may have threads, which a fork does not take along.
    found = made_aside(read) if arguments.is_whole_process else read()
    if found is None:
        return MISTAKE
    from mcp_sidecar import process
    from mcp_sidecar.ops import logs

    config, warnings = found
    logs.configure(config.log_format, config.log_level, colours=not os.environ.get("NO_COLOR"))
    for warning in warnings:
        logs.log().warning("setting_ignored", detail=warning)
    return process.run(config)


def _check_config(arguments: Namespace) -> int:
    loaded = load_settings(given_settings(arguments))
    if loaded is None:
        return MISTAKE
    for warning in loaded.warnings:
        complain(f"warning: {warning}")
    return _written(loaded.config.shown, CHECK_CONFIG)


def _asking(parser: ArgumentParser) -> None:
    add_settings(parser, ("admin", "config"))


def _health(arguments: Namespace) -> int:
    """The upstream may be told to the sidecar alone, on its command line; nobody asks it here."""
    loaded = load_settings(given_settings(arguments) | {"upstream": ["http://not-asked.invalid"]})
    if loaded is None:
        return MISTAKE
    from mcp_sidecar.commands import health

    return health.run(loaded.settings.admin_address)


def _demonstrating(parser: ArgumentParser) -> None:
    parser.add_argument("--restart-sidecar", action="store_true", help="kill the sidecar together with the server")


def _demo(arguments: Namespace) -> int:
    def run() -> int:
        from mcp_sidecar.commands import demo

        return demo.run(restarts_sidecar=True) if arguments.restart_sidecar else demo.run()

    return _with_extra(run, DEMO, "demo")


def _developing(parser: ArgumentParser) -> None:
    add_settings(parser, ("listen", "admin", "config", "log-level"))
    parser.add_argument("--path", metavar="PATH", default="/mcp", help="the path of the MCP endpoint (default /mcp)")
    parser.add_argument("--upstream", metavar="URL", help="where the server is, if it has a port of its own")
    parser.add_argument(
        "--watch",
        metavar="PATH",
        action="append",
        default=[],
        help="watch this, too: a path, or a pattern such as '*.json'",
    )
    parser.add_argument(
        "--ignore", metavar="PATTERN", action="append", default=[], help="pass over this, as a line of .gitignore would"
    )
    parser.add_argument("--once", action="store_true", help="end with the server's exit status when it ends by itself")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what runs the server")


def _dev(arguments: Namespace) -> int:
    def run() -> int:
        from mcp_sidecar.commands import dev

        return dev.run(arguments, load_settings)

    return _with_extra(run, "dev", "reload")


def _probing(parser: ArgumentParser) -> None:
    parser.add_argument("server", metavar="URL", help="the MCP server's URL, as clients use it today")
    parser.add_argument("--restart", metavar="COMMAND", help="restart the server for real with this, and show the heal")
    parser.add_argument(
        "--header", metavar="NAME: VALUE", action="append", default=[], help="send this, too, such as a credential"
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument(
        "--capture", metavar="FOLDER", help="write its answers, without ids and tokens, to be contributed"
    )


def _probe(arguments: Namespace) -> int:
    from mcp_sidecar.commands import probe

    return probe.run(arguments, load_settings)


def _new_key(_: Namespace) -> int:
    from mcp_sidecar.commands.keys import new_key

    return _written(f"{new_key()}\n", NEW_KEY)


def _completing(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")


def _completion(arguments: Namespace) -> int:
    import shtab

    return _written(shtab.complete(whole_parser(), arguments.shell), "completion")


COMMANDS: tuple[Command, ...] = (
    Command(SERVE, "stand in front of an MCP server (default)", _serving, _serve, _SETTINGS_EPILOG),
    Command("dev", "run a server, watch its files, restart it; its clients stay", _developing, _dev, _DEV_EPILOG),
    Command("probe", "tell how a server behaves, and what the sidecar will do", _probing, _probe, _PROBE_EPILOG),
    Command(DEMO, "show a heal, end to end; needs no server", _demonstrating, _demo),
    Command(
        CHECK_CONFIG,
        "tell every mistake in the settings, or print the settings in effect",
        _serving,
        _check_config,
        _SETTINGS_EPILOG,
    ),
    Command("health", "exit 0 if the sidecar of these settings is ready", _asking, _health),
    Command(NEW_KEY, "print a line for sessions.key_file", _nothing, _new_key),
    Command("completion", "print a script that completes commands and options in your shell", _completing, _completion),
)
"""One row per command; the first is what runs where none is named."""


# -- what commands share ----------------------------------------------------------------------------------------------


def load_settings(options: Mapping[str, Sequence[str]]) -> Loaded | None:
    """Read all settings; ``None`` where there are mistakes, which are told."""
    from mcp_sidecar.settings import Mistakes, load

    try:
        return load(options, os.environ)
    except Mistakes as mistakes:
        for line in mistakes.lines:
            complain(line)
        return None


def complain(line: str) -> None:
    """Say one line on stderr, if anybody can hear it."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")


def _written(text: str, command: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        complain(f"{command}: stdout cannot be written: {error.strerror}")
        return COULD_NOT_RUN
    return 0


def _with_extra(run: Callable[[], int], command: str, extra: str) -> int:
    """Run what needs the libraries of an extra, or say the line that installs them."""
    try:
        return run()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "mcp_sidecar":
            raise
        complain(f"{command}: the library {error.name} is missing; install it with: pip install '{PROGRAM}[{extra}]'")
        return COULD_NOT_RUN
