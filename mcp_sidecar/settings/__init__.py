"""The only reader of environment and TOML: what the operator wrote, as ``Settings``."""

from mcp_sidecar.settings.loading import KEYS, Loaded, Mistakes, load
from mcp_sidecar.settings.toml import effective, example
from mcp_sidecar.settings.tree import Settings

__all__ = ["KEYS", "Loaded", "Mistakes", "Settings", "effective", "example", "load"]
