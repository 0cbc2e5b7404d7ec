"""Environments made from locks, without resolving anything: what a lock does not name is not installed.

    python -m tools.environments FOLDER LOCK... [--editable] [--no-compile]

The rule of this file: no install command may choose a version. Python: every distribution with its hash, wheels only (a build
would resolve what it needs), then ``pip check``. npm: ``ci``, without install scripts (they would fetch more). Cargo:
``--locked``. Go: ``-mod=readonly``. An environment whose pins have not changed is left alone.

Python environments are filled by the pip of ``tools/requirements/pip.txt``, which whatever pip the Python has puts there: it
needs a third of the time of those that Python 3.11 and 3.12 bring. The locks work with those, too (``tools/installs.py``).

Of this machine's settings only those reach pip that say where from and how: none may choose what is installed, or where to.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
VENVS: Final = ROOT / ".venvs"
PROJECT: Final = ROOT / "pyproject.toml"
PIP_LOCK: Final = ROOT / "tools" / "requirements" / "pip.txt"
INSTALL_TIMEOUT_S: Final = 1800
AT_A_TIME: Final = 3

# Never that of an environment: it may be the one that is made anew, and would take its own Python away.
_BASE: Final = str(getattr(sys, "_base_executable", sys.executable))
BASE: Final = _BASE if Path(_BASE).is_file() else os.path.realpath(sys.executable)
ELSEWHERE: Final = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONPLATLIBDIR"})
"""Variables that show a Python modules of others: pip takes a distribution that it finds there for installed."""
WHERE_FROM: Final = frozenset(
    {
        *(
            "PIP_INDEX_URL",
            "PIP_EXTRA_INDEX_URL",
            "PIP_FIND_LINKS",
            "PIP_NO_INDEX",
            "PIP_CONFIG_FILE",
            "PIP_KEYRING_PROVIDER",
        ),
        *("PIP_CERT", "PIP_CLIENT_CERT", "PIP_TRUSTED_HOST", "PIP_PROXY", "PIP_USE_FEATURE", "PIP_USE_DEPRECATED"),
        *("PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES", "PIP_CACHE_DIR", "PIP_NO_CACHE_DIR", "PIP_NO_INPUT"),
        "PIP_UPLOADED_PRIOR_TO",  # can refuse, but not choose
    }
)
"""The variables of pip that stay as they are set."""
NOT_FROM_CONFIG: Final = {"PIP_USER": "0", "PIP_DRY_RUN": "0", "PIP_REQUIRE_HASHES": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
"""What a pip.conf may ask of every installation, and what none of these can do."""

PIP: Final = ("-m", "pip", "--disable-pip-version-check")
FROM_LOCK: Final = ("install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:")
NO_COMPILE: Final = "--no-compile"
EDITABLE: Final = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
NPM_CI: Final = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
CARGO_BUILD: Final = ("cargo", "build", "--quiet", "--locked")
# Neither a newer toolchain nor a setting of this machine decides what is built.
GO_BUILD: Final = (
    "env",
    "GOTOOLCHAIN=local",
    "GOFLAGS=",
    "CGO_ENABLED=0",
    "go",
    "build",
    "-mod=readonly",
    "-buildvcs=false",
)

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """One thing to install: its pins decide whether it is up to date, ``stamp`` remembers them."""

    name: str
    pins: tuple[bytes, ...]
    stamp: Path
    programs: Path
    commands: tuple[Command, ...]
    folder: Path = ROOT
    needs: tuple[str, ...] = ()
    """Programs without which it cannot be made."""
    guard: Path | None = None
    """A folder that outlives an installation, and is locked for it; ``folder`` if None."""
    commands_without_pip: tuple[Command, ...] = ()
    """The commands for a Python that has no pip to lend, where they are others."""

    def program(self, name: str) -> Path:
        """Return where a program of it is, whether it is installed or not."""
        return self.programs / name

    @property
    def fingerprint(self) -> str:
        """Name the state that the pins ask for; another Python or another command is another state."""
        commands = repr(self.commands).replace(repr(BASE), repr(os.path.realpath(BASE)))  # it has several names
        digest = hashlib.sha256(f"{sys.version}\n{commands}".encode())
        for pin in self.pins:
            digest.update(hashlib.sha256(pin).digest())
        return digest.hexdigest()

    @property
    def is_ready(self) -> bool:
        """Whether it is installed as its pins say."""
        return self.stamp.is_file() and self.stamp.read_text(encoding="utf-8") == self.fingerprint

    @property
    def lacking(self) -> list[str]:
        """The programs that it needs and that this machine does not have."""
        return [program for program in self.needs if shutil.which(program) is None]


def python(
    folder: Path, *locks: Path, editable: bool = False, compiled: bool = True, pip: Path | None = PIP_LOCK
) -> Environment:
    """Return the virtual environment of these locks.

    ``editable`` adds the project, which the locks must be able to build. What is not ``compiled`` here is compiled when it is
    first used: less work where little of it is, but a slow first start. ``pip`` is the lock of the pip that fills it, None
    the one that this Python brings.
    """
    inside = str(folder / "bin" / "python")
    files = tuple(word for lock in locks for word in ("-r", str(lock)))

    def commands(*, lent: bool) -> tuple[Command, ...]:
        made, by_pip = _with_pip(folder, inside, pip, lent=lent)
        return (
            *made,
            (*by_pip, *FROM_LOCK, *(() if compiled else (NO_COMPILE,)), *files),
            *(((*by_pip, *EDITABLE),) if editable else ()),
            (*by_pip, "check"),
        )

    return Environment(
        name=folder.name.removeprefix("."),
        pins=(
            *(lock.read_bytes() for lock in (*locks, *((pip,) if pip else ()))),
            *((_project(),) if editable else ()),
        ),
        stamp=folder / ".pins",
        programs=folder / "bin",
        commands=commands(lent=True),
        commands_without_pip=commands(lent=False),
        guard=folder,
    )


def _with_pip(folder: Path, inside: str, pip: Path | None, *, lent: bool) -> tuple[tuple[Command, ...], Command]:
    """Return what makes the folder, and the words that a pip which fills it is called with.

    Where the Python that makes it can lend its pip, that one does the first step from outside: copying it would take longer
    than all the rest.
    """
    venv = (BASE, "-m", "venv", "--clear", *(("--without-pip",) if lent else ()), str(folder))
    brought = (BASE, *PIP, "--python", inside) if lent else (inside, *PIP)
    if pip is None:
        return (venv,), brought
    return (venv, (*brought, *FROM_LOCK, NO_COMPILE, "-r", str(pip))), (inside, *PIP)


@functools.cache
def lends_pip(program: str) -> bool:
    """Whether a Python has a pip that can fill another environment.

    Debian's may have none; ``--python`` came with pip 22.3; and on Ubuntu a newer Python finds the system's pip, which does
    not even start there.
    """
    return run((program, *PIP, "--python", program, "--version"), ROOT) is None


def _project() -> bytes:
    """Return what an editable installation is made from: the metadata, and not how the tools are configured."""
    tables = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    return json.dumps([tables["build-system"], tables["project"]], sort_keys=True).encode()


def npm(name: str, folder: Path) -> Environment:
    """Return the ``node_modules`` of a folder."""
    return Environment(
        name=name,
        needs=("node", "npm"),
        pins=((folder / "package.json").read_bytes(), (folder / "package-lock.json").read_bytes()),
        stamp=folder / "node_modules" / ".pins",
        programs=folder / "node_modules" / ".bin",
        commands=(NPM_CI,),
        folder=folder,
    )


def cargo(name: str, workspace: Path) -> Environment:
    """Return the debug build of a cargo workspace."""
    sources = (workspace / "Cargo.lock", *sorted(workspace.rglob("*.rs")), *sorted(workspace.glob("**/Cargo.toml")))
    return Environment(
        name=name,
        needs=("cargo",),
        pins=tuple(source.read_bytes() for source in sources),
        stamp=workspace / "target" / ".pins",
        programs=workspace / "target" / "debug",
        commands=(CARGO_BUILD,),
        folder=workspace,
    )


def go(
    name: str, module: Path, program: Path, *, modfile: str = "go.mod", packages: Sequence[str] = (".",)
) -> Environment:
    """Return the build of a Go module; with another ``modfile``, also the build tag of its name.

    Of several ``packages`` each is a program in the folder ``program``.
    """
    locked = module / modfile
    sources = (locked, locked.with_suffix(".sum"), *sorted(module.glob("*.go")))
    return Environment(
        name=name,
        needs=("go",),
        pins=tuple(source.read_bytes() for source in sources),
        stamp=program.with_suffix(".pins"),
        programs=program.parent if len(packages) == 1 else program,
        commands=(
            (*GO_BUILD, f"-modfile={modfile}", f"-tags={locked.stem}", "-o", _built(program, packages), *packages),
        ),
        folder=module,
    )


def _built(program: Path, packages: Sequence[str]) -> str:
    return str(program) if len(packages) == 1 else f"{program}/"


def install(environment: Environment) -> str | None:
    """Bring one environment up to date; return what went wrong, or None."""
    if environment.is_ready:
        return None
    try:
        with _alone(environment):
            return None if environment.is_ready else _install(environment)
    except OSError as trouble:
        return f"{environment.name}: {trouble}"


@contextlib.contextmanager
def _alone(environment: Environment) -> Iterator[None]:
    """Wait until nobody else is making it: two verbs may be started at once."""
    guard = environment.guard or environment.folder
    guard.mkdir(parents=True, exist_ok=True)
    held = os.open(guard, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that knows no locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _install(environment: Environment) -> str | None:
    print(f"{environment.name}: installing", flush=True)
    environment.stamp.unlink(missing_ok=True)
    without_pip = environment.commands_without_pip
    for command in without_pip if without_pip and not lends_pip(BASE) else environment.commands:
        if trouble := run(command, environment.folder):
            return f"{environment.name}: {trouble}"
    environment.stamp.write_text(environment.fingerprint, encoding="utf-8")
    return None


def install_all(environments: Iterable[Environment]) -> list[str]:
    """Bring them up to date, some at a time; return what went wrong."""
    with ThreadPoolExecutor(max_workers=AT_A_TIME) as pool:
        return [trouble for trouble in pool.map(install, environments) if trouble]


def install_debian(packages: Mapping[str, str], say: Callable[[str], None]) -> bool:
    """Install what is missing of these programs, each with Debian's package that has it; return whether all are there.

    Where there is no ``apt-get``, or no right to use it, the line that says what to install is all that happens.
    """
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if not missing:
        return True
    by_hand = f"install {' and '.join(missing)} by hand, then run this again"
    if shutil.which("apt-get") is None:
        say(f"no apt-get here: {by_hand}")
        return False
    before = ("sudo", "-n") if os.getuid() != 0 and shutil.which("sudo") else ()
    for arguments in (("update", "-qq"), ("install", "-y", "-qq", "--no-install-recommends", *missing)):
        if trouble := run((*before, "apt-get", *arguments), ROOT):
            say(f"{trouble}\n{by_hand}")
            return False
    return all(shutil.which(program) for program in packages)


def run(command: Command, folder: Path) -> str | None:
    """Run a package manager quietly; return what it said if it failed, or None."""
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INSTALL_TIMEOUT_S,
            env=_settings(os.environ),
        )
    except (subprocess.TimeoutExpired, OSError) as trouble:
        return f"{command[0]}: {trouble}"
    return None if done.returncode == 0 else f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}"


def _settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those that could choose what is installed, or where to."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in ELSEWHERE and (not name.startswith("PIP_") or name in WHERE_FROM)
    }
    return kept | NOT_FROM_CONFIG | {"DEBIAN_FRONTEND": "noninteractive"}


def main(arguments: Sequence[str]) -> int:
    """Make one virtual environment; exit status 1 if that failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.environments", description="Make an environment from locks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("locks", type=Path, nargs="+")
    parser.add_argument("--editable", action="store_true", help="add the project itself, as it is in this checkout")
    parser.add_argument(NO_COMPILE, action="store_true", help="leave compiling to the first use")
    given = parser.parse_args(arguments)
    locks = [lock.resolve() for lock in given.locks]
    environment = python(given.folder.resolve(), *locks, editable=given.editable, compiled=not given.no_compile)
    trouble = install(environment)
    if trouble:
        print(trouble, file=sys.stderr)
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
