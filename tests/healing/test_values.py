"""The small tables: labels, faults, facts and the operator's decisions."""

from __future__ import annotations

import dataclasses
from typing import Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar import facts
from mcp_sidecar.healing.labels import HTTP_METHODS, NO_METHOD, RPC_METHODS, http_label, rpc_label
from mcp_sidecar.healing.policy import Mode, OnServerChange, Policy
from mcp_sidecar.healing.replay import MATRIX
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.jsonrpc import UNREAD, Message
from mcp_sidecar.wire.revisions import SESSION_METHODS, SESSIONLESS_METHODS
from tests.healing import samples

FACTS: Final = get_args(facts.Fact)


class TestLabels:
    """Nothing that a client makes up ever becomes a label."""

    @pytest.mark.parametrize(
        ("message", "label"),
        [
            pytest.param(samples.call(), "tools/call", id="a request"),
            pytest.param(
                samples.notification("notifications/initialized"), "notifications/initialized", id="notification"
            ),
            pytest.param(samples.request("x/secret"), "other", id="an unknown method"),
            pytest.param(samples.response(), "other", id="a response"),
            pytest.param(samples.NO_MESSAGE, "other", id="no JSON-RPC"),
            pytest.param(samples.batch(samples.call()), "batch", id="a batch"),
            pytest.param(UNREAD, "other", id="unread"),
        ],
    )
    def test_rpc(self, message: Message, label: str) -> None:
        """A known method, or what it is instead."""
        assert rpc_label(message) == label

    @pytest.mark.parametrize(
        ("method", "label"),
        [
            pytest.param("GET", "GET", id="known"),
            pytest.param("BREW", "other", id="unknown"),
            pytest.param("get", "other", id="spelling"),
        ],
    )
    def test_http(self, method: str, label: str) -> None:
        """HTTP methods are a set, too."""
        assert http_label(method) == label

    @given(st.text())
    def test_bounded(self, text: str) -> None:
        """The labels are those of the tables."""
        assert rpc_label(samples.request(text)) in RPC_METHODS | {"other"}
        assert http_label(text) in HTTP_METHODS | {"other"}

    def test_what_other_tables_name_has_a_label(self) -> None:
        """A method that is worth a row elsewhere is worth a label, and none is called like what is none."""
        assert MATRIX.keys() | SESSION_METHODS | SESSIONLESS_METHODS <= RPC_METHODS
        assert not RPC_METHODS & {NO_METHOD, "batch", "other"}


@pytest.mark.parametrize(
    ("fault", "may_have_arrived"),
    [
        pytest.param(Fault.UNREACHABLE, False, id="unreachable"),
        pytest.param(Fault.BROKEN, True, id="broken"),
        pytest.param(Fault.STALLED, True, id="stalled"),
        pytest.param(Fault.GARBLED, True, id="garbled"),
    ],
)
def test_faults(fault: Fault, may_have_arrived: bool) -> None:
    """Only a connection that never stood proves that nothing arrived."""
    assert fault.may_have_arrived is may_have_arrived


class TestFacts:
    """Records that cannot be changed and cannot hold a secret."""

    @pytest.mark.parametrize("fact", FACTS)
    def test_frozen(self, fact: type) -> None:
        """A fact is a frozen, slotted record; whoever reads it may keep it. The one of each request is so to the type checker only."""
        assert dataclasses.is_dataclass(fact)
        assert fact is facts.RequestServed or fact.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert "__dict__" not in dir(fact)

    @pytest.mark.parametrize("fact", FACTS)
    def test_no_field_for_a_secret(self, fact: type) -> None:
        """No fact has a place for an id, a header, a body or a credential."""
        names = {field.name for field in dataclasses.fields(fact)}
        assert not names & {
            "session_id",
            "client_id",
            "upstream_id",
            "headers",
            "body",
            "token",
            "principal",
            "message",
        }

    def test_every_fact_is_in_the_union(self) -> None:
        """Logs and metrics are checked against the union, so nothing may be outside of it."""
        records = {one for one in vars(facts).values() if isinstance(one, type) and dataclasses.is_dataclass(one)}
        assert records == set(FACTS)

    @pytest.mark.parametrize(
        ("labels", "values"),
        [
            pytest.param(
                facts.HealOutcome, {"healed", "refused", "incompatible", "unavailable", "failed"}, id="outcome"
            ),
            pytest.param(facts.ReplayCause, {"session_lost", "not_sent", "ambiguous_safe"}, id="cause"),
            pytest.param(facts.ObservedAction, {"heal", "rewrite", "replay", "refuse"}, id="action"),
            pytest.param(facts.DroppedKind, {"notification", "response"}, id="kind"),
            pytest.param(Mode, {"heal", "rewrite", "observe"}, id="mode"),
            pytest.param(OnServerChange, {"adapt", "reset"}, id="on_server_change"),
        ],
    )
    def test_labels_are_the_contracts(self, labels: type[facts.HealOutcome], values: set[str]) -> None:
        """Dashboards and configurations hold these words."""
        assert {str(label) for label in labels} == values


def test_policy_defaults() -> None:
    """Without settings the contract's defaults are in force."""
    policy = Policy()
    assert (policy.mode, policy.on_server_change) == (Mode.HEAL, OnServerChange.ADAPT)
    assert (policy.hold_timeout_s, policy.connect_hold_timeout_s) == (15, 4)
    assert (policy.max_held_requests, policy.max_held_bytes) == (10_000, 64 * 2**20)
    assert (policy.max_concurrent_heals, policy.max_heals_per_minute) == (64, 60)
    assert (policy.trust_annotations, policy.trust_503, policy.bind_principal) == (True, False, True)
    assert policy.principal_headers == ("authorization", "x-api-key")
    assert policy.signatures == ()
