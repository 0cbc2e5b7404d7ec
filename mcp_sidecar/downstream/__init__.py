"""A client's connection: HTTP towards the client; knows nothing of MCP."""
