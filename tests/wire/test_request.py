"""The head of a request: what of it is read, what is refused, and that other readers read no less in what passes.

The other readers are aiohttp's two parsers and h11. They see the same generated heads; what is taken here they must take,
too, and read alike: else something could be hidden in it from one of those that it passes.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import h11
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion10
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from yarl import URL

from mcp_sidecar.wire.framing import ChunkedBody, SizedBody
from mcp_sidecar.wire.headers import MAX_FIELDS
from mcp_sidecar.wire.request import Fault, HeadReader, RequestHead, Unreadable, path_of, without_escapes

HEADS = int(os.environ.get("EDGE_HEADS", "20000"))
SEED = 20261128
MAX_BYTES = 8192
READER = HeadReader(MAX_BYTES)


def read(head: bytes) -> RequestHead | Fault:
    """What comes of a head."""
    try:
        return READER.read(head)
    except Unreadable as error:
        return error.fault


def head_of(*lines: str, first: str = "POST /mcp HTTP/1.1", host: str = "Host: a") -> bytes:
    """A head with exactly these lines."""
    return "\r\n".join([first, *filter(None, [host]), *lines, "", ""]).encode("utf-8", "surrogateescape")


# -- what clients send ------------------------------------------------------------------------------------------------


def test_a_usual_head() -> None:
    """All of it is known, and names, values and their order are the client's."""
    head = read(head_of("X-One: a", "content-length: 12", "x-one:b ", "Empty:", "Bytes: caf\udce9 \u00e9\tz"))
    assert isinstance(head, RequestHead)
    assert (head.method, head.target, head.is_http10, head.keep_alive) == ("POST", "/mcp", False, True)
    assert head.framing == SizedBody(12)
    assert head.fields.pairs == [
        ("Host", "a"),
        ("X-One", "a"),
        ("content-length", "12"),
        ("x-one", "b"),
        ("Empty", ""),
        ("Bytes", "caf\udce9 \u00e9\tz"),
    ]


@pytest.mark.parametrize(
    ("version", "lines", "stays"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: close"], False),
        ("1.1", ["Connection: Upgrade", "connection: x, CLOSE"], False),
        ("1.1", ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"], True),
        ("1.0", [], False),
        ("1.0", ["Connection: Keep-Alive"], True),
        ("1.0", ["Connection: keep-alive, close"], False),
    ],
)
def test_whether_another_request_may_follow(version: str, lines: list[str], stays: bool) -> None:
    """RFC 9112 §9.3; where both is said it does not."""
    head = read(head_of(*lines, first=f"GET / HTTP/{version}"))
    assert isinstance(head, RequestHead)
    assert (head.keep_alive, head.is_http10) == (stays, version == "1.0")


@pytest.mark.parametrize(
    ("told", "target"),
    [
        ("/", "/"),
        ("//a/../b?c?d=%zz#e", "//a/../b?c?d=%zz#e"),
        ("http://a/b?c#d", "/b?c"),
        ("HTTPS://a.b-c_d:8443/b", "/b"),
        ("http://[::1]:8", ""),
        ("http://a?b", "?b"),
        ("*", None),
        ("a/b", None),
        ("?a", None),
        ("http:/a", None),
        ("http:///a", None),
        ("http://user@a/b", None),
        ("http://a@b", None),
        ("http://a%41/b", None),
        ("http://a:/b", None),
        ("http://a:65536/b", None),
        ("http://[::1/b", None),
        ("mailto:a", None),
        ("http://a#b", None),
    ],
)
def test_targets(told: str, target: str | None) -> None:
    """A path as it is, or a URL without its origin; who is named in it may not be in doubt."""
    head = read(head_of(first=f"GET {told} HTTP/1.1"))
    assert (head.target if isinstance(head, RequestHead) else None) == target


def test_the_asterisk_is_for_options() -> None:
    """RFC 9112 §3.2.4."""
    head = read(head_of(first="OPTIONS * HTTP/1.1"))
    assert isinstance(head, RequestHead)
    assert head.target == "*"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["Content-Length: 0"], None),
        (["Content-Length: 007"], SizedBody(7)),
        (["Content-Length:\t7 "], SizedBody(7)),
        (["Content-Length: " + "9" * 18], SizedBody(10**18 - 1)),
        (["Content-Length: " + "9" * 19], Fault.UNREADABLE),
        (["Content-Length: \u0667"], Fault.UNREADABLE),
        (["Content-Length: 7\u00a0"], Fault.UNREADABLE),
        (["Content-Length: 7", "Content-Length: 7"], Fault.UNREADABLE),
        (["Transfer-Encoding: Chunked"], ChunkedBody),
        (["Transfer-Encoding: chunked", "Content-Length: 7"], Fault.UNREADABLE),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], Fault.UNREADABLE),
        (["Transfer-Encoding: chunked, chunked"], Fault.UNREADABLE),
        (["Transfer-Encoding: chunked,"], Fault.UNREADABLE),
        (["Transfer-Encoding: chun\u212aed"], Fault.UNREADABLE),  # a sign whose lower case is k
        (["Transfer-Encoding: chunked\u00a0"], Fault.UNREADABLE),
        (["Transfer-Encoding:"], Fault.UNREADABLE),
        (["Transfer-Encoding: gzip, chunked"], Fault.BAD_CODING),
        (["Transfer-Encoding: ,chunked"], Fault.BAD_CODING),
    ],
)
def test_where_a_body_ends(lines: list[str], expected: object) -> None:
    """By a plain length or by chunks, and by nothing in between."""
    head = read(head_of(*lines))
    found = head.framing if isinstance(head, RequestHead) else head
    assert type(found) is expected or found == expected


def test_chunks_are_not_for_http10() -> None:
    """Whoever speaks it may pass them on as if they were the body (RFC 9112 §6.1)."""
    assert read(head_of("Transfer-Encoding: chunked", first="POST / HTTP/1.0")) is Fault.UNREADABLE


@pytest.mark.parametrize("byte", [*range(9), *range(10, 32), 127], ids=hex)
def test_control_bytes(byte: int) -> None:
    """But the tab none may stand anywhere in a head, whatever another reader makes of it (RFC 9110 §5.5)."""
    odd = chr(byte)
    for head in (head_of(f"X: a{odd}b"), head_of(f"X{odd}: a"), head_of(first=f"GET /{odd} HTTP/1.1")):
        assert read(head) is Fault.UNREADABLE


def test_too_much_of_a_head() -> None:
    """The request line, all headers together, and their number are bounded; each bound is its own."""
    many = [f"X-{number}: a" for number in range(MAX_FIELDS - 1)]
    assert isinstance(read(head_of(*many)), RequestHead)
    assert read(head_of(*many, "Y: a")) is Fault.HEAD_TOO_LARGE
    assert read(head_of("X: " + "a" * MAX_BYTES)) is Fault.HEAD_TOO_LARGE
    assert read(head_of(first=f"GET /{'a' * MAX_BYTES} HTTP/1.1")) is Fault.HEAD_TOO_LARGE
    assert isinstance(read(head_of("X: " + "a" * 8000, first=f"GET /{'a' * 8000} HTTP/1.1")), RequestHead)


# -- what other readers make of it ------------------------------------------------------------------------------------


def words(text: str, between: str = " ") -> list[str]:
    return text.split(between)


METHODS = words(
    "GET HEAD POST PUT DELETE OPTIONS PATCH TRACE QUERY PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK SEARCH REPORT ACL "
    "CHECKOUT MERGE MKACTIVITY MKCALENDAR BIND REBIND UNBIND LINK UNLINK M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE SOURCE "
    "CONNECT PRI DESCRIBE SETUP X GETX GE get"
)
TARGETS = words(
    '/ // mcp a .. . %2F %2f %6D %25 % %zz %e2%82%ac %FF %C3%28 %ed%a0%80 %C3 %A9 ? # x=1 & + %2B %20 %00 : @ ; \\ " < > ^ '
    "` { | } ~ [ ] * http:// HTTP://h http://h:80 ftp:// :// é \t \0"
)
HOSTS = words("h h:8 a.b [::1] [::1]:9 u@h h_1 h%41 H h: h:0 h:99999 1.2.3.4 http: h;")
NAMES = words(
    "Host|host|Content-Length|content-length|Transfer-Encoding|Connection|connection|X|X-A|Content-Type|User-Agent|ETag|Server"
    "|Accept|Expect|Upgrade|Authorization|Content-Encoding|a_b|!#$%&'*+-.^`~1|X Y|X ||\tX| X|X\0|Xé|(X)|X:Y|Content-Location"
    "|Max-Forwards|Keep-Alive",
    between="|",
)
VALUES = [
    *("", "a", "a b", "a\tb", "a:b", "é", "\udce9", "\udcff\udc80", "\x80", "a\u00a0", '"a,b"'),
    *("a\0b", "a\rb", "a\nb", "a\r\n b", "a\x7fb", "a\x01b", "\x0b3", "\x0c"),
    *("3", "03", "0", "+3", "-1", "3, 3", "0x3", "1_0", "9" * 18, "9" * 19, " 3 ", "\t3\t", "3\u00a0", "3;a"),
    *("chunked", "Chunked", "gzip, chunked", "chunked, gzip", "chunked, chunked", "identity", ",chunked", "chunked,"),
    *(" chunked ", "chun\u212aed", "xchunked", "chunked;a=b"),
    *("close", "keep-alive", "Keep-Alive, Close", "close, x", "close\u00a0", "close;", "c lose", "close\tx", "upgrade"),
    *("Upgrade, HTTP2-Settings", "websocket", "h2c", "100-continue"),
]


def any_target(draw: Random) -> str:
    if draw.random() < 0.3:
        return "/mcp"
    parts = "".join(draw.choices(TARGETS, k=draw.randrange(1, 6)))
    return draw.choice(
        [parts, f"/{parts}", f"/{parts}", f"http://{draw.choice(HOSTS)}{draw.choice(['', '/', '?'])}{parts}"]
    )


def any_head(draw: Random) -> bytes:
    """Something like a head, most of them with something odd in them."""
    is_odd = draw.random() < 0.5
    method = draw.choice(METHODS if draw.random() < 0.2 else ["GET", "POST", "OPTIONS"])
    version = draw.choice(["1.1"] * 8 + ["1.0", "1.0"] + (["2.0", "1.2", "1.10", "1,1", ""] if is_odd else []))
    blanks = [" "] * 20 + (["  ", "\t", "", "\r"] if is_odd else [])
    protocol = draw.choice(["HTTP/"] * 20 + (["http/", "ICE/", "HTTP "] if is_odd else []))
    first = f"{method}{draw.choice(blanks)}{any_target(draw)}{draw.choice(blanks)}{protocol}{version}"
    lines = ["Host: a"] if draw.random() < 0.9 else []
    colons = [":"] * 6 + ([" :", "", "\t:"] if is_odd else [])
    lines += [
        f"{draw.choice(NAMES)}{draw.choice(colons)}{draw.choice((' ', '', '  '))}{draw.choice(VALUES)}"
        for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4)))
    ]
    draw.shuffle(lines)
    ends = ["\r\n"] * 40 + (["\n", "\r", "\r\r\n", "\r\n\r\n"] if is_odd else [])
    text = "".join(line + draw.choice(ends) for line in [first, *lines]) + "\r\n"
    data = text.encode("utf-8", "surrogateescape")
    return data[: data.find(b"\r\n\r\n") + 4] if b"\r\n\r\n" in data else data + b"\r\n\r\n"


@pytest.fixture(name="loop", scope="module")
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def by_aiohttp(parser: Any, head: bytes, loop: asyncio.AbstractEventLoop) -> Any:
    """The one message in a head, whatever it says of a body, by one of aiohttp's parsers. Raises what that raises."""
    made = parser(
        BaseProtocol(loop), loop, 0, max_line_size=MAX_BYTES, max_field_size=MAX_BYTES, response_with_body=False
    )
    messages, _, _ = made.feed_data(head)
    ((message, _),) = messages
    return message


def by_h11(head: bytes) -> h11.Request:
    """The same by h11."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    return request


def as_bytes(head: RequestHead) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in head.fields.pairs]


@pytest.mark.parametrize("parser", [HttpRequestParser, HttpRequestParserPy])
def test_what_is_taken_aiohttp_reads_alike(parser: Any, loop: asyncio.AbstractEventLoop) -> None:
    """The same method, target and headers, the same framing, and the same word on the connection."""
    draw, taken = Random(SEED), Counter[str]()
    for _ in range(HEADS):
        data = any_head(draw)
        head = read(data)
        taken[type(head).__name__] += 1
        if isinstance(head, Fault):
            continue
        message = by_aiohttp(parser, data, loop)
        url = message.url.relative() if message.url.absolute else message.url
        target = message.path if message.path.startswith("/") else url.raw_path_qs
        assert (head.method, head.target.rstrip("?")) == (message.method, target.rstrip("?")), data
        assert (head.is_http10, as_bytes(head)) == (message.version == HttpVersion10, list(message.raw_headers)), data
        assert isinstance(head.framing, ChunkedBody) is message.chunked, data
        assert message.should_close <= (not head.keep_alive), data
        assert path_of(head.target) == url.raw_path or "#" in head.target, data  # of which they think differently
    assert min(taken["RequestHead"], taken["Fault"]) > HEADS / 10


def test_what_is_taken_h11_reads_alike() -> None:
    """The same method, target and headers; it leaves the origin in a target."""
    draw = Random(SEED)
    for _ in range(HEADS):
        data = any_head(draw)
        head = read(data)
        if isinstance(head, Fault):
            continue
        request = by_h11(data)
        assert head.method.encode() == request.method, data
        assert request.target.endswith(head.target.encode()) or b"#" in request.target, data
        told = [(name, value.lower()) for name, value in request.headers]  # that of one it writes in lower case anyway
        assert [(name.lower(), value.lower()) for name, value in as_bytes(head)] == told, data


@pytest.mark.parametrize("parser", [HttpRequestParser, HttpRequestParserPy])
def test_what_clients_send_is_taken(parser: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Where nothing is odd, nothing is refused that others take: any value, any order, any spelling of a name."""
    draw = Random(SEED)
    values = ["a", "a b", "a\tb", "", "caf\udce9", "é", "a:b,c;d=e", '"q"', "x" * 300, "Bearer a.b.c=="]
    for _ in range(HEADS // 10):
        names = draw.sample(
            ["Accept", "X-A", "mcp-session-id", "MCP-Protocol-Version", "ORIGIN", "Cookie", "x_y.z"], k=4
        )
        lines = [f"{name}:{draw.choice((' ', ''))}{draw.choice(values)}{draw.choice(('', ' '))}" for name in names]
        framing = draw.choice(["X: y", "Content-Length: 5", "transfer-encoding: chunked"])
        version = "1.1" if "chunked" in framing else draw.choice(["1.0", "1.1"])
        lines += [framing, draw.choice(["Connection: keep-alive", "x: y"]), "Accept: twice", "Host: [::1]:80"]
        draw.shuffle(lines)
        target = "/" + "".join(draw.choices("abc/%2F?&=;+~!$'()*,:@.-_", k=draw.randrange(30)))
        data = head_of(*lines, first=f"{draw.choice(METHODS[:9])} {target} HTTP/{version}", host="")
        assert by_aiohttp(parser, data, loop).path == target
        head = read(data)
        assert isinstance(head, RequestHead), data
        assert head.target == target


# -- which path it is -------------------------------------------------------------------------------------------------


def test_a_path_is_compared_as_yarl_would() -> None:
    """Only what is the same path to yarl is the same here: no target becomes the endpoint that was not one before."""
    draw = Random(SEED)
    parts = [
        *TARGETS,
        *(f"%{draw.randrange(256):02x}" for _ in range(40)),
        *(f"%{number:02X}" for number in range(0x30, 0x7B)),
    ]
    for _ in range(HEADS):
        path = "/" + "".join(draw.choices(parts, k=draw.randrange(1, 8))).replace("?", "").replace("#", "")
        found, yarls = without_escapes(path), URL.build(path=path, encoded=True).path_safe
        if found != yarls:  # only where escapes are no UTF-8: then all of them that stand together are left as they are
            assert any(part in found for part in ("%", "\ufffd")), path
            assert URL.build(path=found, encoded=True).path_safe == yarls, path


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a", "/a"),
        ("/a?b", "/a"),
        ("/a?b#c", "/a"),
        ("/a#b", "/a"),
        ("/a#b?c", "/a#b"),
        ("", ""),
        ("?a", ""),
        ("*", "*"),
    ],
)
def test_the_path_of_a_target(target: str, path: str) -> None:
    """It ends with the query; a mark in front of one is a part of it, as somebody may read it."""
    assert path_of(target) == path


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/mcp", "/mcp"),
        ("/%6D%63p", "/mcp"),
        ("/caf%C3%a9", "/café"),
        ("/a%2fb%2Fc", "/a%2Fb%2Fc"),
        ("/a%252Fb", "/a%252Fb"),
        ("/a+b%2Bc", "/a+b+c"),
        ("/%", "/%"),
        ("/%zz%6", "/%zz%6"),
        ("/%ff%6D", "/%ff%6D"),
        ("/a/../b//c/.", "/a/../b//c/."),
    ],
)
def test_one_form_of_a_path(path: str, form: str) -> None:
    """What means the same is written in the same way, and nothing else is changed."""
    assert without_escapes(path) == form
