"""What passes on a response stream, and what its end means.

A POST's stream is over when every request of it is answered. An end before that is polling if an event with an id was
sent (2025-11-25, "Sending Messages" 6) and the transfer ended cleanly; everything else is a break, and a break is never
passed on as if the stream were whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mcp_sidecar.healing.announcement import Announcement
from mcp_sidecar.healing.marked_ids import FIRST, Mark, Renumbering, event_to_client, to_client
from mcp_sidecar.healing.progress import Progress
from mcp_sidecar.wire.json_scan import TopLevelScan
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message, NotJson, from_scan, parse
from mcp_sidecar.wire.sse import Block, Event, Fragment, parse_event

_NOTHING = Message(Kind.OTHER)


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
    CUT = "cut"  # in the middle of an event, or nobody knows the ids: nothing can be said


@dataclass(slots=True)
class StreamWatch:
    """Looks at what is relayed on one stream, maps its ids, and remembers what its end will depend on.

    ``unanswered`` are the client's request ids that still wait, ``None`` where nobody knows whether any does. A message
    is handed to the caller once, by ``relay``. ``misaddressed``: an answer went by under an id that the client does not
    know, since it was too large to be written anew; it will not come again. ``heard`` counts what concerned the requests:
    answers to them, progress, the beginning of something large. ``announcing`` adds what the model is to know, ``progress``
    holds back what would go back.
    """

    mark: Mark
    renumbering: Renumbering = field(default_factory=Renumbering)
    unanswered: set[JsonRpcId] | None = field(default_factory=set)
    last_event_id: str | None = None
    former_event_id: str | None = None
    retry_ms: int | None = None
    committed: bool = False
    in_fragment: bool = False
    misaddressed: bool = False
    blocks: int = 0
    heard: int = 0
    announcement: Announcement | None = None
    progress: Progress | None = None
    _scan: TopLevelScan | None = field(default=None, init=False)
    _is_json: bool = field(default=True, init=False)

    def relay(self, piece: Block | Fragment) -> tuple[bytes, Message | None]:
        """What the client gets for one piece of the stream, and the message in it, if it holds one."""
        self.blocks += 1
        if isinstance(piece, Fragment):
            return self._relay_fragment(piece)
        event = parse_event(piece.raw)
        self._note_fields(event)
        message = _message_in(event.data)
        mapped = self._for_client(message) if message is not None else None
        if message is not None:
            self._note(message)
            if self.progress is not None and not self.progress.lets_pass(message, self.mark.generation):
                return b"", message
        return event_to_client(piece.raw, event, mapped, self.mark), message

    @property
    def rewrites(self) -> bool:
        """Whether ids on this stream must be written anew."""
        return self.mark.generation > FIRST or bool(self.renumbering.ids or self.renumbering.tokens)

    @property
    def answered(self) -> bool:
        """Whether it is known that nobody waits for anything on this stream any more."""
        return self.unanswered is not None and not self.unanswered

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
        is_rewritable = not message.is_opaque
        may_come_again = self.progress is not None and self.progress.judges(message)
        for member in message.members or (message,):
            if member.kind is Kind.RESPONSE:
                self._note_answer(member.id, is_rewritable=is_rewritable)
            self.heard += member.method == "notifications/progress"
            if member.kind is not Kind.NOTIFICATION or member.method == "notifications/progress":
                self.committed |= not may_come_again

    def _note_answer(self, request_id: JsonRpcId, *, is_rewritable: bool) -> None:
        """An answer counts under the id that the client will see; where that is not its own, it still waits."""
        if isinstance(request_id, str) and request_id in self.renumbering.ids:
            self.misaddressed |= not is_rewritable
            request_id = self.renumbering.ids[request_id] if is_rewritable else request_id
        if self.unanswered is not None and request_id in self.unanswered:
            self.heard += 1
            self.unanswered.discard(request_id)

    def _note_fields(self, event: Event) -> None:
        if event.id is not None:
            self.former_event_id, self.last_event_id = self.last_event_id, event.id or None
        if event.retry is not None:
            self.retry_ms = event.retry

    def _relay_fragment(self, piece: Fragment) -> tuple[bytes, Message | None]:
        """A part of something large, and at its end the question that it was, if the client sees it under its own id."""
        message = None
        self.in_fragment = not piece.last
        self.committed = True
        raw = piece.raw
        if self._scan is None:
            self._scan, self._is_json = TopLevelScan(), True
            self.heard += 1
            raw = self._with_marked_id(raw)
        self._is_json = self._is_json and _goes_on_as_json(self._scan, piece)
        if piece.last:
            message = from_scan(self._scan) if self._is_json else _NOTHING
            self._note_scanned(message)
            self._scan = None
        is_question = message is not None and message.kind is Kind.REQUEST and not self.rewrites
        return raw, message if is_question else None

    def _with_marked_id(self, raw: bytes) -> bytes:
        """The beginning of a large event; its id stands there, in the whole lines before the data."""
        whole = raw[: max(raw.rfind(b"\n"), raw.rfind(b"\r")) + 1]
        event = parse_event(whole)
        self._note_fields(event)
        return event_to_client(whole, event, None, self.mark) + raw[len(whole) :]

    def _note_scanned(self, message: Message) -> None:
        if message.kind is Kind.BATCH and self.unanswered is not None:
            if self.renumbering.ids:
                self.misaddressed = True
            else:
                self.unanswered.clear()
        self._note(message)


def _goes_on_as_json(scan: TopLevelScan, piece: Fragment) -> bool:
    try:
        scan.feed(piece.data)
        if piece.last:
            scan.finish()
    except NotJson:
        return False
    return True


def after_end(watch: StreamWatch, ending: Ending, *, may_resend: bool, may_resume: bool) -> AfterEnd:
    """Decide what follows the end of a POST's stream.

    ``may_resend``: the request is harmless in doubt and a resend is left. ``may_resume``: something new has come since
    the last resume, and the session still stands where this stream began.
    """
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
    if may_resend and not watch.committed:
        return AfterEnd.RESEND
    return AfterEnd.TELL


def unanswered_ids(message: Message) -> set[JsonRpcId] | None:
    """The ids that a POST waits for; ``None`` where they are not known: encoded, unread, or not yet here."""
    is_unread_batch = message.kind is Kind.BATCH and message.is_opaque and not message.members
    if message.kind is Kind.OTHER or is_unread_batch:
        return None
    ids = {request.id for request in message.requests}
    return None if None in ids else ids


def _message_in(data: str | None) -> Message | None:
    if not data:
        return None
    try:
        return parse(data.encode())
    except NotJson:
        return None
