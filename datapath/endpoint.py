"""What a reload is about: the endpoint and the node it lives on, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal, get_args

LABEL_HOST = "reserved:host"

HOST_ID, WORLD_ID, HEALTH_ID, REMOTE_NODE_ID = 1, 2, 4, 6
"""Reserved identities (pkg/identity/numericidentity.go)."""

XdpMode = Literal["native", "generic", "best-effort"]
"""How programs are attached to XDP (option bpf-lb-acceleration): by the driver, by the kernel for any driver, or by the
driver where it can and not at all elsewhere."""
XDP_MODES: tuple[XdpMode, ...] = get_args(XdpMode)


DatapathMode = Literal["veth", "netkit", "netkit-l2"]
"""The devices of pods (option datapath-mode): pairs of veth, or of netkit, without Ethernet addresses or with them."""
DATAPATH_MODES: tuple[DatapathMode, ...] = get_args(DatapathMode)

LINKS = "links"
"""The name of a directory of pinned links, in the directory of the device or endpoint that they belong to."""


class Attachment(StrEnum):
    """How programs are attached: as filters of clsact, by links of tcx, or by the better one that the kernel has.

    To netkit devices they are attached by links of netkit, which are handled as those of tcx, whatever this says.
    """

    TC = "tc"
    TCX = "tcx"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a namespace; `mac` is None without an Ethernet address."""

    name: str
    ifindex: int
    mac: str | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, as the loader sees it.

    `mac` is the pod's own MAC, `node_mac` the one of the host side of its veth (aa:bb:cc:dd:ee:ff, lower case).
    The three booleans are Cilium's EndpointDatapathConfiguration; `with_endpoint_routes` sets them together.
    `options` are macros for ep_config.h, as (name, value) pairs; they are part of the template's hash.
    `generation` is substituted like an address: it tells which load handled a packet, and never compiles.
    `ifindex` is the interface that it was given, where that is known: a later one of the same name is another's.
    """

    id: int
    ifname: str
    mac: str
    node_mac: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    identity: int
    labels: frozenset[str] = frozenset()
    require_egress_prog: bool = False
    require_endpoint_route: bool = False
    require_routing: bool = True
    options: tuple[tuple[str, str], ...] = ()
    generation: int = 1
    ifindex: int | None = None

    @property
    def is_host(self) -> bool:
        return LABEL_HOST in self.labels

    def with_endpoint_routes(self, on: bool) -> Endpoint:
        """Return this endpoint in the given mode (daemon/cmd/endpoint.go, EnableEndpointRoutes)."""
        return replace(self, require_egress_prog=on, require_endpoint_route=on, require_routing=not on)


@dataclass(frozen=True, slots=True)
class Vlan:
    """A VLAN device: it gets the frames that come to the interface with the index `link` with the tag `id`."""

    name: str
    link: int
    id: int


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What node_config.h and netdev_config.h say about the node.

    `options` are further macros as (name, value) pairs. `encap_ifindex` is None without a tunnel. `pod_prefix4` is the
    length of every node's pod network, by which the tunnel map is asked. `vlans` are the VLAN devices of the node.
    """

    router_ipv4: IPv4Address
    router_ipv6: IPv6Address
    cilium_host_ifindex: int
    cilium_host_mac: str
    cilium_net_ifindex: int
    cilium_net_mac: str
    encap_ifindex: int | None
    encap_mac: str | None
    mtu: int
    endpoint_routes: bool = False
    options: tuple[tuple[str, str], ...] = ()
    tunnel_port: int = 8472
    pod_prefix4: int = 24
    vlans: tuple[Vlan, ...] = ()


@lru_cache(maxsize=1024)
def _below(bpffs: Path, *names: str) -> Path:
    """Return a directory of a bpffs: a reload asks for them so often that making the paths would show."""
    return bpffs.joinpath(*names)


def globals_of(bpffs: Path) -> Path:
    """Return the directory of pinned maps."""
    return _below(bpffs, "tc", "globals")


@dataclass(frozen=True, slots=True)
class DatapathConfig:
    """Where a node keeps its things, and how its programs are attached.

    `library` holds the C sources, `state` the endpoints' directories, `bpffs` is the mount point of the node's own BPF
    file system, `netns` the path of its network namespace. Nodes may share a directory of templates,
    `shared_templates`; else they are in `state`. `object_cache` is a directory of compiled objects that all nodes and
    runs have in common (None: there is none). Programs that nothing reaches are loaded only with `all_programs`.
    `devices` are the native devices (option devices), `egress_devices` whether they get cil_to_netdev as well
    (AreDevicesRequired), `filter_priority` is option bpf-filter-priority (0 means 1). `attach` is how programs are
    attached (tc, as at the reference commit; its successors prefer tcx). `xdp` is how the devices get cil_xdp_entry,
    None if not at all. `datapath_mode` is what the pods have for devices.
    """

    library: Path
    state: Path
    bpffs: Path
    netns: Path
    node: NodeConfig
    devices: tuple[str, ...] = ()
    egress_devices: bool = True
    filter_priority: int = 1
    clang: str | None = None
    defines: tuple[tuple[str, str], ...] = field(default=())
    shared_templates: Path | None = None
    xdp: XdpMode | None = None
    object_cache: Path | None = None
    attach: Attachment = Attachment.TC
    all_programs: bool = False
    datapath_mode: DatapathMode = "veth"

    @property
    def templates(self) -> Path:
        """The directory of the compiled templates, one directory each (TemplatesDir)."""
        return self.shared_templates or self.state / "templates"

    @property
    def globals(self) -> Path:
        """The directory of the pinned maps (TCGlobalsPath)."""
        return globals_of(self.bpffs)

    @property
    def links(self) -> Path:
        """The directory of all pinned links (CiliumPath)."""
        return _below(self.bpffs, "cilium")

    @property
    def devices_links(self) -> Path:
        """The directory of the devices' pinned links, one directory each."""
        return _below(self.bpffs, "cilium", "devices")

    @property
    def endpoints_links(self) -> Path:
        """The directory of the endpoints' pinned links, one directory each."""
        return _below(self.bpffs, "cilium", "endpoints")

    def device_links(self, ifname: str) -> Path:
        """The directory of a device's pinned links (bpffsDeviceLinksDir); no name on a bpffs has a dot."""
        return _below(self.bpffs, "cilium", "devices", ifname.replace(".", "-"), LINKS)

    def endpoint_links(self, endpoint_id: int) -> Path:
        """The directory of an endpoint's pinned links (bpffsEndpointLinksDir)."""
        return _below(self.bpffs, "cilium", "endpoints", str(endpoint_id), LINKS)
