"""Resolve anew what the environments are installed from: every lock that is in the repository.

    python -m tools.locks [--keep] [project] [interop] [bench] [npm] [cargo] [go]

The rule of this file: it is the only one that resolves, and what it writes names versions and hashes, but no registry's
address. A Python lock is universal: one file for every Python and platform that is promised, with markers where they differ.
``--keep`` changes only what a changed requirement forces; without it everything becomes the newest that fits.

An extra needs no word here: the development lock has them all. A file ``NAME.in`` in one of ``FOLDERS`` is another lock.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.environments import PROJECT, ROOT, VENVS, install, python

TOOL: Final = VENVS / "lock"
TOOL_LOCK: Final = ROOT / "tools" / "requirements" / "lock.txt"
HEADER: Final = "make lock"
FOLDERS: Final = {
    "project": ROOT / "tools" / "requirements",
    "interop": ROOT / "tests" / "interop" / "requirements",
    "bench": ROOT / "bench" / "requirements",
}
NPM: Final = tuple(ROOT / folder for folder in ("tests/interop/node", "tests/interop/node/conformance", "bench/node"))
CARGO: Final = (ROOT / "tests" / "interop" / "rust",)
GO_SERVERS: Final = ROOT / "tests" / "interop" / "go"
GO: Final = (
    (GO_SERVERS / "mcp_go", "go.mod"),
    (GO_SERVERS / "mcp_go", "v0_43.mod"),
    (GO_SERVERS / "go_sdk", "go.mod"),
    (ROOT / "tools" / "charts", "go.mod"),
)
"""Folder and module file of each Go server, whose version is what is tested, and of tools: only what they need changes."""
DEVELOPMENT: Final = ROOT / "requirements-dev.txt"


@dataclass(frozen=True, slots=True)
class Lock:
    """One file of pinned requirements, and what uv resolves it from."""

    file: Path
    sources: tuple[str, ...]


def project_locks() -> list[Lock]:
    """Return the project's own, the widest first: the others take their versions from it."""
    within = ("--constraint", str(DEVELOPMENT))
    return [
        Lock(DEVELOPMENT, (str(PROJECT), "--all-extras")),
        Lock(ROOT / "requirements-demo.txt", (str(PROJECT), "--extra", "demo", *within)),
        Lock(ROOT / "requirements.txt", (str(PROJECT), *_extras("sealed", "redis", "otel"), *within)),
    ]


def _extras(*names: str) -> Iterator[str]:
    for name in names:
        yield from ("--extra", name)


def locks(part: str) -> list[Lock]:
    """Return the Python locks of one part."""
    listed = [Lock(source.with_suffix(".txt"), (str(source),)) for source in sorted(FOLDERS[part].glob("*.in"))]
    return [*(project_locks() if part == "project" else []), *listed]


def promised_pythons() -> list[str]:
    """Return the versions that the package says it is for, oldest first."""
    classifiers = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["classifiers"]
    said = [words[-1] for words in (classifier.split(" :: ") for classifier in classifiers) if "Python" in words[:-1]]
    return sorted(said, key=lambda version: int(version.partition(".")[2]))


def commands(part: str, *, keep: bool) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folder and the command for each lock of a part."""
    if part == "npm":
        for folder in NPM:
            verb = "install" if keep else "update"  # install leaves what the lock has
            yield folder, ["npm", verb, "--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund"]
    elif part == "cargo":
        for workspace in CARGO:
            yield workspace, ["cargo", "update", *(["--workspace"] if keep else [])]
    elif part == "go":
        for module, modfile in GO:
            yield module, ["go", "mod", "tidy", f"-modfile={modfile}"]
    else:
        for lock in locks(part):
            yield ROOT, [*_uv(), *([] if keep else ["--upgrade"]), "--output-file", str(lock.file), *lock.sources]


def _uv() -> list[str]:
    wheels = ("--only-binary", ":all:")  # as they are installed: a build would resolve what it needs
    silent = ("--quiet", "--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", HEADER)
    oldest = promised_pythons()[0]
    program = str(TOOL / "bin" / "uv")
    return [program, "pip", "compile", "--universal", "--python-version", oldest, "--generate-hashes", *wheels, *silent]


def main(arguments: Sequence[str]) -> int:
    """Write the locks of the named parts, or all; exit status 1 where one cannot be resolved."""
    parts = [*FOLDERS, "npm", "cargo", "go"]
    parser = argparse.ArgumentParser(prog="python -m tools.locks", description="Resolve the locks anew.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(parts)}; by default all")
    parser.add_argument("--keep", action="store_true", help="change only what has to change")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(parts):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if trouble := install(python(TOOL, TOOL_LOCK)):
        print(trouble, file=sys.stderr)
        return 1
    for part in given.parts or parts:
        for folder, command in commands(part, keep=given.keep):
            if shutil.which(command[0]) is None:
                print(f"{part}: {command[0]} not found; left as it is")
                continue
            print(f"{part}: {' '.join(command)}".replace(f"{ROOT}/", ""), flush=True)
            if subprocess.run(command, cwd=folder, check=False).returncode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
