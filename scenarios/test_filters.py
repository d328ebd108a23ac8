"""Filters at the hooks of the node: other priorities of ours, filters of others, devices that come and go."""

from __future__ import annotations

import pytest

from reloadlab import (
    Direction,
    Filter,
    NetlinkSocket,
    Scenario,
    attach,
    enter_netns,
    filters,
    program_by_id,
    run_tool,
    take_snapshot,
)

EVERYTHING = ["protocol", "all", "u32", "match", "u32", "0", "0"]
"""A classifier of another kind than ours. Without an action it decides nothing."""


def in_node(scenario: Scenario, *argv: str) -> str:
    """Run a tool in the node's namespace, as others on the node would; return what it prints."""
    with enter_netns(scenario.node.netns("node")):
        return run_tool(argv)


def node_socket(scenario: Scenario) -> NetlinkSocket:
    return NetlinkSocket(scenario.node.netns("node"))


BY_FILTERS = pytest.mark.node(agent={"attach": "tc"})


@BY_FILTERS
@pytest.mark.parametrize(
    "network",
    [
        pytest.param("node", marks=pytest.mark.node(pods=2, devices=("eth0",))),
        pytest.param("endpoint-routes", marks=pytest.mark.node(pods=2, devices=("eth0",), endpoint_routes=True)),
    ],
)
def test_priority_is_changed(scenario: Scenario, network: str) -> None:
    """Option bpf-filter-priority, there and back: the filter of the other priority goes when the new one is there."""
    for priority in (2, 1, 3):
        scenario.agent.configure(filter_priority=priority)
        scenario.reload()
        ours = [item for found in take_snapshot(scenario.node).filters.values() for item in found if item.is_ours]
        assert {item.priority for item in ours} == {priority}


@BY_FILTERS
@pytest.mark.node(pods=2, endpoint_routes=True)
def test_former_filters_of_ours_go(scenario: Scenario) -> None:
    """A former agent has left filters at other priorities and handles, which run first or come back to be first."""
    pod = scenario.node.pod("pod-1")
    with node_socket(scenario) as netlink:
        for direction in Direction:
            (present,) = filters(netlink, pod.ifindex, direction)
            for priority, handle in ((1, 2), (5, 1)):
                with program_by_id(present.program_id) as fd:
                    attach(
                        netlink,
                        pod.ifindex,
                        direction,
                        program_fd=fd,
                        name=present.name,
                        priority=priority,
                        handle=handle,
                    )
        assert len(filters(netlink, pod.ifindex, Direction.INGRESS)) == 3
        scenario.reload("pod-1")
        assert [len(filters(netlink, pod.ifindex, direction)) for direction in Direction] == [1, 1]


def foreign(scenario: Scenario) -> dict[tuple[str, Direction], list[Filter]]:
    """Return the filters of others, by interface and direction."""
    present = take_snapshot(scenario.node).filters
    return {place: theirs for place, found in present.items() if (theirs := [f for f in found if not f.is_ours])}


@pytest.mark.parametrize("chain", ["0", "5"])
@pytest.mark.node(pods=2, devices=("eth0",))
def test_filters_of_others_stay(scenario: Scenario, chain: str) -> None:
    """Beside ours and in another chain, at every kind of hook: a reload, both switches of the mode, another agent."""
    names = [scenario.node.pod("pod-1").ifname, "cilium_host", "cilium_net", "eth0", "lxc_health"]
    where = ("chain", chain, "prio", "7" if chain == "0" else "1")
    for name in names:
        for direction in Direction:
            in_node(scenario, "tc", "qdisc", "replace", "dev", name, "clsact")
            in_node(scenario, "tc", "filter", "add", "dev", name, str(direction), *where, *EVERYTHING)
    wanted = foreign(scenario)
    assert len(wanted) == 2 * len(names)
    scenario.reload()
    scenario.set_endpoint_routes(True)
    scenario.set_endpoint_routes(False)
    scenario.restart()
    assert foreign(scenario) == wanted


DOTTED = "d0.100"
"""Named as a VLAN's device is; a BPF file system takes no dot in a name."""


@pytest.mark.node(pods=2, devices=("eth0",))
def test_device_comes_and_goes(scenario: Scenario) -> None:
    """A device is added, made anew with another index, and gone: programs and calls map come and go with it."""
    scenario.agent.configure(devices=("eth0", DOTTED))
    for number in range(2):
        in_node(scenario, "ip", "link", "add", DOTTED, "type", "veth", "peer", "name", "d0")
        scenario.reload("host")
        ours = {str(d): [f.name for f in take_snapshot(scenario.node).filters[DOTTED, d]] for d in Direction}
        assert ours == {"ingress": [f"cil_from_netdev-{DOTTED}"], "egress": [f"cil_to_netdev-{DOTTED}"]}, number
        in_node(scenario, "ip", "link", "del", DOTTED)
    warning = f"device {DOTTED} does not exist: left out"
    scenario.expect(warnings=frozenset({warning}))
    assert scenario.reload("host")[0].warnings == (warning,)
    scenario.agent.configure(devices=("eth0",))


@pytest.mark.node(pods=2, devices=("eth0",))
def test_device_is_taken_from_the_list_and_put_back(scenario: Scenario) -> None:
    """It stays on the node all the time, under a name with a dot; so do the other device's programs."""
    in_node(scenario, "ip", "link", "add", DOTTED, "type", "veth", "peer", "name", "d0")
    for devices in (("eth0", DOTTED), ("eth0",), ("eth0", DOTTED), ("eth0",)):
        scenario.agent.configure(devices=devices)
        scenario.reload("host")
        present = take_snapshot(scenario.node)
        assert ((DOTTED, Direction.INGRESS) in present.filters) == (DOTTED in devices)
        assert len([name for name in present.pins if "_netdev_" in name]) == 1 + len(devices)
    in_node(scenario, "ip", "link", "del", DOTTED)
