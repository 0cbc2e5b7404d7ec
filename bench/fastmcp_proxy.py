"""fastmcp's proxy, in its own environment: ``python fastmcp_proxy.py UPSTREAM_URL PORT [kept]``.

As fastmcp's documentation says it, which makes a new upstream session for every call; or, ``kept``, with a client that is
connected once.
"""

from __future__ import annotations

import asyncio
import sys

from fastmcp import Client
from fastmcp.server import create_proxy


async def main(url: str, port: int, *, kept: bool) -> None:
    """Serve until killed."""
    options = {"host": "127.0.0.1", "port": port, "path": "/mcp", "show_banner": False, "log_level": "warning"}
    if kept:
        async with Client(url) as client:
            await create_proxy(client).run_async(transport="http", **options)
    else:
        await create_proxy(url).run_async(transport="http", **options)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), kept=sys.argv[3:] == ["kept"]))
