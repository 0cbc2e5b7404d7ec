"""The certificate that clients see, and its key."""

from __future__ import annotations

import ssl
from pathlib import Path


class ServerTls:
    """One TLS context for the listener, whose files can be read again while it serves.

    A connection keeps what it was opened with; new ones get what was read last. Files that cannot be used change nothing.
    """

    def __init__(self, certificate: str, key: str) -> None:
        """Paths of PEM files. Raises OSError, of which ssl.SSLError is one, where they cannot be used."""
        self._files = (certificate, key)
        self._seen = self._stamps()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load(self.context)

    def has_changed(self) -> bool:
        """Whether the files are others than those that were looked at last."""
        return self._stamps() != self._seen

    def read_again(self) -> None:
        """Serve new connections with what the files hold now. Raises OSError where they cannot be used."""
        self._seen = self._stamps()
        # Tried apart: a certificate whose key does not fit, half-way through a renewal, must not reach the one in use.
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        # An empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(*self._files, password="")

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: str) -> tuple[int, int, int] | None:
    """What tells one state of a file from another: mounted secrets are swapped by a link, others written in place."""
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
