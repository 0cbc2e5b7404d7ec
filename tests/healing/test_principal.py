"""Whose request it is: equal only for those who are the same, and never more than a hash."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.principal import (
    ACCEPTED,
    ANONYMOUS,
    NOBODY,
    REMEMBERED,
    Accepted,
    Identity,
    Principal,
    Principals,
)
from mcp_sidecar.wire.headers import Fields, Pair
from tests.healing import samples

KEY: Final = b"k" * 32
NAMES: Final = ("authorization", "x-api-key")
ALICE: Final = {"iss": "https://idp", "sub": "alice", "client_id": "app"}


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def jwt(claims: object, *, header: object = None, signature: str = "c2ln") -> str:
    return f"{part({'alg': 'RS256'} if header is None else header)}.{part(claims)}.{signature}"


def bearer(token: str) -> list[Pair]:
    return [("Authorization", f"Bearer {token}")]


def fields(pairs: list[Pair]) -> Fields:
    return Fields(pairs)


def of(pairs: list[Pair], key: bytes = KEY) -> Principal:
    return Principals(NAMES, key).of(fields(pairs)).principal


def credential_of(pairs: list[Pair]) -> Principal:
    return Principals(NAMES, KEY).of(fields(pairs)).credential


def alice(**claims: Any) -> list[Pair]:
    told = {name: value for name, value in {**ALICE, **claims}.items() if value is not ...}
    return bearer(jwt(told))


REFRESHED: Final = {"exp": 2, "jti": "next", "scope": "more"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(alice(), alice(), True, id="the same token"),
        pytest.param(alice(exp=1), alice(**REFRESHED), True, id="refreshed"),
        pytest.param(alice(iss=...), alice(iss=..., **REFRESHED), True, id="refreshed, no issuer"),
        pytest.param(alice(client_id=...), alice(client_id=..., **REFRESHED), True, id="refreshed, no client"),
        pytest.param(
            alice(), bearer(jwt(ALICE, signature="b3RoZXI")), True, id="another signature: upstream checks it"
        ),
        pytest.param(alice(), bearer(jwt(ALICE, header={"alg": "ES256", "kid": "2"})), True, id="another key"),
        pytest.param(alice(), [("AUTHORIZATION", f"bEARER  {jwt(ALICE)} ")], True, id="spelling"),
        pytest.param(alice(client_id=..., azp="app"), alice(), True, id="azp names a client, too"),
        pytest.param(alice(client_id=..., cid="app"), alice(client_id=..., cid="other"), False, id="Okta's client"),
        pytest.param(alice(client_id=..., appid="a"), alice(client_id=..., appid="b"), False, id="Entra's client"),
        pytest.param(alice(), alice(sub="bob"), False, id="another subject"),
        pytest.param(alice(), alice(iss="https://evil"), False, id="another issuer"),
        pytest.param(alice(), alice(iss=...), False, id="no issuer"),
        pytest.param(alice(), alice(client_id="other"), False, id="another client"),
        pytest.param(alice(), alice(client_id=...), False, id="no client"),
        pytest.param(alice(sub=...), alice(sub=..., **REFRESHED), False, id="refreshed, no subject"),
        pytest.param(alice(sub=""), alice(sub="", **REFRESHED), False, id="refreshed, empty subject"),
        pytest.param(alice(sub=7), alice(sub=7, **REFRESHED), False, id="a subject that is no string"),
        pytest.param(alice(iss=["a"]), alice(iss=["a"], **REFRESHED), False, id="an issuer that is no string"),
        pytest.param(alice(client_id={}), alice(client_id={}, **REFRESHED), False, id="a client that is no string"),
        pytest.param(alice(sub=...), alice(sub=...), True, id="no subject: the token itself"),
        pytest.param(bearer("opaque-1"), bearer("opaque-2"), False, id="an opaque token, rotated"),
        pytest.param(bearer("opaque-1"), bearer("opaque-1"), True, id="an opaque token"),
        pytest.param([("X-API-Key", "k1")], [("x-api-key", "k1")], True, id="an API key"),
        pytest.param([("X-API-Key", "k1")], [("X-API-Key", "k2")], False, id="another API key"),
        pytest.param([("X-API-Key", "k1")], [("Authorization", "k1")], False, id="the same text elsewhere"),
        pytest.param(alice(), [*alice(), ("X-API-Key", "k")], False, id="an API key besides"),
        pytest.param(alice(), [*alice(), *alice()], False, id="twice the same header"),
        pytest.param(alice(), [*alice(), *alice(sub="bob")], False, id="two subjects"),
        pytest.param(
            [*alice(sub="bob"), *alice()], [*alice(), *alice(sub="bob")], False, id="two, the other way round"
        ),
        pytest.param([("Authorization", "Basic YTpi")], [("Authorization", "Basic YTpj")], False, id="Basic"),
        pytest.param([*alice(), ("Cookie", "a")], [*alice(), ("Cookie", "b")], True, id="cookies never count"),
        pytest.param([("Authorization", f"Basic {jwt(ALICE)}")], alice(), False, id="a JWT under another scheme"),
    ],
)
def test_who_is_the_same(one: list[Pair], other: list[Pair], same: bool) -> None:
    """A JWT counts by issuer, subject and client, everything else by itself."""
    assert (of(one) == of(other)) is same


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([], id="nothing"),
        pytest.param([("Cookie", "session=1")], id="a cookie"),
        pytest.param([("X-Other", "secret")], id="a header that does not count"),
    ],
)
def test_anonymous(pairs: list[Pair]) -> None:
    """Who carries no credential that counts is nobody, and so are all others like that."""
    assert of(pairs) == ANONYMOUS
    assert credential_of(pairs) == ANONYMOUS


def test_an_empty_credential_is_one() -> None:
    """A header without a value is not the same as none: the upstream may treat it otherwise."""
    assert of([("Authorization", "")]) != ANONYMOUS


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(f"{part({'alg': 'none'})}.{part(ALICE)}", id="two parts"),
        pytest.param(f"{jwt(ALICE)}.x", id="four parts"),
        pytest.param(f"{jwt(ALICE)}.x.y", id="encrypted"),
        pytest.param(jwt(ALICE, header={"typ": "JWT"}), id="a header without alg"),
        pytest.param(jwt(ALICE, header=["alg"]), id="a header that is no object"),
        pytest.param(jwt([ALICE]), id="claims that are no object"),
        pytest.param(f"{part({'alg': 'none'})}.!!!.x", id="claims that are no base64"),
        pytest.param(
            f"{part({'alg': 'none'})}.{base64.urlsafe_b64encode(b'{').decode()}.x", id="claims that are no JSON"
        ),
        pytest.param(f"{part({'alg': 'none'})}.gICA.x", id="claims that are no UTF-8"),
        pytest.param(f"{part({'alg': 'none'})}.é.x", id="claims that are no ASCII"),
        pytest.param(
            f"{part({'alg': 'none'})}.{base64.urlsafe_b64encode(b'[' * samples.DEPTH).decode()}.x", id="deep claims"
        ),
        pytest.param("..", id="empty parts"),
        pytest.param(f".{part(ALICE)}.", id="no header"),
    ],
)
def test_a_forged_shape_is_opaque(token: str) -> None:
    """What is no JWT counts as a whole: it is neither Alice nor anybody else whom it names."""
    assert of(bearer(token)) == of(bearer(token))
    assert of(bearer(token)) != of(alice())
    assert of(bearer(token)) != of(bearer(token + "A"))


def test_the_key_makes_the_hash() -> None:
    """Another process, another key: hashes of two sidecars cannot be compared, nor guessed."""
    assert of(alice()) != of(alice(), b"other")
    assert len(of(alice())) == 16


def test_no_list_of_values_forges_a_jwt() -> None:
    """An opaque credential that spells out an identity is not that identity."""
    assert of([("Authorization", json.dumps(["jwt", "https://idp", "alice", "app"]))]) != of(alice())


class TestPrincipals:
    """What is remembered is what would be told anew."""

    def test_it_tells_what_a_new_one_tells(self) -> None:
        """The second time, too, and for a request without credentials."""
        told = Principals(NAMES, KEY)
        for pairs in ([], alice(), alice(exp=1), alice(exp=2), alice(), [("Authorization", "Bearer x")]):
            first = told.of(fields(pairs))
            assert (first.principal, first.credential) == (of(pairs), credential_of(pairs))
            assert told.of(fields(pairs)) == first

    def test_plain_headers_tell_the_same(self) -> None:
        """Where every header is there once it does not matter in which form they come."""
        told = Principals(NAMES, KEY)
        for pairs in ([], alice(), [("Authorization", " Bearer x "), ("X-Other", "y")]):
            assert told.of_values({name.lower(): value for name, value in pairs}) == told.of(fields(pairs))

    def test_what_is_remembered_is_bounded_and_hashed(self) -> None:
        """Credentials that anybody can make up fill no memory, and none of them is kept."""
        told = Principals(NAMES, KEY)
        for number in range(REMEMBERED + 9):
            told.of(fields([("Authorization", f"Bearer secret-{number}")]))
        assert len(told._told) == REMEMBERED
        kept = [part for each in told._told.values() for part in (each.principal, each.credential, *each.kind[0][1:])]
        assert {len(part) for part in (*told._told, *kept)} <= {0, 16}


class TestCredential:
    """The hash of the very credentials tells whose refusal a 401 was."""

    def test_a_refreshed_token_is_another_credential(self) -> None:
        """The principal goes on, the credential does not."""
        one, other = alice(exp=1), alice(exp=2)
        assert credential_of(one) == credential_of(one)
        assert credential_of(one) != credential_of(other)


header_names = st.sampled_from(["Authorization", "X-API-Key", "Cookie"])
credentials = (
    st.text(max_size=20)
    | st.binary(max_size=8).map(lambda raw: raw.decode(errors="surrogateescape"))
    | samples.json_values.map(lambda claims: f"Bearer {jwt(claims)}")
    | st.dictionaries(st.sampled_from(["iss", "sub", "azp", "client_id"]), samples.json_values).map(
        lambda claims: f"Bearer {jwt(claims)}"
    )
)
requests = st.lists(st.tuples(header_names, credentials), max_size=3)


@given(requests, requests)
def test_never_fails_and_depends_on_what_counts_only(one: list[Pair], other: list[Pair]) -> None:
    """Whatever is sent has a principal, and equal credentials have equal ones."""
    counted = [[(name, value.strip()) for name, value in pairs if name != "Cookie"] for pairs in (one, other)]
    by_header = [sorted(pairs, key=lambda pair: pair[0]) for pairs in counted]
    assert of(one) == of(counted[0])
    if by_header[0] == by_header[1]:
        assert of(one) == of(other)
    assert (credential_of(one) == credential_of(other)) is (by_header[0] == by_header[1])


def identity(pairs: list[Pair], query: str = "", cookies: tuple[str, ...] = ()) -> Identity:
    return Principals(NAMES, KEY, cookies).of(fields(pairs), query)


@pytest.mark.parametrize(
    ("owner", "newer", "may"),
    [
        pytest.param(alice(exp=1), alice(exp=2), True, id="a refreshed JWT"),
        pytest.param(alice(sub=...), alice(sub=..., **REFRESHED), True, id="a JWT without subject"),
        pytest.param(alice(sub=...), alice(), True, id="a subject that was not told before"),
        pytest.param(bearer("opaque-1"), bearer("opaque-2"), True, id="an opaque token, rotated"),
        pytest.param(bearer("opaque-1"), alice(), True, id="a JWT for an opaque token"),
        pytest.param(alice(), alice(sub="bob"), False, id="another subject"),
        pytest.param(alice(), alice(iss="https://evil"), False, id="another issuer"),
        pytest.param(alice(sub=...), alice(sub=..., iss="https://evil"), False, id="another issuer, no subject"),
        pytest.param(bearer("a"), [("X-API-Key", "a")], False, id="another header"),
        pytest.param(bearer("a"), [("Authorization", "Basic YTpi")], False, id="another scheme"),
        pytest.param([("Authorization", "Basic YTpi")], [("Authorization", "Basic YTpj")], False, id="another log-in"),
        pytest.param([("X-API-Key", "k1")], [("X-API-Key", "k2")], False, id="another key"),
        pytest.param(bearer("a"), [], False, id="none any more"),
        pytest.param([], bearer("a"), False, id="one where none was"),
        pytest.param(bearer("a"), [*bearer("b"), ("X-API-Key", "k")], False, id="a key besides"),
    ],
)
def test_who_may_be_the_same_with_a_newer_credential(owner: list[Pair], newer: list[Pair], may: bool) -> None:
    """A bearer token for a bearer token, and nobody who says to be somebody else: the rest is for the upstream to say."""
    assert identity(newer).may_succeed(identity(owner)) is may


class TestQueryAndCookies:
    """Keys are put into the endpoint's query, and sessions of an application into cookies."""

    def test_another_key_in_the_query_is_another_principal(self) -> None:
        """And none that may follow the first."""
        one, other = identity([], "key=1"), identity([], "key=2")
        assert one.principal != other.principal
        assert not other.may_succeed(one)

    def test_only_named_cookies_count(self) -> None:
        """A browser sends cookies on behalf of whoever lured it: the operator says which ones mean somebody."""
        one, other = [("Cookie", "sid=a; theme=dark")], [("Cookie", "theme=light; sid=a")]
        assert identity(one).principal == ANONYMOUS
        assert identity(one, cookies=("sid",)) == identity(other, cookies=("sid",))

    def test_a_named_cookie_may_be_renewed(self) -> None:
        """It is another principal until the upstream says otherwise."""
        one, other = (identity([("Cookie", f"sid={value}")], cookies=("sid",)) for value in "ab")
        assert one.principal != other.principal
        assert other.may_succeed(one)

    def test_a_star_stands_for_any_rest(self) -> None:
        """Applications number their cookies, or put a name of their own behind a prefix."""
        one, other = (identity([("Cookie", f"app_{name}=1")], cookies=("app_*",)) for name in "ab")
        assert one.principal != other.principal != ANONYMOUS


class TestAccepted:
    """Which credentials act on a session: what the upstream has accepted there, and the owner's own."""

    def test_what_anybody_could_write_has_to_be_accepted_first(self) -> None:
        """A JWT with the owner's claims is the owner's only where the upstream says so; an opaque token speaks for itself."""
        one, other = identity(alice()), identity(bearer(jwt(ALICE, signature="b3RoZXI")))
        of_alice = Accepted(one.principal)
        assert not of_alice.holds(one) and not of_alice.holds(other)
        assert of_alice.and_also(one).holds(one) and not of_alice.and_also(one).holds(other)
        opaque = identity(bearer("opaque"))
        assert Accepted(opaque.principal).holds(opaque) and Accepted(ANONYMOUS).holds(NOBODY)

    def test_a_subject_once_told_binds_those_that_come_later(self) -> None:
        """Opaque tokens may stand for anybody; what one JWT says the next must not contradict."""
        accepted = Accepted(identity(bearer("a")).principal).and_also(identity(bearer("a"))).and_also(identity(alice()))
        assert accepted.may_be_followed_by(identity(bearer("b")))
        assert not accepted.may_be_followed_by(identity(alice(sub="bob")))
        assert not Accepted(ANONYMOUS).may_be_followed_by(identity(bearer("b")))

    def test_the_number_is_bounded(self) -> None:
        """The first stays, as it says what the others may be; of the rest the latest."""
        tokens = [identity(bearer(f"t{number}")) for number in range(3 * ACCEPTED)]
        accepted = Accepted(Principal(b"owner"))
        for token in tokens:
            accepted = accepted.and_also(token).and_also(token)
        assert accepted.identities == (tokens[0], *tokens[1 - ACCEPTED :])
