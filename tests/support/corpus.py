"""Reads ``tests/corpus``: one captured answer of a real server per file, with its provenance and its meaning.

A file is a header block of ``key: value`` lines, a blank line, and the raw HTTP answer: status line, headers, blank line,
body up to the last byte. ``{SID}`` stands for the id of the request, ``{OTHER_SID}`` for another one. An unknown key is
an error, so that a mistyped expectation cannot pass for none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_sidecar.verdicts.classify import AnswerHead, RequestFacts, SessionKnowledge, Verdict

DIRECTORY = Path(__file__).parent.parent / "corpus"
SESSION_ID = "8f14e45fceea467a9d1c2b7c3a5e6f70"
OTHER_SESSION_ID = "c9f0f895fb98ab9159f51fd0297e236d"

_REQUIRED = frozenset({"id", "server", "versions", "evidence", "kind", "request", "expect"})
_OPTIONAL = frozenset({"truth", "after-probe", "signature", "note", "fault"})
_FIRST_SESSIONLESS_REVISION = "2026-07-28"


class BadEntry(ValueError):
    """A corpus file that does not follow the format."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One captured answer. ``head`` is ``None`` where the upstream gave none, and ``fault`` says why.

    ``truth`` is what really was the case where the answer alone cannot tell, ``after_probe`` the verdict that an
    ambiguous answer must end in.
    """

    id: str
    server: str
    versions: str
    evidence: str
    kind: str
    request: RequestFacts
    expect: Verdict
    truth: str | None
    after_probe: Verdict | None
    signature: str | None
    note: str | None
    fault: str | None
    head: AnswerHead | None
    headers: tuple[tuple[str, str], ...]
    body: bytes


def entries() -> Iterator[Entry]:
    """Yield every entry of the corpus in the order of the file names."""
    for path in sorted(DIRECTORY.glob("*.txt")):
        entry = parse(path.read_bytes())
        if entry.id != path.stem:
            raise BadEntry(f"{path.name}: holds the id {entry.id!r}")
        yield entry


def parse(raw: bytes) -> Entry:
    """Read one file; raises BadEntry with the line or key that is wrong."""
    block, _, answer = raw.partition(b"\n\n")
    keys = _keys(block.decode())
    head, headers, body = _answer(answer) if answer else (None, (), b"")
    if (head is None) != ("fault" in keys):
        raise BadEntry("an entry has either an answer or a fault")
    expect = Verdict[keys["expect"]]
    if (expect is Verdict.ASK) != ("after-probe" in keys):
        raise BadEntry("after-probe belongs to ambiguous answers, and to each of them")
    return Entry(
        id=keys["id"],
        server=keys["server"],
        versions=keys["versions"],
        evidence=keys["evidence"],
        kind=keys["kind"],
        request=_request(json.loads(keys["request"])),
        expect=expect,
        truth=keys.get("truth"),
        after_probe=Verdict[keys["after-probe"]] if "after-probe" in keys else None,
        signature=keys.get("signature"),
        note=keys.get("note"),
        fault=keys.get("fault"),
        head=head,
        headers=headers,
        body=body,
    )


def _keys(block: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for line in block.splitlines():
        key, colon, value = line.partition(": ")
        if not colon or key not in _REQUIRED | _OPTIONAL or key in keys:
            raise BadEntry(f"unknown, repeated or malformed key: {line!r}")
        keys[key] = value
    if missing := _REQUIRED - keys.keys():
        raise BadEntry(f"missing: {', '.join(sorted(missing))}")
    return keys


def _request(request: dict[str, Any]) -> RequestFacts:
    # The corpus was recorded with ids that the server itself had minted, for the credential that used them.
    session = SessionKnowledge.NONE if request["session"] == "none" else SessionKnowledge.BOUND
    revision = request["protocol_version_header"] or ""
    ids = frozenset({request["rpc_id"]} - {None})
    modern = revision >= _FIRST_SESSIONLESS_REVISION
    return RequestFacts(request["http_method"], request["rpc_method"], session, modern=modern, rpc_ids=ids)


def _answer(raw: bytes) -> tuple[AnswerHead, tuple[tuple[str, str], ...], bytes]:
    block, _, body = raw.partition(b"\n\n")
    status_line, *lines = _fill(block).decode().splitlines()
    headers = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
    fields = dict(headers)
    head = AnswerHead(
        int(status_line.split(" ", 2)[1]), fields.get("content-type"), www_authenticate="www-authenticate" in fields
    )
    return head, headers, _fill(body)


def _fill(text: bytes) -> bytes:
    return text.replace(b"{SID}", SESSION_ID.encode()).replace(b"{OTHER_SID}", OTHER_SESSION_ID.encode())
