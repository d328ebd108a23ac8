"""Whose a packet is: a scenario's, or one that a kernel sends by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address

from lab.traffic.flows import Flow
from lab.watch.packet import ICMP, TCP, UDP, Address, Packet

ROUTER_SOLICITATION, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 133, 135, 136
_LISTENER_MESSAGES = frozenset((130, 131, 132, 143))
_SOLICITED = slice(8, 24)
_PROTOCOLS = {UDP: "udp", TCP: "tcp", ICMP: "icmp", 58: "icmp"}


def of_the_kernel(packet: Packet) -> str | None:
    """Return what a packet is that a kernel sends by itself and on which no flow depends; None for all others.

    That is a router solicitation, a multicast listener's message, and neighbour discovery of link-local addresses: five
    seconds after a pod's kernel answered the host's solicitation, it checks that the host is still reachable (RFC 4861,
    7.3.3), by its link-local address.
    """
    kind, _ = packet.icmp or (None, 0)
    if not isinstance(packet.source, IPv6Address) or kind is None:
        return None
    if kind == ROUTER_SOLICITATION:
        return "router solicitation"
    if kind in _LISTENER_MESSAGES:
        return "multicast listener report"
    if kind in (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT) and len(packet.data) >= _SOLICITED.stop:
        subject = IPv6Address(packet.data[_SOLICITED])
        if subject.is_link_local:
            name = "solicitation" if kind == NEIGHBOUR_SOLICITATION else "advertisement"
            return f"neighbour {name} of {subject}"
    return None


class Ownership:
    """Tells the packets of a scenario's flows, and of its probes, from those of the kernels."""

    def __init__(self, flows: Iterable[Flow], *, ends: Iterable[Address] = (), tunnel_ports: Sequence[int] = ()):
        """`ends` are the addresses between which probes run; `tunnel_ports` the UDP ports of VXLAN."""
        self._flows: dict[tuple[Address, Address, str, int], str] = {}
        self._ends = {*ends}
        self._tunnel_ports = tuple(tunnel_ports)
        self._socketless: set[str] = set()
        self._looks: dict[str, str] = {}
        for flow in flows:
            source, target = ip_address(flow.source_ip), ip_address(flow.target_ip)
            port = flow.port if flow.protocol in ("udp", "tcp") else 0
            # Of several flows that look the same on the wire, the first gives its name.
            self._looks[flow.name] = self._flows.setdefault((source, target, flow.protocol, port), flow.name)
            self._ends |= {source, target}
            if flow.refused:
                self._socketless.add(flow.name)
            elif flow.protocol == "icmp":
                self._socketless.add(f"{flow.name}, reply")

    def inside(self, packet: Packet) -> Packet:
        """Return the packet that a tunnel's packet carries, or the packet itself."""
        found = (packet.tunnelled(port) for port in self._tunnel_ports)
        return next((inner for inner in found if inner is not None), packet)

    def flow(self, packet: Packet) -> str | None:
        """Return the flow to which a packet belongs, with `reply` for one of the way back; None if to none."""
        protocol = _PROTOCOLS.get(packet.protocol, "")
        source, target = packet.ports or (0, 0)
        if (name := self._flows.get((packet.source, packet.target, protocol, target))) is not None:
            return name
        name = self._flows.get((packet.target, packet.source, protocol, source))
        return f"{name}, reply" if name is not None else None

    def look(self, flow: str) -> str:
        """Return the flow whose name packets of a flow get: the first of those that look the same on the wire."""
        return self._looks.get(flow, flow)

    def without_socket(self, flow: str) -> bool:
        """Tell whether the packets of a flow, as `flow` names them, end without a socket, as they should.

        What is refused has no receiver, and raw sockets read copies of echo replies.
        """
        return flow in self._socketless

    def is_of_scenario(self, packet: Packet) -> bool:
        """Tell whether a packet runs between two ends of the scenario: a flow's or a probe's."""
        packet = self.inside(packet)
        return {packet.source, packet.target} <= self._ends

    def owner(self, packet: Packet | None) -> str:
        """Return in words whose a packet is: the flow's name, `the probe ...`, or `the kernel's ...`."""
        if packet is None:
            return "no IP packet"
        packet = self.inside(packet)
        if (flow := self.flow(packet)) is not None:
            return flow
        if (kernels := of_the_kernel(packet)) is not None:
            return f"the kernel's {kernels}"
        return f"the probe {packet}" if self.is_of_scenario(packet) else str(packet)
