"""Who may import what, as data, and the other habits that a reviewer should not have to look for.

A row of the table is the whole truth about a package: what is not named there may not be imported.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "mcp_sidecar"
TESTS: Final = ROOT / "tests"

# What a pure module may not have: a clock, chance, the outside world, or anybody to wait for.
IMPURE: Final = frozenset(
    {"asyncio", "concurrent", "multiprocessing", "select", "selectors", "signal", "threading", "time"}
    | {"logging", "os", "socket", "ssl", "subprocess", "sys"}
    | {"random", "secrets", "uuid"}
)

LONG_MODULE_LINES: Final = 350
LONG_FUNCTION_LINES: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What the modules of one part may import besides each other: other parts, libraries, and how much of the standard
    library. Names are dotted prefixes."""

    modules: str
    parts: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    banned: frozenset[str] = frozenset()


WIRE: Final = "mcp_sidecar.wire"
VERDICTS: Final = "mcp_sidecar.verdicts"
HEALING: Final = "mcp_sidecar.healing"
WAITING: Final = "mcp_sidecar.waiting"
UPSTREAM: Final = "mcp_sidecar.upstream"
DOWNSTREAM: Final = "mcp_sidecar.downstream"
SESSIONS: Final = "mcp_sidecar.sessions"
STREAMS: Final = "mcp_sidecar.streams"
ENDPOINT: Final = "mcp_sidecar.endpoint"
FASTPATH: Final = "mcp_sidecar.fastpath"
OPS: Final = "mcp_sidecar.ops"
SETTINGS: Final = "mcp_sidecar.settings"
FACTS: Final = "mcp_sidecar.facts"
SPANS: Final = "mcp_sidecar.spans"
CONFIG: Final = "mcp_sidecar.config"
TOKEN_FILE: Final = "mcp_sidecar.token_file"
SOCKET_WRITE: Final = "mcp_sidecar.socket_write"

LAYERS: Final = (
    Layer(modules=WIRE, libraries=("msgspec",), banned=IMPURE),
    Layer(modules=FACTS, banned=IMPURE),
    Layer(modules=CONFIG, parts=(f"{HEALING}.policy",), banned=IMPURE),
    Layer(modules=SPANS, parts=(WIRE,), banned=IMPURE),
    Layer(modules=VERDICTS, parts=(WIRE,), banned=IMPURE),
    Layer(modules=HEALING, parts=(WIRE, VERDICTS, FACTS), banned=IMPURE),
    Layer(modules=WAITING, parts=(FACTS,)),
    Layer(modules=SOCKET_WRITE),
    Layer(modules=UPSTREAM, parts=(WIRE, WAITING, CONFIG, SPANS, SOCKET_WRITE), libraries=("aiohappyeyeballs",)),
    Layer(modules=DOWNSTREAM, parts=(WIRE, CONFIG, SOCKET_WRITE)),
    # Bytes under hashes: a store knows no session, and only what is sealed knows what a record is made of.
    Layer(
        modules=f"{SESSIONS}.stores", parts=(HEALING, CONFIG, f"{WIRE}.cookies"), libraries=("cryptography", "redis")
    ),
    Layer(modules=SESSIONS, parts=(WIRE, VERDICTS, HEALING, WAITING, UPSTREAM, FACTS, CONFIG)),
    Layer(
        modules=STREAMS,
        parts=(WIRE, VERDICTS, HEALING, WAITING, UPSTREAM, DOWNSTREAM, SESSIONS, FACTS, CONFIG, SPANS),
    ),
    Layer(
        modules=ENDPOINT,
        parts=(
            *(WIRE, VERDICTS, HEALING, WAITING, UPSTREAM, DOWNSTREAM, SESSIONS, STREAMS),
            *(FACTS, CONFIG, SPANS),
        ),
    ),
    Layer(
        modules=FASTPATH,
        parts=(WIRE, VERDICTS, HEALING, UPSTREAM, DOWNSTREAM, SESSIONS, FACTS, CONFIG),
    ),
    Layer(modules=f"{OPS}.logs", parts=(FACTS, f"{OPS}.console", f"{OPS}.log_writer")),
    Layer(modules=f"{OPS}.log_writer"),
    Layer(modules=f"{OPS}.console"),
    Layer(modules=f"{OPS}.standard_streams"),
    Layer(modules=f"{OPS}.exposition"),
    Layer(modules=f"{OPS}.metrics", parts=(FACTS, f"{OPS}.exposition")),
    # Who listens to all of it; OpenTelemetry is imported only where somebody asks for traces.
    Layer(modules=f"{OPS}.traces", parts=(WIRE, HEALING, FACTS, SPANS, f"{OPS}.logs"), libraries=("opentelemetry",)),
    Layer(modules=f"{OPS}.exporters", parts=(f"{OPS}.logs", f"{OPS}.traces"), libraries=("opentelemetry",)),
    Layer(modules=TOKEN_FILE),
    Layer(modules="mcp_sidecar.aside"),
    Layer(modules=f"{OPS}.access", parts=(TOKEN_FILE,)),
    Layer(modules=f"{OPS}.status", parts=(FACTS,)),
    Layer(modules=f"{OPS}.page", parts=(FACTS, f"{OPS}.status")),
    Layer(modules=f"{OPS}.admin", parts=(f"{OPS}.metrics", f"{OPS}.access", f"{OPS}.page", DOWNSTREAM, WIRE)),
    Layer(
        modules=SETTINGS,
        # The values that it hands down; nothing below it knows where they came from.
        parts=(f"{HEALING}.policy", f"{VERDICTS}.signatures", CONFIG, TOKEN_FILE),
        libraries=("pydantic", "pydantic_settings", "pydantic_core"),
    ),
    Layer(
        modules="mcp_sidecar.app",
        parts=(
            *("mcp_sidecar.__version__", WIRE, VERDICTS, HEALING, WAITING, UPSTREAM, DOWNSTREAM, SESSIONS, STREAMS),
            *(ENDPOINT, FASTPATH, OPS, FACTS, CONFIG, TOKEN_FILE),
        ),
    ),
    Layer(
        modules="mcp_sidecar.process",
        parts=("mcp_sidecar.app", "mcp_sidecar.__version__", f"{OPS}.logs", CONFIG),
        libraries=("uvloop",),
    ),
    Layer(
        modules="mcp_sidecar.cli",
        parts=(
            *("mcp_sidecar.__version__", SETTINGS, CONFIG, f"{OPS}.logs", f"{OPS}.standard_streams"),
            *("mcp_sidecar.aside", "mcp_sidecar.process", "mcp_sidecar.commands"),
        ),
        libraries=("shtab",),
    ),
    Layer(modules="mcp_sidecar.__main__", parts=("mcp_sidecar.cli",)),
    # Runs a sidecar in its own process and moves it from one upstream to the next.
    Layer(
        modules="mcp_sidecar.commands.dev",
        parts=(
            *("mcp_sidecar.__version__", "mcp_sidecar.app", "mcp_sidecar.process", "mcp_sidecar.commands.mcp_client"),
            *(WIRE, HEALING, WAITING, UPSTREAM, DOWNSTREAM, SESSIONS, OPS, SETTINGS, FACTS, CONFIG),
        ),
        libraries=("pathspec", "psutil", "watchfiles"),
    ),
    # Judges answers as the proxy does, and for `--restart` runs one in its own process.
    Layer(
        modules="mcp_sidecar.commands.probe",
        parts=(
            *("mcp_sidecar.app", "mcp_sidecar.facts", "mcp_sidecar.commands.mcp_client"),
            *(WIRE, VERDICTS, f"{HEALING}.replies", OPS, SETTINGS, CONFIG),
        ),
    ),
    Layer(modules="mcp_sidecar.commands.mcp_client", parts=(WIRE,), libraries=("aiohttp",)),
    # Users of the sidecar: they start one and never reach into it.
    # A key is made by whoever reads it.
    Layer(modules="mcp_sidecar.commands.keys", parts=(f"{SESSIONS}.stores.keys",)),
    Layer(modules="mcp_sidecar.commands", libraries=("httpx", "mcp", "uvicorn")),
)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name as a dotted path, and where it stands."""

    name: str
    line: int


def module_files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {_dotted(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.AST) -> Iterator[Import]:
    """What a module imports anywhere in it, also inside functions. ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (Import(f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _layer_of(module: str) -> Layer | None:
    return next((layer for layer in LAYERS if _below(module, layer.modules)), None)


def violations(module: str, tree: ast.AST) -> list[str]:
    """Name every import that the module's row does not allow."""
    layer = _layer_of(module)
    assert layer is not None, f"{module} has no row in LAYERS: say what it may import"
    return [
        f"{module}:{found.line} imports {found.name}" for found in _imports(tree) if not _allowed(layer, found.name)
    ]


def _allowed(layer: Layer, name: str) -> bool:
    top = name.partition(".")[0]
    if top == "mcp_sidecar":
        return any(_below(name, part) for part in (layer.modules, *layer.parts))
    if top in sys.stdlib_module_names:
        return top not in layer.banned
    return top in layer.libraries


MODULES: Final = module_files()
TREES: Final = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in MODULES.items()}
IMPORTING: Final = [module for module, tree in TREES.items() if any(_imports(tree))]


@pytest.mark.parametrize("module", IMPORTING)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    """Dependencies point one way: the pure core, the shell around it, then what ties them together."""
    assert violations(module, TREES[module]) == []


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        pytest.param("mcp_sidecar.wire.sse", "import time", 1, id="a clock in the wire"),
        pytest.param("mcp_sidecar.wire.sse", "def f():\n    from asyncio import sleep", 1, id="hidden in a function"),
        pytest.param("mcp_sidecar.healing.session", "from mcp_sidecar.sessions import table", 1, id="healing looks up"),
        pytest.param(
            "mcp_sidecar.healing.session", "from mcp_sidecar.wire.sse import Event", 0, id="healing looks down"
        ),
        pytest.param("mcp_sidecar.sessions.table", "import redis, pydantic", 2, id="the proxy logs"),
        pytest.param("mcp_sidecar.ops.logs", "import opentelemetry", 1, id="logs count"),
        pytest.param("mcp_sidecar.wiretap", "import json", None, id="a module without a row"),
    ],
)
def test_the_table_bites(module: str, source: str, count: int | None) -> None:
    """A forbidden import is found wherever it stands, and a module that no row knows is an error."""
    if count is None:
        with pytest.raises(AssertionError, match="no row"):
            violations(module, ast.parse(source))
    else:
        assert len(violations(module, ast.parse(source))) == count


def _edges() -> dict[str, set[str]]:
    """Module to the modules of the package that it imports; an import of a name counts for the module that holds it."""
    edges: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        named = {found.name for found in _imports(tree)}
        owners = {name if name in MODULES else name.rpartition(".")[0] for name in named}
        edges[module] = (owners & MODULES.keys()) - {module}
    return edges


def first_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Some ring of imports, or nothing."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(edges.get(module, ())):
            if ring := walk(imported, [*path, module]):
                return ring
        done.add(module)
        return []

    return next((ring for module in sorted(edges) if (ring := walk(module, []))), [])


def test_no_import_cycle() -> None:
    """Modules can be read in an order in which everything is known before it is used."""
    assert first_cycle(_edges()) == []


def test_a_cycle_is_found() -> None:
    """The search for rings finds one."""
    assert first_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_for(module: str) -> None:
    """Every module begins with its job."""
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"


def _tests() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file in sorted(TESTS.rglob("test_*.py")):
        if "node_modules" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


@pytest.mark.long
def test_every_test_states_its_rule() -> None:
    """A test without a sentence about what must hold is a puzzle for whoever breaks it."""
    assert [name for name, node in _tests() if not ast.get_docstring(node)] == []


def _oversized() -> Iterator[str]:
    for module, tree in TREES.items():
        lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
        if lines > LONG_MODULE_LINES:
            yield f"{module}: {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONG_FUNCTION_LINES:
                    yield f"{module}.{node.name}: {length} lines"


@pytest.mark.filterwarnings("always:large")
def test_sizes_are_told() -> None:
    """Large modules and functions are told and not forbidden: a long table is fine."""
    oversized = list(_oversized())
    if oversized:
        warnings.warn("large: " + "; ".join(oversized), stacklevel=1)


# -- names ------------------------------------------------------------------------------------------------------------

PARTICIPLES: Final = {
    "healing": "the product's own noun",
    "waiting": "what it is about; 'wait' would be a verb",
    "asking": "the noun of what settles a refusal",
    "sealed": "the scheme of the store, `sealed:`",
    "ping": "the request of this name",
    "framing": "HTTP's noun for where a message ends",
}
"""Files and packages that look like participles and are none, with the reason."""


def test_no_file_is_named_by_a_participle() -> None:
    """A file is called after what it holds; "holding" and "learned" leave open who does what to whom."""
    stems = {part for module in MODULES for part in module.split(".")}
    assert {stem for stem in stems if stem.endswith(("ing", "ed"))} <= PARTICIPLES.keys()


PACKAGES: Final = {
    file.parent.name: (ast.get_docstring(TREES[module]) or "").replace("``", "`")
    for module, file in MODULES.items()
    if file.name == "__init__.py" and file.parent.parent == PACKAGE
}
"""The packages of the proxy, and what each says of itself."""


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_its_one_rule(package: str) -> None:
    """One paragraph that fits into a row, so that one knows what belongs there and what does not."""
    assert PACKAGES[package].endswith(".") and "\n" not in PACKAGES[package]


def test_the_page_about_architecture_gives_the_same_rules() -> None:
    """Its table of packages has a row for each, in the package's own words."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| package | its one rule |")[2].partition("\n\n")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)) == PACKAGES


# -- clocks -----------------------------------------------------------------------------------------------------------

CLOCKS: Final = {
    "mcp_sidecar.app": "hands the clock down to everything that decides or remembers by time",
    "mcp_sidecar.ops.logs": "keeps floods of a line back",
    "mcp_sidecar.ops.console": "says the time of day, and formats it",
    "mcp_sidecar.downstream.common": "gives up clients that are silent in their turn",
    "mcp_sidecar.endpoint.early_stream": "opens a long hold's answer early",
    "mcp_sidecar.sessions.restore": "shares one deadline among its steps",
    "mcp_sidecar.streams.relay": "gives up a stream that nobody continues",
    "mcp_sidecar.streams.subscription": "wakes who waits for an answer",
    "mcp_sidecar.upstream.idle_timer": "gives up a server that is silent",
    "mcp_sidecar.upstream.pool": "lets go of connections that nobody used",
}
"""Who reads a clock, and what for; the demo apart, which is a user of the sidecar."""


def _reads_a_clock(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in {"time", "monotonic"} for node in ast.walk(tree))


def test_a_clock_is_read_by_few() -> None:
    """Time is handed down, so that a test can be its master; a module that reads it by itself says what it times."""
    reading = {module for module, tree in TREES.items() if _reads_a_clock(tree)}
    assert {module for module in reading if not _below(module, "mcp_sidecar.commands")} <= CLOCKS.keys()


# -- bags ----------------------------------------------------------------------------------------------------------------

MAX_PARAMETERS: Final = 8
MAX_MUTABLE_ATTRIBUTES: Final = 12

# Classes that may have more, and why.
MANY_PARAMETERS: Final[dict[str, str]] = {
    "mcp_sidecar.sessions.sessions.Sessions": "the front door: one name for each of those who look after sessions",
}
MANY_ATTRIBUTES: Final = {
    "mcp_sidecar.downstream.connection.ClientConnection": "one object, since there is one for each of thousands of streams",
    "mcp_sidecar.ops.metrics.Metrics": "one attribute for each metric, made by the helpers of the constructor and kept",
}


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield f"{module}.{node.name}", node


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (member for member in node.body if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef))


def parameters(node: ast.ClassDef) -> int:
    """How many parameters the constructor takes, ``self`` apart, by position or by name.

    Of a dataclass the fields that must be given count; one with a default is an option.
    """
    init = next((method for method in _methods(node) if method.name == "__init__"), None)
    if init is not None:
        return len([*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs]) - 1
    return sum(field.value is None for field in _fields(node)) if _dataclass_options(node) is not None else 0


def mutable_attributes(node: ast.ClassDef) -> set[str]:
    """What of an instance changes during its life.

    What a method other than ``__init__`` and ``__post_init__`` assigns, augments or deletes on ``self``; of a dataclass that
    is not frozen every field that is not ``Final``, since anybody may assign it. What is only filled, as a dictionary is, does
    not count.
    """
    found = _open_fields(node)
    for method in _methods(node):
        if method.name in ("__init__", "__post_init__"):
            continue
        assigned = (inner for inner in ast.walk(method) if isinstance(inner, ast.Attribute))
        found |= {
            inner.attr
            for inner in assigned
            if isinstance(inner.ctx, ast.Store | ast.Del) and ast.unparse(inner.value) == "self"
        }
    return found


def _fields(node: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    return (member for member in node.body if isinstance(member, ast.AnnAssign))


def _dataclass_options(node: ast.ClassDef) -> dict[str, str] | None:
    """What ``@dataclass`` is given, as source; ``None`` where the class is none."""
    for decorator in node.decorator_list:
        name, _, options = ast.unparse(decorator).partition("(")
        if name == "dataclass":
            return dict(part.split("=") for part in options.rstrip(")").split(", ") if part)
    return None


def _open_fields(node: ast.ClassDef) -> set[str]:
    options = _dataclass_options(node)
    if options is None or options.get("frozen") == "True":
        return set()
    return {ast.unparse(field.target) for field in _fields(node) if "Final" not in ast.unparse(field.annotation)}


def test_constructors_are_small() -> None:
    """Whoever needs more than eight things does more than one."""
    many = {name for name, node in _classes() if parameters(node) > MAX_PARAMETERS}
    assert many == MANY_PARAMETERS.keys(), "a class that takes too much, or an exception that is none any more"


def test_objects_have_few_states() -> None:
    """What changes in an object can be kept in mind by its reader."""
    many = {name for name, node in _classes() if len(mutable_attributes(node)) > MAX_MUTABLE_ATTRIBUTES}
    assert many == MANY_ATTRIBUTES.keys(), "a class with too much that changes, or an exception that is none any more"


@pytest.mark.parametrize(
    ("source", "takes", "changes"),
    [
        pytest.param("class A:\n def __init__(self, a, *, b): self.a = self.b = a", 2, 0, id="set once"),
        pytest.param("class A:\n def go(self):\n  self.a, self.b = 1, 2\n  self.c += 1", 0, 3, id="set again"),
        pytest.param(
            "class A:\n def go(self, other): other.a = self.b[0] = self.c.d = 1", 0, 0, id="others' and items"
        ),
        pytest.param("@dataclass(slots=True)\nclass A:\n a: int\n b: int = 0\n c: Final[int] = 0", 1, 2, id="open"),
        pytest.param("@dataclass(frozen=True)\nclass A:\n a: int\n b: int", 2, 0, id="frozen"),
    ],
)
def test_what_counts_of_a_class(source: str, takes: int, changes: int) -> None:
    """The two counts find what they say they do."""
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    assert (parameters(node), len(mutable_attributes(node))) == (takes, changes)
