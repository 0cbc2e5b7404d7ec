"""``mcp-sidecar new-key``: one line for ``sessions.key_file``."""

from mcp_sidecar.sessions.stores.keys import new_key

__all__ = ["new_key"]
