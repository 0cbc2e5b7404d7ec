"""Nothing is resolved when installing: the locks are complete, and no command that installs could choose a version.

A lock is read as pip reads it; what its distributions require is taken from their own metadata, as far as they are installed.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools import locks
from tools.environments import ROOT, Environment, install, lends_pip, python

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: Final = frozenset(PROJECT["project"]["optional-dependencies"])
LOCKS: Final = [lock.file for part in locks.FOLDERS for lock in locks.locks(part)]
ADDRESS: Final = re.compile(r"--(extra-)?index-url|--find-links|--trusted-host|://")
PLATFORMS: Final = {"linux": "Linux", "darwin": "Darwin"}

Markers = dict[str, str]


def promised() -> list[Markers]:
    """What markers are evaluated with: every Python of the classifiers, on Linux and macOS."""
    here: Markers = {key: str(value) for key, value in default_environment().items()}
    return [
        here
        | {"python_version": version, "python_full_version": f"{version}.0", "implementation_version": f"{version}.0"}
        | {"sys_platform": platform, "platform_system": system}
        for version in locks.promised_pythons()
        for platform, system in PLATFORMS.items()
    ]


def described(markers: Markers) -> str:
    return f"{markers['sys_platform']}-{markers['python_version']}"


def holds(requirement: Requirement, markers: Markers, extras: Iterable[str] = ()) -> bool:
    """Whether a requirement applies there, where these extras of whoever states it are asked for."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate(markers | {"extra": extra}) for extra in ("", *extras))


@dataclass(frozen=True)
class Pin:
    """One requirement of a lock, and whether it has a hash."""

    requirement: Requirement
    hashed: bool

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> Version | None:
        """The one version that it can be, or None."""
        specifiers = list(self.requirement.specifier)
        is_exact = len(specifiers) == 1 and specifiers[0].operator == "==" and "*" not in specifiers[0].version
        return Version(specifiers[0].version) if is_exact else None


def pins(text: str) -> list[Pin]:
    """The requirements of a lock's text."""
    lines = [line.partition(" #")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    entries = [line for line in lines if line and not line.startswith("#")]
    return [Pin(Requirement(entry.partition(" --hash=")[0]), " --hash=sha256:" in entry) for entry in entries]


def chosen(locked: Iterable[Pin], markers: Markers) -> dict[str, Version | None]:
    """What a lock installs there: canonical name to version."""
    return {pin.name: pin.version for pin in locked if holds(pin.requirement, markers)}


def closure(locked: Iterable[Pin], roots: Iterable[str], markers: Markers) -> tuple[set[str], list[str]]:
    """The names that are needed there, and what of it the lock lacks or has in a version that does not fit."""
    versions = chosen(locked, markers)
    todo: list[tuple[Requirement, tuple[str, ...]]] = [(Requirement(root), ()) for root in roots]
    needed: set[str] = set()
    asked: set[tuple[str, tuple[str, ...]]] = set()
    missing = []
    while todo:
        requirement, extras = todo.pop()
        if not holds(requirement, markers, extras):
            continue
        name, wanted = canonicalize_name(requirement.name), tuple(sorted(requirement.extras))
        version = versions.get(name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement} ({described(markers)})")
        needed.add(name)
        if (name, wanted) not in asked:
            asked.add((name, wanted))
            with contextlib.suppress(metadata.PackageNotFoundError):
                todo += [(Requirement(line), wanted) for line in metadata.requires(name) or ()]
    return needed, missing


def roots_of(lock: Path) -> list[str]:
    """What a lock of the project is made from."""
    extras = {
        "requirements.txt": frozenset({"sealed", "redis", "otel"}),
        "requirements-demo.txt": frozenset({"demo"}),
    }.get(lock.name, EXTRAS)
    optional = PROJECT["project"]["optional-dependencies"]
    return [*PROJECT["project"]["dependencies"], *(line for extra in sorted(extras) for line in optional[extra])]


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


class TestLocks:
    @pytest.mark.parametrize("lock", LOCKS, ids=relative)
    def test_every_requirement_is_one_version_with_its_hash(self, lock: Path) -> None:
        """Whoever installs decides where from; what is installed is decided here."""
        text = lock.read_text(encoding="utf-8")
        locked = pins(text)
        assert locked
        assert [str(pin.requirement) for pin in locked if not pin.hashed or pin.version is None] == []
        assert [str(pin.requirement) for pin in locked if pin.requirement.extras] == []
        assert not ADDRESS.search(text)

    @pytest.mark.parametrize("markers", promised(), ids=described)
    @pytest.mark.parametrize("lock", [lock.file for lock in locks.project_locks()], ids=relative)
    def test_it_has_all_that_is_needed_and_nothing_else(self, lock: Path, markers: Markers) -> None:
        """What the project and each locked distribution require is locked, on every promised Python and platform."""
        locked = pins(lock.read_text(encoding="utf-8"))
        needed, missing = closure(locked, roots_of(lock), markers)
        assert missing == []
        assert set(chosen(locked, markers)) - needed == set()

    def test_the_locks_agree(self) -> None:
        """What the demo and the image run is what the tests ran with."""
        versions = [{pin.name: pin.version for pin in pins(lock.file.read_text())} for lock in locks.project_locks()]
        assert [narrow.items() <= versions[0].items() for narrow in versions] == [True, True, True]

    def test_what_builds_is_what_the_package_asks_for(self) -> None:
        """The image is built with the locked build system."""
        source = (ROOT / "tools" / "requirements" / "build.in").read_text(encoding="utf-8")
        assert source.split() == PROJECT["build-system"]["requires"]

    def test_every_list_of_requirements_is_locked(self) -> None:
        """No file of requirements is left that could be installed by resolving it."""
        found = {
            *ROOT.glob("requirements*.txt"),
            *(file for folder in locks.FOLDERS.values() for file in folder.iterdir()),
        }
        sources = {lock.with_suffix(".in") for lock in LOCKS}
        assert {relative(file) for file in found - set(LOCKS) - sources} == set()

    @pytest.mark.parametrize(
        ("line", "lack"),
        [
            pytest.param("pytest==9.0.0", "pluggy", id="what it requires is not there"),
            pytest.param("pytest>=9", "pytest", id="no version"),
            pytest.param("pytest==8.0.0", "pytest", id="a version that does not fit"),
            pytest.param("pytest==9.0.0 ; sys_platform == 'win32'", "pytest", id="not on this platform"),
        ],
    )
    def test_an_incomplete_lock_is_found(self, line: str, lack: str) -> None:
        """The search for what is missing finds it."""
        _, missing = closure(pins(f"{line} \\\n    --hash=sha256:00\n"), ["pytest>=9"], promised()[0])
        assert any(entry.startswith(lack) for entry in missing)

    @pytest.mark.parametrize("folder", locks.NPM, ids=relative)
    def test_npm_has_every_package_with_its_hash(self, folder: Path) -> None:
        """The same for npm, from wherever it installs."""
        locked = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
        installed = {path: entry for path, entry in locked.items() if path}
        assert installed
        assert [path for path, entry in installed.items() if "integrity" not in entry or "resolved" in entry] == []
        stated = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        for kind in ("dependencies", "optionalDependencies"):
            assert locked[""].get(kind) == stated.get(kind)


# What resolves, and is meant to: it writes the locks.
RESOLVERS: Final = frozenset({"tools/locks.py"})
SCRIPTS: Final = [ROOT / "Makefile", ROOT / "Dockerfile", ROOT / ".ci" / "run", *(ROOT / ".github").rglob("*.yml")]
PROGRAMS: Final = [file for folder in ("tools", "bench") for file in (ROOT / folder).rglob("*.py")]
INSTALLERS: Final = frozenset({"pip", "pip3", "uv", "uvx", "pipx", "npm", "npx", "yarn", "pnpm", "cargo", "go"})


def could_resolve(words: Iterable[str]) -> bool:
    """Whether a command installs something of the project's and may choose a version. Debian's packages are a machine's."""
    given = {word.rpartition("/")[2] for word in words}
    if given & {"uvx", "pipx", "npx", "yarn", "pnpm"}:
        return True
    if "npm" in given:
        verbs = given & {"ci", "install", "i", "add", "exec", "update"}
        return bool(verbs - {"ci"}) or ("ci" in verbs and "--ignore-scripts" not in given)
    if "cargo" in given:
        return bool(given & {"build", "install", "run", "test", "update"}) and "--locked" not in given
    if "go" in given:
        return bool(given & {"build", "install", "run", "test", "get", "tidy"}) and "-mod=readonly" not in given
    if not given & {"install", "wheel", "download"} or given & {"apt-get", "--no-install-recommends"}:
        return False
    return "--no-deps" not in given or not given & {"--require-hashes", "--no-index", "--no-build-isolation"}


def script_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a script, a Makefile, a Dockerfile or a workflow that begins with an installer."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for command in re.split(r"&&|\|\||[;|`]", re.sub(r"(^|\s)#.*", "", line)):
            words = command.split()
            if any(word.rpartition("/")[2] in INSTALLERS for word in words):
                yield words


def program_commands(text: str) -> Iterator[list[str]]:
    """The words of each tuple and list of a program that could be a command, or the beginning of one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Tuple | ast.List):
            words = [element.value for element in node.elts if isinstance(element, ast.Constant)]
            yield [word for word in words if isinstance(word, str)]


class TestCommands:
    @pytest.mark.parametrize("file", SCRIPTS, ids=relative)
    def test_no_script_resolves(self, file: Path) -> None:
        """Each installation takes exactly what a lock says."""
        commands = script_commands(file.read_text(encoding="utf-8"))
        assert [" ".join(words) for words in commands if could_resolve(words)] == []

    @pytest.mark.parametrize("file", PROGRAMS, ids=relative)
    def test_no_program_resolves(self, file: Path) -> None:
        """The same for commands that a program starts; only two are there to resolve."""
        found = [words for words in program_commands(file.read_text(encoding="utf-8")) if could_resolve(words)]
        assert bool(found) is (relative(file) in RESOLVERS)

    @pytest.mark.parametrize(
        ("script", "wrong"),
        [
            pytest.param("pip install -r requirements.txt", 1, id="no hashes"),
            pytest.param("bin/pip install --require-hashes -r requirements.txt", 1, id="dependencies"),
            pytest.param("bin/pip install --no-deps --require-hashes \\\n    -r requirements.txt", 0, id="from a lock"),
            pytest.param("python -m pip install --no-deps --no-build-isolation .", 0, id="the project"),
            pytest.param("python -m pip wheel --no-deps .", 1, id="a build resolves what it needs"),
            pytest.param("python -m pip check  # after pip install", 0, id="nothing is installed"),
            pytest.param("cd x && npm install", 1, id="npm"),
            pytest.param("npm ci", 1, id="npm's scripts fetch more"),
            pytest.param("npm ci --ignore-scripts", 0, id="npm from its lock"),
            pytest.param("cargo build", 1, id="cargo"),
            pytest.param("cargo build --locked", 0, id="cargo from its lock"),
            pytest.param("go build .", 1, id="go"),
            pytest.param("go build -mod=readonly .", 0, id="go from its sums"),
            pytest.param("npx something", 1, id="npx"),
            pytest.param("apt-get install nginx", 0, id="a machine's own"),
        ],
    )
    def test_a_command_that_resolves_is_found(self, script: str, wrong: int) -> None:
        """The search tells the two kinds apart."""
        assert len([words for words in script_commands(script) if could_resolve(words)]) == wrong


def wheel(folder: Path, name: str, version: str, *requires: str) -> str:
    """Put an empty distribution into an index's folder, and return its line of a lock."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: more\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},{_record_hash(text)},{len(text)}\n" for path, text in files.items())
    target = folder / name / f"{name}-{version}-py3-none-any.whl"
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as opened:
        for path, text in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
            opened.writestr(path, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(target.read_bytes()).hexdigest()}\n"


def _record_hash(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class Index:
    """A package index on loopback; ``locked`` are lines of a lock, and it offers newer versions of both."""

    locked: tuple[str, str]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The only index that pip knows, whatever this machine is set to."""
    folder = tmp_path / "simple"
    # An extra as in `coverage[toml]`: the lock names the distribution without it.
    plugin = wheel(folder, "plugin", "1.0", "base[more]>=1.0")
    base = wheel(folder, "base", "1.0")
    wheel(folder, "plugin", "1.1", "base[more]>=1.0")
    wheel(folder, "base", "1.1")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield Index((plugin, base))
        server.shutdown()
        serving.join()


def _lock(folder: Path, *lines: str) -> Path:
    file = folder / "lock.txt"
    file.write_text("".join(lines), encoding="utf-8")
    return file


class TestInstalling:
    def test_the_lock_is_the_only_source_of_versions(self, index: Index, tmp_path: Path) -> None:
        """An index that offers newer versions changes nothing, and what is installed is left alone while its lock is."""
        environment = python(tmp_path / "made", _lock(tmp_path, *index.locked), pip=None)
        assert install(environment) is None
        installed = {path.name for path in (tmp_path / "made").rglob("*.dist-info")}
        assert {"plugin-1.0.dist-info", "base-1.0.dist-info"} <= installed
        assert not {"plugin-1.1.dist-info", "base-1.1.dist-info"} & installed
        assert environment.is_ready

    def test_an_incomplete_lock_fails(self, index: Index, tmp_path: Path) -> None:
        """What a lock forgot is not fetched but told, and the environment counts as not made."""
        environment = python(tmp_path / "made", _lock(tmp_path, index.locked[0]), pip=None)
        trouble = install(environment)
        assert trouble is not None
        assert "plugin 1.0 requires base" in trouble
        assert not environment.is_ready

    def test_no_setting_of_the_machine_says_what_or_where_to(
        self, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Settings of pip and Python that suit other work neither change an environment nor hinder it."""
        config, constraint, elsewhere = (tmp_path / name for name in ("pip.conf", "constraint.txt", "elsewhere"))
        config.write_text("[install]\nuser = true\nrequire-hashes = true\n")
        constraint.write_text("base==1.1\n")
        with zipfile.ZipFile(next((tmp_path / "simple").rglob("base-1.0-*.whl"))) as opened:
            opened.extractall(elsewhere)
        for name in ("PIP_USER", "PIP_DRY_RUN", "PIP_REQUIRE_HASHES", "PYTHONSAFEPATH"):
            monkeypatch.setenv(name, "1")
        for name, path in (("PIP_CONFIG_FILE", config), ("PIP_CONSTRAINT", constraint), ("PIP_TARGET", elsewhere)):
            monkeypatch.setenv(name, str(path))
        monkeypatch.setenv("PYTHONPATH", str(elsewhere))
        environment = python(tmp_path / "made", _lock(tmp_path, *index.locked), pip=None)
        assert install(environment) is None
        installed = {path.name for path in (tmp_path / "made").rglob("*.dist-info")}
        assert {"plugin-1.0.dist-info", "base-1.0.dist-info"} <= installed

    def test_an_active_environment_can_be_made_anew(self, index: Index, tmp_path: Path) -> None:
        """``make`` in a shell that uses the environment neither takes that one's Python away nor counts it as another; nothing of before is left."""
        made = tmp_path / "made"
        assert install(python(made, _lock(tmp_path, *index.locked), pip=None)) is None
        _lock(tmp_path, *index.locked, "\n")
        (left := made / "left.py").touch()
        anew = (
            "import sys; from pathlib import Path; from tools.environments import install, python\n"
            f"sys.exit(install(python(Path({str(made)!r}), Path({str(tmp_path / 'lock.txt')!r}), pip=None)))"
        )
        done = subprocess.run(
            [made / "bin" / "python", "-c", anew], cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert python(made, tmp_path / "lock.txt", pip=None).is_ready
        assert not left.exists()

    def test_a_python_is_the_same_by_any_name(self, index: Index, tmp_path: Path) -> None:
        """``python3`` and ``python3.11`` are one, and so is the one of an environment; none makes anew what another made."""
        environment = python(tmp_path / "made", _lock(tmp_path, *index.locked), pip=None)
        (alias := tmp_path / "python").symlink_to(os.path.realpath(sys.executable))
        ask = (
            "from pathlib import Path; from tools.environments import python\n"
            f"print(python(Path({str(tmp_path / 'made')!r}), Path({str(tmp_path / 'lock.txt')!r}), pip=None).fingerprint)"
        )
        said = {
            subprocess.run([name, "-c", ask], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
            for name in (alias, sys.executable)
        }
        assert said == {environment.fingerprint}

    def test_a_python_without_a_pip_to_lend_brings_its_own(self, index: Index, tmp_path: Path) -> None:
        """Debian's may have none, and that of another Python may be too old or not start."""
        environment = python(tmp_path / "made", _lock(tmp_path, *index.locked), pip=None)
        assert environment.commands_without_pip != environment.commands
        assert install(replace(environment, commands=environment.commands_without_pip)) is None
        assert lends_pip(str(environment.program("python")))
        (pip,) = (tmp_path / "made").glob("lib/*/site-packages/pip/__main__.py")
        pip.write_text("raise SystemExit('no such option: --python')")
        lends_pip.cache_clear()
        assert not lends_pip(str(environment.program("python")))

    def test_two_at_once_make_one(self, tmp_path: Path) -> None:
        """Who comes second waits, and then has what the first one made."""
        count = "import pathlib, sys; print('made', file=pathlib.Path('made').open('a'))"
        environment = Environment(
            name="counted",
            pins=(),
            stamp=tmp_path / ".pins",
            programs=tmp_path,
            commands=((sys.executable, "-c", count),),
            folder=tmp_path,
        )
        with ThreadPoolExecutor(max_workers=4) as pool:
            assert list(pool.map(install, [environment] * 4)) == [None] * 4
        assert (tmp_path / "made").read_text() == "made\n"

    def test_what_cannot_be_made_is_told(self, tmp_path: Path) -> None:
        """A file where the environment should be is a sentence, no traceback."""
        (tmp_path / "made").touch()
        trouble = install(python(tmp_path / "made", _lock(tmp_path), pip=None))
        assert trouble is not None
        assert trouble.startswith("made: ")
