"""What a node looks like: `NodeSpec` says what is wanted, `plan_node` derives every name, number and address. Pure.

Addresses of the node with index i: pods 10.244.<16 i>.0/20 and fd00:10:244:<i>::/64, underlay 172.20.<i>.1/24 and
fd00:172:20:<i>::1/64, VLAN v 10.<v / 256>.<v % 256>.<i + 1>/24 and fd00:8021:<v>::<i + 1>/64 (v in hex). The first
address of the pod range is the router (the node's own, on cilium_host), the second the health endpoint, then follow the
pods. Nodes of one cluster share their underlay: it is then one link, with
172.20.0.0/16 and fd00:172:20::/48.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from itertools import repeat

from datapath.base.names import check_ifname, check_lab_name
from datapath.endpoint import DATAPATH_MODES, HEALTH_ID, XDP_MODES, DatapathMode, XdpMode
from datapath.errors import InvalidName, WrongCall

VXLAN_PORT = 8472
VXLAN_OVERHEAD = 50
"""Bytes: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14."""
TXQUEUELEN = 1000
MAX_NODES = 16
MAX_PODS = 4000
MIN_MTU, MAX_MTU = 1280, 65520
"""IPv6 needs the first on every link, tunnel included; the second is Cilium's MaxMTU."""

NODE, HEALTH, OUTSIDE = "node", "health", "outside"
"""Names of the namespaces that do not belong to a pod."""
HOST = "host"
"""Name of the node's own endpoint."""
UPLINK = "eth0"
LXC_PREFIX = "lxc"
"""What the host side of every endpoint's device begins with."""

HOST_ENDPOINT, HEALTH_ENDPOINT, FIRST_ENDPOINT = 1, 2, 101
FIRST_IDENTITY = 1001
_IDENTITIES_PER_NODE = 4096
_FIRST_LABEL_IDENTITY, _END_OF_IDENTITIES = 1 << 16, 1 << 24
# All indices are chosen beforehand, and so that nothing has them already: with some modules (ipip, ip_gre, sit, ...)
# every new namespace begins with their fallback tunnels, a dozen at most, numbered from 2 on.
_UPLINK_IFINDEX, _NET_IFINDEX, _HOST_IFINDEX, _VXLAN_IFINDEX, _HEALTH_IFINDEX = range(32, 37)
# Where the tunnel device goes when it is made again: each time on, so that a stale index leads nowhere.
_TUNNEL_IFINDICES = range(37, 48)
_FIRST_IFINDEX = 48
# Inside a pod the interface has another index than any outside: a program that mixes them up fails.
PEER_IFINDEX = 31
# The ends of the nodes' uplinks in a shared underlay.
_FIRST_PORT_IFINDEX = 100
# Five digits, as all indices of native devices have (cilium_calls_netdev_<ifindex>), and beyond the pods'.
_FIRST_VLAN_IFINDEX = 90_000

_VLAN_NAME = re.compile(rf"{UPLINK}\.([1-9][0-9]{{0,3}})")
_LAST_VLAN_ID = 4094
MAX_VLANS = 5
"""Cilium's filter takes no more (vlanFilterMacros)."""

_POD_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
# The last two name what else is reloaded (datapath.reload.plans): a pod called so could not be told from it.
_RESERVED = frozenset({NODE, HEALTH, OUTSIDE, HOST, "overlay", "xdp"})


class InvalidSpec(WrongCall):
    """A node that cannot be built as asked."""


@dataclass(frozen=True, slots=True)
class PodSpec:
    """A pod as asked for.

    `identity` is its numeric security identity. With None pods of equal labels have the same one, on all nodes; a pod
    without labels has one of its own, the next from 1001 on.
    """

    name: str
    identity: int | None = None
    labels: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not _POD_NAME.fullmatch(self.name) or self.name in _RESERVED:
            rule = f"lower-case letters, digits and '-', at most 32, and none of {', '.join(sorted(_RESERVED))}"
            raise InvalidName("pod name", self.name, rule)
        if self.identity is not None and not 256 <= self.identity < 1 << 24:
            raise InvalidSpec(f"identity {self.identity} of {self.name}: pods have 256 to {(1 << 24) - 1}")


@dataclass(frozen=True, slots=True)
class VlanDevice:
    """A VLAN device on the uplink of a node, with its counterpart outside.

    Both have the same interface index, each in its namespace. The one outside is the same for all nodes of a cluster.
    """

    id: int
    node_index: int

    @property
    def name(self) -> str:
        return f"{UPLINK}.{self.id}"

    @property
    def ifindex(self) -> int:
        return _FIRST_VLAN_IFINDEX + self.id

    @property
    def node4(self) -> IPv4Interface:
        return self._ipv4(self.node_index + 1)

    @property
    def node6(self) -> IPv6Interface:
        return self._ipv6(self.node_index + 1)

    @property
    def outside4(self) -> IPv4Interface:
        return self._ipv4(254)

    @property
    def outside6(self) -> IPv6Interface:
        return self._ipv6(0xFE)

    def _ipv4(self, host: int) -> IPv4Interface:
        return IPv4Interface(f"10.{self.id >> 8}.{self.id & 0xFF}.{host}/24")

    def _ipv6(self, host: int) -> IPv6Interface:
        return IPv6Interface(f"fd00:8021:{self.id:x}::{host:x}/64")


def check_pod_count(count: int) -> None:
    """Raise InvalidSpec for a number of pods that no node can have."""
    if not 0 <= count <= MAX_PODS:
        raise InvalidSpec(f"a node has 0 to {MAX_PODS} pods, not {count}")


def check_xdp_mode(mode: str) -> XdpMode:
    """Return a mode of XDP; InvalidSpec if it is none."""
    found = next((known for known in XDP_MODES if known == mode), None)
    if found is None:
        raise InvalidSpec(f"the mode of XDP is one of {', '.join(XDP_MODES)}, not {mode}")
    return found


def check_datapath_mode(mode: str) -> DatapathMode:
    """Return a datapath mode; InvalidSpec if it is none."""
    found = next((known for known in DATAPATH_MODES if known == mode), None)
    if found is None:
        raise InvalidSpec(f"the datapath mode is one of {', '.join(DATAPATH_MODES)}, not {mode}")
    return found


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node as asked for.

    `pods` is their number (they are then called pod-1, pod-2, ...) or the pods themselves. `tunnel` sends packets for
    other nodes through VXLAN, otherwise they are routed. `devices` are the native devices that get programs: eth0, and
    VLAN devices on it, such as eth0.100, which are made because they are named here. `mtu` is that of all devices, in
    bytes. `node_index` chooses the address ranges, so that several nodes share an underlay.
    `cluster` is the name of the nodes that do, empty for a node by itself. `tunnel_port` is VXLAN's UDP port. `xdp` is
    the mode in which the native devices get an XDP program (datapath.endpoint.XdpMode), None if they get none.
    `datapath_mode` is what pods have for devices (datapath.endpoint.DatapathMode).
    """

    name: str
    pods: int | tuple[PodSpec, ...] = 2
    endpoint_routes: bool = False
    tunnel: bool = False
    devices: tuple[str, ...] = ()
    mtu: int = 1500
    node_index: int = 0
    cluster: str = ""
    tunnel_port: int = VXLAN_PORT
    xdp: str | None = None
    datapath_mode: str = "veth"

    def __post_init__(self) -> None:
        check_lab_name(self.name)
        if self.cluster:
            check_lab_name(self.cluster)
        self._check_pods()
        self._check_links()
        if check_datapath_mode(self.datapath_mode) != "veth" and self.endpoint_routes:
            # On its way into a pod a packet loses where it came from, and before Linux 6.13 its mark.
            raise InvalidSpec("pods with netkit devices have no endpoint routes: choose one of them")

    def _check_pods(self) -> None:
        count = self.pods if isinstance(self.pods, int) else len(self.pods)
        check_pod_count(count)
        if isinstance(self.pods, int):
            # One form from here on, so that a spec read back from a file equals the one that was written.
            object.__setattr__(self, "pods", tuple(PodSpec(f"pod-{number}") for number in range(1, count + 1)))
        seen: set[str] = set()
        for pod in self.pod_specs:
            if pod.name in seen:
                raise InvalidSpec(f"two pods are called {pod.name}")
            seen.add(pod.name)

    def _check_links(self) -> None:
        least = MIN_MTU + (VXLAN_OVERHEAD if self.tunnel else 0)
        if not least <= self.mtu <= MAX_MTU:
            raise InvalidSpec(f"the MTU is {least} to {MAX_MTU} bytes, not {self.mtu}")
        if not 0 <= self.node_index < MAX_NODES:
            raise InvalidSpec(f"the index of a node is 0 to {MAX_NODES - 1}, not {self.node_index}")
        if not 0 < self.tunnel_port < 1 << 16:
            raise InvalidSpec(f"the tunnel's port is 1 to 65535, not {self.tunnel_port}")
        for device in self.devices:
            if check_ifname(device) != UPLINK and _vlan_id(device) is None:
                known = f"{UPLINK}, and VLAN devices from {UPLINK}.1 to {UPLINK}.{_LAST_VLAN_ID}"
                raise InvalidSpec(f"the node has no native device {device}; it can have {known}")
            if self.devices.count(device) > 1:
                raise InvalidSpec(f"two native devices are called {device}")
        if len(self.vlans) > MAX_VLANS:
            raise InvalidSpec(f"a node has at most {MAX_VLANS} VLAN devices, not {len(self.vlans)}")
        if self.xdp is not None:
            check_xdp_mode(self.xdp)
            if not self.devices:
                raise InvalidSpec(
                    f"XDP programs are for native devices, and the node has none: build it with --devices {UPLINK}"
                )

    @property
    def xdp_mode(self) -> XdpMode | None:
        """The mode as the pipeline takes it."""
        return None if self.xdp is None else check_xdp_mode(self.xdp)

    @property
    def pod_specs(self) -> tuple[PodSpec, ...]:
        """The pods asked for, spelled out."""
        assert not isinstance(self.pods, int)
        return self.pods

    @property
    def vlans(self) -> tuple[VlanDevice, ...]:
        """The VLAN devices on the uplink."""
        ids = map(_vlan_id, self.devices)
        return tuple(VlanDevice(number, self.node_index) for number in ids if number is not None)

    @property
    def underlay_addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """The node's addresses on the underlay and on its VLANs."""
        on_vlans = (address for vlan in self.vlans for address in (vlan.node4, vlan.node6))
        return tuple(address.ip for address in (self.node4, self.node6, *on_vlans))

    @property
    def route_mtu(self) -> int:
        """The MTU of the pods' default route (RouteMTU): what fits into a packet to another node."""
        return self.mtu - VXLAN_OVERHEAD if self.tunnel else self.mtu

    @property
    def pod_cidr4(self) -> IPv4Network:
        return _pod_cidrs(self.node_index)[0]

    @property
    def pod_cidr6(self) -> IPv6Network:
        return _pod_cidrs(self.node_index)[1]

    @property
    def router4(self) -> IPv4Address:
        return _routers(self.node_index)[0]

    @property
    def router6(self) -> IPv6Address:
        return _routers(self.node_index)[1]

    @property
    def node4(self) -> IPv4Interface:
        """The node's address on the underlay."""
        return IPv4Interface(f"172.20.{self.node_index}.1/{16 if self.cluster else 24}")

    @property
    def node6(self) -> IPv6Interface:
        return IPv6Interface(f"fd00:172:20:{self.node_index:x}::1/{48 if self.cluster else 64}")

    @property
    def outside4(self) -> IPv4Interface:
        """The address of the world outside, which answers; one and the same for all nodes of a cluster."""
        return IPv4Interface("172.20.255.254/16" if self.cluster else f"172.20.{self.node_index}.254/24")

    @property
    def outside6(self) -> IPv6Interface:
        return IPv6Interface("fd00:172:20:ff::fe/48" if self.cluster else f"fd00:172:20:{self.node_index:x}::fe/64")

    @property
    def uplink_peer(self) -> tuple[str, int]:
        """Name and index of the other end of the uplink: by itself outside, or a port of the shared underlay."""
        return (f"node-{self.node_index}", _FIRST_PORT_IFINDEX + self.node_index) if self.cluster else _ALONE


def _vlan_id(device: str) -> int | None:
    """Return the id of a VLAN device of the uplink by its name; None if it is none."""
    found = _VLAN_NAME.fullmatch(device)
    number = 0 if found is None else int(found[1])
    return number if 0 < number <= _LAST_VLAN_ID else None


_ALONE = (UPLINK, PEER_IFINDEX)


def next_tunnel_ifindex(present: int) -> int:
    """Return the interface index for a tunnel device that is made again."""
    later = [index for index in _TUNNEL_IFINDICES if index > present]
    return later[0] if later else _TUNNEL_IFINDICES[0]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """An interface of the node. `peer_mac` is that of the other end of a veth."""

    name: str
    ifindex: int
    mac: str
    peer_mac: str | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod (or the health endpoint) as it was built.

    `ifname`, `ifindex` and `node_mac` are those of the veth's end in the node; `inner_ifname`, PEER_IFINDEX and `mac`
    those of the end in the pod's namespace.
    """

    name: str
    endpoint_id: int
    identity: int
    container_id: str
    ifname: str
    ifindex: int
    node_mac: str
    mac: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    inner_ifname: str = "eth0"
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Everything about a node that was chosen when it was built.

    `unloaded` are the names of pods whose programs may be missing: they are being made, or removed.
    """

    cilium_host: DeviceFacts
    cilium_net: DeviceFacts
    vxlan: DeviceFacts
    uplink: DeviceFacts
    health: PodFacts
    pods: tuple[PodFacts, ...] = field(default=())
    unloaded: tuple[str, ...] = field(default=())


def lxc_ifname(container_id: str, inner_ifname: str = "eth0") -> str:
    """Return the name of the node's end of a pod's pair of devices (plugins/cilium-cni: Endpoint2IfName)."""
    return LXC_PREFIX + hashlib.sha256(f"{container_id}:{inner_ifname}".encode()).hexdigest()[:12]


def random_mac(random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """Return a random unicast MAC from the locally administered range."""
    value = bytearray(random_bytes(6))
    value[0] = value[0] & 0xFC | 0x02
    return value.hex(":")


def device_mac(spec: NodeSpec, device: str) -> str:
    """Return the MAC of a device that the programs know by its MAC: the same in each lab, another on each node.

    Nodes whose programs are built with the same numbers can share what is compiled.
    """
    return random_mac(hashlib.shake_128(f"{spec.node_index} {device}".encode()).digest)


def plan_node(spec: NodeSpec, random_bytes: Callable[[int], bytes] = os.urandom) -> NodeFacts:
    """Derive all facts of a node; only container ids and the MACs of veths are random."""
    macs = _distinct_macs(random_bytes)
    host_mac, net_mac = device_mac(spec, "cilium_host"), device_mac(spec, "cilium_net")
    pod_macs = _pod_macs(spec, macs)
    health = PodFacts(
        name=HEALTH,
        endpoint_id=HEALTH_ENDPOINT,
        identity=HEALTH_ID,
        container_id="",
        ifname="lxc_health",
        ifindex=_HEALTH_IFINDEX,
        node_mac=next(pod_macs),
        mac=next(pod_macs),
        ipv4=spec.pod_cidr4[2],
        ipv6=spec.pod_cidr6[2],
        inner_ifname="cilium",
        labels=frozenset({"reserved:health"}),
    )
    return NodeFacts(
        uplink=DeviceFacts(UPLINK, _UPLINK_IFINDEX, next(macs), next(macs)),
        cilium_net=DeviceFacts("cilium_net", _NET_IFINDEX, net_mac, host_mac),
        cilium_host=DeviceFacts("cilium_host", _HOST_IFINDEX, host_mac, net_mac),
        vxlan=DeviceFacts("cilium_vxlan", _VXLAN_IFINDEX, device_mac(spec, "cilium_vxlan")),
        health=health,
        pods=tuple(_plan_pod(spec, pod, number, pod_macs, random_bytes) for number, pod in enumerate(spec.pod_specs)),
    )


def plan_pod(spec: NodeSpec, pod: PodSpec, number: int, random_bytes: Callable[[int], bytes] = os.urandom) -> PodFacts:
    """Derive the facts of one more pod; `number` counts from 0 and decides id, identity, interface index, addresses."""
    return _plan_pod(spec, pod, number, _pod_macs(spec, _distinct_macs(random_bytes)), random_bytes)


def label_identity(labels: Iterable[str]) -> int:
    """Return the identity of all pods with exactly these labels: on every node the same, without asking anybody."""
    digest = hashlib.sha256("\0".join(sorted(labels)).encode()).digest()
    return _FIRST_LABEL_IDENTITY + int.from_bytes(digest[:8], "big") % (_END_OF_IDENTITIES - _FIRST_LABEL_IDENTITY)


def _identity(spec: NodeSpec, pod: PodSpec, number: int) -> int:
    if pod.identity is not None:
        return pod.identity
    if pod.labels:
        return label_identity(pod.labels)
    return FIRST_IDENTITY + _IDENTITIES_PER_NODE * spec.node_index + number


def pod_number(pod: PodFacts) -> int:
    """Return the number from which `plan_pod` derived a pod."""
    return pod.endpoint_id - FIRST_ENDPOINT


def next_pod_number(pods: Iterable[PodFacts]) -> int:
    """Return the number of one more pod: a new one as long as there are some, else the first that is free.

    A node has addresses for MAX_PODS, however many pods have come and gone.
    """
    taken = {pod_number(pod) for pod in pods}
    new = 1 + max(taken, default=-1)
    return new if new < MAX_PODS else next(number for number in range(MAX_PODS) if number not in taken)


# Asked for once per pod, and costly to make.
@cache
def _pod_cidrs(index: int) -> tuple[IPv4Network, IPv6Network]:
    return IPv4Network((f"10.244.{16 * index}.0", 20)), IPv6Network((f"fd00:10:244:{index:x}::", 64))


@cache
def _routers(index: int) -> tuple[IPv4Address, IPv6Address]:
    cidr4, cidr6 = _pod_cidrs(index)
    return cidr4[1], cidr6[1]


def _plan_pod(
    spec: NodeSpec, pod: PodSpec, number: int, macs: Iterator[str], random_bytes: Callable[[int], bytes]
) -> PodFacts:
    container_id = random_bytes(32).hex()
    return PodFacts(
        name=pod.name,
        endpoint_id=FIRST_ENDPOINT + number,
        identity=_identity(spec, pod, number),
        container_id=container_id,
        ifname=lxc_ifname(container_id),
        ifindex=_FIRST_IFINDEX + number,
        node_mac=next(macs),
        mac=next(macs),
        ipv4=spec.pod_cidr4[3 + number],
        ipv6=spec.pod_cidr6[3 + number],
        labels=pod.labels,
    )


def has_macs(datapath_mode: str) -> bool:
    """Tell whether the devices of pods have Ethernet addresses: those of netkit's mode L3 cannot."""
    return datapath_mode != "netkit"


def _pod_macs(spec: NodeSpec, macs: Iterator[str]) -> Iterator[str]:
    """Yield the MACs of the pods' devices; those without send frames with zeros."""
    return macs if has_macs(spec.datapath_mode) else repeat("00:00:00:00:00:00")


def _distinct_macs(random_bytes: Callable[[int], bytes]) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        mac = random_mac(random_bytes)
        if mac not in seen:
            seen.add(mac)
            yield mac
