"""An MCP server on ``mcp`` 1.x behind OAuth, whose access tokens are JWTs without a subject: ``oauth_server.py PORT``.

Run inside the environment of that SDK. It is its own authorization server, on whatever origin its clients see. A client is told that
a token is soon used up, and so refreshes it again and again; each refresh is a line in the ledger.
"""

from __future__ import annotations

import importlib
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

KEY = "a key that outlives the process, as an operator's does"
ISSUER = "https://issuer.example"
REFRESHED_AFTER_S = 1
VALID_FOR_S = 300


def record(key: str) -> None:
    """Append a line to the ledger."""
    with Path(os.environ["INTEROP_LEDGER"]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{key}\n")


def minted(client_id: str, use: str) -> str:
    """Return a new token, different from all before; nothing in it names a person."""
    claims = {"iss": ISSUER, "client_id": client_id, "use": use, "jti": secrets.token_hex(8)}
    return str(importlib.import_module("jwt").encode(claims | {"exp": int(time.time()) + VALID_FOR_S}, KEY, "HS256"))


def read(token: str) -> dict[str, Any]:
    """Return the claims of a token that is one of ours and still valid, else nothing."""
    jwt = importlib.import_module("jwt")
    try:
        claims: dict[str, Any] = jwt.decode(token, KEY, algorithms=["HS256"], issuer=ISSUER)
    except jwt.InvalidTokenError:
        return {}
    return claims


class Verifier:
    """Tells the SDK whether an access token is one."""

    async def verify_token(self, token: str) -> Any:
        """Return what the token allows, or None."""
        claims = read(token)
        if claims.get("use") != "access":
            return None
        provider = importlib.import_module("mcp.server.auth.provider")
        return provider.AccessToken(token=token, client_id=claims["client_id"], scopes=[], expires_at=claims["exp"])


def origin(request: Any) -> str:
    """Return where clients see this server."""
    return f"http://{request.headers.get('x-forwarded-host') or request.headers['host']}"


class Endpoints:
    """The authorization server. It asks nobody, since nobody is there, and takes each code and refresh token at its word."""

    def __init__(self) -> None:
        self._responses = importlib.import_module("starlette.responses")

    async def resource(self, request: Any) -> Any:
        """Name the authorization server (RFC 9728)."""
        said = {"resource": f"{origin(request)}/mcp", "authorization_servers": [origin(request)]}
        return self._responses.JSONResponse(said)

    async def metadata(self, request: Any) -> Any:
        """Name the endpoints (RFC 8414)."""
        here = origin(request)
        said = {"issuer": here, "response_types_supported": ["code"], "code_challenge_methods_supported": ["S256"]}
        paths = {"authorization": "authorize", "token": "token", "registration": "register"}
        return self._responses.JSONResponse(
            said | {f"{name}_endpoint": f"{here}/{path}" for name, path in paths.items()}
        )

    async def register(self, request: Any) -> Any:
        """Register a client (RFC 7591)."""
        asked = await request.json()
        said = asked | {"client_id": secrets.token_hex(8), "token_endpoint_auth_method": "none"}
        return self._responses.JSONResponse(said, status_code=201)

    async def authorize(self, request: Any) -> Any:
        """Send the user back with a code."""
        asked = request.query_params
        answer = {"code": minted(asked["client_id"], "code"), "state": asked["state"]}
        return self._responses.RedirectResponse(f"{asked['redirect_uri']}?{urlencode(answer)}", status_code=302)

    async def token(self, request: Any) -> Any:
        """Exchange a code, or refresh."""
        form = await request.form()
        refreshes = form["grant_type"] == "refresh_token"
        claims = read(str(form["refresh_token" if refreshes else "code"]))
        if claims.get("use") != ("refresh" if refreshes else "code"):
            return self._responses.JSONResponse({"error": "invalid_grant"}, status_code=400)
        if refreshes:
            record("refreshed")
        tokens = {f"{use}_token": minted(claims["client_id"], use) for use in ("access", "refresh")}
        return self._responses.JSONResponse(tokens | {"token_type": "Bearer", "expires_in": REFRESHED_AFTER_S})


async def echo(text: str) -> str:
    """Give the text back."""
    return text


def main(port: int) -> None:
    """Serve."""
    settings = importlib.import_module("mcp.server.auth.settings").AuthSettings(
        issuer_url=ISSUER, resource_server_url=None
    )
    fastmcp = importlib.import_module("mcp.server.fastmcp")
    server = fastmcp.FastMCP("oauth", host="127.0.0.1", port=port, auth=settings, token_verifier=Verifier())
    endpoints = Endpoints()
    for path, method, endpoint in (
        ("/.well-known/oauth-protected-resource/mcp", "GET", endpoints.resource),
        ("/.well-known/oauth-authorization-server", "GET", endpoints.metadata),
        ("/register", "POST", endpoints.register),
        ("/authorize", "GET", endpoints.authorize),
        ("/token", "POST", endpoints.token),
    ):
        server.custom_route(path, methods=[method])(endpoint)
    server.tool()(echo)
    server.run("streamable-http")


if __name__ == "__main__":
    main(int(sys.argv[1]))
