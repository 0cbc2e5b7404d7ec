"""Settings written as TOML: what is in effect, and the example that documents every key."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from mcp_sidecar.settings.settings import Settings
from mcp_sidecar.settings.values import masked

_WIDTH = 110
_EXAMPLE_URL = "http://127.0.0.1:9000/mcp"
_HEAD = """\
Settings of mcp-sidecar: every key with its default. Lines that begin with # and no blank are settings to uncomment.
Each key can also be given in the environment, as MCP_SIDECAR_<SECTION>__<KEY>; lists then comma-separated or as JSON.
Precedence: command line, environment, this file, defaults; of a value that is overridden only the key is checked.
Durations are numbers of seconds, or such as "500ms", "15s", "2m", "1h"; sizes are bytes, or such as "16MiB"."""


def effective(settings: Settings) -> str:
    """Write the settings in effect as TOML that can be read back, credentials hidden; keys without a value as comments."""
    parts = []
    for section, keys in settings.model_dump(mode="json").items():
        lines = [f"[{section}]"]
        lines += [f"#{key} = (not set)" if value is None else f"{key} = {_toml(value)}" for key, value in keys.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def example() -> str:
    """Write the example file: every key with its description, its default or, where that is none, an example."""
    defaults = Settings({"upstream": {"url": _EXAMPLE_URL}}).model_dump(mode="json")
    parts = ["\n".join(f"# {line}" for line in _HEAD.splitlines())]
    for section, field in Settings.model_fields.items():
        model: Any = field.annotation
        head = [f"# {model.__doc__}", f"[{section}]"]
        parts.append("\n".join([*head, *_entries(model, defaults[section])]))
    return "\n\n".join(parts) + "\n"


def _entries(model: type[BaseModel], defaults: Mapping[str, object]) -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield ""
        shows_example = bool(field.examples) and not field.is_required()
        text = f"{field.description}{' Default: none; for example:' if shows_example else ''}"
        yield from (f"# {line}" for line in textwrap.wrap(text, _WIDTH))
        if field.is_required():
            yield f"{key} = {_toml(defaults[key])}"
        elif shows_example:
            yield f"#{key} = {_toml((field.examples or [None])[0])}"
        else:
            yield f"#{key} = {_toml(defaults[key])}"


def _toml(value: object) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML basic string, DEL apart.
        return json.dumps(masked(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{key} = {_toml(item)}" for key, item in value.items() if item is not None)
        return f"{{ {', '.join(pairs)} }}"
    return repr(value)
