"""Set up what the interoperability suite runs: SDK servers and clients, each in an environment of its own.

    python tools/interop_env.py [python] [node] [rust] [conformance] [all]

Idempotent: an environment whose pins have not changed is left alone. A tool that is missing on this machine (node, npm,
cargo) is said and is no failure, since the tests that need it are skipped with that reason; a failed installation is.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venvs"
SUITE = ROOT / "tests" / "interop"
REQUIREMENTS = SUITE / "requirements"
INSTALL_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Environment:
    """One thing to install: its pins decide whether it is up to date, ``stamp`` remembers them."""

    name: str
    needs: tuple[str, ...]
    pins: tuple[Path, ...]
    stamp: Path
    commands: tuple[tuple[str, ...], ...]
    folder: Path
    fresh: Path | None = None
    """Removed before an installation."""

    def fingerprint(self) -> str:
        """Name the state that the pins ask for; another Python is another state."""
        digest = hashlib.sha256(sys.version.encode())
        for pin in self.pins:
            digest.update(pin.read_bytes())
        return digest.hexdigest()

    @property
    def up_to_date(self) -> bool:
        """Whether the stamp names this state."""
        return self.stamp.is_file() and self.stamp.read_text() == self.fingerprint()


def python_environments() -> list[Environment]:
    """Return one virtual environment per requirements file."""
    return [_venv(file) for file in sorted(REQUIREMENTS.glob("*.txt")) if file.stem != "constraints"]


def _venv(requirements: Path) -> Environment:
    venv = VENVS / requirements.stem
    return Environment(
        name=requirements.stem,
        needs=(),
        pins=(requirements, REQUIREMENTS / "constraints.txt"),
        stamp=venv / ".pins",
        commands=(
            (sys.executable, "-m", "venv", str(venv)),
            (str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(requirements)),
        ),
        folder=ROOT,
        fresh=venv,
    )


def _npm(name: str, folder: Path) -> Environment:
    return Environment(
        name=name,
        needs=("node", "npm"),
        pins=(folder / "package.json",),
        stamp=folder / "node_modules" / ".pins",
        commands=(("npm", "install", "--no-audit", "--no-fund", "--loglevel=error"),),
        folder=folder,
    )


def node_environments() -> list[Environment]:
    """Return the TypeScript servers and clients."""
    return [_npm("node", SUITE / "node")]


def conformance_environments() -> list[Environment]:
    """Return the conformance suite, with the newer node that it wants."""
    return [_npm("conformance", SUITE / "node" / "conformance")]


def rust_environments() -> list[Environment]:
    """Return the rmcp servers, as one cargo workspace."""
    workspace = SUITE / "rust"
    return [
        Environment(
            name="rust",
            needs=("cargo",),
            pins=(*sorted(workspace.rglob("*.rs")), *sorted(workspace.glob("**/Cargo.toml"))),
            stamp=workspace / "target" / ".pins",
            commands=(("cargo", "build", "--quiet"),),
            folder=workspace,
        )
    ]


SETS: dict[str, Callable[[], list[Environment]]] = {
    "python": python_environments,
    "node": node_environments,
    "rust": rust_environments,
    "conformance": conformance_environments,
}


def install(environment: Environment) -> str | None:
    """Bring one environment up to date; return what went wrong, or None."""
    if environment.up_to_date:
        return None
    print(f"{environment.name}: installing", flush=True)
    environment.stamp.unlink(missing_ok=True)
    if environment.fresh is not None:
        shutil.rmtree(environment.fresh, ignore_errors=True)
    for command in environment.commands:
        if trouble := _run(command, environment.folder):
            return f"{environment.name}: {trouble}"
    environment.stamp.write_text(environment.fingerprint())
    return None


def _run(command: tuple[str, ...], folder: Path) -> str | None:
    try:
        done = subprocess.run(
            command, check=False, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {INSTALL_TIMEOUT_S} s"
    return None if done.returncode == 0 else f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}"


def _missing_tools(environment: Environment) -> list[str]:
    return [tool for tool in environment.needs if shutil.which(tool) is None]


def main(names: Iterable[str]) -> int:
    """Install the named sets, three at a time; exit status 1 if an installation failed, 2 for an unknown set."""
    wanted = list(SETS) if "all" in (chosen := list(names)) else chosen
    if not wanted or set(wanted) - SETS.keys():
        print(f"usage: interop_env.py [{'|'.join(SETS)}|all] ...", file=sys.stderr)
        return 2
    environments = [environment for name in wanted for environment in SETS[name]()]
    for environment in environments:
        if missing := _missing_tools(environment):
            print(f"{environment.name}: {' and '.join(missing)} not found; the tests that need it are skipped")
    able = [environment for environment in environments if not _missing_tools(environment)]
    with ThreadPoolExecutor(max_workers=3) as pool:
        troubles = [trouble for trouble in pool.map(install, able) if trouble]
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
