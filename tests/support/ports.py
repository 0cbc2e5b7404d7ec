"""Ports for processes of the tests that cannot be asked which one the system gave them."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A port below the range from which outgoing connections take theirs.

    One from that range may be taken by a connection of anybody before the process has it, or while it is down; a connect to
    it may even meet itself.
    """
    for _ in range(200):
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port between 20000 and 30000")
