"""The words of a refusal: what of an answer is compared, and whether it speaks of a session.

Two answers are the same refusal if they have the same status and the same words. Ids, numbers, quotes, case and the names
that the request itself brought along do not count: servers put them into their sentences. What the sentence is framed in
does not count either: plain text, a JSON member, an event, a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

READ_BYTES: Final = 65_536
"""What of a body is looked at."""

_MESSAGES: Final = ("message", "detail", "error_description", "error", "title", "reason")
_NESTED: Final = ("error", "data", "detail", "details", "errors", "message")
_MAX_DEPTH: Final = 4
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|“[^”]*”|«[^»]*»")
_MARKUP: Final = re.compile(r"<(?:script|style)\b.*?</(?:script|style)>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
_TOKEN: Final = re.compile(r"[^\s.,:;!?()\[\]{}<>|=\"'`]+")
_LONGEST_WORD: Final = 24
_EVENT: Final = re.compile(r"\s*(?:data|event|id|retry)?:", re.IGNORECASE)
_DATA: Final = re.compile(r"^data:[ ]?(.*)$", re.MULTILINE)
_SESSION: Final = re.compile(r"session|initiali[sz]e", re.IGNORECASE)
_PRESENCE: Final = re.compile(r"\balready\b|\bexists\b|\bexisting\b|\bconflict", re.IGNORECASE)
_CREDENTIALS: Final = re.compile(
    r"\b(?:api[ -_]?keys?|keys?|tokens?|credentials?|log[ -]?in|logged|sign[ -]?in|passwords?|authenticat\w*|bearer"
    r"|scopes?|account)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one refusal; ``text`` is empty where it says nothing."""

    status: int
    text: str

    @property
    def speak_of_session(self) -> bool:
        """Whether a session, or `initialize`, is what it is about."""
        return speaks_of_session(self.text)

    @property
    def speak_of_presence(self) -> bool:
        """Whether what was asked for is there already."""
        return _PRESENCE.search(self.text) is not None

    @property
    def speak_of_credentials(self) -> bool:
        """Whether it asks for a credential, or for another one."""
        return _CREDENTIALS.search(self.text) is not None


def speaks_of_session(text: str) -> bool:
    """Whether a session, or `initialize`, is named in it."""
    return _SESSION.search(text) is not None


class NoDocument(Enum):
    """Stands where the JSON document would, since there is none."""

    NOT_JSON = "not JSON"


@dataclass(frozen=True, slots=True)
class Said:
    """A body, or the data of its events, read once: as text, and as JSON where it is that."""

    text: str
    document: Any = NoDocument.NOT_JSON

    @property
    def json_rpc(self) -> dict[str, Any] | None:
        """The one JSON-RPC message that it is."""
        document = self.document
        return document if isinstance(document, dict) and document.get("jsonrpc") == "2.0" else None


def said_in(body: bytes) -> Said:
    """Read (the beginning of) a body, free of content encodings. Never raises."""
    text = body[:READ_BYTES].decode("utf-8", "replace").lstrip("\ufeff")
    text = "\n".join(_DATA.findall(text)) if _EVENT.match(text) else text.strip()
    try:
        return Said(text, json.loads(text))
    except (ValueError, RecursionError):
        return Said(text)


def words_of(status: int, said: Said | bytes, *, without: tuple[str, ...] = ()) -> Words:
    """The words of an answer with this status and (the beginning of) this body.

    ``without`` are names that the request brought along, such as its method and its session id. Never raises.
    """
    read = said_in(said) if isinstance(said, bytes) else said
    return Words(status, _plain(" ".join(_sentences(read)), without))


def _sentences(said: Said) -> Iterator[str]:
    text, document = said.text, said.document
    if document is NoDocument.NOT_JSON:
        yield _unescaped(_MARKUP.sub(" ", text)) if text.startswith("<") else text
        return
    found = list(_messages(document, _MAX_DEPTH))
    yield from found or _names(document)


def _messages(document: Any, depth: int) -> Iterator[str]:
    """The sentences of a JSON document, wherever its author put them, outermost first."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, list) and depth:
        for member in document[:_MAX_DEPTH]:
            yield from _messages(member, depth - 1)
    elif isinstance(document, dict) and depth:
        yield from (document[name] for name in _MESSAGES if isinstance(document.get(name), str))
        for name in _NESTED:
            if isinstance(document.get(name), dict | list):
                yield from _messages(document[name], depth - 1)


def _names(document: Any) -> Iterator[str]:
    """A document without a sentence is told apart by its members."""
    if isinstance(document, dict):
        yield from sorted(str(name) for name in document)


def _plain(said: str, without: tuple[str, ...]) -> str:
    for name in sorted(filter(None, without), key=len, reverse=True):
        said = said.replace(name, " ")
    said = _QUOTED.sub(" ", said)
    return " ".join(word for token in _TOKEN.findall(said) if (word := token.strip("-_/*#").lower()) and _is_word(word))


def _is_word(token: str) -> bool:
    """Ids and numbers are no words: they have digits in them, or are longer than any word."""
    return len(token) <= _LONGEST_WORD and not any(character.isdigit() for character in token)


def _unescaped(text: str) -> str:
    """Loads what it needs when the first page comes: all names of HTML's characters."""
    import html

    return html.unescape(text)
