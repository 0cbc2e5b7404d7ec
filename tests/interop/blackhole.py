"""An upstream that leads nowhere: what a server that would call the internet is given instead.

While it holds, a connection is accepted and nothing happens, so a call can be caught in the middle; once released, every
connection is closed at once, so the call ends with the server's own error.
"""

from __future__ import annotations

import socket
import threading


class Blackhole:
    """A listener on the loopback; ``accepted`` counts its connections."""

    def __init__(self) -> None:
        self.accepted = 0
        self._holds = False
        self._held: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._holds:
                self._held.append(connection)
            else:
                connection.close()

    def hold(self) -> None:
        """Keep the connections that come from now on."""
        self._holds = True

    def release(self) -> None:
        """Close what is held and whatever comes."""
        self._holds = False
        while self._held:
            self._held.pop().close()

    def close(self) -> None:
        """Stop listening."""
        self.release()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
