"""One file per HTTP method of the MCP endpoint, and one for mode ``observe``: carries out what the pure core decides."""
