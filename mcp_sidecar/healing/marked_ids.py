"""Ids that carry their generation, so that an old answer never meets a new question.

A restarted server counts from zero again: its question 1 is not the question 1 of before, and its event ids repeat.
Both must be unique in a client's session (transports, "Resumability and Redelivery"; basic, "Requests"), and so must the
tokens under which a question hears of its progress (basic/utilities/progress). From the second generation on, the client
sees such ids and tokens with a mark in front: the session's random ``tag``, which no upstream can guess, and a random *word*
of the upstream session, since several processes may have one behind the same client session and no count could be agreed on
between them. On the way in the mark is taken off, and whatever bears another goes nowhere. Only what the upstream session of
the client's own ``initialize`` says passes untouched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final

from mcp_sidecar.wire import jsonrpc
from mcp_sidecar.wire.jsonrpc import DECODER, JsonRpcId, Kind, Message, dump, valid_id
from mcp_sidecar.wire.sse import Event, with_data, with_id

FIRST = 1
"""The generation of the client's own ``initialize``, and of nothing else: it alone is unmarked."""

WORD_BYTES = 4

MAX_STORED_WORDS = 16


@dataclass(frozen=True, slots=True)
class Mark:
    """The generation that something belongs to, the tag of its session, and the word of the upstream session.

    Generations are this process's own order; what the client sees is told apart by the word.
    """

    tag: str
    generation: int
    word: str

    def on_text(self, text: str) -> str:
        """An id of this generation as the client sees it."""
        return text if self.generation == FIRST else f"{self.tag}.{self.word}.{text}"

    def on_id(self, request_id: JsonRpcId) -> JsonRpcId:
        """A JSON-RPC id of this generation as the client sees it; its type is kept inside the mark."""
        return request_id if self.generation == FIRST else self.on_text(json.dumps(request_id))

    def off_text(self, seen: str) -> str | None:
        """The upstream's own id, or ``None`` where the id is of another generation."""
        prefix = f"{self.tag}."
        if self.generation == FIRST:
            return None if seen.startswith(prefix) else seen
        own = f"{prefix}{self.word}."
        return seen[len(own) :] if seen.startswith(own) else None

    def off_id(self, seen: JsonRpcId) -> tuple[bool, JsonRpcId]:
        """Whether a JSON-RPC id belongs to this generation, and the upstream's own id."""
        if self.generation == FIRST:
            return (not (isinstance(seen, str) and seen.startswith(f"{self.tag}.")), seen)
        text = self.off_text(seen) if isinstance(seen, str) else None
        own = _id_in(text) if text is not None else None
        return own is not None, own

    def is_on_another(self, seen: JsonRpcId) -> bool:
        """Whether an id bears this session's mark, but of another generation."""
        return isinstance(seen, str) and seen.startswith(f"{self.tag}.") and self.off_text(seen) is None


UNMARKED = Mark("", FIRST, "")
"""Of what belongs to no session that is known."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of one live session, of every generation that it has had or will have.

    ``seed`` is random and this process's own, so that no two processes ever make the same word. ``stored_words`` are what a
    store knew of upstream sessions that other processes have opened, by the generation that they are here.
    """

    tag: str
    seed: str
    stored_words: tuple[tuple[int, str], ...] = ()

    def with_word(self, generation: int, word: str) -> Marks:
        """The same, with a word that another process has made for what is this generation here."""
        return replace(self, stored_words=(*self.stored_words[-MAX_STORED_WORDS + 1 :], (generation, word)))

    def of(self, generation: int) -> Mark:
        """The mark of one generation."""
        return Mark(self.tag, generation, self._word(generation))

    def _word(self, generation: int) -> str:
        if generation == FIRST:
            return ""
        for stored, word in self.stored_words:
            if stored == generation:
                return word
        return blake2b(b"%d" % generation, key=self.seed.encode(), digest_size=WORD_BYTES).hexdigest()


def _id_in(text: str) -> JsonRpcId:
    """The id that a client hands back; ``None`` where it says what was never an id."""
    try:
        return valid_id(DECODER.decode(text))
    except (ValueError, RecursionError):
        return None


@dataclass(slots=True)
class Renumbering:
    """New ids and progress tokens of a request that was sent again inside one upstream session, to the old ones."""

    ids: dict[str, JsonRpcId] = field(default_factory=dict)
    tokens: dict[str, str | int] = field(default_factory=dict)


NOT_RENUMBERED: Final = Renumbering()
"""Of whoever has sent nothing again. It stays empty."""


def to_client(message: Message, mark: Mark, renumbering: Renumbering) -> Any | None:
    """The message as the client must see it, or ``None`` where it passes untouched, as what was not read always does."""
    if message.kind is Kind.BATCH:
        mapped = [to_client(member, mark, renumbering) for member in message.members]
        if all(value is None for value in mapped):
            return None
        return [old if new is None else new for old, new in zip(message.value, mapped, strict=True)]
    match message.kind:
        case Kind.REQUEST if mark.generation > FIRST:
            return _marked_question(message, mark)
        case Kind.RESPONSE:
            return _under_old_id(message, renumbering)
        case Kind.NOTIFICATION:
            return _under_old_token(message, renumbering) or _marked_cancel(message, mark)
        case _:
            return None


def _marked_question(message: Message, mark: Mark) -> Any:
    """A question under an id, and if it wants to hear of progress under a token, that no other generation has used."""
    marked = jsonrpc.with_id(message.value, mark.on_id(message.id))
    if message.progress_token is None:
        return marked
    return jsonrpc.with_progress_token(marked, mark.on_text(json.dumps(message.progress_token)))


def _under_old_id(message: Message, renumbering: Renumbering) -> Any | None:
    if not isinstance(message.id, str) or message.id not in renumbering.ids:
        return None
    return jsonrpc.with_id(message.value, renumbering.ids[message.id])


def _under_old_token(message: Message, renumbering: Renumbering) -> Any | None:
    token = message.reported_token
    if not isinstance(token, str) or token not in renumbering.tokens:
        return None
    return jsonrpc.with_reported_token(message.value, renumbering.tokens[token])


def _marked_cancel(message: Message, mark: Mark) -> Any | None:
    if mark.generation == FIRST or message.cancelled_id is None:
        return None
    return {**message.value, "params": {**message.params, "requestId": mark.on_id(message.cancelled_id)}}


def event_to_client(raw: bytes, event: Event, mapped: Any | None, mark: Mark) -> bytes:
    """One SSE event with its mapped message and marked id; every other byte stays."""
    if mapped is not None:
        raw = with_data(raw, dump(mapped).decode())
    if event.id and mark.generation > FIRST:
        raw = with_id(raw, mark.on_text(event.id))
    return raw
