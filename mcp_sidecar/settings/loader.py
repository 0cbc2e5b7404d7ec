"""From what an operator wrote to ``Settings``, or to every mistake in it, one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mcp_sidecar.config import SidecarConfig
from mcp_sidecar.settings import sources
from mcp_sidecar.settings.settings import Misfit, Settings
from mcp_sidecar.settings.toml import effective
from mcp_sidecar.settings.values import shown

KEYS: sources.Keys = {
    section: frozenset(field.annotation.model_fields)  # type: ignore[union-attr]
    for section, field in Settings.model_fields.items()
}
"""Every key of every section."""

_REQUIRED = {"upstream.url": "is required: give --upstream URL, MCP_SIDECAR_UPSTREAM, or url in the section [upstream]"}
_SENTENCES = {
    "extra_forbidden": "unknown key",
    "missing": "is required",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "bool_type": "must be true or false, not {shown}",
    "bool_parsing": "must be true or false, not {shown}",
    "int_type": "must be a whole number, not {shown}",
    "int_parsing": "must be a whole number, not {shown}",
    "int_parsing_size": "must be a whole number, not {shown}",
    "int_from_float": "must be a whole number, not {shown}",
    "greater_than_equal": "must be at least {ge}, not {shown}",
    "enum": "must be {expected}, not {shown}",
}
"""What pydantic's kinds of mistakes are in words. They are told as they are where none stands here: never with a value."""


class Mistakes(Exception):
    """The settings cannot be used. ``lines`` has one line per mistake, beginning with its key, then what means nothing."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings that can be used, and lines about what was given and means nothing."""

    settings: Settings
    warnings: tuple[str, ...]

    @property
    def config(self) -> SidecarConfig:
        """What the sidecar is handed: the settings themselves stay here."""
        settings = self.settings
        return SidecarConfig(
            upstream=settings.upstream_config(),
            listen=settings.listen_config(),
            limits=settings.limits_config(),
            sessions=settings.session_limits(),
            has_chosen_max_sessions=settings.has_chosen_max_sessions,
            store=settings.store_config(),
            policy=settings.policy(),
            admin_address=settings.admin_address,
            admin_token_file=settings.admin.token_file,
            log_format=settings.log_format,
            log_level=settings.log_level,
            shown=effective(settings),
        )


def load(options: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> Loaded:
    """Read all levels: command line, environment, TOML, defaults, in this order of precedence.

    ``options`` holds what was given on the command line: the option's name without dashes, and every value of it. Raises
    Mistakes with all mistakes of all levels; of a value that a more important level replaces, only the name is checked.
    """
    line = sources.from_options(options, _means_the_same)
    variables = sources.from_environment(environment, KEYS, _means_the_same)
    given, unreadable = [line, variables], []
    path = sources.config_path(options, environment, line)
    try:
        given += [sources.from_toml(path, KEYS)] if path is not None else []
    except sources.FileMistake as error:
        unreadable.append(str(error))
    settings, wrong = _validated(given, complete=not unreadable)
    lines = [*unreadable, *(mistake for level in given for mistake in level.mistakes), *wrong]
    warnings = tuple(_one_line(text) for level in given for text in level.warnings)
    if settings is None or lines:
        raise Mistakes([*map(_one_line, lines), *warnings])
    return Loaded(settings.standing_in(environment), warnings)


def _means_the_same(key: tuple[str, str], first: object, second: object) -> bool:
    """Whether two values of a key are equal as read; what cannot be read equals nothing."""
    section, name = key
    field = Settings.model_fields[section].annotation.model_fields[name]  # type: ignore[union-attr]
    adapter: TypeAdapter[object] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    try:
        return adapter.validate_python(first) == adapter.validate_python(second)
    except ValidationError:
        return False


def _validated(given: Sequence[sources.Level], *, complete: bool) -> tuple[Settings | None, list[str]]:
    try:
        return Settings(*(level.values for level in given)), []
    except ValidationError as error:
        # Nobody can tell what a file that cannot be read would have held.
        wrong = [item for item in error.errors() if complete or item["type"] != "missing"]
        return None, [_line(item, given) for item in wrong]


def _line(mistake: ErrorDetails, given: Sequence[sources.Level]) -> str:
    where, kind, context = mistake["loc"], mistake["type"], mistake.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Misfit):
        where = (*where, cause.key)
    path = _path(where)
    givers = [level.givers[where[:2]] for level in given if where[:2] in level.givers]  # type: ignore[index]
    if isinstance(cause, ValueError):
        sentence = str(cause)
    elif kind == "missing" and path in _REQUIRED:
        sentence = _REQUIRED[path]
    elif kind in _SENTENCES:
        words = {name: str(value).replace("'", "") for name, value in context.items()}
        sentence = _SENTENCES[kind].format(shown=shown(mistake["input"]), **words)
    else:
        sentence = mistake["msg"]
    return f"{path}: {sentence} ({givers[0]})" if givers else f"{path}: {sentence}"


def _path(where: tuple[int | str, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where).removeprefix(".")


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
