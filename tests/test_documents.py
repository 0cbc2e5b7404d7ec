"""The documents tell the truth: what they name exists.

A command, an option, a link, a settings key, a variable, a metric and a file name are promises, and a rename that forgets
one of them fails here. Checked is whatever document there is; the ones that a reader expects have to be.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from mcp_sidecar.cli import COMMANDS, command_in, options_of, parse, whole_parser
from mcp_sidecar.ops.metrics import Metrics
from mcp_sidecar.settings import KEYS

ROOT: Final = Path(__file__).resolve().parent.parent
EXPECTED: Final = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "SECURITY.md",
    "config.example.toml",
    "docs/upgrading.md",
)
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROMISING: Final = [file for file in DOCUMENTS if file.name != "CHANGELOG.md"]
"""A changelog speaks of what was, too."""

FENCE: Final = re.compile(r"^ *```(?P<language>\w*)\n(?P<body>.*?)^ *```", re.DOTALL | re.MULTILINE)
INDENTED: Final = re.compile(r"(?:^ {4}\S.*\n?)+", re.MULTILINE)
SPAN: Final = re.compile(r"`([^`\n]+)`")
LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
KEY: Final = re.compile(rf"\.?({'|'.join(KEYS)})\.([a-z_0-9]+)(?![\w/.]*\.py)(?=$|[^\w])")
VARIABLE: Final = re.compile(r"MCP_SIDECAR_[A-Z0-9_]+")
METRIC: Final = re.compile(r"mcp_sidecar_[a-z_]+")
REPOSITORY_FILE: Final = re.compile(r"(?:mcp_sidecar|tests|docs|tools|bench)/[\w./-]*\.\w+")
SHORT_VARIABLES: Final = frozenset(
    {"UPSTREAM", "LISTEN", "ADMIN", "MODE", "STORE", "CONFIG", "LOG_FORMAT", "LOG_LEVEL"}
)
# Options of other programs that documents may name.
FOREIGN_OPTIONS: Final = frozenset(
    {
        *("--locked", "--no-deps", "--no-healthcheck", "--require-hashes", "--set", "--strict"),
        *("--reload", "--timeout-graceful-shutdown"),
    }
)


def _code(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, and the spans in backticks."""
    for fence in FENCE.finditer(text):
        yield from fence["body"].splitlines()
    prose = FENCE.sub("", text)
    for block in INDENTED.finditer(prose):
        yield from (line.strip() for line in block.group().splitlines())
    yield from SPAN.findall(INDENTED.sub("", prose))


def make_verbs(text: str) -> Iterator[str]:
    """What is given to make in code."""
    for line in _code(text):
        command = line.partition("#")[0].strip()
        if command.startswith("make "):
            yield from (word for word in command.split()[1:] if re.fullmatch(r"[a-z-]+", word))


def command_lines(text: str) -> Iterator[str]:
    """The invocations of mcp-sidecar in code; a name alone is no invocation."""
    for line in _code(text):
        if re.match(r"mcp-sidecar +\S", line) and "…" not in line:
            yield line


def options(text: str) -> Iterator[str]:
    """The options of mcp-sidecar that are named by themselves."""
    for span in SPAN.findall(FENCE.sub("", text)):
        if span.startswith("--"):
            yield re.split(r"[ =]", span)[0]


def settings_keys(text: str) -> Iterator[tuple[str, str]]:
    """Each ``section.key`` that begins a span in backticks, and the keys of TOML blocks."""
    for span in SPAN.findall(FENCE.sub("", text)):
        if found := KEY.match(span):
            yield found[1], found[2]
    for fence in FENCE.finditer(text):
        if fence["language"] == "toml":
            for section, table in tomllib.loads(fence["body"]).items():
                yield from ((section, key) for key in table)


def local_links(text: str) -> Iterator[str]:
    """Targets of links that are files."""
    for target in LINK.findall(FENCE.sub("", text)):
        if not re.match(r"[a-z]+:|#", target):
            yield target.partition("#")[0]


def variables(text: str) -> Iterator[str]:
    """The sidecar's environment variables, without their prefix; a name that ends in an ellipsis is none."""
    for found in VARIABLE.finditer(text):
        name = found.group().removeprefix("MCP_SIDECAR_")
        if name.strip("_") and not name.endswith("_"):
            yield name


def metric_names(text: str) -> Iterator[str]:
    """Metrics as they are written in queries and tables, without the suffixes of histograms."""
    for found in METRIC.findall(text):
        yield re.sub(r"_(bucket|sum|count|created)$", "", found)


def repository_files(text: str) -> Iterator[str]:
    """Paths in backticks that begin with a folder of the repository."""
    for span in SPAN.findall(FENCE.sub("", text)):
        if REPOSITORY_FILE.fullmatch(span):
            yield span


def _targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def _parses(line: str) -> bool:
    words = shlex.split(line, comments=True)[1:]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            if words[0].startswith("-"):
                whole_parser().parse_known_args(words[:1])
            parse(*command_in(words))
        except SystemExit as leaving:
            return leaving.code == 0
    return True


def _known_variable(name: str) -> bool:
    section, nested, key = name.lower().partition("__")
    return key in KEYS.get(section, ()) if nested else name in SHORT_VARIABLES


def _known_option(name: str) -> bool:
    return name in FOREIGN_OPTIONS or name == "--version" or any(name in options_of(each) for each in COMMANDS)


def _known_metrics() -> set[str]:
    rendered, _ = Metrics().render(None)
    return set(re.findall(r"^# TYPE (\w+)", rendered.decode(), re.MULTILINE))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_expected_documents_exist(name: str) -> None:
    """A newcomer finds the files that every project has."""
    assert (ROOT / name).is_file(), f"{name} is missing"


Check = tuple[Callable[[str], Iterator[object]], Callable[[Path, object], bool]]

CHECKS: Final[dict[str, Check]] = {
    "make verb": (make_verbs, lambda _, verb: verb in _targets()),
    "command": (command_lines, lambda _, line: _parses(str(line))),
    "option": (options, lambda _, name: _known_option(str(name))),
    "settings key": (settings_keys, lambda _, key: isinstance(key, tuple) and key[1] in KEYS.get(key[0], ())),
    "variable": (variables, lambda _, name: _known_variable(str(name))),
    "metric": (metric_names, lambda _, name: str(name) in _known_metrics()),
    "link": (local_links, lambda file, target: (file.parent / str(target)).exists()),
    "file": (repository_files, lambda _, path: (ROOT / str(path)).exists()),
}


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("file", [pytest.param(file, id=str(file.relative_to(ROOT))) for file in PROMISING])
def test_what_a_document_names_exists(file: Path, kind: str) -> None:
    """Every name of that kind is one that the program, the Makefile or the repository has."""
    find, known = CHECKS[kind]
    assert [name for name in find(file.read_text(encoding="utf-8")) if not known(file, name)] == []


@pytest.mark.parametrize(
    ("kind", "text", "wrong"),
    [
        pytest.param("make verb", "    make test\n    make tset   # typo\n", 1, id="make"),
        pytest.param("make verb", "Run `make demo`, and `make deom`. We make do.", 1, id="make in a sentence"),
        pytest.param(
            "command", "    mcp-sidecar --upstream http://x/mcp\n    mcp-sidecar --up http://x\n", 1, id="command"
        ),
        pytest.param("command", "```\nmcp-sidecar check-config\nmcp-sidecar chekc\n```\n", 1, id="fenced command"),
        pytest.param("option", "with `--mode observe` or `--made observe`", 1, id="option"),
        pytest.param("settings key", "`healing.hold_timeout` and `healing.hold_time`", 1, id="key"),
        pytest.param("settings key", "```toml\n[healing]\nmode = 'heal'\nmood = 'heal'\n```\n", 1, id="key in TOML"),
        pytest.param("variable", "`MCP_SIDECAR_MODE`, MCP_SIDECAR_HEALING__MOOD, `MCP_SIDECAR_…`", 1, id="variable"),
        pytest.param("metric", "mcp_sidecar_heal_seconds_bucket and mcp_sidecar_heels_total", 1, id="metric"),
        pytest.param("link", "[a](README.md#x) [b](https://example.com) [c](REDME.md)", 1, id="link"),
        pytest.param("file", "`mcp_sidecar/cli.py` and `mcp_sidecar/clu.py`", 1, id="file"),
    ],
)
def test_a_wrong_name_is_found(kind: str, text: str, wrong: int) -> None:
    """Each check finds a mistake, and only the mistake."""
    find, known = CHECKS[kind]
    assert len([name for name in find(text) if not known(ROOT / "README.md", name)]) == wrong


def test_decisions_are_numbered() -> None:
    """Decisions are told apart by their number: none missing, none twice."""
    numbers = [int(file.name[:4]) for file in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_verb_of_the_makefile_is_phony_and_explained() -> None:
    """`make` alone lists what there is, and a file of the same name does not switch a verb off."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert _targets() == phony == explained
