"""Which steps make up the reload of a pod, of the host, of the overlay and of XDP (reloadDatapath, reloadHostDatapath).

Where the order differs from the reference, packets are the reason: filters are removed only after the new program is
attached (at the reference commit before it is loaded, so a refused program leaves the endpoint bare); routes change
before the commit, so that every step that can fail can still be undone; each object is loaded once for all its hooks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from datapath.base.mapnames import netdev_of, xdp_of
from datapath.base.names import check_ifname
from datapath.build.objectfile import ObjectFile
from datapath.build.template import Kind
from datapath.endpoint import Attachment, DatapathConfig, Endpoint, Interface
from datapath.errors import LinkNotFound, ReloadlabError, printable
from datapath.kernel import linkpins
from datapath.kernel.hooks import Direction
from datapath.reload.prepare import Compile, FillArrays, LoadPrograms, MigrateMaps, OpenMaps, RepinMaps, WriteObject
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import (
    NETDEV_PROGRAMS,
    Attach,
    Commit,
    Detach,
    InsertPolicy,
    InstallRoutes,
    RemoveRoutes,
    SetUp,
)
from datapath.reload.xdp import CIL_XDP_ENTRY, AttachXdp, DetachXdp

CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN, CILIUM_WG = "cilium_host", "cilium_net", "cilium_vxlan", "cilium_wg0"
EXCLUDED_PREFIXES = ("cilium_", "lo", "lxc", "cni", "docker")
"""Interfaces that never lose netdev programs as obsolete devices (removeObsoleteNetdevPrograms)."""

OVERLAY_SUBJECT, XDP_SUBJECT = "overlay", "xdp"


class LinksShared(ReloadlabError):
    """Two devices whose names differ in a dot alone, where the directory of links has a hyphen."""

    def __init__(self, first: str, second: str) -> None:
        names = " and ".join(map(printable, (first, second)))
        super().__init__(f"the links of {names} have the same pins: rename one, or do without tcx and XDP")
        self.names = (first, second)


_NETDEV_OBJECT, _XDP_OBJECT = (re.compile(rf"bpf_{kind}_(.+)\.o(\.new|\.old)?") for kind in ("netdev", "xdp"))
"""The objects of devices, and what a killed reload has left of them."""


def pod_plan(config: DatapathConfig, endpoint: Endpoint, *, subject: str, down: bool = False) -> Plan:
    """Return the reload of one pod; if its interface may be `down`, it is set up when its programs are attached."""
    ifname = check_ifname(endpoint.ifname)
    directory = config.state / str(endpoint.id)
    item = ObjectFile(Kind.LXC, directory / "bpf_lxc.o", endpoint.generation, endpoint)
    programs = ("cil_from_container", "cil_to_container") if endpoint.require_egress_prog else ("cil_from_container",)
    steps: list[Step] = [_compile(item.kind, endpoint), *_load(item, programs)]
    # With an egress program the policy program leaves the policy to it: it must be there before.
    if endpoint.require_egress_prog:
        steps.append(_attach(config, ifname, Direction.EGRESS, "cil_to_container", item, endpoint.ifindex))
    steps.append(InsertPolicy(item.name, endpoint.id))
    steps.append(_attach(config, ifname, Direction.INGRESS, "cil_from_container", item, endpoint.ifindex))
    if down:
        steps.append(SetUp(ifname, endpoint.ifindex))
    # The route decides whether a packet for the pod meets the egress program: it comes after that program, and
    # goes before it, so that no packet arrives unchecked.
    steps.append(InstallRoutes(ifname, endpoint) if endpoint.require_endpoint_route else RemoveRoutes(ifname, endpoint))
    if not endpoint.require_egress_prog:
        links = config.endpoint_links(endpoint.id)
        steps.append(Detach(ifname, Direction.EGRESS, ifindex=endpoint.ifindex, links=links))
    steps.append(Commit(subject, (item,)))
    return Plan(subject, endpoint.id, endpoint.generation, tuple(steps))


def host_plan(config: DatapathConfig, endpoint: Endpoint, links: Mapping[str, Interface], *, subject: str) -> Plan:
    """Return the reload of the host endpoint; `links` are the interfaces of the node.

    LinkNotFound without cilium_host or cilium_net; a missing device is left out with a warning.
    """
    for needed in (CILIUM_HOST, CILIUM_NET):
        if needed not in links:
            raise LinkNotFound(needed)
    directory = config.state / str(endpoint.id)

    def item(name: str, device: Interface | None) -> ObjectFile:
        return ObjectFile(Kind.HOST, directory / name, endpoint.generation, endpoint, device)

    host = item("bpf_host.o", None)
    net = item("bpf_host_cilium_net.o", links[CILIUM_NET])
    there = [check_ifname(name) for name in config.devices if name in links]
    if config.attach is Attachment.TCX:
        _check_links(config, (CILIUM_HOST, CILIUM_NET, *there))
    missing = tuple(f"device {name} does not exist: left out" for name in config.devices if name not in links)
    devices = {name: item(f"bpf_netdev_{name}.o", links[name]) for name in there}
    egress = {name for name in there if config.egress_devices and name != CILIUM_WG}

    steps: list[Step] = [_compile(Kind.HOST, endpoint)]
    steps += _load(host, ("cil_to_host", "cil_from_host"))
    steps += _load(net, ("cil_to_host",))
    for name, netdev in devices.items():
        steps += _load(netdev, ("cil_from_netdev", "cil_to_netdev") if name in egress else ("cil_from_netdev",))
    steps.append(InsertPolicy(host.name, endpoint.id))

    def attach(name: str, direction: Direction, program: str, item: ObjectFile) -> Attach:
        # The objects have the index and the MAC of an interface: they are not for one that took its name since.
        return _attach(config, name, direction, program, item, links[name].ifindex)

    steps.append(attach(CILIUM_HOST, Direction.INGRESS, "cil_to_host", host))
    steps.append(attach(CILIUM_HOST, Direction.EGRESS, "cil_from_host", host))
    steps.append(attach(CILIUM_NET, Direction.INGRESS, "cil_to_host", net))
    for name, netdev in devices.items():
        steps.append(attach(name, Direction.INGRESS, "cil_from_netdev", netdev))
        if name in egress:
            steps.append(attach(name, Direction.EGRESS, "cil_to_netdev", netdev))
        else:
            steps.append(Detach(name, Direction.EGRESS, ifindex=links[name].ifindex, links=config.device_links(name)))
    steps += _obsolete(config, links, there)
    obsolete = (
        *_calls_maps_left(config.globals, links, there),
        *_links_left(config, links, there),
        *_objects_left(directory, links, there),
    )
    steps.append(Commit(subject, (host, net, *devices.values()), obsolete))
    return Plan(subject, endpoint.id, endpoint.generation, tuple(steps), missing)


def overlay_plan(config: DatapathConfig, generation: int) -> Plan:
    """Return the reload of the tunnel device's programs."""
    item = ObjectFile(Kind.OVERLAY, config.state / "bpf_overlay.o", generation)
    steps: list[Step] = [_compile(item.kind), *_load(item, ("cil_from_overlay", "cil_to_overlay"))]
    steps.append(_attach(config, CILIUM_VXLAN, Direction.INGRESS, "cil_from_overlay", item))
    steps.append(_attach(config, CILIUM_VXLAN, Direction.EGRESS, "cil_to_overlay", item))
    steps.append(Commit(OVERLAY_SUBJECT, (item,)))
    return Plan(OVERLAY_SUBJECT, 0, generation, tuple(steps))


def xdp_plan(config: DatapathConfig, generation: int, links: Mapping[str, Interface]) -> Plan:
    """Return the reload of the devices' XDP programs; `links` are the interfaces of the node.

    All other interfaces lose theirs (maybeUnloadObsoleteXDPPrograms), and so do the devices if XDP is off. A missing
    device is left out with a warning; cilium_wg0 has no XDP program.
    """
    wanted = [name for name in config.devices if name != CILIUM_WG] if config.xdp is not None else []
    there = [check_ifname(name) for name in wanted if name in links]
    _check_links(config, there)
    missing = tuple(f"device {name} does not exist: left out" for name in wanted if name not in links)
    directory = config.state / XDP_SUBJECT
    items = {
        name: ObjectFile(Kind.XDP, directory / f"bpf_xdp_{name}.o", generation, device=links[name]) for name in there
    }
    steps: list[Step] = [_compile(Kind.XDP)] if items else []
    for item in items.values():
        steps += _load(item, (CIL_XDP_ENTRY,))
    if config.xdp is not None:
        steps += [
            AttachXdp(name, item.name, config.xdp, links[name].ifindex, item.path) for name, item in items.items()
        ]
    steps += [DetachXdp(name) for name in (*_not_wanted(links, there), *_pinned_devices_gone(config, links))]
    kept = {links[name].ifindex for name in there}
    maps = ((path, xdp_of(path.name)) for path in _entries(config.globals))
    objects = ((path, _XDP_OBJECT.fullmatch(path.name)) for path in _entries(directory))
    obsolete = [path for path, ifindex in maps if ifindex is not None and ifindex not in kept]
    obsolete += [path for path, match in objects if match is not None and match[1] not in there]
    steps.append(Commit(XDP_SUBJECT, tuple(items.values()), tuple(obsolete)))
    return Plan(XDP_SUBJECT, 0, generation, tuple(steps), missing)


def _not_wanted(links: Mapping[str, Interface], devices: Sequence[str]) -> list[str]:
    """Return the interfaces that lose their programs, if they have any."""
    return [name for name in links if not _keeps_programs(name, devices)]


def _pinned_devices_gone(config: DatapathConfig, links: Mapping[str, Interface]) -> list[str]:
    """Return the names under which links are pinned of interfaces that are gone."""
    there = {linkpins.owner(config.device_links(name)) for name in links}
    owners = map(linkpins.owner, linkpins.directories(config.devices_links))
    return [owner for owner in owners if owner not in there]


def _compile(kind: Kind, endpoint: Endpoint | None = None) -> Compile:
    return Compile(kind.source, kind, endpoint)


def _load(item: ObjectFile, programs: tuple[str, ...]) -> list[Step]:
    name = item.name
    return [
        WriteObject(name, item, programs),
        RepinMaps(name),
        OpenMaps(name),
        MigrateMaps(name),
        LoadPrograms(name, item.kind),
        FillArrays(name, item),
    ]


def _attach(
    config: DatapathConfig,
    ifname: str,
    direction: Direction,
    program: str,
    item: ObjectFile,
    ifindex: int | None = None,
) -> Attach:
    pod = item.endpoint if item.kind is Kind.LXC else None
    return Attach(
        *(ifname, direction, program, item.name, config.filter_priority or 1, ifindex),
        links=config.device_links(ifname) if pod is None else config.endpoint_links(pod.id),
        attachment=config.attach if pod is None or config.datapath_mode == "veth" else Attachment.TCX,
    )


def _obsolete(config: DatapathConfig, links: Mapping[str, Interface], devices: Sequence[str]) -> list[Step]:
    """Return the removal of netdev programs from interfaces that are no devices (any more)."""
    return [
        Detach(name, direction, prefix, required=False, links=config.device_links(name))
        for name in _not_wanted(links, devices)
        for direction, prefix in NETDEV_PROGRAMS.items()
    ]


def _keeps_programs(name: str, devices: Sequence[str]) -> bool:
    """Tell whether an interface has netdev programs when the reload has ended, if it had any before."""
    return name in devices or name.startswith(EXCLUDED_PREFIXES)


def _calls_maps_left(pins: Path, links: Mapping[str, Interface], devices: Sequence[str]) -> list[Path]:
    """Return the pinned calls maps of interfaces that lose their programs, or are gone."""
    kept = {link.ifindex for name, link in links.items() if _keeps_programs(name, devices)}
    numbered = ((path, netdev_of(path.name)) for path in _entries(pins))
    return [path for path, ifindex in numbered if ifindex is not None and ifindex not in kept]


def _check_links(config: DatapathConfig, devices: Sequence[str]) -> None:
    """Raise LinksShared if links of two devices would be pinned in one directory."""
    seen: dict[Path, str] = {}
    for name in devices:
        other = seen.setdefault(config.device_links(name), name)
        if other != name:
            raise LinksShared(other, name)


def _links_left(config: DatapathConfig, links: Mapping[str, Interface], devices: Sequence[str]) -> list[Path]:
    """Return the directories of links of interfaces that lose their programs, or are gone."""
    kept = {config.device_links(name) for name in links if _keeps_programs(name, devices)}
    return [
        directory
        for directory in linkpins.directories(config.devices_links)
        if directory not in kept and not linkpins.owner(directory).startswith(EXCLUDED_PREFIXES)
    ]


def _objects_left(directory: Path, links: Mapping[str, Interface], devices: Sequence[str]) -> list[Path]:
    """Return the objects of interfaces that lose their programs, or are gone."""
    named = ((path, _NETDEV_OBJECT.fullmatch(path.name)) for path in _entries(directory))
    kept = {name for name in links if _keeps_programs(name, devices)}
    return [path for path, match in named if match is not None and match[1] not in kept]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
