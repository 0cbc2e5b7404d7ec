"""The command line: arguments to ``Settings``, and on to the app, the demo, or a listing.

Exit status 0: done; 1: could not run; 2: a mistake in the arguments or settings, told in one line per mistake on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from mcp_sidecar import __version__
from mcp_sidecar.ops import standard_streams
from mcp_sidecar.settings import Loaded, Mistakes, effective, load

PROGRAM = "mcp-sidecar"
SERVE, DEMO, CHECK_CONFIG, NEW_KEY = "serve", "demo", "check-config", "new-key"
RESTART_SIDECAR = "restart-sidecar"
COULD_NOT_RUN, MISTAKE, INTERRUPTED = 1, 2, 130

# Option, what stands for its value, help. The values themselves are read by the settings, so that every mistake is told.
_OPTIONS = (
    ("upstream", "URL", "the MCP server's URL, as clients use it today; required"),
    ("listen", "HOST:PORT", "where clients connect (default 127.0.0.1:8080; port 0 picks a free one)"),
    ("admin", "HOST:PORT|off", "probes, metrics and the list of sessions (default 127.0.0.1:9464)"),
    ("mode", "MODE", "heal (default), rewrite: only answer with the right 404, or observe: only count"),
    ("store", "URL", "where sessions are remembered: auto (default), memory:, sqlite:PATH, redis://HOST, sealed:"),
    ("config", "FILE", "TOML file with any of the settings"),
    ("log-format", "FORMAT", "console or json (default: console on a terminal, else json)"),
    ("log-level", "LEVEL", "debug, info (default), warning or error"),
)
_COMMANDS = f"""\
`{PROGRAM} http://127.0.0.1:9000/mcp` is all that is needed: the URL by itself means --upstream.

commands:
  {SERVE}         stand in front of the MCP server (default)
  {DEMO}          show a heal, end to end; needs no server. With --{RESTART_SIDECAR} it is killed, too
  {CHECK_CONFIG}  tell every mistake in the settings, or print the settings in effect
  {NEW_KEY}       print a line for sessions.key_file

Every option is also a variable, such as MCP_SIDECAR_UPSTREAM; config.example.toml lists all settings."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Tell a mistake in the one-line form that mistakes in settings have."""
        self.exit(MISTAKE, f"{message} (see {PROGRAM} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Build the parser. Each option collects all its values: two different ones are told, not silently dropped."""
    built = _Parser(
        prog=PROGRAM,
        description="A reverse proxy that heals the sessions of the MCP server behind it.",
        epilog=_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    built.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    built.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    built.add_argument(f"--{RESTART_SIDECAR}", action="store_true", help=argparse.SUPPRESS)
    for name, value, meaning in _OPTIONS:
        built.add_argument(f"--{name}", metavar=value, help=meaning, action="append", default=[])
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (by default the process's) and return the exit status."""
    standard_streams.repair()
    try:
        command, options = _parsed(argv)
        return _RUN[command](options)
    except SystemExit as leaving:  # argparse leaves by itself after --help, --version and its own mistakes
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        standard_streams.flush()


def _parsed(argv: Sequence[str] | None) -> tuple[str, dict[str, list[str]]]:
    built = parser()
    arguments, unknown = built.parse_known_intermixed_args(argv)
    if unknown:
        # Before the command: the value of a misspelt option looks like one.
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        built.error(f"unknown option: {' '.join(options or unknown)}")
    words, urls = _apart(arguments.command)
    command = " ".join(words) or SERVE
    if command not in _RUN:
        built.error(f"unknown command: {command}; there are {', '.join(_RUN)}")
    given: dict[str, list[str]] = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in _OPTIONS}
    if arguments.restart_sidecar and command != DEMO:
        built.error(f"--{RESTART_SIDECAR} is an option of {DEMO}")
    given[RESTART_SIDECAR] = ["yes"] if arguments.restart_sidecar else []
    return command, given | {"upstream": [*given["upstream"], *urls]}


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell the command from the upstream's URL, which may stand by itself."""
    urls = [word for word in words if "://" in word]
    return [word for word in words if word not in urls], urls


def _serve(options: Mapping[str, Sequence[str]]) -> int:
    loaded = _loaded(options)
    if loaded is None:
        return MISTAKE
    from mcp_sidecar import process
    from mcp_sidecar.ops import logs

    logs.configure(loaded.settings.log_format, loaded.settings.log_level, colours=not os.environ.get("NO_COLOR"))
    for warning in loaded.warnings:
        logs.log().warning("setting_ignored", detail=warning)
    return process.run(loaded.settings)


def _check_config(options: Mapping[str, Sequence[str]]) -> int:
    loaded = _loaded(options)
    if loaded is None:
        return MISTAKE
    for warning in loaded.warnings:
        _complain(f"warning: {warning}")
    try:
        sys.stdout.write(effective(loaded.settings))
        sys.stdout.flush()
    except OSError as error:
        _complain(f"{CHECK_CONFIG}: stdout cannot be written: {error.strerror}")
        return COULD_NOT_RUN
    return 0


def _demo(options: Mapping[str, Sequence[str]]) -> int:
    restarts_sidecar = bool(options[RESTART_SIDECAR])
    if any(values for name, values in options.items() if name != RESTART_SIDECAR):
        _complain(f"{DEMO} takes no options (see {PROGRAM} --help)")
        return MISTAKE
    try:
        from mcp_sidecar.commands import demo

        return demo.run(restarts_sidecar=True) if restarts_sidecar else demo.run()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "mcp_sidecar":
            raise
        _complain(f"{DEMO}: the library {error.name} is missing; install it with: pip install 'mcp-sidecar[demo]'")
        return COULD_NOT_RUN


def _new_key(options: Mapping[str, Sequence[str]]) -> int:
    if any(options.values()):
        _complain(f"{NEW_KEY} takes no options (see {PROGRAM} --help)")
        return MISTAKE
    from mcp_sidecar.commands.keys import print_new_key

    return 0 if print_new_key() else COULD_NOT_RUN


_RUN = {SERVE: _serve, DEMO: _demo, CHECK_CONFIG: _check_config, NEW_KEY: _new_key}


def _loaded(options: Mapping[str, Sequence[str]]) -> Loaded | None:
    try:
        return load(options, os.environ)
    except Mistakes as mistakes:
        for line in mistakes.lines:
            _complain(line)
        return None


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")
