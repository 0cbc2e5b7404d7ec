"""Tests of ``mcp_sidecar.settings``."""
