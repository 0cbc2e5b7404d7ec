"""The keys of ``sessions.key_file``: one a line, the first seals, all open, each known by a name that tells nothing of it.

A key is 64 random bytes in base64url, as ``new_key`` makes them. It is never stretched and never tried: what was sealed names
its key. Subkeys are made for each purpose: one key can seal records and tokens and hash ids, and none helps with another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEY_BYTES = 64
"""What AES-SIV with AES-256 takes (RFC 5297)."""

KEY_ID_BYTES = 4
MAX_KEYS = 16
_COMMENT = "#"


class BadKeys(Exception):
    """A file of keys that cannot be used. The text names the line and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key. ``id`` is a hash of it and stands in clear in what it seals."""

    secret: bytes

    def __repr__(self) -> str:
        """Nothing of it, whoever logs it."""
        return f"Key({self.id.hex()})"

    @property
    def id(self) -> bytes:
        """The name by which it is found again."""
        return hashlib.blake2b(b"", key=self.secret, person=b"mcps key id", digest_size=KEY_ID_BYTES).digest()

    def subkey(self, purpose: bytes, size: int = KEY_BYTES) -> bytes:
        """A key for one purpose; ``purpose`` has at most 16 bytes."""
        return hashlib.blake2b(b"", key=self.secret, person=purpose, digest_size=size).digest()


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys; the first one seals."""

    first: Key
    others: tuple[Key, ...] = ()

    def __iter__(self) -> Iterator[Key]:
        """The first one first."""
        yield self.first
        yield from self.others


class KeyRing:
    """The keys of this process: those of a file as it is now, or those that were given."""

    def __init__(self, *, file: str | None = None, text: str | None = None) -> None:
        """Raises ``BadKeys`` where there is none that can be used."""
        self._file = Path(file) if file is not None else None
        self._seen: tuple[int, int, int] | None = None
        self.keys = self._read() if self._file is not None else read_keys(text or "")

    def read_again(self) -> bool:
        """Take what the file holds by now, if it has changed. Raises ``BadKeys``; then those of before stay."""
        if self._file is None or self._identity() == self._seen:
            return False
        self.keys = self._read()
        return True

    def _read(self) -> Keys:
        assert self._file is not None, "there is a file"
        self._seen = self._identity()
        try:
            return read_keys(self._file.read_text(encoding="ascii"))
        except OSError as error:
            raise BadKeys(f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise BadKeys("is no text of keys") from None

    def _identity(self) -> tuple[int, int, int] | None:
        """Secrets of Kubernetes are swapped by a link: what is behind it counts."""
        assert self._file is not None, "there is a file"
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns


def new_key() -> str:
    """A line for the file."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode().rstrip("=")


def read_keys(text: str) -> Keys:
    """The keys of a file: one a line; empty lines and those that begin with ``#`` say nothing. Raises ``BadKeys``."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [_key(number, line) for number, line in lines if line and not line.startswith(_COMMENT)]
    if not keys:
        raise BadKeys("there is no key in it: `mcp-sidecar new-key` prints one")
    if len(keys) > MAX_KEYS:
        raise BadKeys(f"there are more than {MAX_KEYS} keys in it")
    if len({key.id for key in keys}) < len(keys):
        raise BadKeys("the same key is there twice")
    return Keys(keys[0], tuple(keys[1:]))


def _key(number: int, line: str) -> Key:
    try:
        secret = base64.b64decode(line + "=" * (-len(line) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadKeys(f"line {number} is no base64url") from None
    if len(secret) != KEY_BYTES:
        raise BadKeys(f"line {number} has {len(secret)} bytes, not {KEY_BYTES}: `mcp-sidecar new-key` prints a key")
    if len(set(secret)) < KEY_BYTES // 4:
        raise BadKeys(f"line {number} is not random: `mcp-sidecar new-key` prints a key")
    return Key(secret)
