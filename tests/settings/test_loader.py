"""From command line, environment and TOML to settings, or to every mistake."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mcp_sidecar.config import Limits, ListenConfig, SessionLimits, UpstreamConfig
from mcp_sidecar.healing.policy import Announce, Mode, OnServerChange, Policy
from mcp_sidecar.settings import KEYS, Loaded, Mistakes, Settings, load, loader, sources
from tests.support.certificates import make_certificate

ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text())),
    *(st.just({}), st.lists(st.dictionaries(st.sampled_from(["status", "text", "methods"]), st.text()))),
)
URL = {"MCP_SIDECAR_UPSTREAM": "http://127.0.0.1:9000/mcp"}


def settings(environment: Mapping[str, str] | None = None, **options: str) -> Settings:
    """Load with an upstream and with options written as keyword arguments."""
    return loaded(environment, **options).settings


def loaded(environment: Mapping[str, str] | None = None, **options: str) -> Loaded:
    """Load as ``settings`` does, and keep the warnings."""
    return load({name.replace("_", "-"): [value] for name, value in options.items()}, URL | dict(environment or {}))


def mistakes(environment: Mapping[str, str], **options: str) -> list[str]:
    """Load what is wrong and return the lines."""
    with pytest.raises(Mistakes) as raised:
        load({name.replace("_", "-"): [value] for name, value in options.items()}, environment)
    return list(raised.value.lines)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A TOML file to write to."""
    return tmp_path / "sidecar.toml"


def test_the_upstream_is_all_that_is_needed() -> None:
    """Without anything else the values handed down are the contract's defaults."""
    made = settings()
    assert made.policy() == Policy()
    assert made.upstream_config() == UpstreamConfig(origin="http://127.0.0.1:9000", endpoint="/mcp")
    assert made.listen_config() == ListenConfig()
    assert made.limits_config() == Limits()
    assert made.session_limits() == SessionLimits()
    assert (made.admin_address, made.log_format, made.log_level) == (("127.0.0.1", 9464), None, "info")
    assert (made.healing.compare_lists, made.healing.announce, made.healing.early_stream_after) == (True, "log", 0)


def test_every_key_is_handed_down(toml: Path) -> None:
    """What the operator wrote arrives in the records that the proxy reads."""
    toml.write_text("""
        log = { format = "json", level = "WARNING" }
        admin = { address = "off" }
        [upstream]
        url = "https://up.example:444/a/"
        endpoint = "/b"
        connect_timeout = 1
        idle_timeout = 2
        host_header = "MCP.example"
        affinity_cookies = ["X*"]
        [sessions]
        idle_ttl = 1
        max_lifetime = 2
        max_sessions = 3
        [limits]
        max_request_body = "4KiB"
        max_buffered_answer = 2
        max_header_bytes = "2KiB"
        max_buffered_bytes = "1GiB"
        client_timeout = "1m"
        [listen]
        address = "[::1]:0"
        allowed_origins = ["https://a.example"]
        allowed_hosts = ["b.example"]
        public_url = "https://c.example"
        drain_delay = 4
        drain_timeout = 0
        comment_interval = 0.5
        [healing]
        mode = "observe"
        hold_timeout = 0
        connect_hold_timeout = 1.5
        max_held_requests = 0
        max_held_bytes = 0
        max_concurrent_heals = 1
        max_heals_per_minute = 2
        trust_annotations = false
        trust_503 = true
        bind_principal = false
        principal_headers = ["X-Tenant", "x-tenant"]
        principal_cookies = ["sid"]
        adopt_credentials = false
        refresh_after_break = false
        on_server_change = "reset"
        compare_lists = false
        announce = "result"
        early_stream_after = 3
        signatures = [{ status = 400, text = "gone" }]
    """)
    made = load({"config": [str(toml)]}, {}).settings
    policy = made.policy()
    assert policy == Policy(
        mode=Mode.OBSERVE,
        hold_timeout_s=0,
        connect_hold_timeout_s=1.5,
        max_held_requests=0,
        max_held_bytes=0,
        max_concurrent_heals=1,
        max_heals_per_minute=2,
        trust_annotations=False,
        trust_503=True,
        bind_principal=False,
        principal_headers=("x-tenant",),
        principal_cookies=("sid",),
        adopt_credentials=False,
        refresh_after_break=False,
        on_server_change=OnServerChange.RESET,
        compare_lists=False,
        announce=Announce.RESULT,
        early_stream_after_s=3,
        signatures=policy.signatures,
    )
    assert [row.name for row in policy.signatures] == ["operator-1"]
    assert made.upstream_config() == UpstreamConfig(
        origin="https://up.example:444",
        endpoint="/b",
        connect_timeout_s=1,
        idle_timeout_s=2,
        host_header="mcp.example",
        affinity_cookies=("X*",),
    )
    assert made.listen_config() == ListenConfig(
        host="::1",
        port=0,
        allowed_origins=("https://a.example",),
        allowed_hosts=("b.example",),
        public_url="https://c.example",
        drain_delay_s=4,
        drain_timeout_s=0,
        comment_interval_s=0.5,
    )
    assert made.limits_config() == Limits(
        max_request_body=4096,
        max_buffered_answer=2,
        max_header_bytes=2048,
        max_buffered_bytes=1024**3,
        client_timeout_s=60,
    )
    assert made.session_limits() == SessionLimits(idle_ttl_s=1, max_lifetime_s=2, max_sessions=3)
    assert (made.admin_address, made.log_format, made.log_level) == (None, "json", "warning")
    config = load({"config": [str(toml)]}, {}).config
    assert config.policy == policy and config.upstream == made.upstream_config() and "up.example:444" in config.shown
    assert pickle.loads(pickle.dumps(config)) == config, "it comes from another process"  # noqa: S301 - made here


@pytest.mark.parametrize("key", [f"{section}.{key}" for section, keys in KEYS.items() for key in sorted(keys)])
@examples(max_examples=25)
@given(value=ANYTHING)
def test_whatever_is_written_is_read_or_told(key: str, value: object) -> None:
    """No value of any key makes the reading fail otherwise than with lines, each of which begins with a key."""
    section, name = key.split(".")
    level = sources.Level({"upstream": {"url": "http://h"}})
    level.values.setdefault(section, {})[name] = value
    made, lines = loader._validated([level], complete=True)
    assert (made is None) == bool(lines)
    assert all(line.startswith(key) or "tls_" in line for line in lines)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("Yes", True), ("0", False), ("TRUE", True), (" off ", False)],
)
def test_true_and_false_have_many_spellings(written: str, meant: bool) -> None:
    """The environment may say yes, on, 1 and their opposites, in any case."""
    assert settings({"MCP_SIDECAR_HEALING__TRUST_503": written}).healing.trust_503 is meant


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        pytest.param("http://h:9000", "/mcp", id="no-path"),
        pytest.param("http://h:9000/", "/mcp", id="only-a-slash"),
        pytest.param("http://h:9000/tools/mcp/", "/tools/mcp/", id="path"),
    ],
)
def test_the_path_of_the_url_is_the_endpoint(url: str, endpoint: str) -> None:
    """The endpoint is the URL's path, and ``/mcp`` where the URL has none or only ``/``."""
    upstream = settings(upstream=url).upstream_config()
    assert (upstream.origin, upstream.endpoint) == ("http://h:9000", endpoint)


def test_command_line_before_environment_before_toml_before_defaults(toml: Path) -> None:
    """Each level replaces the ones below it key by key."""
    toml.write_text("[healing]\nmode = 'observe'\nhold_timeout = 1\nconnect_hold_timeout = 1\n[log]\nlevel = 'error'")
    made = settings(
        {"MCP_SIDECAR_CONFIG": str(toml), "MCP_SIDECAR_MODE": "rewrite", "MCP_SIDECAR_HEALING__HOLD_TIMEOUT": "2"},
        log_level="debug",
        mode="heal",
    )
    assert (made.healing.mode, made.log_level) == ("heal", "debug")
    assert (made.healing.hold_timeout, made.healing.connect_hold_timeout) == (2, 1)
    assert made.healing.max_concurrent_heals == 64


def test_the_config_option_goes_before_its_variable(toml: Path) -> None:
    """``--config`` replaces ``MCP_SIDECAR_CONFIG``, which need not even exist."""
    toml.write_text("[log]\nlevel = 'error'")
    assert settings({"MCP_SIDECAR_CONFIG": "/does/not/exist"}, config=str(toml)).log_level == "error"


@pytest.mark.parametrize(
    ("short", "long", "value"),
    [
        pytest.param("LISTEN", "LISTEN__ADDRESS", "0.0.0.0:1", id="listen"),
        pytest.param("ADMIN", "ADMIN__ADDRESS", "off", id="admin"),
        pytest.param("MODE", "HEALING__MODE", "observe", id="mode"),
        pytest.param("STORE", "SESSIONS__STORE", "memory:", id="store"),
        pytest.param("LOG_FORMAT", "LOG__FORMAT", "json", id="log-format"),
        pytest.param("LOG_LEVEL", "LOG__LEVEL", "debug", id="log-level"),
    ],
)
def test_short_and_long_names_are_one_setting(short: str, long: str, value: str) -> None:
    """Either name sets the key, and both may if they agree."""
    by_short, by_long = ({f"MCP_SIDECAR_{name}": value} for name in (short, long))
    assert settings(by_short) == settings(by_long) == settings(by_short | by_long)
    assert settings(by_short) != settings() or short == "STORE"


@pytest.mark.parametrize("name", ["MCP_SIDECAR_MODE", "MCP_SIDECAR_HEALING__HOLD_TIMEOUT", "MCP_SIDECAR_CONFIG"])
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_not_set(name: str, empty: str) -> None:
    """Compose files and charts pass empty strings for what their user left out."""
    assert settings({name: empty}) == settings()


def test_lists_come_comma_separated_or_as_json() -> None:
    """The environment may write a list in two ways; ``[]`` is the empty one."""
    by_commas = settings({"MCP_SIDECAR_HEALING__PRINCIPAL_HEADERS": "X-A, X-B"})
    by_json = settings({"MCP_SIDECAR_HEALING__PRINCIPAL_HEADERS": '["X-A", "X-B"]'})
    assert by_commas.policy().principal_headers == by_json.policy().principal_headers == ("x-a", "x-b")
    assert settings({"MCP_SIDECAR_HEALING__PRINCIPAL_HEADERS": "[]"}).policy().principal_headers == ()


def test_signatures_come_as_json() -> None:
    """The environment writes tables as JSON; a row without a name is called by its place."""
    rows = '[{"status": 400, "text": "gone"}, {"name": "mine", "status": 500, "text": "x", "methods": ["tools/call"]}]'
    signatures = settings({"MCP_SIDECAR_HEALING__SIGNATURES": rows}).policy().signatures
    assert [row.name for row in signatures] == ["operator-1", "mine"]


def test_unknown_variables_are_warned_about() -> None:
    """A variable that only looks like ours starts nothing and stops nothing; a near miss gets a hint."""
    found = loaded({"MCP_SIDECAR_FOO": "1", "MCP_SIDECAR_HEALING_MODE": "heal", "OTHER": "x"}).warnings
    assert found == (
        "MCP_SIDECAR_FOO: unknown environment variable",
        "MCP_SIDECAR_HEALING_MODE: unknown environment variable; did you mean MCP_SIDECAR_HEALING__MODE?",
    )


@pytest.mark.parametrize("service", ["", "CANARY_"])
def test_variables_of_a_service_are_passed_over(service: str) -> None:
    """Kubernetes sets them in every pod beside a Service that is named mcp-sidecar, or mcp-sidecar-canary."""
    tcp = "tcp://10.0.0.1:80"
    names = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "80",
        "SERVICE_PORT_HTTP": "80",
        "PORT": tcp,
        "PORT_80_TCP": tcp,
        "PORT_80_TCP_PROTO": "tcp",
        "PORT_80_TCP_PORT": "80",
        "PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert loaded({f"MCP_SIDECAR_{service}{name}": value for name, value in names.items()}).warnings == ()


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        pytest.param(
            {"MCP_SIDECAR_UPSTREAM": ""},
            "upstream.url: is required: give --upstream URL, MCP_SIDECAR_UPSTREAM, or url in the section [upstream]",
            id="no-upstream",
        ),
        pytest.param(
            {"MCP_SIDECAR_UPSTREAM": "http://me:pw@h"},
            "upstream.url: must not hold user info (credentials belong to the client's headers) (MCP_SIDECAR_UPSTREAM)",
            id="user-info-not-quoted",
        ),
        pytest.param(
            {"MCP_SIDECAR_UPSTREAM": "http://localhost:8080/mcp"},
            "listen.address: is where upstream.url points: the sidecar would be its own upstream",
            id="own-upstream",
        ),
        pytest.param(
            {"MCP_SIDECAR_ADMIN": "127.0.0.1:8080"}, "admin.address: is taken by listen.address (MCP_SIDECAR_ADMIN)", id="admin-on-listen"
        ),
        pytest.param(
            {"MCP_SIDECAR_HEALING__FOO": ""}, "healing.foo: unknown key (MCP_SIDECAR_HEALING__FOO)", id="unknown-key"
        ),
        pytest.param(
            {"MCP_SIDECAR_HEALING__HOLD_TIMOUT": "1"},
            "healing.hold_timout: unknown key; did you mean healing.hold_timeout? (MCP_SIDECAR_HEALING__HOLD_TIMOUT)",
            id="near-miss",
        ),
        pytest.param(
            {"MCP_SIDECAR_MODE": "heal", "MCP_SIDECAR_HEALING__MODE": "observe"},
            "healing.mode: MCP_SIDECAR_HEALING__MODE and MCP_SIDECAR_MODE give different values",
            id="two-values",
        ),
        pytest.param(
            {"MCP_SIDECAR_MODE": "healed", "MCP_SIDECAR_HEALING__MODE": "heal"},
            "healing.mode: MCP_SIDECAR_HEALING__MODE and MCP_SIDECAR_MODE give different values",
            id="two-values-one-wrong",
        ),
        pytest.param(
            {"MCP_SIDECAR_healing__foo": "1"}, "healing.foo: unknown key (MCP_SIDECAR_healing__foo)", id="lower-case-section"
        ),
        pytest.param(
            {"MCP_SIDECAR_healing__mode": "heal"},
            "healing.mode: is written MCP_SIDECAR_HEALING__MODE (MCP_SIDECAR_healing__mode)",
            id="lower-case",
        ),
        pytest.param(
            {"MCP_SIDECAR_HEALING__HOLD_TIMEOUT": "-1"},
            "healing.hold_timeout: must be a number of seconds that is not negative, not '-1' (MCP_SIDECAR_HEALING__HOLD_TIMEOUT)",
            id="negative",
        ),
        pytest.param(
            {"MCP_SIDECAR_UPSTREAM__IDLE_TIMEOUT": "0"},
            "upstream.idle_timeout: must be a number of seconds that is more than 0, not '0' (MCP_SIDECAR_UPSTREAM__IDLE_TIMEOUT)",
            id="senseless-zero",
        ),
        pytest.param(
            {"MCP_SIDECAR_HEALING__TRUST_503": "maybe"},
            "healing.trust_503: must be true or false, not 'maybe' (MCP_SIDECAR_HEALING__TRUST_503)",
            id="boolean",
        ),
        pytest.param(
            {"MCP_SIDECAR_SESSIONS__MAX_SESSIONS": "many"},
            "sessions.max_sessions: must be a whole number, not 'many' (MCP_SIDECAR_SESSIONS__MAX_SESSIONS)",
            id="no-number",
        ),
        pytest.param(
            {"MCP_SIDECAR_SESSIONS__MAX_SESSIONS": "1.5"},
            "sessions.max_sessions: must be a whole number, not '1.5' (MCP_SIDECAR_SESSIONS__MAX_SESSIONS)",
            id="fraction",
        ),
        pytest.param(
            {"MCP_SIDECAR_SESSIONS__MAX_SESSIONS": "0"},
            "sessions.max_sessions: must be at least 1, not '0' (MCP_SIDECAR_SESSIONS__MAX_SESSIONS)",
            id="number-too-small",
        ),
        pytest.param(
            {"MCP_SIDECAR_HEALING__MODE": "healed"},
            "healing.mode: must be heal, rewrite or observe, not 'healed' (MCP_SIDECAR_HEALING__MODE)",
            id="choice",
        ),
        pytest.param(
            {"MCP_SIDECAR_LIMITS__MAX_HEADER_BYTES": "10"},
            "limits.max_header_bytes: must be at least 1KiB, not '10' (MCP_SIDECAR_LIMITS__MAX_HEADER_BYTES)",
            id="headers-too-small",
        ),
        pytest.param(
            {"MCP_SIDECAR_STORE": "postgres://:pw@h"},
            "sessions.store: must be auto, memory:, sqlite:PATH, sealed: or redis://HOST (MCP_SIDECAR_STORE)",
            id="store",
        ),
        pytest.param(
            {"MCP_SIDECAR_UPSTREAM__CA_FILE": "/does/not/exist"},
            "upstream.ca_file: cannot be read: No such file or directory (MCP_SIDECAR_UPSTREAM__CA_FILE)",
            id="no-ca-file",
        ),
        pytest.param(
            {"MCP_SIDECAR_UPSTREAM__CA_FILE": __file__},
            "upstream.ca_file: must be a file of certificates in PEM form (MCP_SIDECAR_UPSTREAM__CA_FILE)",
            id="no-certificates",
        ),
        pytest.param(
            {"MCP_SIDECAR_LISTEN__TLS_CERTIFICATE": __file__},
            "listen.tls_key: is missing, and listen.tls_certificate is of no use without it",
            id="certificate-alone",
        ),
        pytest.param(
            {"MCP_SIDECAR_LISTEN__TLS_KEY": __file__},
            "listen.tls_key: is of no use without listen.tls_certificate, which is missing (MCP_SIDECAR_LISTEN__TLS_KEY)",
            id="key-alone",
        ),
        pytest.param(
            {"MCP_SIDECAR_LISTEN__TLS_KEY": __file__, "MCP_SIDECAR_LISTEN__TLS_CERTIFICATE": __file__},
            "listen.tls_key: must be the unencrypted PEM key of the certificate in tls_certificate (MCP_SIDECAR_LISTEN__TLS_KEY)",
            id="no-pair",
        ),
        pytest.param(
            {"MCP_SIDECAR_HEALING__SIGNATURES": '[{"status": 400, "text": "gone", "metods": []}]'},
            "healing.signatures[0].metods: unknown key (MCP_SIDECAR_HEALING__SIGNATURES)",
            id="signature-key",
        ),
        pytest.param(
            {"MCP_SIDECAR_HEALING__SIGNATURES": '["gone"]'},
            "healing.signatures[0]: must be a table (MCP_SIDECAR_HEALING__SIGNATURES)",
            id="signature-no-table",
        ),
        pytest.param(
            {"MCP_SIDECAR_HEALING__SIGNATURES": '[{"status": 400, "text": "a", "name": "n"}, {"status": 404, "text": "b", "name": "n"}]'},
            "healing.signatures: must have names of their own, and n is there twice (MCP_SIDECAR_HEALING__SIGNATURES)",
            id="signature-names",
        ),
        pytest.param(
            {"MCP_SIDECAR_CONFIG": "/does/not/exist"}, "config: /does/not/exist: cannot be read: No such file or directory", id="no-file"
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_key(environment: dict[str, str], line: str) -> None:
    """One mistake gives one line: the key, what it must be, and who said otherwise."""
    assert mistakes(URL | environment) == [line]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param("[healing]\nfoo = 1\nmode = 'x'", ["healing.foo: unknown key (FILE)", "healing.mode: must be heal, rewrite or observe, not 'x' (FILE)"], id="keys"),
        pytest.param("[heeling]\n", ["heeling: unknown section; did you mean healing? (FILE)"], id="section"),
        pytest.param("mode = 'heal'", ["mode: unknown section (FILE)"], id="key-at-the-top"),
        pytest.param("healing = 3", ["healing: must be a section with keys, not 3 (FILE)"], id="no-section"),
        pytest.param('[healing]\n"a\\nb" = 1', ["healing.a\\nb: unknown key (FILE)"], id="newline-in-a-key"),
        pytest.param("[healing]\nhold_timeout = true", ["healing.hold_timeout: must be a number of seconds or a duration in ms, s, m or h, such as 0.5 or 2m, not True (FILE)"], id="type"),
        pytest.param("[healing", ["config: FILE: not TOML: Expected ']' at the end of a table declaration (at end of document)"], id="syntax"),
        pytest.param("\xff", ["config: FILE: not UTF-8 text"], id="encoding"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file(toml: Path, text: str, lines: list[str]) -> None:
    """A mistake in the TOML file names the key and the file."""
    toml.write_bytes(text.encode("latin-1"))
    assert mistakes(URL, config=str(toml)) == [line.replace("FILE", str(toml)) for line in lines]


def test_a_url_is_text(toml: Path) -> None:
    """A URL of another type in the file is told like any other mistake."""
    toml.write_text("[upstream]\nurl = 3")
    assert mistakes({}, config=str(toml)) == [f"upstream.url: must be a URL, not 3 ({toml})"]


def test_a_path_that_cannot_be_one_is_told() -> None:
    """A NUL in a path is a mistake, not a crash."""
    assert mistakes(URL, config="a\0b") == ["config: a\\x00b: cannot be read: embedded null byte"]


def test_all_mistakes_of_all_levels_are_told(toml: Path) -> None:
    """Nobody has to start the sidecar once per mistake."""
    toml.write_text("[foo]\n[limits]\nmax_sessions = 3\nmax_buffered_answer = -1")
    lines = mistakes({"MCP_SIDECAR_LOG_LEVEL": "loud", "MCP_SIDECAR_LOG__COLOUR": "red"}, mode="x", config=str(toml))
    assert [line.partition(":")[0] for line in lines] == [
        "log.colour", "foo", "limits.max_sessions", "upstream.url", "healing.mode", "limits.max_buffered_answer", "log.level",
    ]  # fmt: skip


def test_a_misspelt_variable_is_told_beside_what_it_leaves_missing() -> None:
    """Else who wrote it hears that it is required, and not what became of it."""
    assert mistakes({"MCP_SIDECAR_UPSTREAM": "", "MCP_SIDECAR_UPSTREM": "http://h"}) == [
        "upstream.url: is required: give --upstream URL, MCP_SIDECAR_UPSTREAM, or url in the section [upstream]",
        "MCP_SIDECAR_UPSTREM: unknown environment variable; did you mean MCP_SIDECAR_UPSTREAM?",
    ]


def test_a_lost_file_does_not_make_other_keys_missing() -> None:
    """What an unreadable file might have set is not told as missing; other mistakes are."""
    assert [line.partition(":")[0] for line in mistakes({}, config="/does/not/exist", mode="x")] == [
        "config",
        "healing.mode",
    ]


@pytest.mark.parametrize("option", ["mode", "config"])
def test_two_values_on_the_command_line_are_a_mistake(option: str) -> None:
    """An option that is given twice with different values is told, not decided by its place."""
    with pytest.raises(Mistakes) as raised:
        load({option: ["a", "b"]}, URL)
    assert any(f"two --{option} give different values" in line for line in raised.value.lines)
    assert load({"mode": ["heal", "heal"]}, URL).settings.healing.mode is Mode.HEAL


def test_a_certificate_with_its_key_is_taken(tmp_path: Path) -> None:
    """The pair is loaded once before anything starts, so that a wrong one is a mistake and not a crash."""
    certificate, key = make_certificate(tmp_path)
    made = settings(
        {
            "MCP_SIDECAR_LISTEN__TLS_KEY": str(key),
            "MCP_SIDECAR_LISTEN__TLS_CERTIFICATE": str(certificate),
            "MCP_SIDECAR_UPSTREAM__CA_FILE": str(certificate),
        }
    )
    assert (made.listen_config().tls_key, made.upstream_config().ca_file) == (str(key), str(certificate))


@pytest.mark.parametrize(
    ("upstream", "listen", "clash"),
    [
        pytest.param("http://127.0.0.1:8080", "127.0.0.1:8080", True, id="same"),
        pytest.param("http://localhost:8080", "127.0.0.1:8080", True, id="by-name"),
        pytest.param("http://localhost:8080", "0.0.0.0:8080", True, id="all-interfaces"),
        pytest.param("http://[::1]:8080", "[::]:8080", True, id="all-interfaces-ipv6"),
        pytest.param("http://[::1]:8080", "127.0.0.1:8080", False, id="other-loopback"),
        pytest.param("http://10.0.0.1:8080", "0.0.0.0:8080", False, id="other-machine"),
        pytest.param("http://127.0.0.1:9000", "127.0.0.1:8080", False, id="other-port"),
    ],
)
def test_the_sidecar_is_not_its_own_upstream(upstream: str, listen: str, clash: bool) -> None:
    """A request that would go round for ever is a mistake in the settings; doubtful cases pass."""
    if clash:
        assert mistakes({}, upstream=upstream, listen=listen)[0].startswith(
            "listen.address: is where upstream.url points"
        )
    else:
        settings(upstream=upstream, listen=listen)


@pytest.mark.parametrize(
    ("environment", "value"),
    [
        ({"MCP_SIDECAR_MODE": "observe", "MCP_SIDECAR_HEALING__MODE": "OBSERVE"}, "observe"),
        ({"MCP_SIDECAR_LISTEN": "[::1]:80", "MCP_SIDECAR_LISTEN__ADDRESS": "[0::1]:80"}, "[::1]:80"),
    ],
)
def test_two_spellings_of_one_value_are_no_mistake(environment: dict[str, str], value: str) -> None:
    """The short name and the long one may be given together where they say the same."""
    settings = load({"upstream": ["http://h"]}, environment).settings
    assert value in (settings.healing.mode.value, str(settings.listen.address))


def test_two_spellings_on_the_command_line_are_no_mistake() -> None:
    """The same there."""
    load({"upstream": ["http://h", "HTTP://h:80"], "mode": ["heal", "Heal"]}, {})
