"""The command line: what it runs, what it prints, how it exits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mcp_sidecar import __version__
from mcp_sidecar.cli import COMMANDS, SHELLS, Command, main, options_of
from mcp_sidecar.config import SidecarConfig

UPSTREAM = ("--upstream", "http://127.0.0.1:9000/mcp")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MCP_SIDECAR_"):
            monkeypatch.delenv(name)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[SidecarConfig]:
    """Stands in for the process: what it was asked to run. It exits with 7."""
    asked: list[SidecarConfig] = []

    def run(config: SidecarConfig) -> int:
        asked.append(config)
        return 7

    _stand_in(monkeypatch, "process", run)
    return asked


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[..., int]) -> None:
    module = ModuleType(f"mcp_sidecar.{name}")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"mcp_sidecar.{name}", module)
    monkeypatch.setattr(f"mcp_sidecar.{name}", module, raising=False)


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(UPSTREAM, id="no-command"),
        pytest.param(("serve", *UPSTREAM), id="command-first"),
        pytest.param((*UPSTREAM, "serve"), id="command-last"),
        pytest.param(("--upstream=http://127.0.0.1:9000/mcp",), id="equals-sign"),
        pytest.param(("http://127.0.0.1:9000/mcp",), id="url-alone"),
        pytest.param(("serve", "http://127.0.0.1:9000/mcp"), id="url-behind-the-command"),
        pytest.param(("http://127.0.0.1:9000/mcp", *UPSTREAM), id="url-twice"),
    ],
)
def test_serving_is_what_it_does_by_default(served: list[SidecarConfig], argv: tuple[str, ...]) -> None:
    """Without a command it serves, and the sidecar's exit status is the process's."""
    assert main(argv) == 7
    assert [config.upstream.origin for config in served] == ["http://127.0.0.1:9000"]


def test_every_option_reaches_its_key(served: list[SidecarConfig], tmp_path: Path) -> None:
    """Each option of the contract sets the key that the contract names."""
    file = tmp_path / "c.toml"
    file.write_text("[healing]\nhold_timeout = 3")
    line = "--listen [::1]:0 --admin off --mode observe --store memory: --log-format json --log-level error --config"
    assert main((*UPSTREAM, *line.split(), str(file))) == 7
    [config] = served
    assert (config.listen.host, config.listen.port, config.admin_address) == ("::1", 0, None)
    assert (config.policy.mode, config.policy.hold_timeout_s) == ("observe", 3)
    assert (config.log_format, config.log_level, config.store.url) == ("json", "error", "memory:")


def test_unknown_variables_become_log_lines(
    served: list[SidecarConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning of ``serve`` is a line of the log, so that a JSON log stays JSON."""
    monkeypatch.setenv("MCP_SIDECAR_FOO", "1")
    assert main((*UPSTREAM, "--log-format", "json")) == 7
    assert '"detail": "MCP_SIDECAR_FOO: unknown environment variable"' in capsys.readouterr().err
    assert len(served) == 1


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        pytest.param(
            (),
            ["upstream.url: is required: give --upstream URL, MCP_SIDECAR_UPSTREAM, or url in the section [upstream]"],
            id="nothing",
        ),
        pytest.param(
            ("--upstream", "h", "--mode", "x"),
            [
                "upstream.url: must begin with http:// or https:// (--upstream)",
                "healing.mode: must be heal, rewrite or observe, not 'x' (--mode)",
            ],
            id="values",
        ),
        pytest.param(("--upstrem", "x"), ["unknown option: --upstrem; did you mean --upstream? (see mcp-sidecar {command} --help)"], id="option"),
        pytest.param(("--upstream",), ["argument --upstream: expected one argument (see mcp-sidecar {command} --help)"], id="no-value"),
        pytest.param(("--up", "x"), ["unknown option: --up (see mcp-sidecar {command} --help)"], id="abbreviated"),
        pytest.param(
            (*UPSTREAM, "http://127.0.0.1:9001/mcp"), ["upstream.url: two --upstream give different values"], id="two-upstreams"
        ),
        pytest.param(("demo", "--mode", "heal"), ["unknown option: --mode (see mcp-sidecar demo --help)"], id="demo-with-options"),
        pytest.param(
            (*UPSTREAM, "--mode", "heal", "--mode", "observe"), ["healing.mode: two --mode give different values"], id="twice"
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [(), ("check-config",)], ids=["serve", "check-config"])
def test_mistakes_are_lines_on_stderr(
    served: list[SidecarConfig],
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    argv: tuple[str, ...],
    lines: list[str],
) -> None:
    """Every mistake is one line, the exit status is 2, and nothing was started."""
    if argv[:1] == ("demo",) and command:
        pytest.skip("two commands")
    assert main((*command, *argv)) == 2
    shown = [line.format(command=command[0] if command else "serve") for line in lines]
    assert capsys.readouterr().err.splitlines() == shown
    assert served == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        pytest.param("sevre", "unknown command: sevre; did you mean serve? (see mcp-sidecar --help)", id="near"),
        pytest.param(
            "localhost:9000/mcp",
            "unknown command: localhost:9000/mcp; did you mean the URL http://localhost:9000/mcp? (see mcp-sidecar --help)",
            id="a URL without its scheme",
        ),
        pytest.param(
            "demo now", "demo takes nothing more: now (see mcp-sidecar demo --help)", id="more than a command takes"
        ),
        pytest.param(
            "serve --lissten 1",
            "unknown option: --lissten; did you mean --listen? (see mcp-sidecar serve --help)",
            id="an option of a command",
        ),
    ],
)
def test_the_nearest_name_is_told(capsys: pytest.CaptureFixture[str], words: str, line: str) -> None:
    """What was misspelt is told in one line, with what was meant."""
    assert main(words.split()) == 2
    assert capsys.readouterr().err.splitlines() == [line]


def test_an_unknown_word_without_a_near_one_gets_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    """Then every command is named."""
    assert main(("quux",)) == 2
    told = capsys.readouterr().err
    assert all(command.name in told for command in COMMANDS)


def test_check_config_prints_what_is_in_effect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``check-config`` reads what ``serve`` reads, prints it as TOML, warns on stderr, and exits with 0."""
    monkeypatch.setenv("MCP_SIDECAR_MODE", "rewrite")
    monkeypatch.setenv("MCP_SIDECAR_FOO", "x")
    assert main(("check-config", *UPSTREAM)) == 0
    printed = capsys.readouterr()
    tables = tomllib.loads(printed.out)
    assert (tables["upstream"]["url"], tables["healing"]["mode"]) == ("http://127.0.0.1:9000/mcp", "rewrite")
    assert printed.err == "warning: MCP_SIDECAR_FOO: unknown environment variable\n"


def test_check_config_starts_nothing(served: list[SidecarConfig]) -> None:
    """Validating does not even load the proxy."""
    assert main(("check-config", *UPSTREAM)) == 0
    assert served == []


def test_demo_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """``demo`` needs no settings; its exit status is the process's."""
    _stand_in(monkeypatch, "commands.demo", lambda: 0)
    assert main(("demo",)) == 0


def test_demo_without_its_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library of the extra may be missing: exit 1, with the line that installs it."""

    def run() -> int:
        raise ModuleNotFoundError("No module named 'mcp'", name="mcp.client")

    _stand_in(monkeypatch, "commands.demo", run)
    assert main(("demo",)) == 1
    assert "pip install 'mcp-sidecar[demo]'" in capsys.readouterr().err


def test_dev_without_its_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, as the demo does."""

    def run(*_: object) -> int:
        raise ModuleNotFoundError("No module named 'watchfiles'", name="watchfiles")

    _stand_in(monkeypatch, "commands.dev", run)
    assert main(("dev", "--", "true")) == 1
    assert capsys.readouterr().err.splitlines() == [
        "dev: the library watchfiles is missing; install it with: pip install 'mcp-sidecar[reload]'"
    ]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("--", "python", "server.py", "--watch", "x"), ["python", "server.py", "--watch", "x"]),
        (("--once", "python", "server.py", "--help"), ["python", "server.py", "--help"]),
        (("--watch", "a", "--", "sh", "-c", "x -- y"), ["sh", "-c", "x -- y"]),
    ],
)
def test_what_stands_behind_dev_is_the_command(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], command: list[str]
) -> None:
    """Its own options are its own, with or without the dashes."""
    given: list[str] = []

    def run(arguments: Namespace, _: object) -> int:
        given.extend(arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command)
        return 0

    _stand_in(monkeypatch, "commands.dev", run)
    assert main(("dev", *words)) == 0
    assert given == command


def test_a_module_of_our_own_that_is_missing_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """No advice to install something hides a broken package."""

    def run() -> int:
        raise ModuleNotFoundError("No module named 'mcp_sidecar.x'", name="mcp_sidecar.x")

    _stand_in(monkeypatch, "commands.demo", run)
    with pytest.raises(ModuleNotFoundError):
        main(("demo",))


def test_an_interrupted_command_exits_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a command that does not handle it is no traceback."""

    def run() -> int:
        raise KeyboardInterrupt

    _stand_in(monkeypatch, "commands.demo", run)
    assert main(("demo",)) == 130


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Both print to stdout and exit with 0; the help names every command."""
    assert main(("--version",)) == 0
    assert capsys.readouterr().out == f"mcp-sidecar {__version__}\n"
    assert main(("--help",)) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_help_of_its_own(capsys: pytest.CaptureFixture[str], command: Command) -> None:
    """It names what the command takes, and nothing runs."""
    assert main((command.name, "--help")) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: mcp-sidecar {command.name}")
    assert all(option in text for option in options_of(command))


def test_help_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What argparse does not wrap is written so that no line is cut in the middle of a word."""
    monkeypatch.setenv("COLUMNS", "80")
    for words in ((), *((command.name,) for command in COMMANDS)):
        assert main((*words, "--help")) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_of_serve_names_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """The options of the contract are all there."""
    assert main(("serve", "--help")) == 0
    names = "--upstream --listen --admin --mode --store --config --log-format --log-level"
    assert set(names.split()) <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_knows_every_command(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    """For each shell there is a script, made of the very table that is parsed with."""
    assert main(("completion", shell)) == 0
    script = capsys.readouterr().out
    assert all(command.name in script for command in COMMANDS) and "upstream" in script


def test_the_version_loads_nothing_of_the_proxy() -> None:
    """A completion or a version check in a script is quick: no settings, no event loop, no HTTP."""
    heavy = "{'pydantic', 'aiohttp', 'asyncio', 'shtab'}"
    code = f"import sys; from mcp_sidecar.cli import main; main(['--version']); sys.exit(len({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_the_proxy_loads_what_its_store_needs_and_no_more() -> None:
    """Redis' client and the ciphers are six MiB each, what reads the settings is twelve; a sidecar keeps none of it."""
    of_stores, of_settings = (
        ("redis", "cryptography", "sqlite3"),
        ("pydantic", "pydantic_settings", "tomllib", "difflib"),
    )
    unused = {*of_stores, *of_settings, "opentelemetry", "shtab", "multiprocessing"}
    code = f"import sys; import mcp_sidecar.process; sys.exit(len({unused} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_a_new_key_can_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stdout and nothing else; every one is another."""
    from mcp_sidecar.sessions.stores.keys import read_keys

    assert main(("new-key",)) == 0
    first = capsys.readouterr()
    assert main(("new-key",)) == 0
    second = capsys.readouterr()
    assert (first.err, first.out.count("\n")) == ("", 1)
    assert read_keys(first.out).first.id != read_keys(second.out).first.id


def test_a_key_is_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings in effect say that there is one."""
    monkeypatch.setenv("MCP_SIDECAR_SESSIONS__KEY", "a-secret-key")
    assert main(("check-config", "http://127.0.0.1:9/mcp")) == 0
    told = capsys.readouterr()
    assert "a-secret-key" not in told.out + told.err
    assert 'key = "***"' in told.out
