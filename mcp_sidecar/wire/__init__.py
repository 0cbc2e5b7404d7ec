"""What MCP looks like on the wire: bytes, headers and revisions. Pure; standard library only."""
