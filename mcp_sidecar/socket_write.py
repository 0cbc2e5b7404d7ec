"""Writing at once: uvloop keeps what is written to the end of its turn, behind all other work of that turn.

The rule of this file: bytes go past the transport only where nothing waits in it, so that none overtakes another. What the
socket does not take at once is the transport's, with its buffer, its limits and its errors.
"""

from __future__ import annotations

import asyncio
import os

_KEEPING = frozenset({"TCPTransport", "UnixTransport"})
"""uvloop's; asyncio's own write at once, and those of TLS have another's socket."""


def descriptor_of(transport: asyncio.BaseTransport) -> int | None:
    """The descriptor for ``write``, of a transport that keeps what is written; ``None`` of any other."""
    kind = type(transport)
    if not kind.__module__.startswith("uvloop.") or kind.__name__ not in _KEEPING:
        return None
    found: int = transport.get_extra_info("socket").fileno()
    return found


def write(transport: asyncio.WriteTransport, descriptor: int | None, data: bytes) -> None:
    """Write now as much as the socket takes, and have the transport write the rest.

    A descriptor may be another connection's as soon as its transport is closed.
    """
    if descriptor is not None and not transport.is_closing() and not transport.get_write_buffer_size():
        try:
            sent = os.write(descriptor, data)
        except OSError:  # nothing is taken now, or ever: the transport meets the same, and knows what to do
            sent = 0
        if sent == len(data):
            return
        if sent:
            data = data[sent:]
    transport.write(data)
