"""A reverse proxy that heals the sessions of the MCP server behind it."""

__version__ = "0.2.0"
