"""What MCP looks like on the wire: bytes, headers and revisions. Pure; standard library, and msgspec where there is one."""
