"""A connection of the pod with somebody outside, packet by packet, through its programs in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from datapath.kernel.map import Map
from datapath.kernel.uapi import TestRun
from lab.abi import conntrack
from lab.abi.conntrack import CtEntry, CtTuple
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, ICMP, ICMPV6, TCP, eth, ipv4, ipv6
from tests.bpf.loaded import POD, WORLD4, WORLD6, Datapath
from tests.bpf.pod import POD4, POD6, from_pod

PORT, SERVICE = 40000, 80
TABLE = {
    (4, True): "cilium_ct4_global",
    (4, False): "cilium_ct_any4_global",
    (6, True): "cilium_ct6_global",
    (6, False): "cilium_ct_any6_global",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody outside, in one family; runs go through a pod's object with endpoint routes on."""

    datapath: Datapath
    version: int

    @property
    def address(self) -> IPv4Address | IPv6Address:
        return WORLD4 if self.version == 4 else WORLD6

    @property
    def icmp(self) -> int:
        return ICMP if self.version == 4 else ICMPV6

    def packet(self, protocol: int, payload: bytes, *, out: bool, ttl: int = 64) -> bytes:
        """Return an IP packet of the pod (`out`) or of the peer."""
        if self.version == 4:
            ends4 = (POD4, WORLD4) if out else (WORLD4, POD4)
            return ipv4(*ends4, payload, protocol=protocol, ttl=ttl)
        ends6 = (POD6, WORLD6) if out else (WORLD6, POD6)
        return ipv6(*ends6, payload, next_header=protocol, hops=ttl)

    def out(self, protocol: int, payload: bytes) -> TestRun:
        return self.datapath.run("cil_from_container", from_pod(self.packet(protocol, payload, out=True)))

    def into(self, protocol: int, payload: bytes, *, ttl: int = 64) -> TestRun:
        return self.send_in(self.packet(protocol, payload, out=False, ttl=ttl))

    def send_in(self, packet: bytes) -> TestRun:
        kind = ETH_P_IP if self.version == 4 else ETH_P_IPV6
        return self.datapath.run("cil_to_container", eth(POD.mac, POD.node_mac, kind, packet))

    def key(self, protocol: int, sport: int, dport: int, *, out: bool) -> bytes:
        """Return the key of a connection that the pod (`out`) or the peer began."""
        pod = POD4 if self.version == 4 else POD6
        ends = (pod, self.address) if out else (self.address, pod)
        flags = conntrack.TUPLE_F_OUT if out else conntrack.TUPLE_F_IN
        return CtTuple(*ends, sport, dport, protocol, flags).pack()

    def entry(self, protocol: int, sport: int, dport: int, *, out: bool) -> CtEntry | None:
        value = self.table(protocol).lookup(self.key(protocol, sport, dport, out=out))
        return None if value is None else CtEntry.unpack(value)

    def change(self, protocol: int, sport: int, dport: int, entry: CtEntry, *, out: bool) -> None:
        self.table(protocol).update(self.key(protocol, sport, dport, out=out), entry.pack())

    def table(self, protocol: int) -> Map:
        return self.datapath.map(TABLE[self.version, protocol == TCP])
