"""What the control plane knows, as keys and values of the datapath's maps: this node, and the others of its cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from datapath.base import mapnames
from datapath.endpoint import HOST_ID, REMOTE_NODE_ID, WORLD_ID
from datapath.kernel.map import Map
from lab.abi import layouts, tables
from lab.abi.layouts import EndpointInfo, EndpointKey, IpcacheKey, RemoteEndpointInfo, TunnelKey, TunnelValue
from lab.abi.others import NodeKey, NodeValue
from lab.agent import enforcement, prefilter
from lab.agent.policy import Network, cidrs
from lab.node.node import Node

Entries = Iterable[tuple[bytes, bytes]]

_WORLD: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def endpoints(node: Node) -> Iterator[tuple[EndpointKey, EndpointInfo]]:
    """Yield what belongs into cilium_lxc: every local pod that is loaded, and the addresses of the host.

    Whoever finds a pod there delivers to it, as if it had programs.
    """
    for pod in (node.facts.health, *node.pods):
        if pod.name in node.facts.unloaded:
            continue
        info = EndpointInfo(
            pod.ifindex, pod.endpoint_id, flags=0, mac=pod.mac, node_mac=pod.node_mac, sec_id=pod.identity
        )
        for address in (pod.ipv4, pod.ipv6):
            yield EndpointKey(address), info
    host = EndpointInfo(ifindex=0, lxc_id=0, flags=layouts.ENDPOINT_F_HOST, mac=None, node_mac=None)
    for address in (*_routers(node), *node.spec.underlay_addresses):
        yield EndpointKey(address), host


def identities(node: Node) -> Iterator[tuple[IpcacheKey, RemoteEndpointInfo]]:
    """Yield what belongs into cilium_ipcache: identity and node of each address; all others are the world's."""
    peers = node.peers
    yield from _identities(node, HOST_ID, layouts.NO_TUNNEL)
    for peer in peers:
        yield from _identities(peer, REMOTE_NODE_ID, peer.spec.node4.ip if node.spec.tunnel else layouts.NO_TUNNEL)
    # An address range that policies name may be all of a family: one write an entry, or it is another for a moment.
    known = _addresses((node, *peers))
    for network, identity in (dict.fromkeys(_WORLD, WORLD_ID) | cidrs(enforcement.stored(node) or ())).items():
        # A single address may be a pod's or a host's, who have identities of their own.
        if network.prefixlen < network.max_prefixlen or network.network_address not in known:
            yield IpcacheKey(network.network_address, network.prefixlen), RemoteEndpointInfo(identity)


def tunnels(node: Node) -> Iterator[tuple[TunnelKey, TunnelValue]]:
    """Yield what belongs into cilium_tunnel_map: the node of each pod network, for pods that ipcache does not know."""
    for peer in node.peers if node.spec.tunnel else ():
        value = TunnelValue(peer.spec.node4.ip)
        for network in (peer.spec.pod_cidr4, peer.spec.pod_cidr6):
            yield TunnelKey(network.network_address), value


def nodes(node: Node) -> Iterator[tuple[NodeKey, NodeValue]]:
    """Yield what belongs into cilium_node_map: an id of each address of a node on the underlay, 0 for the local one."""
    for each in (node, *node.peers):
        number = 0 if each is node else each.spec.node_index + 1
        for address in each.spec.underlay_addresses:
            yield NodeKey(address), NodeValue(number)


def policy(node: Node, opened: Map, endpoint_id: int) -> Entries:
    """Yield the policy map of an endpoint; without policies it lets everything pass, in both directions."""
    table = tables.POLICY.of(opened)
    for key, deny in enforcement.wanted(node, endpoint_id, enforcement.stored(node) or ()).items():
        yield table.key.pack(key), table.value.pack(key.entry(deny=deny))


def _packed(
    table_of: Callable[[Map], tables.Table[tables.K, tables.V]],
    content: Callable[[Node], Iterable[tuple[tables.K, tables.V]]],
) -> Callable[[Node, Map], Entries]:
    """Return what gives the content of a map in the layout that the map has."""

    def entries(node: Node, opened: Map) -> Entries:
        table = table_of(opened)
        return ((table.key.pack(key), table.value.pack(value)) for key, value in content(node))

    return entries


NODE_MAPS: dict[str, Callable[[Node, Map], Entries]] = {
    mapnames.ENDPOINTS: _packed(tables.ENDPOINTS.of, endpoints),
    mapnames.IPCACHE: _packed(tables.IDENTITIES.of, identities),
    mapnames.IPCACHE_V2: _packed(tables.IDENTITIES.of, identities),
    mapnames.TUNNEL: _packed(tables.TUNNELS.of, tunnels),
    mapnames.NODES: _packed(tables.NODES.of, nodes),
    mapnames.NODES_V2: _packed(tables.NODES.of, nodes),
}
PREFILTER_MAPS: dict[str, Callable[[Node], Entries]] = {
    name: partial(prefilter.entries, name) for name in mapnames.CIDR_MAPS
}
"""The maps of a node that the control plane writes, by name; those of the prefilter only if it has XDP programs."""


def _addresses(nodes: Iterable[Node]) -> set[IPv4Address | IPv6Address]:
    """Return the addresses of nodes and of their pods."""
    found: set[IPv4Address | IPv6Address] = set()
    for node in nodes:
        found.update(_routers(node), node.spec.underlay_addresses)
        for pod in (node.facts.health, *node.pods):
            found.update((pod.ipv4, pod.ipv6))
    return found


def _identities(node: Node, host: int, tunnel: IPv4Address) -> Iterator[tuple[IpcacheKey, RemoteEndpointInfo]]:
    """Return a node's addresses, its host's identity being `host`. Its pods and router are behind the tunnel.

    The node's addresses on the underlay and on its VLANs are not: that is where the tunnel itself leads.
    """
    known = [(address, host, tunnel) for address in _routers(node)]
    known += [(address, host, layouts.NO_TUNNEL) for address in node.spec.underlay_addresses]
    for pod in (node.facts.health, *node.pods):
        known += [(address, pod.identity, tunnel) for address in (pod.ipv4, pod.ipv6)]
    for address, identity, endpoint in known:
        yield IpcacheKey(address, address.max_prefixlen), RemoteEndpointInfo(identity, endpoint)


def _routers(node: Node) -> tuple[IPv4Address | IPv6Address, ...]:
    return node.spec.router4, node.spec.router6
