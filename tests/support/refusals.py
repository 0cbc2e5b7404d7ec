"""Refusals that nobody has ever said: every status that is asked about, in every frame, in random words, to anybody.

The rule of this file: no wording of it stands in any table, so whatever heals on it heals on evidence.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from tests.support.dialects import HTML_UTF8, JSON, TEXT_UTF8, Dialect, Said

STATUSES = (
    *(400, 401, 404, 406, 409, 410, 412, 416, 417, 418, 421, 422, 423, 424, 425, 426, 428),
    *(500, 200),
)
"""401 without a challenge; 200 only in the frames of JSON-RPC."""

SYLLABLES = ("ba", "ko", "ru", "mi", "ter", "lon", "va", "dis", "pre", "qua", "shi", "gon", "el", "ur", "tik", "fen")


class To(Enum):
    """To whom a JSON-RPC error is addressed."""

    NOBODY = "null"
    OTHER = '"server-error"'
    REQUEST = "{ID}"


@dataclass(frozen=True, slots=True)
class Refused:
    """One refusal, as a template of the fake upstream's answers."""

    name: str
    said: Said

    @property
    def dialect(self) -> Dialect:
        """A server that tells a lost session so."""
        return Dialect(name=self.name, servers="nobody's", post=self.said)


def generated(seed: int, per_kind: int = 3) -> Iterator[Refused]:
    """Every status in every frame, ``per_kind`` times each, in words of their own."""
    chance = random.Random(seed)
    for status in STATUSES:
        for frame, content_type in FRAMES.items():
            for to in To:
                if "{rpc}" not in frame and (to is not To.NOBODY or status == 200):
                    continue
                for number in range(per_kind):
                    words = _sentence(chance, about_session=to is To.REQUEST)
                    body = frame.replace("{rpc}", _error(words, to)).replace("{words}", words)
                    name = f"{status}-{_short(content_type)}-{to.name.lower()}-{frame[:6].strip()}-{number}"
                    yield Refused(name, Said(status, body, content_type))


FRAMES = {
    "{words}\n": TEXT_UTF8,
    "<html><body><h1>{words}</h1></body></html>": HTML_UTF8,
    '{"error":"{words}"}': JSON,
    '{"detail":"{words}"}': JSON,
    "{rpc}": JSON,
    "event: message\ndata: {rpc}\n\n": "text/event-stream",
}


def _error(words: str, to: To) -> str:
    code = -32000 - len(words)
    return f'{{"jsonrpc":"2.0","error":{{"code":{code},"message":{json.dumps(words)}}},"id":{to.value}}}'


def _sentence(chance: random.Random, *, about_session: bool) -> str:
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(2, 4))) for _ in range(chance.randint(2, 6))]
    if about_session:  # an error under the request's own id is asked about only where it speaks of a session
        words.insert(chance.randint(0, len(words)), "session")
    return " ".join(words).capitalize() + chance.choice(["", ".", f": {chance.randint(0, 9999)}", " {SID}"])


def _short(content_type: str) -> str:
    return content_type.partition(";")[0].rpartition("/")[2]
