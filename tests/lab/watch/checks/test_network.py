"""What changes of the network although nobody declared it, and what may change because somebody did."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lab.agent.agent import Agent
from lab.node.topology import HEALTH, NODE
from lab.system.tools import run
from lab.watch.invariants import Expected, baseline
from tests.lab.watch.faults import violations
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


def ip(agent: Agent, *argv: str, inside: str = NODE) -> None:
    run(nsenter(agent.node.netns(inside), *argv))


FAULTS = {
    "route": (
        ["ip", "route", "add", "10.9.0.0/24", "dev", "cilium_host", "table", "77"],
        ["ip", "route", "del", "10.9.0.0/24", "dev", "cilium_host", "table", "77"],
        "route 10.9.0.0/24 dev cilium_host table 77 proto 3 scope 253 is new",
    ),
    "route6": (
        ["ip", "-6", "route", "add", "fd99::/64", "dev", "cilium_host", "metric", "7"],
        ["ip", "-6", "route", "del", "fd99::/64", "dev", "cilium_host", "metric", "7"],
        "route fd99::/64 dev cilium_host metric 7 table 254 proto 3 scope 0 is new",
    ),
    "rule": (
        ["ip", "rule", "add", "from", "10.1.0.0/16", "lookup", "77", "pref", "5"],
        ["ip", "rule", "del", "pref", "5"],
        "rule 5 of IPv4: from 10.1.0.0/16 lookup 77 is new",
    ),
    "address": (
        ["ip", "addr", "add", "10.8.0.1/32", "dev", "cilium_net"],
        ["ip", "addr", "del", "10.8.0.1/32", "dev", "cilium_net"],
        "address 10.8.0.1/32 dev cilium_net is new",
    ),
    "MTU": (
        ["ip", "link", "set", "cilium_net", "mtu", "1400"],
        ["ip", "link", "set", "cilium_net", "mtu", "1500"],
        "interface cilium_net: MTU changed from 1500 to 1400",
    ),
    "qdisc": (
        ["tc", "qdisc", "add", "dev", "cilium_net", "root", "pfifo"],
        ["tc", "qdisc", "del", "dev", "cilium_net", "root"],
        "interface cilium_net: qdisc changed from noqueue to pfifo",
    ),
    "queue": (
        ["ip", "link", "set", "cilium_net", "txqueuelen", "5"],
        ["ip", "link", "set", "cilium_net", "txqueuelen", "1000"],
        "interface cilium_net: length of the queue changed from 1000 to 5",
    ),
    "GSO": (
        ["ip", "link", "set", "cilium_net", "gso_max_size", "20000"],
        ["ip", "link", "set", "cilium_net", "gso_max_size", "65536"],
        "interface cilium_net: largest GSO packet changed from 65536 to 20000",
    ),
    "sysctl": (
        ["sysctl", "-qw", "net.ipv4.conf.cilium_host.rp_filter=1"],
        ["sysctl", "-qw", "net.ipv4.conf.cilium_host.rp_filter=0"],
        "interface cilium_host: ipv4 rp_filter changed from 0 to 1",
    ),
    "sysctl6": (
        ["sysctl", "-qw", "net.ipv6.conf.cilium_host.proxy_ndp=1"],
        ["sysctl", "-qw", "net.ipv6.conf.cilium_host.proxy_ndp=0"],
        "interface cilium_host: ipv6 proxy_ndp changed from 0 to 1",
    ),
    "namespace": (
        ["sysctl", "-qw", "net.ipv4.fib_multipath_use_neigh=0"],
        ["sysctl", "-qw", "net.ipv4.fib_multipath_use_neigh=1"],
        "ipv4.fib_multipath_use_neigh changed from 1 to 0",
    ),
    "neighbour": (
        ["ip", "neigh", "add", "10.8.0.9", "lladdr", "02:00:00:00:00:01", "dev", "cilium_host", "nud", "permanent"],
        ["ip", "neigh", "del", "10.8.0.9", "dev", "cilium_host"],
        "permanent neighbour 10.8.0.9 lladdr 02:00:00:00:00:01 dev cilium_host is new",
    ),
    "interface": (
        ["ip", "link", "add", "extra0", "type", "veth", "peer", "name", "extra1"],
        ["ip", "link", "del", "extra0"],
        "interface extra0 is new",
    ),
}


@pytest.mark.parametrize(("make", "undo", "text"), FAULTS.values(), ids=FAULTS)
def test_a_change_that_nobody_declared_is_found(
    sound_node: Agent, make: Sequence[str], undo: Sequence[str], text: str
) -> None:
    before = baseline(sound_node)
    ip(sound_node, *make)
    try:
        assert f"invariant 14: {text}" in violations(sound_node, before)
        assert violations(sound_node, before, expected=Expected(network=frozenset(_words(text)))) == []
    finally:
        ip(sound_node, *undo)
    assert violations(sound_node, before) == []


def _words(text: str) -> set[str]:
    """Return what a scenario would declare: the fault's own name, and what the kernel adds by itself."""
    by_itself = {"interface extra0 is new": {"extra1"}, "address 10.8.0.1/32 dev cilium_net is new": {"10.8.0.1/32"}}
    return {text, *by_itself.get(text, ())}


def test_a_change_inside_a_pod_is_found(sound_node: Agent) -> None:
    before, (pod, _) = baseline(sound_node), sound_node.node.pods
    ip(sound_node, "ip", "route", "add", "10.9.0.0/24", "dev", "lo", inside=pod.name)
    try:
        (found,) = violations(sound_node, before)
        assert found.startswith(f"invariant 14: inside {pod.name}: route 10.9.0.0/24 dev lo")
    finally:
        ip(sound_node, "ip", "route", "del", "10.9.0.0/24", "dev", "lo", inside=pod.name)


@pytest.mark.parametrize("name", ["pod-1", HEALTH])
def test_a_rule_before_the_main_table_does_not_fool_the_check_of_routes(sound_node: Agent, name: str) -> None:
    """The endpoint's own route is there, and no packet takes it."""
    before, pod = baseline(sound_node), sound_node.node.pod(name)
    ip(sound_node, "ip", "rule", "add", "to", str(pod.ipv4), "lookup", "77", "pref", "5")
    ip(sound_node, "ip", "route", "add", f"{pod.ipv4}/32", "dev", "cilium_host", "table", "77")
    try:
        text = f"{name}: packets of the node to {pod.ipv4} go to cilium_host by table 77 instead of {pod.ifname}"
        assert f"invariant 5: {text}" in violations(sound_node, before)
    finally:
        ip(sound_node, "ip", "rule", "del", "pref", "5")
        ip(sound_node, "ip", "route", "del", f"{pod.ipv4}/32", "dev", "cilium_host", "table", "77")


def test_the_node_route_of_the_other_mode_is_found(sound_node: Agent) -> None:
    """With endpoint routes there is no route to all pods by cilium_host; before and after are alike in that."""
    sound_node.node.set_node_route(True)
    try:
        before = baseline(sound_node)
        found = violations(sound_node, before)
        assert found == [
            f"invariant 5: the node's route to {pods} is left over"
            for pods in (sound_node.node.spec.pod_cidr4, sound_node.node.spec.pod_cidr6)
        ]
    finally:
        sound_node.node.set_node_route(False)
    assert violations(sound_node, baseline(sound_node)) == []


@pytest.mark.parametrize("name", ["pod-1", HEALTH])
def test_an_own_route_that_says_something_else_is_found(sound_node: Agent, name: str) -> None:
    """It leads where it must, but not as before; a second one to the same place is left over."""
    before, pod = baseline(sound_node), sound_node.node.pod(name)
    own = (f"{pod.ipv4}/32", "dev", pod.ifname)
    (was,) = run(nsenter(sound_node.node.netns(NODE), "ip", "route", "show", *own)).splitlines()
    ip(sound_node, "ip", "route", "change", *own, "advmss", "1000", "proto", "static", "scope", "link")
    ip(sound_node, "ip", "route", "append", *own, "metric", "100")
    try:
        found = violations(sound_node, before)
        assert len(found) == 3, found
        assert f"invariant 14: route {pod.ipv4}/32 dev {pod.ifname} table 254 proto 4 scope 253 is new" in found
        assert any(line.startswith(f"invariant 14: route {pod.ipv4}/32 dev {pod.ifname} metric 100") for line in found)
    finally:
        ip(sound_node, "ip", "route", "del", *own, "metric", "100")
        ip(sound_node, "ip", "route", "replace", *was.split(), *own[1:])
    assert violations(sound_node, before) == []


def test_what_the_nodes_settings_say_is_declared(sound_node: Agent) -> None:
    """Another mode, another MTU, another tunnel device, one pod more: each brings routes and links of its own."""
    agent = sound_node
    before = baseline(agent)
    outcomes = [*agent.set_endpoint_routes(False), *agent.set_mtu(1400), *agent.set_tunnel_port(8473)]
    outcomes.append(agent.add_pod("extra"))
    assert (
        violations(agent, before, *outcomes, expected=Expected(changed=frozenset({"cilium_lxc", "cilium_ipcache"})))
        == []
    )
    agent.remove_pod("extra")
    agent.set_endpoint_routes(True)
    agent.set_mtu(1500)
