"""The demo's MCP server: a shopping cart in memory, on the official SDK, with sessions.

The rule of this file: it knows nothing of the sidecar. It is what a user's own server is like: it hands out session ids,
keeps everything in memory, and has forgotten both after a restart. ``python -m mcp_sidecar.commands.demo.server PORT`` prints
the port that it bound (0 picks one) as a line of its own once it answers.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn
from mcp.server.fastmcp import FastMCP

HOST = "127.0.0.1"


class AnnouncingServer(uvicorn.Server):
    """Says on standard output which port it serves, as soon as the application behind it is up."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, then announce."""
        await super().startup(sockets)
        for listener in sockets or ():
            sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()


def cart_server() -> FastMCP:
    """Build a server with one tool, ``add_to_cart``, whose answer is the whole cart."""
    cart: list[str] = []

    def add_to_cart(item: str) -> str:
        """Put an item into the cart and tell what is in it."""
        cart.append(item)
        return f"cart: {', '.join(cart)}"

    server = FastMCP("demo-cart", host=HOST, log_level="CRITICAL")
    server.add_tool(add_to_cart, structured_output=False)
    return server


async def serve(port: int) -> None:
    """Serve until killed. Raises ``OSError`` where the port is taken."""
    app = cart_server().streamable_http_app()
    # With the protocol spelled out: asyncio switches Nagle's delay off only where it knows that a socket is TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
        await AnnouncingServer(uvicorn.Config(app, log_level="critical")).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
