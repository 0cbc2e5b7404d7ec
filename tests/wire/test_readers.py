"""JSON is read alike, whether the quick reader is installed or not."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from itertools import chain

import pytest

from mcp_sidecar.wire import jsonrpc
from mcp_sidecar.wire.jsonrpc import UNREAD, Kind, Message, NotJson, is_result, parse
from tests.support.corpus import entries

pytestmark = pytest.mark.skipif(jsonrpc.quick_reader is None, reason="msgspec is not installed")

PIECES = (
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"a"',
        '"b":',
        '"id":',
        '"a":',
        " ",
        "\n",
        "\t",
        "\x0c",
        "\0",
        "é",
        '"x',
        "\\",
        "\ufeff",
    ),
    *(
        '"\\u00e9"',
        '"\\ud83d"',
        '"\\ude00"',
        '"\\ud83d\\ude00"',
        '"\\n"',
        '"\\x"',
        '"\\u12"',
        '"\t"',
        "true",
        "false",
        "null",
    ),
    *(
        "1",
        "-1",
        "0",
        "-0",
        "-0.0",
        "01",
        "1.",
        ".5",
        "1.5",
        "1e3",
        "1E+3",
        "1e309",
        "-1e309",
        "1e-400",
        "NaN",
        "Infinity",
    ),
    *(
        "99999999999999999999",
        "-9223372036854775809",
        "18446744073709551616",
        "9" * 400,
        "9" * 5000,
        "9007199254740993",
    ),
)
ODD = (b"", b"\xef\xbb\xbf{}", b"\xff", b'"\xff"', b'"\xed\xa0\x80"', "{}".encode("utf-16"), b"[" * 100_000, b"[]" * 2)


def read(body: bytes) -> Message | str:
    """What becomes of it."""
    try:
        return parse(body)
    except NotJson as refusal:
        return str(refusal)


def said(body: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What both make of a body; 1, 1.0 and -0.0 are not the same."""
    quick = repr(read(body))
    with monkeypatch.context() as patch:
        patch.setattr(jsonrpc, "quick_reader", None)
        return quick, repr(read(body))


def texts(count: int) -> Iterator[bytes]:
    """Random sequences of what JSON is made of, and of what it is not."""
    luck = random.Random(28)
    for _ in range(count):
        yield "".join(luck.choices(PIECES, k=luck.randint(1, 9))).encode()
        yield b'{"id":%b,"method":"%b"}' % (luck.choice(PIECES).encode(), luck.randbytes(2))


def numbers(count: int) -> Iterator[bytes]:
    """Random doubles, written shortly and at length, and random decimals."""
    luck = random.Random(28)
    for _ in range(count):
        (number,) = struct.unpack("<d", luck.randbytes(8))
        yield repr(number).encode()
        yield f"{number:.{luck.randint(0, 25)}e}".encode()
        yield f"{luck.getrandbits(70)}.{luck.getrandbits(70)}e{luck.randint(-340, 310)}".encode()


@pytest.mark.parametrize("bodies", [pytest.param(texts(4000), id="texts"), pytest.param(numbers(3000), id="numbers")])
def test_generated(bodies: Iterator[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Duplicate members, odd numbers, lone surrogates and nonsense included."""
    for body in bodies:
        quick, ordinary = said(body, monkeypatch)
        assert quick == ordinary, body


def test_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a real server was seen to say."""
    for entry in entries():
        quick, ordinary = said(entry.body, monkeypatch)
        assert quick == ordinary, entry.id


@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
def test_odd_bytes(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks, other encodings, depth, and more than one text."""
    quick, ordinary = said(body, monkeypatch)
    assert quick == ordinary


def results(count: int) -> Iterator[bytes]:
    """Responses and what is nearly one, with members twice, of odd types, and in an odd order."""
    luck = random.Random(11)
    members = (
        *(b'"jsonrpc":"2.0"', b'"id":7', b'"id":"7"', b'"id":7.0', b'"id":true', b'"id":null', b'"id":[7]'),
        *(b'"result":{}', b'"result":null', b'"r\\u0065sult":{}', b'"error":{}', b'"error":null', b'"method":"m"'),
        *(b'"m\\u0065thod":1', b'"x":"\\ud800"', b'"x":' + b"[" * 600 + b"]" * 600, b'"x":' + b"9" * 5000, b'"x":NaN'),
    )
    for _ in range(count):
        yield b"{%b}" % b",".join(luck.choices(members, k=luck.randint(1, 4)))
        yield b"%b" % b",".join(luck.choices((b'{"id":7,"result":1}', b"[]", b"\xef\xbb\xbf{}", b" "), k=2))


def test_a_result_is_known_as_parse_would() -> None:
    """Without building a message."""
    seen = set()
    for body in chain(results(4000), texts(2000)):
        try:
            message = parse(body)
        except NotJson:
            message = UNREAD
        expected = message.kind is Kind.RESPONSE and message.id == 7 and "result" in message.value
        assert is_result(body, 7) is expected, body
        seen.add(expected)
    assert seen == {True, False}
