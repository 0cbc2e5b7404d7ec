"""Where settings come from: command line, environment and TOML, each read into one level.

The law of this file: it decides which key a name means and nothing about values; whatever it cannot place becomes a
line for the operator, and it goes on. The process's environment and the file system come in as arguments and paths.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcp_sidecar.settings.values import shown

PREFIX = "MCP_SIDECAR_"
CONFIG_OPTION = "config"

SHORT_NAMES: Mapping[str, tuple[str, str]] = {
    "upstream": ("upstream", "url"),
    "listen": ("listen", "address"),
    "admin": ("admin", "address"),
    "mode": ("healing", "mode"),
    "store": ("sessions", "store"),
    "log-format": ("log", "format"),
    "log-level": ("log", "level"),
}
"""The options of the command line and the keys that they set."""

_SHORT_VARIABLES = {PREFIX + name.upper().replace("-", "_"): key for name, key in SHORT_NAMES.items()}
_CONFIG_VARIABLE = PREFIX + CONFIG_OPTION.upper()

# What Kubernetes sets in every pod of a namespace that has a Service named mcp-sidecar, or mcp-sidecar-something.
_OF_A_SERVICE = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)",
    re.ASCII,
)

Keys = Mapping[str, frozenset[str]]
Same = Callable[[tuple[str, str], object, object], bool]
"""Whether two values of a key that are written differently mean the same."""


@dataclass(slots=True)
class Level:
    """One source of settings, as read: raw values by section and key, and who gave each."""

    values: dict[str, dict[str, object]] = field(default_factory=dict)
    givers: dict[tuple[str, str], str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    means_the_same: Same = lambda _key, _first, _second: False

    def give(self, key: tuple[str, str], value: object, giver: str) -> None:
        """Take a value; a second one for the same key that means something else is a mistake."""
        section, name = key
        known = self.values.setdefault(section, {})
        if key in self.givers and known[name] != value and not self.means_the_same(key, known[name], value):
            self.mistakes.append(f"{section}.{name}: {_both(self.givers[key], giver)} give different values")
            return
        known[name] = value
        self.givers[key] = giver


def _both(first: str, second: str) -> str:
    return f"two {first}" if first == second else f"{first} and {second}"


def from_options(options: Mapping[str, Sequence[str]], means_the_same: Same) -> Level:
    """Read the command line: every value of every option that was given, by the option's name without dashes."""
    level = Level(means_the_same=means_the_same)
    for name, key in SHORT_NAMES.items():
        for value in options.get(name, ()):
            level.give(key, value, f"--{name}")
    return level


def from_environment(environment: Mapping[str, str], keys: Keys, means_the_same: Same) -> Level:
    """Read the variables that begin with ``MCP_SIDECAR_``. An empty one counts as not set, as compose files mean it."""
    level = Level(means_the_same=means_the_same)
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name == _CONFIG_VARIABLE:
            continue
        key = _SHORT_VARIABLES.get(name) or _long_name(name, keys, level)
        if key and value.strip():
            level.give(key, value.strip(), name)
    return level


def _long_name(variable: str, keys: Keys, level: Level) -> tuple[str, str] | None:
    section, nested, key = variable.removeprefix(PREFIX).partition("__")
    if not nested and _OF_A_SERVICE.fullmatch(section):
        return None
    if not nested or section.lower() not in keys:
        names = [*_SHORT_VARIABLES, _CONFIG_VARIABLE, *(_variable(*each) for each in _flat(keys))]
        level.warnings.append(f"{variable}: unknown environment variable{nearest(variable, names, PREFIX)}")
        return None
    path = (section.lower(), key.lower())
    if path[1] not in keys[path[0]]:
        level.mistakes.append(_unknown(f"{path[0]}.{path[1]}", variable, path[0], keys))
        return None
    if variable != _variable(*path):
        level.mistakes.append(f"{path[0]}.{path[1]}: is written {_variable(*path)} ({variable})")
        return None
    return path


def _variable(section: str, key: str) -> str:
    return f"{PREFIX}{section}__{key}".upper()


def _flat(keys: Keys) -> list[tuple[str, str]]:
    return [(section, key) for section, names in keys.items() for key in names]


def _unknown(path: str, giver: str, section: str, keys: Keys) -> str:
    known = [f"{section}.{key}" for key in keys[section]]
    return f"{path}: unknown key{nearest(path, known, f'{section}.')} ({giver})"


def nearest(name: str, known: Iterable[str], shared: str = "", *, cutoff: float = 0.75) -> str:
    """Suggest the nearest name; ``shared`` is what all begin with and says nothing about nearness."""
    rest = name.removeprefix(shared)
    close = difflib.get_close_matches(rest, sorted(each.removeprefix(shared) for each in known), n=1, cutoff=cutoff)
    return f"; did you mean {shared}{close[0]}?" if close else ""


def config_path(options: Mapping[str, Sequence[str]], environment: Mapping[str, str], level: Level) -> str | None:
    """Find the TOML file's name, if one was given; two different ones are a mistake of the command line's ``level``."""
    given = options.get(CONFIG_OPTION, ())
    if len(set(given)) > 1:
        level.mistakes.append("config: two --config give different values")
    return given[0] if given else environment.get(_CONFIG_VARIABLE, "").strip() or None


def from_toml(path: str, keys: Keys) -> Level:
    """Read a TOML file. Raises FileMistake where there is nothing to read in it."""
    level = Level()
    for section, table in _tables(path).items():
        if section not in keys:
            level.mistakes.append(f"{section}: unknown section{nearest(section, keys)} ({path})")
        elif not isinstance(table, dict):
            level.mistakes.append(f"{section}: must be a section with keys, not {shown(table)} ({path})")
        else:
            _take_table(level, section, table, keys, path)
    return level


def _take_table(level: Level, section: str, table: Mapping[str, object], keys: Keys, path: str) -> None:
    for key, value in table.items():
        if key in keys[section]:
            level.give((section, key), value, path)
        else:
            level.mistakes.append(_unknown(f"{section}.{key}", path, section, keys))


class FileMistake(Exception):
    """The TOML file cannot be read, or is none."""


def _tables(path: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FileMistake(f"config: {path}: not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FileMistake(f"config: {path}: not TOML: {error}") from error
    except OSError as error:
        raise FileMistake(f"config: {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a path with a NUL in it
        raise FileMistake(f"config: {path}: cannot be read: {error}") from error
