"""Heads of requests are much alike: how one is laid out is remembered, and the next of that kind is not read again.

The rule of this file: it keeps where something stands, and never what stands there. A head is known again by a keyed digest
of all of it but the values that change with every request, and what is made of it is what was made of the one that was read.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from mcp_sidecar.fastpath import plain_http
from mcp_sidecar.fastpath.rest import Rest
from mcp_sidecar.healing.principal import Identity
from mcp_sidecar.wire.framing import END_OF_HEAD

REMEMBERED: Final = 2048
"""Layouts, and as many digests of heads that were seen once: less than a KiB each."""

IN_VAIN: Final = 64
"""After so many heads in a row that were as new as others of their sessions before none is looked up for ``CLOSED_FOR``
requests: they only cost. The first head of a session says nothing, or many that begin together would be taken for that."""

CLOSED_FOR: Final = 2048

CHANGING: Final = (
    *("content-length", "x-request-id", "x-correlation-id", "x-amzn-trace-id", "x-cloud-trace-context", "cf-ray"),
    *("traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"),
)
"""Headers whose values change with every request: its length, its own id, and its place in a trace."""

_CHANGING = re.compile(rb"(\r\n(?i:%b): )([!-~]++)(?=\r\n|\Z)" % "|".join(CHANGING).encode())
_DIGEST_BYTES = 16
_NAME_OF_ONE = 1

Span = tuple[int, int, int | None]
"""Which part of a head, from where, to where."""


@dataclass(slots=True)
class Unchanging:
    """What requests have in common whose heads are of one kind."""

    target: str
    host: str
    protocol_version: str | None
    identity: Identity


@dataclass(slots=True)
class Asked:
    """What the lane knows of a request. ``fields`` are the headers that go upstream, each behind a line break."""

    unchanging: Unchanging
    session_id: str
    body_at: int
    size: int
    fields: bytes


@dataclass(slots=True)
class Cut:
    """A head without its end: the third of every three ``parts`` is a value that changes."""

    parts: list[bytes]
    digest: bytes
    body_at: int


@dataclass(slots=True)
class Layout:
    """Heads of one kind. ``spans`` go upstream as they are, and ``added`` behind them."""

    unchanging: Unchanging
    parts: int
    session_id_at: Span
    length_at: int
    spans: tuple[Span, ...]
    added: bytes

    def read(self, cut: Cut) -> Asked | None:
        """The request with such a head; ``None`` where its length is none."""
        parts = cut.parts
        length = plain_http.length_of(parts[self.length_at].decode()) if len(parts) == self.parts else None
        if length is None:
            return None
        part, begin, end = self.session_id_at
        return Asked(
            self.unchanging,
            parts[part][begin:end].decode(),
            cut.body_at,
            cut.body_at + length,
            b"".join([*[parts[part][begin:end] for part, begin, end in self.spans], self.added]),
        )

    @staticmethod
    def of(cut: Cut, read: Asked, not_for_upstream: Container[str]) -> Layout | None:
        """How the head of a request is laid out that was read already; ``None`` where it went upstream otherwise."""
        spans: list[Span] = []
        session_id_at = length_at = None
        for name, (part, begin, end), value_at in _lines(cut.parts):
            if name == b"mcp-session-id":
                session_id_at = (part, value_at, end)
            if name == b"content-length":
                length_at = part + 1
            if name.decode() not in not_for_upstream:
                spans.append((part, begin, end))
                if part % 3 == _NAME_OF_ONE:
                    spans.append((part + 1, 0, None))
        sent = b"".join([cut.parts[part][begin:end] for part, begin, end in spans])
        if session_id_at is None or length_at is None or not read.fields.startswith(sent):
            return None
        added = read.fields[len(sent) :]
        return Layout(read.unchanging, len(cut.parts), session_id_at, length_at, _joined(spans), added)


class Layouts:
    """Those seen lately."""

    def __init__(self, not_for_upstream: Container[str]) -> None:
        """Headers with the lower-case names in ``not_for_upstream`` stay here."""
        self._not_for_upstream = not_for_upstream
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, Layout] = {}
        self._seen: set[bytes] = set()
        self._begun: set[int] = set()  # sessions of which a head was seen, by the hash of their id
        self.rest = Rest(IN_VAIN, CLOSED_FOR)

    def forget(self) -> None:
        """What is told by heads has changed."""
        self._known.clear()

    def cut(self, data: bytes, limit: int, peer: str | None) -> Cut | None:
        """The head that begins here, if it has at most ``limit`` bytes and is to be looked up at all.

        What it means depends on the ``peer`` that it has come from.
        """
        if self.rest.is_on():
            return None
        end = data.find(END_OF_HEAD, 0, limit)
        if end < 0:
            return None
        parts = _CHANGING.split(data[:end])
        stays = [(peer or "").encode(), *parts]
        del stays[3::3]
        digest = blake2b(b"\0".join(stays), key=self._key, digest_size=_DIGEST_BYTES).digest()
        return Cut(parts, digest, end + len(END_OF_HEAD))

    def read(self, cut: Cut) -> Asked | None:
        """What a request with such a head asks, if it is known."""
        layout = self._known.get(cut.digest)
        if layout is None:
            return None
        self.rest.note(in_vain=False)
        return layout.read(cut)

    def learn(self, cut: Cut, read: Asked) -> None:
        """That was read in it. What is seen for the second time is remembered, if it tells the same."""
        if cut.digest not in self._seen:
            self._note_new(cut.digest, hash(read.session_id))
            return
        layout = Layout.of(cut, read, self._not_for_upstream)
        if layout is not None and layout.read(cut) == read:
            _bounded(self._known)
            self._known[cut.digest] = layout

    def _note_new(self, digest: bytes, session: int) -> None:
        _bounded(self._seen)
        self._seen.add(digest)
        if session in self._begun:
            self.rest.note(in_vain=True)
            return
        _bounded(self._begun)
        self._begun.add(session)


def _bounded(remembered: dict[bytes, Layout] | set[bytes] | set[int]) -> None:
    if len(remembered) >= REMEMBERED:
        remembered.clear()


def _lines(parts: Sequence[bytes]) -> Iterator[tuple[bytes, Span, int]]:
    """The headers: the lower-case name, where the line stands with the break before it, and where its value begins there."""
    for part, text in enumerate(parts):
        at = text.find(b"\r\n") if part % 3 < 2 else -1
        while at >= 0:
            end = text.find(b"\r\n", at + 2)
            end, following = (len(text), -1) if end < 0 else (end, end)
            colon = text.index(b":", at)
            yield text[at + 2 : colon].lower(), (part, at, end), colon + 2
            at = following


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same with those joined that lie side by side."""
    joined: list[Span] = []
    for part, begin, end in spans:
        if joined and joined[-1][0] == part and joined[-1][2] == begin:
            joined[-1] = (part, joined[-1][1], end)
        else:
            joined.append((part, begin, end))
    return tuple(joined)
