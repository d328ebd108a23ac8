"""Packets as they are on the wire: who sends to whom, by which protocol."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from lab.agent.policy import PROTOCOLS

ETHERNET = 14
"""Bytes of an Ethernet header."""

IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
"""EtherTypes."""

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
"""Protocols over IP."""

_UDP, _VXLAN, _ICMP = 8, 8, 8
_ICMP_ERRORS, _ICMPV6_ERRORS = (3, 11, 12), (1, 2, 3, 4)
"""Types of ICMP messages (RFC 792, RFC 4443): unreachable, too big, time exceeded, parameter problem."""
_NAMES = {number: name.lower() for name, number in PROTOCOLS.items()}
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet. `ports` are source and destination, None without ports or in a later fragment.

    `data` is what follows the IP header, as far as it was captured; empty in a later fragment.
    """

    source: Address
    target: Address
    protocol: int
    data: bytes

    @property
    def ports(self) -> tuple[int, int] | None:
        if self.protocol not in (TCP, UDP, SCTP) or len(self.data) < 4:
            return None
        source, target = struct.unpack_from("!HH", self.data)
        return source, target

    @property
    def icmp(self) -> tuple[int, int] | None:
        """Type and code of an ICMP or ICMPv6 message; None for other packets."""
        return (self.data[0], self.data[1]) if self.protocol in (ICMP, ICMPV6) and len(self.data) >= 2 else None

    def __str__(self) -> str:
        name = _NAMES.get(self.protocol, f"protocol {self.protocol}")
        source, target = str(self.source), str(self.target)
        if self.ports is not None:
            source, target = (_with_port(*end) for end in zip((self.source, self.target), self.ports, strict=True))
        if self.protocol == TCP and len(self.data) >= 14:
            flags = ", ".join(flag for bit, flag in enumerate(_TCP_FLAGS) if self.data[13] >> bit & 1)
            return f"{source} -> {target} {name} {flags}".rstrip()
        if self.icmp is not None:
            return "{} -> {} {} type {} code {}".format(source, target, name, *self.icmp)
        return f"{source} -> {target} {name}"

    @property
    def quoted(self) -> Packet | None:
        """The packet that an ICMP error is about, as far as the error has it; None of all others."""
        kind, _ = self.icmp or (0, 0)
        if self.protocol == ICMP:
            return decode(IPV4, self.data[_ICMP:]) if kind in _ICMP_ERRORS else None
        return decode(IPV6, self.data[_ICMP:]) if kind in _ICMPV6_ERRORS else None

    def tunnelled(self, port: int) -> Packet | None:
        """Return the packet inside, if this one is VXLAN to that UDP port."""
        frame = self.data[_UDP + _VXLAN :]
        return decode_frame(frame) if self.protocol == UDP and self.ports and self.ports[1] == port else None


def decode_frame(frame: bytes) -> Packet | None:
    """Decode an Ethernet frame, which may be cut off anywhere; None if it holds no IP packet."""
    return decode(ethertype(frame), frame[ETHERNET:])


def ethertype(frame: bytes) -> int:
    """Return a frame's EtherType, 0 if it is too short to have one."""
    return int.from_bytes(frame[12:14], "big") if len(frame) >= ETHERNET else 0


def decode(kind: int, packet: bytes) -> Packet | None:
    """Decode what follows a link layer's header, by its EtherType; None if it is no IP packet."""
    if kind == IPV4 and len(packet) >= 20:
        ends = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        # Ports are in the first fragment only.
        first = not int.from_bytes(packet[6:8], "big") & 0x1FFF
        return Packet(*ends, packet[9], packet[(packet[0] & 0xF) * 4 :] if first else b"")
    if kind == IPV6 and len(packet) >= 40:
        return Packet(IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), *_upper_layer(packet[6], packet[40:]))
    return None


def _upper_layer(protocol: int, data: bytes) -> tuple[int, bytes]:
    """Step over a hop-by-hop header, which multicast listener reports have; others are left as they are."""
    if protocol == 0 and len(data) >= 8:
        return data[0], data[(data[1] + 1) * 8 :]
    return protocol, data


def summary(frame: bytes) -> str:
    """Return a packet's addresses, ports and protocol, such as `10.0.0.1:80 -> 10.0.0.2:40000 tcp SYN, ACK`."""
    packet = decode_frame(frame)
    if packet is not None:
        return str(packet)
    return "arp" if ethertype(frame) == ARP else f"{len(frame)} bytes, protocol {ethertype(frame):#06x}"


def _with_port(host: Address, port: int) -> str:
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
