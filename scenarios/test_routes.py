"""Routes on the node that others have installed, another release of the agent above all."""

from __future__ import annotations

import pytest

from reloadlab import Scenario, enter_netns, run_tool


def ip(scenario: Scenario, *words: str) -> str:
    """Run ip(8) in the node's namespace; return what it prints."""
    with enter_netns(scenario.node.netns("node")):
        return run_tool(["ip", *words])


@pytest.mark.parametrize("protocol", ["kernel", "static"])
@pytest.mark.node(pods=2, endpoint_routes=True)
def test_routes_of_another_release_go(scenario: Scenario, protocol: str) -> None:
    """Newer releases note another protocol in a pod's route: switching endpoint routes off removes it all the same."""
    for pod in scenario.node.pods:
        for family, address in (("-4", f"{pod.ipv4}/32"), ("-6", f"{pod.ipv6}/128")):
            ip(scenario, family, "route", "replace", address, "dev", pod.ifname, "proto", protocol)
    scenario.reload()
    scenario.set_endpoint_routes(False)
    scenario.set_endpoint_routes(True)


@pytest.mark.node(pods=2)
def test_routes_of_others_stay(scenario: Scenario) -> None:
    """To elsewhere, and to a pod in another table than the main one."""
    pod = scenario.node.pod("pod-2")
    others = (
        ("203.0.113.0/24", "dev", "cilium_host"),
        (f"{pod.ipv4}/32", "dev", pod.ifname, "table", "77"),
        ("2001:db8:77::/64", "dev", "cilium_host"),
    )
    for words in others:
        ip(scenario, "route", "add", *words)
    before = [ip(scenario, family, "route", "show", "table", "all") for family in ("-4", "-6")]
    scenario.reload()
    scenario.set_endpoint_routes(True)
    scenario.set_endpoint_routes(False)
    scenario.restart()
    assert [ip(scenario, family, "route", "show", "table", "all") for family in ("-4", "-6")] == before
    for words in others:
        ip(scenario, "route", "del", *words)
