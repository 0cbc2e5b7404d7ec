"""The token of a file: who bears it may see what only the operator is to see."""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path

MAX_TOKEN_BYTES = 4096


class BadToken(ValueError):
    """The file cannot give a token; says why, without what is in it."""


def read_token(path: str) -> str:
    """The token in a file: one line of visible ASCII. Raises ``BadToken``, or OSError where it cannot be read."""
    with Path(path).open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        content = file.read(MAX_TOKEN_BYTES + 1).strip()
    if mode & stat.S_IROTH:
        raise BadToken("must not be readable by everybody: take that away with chmod o-r")
    if not content:
        raise BadToken("is empty, and must hold a token")
    if len(content) > MAX_TOKEN_BYTES or any(not 0x21 <= byte <= 0x7E for byte in content):
        raise BadToken("must hold one token of visible ASCII")
    return content.decode()


class TokenFile:
    """The token of a file, which is read again when it changes. A file that is not in order lets nobody in."""

    def __init__(self, path: str) -> None:
        """Nothing is read before it is asked for."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._token: str | None = None

    def accepts(self, offered: str) -> bool:
        """Whether this is the token."""
        token = self._current()
        return token is not None and hmac.compare_digest(offered.encode("utf-8", "replace"), token.encode())

    def _current(self) -> str | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - as for other files that are read again
            stamp = found.st_ino, found.st_mtime_ns, found.st_mode
            if stamp != self._stamp:
                self._stamp, self._token = stamp, None
                self._token = read_token(self._path)
        except (OSError, ValueError):
            self._token = None
        return self._token
