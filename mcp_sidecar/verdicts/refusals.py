"""Refusals, and how they are settled: what known words do not say, a `ping` on the same session does.

The rule of this file: words only make it quick, evidence decides. Two tables: which refusals are asked about, and what the
answer to the ping shows. Only a ping that is refused in the same words proves that the request did not run: then the
server refuses before it dispatches anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from mcp_sidecar.verdicts.words import Said, Words, said_in, speaks_of_session, words_of
from mcp_sidecar.wire.jsonrpc import JsonRpcId

NEVER_ASKED: Final = frozenset({402, 403, 405, 407, 408, 411, 413, 414, 415, 429, 431, 451})
"""Statuses that say something else by definition. 403 is a decision about a principal, which no session could change."""

GATEWAYS: Final = frozenset({502, 503, 504, *range(520, 531)})
METHOD_NOT_FOUND: Final = -32601
_NOTHING_SAID: Final = frozenset({"", "error", "server error", "internal error", "internal server error"})
"""What servers say of any failure."""


class Addressee(Enum):
    """To whom a JSON-RPC error is addressed."""

    NOT_JSON_RPC = "no JSON-RPC error"
    NOBODY = "nobody"  # a null id, none, or one that was not asked with
    REQUEST = "the request"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal as asking sees it: its words, to whom it is addressed, and its JSON-RPC code."""

    words: Words
    addressee: Addressee = Addressee.NOT_JSON_RPC
    code: int | None = None
    challenged: bool = False

    @property
    def is_asked_about(self) -> bool:
        """Whether a `ping` is to tell what it means for the session."""
        status = self.words.status
        if self.addressee is Addressee.REQUEST and not self.words.speak_of_session:
            return False
        if 200 <= status < 300:
            return self.addressee is not Addressee.NOT_JSON_RPC or self.words.speak_of_session
        if status == 401:  # never hide a real one
            return not self.challenged and bool(self.words.text) and not self.words.speak_of_credentials
        if status == 404 and self.code == METHOD_NOT_FOUND:
            return False
        return status == 500 or (400 <= status < 500 and status not in NEVER_ASKED)

    def is_same_as(self, other: Refusal | None) -> bool:
        """Whether both refuse with the same status, in the same words, which shows that nothing was dispatched.

        A success or a failure without words of its own shows nothing: what broke a server may have begun with this very
        request. Nor does what is said to this request by its id, where ``other``, the refusal of a ping, names nobody.
        """
        status, text = self.words.status, self.words.text
        has_said = text not in _NOTHING_SAID if status == 500 else bool(text) or status >= 400
        if other is None or not has_said or self.words != other.words:
            return False
        return self.addressee is not Addressee.REQUEST or other.addressee is Addressee.REQUEST


def refusal_of(
    status: int,
    said: Said | bytes,
    *,
    ids: frozenset[JsonRpcId] = frozenset(),
    without: tuple[str, ...] = (),
    challenged: bool = False,
) -> Refusal:
    """Read a refusal. ``ids`` are those of the request, ``challenged`` is whether WWW-Authenticate is there."""
    read = said_in(said) if isinstance(said, bytes) else said
    message = _error_in(read)
    error = message.get("error") if message is not None else None
    code = error.get("code") if isinstance(error, dict) else None
    addressee = Addressee.NOT_JSON_RPC if message is None else _addressee(message.get("id") if error else None, ids)
    is_code = isinstance(code, int) and not isinstance(code, bool)
    return Refusal(words_of(status, read, without=without), addressee, code if is_code else None, challenged)


def is_plain_error(said: Said, ids: frozenset[JsonRpcId]) -> bool:
    """Whether it is the error of one of these requests, and does not speak of a session anywhere: the usual case."""
    message = said.json_rpc
    if message is None or not isinstance(message.get("error"), dict) or speaks_of_session(said.text):
        return False
    return _addressee(message.get("id"), ids) is Addressee.REQUEST


def _addressee(found: object, ids: frozenset[JsonRpcId]) -> Addressee:
    is_id = isinstance(found, str | int | float) and not isinstance(found, bool)
    return Addressee.REQUEST if is_id and found in ids else Addressee.NOBODY


def _error_in(said: Said) -> dict[str, Any] | None:
    """The JSON-RPC object that is neither a result nor a request, in a body or in the data of an event."""
    message = said.json_rpc
    return None if message is None or "result" in message or "method" in message else message


class PingVerdict(Enum):
    """What the answer to a ping shows."""

    ALIVE = "alive"  # the server has dispatched it: the session lives
    REFUSED = "refused"  # the session is lost, if `initialize` agrees
    AUTH = "auth"  # the credential is refused: the client's own answer passes
    BUSY = "busy"  # come back later
    GATEWAY = "gateway"  # a page, or a break, in the place of the server's answer
    AWAY = "away"  # no connection
    ELSEWHERE = "elsewhere"  # several servers: one of them knows the session, another one refuses it
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class PingAnswer:
    """The verdict on the answer to a ping, and the refusal that it met, by which every waiting request compares its own.

    ``retry_after_s`` is the pause that the server names.
    """

    verdict: PingVerdict
    refusal: Refusal | None = None
    retry_after_s: float | None = None

    def beside(self, asked: Refusal | None) -> PingAnswer:
        """The same, seen beside the refusal that was asked about.

        A server that knows no method `ping` has dispatched it, whomever it says so to, unless it says so of everything.
        """
        refusal = self.refusal
        if asked is None or refusal is None or refusal.code != METHOD_NOT_FOUND or refusal.words.speak_of_session:
            return self
        return self if refusal.is_same_as(asked) else PingAnswer(PingVerdict.ALIVE)


AWAY: Final = PingAnswer(PingVerdict.AWAY)
BROKEN: Final = PingAnswer(PingVerdict.GATEWAY)


def judge_ping(
    status: int | None,
    body: bytes = b"",
    *,
    ping_id: str,
    without: tuple[str, ...] = (),
    challenged: bool = False,
    retry_after_s: float | None = None,
    is_known_loss: bool = False,
) -> PingAnswer:
    """What the answer to a ping shows; ``status`` is ``None`` where there was no connection.

    ``body`` is (the beginning of) a body or of the data of its events; ``without`` is left out of its words;
    ``is_known_loss``: a row of the table, or an operator's, says that it tells of a loss.
    """
    if status is None:
        return AWAY
    said = said_in(body)
    if _is_result(said, ping_id):
        return PingAnswer(PingVerdict.ALIVE)
    refusal = refusal_of(status, said, ids=frozenset({ping_id}), without=("ping", *without), challenged=challenged)
    if refusal.addressee is Addressee.REQUEST and not refusal.words.speak_of_session:
        return PingAnswer(PingVerdict.ALIVE)
    if is_known_loss:
        return PingAnswer(PingVerdict.REFUSED, refusal)
    return PingAnswer(_refused(refusal, retry_after=retry_after_s is not None), refusal, retry_after_s)


def _refused(refusal: Refusal, *, retry_after: bool) -> PingVerdict:
    status = refusal.words.status
    if status == 429 or (status == 503 and (retry_after or refusal.addressee is not Addressee.NOT_JSON_RPC)):
        return PingVerdict.BUSY
    if status in GATEWAYS:
        return PingVerdict.GATEWAY
    if refusal.is_asked_about:
        return PingVerdict.REFUSED
    return PingVerdict.AUTH if status in (401, 403, 407) else PingVerdict.UNPROVEN


def _is_result(said: Said, ping_id: str) -> bool:
    message = said.json_rpc
    return message is not None and message.get("id") == ping_id and "result" in message
