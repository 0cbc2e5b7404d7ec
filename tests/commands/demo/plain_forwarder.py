"""A stand-in for the sidecar that heals nothing: it forwards TCP and announces itself as the sidecar does."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from urllib.parse import urlsplit


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def main(upstream_url: str) -> None:
    """Forward to the upstream until killed."""
    upstream = urlsplit(upstream_url)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(upstream.hostname, upstream.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stderr.write(json.dumps({"event": "listening", "address": f"127.0.0.1:{port}"}) + "\n")
    sys.stderr.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
