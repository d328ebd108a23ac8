"""A node on a machine whose new namespaces are not empty: modules such as ipip put their fallback tunnels into each."""

from __future__ import annotations

from pathlib import Path

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing
from datapath.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK, NetlinkSocket
from lab.agent.agent import Agent
from lab.agent.cluster import Cluster, cluster_specs
from lab.node import builder
from lab.node.messages import encode, ifinfmsg
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.netns import new_netns
from lab.watch.invariants import baseline, check
from tests.lab.labs import ip, unique_name

pytestmark = pytest.mark.privileged

FALLBACK_TUNNELS = (
    *("tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0", "ip6gretap0"),
    *("ip6erspan0", "tunl1", "sit1"),
)
"""Devices of these names stand in for the modules' own, which not every kernel has."""


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every namespace that is made begin with devices that have the indices from 2 on."""

    def crowd(path: Path) -> int:
        descriptor = new_netns(path)
        with NetlinkSocket() as socket:
            for index, name in enumerate(FALLBACK_TUNNELS, 2):
                attributes = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]})]
                message = encode(ifinfmsg, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, {"index": index}, attributes)
                socket.request(f"make {name}", message)
        return descriptor

    monkeypatch.setattr(builder, "new_netns", crowd)


@pytest.mark.usefixtures("crowded")
def test_fallback_tunnels_take_no_index_of_ours() -> None:
    with Node(NodeSpec(unique_name(), pods=2, tunnel=True)) as node:
        for name in node.namespaces:
            assert {*FALLBACK_TUNNELS, "lo"} < {link["ifname"] for link in ip(node.netns(name), "link")}
        node.set_tunnel_port(9000)
        node.add_pod("late")
        try:
            probe_compiler()
        except ToolMissing as error:
            pytest.skip(str(error))
        with Agent(node) as agent:
            agent.start()
            before = baseline(agent)
            agent.reload_all(workers=2)
            assert check(agent, before) == []


@pytest.mark.usefixtures("crowded")
def test_fallback_tunnels_take_no_index_of_an_underlay() -> None:
    with Cluster(cluster_specs(unique_name("c"), 2, pods=0)) as cluster:
        assert len(cluster.nodes) == 2
