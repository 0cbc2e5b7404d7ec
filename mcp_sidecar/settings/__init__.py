"""The only reader of environment and TOML: what the operator wrote, as ``Settings``."""

from mcp_sidecar.settings.loader import KEYS, Loaded, Mistakes, load
from mcp_sidecar.settings.settings import Settings
from mcp_sidecar.settings.toml import effective, example

__all__ = ["KEYS", "Loaded", "Mistakes", "Settings", "effective", "example", "load"]
