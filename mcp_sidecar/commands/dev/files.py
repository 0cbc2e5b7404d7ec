"""Which changes of files restart the server: of sources, and of nothing that is generated, installed or ignored by git."""

from __future__ import annotations

import asyncio
import fnmatch
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pathspec
from watchfiles import Change, DefaultFilter, awatch

SETTLE_MS: Final = 10
"""Changes are collected until none has come for so long: an editor that saves, a formatter behind it."""
STORM_MS: Final = 1_000
"""But no longer than this: a branch that is checked out changes a thousand files."""

SOURCES: Final = frozenset(
    {".py", ".pyi", ".js", ".mjs", ".cjs", ".jsx", ".ts", ".mts", ".cts", ".tsx", ".go", ".rs", ".rb", ".php"}
    | {".java", ".kt", ".cs", ".toml", ".yaml", ".yml", ".env"}
)
"""What restarts where nobody says more. Not JSON, databases and logs: servers write those themselves."""

IGNORE_FILE: Final = ".gitignore"


@dataclass(slots=True)
class Filter:
    """Whether a path counts. ``patterns`` are more than sources, ``ignored`` less, in the form of lines of `.gitignore`."""

    root: Path
    patterns: Sequence[str] = ()
    ignored: Sequence[str] = ()
    files: frozenset[Path] = frozenset()
    _usual: DefaultFilter = field(default_factory=DefaultFilter)
    _specs: dict[Path, pathspec.GitIgnoreSpec | None] = field(default_factory=dict)

    def __call__(self, change: Change, path: str) -> bool:
        """See above; ``files`` were named one by one and always count."""
        place = Path(path)
        if place in self.files:
            return True
        if place.name == IGNORE_FILE:
            self._specs.clear()
            return False
        return self._is_source(place) and self._usual(change, path) and not self._is_ignored(place)

    def _is_source(self, place: Path) -> bool:
        is_wanted = any(fnmatch.fnmatch(place.name, pattern) for pattern in self.patterns)
        return is_wanted or place.suffix in SOURCES or place.name in SOURCES

    def _is_ignored(self, place: Path) -> bool:
        own = pathspec.GitIgnoreSpec.from_lines(self.ignored)
        if not place.is_relative_to(self.root):
            return own.match_file(place.name)
        relative = place.relative_to(self.root)
        if own.match_file(relative.as_posix()):
            return True
        folders = [self.root / parent for parent in relative.parents]
        return any(
            spec is not None and spec.match_file(place.relative_to(folder).as_posix())
            for folder in folders
            if (spec := self._spec_of(folder))
        )

    def _spec_of(self, folder: Path) -> pathspec.GitIgnoreSpec | None:
        if folder not in self._specs:
            try:
                lines = (folder / IGNORE_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:
                lines = []
            self._specs[folder] = pathspec.GitIgnoreSpec.from_lines(lines) if lines else None
        return self._specs[folder]


def watched(root: Path, named: Iterable[str], ignored: Sequence[str]) -> tuple[list[Path], Filter]:
    """The paths to watch and which changes in them count. ``named``: paths and patterns of `--watch`, from ``root``.

    Raises FileNotFoundError for a path that is not there; a pattern holds one of ``*?[``.
    """
    patterns = [name for name in named if any(sign in name for sign in "*?[")]
    paths = [(root / name).resolve() for name in named if name not in patterns]
    for path in paths:
        path.lstat()
    files = frozenset(path for path in paths if not path.is_dir())
    return [root, *(path for path in paths if not path.is_relative_to(root))], Filter(root, patterns, ignored, files)


async def changes(paths: Sequence[Path], wanted: Filter, *, polls: bool = False) -> AsyncIterator[set[Path]]:
    """The files that changed, in one set per save. Raises OSError where the system watches no more files."""
    try:
        async for batch in _batches(paths, wanted, polls=polls):
            yield batch
    except PermissionError:
        async for batch in _readable_batches(paths, wanted, polls=polls):
            yield batch


async def _readable_batches(paths: Sequence[Path], wanted: Filter, *, polls: bool) -> AsyncIterator[set[Path]]:
    """One by one: a folder that may not be read, such as a database's, keeps watchfiles 1.3 from further ones."""
    while True:
        has_grown = asyncio.Event()

        def noting(change: Change, path: str, has_grown: asyncio.Event = has_grown) -> bool:
            if change is Change.added and Path(path).is_dir():
                has_grown.set()
            return wanted(change, path)

        async for batch in _batches(readable(paths), noting, polls=polls, recursive=False, stop_event=has_grown):
            yield batch


def readable(paths: Sequence[Path]) -> list[Path]:
    """These, and all folders in them that may be read and are not left out anyway."""
    found = [path for path in paths if not path.is_dir()]
    for path in paths:
        for folder, names, _ in os.walk(path):  # which passes over what may not be read
            names[:] = set(names).difference(DefaultFilter.ignore_dirs)
            found.append(Path(folder))
    return found


async def _batches(
    paths: Sequence[Path],
    wanted: Callable[[Change, str], bool],
    *,
    polls: bool,
    recursive: bool = True,
    stop_event: asyncio.Event | None = None,
) -> AsyncIterator[set[Path]]:
    async for batch in awatch(
        *paths,
        watch_filter=wanted,
        debounce=STORM_MS,
        step=SETTLE_MS,
        force_polling=polls or None,
        recursive=recursive,
        stop_event=stop_event,
    ):
        yield {Path(path) for _, path in batch}


def told(changed: Iterable[Path], root: Path) -> str:
    """What changed, in a few words."""
    names = sorted(str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in changed)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
