"""What one writes when one needs a reverse proxy in aiohttp: ``python -m bench.plain_proxy UPSTREAM PORT``."""

from __future__ import annotations

import sys
from typing import Final

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

PER_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "content-length", "upgrade", "te"})


def make_app(origin: str) -> web.Application:
    """Return an application that passes everything on."""
    app = web.Application(client_max_size=2**26)

    async def session(app: web.Application) -> None:
        timeout = ClientTimeout(total=None)
        app["session"] = ClientSession(auto_decompress=False, timeout=timeout, connector=TCPConnector(limit=0))

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = [pair for pair in request.headers.items() if pair[0].lower() not in PER_HOP]
        if request.content_length is not None:
            headers.append(("Content-Length", str(request.content_length)))  # else it would be sent in chunks
        data = request.content if request.body_exists else None
        session: ClientSession = request.app["session"]
        async with session.request(request.method, origin + request.path_qs, headers=headers, data=data) as answer:
            kept = [pair for pair in answer.headers.items() if pair[0].lower() not in PER_HOP]
            response = web.StreamResponse(status=answer.status)
            response.headers.extend(kept)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    app.on_startup.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


if __name__ == "__main__":
    web.run_app(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), access_log=None, print=None)
