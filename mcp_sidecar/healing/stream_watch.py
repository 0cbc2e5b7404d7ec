"""What passes on a response stream, and what its end means.

A POST's stream is over when every request of it is answered. An end before that is polling if an event with an id was
sent (2025-11-25, "Sending Messages" 6) and the transfer ended cleanly; everything else is a break, and a break is never
passed on as if the stream were whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from mcp_sidecar.healing.announcement import Announcement, ListPromise
from mcp_sidecar.healing.marked_ids import NOT_RENUMBERED, Mark, Renumbering, event_to_client, to_client
from mcp_sidecar.healing.progress import Progress
from mcp_sidecar.verdicts.refusals import Refusal
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message, NotJson, parse
from mcp_sidecar.wire.sse import Block, Event, Fragment, parse_event


class Ending(Enum):
    """How the upstream's side of a stream ended."""

    CLEAN = "clean"
    BROKEN = "broken"


class AfterEnd(Enum):
    """What to do about it."""

    FINISH = "finish"  # end the client's stream, too
    RESUME = "resume"  # one GET with Last-Event-ID on the same session
    RESEND = "resend"  # the request is harmless and nothing of consequence was relayed
    TELL = "tell"  # an error event with the request's id
    ASK = "ask"  # whether the session lives: there is no response, or one that refuses
    CUT = "cut"  # in the middle of an event, or nobody knows the ids: nothing can be said


@dataclass(slots=True)
class StreamRefusal:
    """What of a stream may have to be asked about.

    ``about`` reads an event's data and says what they refuse; the first one that is to be asked about is the ``refusal``, and
    its event is ``withheld``. ``has_begun``: something was said before it, or the stream was resumed, hence the request had
    been taken.
    """

    about: Final[Callable[[bytes], Refusal | None]]
    refusal: Refusal | None = None
    withheld: Block | None = None
    has_begun: bool = False

    def is_raised_by(self, piece: Block) -> bool:
        """Whether this event is not for the client before somebody has asked."""
        self.refusal = self.about((piece.event.data or "").encode("utf-8", "replace"))
        self.withheld = piece if self.refusal is not None else None
        return self.refusal is not None


@dataclass(slots=True)
class StreamWatch:
    """Looks at what is relayed on one stream, maps its ids, and remembers what its end will depend on.

    ``unanswered`` are the client's request ids that still wait, ``None`` where nobody knows whether any does. A message
    is handed to the caller once, by ``relay``. ``misaddressed``: what went by unread, too large or too deep, may have been
    an answer, under an id that the client does not know; it will not come again. ``heard`` counts what concerned the
    requests: answers to them, progress, the beginning of something large. ``announcing`` adds what the model is to know,
    ``progress`` holds back what would go back, ``refused`` what has to be asked about.
    """

    mark: Mark
    renumbered: Renumbering | None = None
    unanswered: set[JsonRpcId] | None = field(default_factory=set)
    last_event_id: str | None = None
    former_event_id: str | None = None
    retry_ms: int | None = None
    committed: bool = False
    in_fragment: bool = False
    misaddressed: bool = False
    blocks: int = 0
    heard: int = 0
    announcement: Final[Announcement | ListPromise | None] = None
    progress: Final[Progress | None] = None
    refused: StreamRefusal | None = None

    @property
    def renumbering(self) -> Renumbering:
        """That of the stream's own requests, if it has any, or else of whatever the session has sent again."""
        if self.renumbered is not None:
            return self.renumbered
        return self.progress.renumbering if self.progress is not None else NOT_RENUMBERED

    def relay(self, piece: Block | Fragment) -> tuple[bytes, Message | None]:
        """What the client gets for one piece of the stream, and the message in it, if it holds one.

        What follows a refusal is not the request's.
        """
        if self.refused is not None and self.refused.refusal is not None:
            return b"", None
        self.blocks += 1
        if isinstance(piece, Fragment):
            return self._relay_fragment(piece), None
        event = piece.event
        if event.id is not None or event.retry is not None:
            self._note_fields(event)
        message = _message_in(event.data)
        if event.data and self.refused is not None:
            if self.unanswered and _may_refuse(message) and self.refused.is_raised_by(piece):
                return b"", None  # what follows the last answer refuses nothing
            self.refused.has_begun = True
        mapped = self._for_client(message) if message is not None else None
        if message is not None:
            self._note(message)
            if self.progress is not None and not self.progress.lets_pass(message, self.mark.generation):
                return b"", message
        return event_to_client(piece.raw, event, mapped, self.mark), message

    @property
    def refusal(self) -> Refusal | None:
        """What the stream has brought in place of a response."""
        return self.refused.refusal if self.refused is not None else None

    @property
    def answered(self) -> bool:
        """Whether it is known that nobody waits for anything on this stream any more."""
        return self.unanswered is not None and not self.unanswered

    def note_begun(self) -> None:
        """The server has taken the request: what it says from now on refuses nothing before it was dispatched."""
        if self.refused is not None:
            self.refused.has_begun = True

    def note_elsewhere(self) -> None:
        """Whoever was answered on another stream does not wait any more."""
        if self.progress is not None and self.unanswered is not None:
            self.unanswered -= self.progress.elsewhere

    def answer_whole(self, message: Message) -> object | None:
        """A JSON answer, mapped for the client; ``None`` where it passes untouched."""
        self._note(message)
        return self._for_client(message)

    def _for_client(self, message: Message) -> Any | None:
        mapped = to_client(message, self.mark, self.renumbering)
        if self.announcement is None:
            return mapped
        seen = message.value if mapped is None else mapped
        return self.announcement.added_to(seen, self.mark.generation) or mapped

    def _note(self, message: Message) -> None:
        if message.is_unread:
            self._note_unread()
        may_come_again = self.progress is not None and self.progress.judges(message)
        for member in message.members or (message,):
            if member.kind is Kind.RESPONSE:
                self._note_answer(member.id)
            self.heard += member.method == "notifications/progress"
            if member.kind is not Kind.NOTIFICATION or member.method == "notifications/progress":
                self.committed |= not may_come_again

    def _note_answer(self, request_id: JsonRpcId) -> None:
        """An answer counts under the id that the client will see."""
        if isinstance(request_id, str):
            request_id = self.renumbering.ids.get(request_id, request_id)
        if self.unanswered is not None and request_id in self.unanswered:
            self.heard += 1
            self.unanswered.discard(request_id)

    def _note_fields(self, event: Event) -> None:
        if event.id is not None:
            self.former_event_id, self.last_event_id = self.last_event_id, event.id or None
        if event.retry is not None:
            self.retry_ms = event.retry

    def _note_unread(self) -> None:
        """It may have been what is waited for, and then it bore the id that the upstream knows."""
        if self.renumbering.ids:
            self.misaddressed = True
        else:
            self.unanswered = None

    def _relay_fragment(self, piece: Fragment) -> bytes:
        """A part of something too large to be read."""
        raw = piece.raw
        if not self.in_fragment:
            self.heard += 1
            raw = self._with_marked_id(raw)
        self.in_fragment = not piece.last
        self.committed = True
        self.note_begun()
        if piece.last:
            self._note_unread()
        return raw

    def _with_marked_id(self, raw: bytes) -> bytes:
        """The beginning of a large event; its id stands there, in the whole lines before the data."""
        whole = raw[: max(raw.rfind(b"\n"), raw.rfind(b"\r")) + 1]
        event = parse_event(whole)
        self._note_fields(event)
        return event_to_client(whole, event, None, self.mark) + raw[len(whole) :]


def after_end(  # noqa: PLR0911 - a table
    watch: StreamWatch, ending: Ending, *, may_resend: bool, may_resume: bool, may_ask: bool = False
) -> AfterEnd:
    """Decide what follows the end of a POST's stream.

    ``may_ask``: it is sent in a session that may be healed. ``may_resend``: the request is harmless in doubt and a resend is
    left. ``may_resume``: something new has come since the last resume, and the session still stands where this stream
    began.
    """
    watch.note_elsewhere()
    if watch.in_fragment:
        return AfterEnd.CUT
    if watch.answered:
        return AfterEnd.FINISH
    if watch.unanswered is None:
        return AfterEnd.FINISH if ending is Ending.CLEAN else AfterEnd.CUT
    if watch.misaddressed:
        return AfterEnd.TELL
    if ending is Ending.CLEAN and watch.last_event_id is not None and not watch.renumbering.ids:
        return AfterEnd.FINISH  # a client that polled for a request under an id of ours would not know the answer
    if watch.last_event_id is not None and may_resume:
        return AfterEnd.RESUME
    if watch.committed:
        return AfterEnd.TELL
    if ending is Ending.CLEAN and may_ask:
        return AfterEnd.ASK
    return AfterEnd.RESEND if may_resend else AfterEnd.TELL


def unanswered_ids(message: Message) -> set[JsonRpcId] | None:
    """The ids that a POST waits for; ``None`` where they are not known, since it is no message or was not read."""
    return None if message.kind is Kind.OTHER else {request.id for request in message.requests}


def _may_refuse(message: Message | None) -> bool:
    """Whether an event may be a refusal: an error, or no message at all."""
    if message is None or message.kind is Kind.OTHER:
        return message is None or not message.is_unread
    return message.kind is Kind.RESPONSE and "result" not in message.value


def _message_in(data: str | None) -> Message | None:
    if not data:
        return None
    try:
        return parse(data.encode())
    except NotJson:
        return None
