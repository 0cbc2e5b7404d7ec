"""Every server × scenario × client: whatever happens to the server, the client goes on.

With ``INTEROP_DIRECT=1`` the same is played without the sidecar, to be compared; nothing is judged then.
"""

from __future__ import annotations

import itertools

import pytest

from tests.interop.catalogue import CLIENTS, MARKERS, SERVERS, ClientSpec, ServerSpec
from tests.interop.lab import DIRECT, Lab
from tests.interop.scenarios import SCENARIOS

CASES = [
    pytest.param(
        server,
        scenario,
        client,
        id=f"{server.name}-{scenario}-{client.name}",
        marks=[getattr(pytest.mark, MARKERS[server.installed_by])] if server.installed_by in MARKERS else [],
    )
    for server, scenario, client in itertools.product(SERVERS, SCENARIOS, CLIENTS)
]


@pytest.mark.interop
@pytest.mark.parametrize(("server", "scenario", "client"), CASES)
def test_client_goes_on(lab: Lab, server: ServerSpec, scenario: str, client: ClientSpec) -> None:
    """A client gets what the scenario promises, keeps its session ID, and no unsafe call runs twice."""
    if reason := server.missing or client.missing:
        pytest.skip(reason)
    play = lab.play(server, scenario, client.name)
    if play.faults and not DIRECT:
        pytest.fail("\n".join([*play.faults, "--- calls", *play.answers, play.background]), pytrace=False)
