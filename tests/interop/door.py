"""A TCP balancer in front of one port that comes and goes: who comes while nobody is behind it waits, and is never refused.

The rule: what is open is cut when either side ends it, and bytes are never changed. So a client sees of a process that is
killed what it sees behind a balancer that tries connects again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

CHUNK = 65536
RETRY_S = 0.01
WAITS_S = 60.0


class Door:
    """One balancer. ``passing`` is how many connections go through it at the moment."""

    def __init__(self, behind: int) -> None:
        """In front of the port ``behind`` on loopback."""
        self.passing = 0
        self._behind = behind
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/mcp"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), self._inner() as inner:
            self._count(1)
            try:
                threading.Thread(target=_pass_on, args=(client, inner), daemon=True).start()
                _pass_on(inner, client)
            finally:
                self._count(-1)

    def _inner(self) -> socket.socket:
        deadline = time.monotonic() + WAITS_S
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self._behind))
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    def _count(self, change: int) -> None:
        with self._lock:
            self.passing += change


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until one of them ends, and then both do."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
