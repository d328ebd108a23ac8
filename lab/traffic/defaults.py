"""The traffic that runs by default: which endpoints of a node, or of several, talk to which others, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from lab.node.node import Node
from lab.node.topology import HEALTH, HOST, NODE, OUTSIDE, VlanDevice
from lab.traffic.flows import Flow

RATE = 2000.0
"""Packets a second over all flows: one every 0.5 ms, a few for each of the slower steps of a reload."""

UDP_PORT, TCP_PORT, REFUSED_PORT, DENIED_PORT = 7007, 7008, 7009, 7013
"""Where UDP and TCP are answered, where nothing listens and every packet is refused, and what no policy lets pass."""

SMALL, GSO = 64, 9_000
"""Bytes of most payloads, and of one that leaves a socket whole and is cut into segments on its way or not at all.

While a neighbour is looked for, the kernel keeps 208 KiB of packets for it and drops what is more (unres_qlen_bytes):
the payloads of all flows at once must fit.
"""

_HEADERS = {4: 20, 6: 40}
_UDP, _TCP_WITH_TIMESTAMPS = 8, 32

End = tuple[str, IPv4Address, IPv6Address]
"""A namespace's path, and the IPv4 and IPv6 address of the endpoint in it."""

Pairs = Sequence[tuple[str, str]]
"""Sources and targets by name."""


def default_flows(node: Node) -> list[Flow]:
    """Return the traffic of a node, IPv4 and IPv6, between all kinds of its endpoints.

    UDP and TCP by old connections, with payloads from a few bytes over the full MTU to GSO; new connections of UDP, TCP
    and ICMP echo; packets that are refused by ICMP; and packets that the policy must stop. The health endpoint takes
    the place of the pods where there are none. The outside and the node itself talk over each VLAN.
    """
    first, last = _first_and_last(node)
    vlans = [(_outside_of(vlan), vlan.name) for vlan in node.spec.vlans]
    made = _Flows(ends(node), node.spec.route_mtu)
    across = [(first, last), (first, OUTSIDE), (OUTSIDE, first)]
    made.old([*across, (HOST, first), (first, HEALTH), *vlans])
    into = [(first, last), (OUTSIDE, first)]
    made.fresh([*across, (HOST, first), *(pair[::-1] for pair in vlans)], tcp=into, icmp=[*into, (HOST, first)])
    made.refused([(first, last)])
    made.denied([(last, first), (OUTSIDE, first), (first, OUTSIDE)])
    return made.flows


def cluster_flows(nodes: Sequence[Node]) -> list[Flow]:
    """Return the same kinds of traffic between the first node and each of the others, and within it.

    The health endpoint takes the place of a node's pods where there are none. Nodes talk over the VLANs in common too.
    """
    first, last = (f"1/{name}" for name in _first_and_last(nodes[0]))
    known = {f"{n}/{e}": end for n, node in enumerate(nodes, 1) for e, end in ends(node).items()}
    made = _Flows(known, min(node.spec.route_mtu for node in nodes))
    made.old([(first, last)])
    for number, node in enumerate(nodes[1:], 2):
        pod = f"{number}/{_first_and_last(node)[0]}"
        between, back = (first, pod), (pod, first)
        host, outside, health = f"{number}/{HOST}", f"{number}/{OUTSIDE}", f"{number}/{HEALTH}"
        to_health = [(pod, "1/health"), (first, health)]
        made.old([between, back, ("1/host", pod), (pod, "1/host"), ("1/host", host), (outside, pod), *to_health])
        made.old([(f"1/{v.name}", f"{number}/{v.name}") for v in nodes[0].spec.vlans if v.name in node.spec.devices])
        made.fresh([between, back], tcp=[between], icmp=[back, ("1/host", pod)])
        made.refused([between])
        made.denied([between, (outside, pod)])
    return made.flows


def flows_of_each(node: Node) -> list[Flow]:
    """Return UDP between the host and every pod, IPv4 and IPv6: each reloaded endpoint has packets of its own."""
    pairs = [(HOST, pod.name) for pod in node.pods]
    return list(_Flows(ends(node), node.spec.route_mtu).between(pairs, "{} -> {} probe v{}"))


def ends(node: Node) -> dict[str, End]:
    """Return where traffic can begin or end on a node, by name: a namespace's path, and its addresses."""
    spec = node.spec
    return {
        HOST: (str(node.netns(NODE)), spec.router4, spec.router6),
        OUTSIDE: (str(node.netns(OUTSIDE)), spec.outside4.ip, spec.outside6.ip),
        **{p.name: (str(node.netns(p.name)), p.ipv4, p.ipv6) for p in (node.facts.health, *node.pods)},
        **{vlan.name: (str(node.netns(NODE)), vlan.node4.ip, vlan.node6.ip) for vlan in spec.vlans},
        **{_outside_of(vlan): (str(node.netns(OUTSIDE)), vlan.outside4.ip, vlan.outside6.ip) for vlan in spec.vlans},
    }


def _outside_of(vlan: VlanDevice) -> str:
    """Return the name of the outside as an end of traffic on a VLAN."""
    return f"{OUTSIDE}.{vlan.id}"


def _first_and_last(node: Node) -> tuple[str, str]:
    names = [pod.name for pod in node.pods] or [HEALTH]
    return names[0], names[-1]


class _Flows:
    """Flows between endpoints that are known by name, over paths with an MTU."""

    def __init__(self, known: Mapping[str, End], mtu: int) -> None:
        self._known = known
        self._mtu = mtu
        self.flows: list[Flow] = []

    def old(self, pairs: Pairs) -> None:
        """Add UDP and TCP by old connections."""
        for path in self.between(pairs, "{} -> {} udp v{}"):
            tcp = replace(path, name=path.name.replace("udp", "tcp"), protocol="tcp", port=TCP_PORT)
            self.flows += [self._sized(path), self._sized(tcp)]

    def fresh(self, pairs: Pairs, *, tcp: Pairs, icmp: Pairs) -> None:
        """Add new connections of UDP, of TCP, and of ICMP echo."""
        self.flows += (replace(path, fresh=True) for path in self.between(pairs, "{} -> {} new udp v{}"))
        for path in self.between(tcp, "{} -> {} new tcp v{}"):
            self.flows.append(replace(path, protocol="tcp", port=TCP_PORT, fresh=True))
        for path in self.between(icmp, "{} -> {} icmp v{}"):
            self.flows.append(self._sized(replace(path, protocol="icmp", fresh=True)))

    def refused(self, pairs: Pairs) -> None:
        """Add UDP to a port where nothing listens."""
        for path in self.between(pairs, "{} -> {} refused udp v{}"):
            self.flows.append(replace(path, port=REFUSED_PORT, refused=True))

    def denied(self, pairs: Pairs) -> None:
        """Add UDP that must not arrive."""
        for path in self.between(pairs, "{} -x {} udp v{}"):
            self.flows.append(replace(path, port=DENIED_PORT, denied=True, fresh=True))

    def between(self, pairs: Pairs, name: str) -> Iterator[Flow]:
        """Yield UDP by old connections, small packets only, both versions; `name` has a place for both ends and it."""
        for source, target in dict.fromkeys(pairs):
            if source == target:
                continue
            for version in (4, 6):
                path, *addresses = self._known[source]
                target_path, *target_addresses = self._known[target]
                yield Flow(
                    name=name.format(source, target, version),
                    source_ns=path,
                    source_ip=str(addresses[version == 6]),
                    target_ns=target_path,
                    target_ip=str(target_addresses[version == 6]),
                    port=UDP_PORT,
                )

    def _sized(self, flow: Flow) -> Flow:
        """Return the flow with payloads of several sizes, most of them small."""
        room = self._mtu - _HEADERS[flow.version]
        if flow.protocol == "tcp":
            # One byte more than a segment holds makes two of it.
            return replace(flow, sizes=(SMALL, SMALL, room - _TCP_WITH_TIMESTAMPS + 1, SMALL, SMALL, SMALL, GSO, SMALL))
        return replace(flow, sizes=(SMALL, SMALL, room - _UDP, SMALL))
