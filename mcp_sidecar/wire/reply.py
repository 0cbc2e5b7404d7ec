"""An answer that the sidecar itself gives, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcp_sidecar.wire.headers import Pair


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """An HTTP answer made by the sidecar.

    ``headers`` come on top of the content type; ``tells`` is the reason that it gives, empty where it gives none.
    """

    status: int
    content_type: str | None = None
    body: bytes = b""
    headers: tuple[Pair, ...] = ()
    tells: str = field(default="", compare=False)
