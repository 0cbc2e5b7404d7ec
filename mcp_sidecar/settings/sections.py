"""Every setting: its key, how it is written, its default, and what it means.

The law of this file: a section is a table of the contract; a field is one of its keys and carries the description that
``config.example.toml`` prints. Values are parsed by ``values`` alone, so that every level (command line, environment,
TOML) reads them alike.
"""

from __future__ import annotations

import os
import pathlib
import ssl
from enum import StrEnum
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mcp_sidecar.config import AFFINITY_COOKIES, NEAR_NETWORKS
from mcp_sidecar.healing.policy import Announce, Mode, OnServerChange
from mcp_sidecar.settings import values
from mcp_sidecar.token_file import read_token
from mcp_sidecar.verdicts.signatures import Signature, operator_signature


class LogFormat(StrEnum):
    """How a log line is written."""

    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _readable_file(path: str) -> str:
    try:
        with pathlib.Path(path).open("rb"):
            return path
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not a path"
        raise ValueError(f"cannot be read: {reason}") from error


def _authorities(path: str) -> str:
    try:
        ssl.create_default_context(cafile=_readable_file(path))
    except ssl.SSLError as error:
        raise ValueError("must be a file of certificates in PEM form") from error
    return path


def _token_file(path: str) -> str:
    read_token(_readable_file(path))
    return path


_URL_WRITTEN = PlainSerializer(str, return_type=str)
_ADDRESS_OR_OFF_WRITTEN = PlainSerializer(lambda address: str(address or "off"), return_type=str)
AnyCase = BeforeValidator(values.lower)
Count = Annotated[int, BeforeValidator(values.number), Field(ge=0)]
CountAboveZero = Annotated[int, BeforeValidator(values.number), Field(ge=1)]
_SECONDS_WRITTEN = PlainSerializer(values.seconds_text)
Seconds = Annotated[float, BeforeValidator(values.seconds(zero=True)), _SECONDS_WRITTEN]
SecondsAboveZero = Annotated[float, BeforeValidator(values.seconds(zero=False)), _SECONDS_WRITTEN]
_SIZE_WRITTEN = PlainSerializer(values.size_text)
Size = Annotated[int, BeforeValidator(values.size(0)), _SIZE_WRITTEN]
SizeAboveZero = Annotated[int, BeforeValidator(values.size(1)), _SIZE_WRITTEN]
# Below this an ordinary browser's request or an ordinary JWT does not fit, and nothing would work.
HeaderSize = Annotated[int, BeforeValidator(values.size(1024)), _SIZE_WRITTEN]
Secret = Annotated[
    str, BeforeValidator(values.words(str)), PlainSerializer(lambda _: "***", return_type=str, when_used="unless-none")
]
Text = Annotated[str, BeforeValidator(values.words(str))]
Path = Annotated[str, BeforeValidator(values.words(values.endpoint))]
File = Annotated[str, BeforeValidator(values.words(_readable_file))]
TokenFile = Annotated[str, BeforeValidator(values.words(_token_file))]
AuthoritiesFile = Annotated[str, BeforeValidator(values.words(_authorities))]
Origins = Annotated[tuple[str, ...], BeforeValidator(values.each(values.words(values.origin)))]
Hosts = Annotated[tuple[str, ...], BeforeValidator(values.each(values.words(values.host_header)))]
HeaderNames = Annotated[tuple[str, ...], BeforeValidator(values.each(values.words(values.header_name)))]
CookieNames = Annotated[tuple[str, ...], BeforeValidator(values.each(values.words(values.cookie_name)))]
Networks = Annotated[tuple[str, ...], BeforeValidator(values.each(values.words(values.network)))]
UpstreamHost = Annotated[str, BeforeValidator(values.words(values.upstream_host))]
Words = Annotated[tuple[str, ...], BeforeValidator(values.each(values.words(str)))]
PublicOrigin = Annotated[str, BeforeValidator(values.words(values.public_origin))]


def _url(value: object) -> values.HttpUrl:
    if isinstance(value, values.HttpUrl):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be a URL, not {values.shown(value)}")  # noqa: TRY004 - one kind of error for every mistake
    return values.http_url(value.strip())


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class UpstreamSection(_Section):
    """The one MCP server behind the sidecar."""

    url: Annotated[values.HttpUrl, BeforeValidator(_url), _URL_WRITTEN] = Field(
        description="The URL of the MCP server that clients use today: http:// or https://. Its path is the MCP endpoint; "
        "where it has none or only /, the endpoint is /mcp. Required.",
        examples=["http://127.0.0.1:9000/mcp"],
    )
    endpoint: Path | None = Field(
        None,
        description="The path of the MCP endpoint, if it is not the path of the URL.",
        examples=["/mcp"],
    )
    ca_file: AuthoritiesFile | None = Field(
        None,
        description="A PEM file of the authorities to trust for an https upstream, instead of the system's.",
        examples=["/etc/ssl/internal-ca.pem"],
    )
    connect_timeout: SecondsAboveZero = Field(5.0, description="How long one attempt to connect may take, in seconds.")
    idle_timeout: SecondsAboveZero = Field(
        600.0,
        description="An open exchange on which no byte came for so many seconds counts as cut. "
        "Event streams that answer a GET are excepted.",
    )
    first_byte_hint: Seconds = Field(
        5.0,
        description="A call without the first byte of an answer for so many seconds is said in the log, once until the "
        "server answers again; 0 is never.",
    )
    host_header: UpstreamHost = Field(
        "auto",
        description="The Host that the upstream gets. auto: the URL's, but localhost with its port for the names that "
        "containers have for their host (host.docker.internal, host.containers.internal); client: the client's; else a "
        "literal.",
    )
    affinity_cookies: CookieNames = Field(
        AFFINITY_COOKIES,
        description="Cookies of load balancers: what the answer to an initialize sets is kept with that upstream session and "
        "sent with its requests where the client sends none of that name. * at the end stands for any rest.",
    )


class ListenSection(_Section):
    """The side of the clients."""

    address: Annotated[values.Address, BeforeValidator(values.address), _URL_WRITTEN] = Field(
        values.Address("127.0.0.1", 8080),
        description="HOST:PORT to accept clients on; 8080 is on loopback, :8080 on all addresses. Port 0 picks a free one; "
        "the address bound is logged.",
    )
    allowed_origins: Origins = Field(
        (),
        description="Origins of web pages that may call, besides the sidecar's own and, on a loopback listener, loopback.",
        examples=[["https://app.example.com"]],
    )
    allowed_hosts: Hosts = Field(
        (),
        description="Values of Host to accept on a loopback listener, besides loopback and its own, with a port or for any.",
        examples=[["mcp.example.com"]],
    )
    public_url: PublicOrigin | None = Field(
        None,
        description="The origin under which clients know the sidecar, where something else stands in front of it.",
        examples=["https://mcp.example.com"],
    )
    trusted_proxies: Networks = Field(
        NEAR_NETWORKS,
        description="Whose X-Forwarded-* and Forwarded are believed and passed on; those of others are replaced.",
    )
    drain_delay: Seconds = Field(
        0.0,
        description="How long after SIGTERM or SIGINT to go on as before but not ready, so that load balancers notice; then "
        "drain_timeout begins.",
    )
    drain_timeout: Seconds = Field(
        10.0, description="How long exchanges may go on after SIGTERM or SIGINT, in seconds; then they are cut."
    )
    comment_interval: SecondsAboveZero = Field(
        20.0, description="Seconds between the comments that keep a waiting event stream alive."
    )
    tls_certificate: File | None = Field(
        None,
        description="A PEM file with the certificate chain to serve https with. Needs tls_key.",
        examples=["/etc/tls/tls.crt"],
    )
    tls_key: File | None = Field(
        None,
        validate_default=True,
        description="A PEM file with the certificate's private key, not encrypted. Needs tls_certificate.",
        examples=["/etc/tls/tls.key"],
    )

    @field_validator("tls_key", mode="after")
    @classmethod
    def _both_or_none(cls, key: str | None, info: ValidationInfo) -> str | None:
        # A certificate that is not in `data` was given and is a mistake of its own.
        certificate = info.data.get("tls_certificate", "")
        if key is None and certificate is not None:
            raise ValueError("is missing, and listen.tls_certificate is of no use without it")
        if key is not None and certificate is None:
            raise ValueError("is of no use without listen.tls_certificate, which is missing")
        if key and certificate:
            _loaded_pair(certificate, key)
        return key


def _loaded_pair(certificate: str, key: str) -> None:
    try:
        # An empty password keeps OpenSSL from asking for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ValueError("must be the unencrypted PEM key of the certificate in tls_certificate") from error


class AdminSection(_Section):
    """The listener for the status page, probes, metrics and the list of sessions."""

    address: Annotated[values.Address | None, BeforeValidator(values.address_or_off), _ADDRESS_OR_OFF_WRITTEN] = Field(
        values.Address("127.0.0.1", 9464),
        description="HOST:PORT for the status page, /livez, /readyz, /metrics, /sessions and POST /drain, or off.",
    )
    token_file: TokenFile | None = Field(
        None,
        description="A file with the token by which others than this machine may see the status page and /sessions and start "
        "a drain: as bearer, or as password of a browser. It must not be readable by everybody.",
        examples=["/run/secrets/admin-token"],
    )


class SignatureRow(_Section):
    """One more way in which an upstream says that a session is lost."""

    name: Text | None = None
    status: CountAboveZero
    text: Text
    methods: Words = ()

    @model_validator(mode="after")
    def _meant(self) -> SignatureRow:
        self.signature("operator")
        return self

    def signature(self, default_name: str) -> Signature:
        """Hand the row to the classifier. Raises ValueError with a sentence for the operator."""
        return operator_signature(
            name=default_name if self.name is None else self.name,
            status=self.status,
            text=self.text,
            methods=self.methods,
        )


class HealingSection(_Section):
    """What to do about a lost session."""

    mode: Annotated[Mode, AnyCase] = Field(
        Mode.HEAL,
        description="heal: make the upstream know the session again and replay; rewrite: only answer with the 404 that makes "
        "clients start over; observe: change nothing, only count.",
    )
    hold_timeout: Seconds = Field(
        15.0, description="How many seconds a request may wait for the upstream to come back."
    )
    connect_hold_timeout: Seconds = Field(
        4.0,
        description="The same for initialize: many clients give a connect 5 seconds. server/discover waits hold_timeout.",
    )
    max_held_requests: Count = Field(
        10_000,
        description="Requests that may wait at once. Beyond it the answer for an upstream that is away comes at once.",
    )
    max_held_bytes: Size = Field(64 * 1024**2, description="The same for the bytes of their bodies together.")
    max_concurrent_heals: CountAboveZero = Field(64, description="Heals under way at once, over all sessions.")
    max_heals_per_minute: CountAboveZero = Field(60, description="Heals of one session in one minute.")
    trust_annotations: bool = Field(
        True,
        description="Tools whose readOnlyHint or idempotentHint is true may be replayed although the first try may have run.",
    )
    trust_503: bool = Field(
        False,
        description="A 503 that no MCP server wrote proves that nothing ran. Envoy sends it after a reset, too, hence false.",
    )
    bind_principal: bool = Field(True, description="Only the principal that initialized a session can heal it.")
    principal_headers: HeaderNames = Field(
        ("Authorization", "X-API-Key"),
        description="The headers that a principal is told by, beside the endpoint's query. A JWT bearer counts by issuer, "
        "subject and client.",
    )
    principal_cookies: CookieNames = Field(
        (), description="The cookies that a principal is told by, too.", examples=[["session"]]
    )
    adopt_credentials: bool = Field(
        True,
        description="A credential that the upstream has accepted in a live session belongs to it from then on: refreshed "
        "opaque tokens, and JWTs without a subject.",
    )
    refresh_after_break: bool = Field(
        True,
        description="A session that is alive behind a break has its log level and subscriptions said again, and its lists "
        "compared.",
    )
    on_server_change: Annotated[OnServerChange, AnyCase] = Field(
        OnServerChange.ADAPT,
        description="adapt heals although capabilities, instructions or the server's version differ. reset answers 404 where "
        "a capability is gone, the instructions differ, or another version has lists whose changes it does not announce. "
        "Another protocol version or server name is 404 in both.",
    )
    compare_lists: bool = Field(
        True,
        description="After a heal, look whether the lists that the client has seen changed, and tell it if so.",
    )
    announce: Annotated[Announce, AnyCase] = Field(
        Announce.LOG,
        description="Whether the client is told after a heal that the server's in-memory state is new: off; log: a message "
        "where the client set a log level; result: also a text block in the next tool result.",
    )
    early_stream_after: Seconds = Field(
        0.0,
        description="A request held longer than so many seconds, whose client accepts an event stream, gets it early and "
        "comments on it; 0 is never.",
    )
    signatures: Annotated[tuple[SignatureRow, ...], BeforeValidator(values.items)] = Field(
        (),
        description="More ways in which the upstream says that a session is lost: the status, a regular expression tried at "
        "the start of the message (of all of it for 401 and 403), optionally a name and the methods it answers.",
        examples=[
            [
                {
                    "name": "my-gateway",
                    "status": 400,
                    "text": "no such session",
                    "methods": ["POST"],
                }
            ]
        ],
    )

    @field_validator("signatures", mode="after")
    @classmethod
    def _named_apart(cls, rows: tuple[SignatureRow, ...]) -> tuple[SignatureRow, ...]:
        names = [row.name for row in rows if row.name is not None]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"must have names of their own, and {', '.join(twice)} is there twice")
        return rows


class SessionsSection(_Section):
    """What is remembered, and for how long."""

    store: Annotated[str, BeforeValidator(values.words(values.store_url))] = Field(
        "auto",
        description="Where sessions are remembered. sqlite:PATH is a file, which several sidecars of a host may share. "
        "redis://HOST is shared by replicas (rediss://, redis+unix://, redis+sentinel://HOST,HOST/SERVICE as well). "
        "sealed: is nowhere, for the session id holds all that a heal needs, encrypted. With memory: they end with this "
        "process. auto is a file in $XDG_STATE_HOME/mcp-sidecar where that can be written, else memory:, which it also is in "
        "the modes rewrite and observe.",
    )
    instance: Text = Field(
        "auto",
        description="What tells this sidecar's upstream from those of others that share the store: a session's upstream id "
        "is used only with the instance that gave it out. auto: host name and URL where the upstream is on loopback, else "
        "the URL.",
    )
    namespace: Annotated[str, BeforeValidator(values.words(values.namespace))] = Field(
        "default", description="Sidecars that share a store share their sessions only within a namespace."
    )
    key_file: File | None = Field(
        None,
        description="A file of keys, one a line, as mcp-sidecar new-key prints them: the first seals, all open. With one, "
        "records are encrypted. sealed: needs one. It is read again when it changes, and on SIGHUP.",
        examples=["/etc/mcp-sidecar/keys"],
    )
    key: Secret | None = Field(
        None,
        validate_default=True,
        description="The same keys, in place of the file: meant for the environment.",
        examples=["***"],
    )
    store_timeout: SecondsAboveZero = Field(0.25, description="How many seconds anybody waits for the store.")
    idle_ttl: SecondsAboveZero = Field(
        86_400.0, description="A session without a request for so many seconds is ended; its id is answered 404."
    )
    max_lifetime: SecondsAboveZero = Field(604_800.0, description="The same, counted from its initialize.")
    max_sessions: CountAboveZero = Field(
        100_000, description="Beyond so many sessions the one that has been idle longest is forgotten."
    )

    @field_validator("key", mode="after")
    @classmethod
    def _one_source(cls, key: str | None, info: ValidationInfo) -> str | None:
        if key is not None and info.data.get("key_file") is not None:
            raise ValueError("is given, and so is sessions.key_file: one of them is enough")
        return key


class LimitsSection(_Section):
    """How much is held in memory, and for how long a client is waited for."""

    max_request_body: SizeAboveZero = Field(
        16 * 1024**2,
        description="The largest body on the MCP endpoint; 413 beyond it. Other paths have no limit. An event up to this "
        "size is passed on whole.",
    )
    max_buffered_bytes: SizeAboveZero = Field(
        256 * 1024**2,
        description="All bodies, answers and events in memory at a time, whoever they belong to. Beyond it the reading of "
        "further ones waits.",
    )
    client_timeout: SecondsAboveZero = Field(
        30.0,
        description="A client that sends no byte of a head or body that it has begun, or takes none of an answer, for so "
        "long is given up. Event streams get three times listen.comment_interval.",
    )
    max_buffered_answer: SizeAboveZero = Field(
        1024**2, description="A JSON answer up to this size is passed on whole, so that a cut one can be told."
    )
    max_header_bytes: HeaderSize = Field(
        64 * 1024,
        description="The headers of one message together, of which there may be 256. A client gets 431 beyond it, and an "
        "answer of the upstream beyond it counts as none. At least 1KiB.",
    )


class LogSection(_Section):
    """What is written to stderr."""

    format: Annotated[LogFormat, AnyCase] | None = Field(
        None,
        description="console or json. console on a terminal and json elsewhere where it is not set.",
        examples=["json"],
    )
    level: Annotated[LogLevel, AnyCase] = Field(
        LogLevel.INFO,
        description="debug, info, warning or error. Calls that were simply answered appear at debug only.",
    )
