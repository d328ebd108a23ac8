"""A node in the words of the pipeline: its configuration and its endpoints, from what was chosen when it was built."""

from __future__ import annotations

from datapath.endpoint import HOST_ID, LABEL_HOST, Endpoint, NodeConfig, Vlan
from lab.node.topology import HOST_ENDPOINT, NodeFacts, NodeSpec, PodFacts


def node_config(spec: NodeSpec, facts: NodeFacts, *, options: tuple[tuple[str, str], ...] = ()) -> NodeConfig:
    """Return what the programs of a node must know about it; `options` are further macros of node_config.h."""
    host, net, vxlan = facts.cilium_host, facts.cilium_net, facts.vxlan
    return NodeConfig(
        router_ipv4=spec.router4,
        router_ipv6=spec.router6,
        cilium_host_ifindex=host.ifindex,
        cilium_host_mac=host.mac,
        cilium_net_ifindex=net.ifindex,
        cilium_net_mac=net.mac,
        encap_ifindex=vxlan.ifindex if spec.tunnel else None,
        encap_mac=vxlan.mac if spec.tunnel else None,
        mtu=spec.mtu,
        tunnel_port=spec.tunnel_port,
        vlans=tuple(Vlan(vlan.name, facts.uplink.ifindex, vlan.id) for vlan in spec.vlans),
        pod_prefix4=spec.pod_cidr4.prefixlen,
        endpoint_routes=spec.endpoint_routes,
        options=options,
    )


def host_endpoint(spec: NodeSpec, facts: NodeFacts) -> Endpoint:
    """Return the node's own endpoint."""
    host = facts.cilium_host
    return Endpoint(
        id=HOST_ENDPOINT,
        ifname=host.name,
        mac=host.mac,
        node_mac=host.mac,
        ipv4=spec.router4,
        ipv6=spec.router6,
        identity=HOST_ID,
        labels=frozenset({LABEL_HOST}),
    )


def pod_endpoint(spec: NodeSpec, pod: PodFacts) -> Endpoint:
    """Return the endpoint of a pod, or the health endpoint, in the node's routing mode."""
    endpoint = Endpoint(
        id=pod.endpoint_id,
        ifname=pod.ifname,
        mac=pod.mac,
        node_mac=pod.node_mac,
        ipv4=pod.ipv4,
        ipv6=pod.ipv6,
        identity=pod.identity,
        labels=pod.labels,
        ifindex=pod.ifindex,
    )
    return endpoint.with_endpoint_routes(spec.endpoint_routes)
