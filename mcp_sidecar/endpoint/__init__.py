"""One file per HTTP method of the MCP endpoint, and what passes beside it: carries out what the pure core decides."""
