"""Driver of the official Python client 1.x with its own OAuth: discovery, registration, authorization code, refresh.

The person in front of the client consents to everything: the authorization page is asked for and sends back at once.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.interop.clients.lines import Ids, Session


class Tokens:
    """Where the SDK keeps what it was given: in memory."""

    def __init__(self) -> None:
        self._tokens: Any = None
        self._client: Any = None

    async def get_tokens(self) -> Any:
        """Return the tokens, if any."""
        return self._tokens

    async def set_tokens(self, tokens: Any) -> None:
        """Keep the tokens."""
        self._tokens = tokens

    async def get_client_info(self) -> Any:
        """Return the registration, if any."""
        return self._client

    async def set_client_info(self, client_info: Any) -> None:
        """Keep the registration."""
        self._client = client_info


class Browser:
    """Follows the way to the authorization page and back."""

    def __init__(self) -> None:
        self._answer: dict[str, list[str]] = {}

    async def go(self, url: str) -> None:
        """Open the page."""
        async with importlib.import_module("httpx").AsyncClient() as client:
            answer = await client.get(url)
        self._answer = parse_qs(urlsplit(answer.headers["location"]).query)

    async def come_back(self) -> tuple[str, str]:
        """Return the code and the state."""
        return self._answer["code"][0], self._answer["state"][0]


@asynccontextmanager
async def opened(url: str, ids: Ids) -> AsyncIterator[Session]:
    """Open one session as a client that nobody has given a token."""
    oauth = importlib.import_module("mcp.client.auth")
    metadata = importlib.import_module("mcp.shared.auth").OAuthClientMetadata(
        redirect_uris=["http://127.0.0.1:1/back"], client_name="interop", token_endpoint_auth_method="none"
    )
    browser = Browser()
    provider = oauth.OAuthClientProvider(url, metadata, Tokens(), browser.go, browser.come_back)
    async with importlib.import_module("python1").opened(url, ids, provider) as session:
        yield session


if __name__ == "__main__":
    importlib.import_module("mcp.client.streamable_http")  # takes its time, which is no command's
    importlib.import_module("lines").serve(opened)
