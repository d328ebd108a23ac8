"""Who a pod is, its own programs say: nobody on its node has to look up its address."""

from __future__ import annotations

from typing import Any

import pytest

from reloadlab import Address, Probe, Scenario, ends, exchange, ipcache_key, open_pin
from scenarios.neighbours import known_neighbours
from scenarios.pinned import pinned
from scenarios.tables import PODS

ONLY_CLIENT = [
    {
        "name": "only the client",
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}],
    }
]
PORT, SOURCE_PORT = 53, 40000


def network(name: str, **options: Any) -> Any:
    return pytest.param(name, marks=pytest.mark.node(pods=PODS, policy=None, **options))


@pytest.mark.parametrize("network", [network("off"), network("endpoint-routes", endpoint_routes=True)])
def test_pod_that_ipcache_does_not_know(scenario: Scenario, network: str) -> None:
    """By tail call and through the stack: the receiver's policy sees the sender's identity, not the world."""
    scenario.agent.apply_policies(ONLY_CLIENT)
    client, places = scenario.node.pod("client"), ends(scenario.node)
    with open_pin(scenario.agent.config.globals / pinned(scenario.agent, "cilium_ipcache")) as ipcache:
        for address in (client.ipv4, client.ipv6):
            assert ipcache.delete(ipcache_key(address, address.max_prefixlen))
    with known_neighbours([scenario.node], scenario.agent.config.library):
        for which in (1, 2):
            for turn in range(2):
                source = Address(places["client"][0], str(places["client"][which]), SOURCE_PORT + turn)
                target = Address(places["server"][0], str(places["server"][which]), PORT)
                assert exchange(source, target, Probe("udp", PORT)).answered == 2
                scenario.reload("client", "server")
        scenario.agent.sync()
        scenario.agent.apply_policies([])
