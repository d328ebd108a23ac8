"""A node and a pod as values, for tests that make nothing real of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from datapath.endpoint import LABEL_HOST, Endpoint, NodeConfig

NODE = NodeConfig(
    router_ipv4=IPv4Address("10.244.2.110"),
    router_ipv6=IPv6Address("fd00:10:244:2::6e"),
    cilium_host_ifindex=3,
    cilium_host_mac="02:00:00:00:00:03",
    cilium_net_ifindex=2,
    cilium_net_mac="02:00:00:00:00:02",
    encap_ifindex=5,
    encap_mac="02:00:00:00:00:05",
    mtu=1500,
)
POD = Endpoint(
    id=1332,
    ifname="lxc0123456789ab",
    mac="0a:00:00:00:00:01",
    node_mac="0a:0b:0c:0d:0e:0f",
    ipv4=IPv4Address("10.244.2.149"),
    ipv6=IPv6Address("fd00:10:244:2::95"),
    identity=0x1234,
    labels=frozenset({"k8s:app=x"}),
    generation=9,
)
HOST = replace(POD, id=7, ifname="cilium_host", ipv4=None, ipv6=None, identity=1, labels=frozenset({LABEL_HOST}))
