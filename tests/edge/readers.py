"""What h11 makes of the same bytes: the second reader, with which nobody here has anything in common."""

from __future__ import annotations

from dataclasses import dataclass

import h11


@dataclass(slots=True)
class Read:
    """One request as h11 reads it. Its header names are in lower case."""

    method: str
    target: str
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    is_whole: bool = False


def requests_in(data: bytes) -> list[Read]:
    """The requests that h11 reads from a client's bytes, up to what it refuses."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    connection.receive_data(data)
    found: list[Read] = []
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                fields = [(bytes(name), bytes(value)) for name, value in event.headers]
                found.append(Read(event.method.decode(), event.target.decode("latin-1"), fields))
            elif isinstance(event, h11.Data):
                found[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found[-1].is_whole = True
                if connection.their_state is not h11.DONE:
                    return found
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return found
                connection.start_next_cycle()
            else:
                return found
    except h11.ProtocolError:
        return found


@dataclass(slots=True)
class Answer:
    """One answer to a client."""

    status: int
    mark: bytes
    body: bytes
    closes: bool


def answers_in(data: bytes) -> list[Answer]:
    """The whole answers in what a client got. Raises ``ValueError`` where something else is between them."""
    found: list[Answer] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        if not end or not lines[0].startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")):
            raise ValueError(f"no answer: {head[:60]!r}")
        status = int(lines[0][9:12])
        if status == 100:
            continue
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        if b"transfer-encoding" in fields:
            body, data = _chunks(data)
        else:
            size = int(fields.get(b"content-length", b"0"))
            body, data = data[:size], data[size:]
        found.append(Answer(status, fields.get(b"x-mark", b""), body, fields.get(b"connection") == b"close"))
    return found


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    parts: list[bytes] = []
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return b"".join(parts), data.removeprefix(b"\r\n")
        parts.append(data[:length])
        data = data[length + 2 :]
